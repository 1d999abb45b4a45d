"""Files that are whole or absent, and small helpers that every room may use."""

import difflib
import fcntl
import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# Names of the data sets that this process has read, in order: what a claim rests on.
DATA_READ: dict[str, None] = {}


SOURCE = "https://github.com/geometry-of-learning/geometry-of-learning"


class MissingExtra(ImportError):
    """A module is absent that an extra of this package installs."""


class ArgumentError(ValueError, TypeError):
    """An argument that does not fit; whether by its type or value is in the words."""


def expect(holds: Any, name: str, wanted: str, got: Any) -> None:
    """Refuse an argument by name; a comparison with NaN does not hold."""
    if not holds:
        raise ArgumentError(f"{name}: expected {wanted}, got {short(got)}")


def need(module: str, extra: str) -> None:
    """Refuse to go on without a module that only an extra of this package installs."""
    if find_spec(module) is None:
        command = f"pip install 'geometry-of-learning[{extra}] @ git+{SOURCE}'"
        raise MissingExtra(f"{module} is not installed: {command}")


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 else text[:70] + " ..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: those that are near, if any.

    Examples:
        >>> did_you_mean("Adma", ["adam", "gd"])
        '; did you mean adam?'
    """
    spelled = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), spelled, 3, 0.4)
    return f"; did you mean {' or '.join(spelled[k] for k in near)}?" if near else ""


def write_whole(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Replace `path` by `content` in one step; on any error the old file stays.

    Args:
        path: the file.
        content: its new content.
        sync: wait for the disk, so that a power cut costs nothing either.

    Raises:
        OSError: the folder is read-only or the disk is full; no fragment is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_changed(path: Path, content: str | bytes) -> bool:
    """As `write_whole`, where the file does not hold that already; whether it wrote."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return False
    write_whole(path, data)
    return True


def digest(*parts: bytes) -> str:
    """SHA-256 of the parts, each preceded by its length so that none can slide."""
    h = hashlib.sha256()
    for part in parts:
        h.update(len(part).to_bytes(8, "big"))
        h.update(part)
    return h.hexdigest()


def digest_tree(folder: Path, suffixes: tuple[str, ...]) -> str:
    """SHA-256 of names and contents of all files in `folder` with those suffixes."""
    parts = []
    for p in sorted(folder.rglob("*")):
        if p.suffix in suffixes and p.is_file() and "__pycache__" not in p.parts:
            parts += [str(p.relative_to(folder)).encode(), p.read_bytes()]
    return digest(*parts)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`; `waiting()` is called if another holds it.

    The kernel drops the lock when the process dies, so a killed press blocks nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def exported(names: dict[str, Any]) -> list[str]:
    """The public names of a table of contents: no underscore, and no module.

    A package's door names each thing once, where it imports it, and says
    ``__all__ = exported(globals())``.
    """
    return sorted(
        n
        for n, o in names.items()
        if not n.startswith("_") and not isinstance(o, ModuleType)
    )


def imported(text: str, name: str, wanted: str) -> Any:
    """What `package.module:attribute` (or with a dot) names.

    Raises:
        ValueError: it names nothing.

    Examples:
        >>> imported("math:pi", "number", "a number")
        3.141592653589793
    """
    module, _, attribute = text.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"{name}: expected {wanted}, got {text!r}") from None


def cache_folder(variable: str, *inside: str) -> Path:
    """The folder that a variable of the environment names, else one in the user's cache."""
    if named := os.environ.get(variable):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "geolib", *inside).expanduser()


def find_checkout(start: Path) -> Path | None:
    """The folder from `start` upwards that holds the book; None outside a checkout."""
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").is_file() and (folder / "chapters").is_dir():
            return folder
    return None
