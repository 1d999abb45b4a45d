"""The ledger: every claim of the executed notebooks, with what was measured for it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geolib.claims import MIMETYPE as CLAIM
from geolib.files import write_whole
from geolib.tables import text_table

from .build import Build, Page
from .notebook import Notebook
from .verdict import FAILS, NOT_REACHED, not_reached, settle


@dataclass(frozen=True)
class Ledger:
    """Rows in book order, and what is wrong with them.

    Attributes:
        profile: of the run.
        rows: a claim each: key, text, measured, bound, verdict, notebook, device.
        missing: keys that a text spells out and no run came to.
        repeated: keys that are claimed more than once.
        marked: by the name of each notebook whose page is not whole, why.

    Examples:
        >>> Ledger("small", missing=["demo.a"]).is_valid
        False
    """

    profile: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    marked: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows whose number breaks its bound."""
        return [r for r in self.rows if r["verdict"] == FAILS]

    @property
    def is_valid(self) -> bool:
        """No claim failed, none is missing, no key appears twice, every page is whole."""
        return not (self.failed or self.missing or self.repeated or self.marked)

    @property
    def summary(self) -> str:
        """How the claims stand, in one line."""
        counts = [r["verdict"] for r in self.rows]
        reached = len(counts) - counts.count(NOT_REACHED)
        text = f"{reached} claims: {counts.count('holds')} hold"
        if differs := counts.count("not reproduced"):
            text += f", {differs} of a paper's not reproduced (shown as such)"
        if losses := counts.count("a baseline wins"):
            text += f", {losses} won by a baseline (shown as such)"
        failed = [r["key"] for r in self.failed]
        wrong = {"failed": failed, "missing": self.missing, "repeated": self.repeated}
        for name, keys in wrong.items():
            few = [*keys[:8], *(["..."] if keys[8:] else [])]
            text += f", {len(keys)} {name} ({', '.join(few)})" if keys else ""
        return text


def collect(build: Build, notebooks: list[Notebook]) -> Ledger:
    """Read the claims back from the executed notebooks, and from partial failed ones.

    Verdicts are computed anew from the numbers and bounds; pages are checked against
    their keys. A key that a text spells out but no run came to counts as missing.
    """
    return of_pages(build.profile, [build.page(n) for n in notebooks])


def of_pages(profile: str, pages: list[Page]) -> Ledger:
    """The ledger of these pages."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for page in pages:
        name, found = page.notebook.name, _claims_of(page.content)
        lacking = set(page.notebook.facts.claims) - {row["key"] for row in found}
        if page.state in ("failed", "absent"):
            found += [not_reached(k) | {"device": ""} for k in sorted(lacking)]
        rows += [{**row, "notebook": name} for row in found]
        missing += sorted(lacking)
    keys = [row["key"] for row in rows]
    repeated = sorted({k for k in keys if keys.count(k) > 1})
    marked = {p.notebook.name: p.about for p in pages if p.about}
    return Ledger(profile, rows, missing, repeated, marked)


def _claims_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    about = content.get("metadata", {}).get("geolib", {})
    device = about.get("hardware", about.get("device", "cpu"))
    found = []
    for cell in content.get("cells", []):
        for output in cell.get("outputs", []):
            entry = output.get("metadata", {}).get(CLAIM)
            if isinstance(entry, dict):
                found.append({**settle(entry), "device": device})
    return found


def write_json(ledger: Ledger, path: Path) -> None:
    """Store the ledger with full values, for programs."""
    write_whole(path, json.dumps(vars(ledger), indent=1) + "\n")


def print_table(ledger: Ledger) -> None:
    """The ledger on the terminal."""
    rows = [["claim", "measured", "bound", "paper", "verdict"]]
    for r in ledger.rows:
        if r["verdict"] != NOT_REACHED:  # counted in the last line
            measured = "" if r["measured"] is None else f"{r['measured']:.6g}"
            paper = r["paper"] or ""
            rows.append([r["key"], measured, r["bound"], paper, r["verdict"]])
    print(f"Claims, profile {ledger.profile}\n{text_table(rows)}")
    for name, why in ledger.marked.items():
        print(f"{name}: {why}")
    print(ledger.summary)
