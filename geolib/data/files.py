"""Files with a pinned checksum: where they lie, whether they are right, fetching."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from geolib.data.dataset import DataError


@dataclass(frozen=True)
class File:
    """One published file: its path under the data folder, its md5 and its address."""

    path: str
    md5: str
    url: str | None = None


def folder() -> Path:
    """The data folder: `GEOLIB_DATA` if set, else a cache folder in the home."""
    if named := os.environ.get("GEOLIB_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).expanduser() / "geolib"


@lru_cache(maxsize=256)
def _md5(path: str, size: int, changed: int) -> str:
    """The md5 of a file; its size and time are in the key, so it is read once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def fault(file: File) -> str | None:
    """What is wrong with `file` on this disk; None when it is the published one."""
    path = folder() / file.path
    try:
        status = path.stat()
        found = _md5(str(path), status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if found == file.md5 else f"md5 {found}, {status.st_size} bytes"


def verified(name: str, file: File) -> Path:
    """The path of `file`, after its checksum was found right.

    Raises:
        DataError: the file is missing or corrupt.
    """
    found = fault(file)
    if found is not None:
        raise DataError(complaint(name, file.path, f"md5 {file.md5}", found))
    return folder() / file.path


def complaint(name: str, path: str, expected: str, found: str) -> str:
    """The one message for a file that is missing or wrong."""
    return (
        f"{name}: cannot use {folder() / path}\n  expected: {expected}\n"
        f"  found:    {found}\n  fetch it: python -m geolib.data fetch {name}\n"
        f"  (or set GEOLIB_DATA to a folder that holds it)"
    )


def download(name: str, file: File) -> Path:
    """Fetch `file` unless it is already right; checked before it takes its name.

    Raises:
        DataError: no public address, no network, or not the published bytes.
    """
    target = folder() / file.path
    if fault(file) is None:
        return target
    if file.url is None:
        raise DataError(f"{name}: {file.path} has no public address to fetch it from")
    import pooch

    quiet = bool(os.environ.get("CI")) or not sys.stderr.isatty()
    pooch.get_logger().setLevel("WARNING")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(
            file.url,
            known_hash=f"md5:{file.md5}",
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(progressbar=not quiet, timeout=60),
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DataError(
            f"{name}: could not fetch {file.path} from {file.url}\n"
            f"  expected: md5 {file.md5}\n  reason:   {error}"
        ) from error
    return target
