r"""The stored audit: how its tables are read, and its cells computed again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
NONLINEAR = ("radial", "sinh", "coupling")
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


def naturality_class(verdicts: Mapping[str, Verdict | Collection[Verdict]]) -> str:
    """Say in one word for which class of maps an optimizer is natural.

    `natural`: exact on linear maps, and exact or natural on nonlinear ones; `affine`:
    exact on all linear maps, unnatural on a nonlinear one; `layer-affine`: exact on
    linear maps and undefined beyond; `orthogonal`: it closes for orthogonal maps
    only; `partly`: for some class beyond permutations; otherwise `unnatural`. Seeds
    that are undecided do not count; `undecided` is said where none is left to judge by.

    Args:
        verdicts: by family, one verdict or those of several seeds.

    Source: :eq:`eq-naturality-square`, restricted to a class of maps.

    Examples:
        >>> E, N, U = Verdict.EXACT, Verdict.NATURAL, Verdict.UNNATURAL
        >>> naturality_class({"affine": E, "coupling": {E, N}})
        'natural'
        >>> naturality_class({"affine": E, "coupling": U})
        'affine'
        >>> naturality_class({"permutation": E, "affine": U, "coupling": U})
        'unnatural'
    """
    sets = {k: {v} if isinstance(v, Verdict) else set(v) for k, v in verdicts.items()}
    known = {k: v for k, v in sets.items() if v != {Verdict.UNDEFINED}}
    decided = {k: v - {Verdict.UNDECIDED} for k, v in known.items()}
    closing = {k for k, v in decided.items() if v and all(one.closes for one in v)}
    curved = {k: v for k, v in decided.items() if k in NONLINEAR}
    linear = {k: v for k, v in decided.items() if k not in NONLINEAR}
    if all(v == {Verdict.EXACT} for v in linear.values()):
        if not curved:
            return "layer-affine"
        if closing == set(known):
            return "natural"
        surely = {Verdict.UNNATURAL} in curved.values()
        return "affine" if surely else "undecided"
    beyond = closing - {"permutation"}
    if beyond and beyond <= {"orthogonal", "layer-orthogonal"}:
        return "orthogonal"
    if beyond:
        return "partly"
    surely = any(Verdict.UNNATURAL in v for v in decided.values())
    return "unnatural" if surely else "undecided"
