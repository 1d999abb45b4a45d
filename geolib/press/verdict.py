"""What a stored claim is worth: its verdict follows from its number and its bound."""

from typing import Any

from geolib.claims import Bound, verdict

NOT_REACHED = "not reached"
FAILS = "FAILS"
BLANK: dict[str, Any] = {"key": "?", "reproduces": True} | dict.fromkeys(
    ("text", "measured", "shown", "bound", "paper", "reason", "rival")
)


def settle(entry: dict[str, Any]) -> dict[str, Any]:
    """A stored claim with the verdict that its number and bound give, whatever it says.

    What is no claim at all, or has no number or no readable bound, fails.
    """
    row = BLANK | entry
    for name in ("key", "text", "shown", "bound"):
        row[name] = str(row[name] or "")
    for name in ("paper", "reason", "rival"):
        row[name] = row[name] if row[name] is None else str(row[name])
    if not isinstance(row["measured"], int | float):
        row["measured"] = None
    data = row.get("data")
    row["data"] = [str(name) for name in data] if isinstance(data, list) else []
    try:
        holds = Bound.parse(row["bound"]).holds(float(row["measured"]))
    except (ValueError, TypeError, AttributeError):
        holds = False
    judged = verdict(holds, row["reproduces"], row["rival"])
    return row | {"holds": holds, "verdict": judged}


def not_reached(key: str) -> dict[str, Any]:
    """The row of a claim that the text makes and no run came to."""
    return settle({"key": key, "text": key, "bound": ""}) | {"verdict": NOT_REACHED}
