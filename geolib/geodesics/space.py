"""The space of functions that a path in weight space is measured in."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from geolib.core import Metric, PullbackMetric, Realization
from geolib.core.linear_solvers import conjugate_gradient
from geolib.geodesics.batchnorm import BatchStatistics
from geolib.geodesics.checks import check_inputs
from geolib.geodesics.embedding import Embedded, embed
from geolib.geodesics.forward import derivative

LOOP_ABOVE = 20_000  # weights; below, one batched call beats a loop over networks


class Space(Protocol):
    """What a path can be measured in: a map into a Euclidean space, or a chart."""

    ridge: float
    size: int

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor: ...
    def speed2(self, points: Tensor, velocities: Tensor) -> Tensor: ...
    def acceleration(self, w: Tensor, v: Tensor) -> Tensor: ...


class FunctionSpace:
    r"""Weights compared by the function they realise on given inputs.

    .. math:: g_w(v, v) = \frac1n \sum_x |D\Phi(f(x; w))\,v|^2 + \lambda |v|^2

    The ridge is geometry and no hack: it is the pullback of :math:`\sqrt\lambda\,w`
    appended to the outputs, so that the metric is never degenerate.

    Args:
        realization: the map from weights to functions; see `geolib.core`.
        x: inputs, no labels, shape (n, ...).
        space: where outputs are compared; see `embed`.
        ridge: the weight :math:`\lambda` of motion in weight space.

    Raises:
        ValueError: no inputs, non-finite inputs, or a negative ridge.

    Source: Raghavan and Thomson 2021 (the pullback metric); ridge: own derivation.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> S = FunctionSpace(Realization(mlp([2, 3])), torch.eye(2).double())
        >>> S(S.realization.theta0[None]).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        realization: Realization,
        x: Tensor,
        space: str = "sphere",
        ridge: float = 1e-4,
    ) -> None:
        check_inputs(x)
        if not ridge >= 0:
            raise ValueError(f"ridge: expected a number >= 0, got {ridge}")
        embed(torch.zeros(1, 2), space)  # names an unknown space at once
        self.realization = realization
        self.x = x
        self.space = space
        self.ridge = ridge
        self.size = len(x)
        # outputs that depend on the other inputs of a batch must not be stored
        modules = realization.module.modules()
        self.cacheable = not any(isinstance(m, BatchStatistics) for m in modules)

    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Outputs of the networks at `points` (k, p), shape (k, n, c)."""
        x = self.x if rows is None else self.x[rows]
        if len(points) == 1 or points.shape[1] > LOOP_ABOVE:
            return torch.stack([self.realization(w, x) for w in points])
        return torch.vmap(self.realization, (0, None))(points, x)

    def embedded(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Embedded outputs, shape (k, n, c)."""
        return embed(self.logits(points, rows), self.space)

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Embedded outputs with the Euclidean norm of the metric, shape (k, n c)."""
        out = self.embedded(points, rows)
        return out.flatten(1) / math.sqrt(out.shape[1])

    def at_point(self, w: Tensor) -> Tensor:
        """Embedded outputs of one network, flat, shape (n c,)."""
        return self(w[None])[0]

    def speed2(self, points: Tensor, velocities: Tensor) -> Tensor:
        """The metric :math:`g_w(v, v)` at each point, shape (k,)."""

        def one(w: Tensor, v: Tensor) -> Tensor:
            return derivative(self.at_point, w, v).square().sum()

        if points.shape[1] > LOOP_ABOVE:
            pairs = zip(points, velocities, strict=True)
            flat = torch.stack([one(w, v) for w, v in pairs])
        else:
            flat = torch.vmap(one)(points, velocities)
        return flat + self.ridge * velocities.square().sum(1)

    def acceleration(self, w: Tensor, v: Tensor) -> Tensor:
        """Geodesic acceleration; see `map_acceleration`."""
        return map_acceleration(self.at_point, w, v, self.ridge)

    def metric(self, w: Tensor) -> Metric:
        """The metric at one point, without the ridge: `core`'s pullback metric."""
        embedded = Realization(Embedded(self.realization.module, self.space))
        return PullbackMetric(embedded, self.x).at(w)

    def on(self, x: Tensor) -> FunctionSpace:
        """The same space with other inputs."""
        return FunctionSpace(self.realization, x, self.space, self.ridge)


def function_space(module: nn.Module, x: Tensor, **options: object) -> FunctionSpace:
    """`FunctionSpace` of a module: `function_space(net, x, space="logit")`."""
    return FunctionSpace(Realization(module), x, **options)  # type: ignore[arg-type]


def second_derivative(phi, w: Tensor, v: Tensor) -> Tensor:
    r""":math:`D^2\phi_w[v, v]` by two nested forward derivatives; the cost of 3 maps.

    Examples:
        >>> second_derivative(lambda w: w**3, torch.ones(1), 2 * torch.ones(1))
        tensor([24.])
    """

    def rate(u: Tensor) -> Tensor:
        return derivative(phi, u, v)

    return derivative(rate, w, v)


def map_acceleration(
    phi, w: Tensor, v: Tensor, ridge: float = 0.0, rtol: float = 1e-12
) -> Tensor:
    r"""Acceleration of the geodesic through `w` with velocity `v`.

    .. math:: \ddot w = -(J^T J + \lambda I)^{-1} J^T D^2\phi_w[\dot w, \dot w]

    No Christoffel symbol is formed. With fewer than 200 weights the Jacobian is
    solved densely, above that by conjugate gradients.

    Raises:
        RuntimeError: conjugate gradients did not reach `rtol`.

    Source: own derivation from the first variation of the energy.

    Examples:
        >>> circle = lambda s: torch.stack([s[0].cos(), s[0].sin()])
        >>> abs(map_acceleration(circle, torch.ones(1), torch.ones(1)).item()) < 1e-6
        True
    """
    bend = second_derivative(phi, w, v)
    if w.numel() <= 200:
        J = torch.func.jacfwd(phi)(w)
        stack = torch.cat([J, ridge**0.5 * torch.eye(len(w)).to(J)])
        target = torch.cat([bend, torch.zeros_like(w)])
        return -torch.linalg.lstsq(stack, target[:, None]).solution[:, 0]
    pull = torch.func.vjp(phi, w)[1]

    def product(u: Tensor) -> Tensor:
        return pull(derivative(phi, w, u))[0] + ridge * u

    solution, residual, steps, _ = conjugate_gradient(
        product, pull(bend)[0], rtol, 4 * len(w)
    )
    if residual > 100 * rtol:
        raise RuntimeError(
            f"map_acceleration: residual {residual:.1e} after {steps} steps of "
            f"conjugate gradients, asked for {rtol:.1e}; raise the ridge"
        )
    return -solution
