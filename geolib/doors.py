"""A package's door: its public names, whose functions check what they are given.

A package ends in ``__all__ = guarded(globals())``. From then on its public functions,
constructors and methods compare each argument with its annotation before they run, and
refuse by name what does not fit. `geolib.core.checks` knows how, and is read at the first
call: a door is light.
"""

import dataclasses
import functools
import inspect
import sys
from types import FunctionType
from typing import Any

from geolib.files import exported


def guarded(names: dict[str, Any]) -> list[str]:
    """The public names of a door, whose functions check what they are given."""
    public = exported(names)
    for name in public:
        obj = names[name]
        if isinstance(obj, FunctionType | functools._lru_cache_wrapper):
            names[name] = guard = checked(obj)
            setattr(sys.modules[obj.__module__], obj.__name__, guard)
        elif inspect.isclass(obj):
            for kind in obj.__mro__:
                _guard_class(kind)
    return public


def is_record(kind: type) -> bool:
    """A result or an error: the library makes it, and callers only read it."""
    found = dataclasses.is_dataclass(kind) and "Args:" not in (kind.__doc__ or "")
    return found or issubclass(kind, BaseException)


def entrances(kind: type) -> list[str]:
    """The constructor of a class, but of a record, and its own public methods."""
    names = [] if is_record(kind) else ["__init__"]
    names += ["__call__", "__matmul__"]
    return [n for n in vars(kind) if n in names or n[0] != "_"]


def _guard_class(kind: type) -> None:
    for name in entrances(kind) if kind.__module__.startswith("geolib.") else ():
        fn = vars(kind)[name]
        inner = getattr(fn, "__func__", fn)  # of a class method
        if name != "forward" and isinstance(inner, FunctionType):
            guard = checked(inner)
            setattr(kind, name, guard if inner is fn else type(fn)(guard))


def checked(fn: Any) -> Any:
    """The function, which refuses arguments that do not fit their annotations."""
    if hasattr(fn, "checks"):
        return fn

    @functools.cache
    def arguments() -> Any:
        from geolib.core.checks import Arguments

        return Arguments(fn)

    @functools.wraps(fn)
    def guard(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        within, known = caller.startswith(("geolib.", "torch.")), arguments()
        known.check(args, kwargs, within)
        return fn(*args, **kwargs) if within else known.call(args, kwargs)

    guard.checks = True  # type: ignore[attr-defined]
    return guard
