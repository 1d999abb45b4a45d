"""Results: what names a run, a folder of one file each, and what chapters keep of them.

A run's file is whole or absent, and claimed while it is made. What was measured once and
lies beside the chapter that shows it holds `about`, where and when it was measured, and
`entries` by their key, one to a line, so that a change of one figure is one line's.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from geolib.files import cache_folder, expect, need, write_whole

STALE = 86_400.0  # seconds after which a dead writer's temporary file is removed
S = TypeVar("S")


class Store:
    """Results by sweep and key; any number of processes may write at once.

    A run that ended lies in `<folder>/<sweep>/<key>.json`, one that failed for good in
    `<key>.failed.json`. A reader sees a whole file or none.

    Args:
        folder: default: `GEOLIB_SWEEPS`, else a cache folder in the home.

    Examples:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> store.put("demo", "k1", {"status": "done", "spec": {"seed": 0},
        ...                          "record": {"loss": 0.5}})
        >>> store.rows("demo")
        [{'seed': 0, 'loss': 0.5}]
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        default = cache_folder("GEOLIB_SWEEPS", "sweeps")
        self.folder = default if folder is None else Path(folder)

    def path(self, sweep: str, key: str, failed: bool = False) -> Path:
        """Where a run's file lies, or would lie."""
        return self.folder / sweep / f"{key}{'.failed' if failed else ''}.json"

    def get(self, sweep: str, key: str) -> dict[str, Any] | None:
        """The entry of a run that ended, well or not; None while there is none."""
        done, failed = (self.path(sweep, key, bad) for bad in (False, True))
        return _read(done, key) or _read(failed, key)

    def has(self, sweep: str, key: str) -> bool:
        """Whether the run has ended well and its file is whole."""
        return _read(self.path(sweep, key), key) is not None

    def put(self, sweep: str, key: str, entry: dict[str, Any]) -> None:
        """Store the entry of one run; the last writer of a key wins, whole.

        Raises:
            OSError: the disk is full or read-only; no fragment is left.
        """
        failed = entry["status"] == "failed"
        entry = entry | {"key": key}
        text = json.dumps(entry | {"sum": _sum(entry)})
        write_whole(self.path(sweep, key, failed), text, sync=False)
        if not failed:
            self.path(sweep, key, failed=True).unlink(missing_ok=True)

    @contextmanager
    def claims(self, sweep: str) -> Iterator[Callable[[str], bool]]:
        """Yield a function that claims a run for this process, by its key.

        It says False while another process holds the claim. A claim is the lock on one
        byte of a file: the kernel drops it when the block or the process ends, however
        it ends, so no claim is ever stale. On a disk that knows no locks every claim is
        granted, and two sweeps at once may repeat each other's runs.

        Raises:
            OSError: the folder is read-only.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{sweep}.lock").open("w") as file:

            def claim(key: str) -> bool:
                byte, kind = zlib.crc32(key.encode()), fcntl.LOCK_EX | fcntl.LOCK_NB
                try:
                    fcntl.lockf(file, kind, 1, byte)
                except OSError as problem:
                    return problem.errno not in (errno.EACCES, errno.EAGAIN)
                return True

            yield claim

    def scan(self, sweep: str) -> dict[str, dict[str, Any]]:
        """Every whole entry of a sweep by key; a damaged file counts as absent."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / sweep).glob("[!.]*.json")):
            key = path.name.split(".")[0]
            entry = _read(path, key)
            if entry is not None and (entry["status"] == "done" or key not in found):
                found[key] = entry
        return found

    def tidy(self, sweep: str) -> None:
        """Remove temporary files that a killed writer left long ago."""
        for path in (self.folder / sweep).glob(".*"):
            with suppress(FileNotFoundError):  # its writer has just renamed it
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def rows(
        self, sweep: str, keys: Iterable[str] | None = None, version: int | None = None
    ) -> list[dict]:
        """Spec and record of runs that ended well, as one flat row each.

        Args:
            sweep: its name.
            keys: only these runs, in this order; default: all of one version, by key.
            version: of the sweep's function; default: the newest that is stored, so
                that results of two meanings are never in one table.

        Raises:
            KeyError: one of `keys` is not stored.
        """
        done = {k: e for k, e in self.scan(sweep).items() if e["status"] == "done"}
        if keys is None:
            versions = [entry.get("version", 1) for entry in done.values()]
            wanted = max(versions, default=1) if version is None else version
            keys = [k for k, v in zip(done, versions, strict=True) if v == wanted]
        return [done[key]["spec"] | done[key]["record"] for key in keys]

    def table(self, sweep: str) -> Any:
        """The rows of the newest version as a pandas data frame."""
        need("pandas", "sweep")
        import pandas as pd

        return pd.json_normalize(self.rows(sweep))


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The entry in a file; None when it is absent, damaged or another run's."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("key") != key:
        return None
    # entries of before there were sums have none; their shape is checked all the same
    intact = entry.pop("sum", None) in (None, _sum(entry))
    part = {"done": "record", "failed": "error"}.get(str(entry.get("status")))
    whole = part in entry and isinstance(entry.get("spec"), dict)
    return entry if intact and whole else None


