"""What a stored claim is worth: its verdict follows from its number and its bound."""

from __future__ import annotations

import html
from typing import Any

from geolib.claims import Bound

NOT_REACHED = "not reached"
FAILS = "FAILS"


def settle(entry: dict[str, Any]) -> dict[str, Any]:
    """A stored claim with the verdict that its number and bound give, whatever it says.

    What is no claim at all, or has no number or no readable bound, fails.
    """
    blank = {"text": "", "measured": None, "shown": "", "bound": "", "paper": None}
    row = blank | {"key": "?", "reproduces": True, "reason": None} | entry
    texts = {k: v for k, v in row.items() if k not in ("measured", "reproduces")}
    row |= {k: v if v is None else str(v) for k, v in texts.items()}
    row |= {k: row[k] or "" for k in ("key", "text", "shown", "bound")}
    if not isinstance(row["measured"], int | float):
        row["measured"] = None
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
    return str(row["shown"]) or f"{float(row['measured']):.1e}"


def anchor(key: str) -> str:
    """The id of a claim's box on its page."""
    return "claim-" + key.replace(".", "-").replace("_", "-")


def typeset(bound: str) -> str:
    """A bound as a reader writes it, escaped for HTML."""
    for plain, sign in (("<=", "≤"), (">=", "≥"), ("+-", "±"), ("==", "=")):
        bound = bound.replace(plain, sign)
    return html.escape(bound)


def kind(verdict: str) -> str:
    """The style of a verdict: `holds`, `fails` or `differs`."""
    return {"holds": "holds", FAILS: "fails", NOT_REACHED: "fails"}.get(
        verdict, "differs"
    )


def claim_box(entry: dict[str, Any]) -> str:
    """The claim as the reader sees it: verdict, sentence, numbers, the paper's word."""
    e = {k: html.escape(str(v)) for k, v in entry.items() if v is not None}
    e["bound"] = typeset(entry["bound"])
    value = f"measured <b>{e['shown']}</b>, " if entry["shown"] else ""
    paper = f" Paper: {e['paper']}." if entry.get("paper") else ""
    reason = f" Here: {e['reason']}." if entry.get("reason") else ""
    return (
        f'<div class="claim claim-{kind(entry["verdict"])}" id="{anchor(entry["key"])}">'
        f'<span class="claim-verdict">{e["verdict"]}</span> '
        f'<span class="claim-text">{e["text"]}</span> '
        f'<span class="claim-numbers">{value}bound {e["bound"]}.{paper}{reason}</span>'
        f"</div>"
    )
