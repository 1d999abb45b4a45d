r"""The natural gradient and integrators of its flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry


class NaturalGradient(GeometricOptimizer):
    r"""Natural gradient descent with the exact Fisher metric.

    .. math:: x \leftarrow x - h\,(F + \lambda M)^{+} g, \qquad F = J^T W J .

    Natural in the limit h to 0; exactly natural under affine maps. Damping with the
    identity (`damping > 0`, no `damping_metric`) gives both up.

    Args:
        integrator: `euler`; `midpoint` and `rk4` evaluate the closure 2 and 4 times
            and are natural to order 2 and 4.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: an unknown integrator, and what `GeometricOptimizer` refuses.

    Source: Amari 1998; Goodbrake 2023, abstract (i); :eq:`drv-naturality-ngd`
        (derivations).

    Examples:
        >>> import torch
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
        integrator: Annotated[str, INTEGRATORS] = "euler",
        **options: Any,
    ) -> None:
        self.integrator = integrator
        super().__init__(params, lr, **options)

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return -self.solve(q, q.covector)

    def update(self, q: LocalGeometry) -> Tensor:
        x, h = self.position(), self.options["lr"]

        def field(dx: Tensor) -> Tensor:
            self.move(x + dx)
            return self.velocity(self.point(), {})

        return INTEGRATORS[self.integrator](self.velocity(q, {}), field, h)


def _euler(k: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    return h * k


def _midpoint(k: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    return h * field(0.5 * h * k)


def _rk4(k1: Tensor, field: Callable[[Tensor], Tensor], h: float) -> Tensor:
    k2 = field(0.5 * h * k1)
    k3 = field(0.5 * h * k2)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + field(h * k3))


INTEGRATORS = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}


class GeodesicNaturalGradient(NaturalGradient):
    r"""Natural gradient with the second-order geodesic correction.

    .. math:: v = -F^{+}g, \qquad
        x \leftarrow x + h v - \tfrac{h^2}{2} F^{+}[vv, \cdot\,] .

    The step follows the geodesic of F to second order, so it is natural to order 2
    (its accuracy as an integrator of the flow stays of order 1).

    Args:
        (all): see `GeometricOptimizer`.

    Source: Song, Song, Ermon 2018; :eq:`drv-naturality-geodesic` (derivations).

    Examples:
        >>> import torch
        >>> x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
        >>> opt = GeodesicNaturalGradient([x], lr=0.1)
        >>> def closure():  # f = e^x; along a geodesic e^x moves on a straight line
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.5 * (z - 2).square().sum()
        >>> loss = opt.step(closure)
        >>> round(x.exp().item(), 4)  # 1.1 + O(h^3); the plain step gives 1.1052
        1.0997
    """

    def update(self, q: LocalGeometry) -> Tensor:
        h = self.options["lr"]
        v = self.velocity(q, {})
        return h * v - 0.5 * h * h * self.solve(q, q.christoffel_on_outputs(v, v))
