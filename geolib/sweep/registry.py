"""Find a sweep by its name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from geolib.sweep import shipped
from geolib.sweep.runner import Sweep


def names() -> tuple[str, ...]:
    """The names of the sweeps that ship, e.g. `mode-connectivity`."""
    found = (module.name for module in pkgutil.iter_modules(shipped.__path__))
    public = (name for name in found if not name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in public))


def find(name: str) -> Sweep:
    """A sweep that ships, or `package.module:ATTRIBUTE` for one of your own.

    Raises:
        ValueError: there is no such sweep, module or attribute.
    """
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"sweep: cannot read {name}: {error}") from error
    elif name in names():
        path = f"{shipped.__name__}.{name.replace('-', '_')}"
        found = importlib.import_module(path).SWEEP
    else:
        near = difflib.get_close_matches(name, names(), 2, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"sweep: no sweep {name!r}{hint} (see `geolib sweep`, or name one of your "
            "own as `module:ATTRIBUTE`)"
        )
    if not isinstance(found, Sweep):
        raise ValueError(f"sweep: {name} is a {type(found).__name__}, not a Sweep")
    return found
