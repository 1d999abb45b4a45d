"""What names one run: a frozen dataclass, its canonical JSON and its hash key."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

S = TypeVar("S")


def fields_of(spec: Any) -> dict[str, Any]:
    """The fields of a spec as plain JSON values.

    An int in a field annotated `float` becomes a float, so that 1 and 1.0 name the
    same run; tuples become lists; NumPy scalars become numbers.

    Raises:
        TypeError: not a dataclass instance, or a value that JSON cannot hold.
        ValueError: NaN or infinity, which equal nothing and so can name no run.
    """
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type):
        raise TypeError(f"spec: expected a dataclass instance, got {spec!r}")
    hints = _hints(type(spec))
    found = {}
    for field in dataclasses.fields(spec):
        value = _plain(field.name, getattr(spec, field.name))
        exact = isinstance(value, int) and not isinstance(value, bool)
        found[field.name] = (
            float(value) if exact and hints[field.name] is float else value
        )
    return found


def canonical(spec: Any) -> str:
    """The one JSON text of a spec: sorted keys, no spaces.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Run:
        ...     seed: int
        ...     rate: float
        >>> canonical(Run(rate=1, seed=3))
        '{"rate":1.0,"seed":3}'
    """
    return json.dumps(
        fields_of(spec), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def key_of(spec: Any, name: str, version: int = 1) -> str:
    """The name of a run in a store: 32 hexadecimal digits.

    Args:
        spec: the dataclass instance.
        name: the sweep's name, so that equal specs of two sweeps differ.
        version: raised when the sweep's function starts to mean something else.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
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
        >>> @dataclasses.dataclass(frozen=True)
        ... class Run:
        ...     seed: int
        ...     width: int = 8
        >>> grid(Run, seed=range(2), width=[4, 8])[1:3]
        [Run(seed=0, width=8), Run(seed=1, width=4)]
    """
    columns = [
        list(axis)
        if isinstance(axis, Sequence) and not isinstance(axis, str)
        else [axis]
        for axis in axes.values()
    ]
    combined = itertools.product(*columns)
    return [kind(**dict(zip(axes, values, strict=True))) for values in combined]


@functools.lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy scalars and 0-d tensors
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
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
