"""A folder of results: one JSON file a run, whole or absent, claimed while it is made."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geolib.files import write_whole

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
        self.folder = Path(folder) if folder is not None else default_folder()

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
