"""Find a sweep by its name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from geolib.sweep import shipped
from geolib.sweep.runner import Sweep


def names() -> tuple[str, ...]:
    """The names of the sweeps that ship, e.g. `mode-connectivity`."""
    found = (module.name for module in pkgutil.iter_modules(shipped.__path__))
    public = (name for name in found if not name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in public))


def find(name: str) -> Sweep:
    """A sweep that ships; `FILE.py:NAME` or `package.module:NAME` for one of your own.

    Raises:
        ValueError: there is no such sweep, module or attribute.

    Examples:
        >>> find("phase-map").name
        'phase-map'
    """
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            found = getattr(_module(module), attribute)
        except (ImportError, AttributeError, OSError, SyntaxError) as error:
            raise ValueError(f"sweep: cannot read {name}: {error}") from error
    elif name in names():
        path = f"{shipped.__name__}.{name.replace('-', '_')}"
        found = importlib.import_module(path).SWEEP
    else:
        near = difflib.get_close_matches(name, names(), 2, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"sweep: no sweep {name!r}{hint} (see `geolib sweep`, or name one of your "
            "own as `FILE.py:NAME` or `module:NAME`)"
        )
    if not isinstance(found, Sweep):
        raise ValueError(f"sweep: {name} is a {type(found).__name__}, not a Sweep")
    return found


def _module(name: str) -> ModuleType:
    """A module by its dotted name, or from a file, whose functions then travel whole."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    try:
        import cloudpickle
    except ImportError:  # without Dask nothing travels
        return module
    cloudpickle.register_pickle_by_value(module)  # workers do not have the file
    return module
