r"""The stored audit: how its tables are read, and its cells computed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from controls import TABLE
from audit_problems import SEEDS, regression_problem, softmax_problem

from geolib.naturality import Defect, Protocol, Verdict, audit
from geolib.sweep import measured

PROTOCOL = Protocol(horizon=0.5, counts=(16, 32, 64, 128), seed=0)
TASKS = {  # the problem of a seed, and the seeds of the stored table
    "regression": (regression_problem, SEEDS),
    "softmax": (softmax_problem, (102,)),
}
CELL = ("verdict", "values", "slope", "plateau", "self")


def stored_audit(path: Path | str) -> dict[str, Any]:
    """A published table: `about` and `cells[seed][optimizer][family]`.

    Raises:
        ValueError: the file is missing or is no such table.
    """
    cells: dict[str, Any] = {}
    try:
        table = measured(path)
        if not table.entries:
            raise ValueError("there is nothing in it")
        for key in sorted(table.entries, key=lambda k: int(k.partition(" | ")[0])):
            seed, _, name = key.partition(" | ")
            cells.setdefault(seed, {})[name] = {
                family: dict(zip(CELL, cell, strict=True))
                for family, cell in table.entries[key].items()
            }
        steps = len(cells[seed][name]["affine"]["values"])
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"path: {path} is no audit table ({error})") from None
    task = Path(path).stem.removeprefix("audit-")
    counts = list(PROTOCOL.counts[:steps])
    return {"about": {**table.about, "task": task, "counts": counts}, "cells": cells}


def cells_of(
    table: dict[str, Any], names: Sequence[str], families: Sequence[str]
) -> list[dict[str, Any]]:
    """The stored cells of some optimizers and families, for every seed that has them.

    Raises:
        ValueError: an optimizer that the table has for no seed.
    """
    found = [
        cells[n][f]
        for n in names
        for cells in table["cells"].values()
        if n in cells
        for f in families
    ]
    missing = [n for n in names if not any(n in c for c in table["cells"].values())]
    if missing:
        raise ValueError(f"names: the table has no rows {missing}")
    return found


def consensus(table: dict[str, Any], name: str, family: str) -> set[Verdict]:
    """The verdicts of a cell over all seeds: one, or several where they disagree."""
    cells = cells_of(table, [name], [family])
    return {Verdict.from_letter(cell["verdict"]) for cell in cells}


def letters(verdicts: set[Verdict]) -> str:
    """One letter, or several joined by a slash where seeds disagree."""
    return "/".join(sorted(v.letter for v in verdicts))


def recompute(table: dict[str, Any], seed: int, name: str, family: str) -> Defect:
    """One cell again, from scratch, by the protocol the table states."""
    about = table["about"]
    protocol = Protocol(
        about["horizon"], tuple(about["counts"]), seed=about["maps_seed"]
    )
    problem = TASKS[about["task"]][0](seed)
    report = audit(TABLE[name], problem, families=[family], protocol=protocol)
    return report[family]
