r"""The full audit table: computed once, stored with its seeds, spot-checked live.

    python -m geolib.naturality.table regression chapters/naturality/audit.json
    python -m geolib.naturality.table softmax chapters/naturality/audit-softmax.json

take a quarter of an hour and five minutes of one core, keep what is already in the file
and may be stopped and started again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from geolib.naturality.audit import Protocol, audit
from geolib.naturality.defect import Defect
from geolib.naturality.problem import SEEDS, regression_problem, softmax_problem
from geolib.naturality.subjects import SUBJECTS

PROTOCOL = Protocol(horizon=0.5, counts=(16, 32, 64, 128), seed=0)
TASKS = {  # the problem of a seed, and the seeds of the stored table
    "regression": (regression_problem, SEEDS),
    "softmax": (softmax_problem, (102,)),
}


def compute(
    path: Path,
    task: str = "regression",
    seeds: Sequence[int] | None = None,
    names: Sequence[str] = tuple(SUBJECTS),
    protocol: Protocol = PROTOCOL,
) -> dict[str, Any]:
    """Fill the file with every cell it lacks; the table as `load` gives it.

    Raises:
        ValueError: an unknown task, or a file that holds the table of another one.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {list(TASKS)}, got {task!r}")
    make, usual = TASKS[task]
    seeds = usual if seeds is None else seeds
    about = {
        "task": task,
        "problem": f"{make.__name__}(seed): tanh 2-2-2, p = 12, n = 60",
        "seeds": list(seeds),
        "maps_seed": protocol.seed,
        "horizon": protocol.horizon,
        "counts": list(protocol.counts),
        "torch": torch.__version__.split("+")[0],
        "date": datetime.now(UTC).date().isoformat(),
        "cell": list(CELL),
    }
    table: dict[str, Any] = {"about": about, "cells": {}}
    if path.exists():
        table = load(path)
        if table["about"]["task"] != task:
            raise ValueError(f"path: {path} is of another task than {task}")
        table["about"] = about
    for seed in seeds:
        problem = make(seed)
        done = table["cells"].setdefault(str(seed), {})
        for name in names:
            if name not in done:
                report = audit(name, problem, protocol=protocol)
                done[name] = {k: _compact(d) for k, d in report.defects.items()}
                save(path, table)
                print(seed, name, report.letters, file=sys.stderr, flush=True)
    return table


CELL = ("verdict", "values", "slope", "plateau", "self")


def _compact(d: Defect) -> dict[str, Any]:
    def short(v: float) -> float | None:
        return float(f"{v:.5g}") if math.isfinite(v) else None

    row = d.letter, [*map(short, d.values)], *map(short, (d.slope, d.plateau))
    return dict(zip(CELL, (*row, short(d.self_convergence)), strict=True))


def save(path: Path, table: dict[str, Any]) -> None:
    """Write the table, a cell as the list of its `CELL` entries."""
    cells = {
        seed: {
            name: {family: [cell[k] for k in CELL] for family, cell in row.items()}
            for name, row in rows.items()
        }
        for seed, rows in table["cells"].items()
    }
    text = json.dumps(
        {"about": table["about"], "cells": cells},
        separators=(",", ":"),
        allow_nan=False,
    )
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def load(path: Path | str) -> dict[str, Any]:
    """Read a table written by `compute`.

    Raises:
        ValueError: the file is missing or is no such table.
    """
    try:
        table = json.loads(Path(path).read_text())
        table["cells"] = {
            seed: {
                name: {f: dict(zip(CELL, c, strict=True)) for f, c in row.items()}
                for name, row in rows.items()
            }
            for seed, rows in table["cells"].items()
        }
        table["about"]["task"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"path: {path} is no audit table ({error})") from None
    return table


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


def consensus(table: dict[str, Any], name: str, family: str) -> str:
    """The verdict's letter over all seeds: one letter, or several joined by a slash."""
    letters = {cell["verdict"] for cell in cells_of(table, [name], [family])}
    return "/".join(sorted(letters))


def show(table: dict[str, Any], name: str, family: str) -> str:
    """A cell for people: E, `U .31-.52` (plateaus) or `N 1.01` (slopes)."""
    letter = consensus(table, name, family)
    key = {"U": "plateau", "N": "slope"}.get(letter)
    if key is None:
        return letter
    values = [cell[key] for cell in cells_of(table, [name], [family])]
    low, high = min(values), max(values)
    text = [f"{v:.2g}" for v in (low, high)]
    return f"{letter} {text[0]}" if text[0] == text[1] else f"{letter} {'–'.join(text)}"


def recompute(table: dict[str, Any], seed: int, name: str, family: str) -> Defect:
    """One cell again, from scratch, by the protocol the table states."""
    about = table["about"]
    protocol = Protocol(
        about["horizon"], tuple(about["counts"]), seed=about["maps_seed"]
    )
    problem = TASKS[about["task"]][0](seed)
    report = audit(name, problem, families=[family], protocol=protocol)
    return report[family]


if __name__ == "__main__":
    torch.set_num_threads(1)
    compute(Path(sys.argv[2]), sys.argv[1])
