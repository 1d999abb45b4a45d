r"""Rules: the velocity that each algorithm prescribes at a point; Newton's Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry

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


def hessian(q: LocalGeometry) -> Tensor:
    r"""Return the Hessian of the loss, :math:`F + \langle d\ell, D^2f\rangle`, (p, p).

    Holds when the metric is the loss's own Fisher metric in natural parameters,
    where the loss's Hessian on outputs is W.

    Source: :eq:`drv-naturality-newton` (derivations).
    """
    return q.F + q.curvature(q.dl)


def newton(q: LocalGeometry) -> Tensor:
    r"""Return Newton's direction :math:`-H^{-1}g`, (p,)."""
    return -torch.linalg.solve(hessian(q), q.g)


def covariant_hessian(q: LocalGeometry) -> Tensor:
    r"""Return the covariant Hessian of the loss, a tensor at every point, (p, p).

    .. math:: H_{cov} = J^T(W - [\,\cdot\,\cdot, Jn])J
        + \langle d\ell - WJn, D^2f\rangle, \qquad n = F^+g .

    Args:
        q: the geometry at a point, with a metric of full rank.

    Source: :eq:`drv-naturality-covariant-hessian` (derivations).

    Examples:
        >>> from geolib.naturality import Problem, affine_mlp, mse, standard_suite
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> phi = standard_suite(P.module, P.theta0)["coupling"]
        >>> there = P.push(phi)
        >>> H = covariant_hessian(P.point(P.theta0))
        >>> pushed = phi.push_metric(P.theta0, H)
        >>> bool((covariant_hessian(there.point(there.theta0)) - pushed).norm() < 1e-9)
        True
    """
    Jn = q.jvp(q.solve(q.g))
    H = q.F + q.curvature(q.dl - q.lower(Jn))
    third = q.output_metric.christoffel
    if not q.output_metric.constant:
        n, c = q.z.shape
        eye = torch.eye(c, dtype=q.z.dtype, device=q.z.device)
        K = torch.stack([third(q.z, e.expand(n, c), Jn) for e in eye], dim=1) / n
        J = q.J.view(n, c, -1)
        H = H - torch.einsum("nip,nij,njq->pq", J, K, J)
    return H


def covariant_newton(q: LocalGeometry) -> Tensor:
    r"""Return Newton's direction with the covariant Hessian, (p,)."""
    return -torch.linalg.solve(covariant_hessian(q), q.g)


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
