r"""The base of rules that change one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from geolib.naturality import LocalGeometry
from geolib.core.validation import expect
from geolib.naturality.geometric_optimizer import check_tensors
from geolib.naturality.local_geometry import Diverged, flatten, unflatten


class TensorwiseOptimizer(torch.optim.Optimizer):
    """The base of rules that change one tensor at a time and read its `.grad`.

    A subclass defines `change`: gradient, state and options to the displacement over -lr.
    """

    has_memory = True
    change: Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor]

    def __init__(self, params: Iterable[Any], lr: float, **defaults: Any) -> None:
        items = list(params)
        lists = [g["params"] if isinstance(g, dict) else [g] for g in items]
        check_tensors(t for group in lists for t in group)
        expect(0 < lr < float("inf"), "lr", "a finite number above 0", lr)
        super().__init__(items, {"lr": lr, **defaults})

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Take one step; with a closure its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for t in group["params"]:
                    if t.grad is not None:
                        g = dense_gradient(t)
                        change = self.change(g, self.state[t], group)
                        t.sub_(group["lr"] * change)
        return loss


def dense_gradient(t: Tensor) -> Tensor:
    """Return the gradient of a parameter.

    Raises:
        ValueError: it is sparse, or (`Diverged`) has entries that are not finite.
    """
    g = t.grad
    assert g is not None
    what = f"grad of a parameter of shape {tuple(t.shape)}"
    if g.layout != torch.strided:
        raise ValueError(f"{what}: expected a dense tensor, got layout {g.layout}")
    if not bool(torch.isfinite(g).all()):
        raise Diverged(f"{what}: expected finite entries")
    return g


def first_step(cls: type[TensorwiseOptimizer], **options: Any) -> Callable[..., Tensor]:
    """The velocity of a tensorwise optimizer's first step, from an empty state."""

    @cache  # at the first use: an optimizer made while importing would load the compiler
    def defaults() -> dict[str, Any]:
        blank = torch.zeros(1, requires_grad=True)
        return cls([blank], lr=1.0, **options).param_groups[0]  # type: ignore[call-arg]

    def direction(q: LocalGeometry) -> Tensor:
        grads = unflatten(q.g, q.params)
        return flatten([-cls.change(g, {}, defaults()) for g in grads])

    return direction
