"""The ledger: every claim of the executed notebooks, with what was measured for it."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geolib.claims import MIMETYPE as CLAIM
from geolib.files import write_whole

from .notebook import Notebook, PressError
from .run import build_folder, staged_path
from .staging import anchor, typeset

GPU_LEDGER = "book/claims-gpu.json"  # the ledger of a GPU run, where one was kept


@dataclass(frozen=True)
class Ledger:
    """Rows in book order, and what is wrong with them."""

    profile: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if not r["holds"]]

    @property
    def sound(self) -> bool:
        """No claim failed, none is missing, no key appears twice."""
        return not (self.failed or self.missing or self.repeated)

    @property
    def summary(self) -> str:
        """How the claims stand, in one line."""
        differs = sum(r["verdict"] == "not reproduced" for r in self.rows)
        holding = sum(r["verdict"] == "holds" for r in self.rows)
        text = f"{len(self.rows)} claims: {holding} hold"
        if differs:
            text += f", {differs} of a paper's not reproduced (shown as such)"
        for name, value in (
            ("failed", [r["key"] for r in self.failed]),
            ("missing", self.missing),
            ("repeated", self.repeated),
        ):
            if value:
                text += f", {len(value)} {name} ({', '.join(value)})"
        return text


def collect(notebooks: list[Notebook], profile: str) -> Ledger:
    """Read the claims back from the staged notebooks, and from partial failed ones.

    A key that a text spells out but no executed notebook holds counts as missing.
    """
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for n in notebooks:
        partial = build_folder(n.root, profile) / "failed" / f"{n.name}.ipynb"
        path = partial if partial.exists() else staged_path(n, profile)
        found = _claims_of(path) if path.exists() else []
        rows += [{**row, "notebook": n.name} for row in found]
        have = {row["key"] for row in found}
        missing += sorted(n.expected_claims() - have)
    keys = [row["key"] for row in rows]
    repeated = sorted({k for k in keys if keys.count(k) > 1})
    return Ledger(profile, rows, missing, repeated)


def _claims_of(path: Path) -> list[dict[str, Any]]:
    nb = json.loads(path.read_text())
    about = nb["metadata"].get("geolib", {})
    device = about.get("hardware", about.get("device", "cpu"))
    entries = [
        output["metadata"][CLAIM]
        for cell in nb["cells"]
        for output in cell.get("outputs", [])
        if CLAIM in output.get("metadata", {})
    ]
    return [{**e, "device": device} for e in entries]


def write_json(ledger: Ledger, path: Path) -> None:
    """Store the ledger with full values, for programs."""
    write_whole(path, json.dumps(vars(ledger), indent=1) + "\n")


def print_table(ledger: Ledger) -> None:
    """The ledger on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Claims, profile {ledger.profile}", title_justify="left")
    for name in ("claim", "measured", "bound", "paper", "verdict"):
        table.add_column(name, overflow="fold")
    for r in ledger.rows:
        color = {"holds": "green", "FAILS": "red"}.get(r["verdict"], "yellow")
        verdict = f"[{color}]{r['verdict']}[/{color}]"
        measured = f"{r['measured']:.6g}"
        table.add_row(r["key"], measured, r["bound"], r["paper"] or "", verdict)
    console = Console()
    console.print(table)
    console.print(ledger.summary, markup=False, highlight=False)


@dataclass(frozen=True)
class Second:
    """The ledger of a run on another device, kept as data beside the pages.

    Attributes:
        device: its name.
        profile: of the run, e.g. `full`.
        versions: of Python and torch.
        date: of the run, ISO.
        claims: by key: `shown`, `measured`, `bound` and `verdict`.
    """

    device: str
    profile: str
    versions: dict[str, str]
    date: str
    claims: dict[str, dict[str, Any]]

    @property
    def about(self) -> str:
        """One sentence about the run."""
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return (
            f"On {self.device}: profile {self.profile}, {self.date}, {versions}, "
            f"{len(self.claims)} claims."
        )


