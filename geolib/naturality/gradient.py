r"""The natural gradient and integrators of its flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.base import PointOptimizer
from geolib.naturality.directions import DIRECTIONS, Direction
from geolib.naturality.point import Point


class NaturalGradient(PointOptimizer):
    r"""Natural gradient descent with the exact Fisher metric.

    .. math:: x \leftarrow x - h\,(F + \lambda M)^{+} g, \qquad F = J^T W J .

    Natural in the limit h to 0; exactly natural under affine maps. Damping with the
    identity (`damping > 0`, no `damping_metric`) gives both up.

    Args:
        integrator: `euler`; `midpoint` and `rk4` evaluate the closure 2 and 4 times
            and are natural to order 2 and 4.
        (others): see `PointOptimizer`.

    Source: Goodbrake 2023, abstract (i); Amari's natural gradient.

    Examples:
        >>> x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> opt = NaturalGradient([x], lr=1.0)
        >>> def closure():
        ...     z = (x * torch.tensor([1.0, 10.0])).view(2, 1)
        ...     return z, 0.25 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> bool(x.abs().max() < 1e-12)  # one step, whatever the scaling
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        integrator: str = "euler",
        **options: Any,
    ) -> None:
        if integrator not in INTEGRATORS:
            raise ValueError(
                f"integrator: expected one of {sorted(INTEGRATORS)}, got {integrator!r}"
            )
        self.integrator = integrator
        super().__init__(params, lr, **options)

    def direction(self, q: Point) -> Tensor:
        """The velocity :math:`-F^{+}g`."""
        return -self.solve(q, q.dl)

    def update(self, q: Point) -> Tensor:
        x, h = self.position(), self.options["lr"]

        def field(dx: Tensor) -> Tensor:
            self.move(x + dx)
            return self.direction(self.point())

        return INTEGRATORS[self.integrator](self.direction(q), field, h)


def _euler(k: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    return h * k


def _midpoint(k: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    return h * field(0.5 * h * k)


def _rk4(k1: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    k2 = field(0.5 * h * k1)
    k3 = field(0.5 * h * k2)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + field(h * k3))


INTEGRATORS = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}


class GeodesicNaturalGradient(PointOptimizer):
    r"""Natural gradient with the second-order geodesic correction.

    .. math:: v = -F^{+}g, \qquad
        x \leftarrow x + h v - \tfrac{h^2}{2} F^{+}[vv, \cdot\,] .

    The step follows the geodesic of F to second order, so it is natural to order 2
    (its accuracy as an integrator of the flow stays of order 1).

    Source: Song, Song, Ermon 2018 (geodesic correction).
    """

    def update(self, q: Point) -> Tensor:
        h = self.options["lr"]
        v = -self.solve(q, q.dl)
        return h * v - 0.5 * h * h * self.solve(q, q.bend(v, v))


class Preconditioned(PointOptimizer):
    r"""Any first-order rule of `DIRECTIONS`, as an optimizer: the audit's controls.

    .. math:: x \leftarrow x + h\,X(x).

    Args:
        rule: a name in `DIRECTIONS` or a function from a `Point` to a velocity.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        rule: str | Direction,
        **o: Any,
    ) -> None:
        if isinstance(rule, str) and rule not in DIRECTIONS:
            raise ValueError(
                f"rule: expected one of {sorted(DIRECTIONS)}, got {rule!r}"
            )
        self.rule = DIRECTIONS[rule] if isinstance(rule, str) else rule
        super().__init__(params, lr, **o)

    def update(self, q: Point) -> Tensor:
        return self.options["lr"] * self.rule(q)


class CovariantNewton(Preconditioned):
    r"""Newton's method with the metric's covariant Hessian.

    .. math:: x \leftarrow x - h\,(\nabla dL)^{-1} g, \qquad
        (\nabla dL)_{ij} = \partial_i\partial_jL - \Gamma^k_{ij}\,\partial_kL .

    Unlike the Hessian, :math:`\nabla dL` is a tensor at every point, so the direction
    is natural under every diffeomorphism. Damping is not used.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, **options: Any) -> None:
        super().__init__(params, lr, rule="covariant-newton", **options)


class BFGS(PointOptimizer):
    r"""BFGS with fixed step size, started at the identity or at the natural metric.

    .. math:: x \leftarrow x - h B g, \qquad
        B \leftarrow (I - \rho s y^T) B (I - \rho y s^T) + \rho s s^T .

    Started at :math:`B_0 = F_0^{-1}` it is exactly natural under affine maps at
    finite h. The update is skipped when :math:`s^Ty` is not positive.

    Args:
        start: `identity` or `natural`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        start: str = "natural",
        **o: Any,
    ) -> None:
        if start not in ("identity", "natural"):
            raise ValueError(f"start: expected 'identity' or 'natural', got {start!r}")
        self.start = start
        super().__init__(params, lr, **o)

    def update(self, q: Point) -> Tensor:
        m, g = self.memory, q.g
        if "B" not in m:
            m["B"] = torch.eye(len(g), dtype=g.dtype, device=g.device)
            if self.start == "natural":
                m["B"] = torch.linalg.pinv(q.F, hermitian=True)
        else:
            s, y = m["s"], g - m["g"]
            sy = torch.dot(s, y)
            if sy > 0:
                E = torch.eye(len(g), dtype=g.dtype, device=g.device)
                E = E - torch.outer(s, y) / sy
                m["B"] = E @ m["B"] @ E.T + torch.outer(s, s) / sy
        m["g"], m["s"] = g, -self.options["lr"] * m["B"] @ g
        return m["s"]
