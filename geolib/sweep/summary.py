"""What a chapter asks of the stores: the rows of a sweep, and means over them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from geolib.sweep.registry import find
from geolib.sweep.store import Store


def sweep_rows(name: str, store: Store | None = None) -> list[dict[str, Any]]:
    """Every stored run of a sweep that ships; an empty list where there is no store.

    Spec and record as one flat dictionary each, in the order of their keys. Nothing is
    run and nothing is written. For a cell of a chapter:
    `rows = sweep_rows("phase-map") or computed_above`. The press knows such a notebook
    by this call and executes it again when the stored results change.

    Args:
        name: of the sweep, e.g. `phase-map`.
        store: default: `GEOLIB_SWEEPS`, else the cache folder.

    Raises:
        ValueError: no sweep has this name.

    Examples:
        >>> sweep_rows("phase-map", Store("no-such-folder"))
        []
    """
    sweep, store = find(name), store or Store()
    return store.rows(sweep.name, version=sweep.version)


@dataclass(frozen=True)
class MeanSd:
    """The mean of some runs, their sample standard deviation and their number.

    One run alone has no standard deviation.
    """

    mean: float
    sd: float | None
    count: int

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" +- {self.sd:.2g}"
        return f"{self.mean:.3g}{spread} ({self.count})"


def means(
    rows: Iterable[Mapping[str, Any]],
    by: tuple[str, ...],
    value: str | Callable[[Mapping[str, Any]], float],
) -> dict[tuple[Any, ...], MeanSd]:
    """The mean of `value` over the rows that agree in the fields `by`, sorted by these.

    Args:
        rows: as `sweep_rows` gives them.
        by: names of fields; lists in them count as tuples.
        value: the name of a field, or a function of a row.

    Raises:
        KeyError: a row lacks a field.

    Examples:
        >>> rows = [{"level": 0.9, "seed": s, "accuracy": 0.5 + s / 4} for s in (0, 1)]
        >>> print(means(rows, ("level",), "accuracy")[0.9,])
        0.625 +- 0.18 (2)
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = tuple(_hashable(row[field]) for field in by)
        found = row[value] if isinstance(value, str) else value(row)
        groups.setdefault(key, []).append(float(found))
    return {
        key: MeanSd(
            statistics.fmean(group),
            statistics.stdev(group) if len(group) > 1 else None,
            len(group),
        )
        for key, group in sorted(groups.items())
    }


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