def keep(ledger: Ledger, path: Path) -> Second:
    """Store the rows of a ledger that were measured on a GPU, for the published page.

    Raises:
        PressError: none was, or several kinds of GPU were in use.
    """
    import datetime
    import platform

    import torch

    devices = sorted({r["device"] for r in ledger.rows} - {"cpu"})
    if len(devices) != 1:
        found = ", ".join(devices) or "a CPU only"
        raise PressError(
            f"keep: expected the run of profile {ledger.profile} to be on one kind of "
            f"GPU, got {found}; run `geolib run --profile {ledger.profile} --device "
            "cuda` first"
        )
    names = ("shown", "measured", "bound", "verdict")
    second = Second(
        devices[0],
        ledger.profile,
        {"Python": platform.python_version(), "torch": torch.__version__},
        datetime.date.today().isoformat(),
        {
            r["key"]: {name: r[name] for name in names}
            for r in ledger.rows
            if r["device"] == devices[0]
        },
    )
    write_whole(path, json.dumps(asdict(second), indent=1) + "\n")
    return second


def kept(path: Path) -> Second | None:
    """The stored ledger of a GPU run; None where none is stored.

    Raises:
        PressError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return Second(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise PressError(f"{path.name}: not a ledger that was kept ({error})") from None


COLUMNS = ("Claim", "Paper", "Measured", "Bound", "Verdict", "Device")


def page_table(ledger: Ledger, gpu: Second | None = None) -> str:
    """The ledger as HTML for `book/claims.md`: a table a chapter, linked to cells.

    With the ledger of a GPU run each row has what was measured there in a last column.
    One device for all rows is named above the tables instead of in each row.
    """
    devices = sorted({r["device"] for r in ledger.rows})
    about = f"{ledger.summary}. Profile: {ledger.profile}."
    heads: tuple[str, ...] = COLUMNS
    if len(devices) == 1:
        about += f" Device: {devices[0]}."
        heads = COLUMNS[:-1]
    parts = [f"<p>{html.escape(about)}</p>"]
    if gpu is not None:
        parts.append(f"<p>{html.escape(gpu.about)}</p>")
        heads = (*heads, f"On {gpu.device}")
    chapters = list(dict.fromkeys(r["notebook"].split("/")[0] for r in ledger.rows))
    for chapter in chapters:
        rows = [r for r in ledger.rows if r["notebook"].startswith(chapter + "/")]
        title = chapter.replace("_", " ").capitalize()
        parts.append(
            f'<h2 id="ledger-{chapter}">{title}</h2>'
            '<div class="ledger" tabindex="0" role="region" '
            f'aria-label="Claims of the chapter {title}"><table><thead><tr>'
            + "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
            + "</tr></thead><tbody>"
            + "".join(_row(r, gpu, "Device" in heads) for r in rows)
            + "</tbody></table></div>"
        )
    return "\n".join(parts)


def _row(r: dict[str, Any], gpu: Second | None, device: bool) -> str:
    link = f"../chapters/{r['notebook']}.html#{anchor(r['key'])}"
    reason = f"<br><small>{html.escape(r['reason'])}</small>" if r["reason"] else ""
    cells = [
        f'<a href="{link}">{html.escape(r["text"])}</a>{reason}',
        html.escape(r["paper"] or ""),
        _measured(r),
        typeset(r["bound"]),
        _badge(r["verdict"]),
    ]
    if device:
        cells.append(html.escape(r["device"]))
    if gpu is not None:
        there = gpu.claims.get(r["key"])
        cells.append(f"{_measured(there)} {_badge(there['verdict'])}" if there else "")
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _measured(r: dict[str, Any]) -> str:
    return html.escape(r["shown"] or f"{float(r['measured']):.1e}")


def _badge(verdict: str) -> str:
    kind = {"holds": "holds", "FAILS": "fails"}.get(verdict, "differs")
    return f'<span class="claim-verdict verdict-{kind}">{verdict}</span>'
