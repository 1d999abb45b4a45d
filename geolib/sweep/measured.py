"""What was measured once and is kept beside the chapter that shows it.

One file holds `about`, where and when it was measured, and `entries` by their key, one
to a line, so that a change of one figure is a change of one line.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geolib.files import write_whole


@dataclass(frozen=True)
class Measured:
    """Stored figures by key, and where and when they were measured."""

    about: dict[str, Any]
    entries: dict[str, Any]


def measured(path: str | Path) -> Measured:
    """Read a file of measured results; one that is not there has no entries.

    Args:
        path: as `keep` wrote it.

    Raises:
        ValueError: the file is no such table.

    Examples:
        >>> measured("no-such-file.json").entries
        {}
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        return Measured(dict(table["about"]), dict(table["entries"]))
    except FileNotFoundError:
        return Measured({}, {})
    except (ValueError, KeyError, TypeError) as problem:
        kind = type(problem).__name__
        raise ValueError(f"{path}: no table of measured results ({kind})") from None


def keep(
    path: str | Path, entries: Mapping[str, Any], about: Mapping[str, Any]
) -> Measured:
    """Add entries to a file of measured results; those of other keys stay.

    Args:
        path: the file, made where there is none.
        entries: JSON values by key.
        about: replaces what was said of the file before.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "demo.json"
        >>> _ = keep(path, {"b": 2.0}, {"date": "then"})
        >>> keep(path, {"a": 1.0}, {"date": "now"}).entries
        {'a': 1.0, 'b': 2.0}
    """
    kept = measured(path).entries | dict(entries)
    write(path, Measured(dict(about), kept))
    return measured(path)


def write(path: str | Path, table: Measured) -> None:
    """Write a file of measured results anew, one entry a line."""
    entries = sorted(table.entries.items())
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entries]
    head = f'{{"about": {json.dumps(table.about)},\n"entries": {{\n'
    write_whole(Path(path), head + ",\n".join(lines) + "\n}}\n")


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
