r"""Momentum that is transported, not merely stored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.base import PointOptimizer, positive
from geolib.naturality.point import Point


class _Momentum(PointOptimizer):
    slot = "velocity"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        friction: float = 1.0,
        initial: Tensor | None = None,
        **options: Any,
    ) -> None:
        positive("friction", friction, zero=True)
        super().__init__(params, lr, friction=friction, **options)
        p = sum(t.numel() for t in self.leaves)
        if initial is not None:
            if initial.shape != (p,):
                raise ValueError(
                    f"initial: expected shape ({p},), got {tuple(initial.shape)}"
                )
            self.memory[self.slot] = initial.detach().clone()

    def stored(self, like: Tensor) -> Tensor:
        """The stored momentum, zero before the first step."""
        return self.memory.setdefault(self.slot, torch.zeros_like(like))

    def decay(self) -> float:
        """The factor :math:`e^{-\\gamma h}` of one step."""
        return math.exp(-self.options["friction"] * self.options["lr"])


class NaturalMomentum(_Momentum):
    r"""Momentum as a velocity, with its covariant derivative.

    .. math:: v \leftarrow e^{-\gamma h}v - h\,F^{+}\bigl(g + [vv, \cdot\,]\bigr),
        \qquad x \leftarrow x + h v .

    The flow is :math:`\nabla_{\dot x}\dot x = -\gamma\dot x - F^{-1}g`, a damped
    geodesic in a potential: natural as a flow on the tangent bundle. With
    `connection=False` the Christoffel term is left out (the usual "natural gradient
    with momentum"), which is natural under affine maps only.

    Args:
        friction: :math:`\gamma`, per unit of time.
        initial: initial velocity, flat (p,); zero when None.
        connection: whether to keep the Christoffel term.
        (others): see `PointOptimizer`.

    Cost: one step of `NaturalGradient` and one second derivative of f along v.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        connection: bool = True,
        **o: Any,
    ) -> None:
        self.connection = connection
        super().__init__(params, lr, **o)

    def update(self, q: Point) -> Tensor:
        h, v = self.options["lr"], self.stored(q.g)
        force = q.dl + q.bend(v, v) if self.connection else q.dl
        v = self.decay() * v - h * self.solve(q, force)
        self.memory[self.slot] = v
        return h * v


class NaturalCovectorMomentum(_Momentum):
    r"""Momentum as a covector, Hamilton's form of `NaturalMomentum`.

    .. math:: v = F^{+}m, \quad
        m \leftarrow e^{-\gamma h}m + h\bigl(-g + \tfrac12\,\partial_x(v^TFv)\bigr),
        \quad x \leftarrow x + h F^{+}m .

    The same flow on the cotangent bundle, with a larger error constant.
    """

    slot = "momentum"

    def update(self, q: Point) -> Tensor:
        h, m = self.options["lr"], self.stored(q.g)
        v = self.solve(q, m)
        # 1/2 d(v^T F v) at frozen v = [ . v, v] = the rate of parallel transport
        force = q.transport(torch.zeros_like(m), v, v) - q.g
        m = self.decay() * m + h * force
        self.memory[self.slot] = m
        return h * self.solve(q, m)


class FunctionMomentum(PointOptimizer):
    r"""Momentum kept in output space, where no map of parameters acts.

    .. math:: u \leftarrow e^{-\gamma h}u - h\,W^{+}d\ell, \qquad
        x \leftarrow x + h\,F^{+}J^TWu .

    Needs the same samples in the same order at every step (the state is indexed by
    them).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        friction: float = 1.0,
        **o: Any,
    ) -> None:
        positive("friction", friction, zero=True)
        super().__init__(params, lr, friction=friction, **o)

    def update(self, q: Point) -> Tensor:
        h = self.options["lr"]
        u = self.memory.setdefault("u", torch.zeros_like(q.z))
        if u.shape != q.z.shape:
            raise ValueError(
                f"closure: outputs of shape {tuple(q.z.shape)}, but the momentum holds "
                f"{tuple(u.shape)}; it needs the full batch at every step"
            )
        u = math.exp(-self.options["friction"] * h) * u - h * q.unweigh(q.dl)
        self.memory["u"] = u
        return h * self.solve(q, q.weigh(u))


class HeavyBall(_Momentum):
    r"""Euclidean momentum as a flow: the audit's control.

    .. math:: v \leftarrow e^{-\gamma h}v - h g, \qquad x \leftarrow x + h v .
    """

    def update(self, q: Point) -> Tensor:
        h = self.options["lr"]
        v = self.decay() * self.stored(q.g) - h * q.g
        self.memory[self.slot] = v
        return h * v
