r"""First-order rules: the velocity that each algorithm prescribes at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry
from geolib.naturality.newton import covariant_newton, newton

Rule = Callable[[LocalGeometry], Tensor]


def gradient(q: LocalGeometry) -> Tensor:
    r"""Gradient flow, :math:`-g`."""
    return -q.g


def normalized(q: LocalGeometry) -> Tensor:
    r"""The gradient's direction, :math:`-g/|g|`."""
    return -q.g / q.g.norm()


def natural(q: LocalGeometry) -> Tensor:
    r"""The natural gradient :math:`-F^+g`."""
    return -q.solve(q.g)


def damped(damping: float) -> Rule:
    r"""Identity-damped natural gradient :math:`-(F + \lambda I)^{-1}g`."""
    return lambda q: -q.solve(q.g, damping)


def diagonal(q: LocalGeometry) -> Tensor:
    r"""The diagonal of F in place of F."""
    return -q.g / (q.A * q.A).sum(0)


RULES: dict[str, Rule] = {
    "gradient": gradient,
    "normalized": normalized,
    "natural": natural,
    "damped": damped(0.1),
    "newton": newton,
    "covariant-newton": covariant_newton,
    "diagonal": diagonal,
}


class FirstOrderRule(GeometricOptimizer):
    r"""Any rule without memory as an optimizer: the audit's controls.

    .. math:: x \leftarrow x + h\,X(x).

    Args:
        rule: `gradient`, `normalized`, `natural`, `damped`, `newton`,
            `covariant-newton`, `diagonal`, or a function from a `LocalGeometry` to a
            velocity (p,).
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: an unknown name.

    Source: :eq:`drv-naturality-newton` and :eq:`drv-naturality-blocks` (derivations).

    Examples:
        >>> import torch
        >>> x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> opt = FirstOrderRule([x], lr=1.0, rule="covariant-newton")
        >>> def closure():  # in the chart e^x the loss is quadratic: one step
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> _ = [opt.step(closure) for _ in range(25)]
        >>> round(x.exp().item(), 6)
        2.0
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, *, rule: str | Rule, **o: Any
    ) -> None:
        if isinstance(rule, str) and rule not in RULES:
            raise ValueError(f"rule: expected one of {sorted(RULES)}, got {rule!r}")
        self.rule = RULES[rule] if isinstance(rule, str) else rule
        super().__init__(params, lr, **o)

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return self.rule(q)
