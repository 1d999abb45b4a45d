"""Geodesics shot from a point: the initial value problem."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geolib.core import integrate
from geolib.core.validation import expect

from .function_space import Space


@dataclass(frozen=True)
class ExponentialMap:
    """A geodesic that starts with a given velocity.

    Attributes:
        times: shape (k,), from 0 to 1.
        points: weights, shape (k, p).
        velocities: shape (k, p).
        drift: largest relative change of the squared speed, which a geodesic keeps.
        converged: whether `drift` is below the asked tolerance.
    """

    times: Tensor
    points: Tensor
    velocities: Tensor
    drift: float
    converged: bool

    @property
    def end(self) -> Tensor:
        """The exponential map of the velocity."""
        return self.points[-1]


def exponential_map(
    space: Space,
    a: Annotated[Tensor, "p"],
    v: Annotated[Tensor, "p"],
    *,
    steps: int = 40,
    tol: float = 1e-3,
) -> ExponentialMap:
    r"""Follow the geodesic from `a` with velocity `v` up to time 1.

    .. math:: \ddot w = -g_w^{-1}\, J_w^T\, D^2\phi_w[\dot w, \dot w]

    by the classical fourth-order Runge-Kutta rule. Each step costs four linear solves
    with the metric, so this is for surfaces and small smooth networks: a ReLU has no
    second derivative, and its geodesics bend at kinks that no rule sees.

    Args:
        space: a surface, or the functions of a network.
        a: start, shape (p,).
        v: velocity there, shape (p,).
        steps: Runge-Kutta steps.
        tol: drift of the squared speed above which the result is marked not converged.

    Raises:
        ValueError: sizes that differ, non-finite values, zero velocity, no steps.

    Cost: four accelerations a step, each a solve with the metric.

    Source: do Carmo 1992, chapter 3; :eq:`drv-geodesics-equation` (derivations).

    Examples:
        >>> from geolib.geodesics import FunctionSpace
        >>> net = torch.nn.Linear(2, 1).double()
        >>> flat = FunctionSpace(net, torch.eye(2).double(), "raw")
        >>> a, v = torch.zeros(3).double(), torch.ones(3).double()
        >>> (exponential_map(flat, a, v).end - v).norm().item() < 1e-12
        True
    """
    expect(v.any(), "v", "a velocity other than zero", v)
    times = [k / steps for k in range(steps + 1)]

    def field(_t: float, state: Tensor) -> Tensor:
        return torch.stack([state[1], space.acceleration(state[0], state[1])])

    run = integrate(field, torch.stack([a, v]), times, method="rk4", step=1 / steps)
    W, V = run.states[:, 0], run.states[:, 1]
    with torch.no_grad():
        speed2 = space.speed2(W, V)
    drift = ((speed2 - speed2[0]).abs().max() / speed2[0]).item()
    return ExponentialMap(run.times.to(a), W, V, drift, drift <= tol)
