"""What a stored claim is worth: its verdict follows from its number and its bound."""

from __future__ import annotations

from typing import Any

from geolib.claims import Bound
from geolib.tables import html_table, human, power

from .quiet import code_block

NOT_REACHED = "not reached"
FAILS = "FAILS"
YES_NO = {"is True": "yes", "is False": "no"}


def settle(entry: dict[str, Any]) -> dict[str, Any]:
    """A stored claim with the verdict that its number and bound give, whatever it says.

    What is no claim at all, or has no number or no readable bound, fails.
    """
    blank = {"text": "", "measured": None, "shown": "", "bound": "", "paper": None}
    row = blank | {"key": "?", "reproduces": True, "reason": None} | entry
    texts = {
        k: v for k, v in row.items() if k not in ("measured", "reproduces", "data")
    }
    row |= {k: v if v is None else str(v) for k, v in texts.items()}
    row |= {k: row[k] or "" for k in ("key", "text", "shown", "bound")}
    if not isinstance(row["measured"], int | float):
        row["measured"] = None
    data = row.get("data")
    row["data"] = [str(name) for name in data] if isinstance(data, list) else []
    try:
        holds = Bound.parse(row["bound"]).holds(float(row["measured"]))
    except (ValueError, TypeError, AttributeError):
        holds = False
    verdict = "holds" if row["reproduces"] else "not reproduced"
    return row | {"holds": holds, "verdict": verdict if holds else FAILS}


def not_reached(key: str) -> dict[str, Any]:
    """The row of a claim that the text makes and no run came to."""
    row = settle({"key": key, "text": key, "bound": ""})
    return row | {"verdict": NOT_REACHED}


def shown(row: dict[str, Any]) -> str:
    """The measured value as a reader sees it."""
    if row["measured"] is None:
        return ""
    return str(row["shown"]) or power(float(f"{float(row['measured']):.2g}"))


def anchor(key: str) -> str:
    """The id of a claim's box on its page."""
    return "claim-" + key.replace(".", "-").replace("_", "-")


def typeset(bound: str) -> str:
    """A bound as a reader writes it, escaped for HTML."""
    return YES_NO.get(bound) or human(bound)


def kind(verdict: str) -> str:
    """The style of a verdict: `holds`, `fails` or `differs`."""
    return {"holds": "holds", FAILS: "fails", NOT_REACHED: "fails"}.get(
        verdict, "differs"
    )


def checks_box(entries: list[dict[str, Any]], code: str = "") -> str:
    """The claims of one cell: a quiet line for those that hold, the others in full.

    Args:
        entries: the settled claims.
        code: source that is shown nowhere else; it unfolds with the line.
    """
    quiet = [e for e in entries if e["verdict"] == "holds"]
    loud = "".join(_loud(e) for e in entries if e["verdict"] != "holds")
    code = code and code_block(code)
    if not quiet:
        fold = '<details class="checks all-checks"><summary>code</summary>'
        return loud + (f"{fold}{code}</details>" if code else "")
    count = f"{len(quiet)} checks hold" if len(quiet) > 1 else "1 check holds"
    return (
        f'{loud}<details class="checks"><summary>{count}</summary>'
        f"{checks_table(quiet)}{code}</details>"
    )


def checks_table(entries: list[dict[str, Any]], link: bool = False) -> str:
    """Sentence, found value and bound of each claim; rows are named, or link to names."""
    rows = []
    for e in entries:
        text = human(e["text"])
        first = f'<a href="#{anchor(e["key"])}">{text}</a>' if link else text
        name = "" if link else f'id="{anchor(e["key"])}"'
        if e["verdict"] != "holds":
            first += f" <b>({e['verdict']})</b>"
        elif e["paper"]:
            first += f" <small>Paper: {human(e['paper'])}</small>"
        rows.append((name, (first, found(e), typeset(e["bound"]))))
    return html_table(("Check", "Found", "Bound"), rows, about="checks")


def found(entry: dict[str, Any]) -> str:
    """What was found, in human digits, escaped for HTML."""
    value = entry["measured"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return human(shown(entry))


def _loud(entry: dict[str, Any]) -> str:
    """A claim that is no quiet success: the paper's sentence, what we find, the verdict."""
    e = {k: human(str(v)) for k, v in entry.items() if v is not None}
    paper = f"Paper: {e['paper']}. " if entry["paper"] else ""
    reason = f" {e['reason'][:1].upper()}{e['reason'][1:]}." if entry["reason"] else ""
    bound = typeset(entry["bound"])
    return (
        f'<div class="claim claim-{kind(entry["verdict"])}" id="{anchor(entry["key"])}">'
        f"{paper}Found: {e['text']} "
        f'<span class="claim-numbers">({found(entry)}; bound {bound}).{reason}'
        f'</span> <span class="claim-verdict">{e["verdict"]}</span></div>'
    )
