"""The declared table of modules and functions, read from `trust_table.yml`."""

from __future__ import annotations

from pathlib import Path

import yaml

TABLE = yaml.safe_load((Path(__file__).parent / "trust_table.yml").read_text())
DATA_FREE = ("KFAC", "NaturalGradient", "align", "canonicalize", "learning_coefficient")


def cells() -> list[tuple[str, str]]:
    """Every (row, function): all functions on all modules, those with data on all data."""
    functions = list(TABLE["functions"])
    on_data = [f for f in functions if f not in DATA_FREE]
    return [(m, f) for m in TABLE["modules"] for f in functions] + [
        (d, f) for d in TABLE["data"] for f in on_data
    ]


def refusal(row: str, function: str) -> dict[str, str] | None:
    """The entry that says why a cell is refused, or None where it is right."""
    found = [
        entry
        for entry in TABLE["refused"]
        if row in entry["modules"] and function in entry["functions"]
    ]
    assert len(found) <= 1, f"{row}, {function}: declared twice"
    return found[0] if found else None
