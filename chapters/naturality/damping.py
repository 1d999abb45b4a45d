r"""What a small damping does to the natural gradient in a chart, without a run in it."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.core import integrate
from geolib.naturality import Problem, Reparameterization

LITTLE = 1e-4  # the length of a difference


def gap_per_damping(P: Problem, phi: Reparameterization, horizon: float) -> float:
    r"""How far damped flows in two charts part, over damping and way, as both vanish.

    With :math:`u = -F^{-1}g` the flow damped by :math:`\lambda M` leaves that of `u` by
    :math:`\lambda w`, :math:`\dot w = Du\,w + F^{-1}MF^{-1}g`. The identity of an affine
    chart :math:`A` is :math:`A^\top A` at home, and `M` the difference of the two.

    Args:
        P: a problem whose metric is not singular.
        phi: an affine change of coordinates.
        horizon: the time at the end.
    """
    A = torch.func.jacrev(phi.forward)(P.theta0)
    M = torch.eye(len(A), dtype=A.dtype) - A.T @ A

    def velocity(both: Tensor) -> Tensor:
        (theta, w), here = both, P.point(both[0])
        away = LITTLE * w / w.norm().clamp_min(1e-30)
        ends = (-q.solve(q.g) for q in map(P.point, (theta + away, theta - away)))
        ahead, behind = ends
        step = here.solve(here.g)
        bend = (ahead - behind) * w.norm() / (2 * LITTLE)
        return torch.stack([-step, bend + here.solve(M @ step)])

    both = torch.stack([P.theta0, torch.zeros_like(P.theta0)])
    ends = integrate(lambda _, y: velocity(y), both, [0.0, horizon], rtol=1e-8)
    theta, w = ends.final
    return float(w.norm() / (theta - P.theta0).norm())
