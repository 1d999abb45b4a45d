"""What a module eats, and what an annotation cannot say of an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from geolib.files import ArgumentError as ArgumentError
from geolib.files import expect as expect
from geolib.files import short as short

Inputs = Tensor | Mapping[str, Any] | tuple[Any, ...]


def tensors(x: Inputs) -> list[Tensor]:
    """All tensors in `x`, in order."""
    if isinstance(x, Tensor):
        return [x]
    fits = isinstance(x, Mapping | tuple | list)
    expect(fits, "x", "a tensor, a dict or a tuple of tensors", type(x))
    found: list[Tensor] = []
    for v in x.values() if isinstance(x, Mapping) else x:
        held = [t for t in tree_leaves(v) if isinstance(t, Tensor)]
        wanted = "tensors, and what holds none: its samples could not be told apart"
        expect(not held or held[0] is v, "x", wanted, f"{type(v).__name__} of tensors")
        found += held
    return found


def map_inputs(fn: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Apply `fn` to each tensor in `x` and keep the container.

    Examples:
        >>> map_inputs(lambda t: 2 * t, {"a": torch.ones(2)})
        {'a': tensor([2., 2.])}
    """
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, Mapping):
        return {k: fn(v) if isinstance(v, Tensor) else v for k, v in x.items()}
    return tuple(fn(v) if isinstance(v, Tensor) else v for v in x)


def outside_inference(t: Tensor) -> Tensor:
    """The tensor, or a copy that autograd may keep if it was made in inference mode."""
    return t.clone() if t.is_inference() else t


def num_samples(x: Inputs) -> int:
    """Length of the leading axis, the same for each tensor with at least one axis."""
    sizes = {t.shape[0] for t in tensors(x) if t.ndim > 0}
    wanted = "tensors with one common leading axis, the samples (a mask is a buffer)"
    expect(len(sizes) == 1, "x", wanted, f"leading sizes {sorted(sizes)}")
    return sizes.pop()


def take(x: Inputs, index: slice | Tensor) -> Inputs:
    """The samples `index` of `x`."""
    return map_inputs(lambda t: t[index] if t.ndim > 0 else t, x)


def require_matching(name: str, t: Tensor, like: Tensor, other: str) -> None:
    """Refuse a floating `t` whose dtype or device differs from that of `like`."""
    if t.is_floating_point() and t.dtype != like.dtype:
        what = f"dtype {t.dtype} does not match {other}'s {like.dtype}; cast"
        raise ArgumentError(f"{name}: {what} one of them")
    if t.device != like.device:
        what = f"is on {t.device} but {other} is on {like.device}"
        raise ArgumentError(f"{name}: {what}; move one")


def require_vector(name: str, v: Tensor, size: int, like: Tensor, other: str) -> None:
    """Refuse anything but a real vector of `size` entries that matches `like`."""
    expect(v.shape == (size,), name, f"shape ({size},)", tuple(v.shape))
    expect(v.is_floating_point(), name, "a floating dtype", v.dtype)
    require_matching(name, v, like, other)


def single(t: Tensor) -> Tensor:
    """The tensor, in float32 if it is in half precision: torch factorises none of that."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def require_finite(name: str, t: Tensor) -> None:
    """Refuse NaN and infinities, with their count."""
    bad = int((~torch.isfinite(t)).sum())
    what = f"finite numbers; {bad} of {t.numel()} entries are not finite"
    expect(not bad, name, what, t)


WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


def check_inputs(x: Tensor, name: str = "x") -> None:
    """Refuse anything but a tensor of at least one finite input.

    Examples:
        >>> check_inputs(torch.tensor([[float("nan")]]))
        Traceback (most recent call last):
        ...
        geolib.files.ArgumentError: x: expected finite inputs, got 'NaN or inf'
    """
    fits = isinstance(x, Tensor) and x.layout == torch.strided and x.ndim and len(x)
    got = tuple(x.shape) if isinstance(x, Tensor) else type(x)
    expect(fits, name, "a tensor of at least one input", got)
    expect(bool(torch.isfinite(x).all()), name, "finite inputs", "NaN or inf")


def class_labels(y: Tensor, rows: int, name: str = "y") -> Tensor:
    """Labels as torch's losses want them, int64; refuse what are no labels of `rows`.

    Examples:
        >>> class_labels(torch.tensor([3, 1], dtype=torch.int32), 2)
        tensor([3, 1])
    """
    what = (y.dtype, tuple(y.shape)) if isinstance(y, Tensor) else type(y).__name__
    whole = isinstance(y, Tensor) and y.dtype in WHOLE and y.ndim == 1
    expect(whole, name, "a tensor (n,) of whole numbers", what)
    expect(rows == len(y) > 0, name, f"one label per input, {rows}", len(y))
    return y.long()


def check_labels(classes: int, y: Tensor, rows: int, name: str = "y") -> Tensor:
    """As `class_labels`; refuse labels that the network has no output for.

    Examples:
        >>> check_labels(2, torch.tensor([0, 2]), 2)
        Traceback (most recent call last):
        ...
        geolib.files.ArgumentError: y: expected classes 0 to 1, got (0, 2)
    """
    y = class_labels(y, rows, name)
    low, high = int(y.min()), int(y.max())
    fits, wanted = 0 <= low <= high < classes, f"classes 0 to {classes - 1}"
    expect(fits, name, wanted, (low, high))
    return y


def same_architecture(a: nn.Module, b: nn.Module, name: str = "b") -> None:
    """Refuse two modules that differ in a layer's kind, a parameter or its shape.

    Examples:
        >>> same_architecture(nn.Linear(2, 3), nn.Linear(2, 4))
        Traceback (most recent call last):
        ...
        ValueError: b: expected the architecture of the first network, but 'weight' ...
    """
    ours, theirs = (_parts(module) for module in (a, b))
    for part in [*ours, *theirs]:
        if ours.get(part) != theirs.get(part):
            here, there = (own.get(part, "absent") for own in (theirs, ours))
            what = f"expected the architecture of the first network, but {part!r} is"
            raise ValueError(f"{name}: {what} {here} here and {there} there")


def _parts(module: nn.Module) -> dict[str, object]:
    """The kind of each layer, and the shape of each parameter and buffer, by name."""
    kind = torch.nn.utils.parametrize.type_before_parametrizations
    tensors = (*module.named_parameters(), *module.named_buffers())
    layers = {n or "(root)": kind(m).__name__ for n, m in module.named_modules()}
    return layers | {n: tuple(t.shape) for n, t in tensors}