def _sum(entry: dict[str, Any]) -> str:
    """SHA-256 of an entry's canonical JSON: a value that was changed is noticed."""
    text = json.dumps(entry, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fields_of(spec: Any) -> dict[str, Any]:
    """The fields of a spec as plain JSON values.

    An int in a field annotated `float` becomes a float, so that 1 and 1.0 name the
    same run; tuples become lists; NumPy scalars become numbers.

    Raises:
        TypeError: not a dataclass instance, or a value that JSON cannot hold.
        ValueError: NaN or infinity, which equal nothing and so can name no run.
    """
    record = is_dataclass(spec) and not isinstance(spec, type)
    expect(record, "spec", "a dataclass instance", spec)
    found, hints = {}, _hints(type(spec))  # type: ignore[arg-type]
    for field in fields(spec):
        value = _plain(field.name, getattr(spec, field.name))
        whole = isinstance(value, int) and not isinstance(value, bool)
        wide = whole and hints[field.name] is float
        found[field.name] = float(value) if wide else value
    return found


def canonical(spec: Any) -> str:
    """The one JSON text of a spec: sorted keys, no spaces.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Run:
        ...     seed: int
        ...     rate: float
        >>> canonical(Run(rate=1, seed=3))
        '{"rate":1.0,"seed":3}'
    """
    form: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
    return json.dumps(fields_of(spec), allow_nan=False, **form)


def key_of(spec: Any, name: str, version: int = 1) -> str:
    """The name of a run in a store: 32 hexadecimal digits.

    Args:
        spec: the dataclass instance.
        name: the sweep's name, so that equal specs of two sweeps differ.
        version: raised when the sweep's function starts to mean something else.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Run:
        ...     rate: float
        >>> key_of(Run(1), "demo") == key_of(Run(1.0), "demo")
        True
        >>> key_of(Run(1), "demo") == key_of(Run(1), "demo", version=2)
        False
    """
    text = f"{name}\n{version}\n{canonical(spec)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def grid(kind: type[S], **axes: Any) -> list[S]:
    """Every combination of the axes as specs, the last axis running fastest.

    Args:
        kind: the dataclass.
        axes: for each field a list (or range) of values, or one value for all.

    Raises:
        TypeError: a name that is not a field, or a required field left out.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Run:
        ...     seed: int
        ...     width: int = 8
        >>> grid(Run, seed=range(2), width=[4, 8])[1:3]
        [Run(seed=0, width=8), Run(seed=1, width=4)]
    """
    many = {
        n: isinstance(a, Sequence) and not isinstance(a, str) for n, a in axes.items()
    }
    columns = (axis if many[name] else [axis] for name, axis in axes.items())
    combined = itertools.product(*columns)
    return [kind(**dict(zip(axes, values, strict=True))) for values in combined]


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy scalars and 0-d tensors
    if is_dataclass(value) and not isinstance(value, type):
        return fields_of(value)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{name}: the keys of a dictionary must be strings")
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value} equals nothing and can name no run")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {type(value).__name__} has no JSON form")


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

    What another version of the sweep measured goes, for it means something else.

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
    old, version = measured(path), about.get("version")
    kept = old.entries if old.about.get("version", version) == version else {}
    write(path, Measured(dict(about), kept | dict(entries)))
    return measured(path)


def write(path: str | Path, table: Measured) -> None:
    """Write a file of measured results anew, one entry a line."""
    lines = [": ".join(map(json.dumps, kv)) for kv in sorted(table.entries.items())]
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
