"""The published files, read from `catalogue.txt`: their checksums, places and fetching."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from geolib.files import cache_folder

from .dataset import DataError

PATIENCE = 1800.0  # seconds for all files of one data set; a server may drip bytes
ROOM = 1 << 28  # bytes that a compressed file may unfold to; the largest has 185 MB


@dataclass(frozen=True)
class File:
    """One published file: its path under the data folder, its md5 and its address."""

    path: str
    md5: str
    url: str | None = None


_TEXT = (resources(__package__) / "catalogue.txt").read_text(encoding="utf-8")
_ROWS = [line.split() for line in _TEXT.splitlines() if not line.startswith("#")]


def _published(kind: str) -> dict[str, tuple[File, ...]]:
    """The files of one kind by data set, in the order of the table."""
    found: dict[str, tuple[File, ...]] = {}
    for row, name, path, checksum, url in _ROWS:
        if row == kind:
            file = File(path, checksum, None if url == "-" else url)
            found[name] = (*found.get(name, ()), file)
    return found


IDX = _published("idx")
CIFAR = {name: archive for name, (archive,) in _published("cifar").items()}
CIFAR10_NPZ = _published("npz")["cifar10"]
CLASSIFICATION = _published("classification")
# Of a regression table what is pinned is the sha256 of its four arrays.
REGRESSION = {name: packed.md5 for name, (packed,) in _published("regression").items()}

NOTES = {
    "bostonHousing": "One column is derived from race; the table is widely retired.",
    "pima-indians-diabetes": "Zeros in some columns stand for missing values.",
}


def folder() -> Path:
    """The data folder: `GEOLIB_DATA` if set, else a cache folder in the home."""
    return cache_folder("GEOLIB_DATA")


@lru_cache(maxsize=256)
def _md5(path: str, size: int, changed: int) -> str:
    """The md5 of a file; its size and time are in the key, so it is read once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def checksum_error(file: File) -> str | None:
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
    found = checksum_error(file)
    if found is not None:
        raise DataError(missing_message(name, file.path, f"md5 {file.md5}", found))
    return folder() / file.path


def missing_message(name: str, path: str, expected: str, found: str) -> str:
    """The one message for a file that is missing or wrong."""
    return (
        f"{name}: cannot use {folder() / path}\n  expected: {expected}\n"
        f"  found:    {found}\n  fetch it: geolib data fetch {name}\n"
        f"  (or set GEOLIB_DATA to a folder that holds it)"
    )


def retrieve(url: str, target: Path, checksum: str | None, until: float) -> Path:
    """Fetch one file with pooch, checked before it takes its name.

    Args:
        url: the address.
        target: the path to give it.
        checksum: `md5:...`, or None where the contents are checked by the caller.
        until: when to give up, on the clock `time.monotonic`.

    Raises:
        OSError: no network, an error of the server, or no end in time.
        ValueError: not the published bytes.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    quiet = bool(os.environ.get("CI")) or not sys.stderr.isatty()
    ask = pooch.HTTPDownloader(progressbar=not quiet, timeout=60)

    def in_time(*request: Any) -> None:
        # A socket's limit starts anew with each byte: only a clock beside it ends.
        _within(until - time.monotonic(), lambda: ask(*request))

    target.parent.mkdir(parents=True, exist_ok=True)
    pooch.retrieve(url, checksum, target.name, target.parent, downloader=in_time)
    return target


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do the work in a thread that nobody waits for longer than so many seconds."""
    done: Future[None] = Future()

    def guarded() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=guarded, daemon=True).start()
    try:
        done.result(max(seconds, 0.0))
    except TimeoutError:
        raise TimeoutError("the server did not send it in time") from None


def download(name: str, file: File, until: float) -> Path:
    """Fetch `file` unless it is already right; checked before it takes its name.

    Raises:
        DataError: no public address, no network, or not the published bytes.
    """
    target = folder() / file.path
    if checksum_error(file) is None:
        return target
    if file.url is None:
        raise DataError(f"{name}: {file.path} has no public address to fetch it from")
    try:
        retrieve(file.url, target, f"md5:{file.md5}", until)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DataError(
            f"{name}: could not fetch {file.path} from {file.url}\n"
            f"  expected: md5 {file.md5}\n  reason:   {error}"
        ) from error
    return target
