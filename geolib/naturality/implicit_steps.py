r"""Steps that are natural at finite size: they are defined on functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer
from geolib.naturality.local_geometry import LocalGeometry


class _Implicit(GeometricOptimizer):
    """A step found by Gauss-Newton iterations on a function of the new outputs."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        iterations: Annotated[int, "1 <= iterations <= 10**9"] = 60,
        tolerance: float = 1e-14,
        **options: Any,
    ) -> None:
        self.iterations, self.tolerance = iterations, tolerance
        self.converged = True
        super().__init__(params, lr, **options)

    def target(
        self, q: LocalGeometry, v: Annotated[Tensor, "q.linearization.p"]
    ) -> Tensor:
        """Return the outputs to stay close to, from the old point and its Euler step."""
        raise NotImplementedError

    def pull(self, new: LocalGeometry) -> tuple[Tensor, float]:
        """Return another gradient on outputs, and its curvature over W."""
        return torch.zeros_like(new.z), 0.0

    def update(self, q: LocalGeometry) -> Tensor:
        h, x = self.options["lr"], self.position()
        v = -h * self.solve(q, q.covector)
        dx, size = v, float(v.norm() + x.norm())
        target = self.target(q, v)  # before the parameters of q's graph move
        self.converged, before = False, 0.0
        for _ in range(self.iterations):
            self.move(x + dx)
            new = self.point()
            r, curvature = self.pull(new)
            r = r + q.lower(new.z - target)
            delta = -self.solve(new, r) / (1 + curvature)
            dx = dx + delta
            # What is still to come, at the rate of the last two corrections.
            moved = float(delta.norm())
            rate = moved / before if moved < before else 0.5
            if not rate / (1 - rate) * moved > self.tolerance * size:
                self.converged = True
                break
            before = moved
        return dx


class RetractedNaturalGradient(_Implicit):
    r"""The natural gradient step, retracted onto the set of functions.

    .. math:: x^+ = \arg\min_{x'} \tfrac12
        \bigl|f(x') - (f(x) - hJF^{+}g)\bigr|^2_{W(x)} .

    Exactly natural at every h, as the target and the distance live in output space.
    `converged` says whether the inner iteration reached its tolerance.

    Args:
        iterations, tolerance: of the inner Gauss-Newton iteration.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-implicit` (derivations).

    Examples:
        >>> x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        >>> opt = RetractedNaturalGradient([x], lr=0.1)
        >>> def closure():  # f = e^x; on functions the step is 1 - 0.1 (1 - 2)
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> loss = opt.step(closure)
        >>> round(x.exp().item(), 12)
        1.1
    """

    def target(
        self, q: LocalGeometry, v: Annotated[Tensor, "q.linearization.p"]
    ) -> Tensor:
        return q.z + q.jvp(v)


class ProximalNatural(_Implicit):
    r"""The implicit step of the natural gradient flow.

    .. math:: x^+ = \arg\min_{x'} h\,L(x') + \tfrac12 |f(x') - f(x)|^2_{W(x)} .

    Exactly natural at every h, and of order 1 in h as an integrator.

    Args:
        iterations, tolerance: of the inner Gauss-Newton iteration.
        (others): see `GeometricOptimizer`.

    Source: :eq:`eq-naturality-prox`; :eq:`drv-naturality-implicit` (derivations).

    Examples:
        >>> x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        >>> opt = ProximalNatural([x], lr=0.1)
        >>> def closure():  # z - 1 = -0.1 (z - 2)
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> loss = opt.step(closure)
        >>> round(1.1 * x.exp().item(), 12)
        1.2
    """

    def target(
        self, q: LocalGeometry, v: Annotated[Tensor, "q.linearization.p"]
    ) -> Tensor:
        return q.z

    def pull(self, new: LocalGeometry) -> tuple[Tensor, float]:
        h = self.options["lr"]
        return h * new.dl, h
