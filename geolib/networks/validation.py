"""What is refused at the door: inputs, labels, options, unlike networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geolib.core.validation import expect

WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64


def check_inputs(x: Tensor, name: str = "x") -> None:
    """Refuse anything but a tensor of at least one finite input.

    Examples:
        >>> check_inputs(torch.tensor([[float("nan")]]))
        Traceback (most recent call last):
        ...
        geolib.core.validation.ArgumentError: x: expected finite inputs, got 'NaN or inf'
    """
    fits = isinstance(x, Tensor) and x.ndim >= 1 and len(x) >= 1
    expect(fits, name, "a tensor of at least one input", type(x).__name__)
    expect(bool(torch.isfinite(x).all()), name, "finite inputs", "NaN or inf")


def check_labels(classes: int, y: Tensor, rows: int | None = None) -> None:
    """Refuse labels that the network has no output for, or of another number.

    Examples:
        >>> check_labels(2, torch.tensor([0, 2]))
        Traceback (most recent call last):
        ...
        geolib.core.validation.ArgumentError: y: expected classes 0 to 1, got (0, 2)
    """
    what = (y.dtype, tuple(y.shape)) if isinstance(y, Tensor) else type(y).__name__
    whole = isinstance(y, Tensor) and y.dtype in WHOLE and y.ndim == 1 and len(y)
    expect(whole, "y", "a tensor (n,) of whole numbers", what)
    expect(rows in (None, len(y)), "y", f"one label per input, {rows}", len(y))
    low, high = int(y.min()), int(y.max())
    wanted, got = f"classes 0 to {classes - 1}", (low, high)
    expect(low >= 0 and high < classes, "y", wanted, got)


def same_architecture(a: nn.Module, b: nn.Module) -> None:
    """Refuse two modules that differ in a layer's kind, a parameter or its shape.

    Examples:
        >>> same_architecture(nn.Linear(2, 3), nn.Linear(2, 4))
        Traceback (most recent call last):
        ...
        ValueError: b: parameter 'weight' is (4, 2) but (3, 2) in a; ...
    """
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
