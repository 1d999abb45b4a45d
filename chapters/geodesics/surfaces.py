"""Surfaces whose geodesics are known: the ground truth of the solvers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolib.geodesics.function_space import derivative, map_acceleration


class Surface:
    r"""A surface given by its map into space; `damping` is zero.

    Args:
        phi: maps coordinates (..., d) to points (..., D); must batch.

    Examples:
        >>> S = sphere()
        >>> round(S(torch.tensor([[0.3, 1.0]]).double()).norm().item(), 12)
        1.0
    """

    damping = 0.0
    size = 1

    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        self.phi = phi

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.phi(points)

    def speed2(self, points: Tensor, velocities: Tensor) -> Tensor:
        return derivative(self.phi, points, velocities).square().sum(-1)

    def acceleration(self, w: Tensor, v: Tensor) -> Tensor:
        return map_acceleration(self.phi, w, v)


class Chart:
    r"""A surface given by its metric tensor alone, with no map into space.

    The geodesic equation is the one with Christoffel symbols, here by derivatives:

    .. math:: \ddot w = -g^{-1}\big(\partial_v g\,v
              - \tfrac12 \nabla (v^T g\,v)\big)

    Args:
        metric: maps coordinates (..., d) to matrices (..., d, d); must batch.

    Source: do Carmo 1992, chapter 3.

    Examples:
        >>> H = half_plane()
        >>> H.speed2(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.2500])
    """

    damping = 0.0
    size = 1

    def __init__(self, metric: Callable[[Tensor], Tensor]) -> None:
        self.metric = metric

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        raise ValueError("space: a chart has no map; use optimizer='lbfgs'")

    def speed2(self, points: Tensor, velocities: Tensor) -> Tensor:
        g = self.metric(points)
        return torch.einsum("...i,...ij,...j->...", velocities, g, velocities)

    def acceleration(self, w: Tensor, v: Tensor) -> Tensor:
        change = derivative(self.metric, w, v) @ v
        slope = torch.func.grad(lambda u: v @ self.metric(u) @ v)(w)
        return -torch.linalg.solve(self.metric(w), change - slope / 2)


def sphere(radius: float = 1.0) -> Surface:
    """The sphere in longitude and latitude; geodesics are great circles."""

    def phi(w: Tensor) -> Tensor:
        lon, lat = w[..., 0], w[..., 1]
        parts = [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
        return radius * torch.stack(parts, -1)

    return Surface(phi)


def torus(ring: float = 2.0, tube: float = 1.0) -> Surface:
    """The torus; along a geodesic Clairaut's (ring + tube cos v)^2 u' is constant."""

    def phi(w: Tensor) -> Tensor:
        u, v = w[..., 0], w[..., 1]
        rho = ring + tube * v.cos()
        return torch.stack([rho * u.cos(), rho * u.sin(), tube * v.sin()], -1)

    return Surface(phi)


def cylinder(radius: float = 1.0) -> Surface:
    """The cylinder: flat, so its geodesics are straight in these coordinates."""

    def phi(w: Tensor) -> Tensor:
        u = w[..., 0] / radius
        return torch.stack([radius * u.cos(), radius * u.sin(), w[..., 1]], -1)

    return Surface(phi)


def half_plane(scale: float = 1.0) -> Chart:
    r"""The hyperbolic plane :math:`(dx^2 + s\,dy^2)/y^2`; `scale` is s.

    With s = 1 geodesics are half circles centred on the axis. With s = 2 it is the
    Fisher metric of the normal distributions in (mean, standard deviation).
    """

    def metric(w: Tensor) -> Tensor:
        y2 = w[..., 1].square()
        zero = torch.zeros_like(y2)
        rows = [torch.stack([1 / y2, zero], -1), torch.stack([zero, scale / y2], -1)]
        return torch.stack(rows, -2)

    return Chart(metric)


def gaussians() -> Chart:
    r"""Normal distributions (mean, standard deviation) with their Fisher metric.

    Source: Amari and Nagaoka 2000, section 2.2.
    """
    return half_plane(2.0)


def half_plane_distance(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    r"""Closed form of the distance in `half_plane`.

    .. math:: \sqrt s\;\mathrm{arcosh}\Big(1 + \frac{(x_a-x_b)^2/s + (y_a-y_b)^2}
              {2\,y_a y_b}\Big)

    Examples:
        >>> up = half_plane_distance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> round(up.item(), 4)
        0.6931
    """
    gap = (a[0] - b[0]).square() / scale + (a[1] - b[1]).square()
    return scale**0.5 * torch.arccosh(1 + gap / (2 * a[1] * b[1]))
