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
    if len(y) != rows:
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


def same_architecture(a: nn.Module, b: nn.Module) -> None:
    """Refuse two modules that differ in a layer's kind, a parameter or its shape.

    Examples:
        >>> same_architecture(nn.Linear(2, 3), nn.Linear(2, 4))
        Traceback (most recent call last):
        ...
        ValueError: b: parameter 'weight' is (4, 2) but (3, 2) in a; ...
    """
    for name, module in (("a", a), ("b", b)):
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise ValueError(f"{name}: expected an nn.Module, got {kind}")
    ours = {n: tuple(p.shape) for n, p in a.named_parameters()}
    theirs = {n: tuple(p.shape) for n, p in b.named_parameters()}
    for name in ours.keys() ^ theirs.keys():
        raise ValueError(
            f"b: parameter {name!r} is in only one of the two networks; they must "
            "have one architecture"
        )
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise ValueError(
                f"b: parameter {name!r} is {theirs[name]} but {shape} in a; the two "
                "networks must have one architecture"
            )
    kind = torch.nn.utils.parametrize.type_before_parametrizations
    layers = {n: kind(m) for n, m in b.named_modules()}
    for name, module in a.named_modules():
        other = layers.get(name, type(None))
        if other is not kind(module):
            raise ValueError(
                f"b: layer {name!r} is a {other.__name__} but a "
                f"{kind(module).__name__} in a; the two networks must have one "
                "architecture"
            )
