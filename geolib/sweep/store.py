"""A folder of results: one JSON file a run, written to another name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STALE = 86_400.0  # seconds after which a dead writer's temporary file is removed


def default_folder() -> Path:
    """`GEOLIB_SWEEPS` if set, else a cache folder in the user's home."""
    if named := os.environ.get("GEOLIB_SWEEPS"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).expanduser() / "geolib" / "sweeps"


class Store:
    """Results by sweep and key; any number of processes may write at once.

    A run that ended lies in `<folder>/<sweep>/<key>.json`, one that failed for good in
    `<key>.failed.json`. A reader sees a whole file or none.

    Examples:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> store.put("demo", "k1", {"status": "done", "spec": {"seed": 0},
        ...                          "record": {"loss": 0.5}})
        >>> store.rows("demo")
        [{'seed': 0, 'loss': 0.5}]
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()

    def path(self, sweep: str, key: str, failed: bool = False) -> Path:
        """Where a run's file lies, or would lie."""
        return self.folder / sweep / f"{key}{'.failed' if failed else ''}.json"

    def has(self, sweep: str, key: str) -> bool:
        """Whether the run has ended well and its file is whole."""
        return _read(self.path(sweep, key), key) is not None

    def put(self, sweep: str, key: str, entry: dict[str, Any]) -> None:
        """Store the entry of one run; the last writer of a key wins, whole.

        Raises:
            OSError: the disk is full or read-only; no fragment is left.
        """
        failed = entry["status"] == "failed"
        path = self.path(sweep, key, failed)
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = entry | {"key": key}
        text = json.dumps(entry | {"sum": _sum(entry)})
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        if not failed:
            self.path(sweep, key, failed=True).unlink(missing_ok=True)

    def scan(self, sweep: str) -> dict[str, dict[str, Any]]:
        """Every whole entry of a sweep by key; a damaged file counts as absent."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / sweep).glob("[!.]*.json")):
            key = path.name.split(".")[0]
            entry = _read(path, key)
            if entry is None:
                continue
            if entry["status"] == "done" or key not in found:
                found[key] = entry
        return found

    def tidy(self, sweep: str) -> None:
        """Remove temporary files that a killed writer left long ago."""
        for path in (self.folder / sweep).glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()
            except FileNotFoundError:  # its writer has just renamed it
                continue

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
        import pandas as pd

        return pd.json_normalize(self.rows(sweep))

    def to_parquet(self, sweep: str, path: str | Path | None = None) -> Path:
        """Write the table as Parquet (next to the sweep's folder by default)."""
        target = Path(path) if path else self.folder / f"{sweep}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        os.close(handle)
        try:
            self.table(sweep).to_parquet(partial)
            os.replace(partial, target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        return target

    def query(self, sweep: str, sql: str) -> Any:
        """Ask the table `runs` in SQL (DuckDB over Parquet); a pandas data frame.

        Examples:
            >>> store = Store("no-such-folder")
            >>> store.query("demo", "select count(*) from runs")
            Traceback (most recent call last):
            ValueError: sweep: nothing of 'demo' is stored in no-such-folder
        """
        if not self.rows(sweep):
            raise ValueError(f"sweep: nothing of {sweep!r} is stored in {self.folder}")
        import duckdb

        path = self.to_parquet(sweep)
        with duckdb.connect() as connection:
            runs = connection.read_parquet(str(path))
            runs.create_view("runs")
            return connection.sql(sql).df()


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The entry in a file; None when it is absent, damaged or another run's."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("key") != key:
        return None
    # entries of before there were sums have none; their shape is checked all the same
    if entry.pop("sum", None) not in (None, _sum(entry)):
        return None
    part = {"done": "record", "failed": "error"}.get(str(entry.get("status")))
    whole = part in entry and isinstance(entry.get("spec"), dict)
    return entry if whole else None


def _sum(entry: dict[str, Any]) -> str:
    """SHA-256 of an entry's canonical JSON: a value that was changed is noticed."""
    text = json.dumps(entry, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
