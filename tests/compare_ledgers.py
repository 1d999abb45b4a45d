"""Whether two ledgers say the same: `python tests/compare_ledgers.py BEFORE AFTER`.

Each is a `_build/claims.json` that `geolib claims` wrote. Keys and verdicts must agree,
integers and booleans exactly, other numbers v within 1e-9 (1 + |v|).
"""

import json
import sys
from pathlib import Path


def differences(before: dict, after: dict) -> list[str]:
    """One line for each claim that is gone, new or says another thing."""
    old, new = ({r["key"]: r for r in ledger["rows"]} for ledger in (before, after))
    found = [f"gone: {key}" for key in old if key not in new]
    found += [f"new: {key}" for key in new if key not in old]
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        if a["verdict"] != b["verdict"]:
            found.append(f"{key}: {a['verdict']}, now {b['verdict']}")
        if a["bound"] != b["bound"]:
            found.append(f"{key}: bound {a['bound']}, now {b['bound']}")
        if not _same(a["measured"], b["measured"]):
            found.append(f"{key}: measured {a['measured']!r}, now {b['measured']!r}")
    return found


def _same(a: float | None, b: float | None) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= 1e-9 * (1 + abs(a))
    return type(a) is type(b) and a == b


if __name__ == "__main__":
    ledgers = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    lines = differences(*ledgers)
    print("\n".join(lines))
    counts = ", ".join(str(len(ledger["rows"])) for ledger in ledgers)
    print(f"{len(lines)} differences between ledgers of {counts} claims")
    sys.exit(bool(lines))
