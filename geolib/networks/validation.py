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
