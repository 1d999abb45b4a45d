"""Find a sweep by its name, and what was measured by it.

The sweeps of the chapters are experiments: each stands in its chapter's
`experiments*.py`, so they are found in a checkout of the book only.
"""

import importlib
import importlib.util
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from geolib.files import did_you_mean, find_checkout

from .runner import Sweep
from .store import Store, keep, measured

NAMED = re.compile(r"^(\w+) = Sweep\(\s*\"([\w-]+)\"", re.MULTILINE)
ELSEWHERE = (
    "the sweeps of the chapters live in a checkout of the book; a sweep of your own "
    "runs anywhere, as `FILE.py:NAME` or `module:NAME`"
)


def names() -> dict[str, str]:
    """The chapters' sweeps by name, each as `FILE.py:NAME`; none outside a checkout.

    The files are searched, not imported.
    """
    root = find_checkout(Path.cwd())
    files = sorted(root.glob("chapters/*/experiments*.py")) if root else []
    return {
        name: f"{file}:{attribute}"
        for file in files
        for attribute, name in NAMED.findall(file.read_text(encoding="utf-8"))
    }


def find(name: str) -> Sweep:
    """A chapter's sweep; `FILE.py:NAME` or `package.module:NAME` for one of your own.

    Args:
        name: of the sweep.

    Raises:
        ValueError: there is no such sweep, module or attribute.

    Examples:
        >>> find("phase-mop")
        Traceback (most recent call last):
        ValueError: sweep: no sweep 'phase-mop'...
    """
    known = names()
    module, _, attribute = known.get(name, name).rpartition(":")
    if not module:
        why = did_you_mean(name, known) or f": {ELSEWHERE}"
        raise ValueError(f"sweep: no sweep {name!r}{why}")
    try:
        found = getattr(_module(module), attribute)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(f"sweep: cannot read {name}: {error}") from error
    if not isinstance(found, Sweep):
        raise ValueError(f"sweep: {name} is a {type(found).__name__}, not a Sweep")
    return found


def _module(name: str) -> ModuleType:
    """A module by its dotted name, or from a file, whose functions then travel whole."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    # Of no package that there is: plain pickle must fail, so that Dask sends by value.
    title = f"_file_of_sweeps.{path.parent.name}_{path.stem}"
    if title in sys.modules:
        return sys.modules[title]
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # dataclasses look their module up
    _forget_namesakes(path.parent)
    sys.path.insert(0, str(path.parent))  # for what lies beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[title]
        raise
    finally:
        sys.path.remove(str(path.parent))
    try:
        import cloudpickle
    except ImportError:  # without Dask nothing travels
        return module
    for beside in list(sys.modules.values()):  # workers do not have these files
        if Path(getattr(beside, "__file__", None) or "/").parent == path.parent:
            cloudpickle.register_pickle_by_value(beside)
    return module


def _forget_namesakes(folder: Path) -> None:
    """Let what stands in this folder be imported, not a file of that name beside it."""
    for path in folder.glob("*.py"):
        known = Path(getattr(sys.modules.get(path.stem), "__file__", None) or "/")
        if known.parent != folder and known.parent.parent == folder.parent:
            del sys.modules[path.stem]


def _file(name: str) -> Path | None:
    """Where a chapter's sweep stands; None where no chapter has it."""
    found = names().get(name)
    return Path(found.rpartition(":")[0]) if found else None


def publish(name: str, size: str, store: Store) -> list[Path]:
    """Keep what is stored of a chapter's sweep in the chapter's folder `measured`.

    Raises:
        ValueError: it is no chapter's, or nothing of that size is stored.
    """
    file, sweep = _file(name), find(name)
    keys = [key for key in sweep.specs(size) if store.has(sweep.name, key)]
    if not file or not keys:
        wanted = f"a chapter's sweep with stored runs of size {size}"
        raise ValueError(f"publish: expected {wanted}, got {name} with {len(keys)}")
    files: dict[str, dict[str, Any]] = {}
    for key, row in zip(keys, store.rows(sweep.name, keys), strict=True):
        title, entry, figures = sweep.entry(key, row)
        files.setdefault(title, {})[entry] = figures
    about: dict[str, Any] = {
        "sweep": sweep.name,
        "version": sweep.version,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": version("torch").split("+")[0],
        "machine": platform.machine(),
    }
    folder = file.parent / "measured"
    for title, entries in files.items():
        keep(folder / f"{title}.json", entries, about | dict(sweep.about))
    return [folder / f"{title}.json" for title in files]


def sweep_rows(name: str) -> list[dict[str, Any]]:
    """The published runs of a chapter's sweep; an empty list where none are.

    Spec and record as one flat dictionary each, in the order of their keys. Only what
    lies in the chapter's folder `measured` is read, never a store of the reader's, so
    that a page is the same on every disk. For a cell of a chapter:
    `rows = sweep_rows("phase-map") or computed_above`.

    Args:
        name: of the sweep, e.g. `phase-map`.

    Raises:
        ValueError: no chapter has a sweep of this name.

    Examples:
        >>> sweep_rows("no-such-sweep")
        Traceback (most recent call last):
        ValueError: sweep: no sweep 'no-such-sweep'...
    """
    if not (file := _file(name)):
        raise ValueError(f"sweep: no sweep {name!r}: {ELSEWHERE}")
    entries = measured(file.parent / "measured" / f"{name}.json").entries
    return [entries[key] for key in sorted(entries)]
