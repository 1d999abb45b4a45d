r"""The full audit table: computed once, stored with its seeds, spot-checked live.

    python -m geolib.naturality.table chapters/naturality/audit.json

takes about a quarter of an hour of one core, keeps what is already in the file and may
be stopped and started again.
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
from geolib.naturality.problem import SEEDS, regression_problem
from geolib.naturality.subjects import SUBJECTS

PROTOCOL = Protocol(horizon=0.5, counts=(16, 32, 64, 128), seed=0)


def compute(
    path: Path,
    seeds: Sequence[int] = SEEDS,
    names: Sequence[str] = tuple(SUBJECTS),
    protocol: Protocol = PROTOCOL,
) -> dict[str, Any]:
    """Fill the file with every cell it lacks; the table as plain data."""
    table: dict[str, Any] = {"cells": {}}
    if path.exists():
        table = json.loads(path.read_text())
    table["about"] = {
        "problem": "regression_problem(seed): tanh 2-2-2, p = 12, n = 60",
        "seeds": list(seeds),
        "maps_seed": protocol.seed,
        "horizon": protocol.horizon,
        "counts": list(protocol.counts),
        "torch": torch.__version__.split("+")[0],
        "date": datetime.now(UTC).date().isoformat(),
    }
    for seed in seeds:
        problem = regression_problem(seed)
        done = table["cells"].setdefault(str(seed), {})
        for name in names:
            if name not in done:
                report = audit(name, problem, protocol=protocol)
                done[name] = {k: _compact(d) for k, d in report.defects.items()}
                path.write_text(json.dumps(table, indent=None, allow_nan=False))
                print(seed, name, report.letters, file=sys.stderr, flush=True)
    return table


def _compact(d: Defect) -> dict[str, Any]:
    def short(v: float) -> float | None:
        return float(f"{v:.6g}") if math.isfinite(v) else None

    return {
        "verdict": d.verdict,
        "values": [short(v) for v in d.values],
        "slope": short(d.slope),
        "plateau": short(d.plateau),
        "self": short(d.self_convergence),
    }


def load(path: Path | str) -> dict[str, Any]:
    """Read a table written by `compute`.

    Raises:
        ValueError: the file is missing or is no such table.
    """
    try:
        table = json.loads(Path(path).read_text())
        table["cells"], table["about"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
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


LETTER = {"exact": "E", "natural": "N", "unnatural": "U"}


def consensus(table: dict[str, Any], name: str, family: str) -> str:
    """The verdict's letter over all seeds: one letter, or several joined by a slash."""
    letters = []
    for cell in cells_of(table, [name], [family]):
        v = cell["verdict"]
        letters.append("-" if v == "undefined" else LETTER.get(v, "?"))
    return "/".join(sorted(set(letters)))


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
    problem = regression_problem(seed)
    report = audit(name, problem, families=[family], protocol=protocol)
    return report[family]


if __name__ == "__main__":
    torch.set_num_threads(1)
    compute(Path(sys.argv[1]))
