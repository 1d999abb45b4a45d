"""What is refused at the door: inputs, labels, options, unlike networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def check_inputs(x: Tensor, name: str = "x") -> None:
    """Refuse anything but a tensor of at least one finite input.

    Examples:
        >>> check_inputs(torch.tensor([[float("nan")]]))
        Traceback (most recent call last):
        ...
        ValueError: x: expected finite inputs, got NaN or inf
    """
    if not isinstance(x, Tensor) or x.ndim < 1:
        raise ValueError(f"{name}: expected a tensor of inputs, got {type(x).__name__}")
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one input, got none")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: expected finite inputs, got NaN or inf")


def class_labels(y: Tensor, rows: int, name: str = "y") -> Tensor:
    """Labels as torch's losses want them, int64; refuse what are no labels of `rows`.

    Examples:
        >>> class_labels(torch.tensor([3, 1], dtype=torch.int32), 2)
        tensor([3, 1])
    """
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
    if not whole or y.ndim != 1:
        what = (y.dtype, tuple(y.shape)) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}: expected a tensor (n,) of whole numbers, got {what}")
    if not rows or len(y) != rows:
        raise ValueError(
            f"{name}: expected one label per input, {rows}, got {len(y)} labels"
        )
    return y.long()


def check_labels(classes: int, y: Tensor, rows: int) -> Tensor:
    """As `class_labels`; refuse labels that the network has no output for.

    Examples:
        >>> check_labels(2, torch.tensor([0, 2]), 2)
        Traceback (most recent call last):
        ...
        ValueError: y: expected classes 0 to 1, got labels from 0 to 2
    """
    y = class_labels(y, rows)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"y: expected classes 0 to {classes - 1}, got labels from {low} to {high}"
        )
    return y


def check_positive(**options: float) -> None:
    """Refuse an option that is not a finite number above zero.

    Examples:
        >>> check_positive(steps=3, lr=float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: lr: expected a finite number above zero, got nan
    """
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"{name}: expected a finite number above zero, got {value!r}"
            )


def same_architecture(a: nn.Module, b: nn.Module, name: str = "b") -> None:
    """Refuse two modules that differ in a layer's kind, a parameter or its shape.

    Examples:
        >>> same_architecture(nn.Linear(2, 3), nn.Linear(2, 4))
        Traceback (most recent call last):
        ...
        ValueError: b: expected the architecture of the first network, but 'weight' ...
    """
    for which, module in (("a", a), (name, b)):
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise ValueError(f"{which}: expected an nn.Module, got {kind}")
    ours, theirs = (_parts(module) for module in (a, b))
    for part in [*ours, *theirs]:
        if ours.get(part) != theirs.get(part):
            raise ValueError(
                f"{name}: expected the architecture of the first network, but {part!r} is "
                f"{theirs.get(part, 'absent')} here and {ours.get(part, 'absent')} there"
            )


def _parts(module: nn.Module) -> dict[str, object]:
    """The kind of each layer, and the shape of each parameter and buffer, by name."""
    kind = torch.nn.utils.parametrize.type_before_parametrizations
    tensors = (*module.named_parameters(), *module.named_buffers())
    layers = {n or "(root)": kind(m).__name__ for n, m in module.named_modules()}
    return layers | {n: tuple(t.shape) for n, t in tensors}
