"""The space of functions that a path in weight space is measured in."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn

from geolib.core import Metric, PullbackMetric, Realization
from geolib.core.solve_cost import ProblemSize
from geolib.core.validation import check_inputs, expect, require_matching
from geolib.networks.batch_norm import BatchStatistics
from geolib.networks.rows import Rows

from .embedding import SPACES, drift_gradient, embed, output_metric

LOOP_ABOVE = 20_000  # weights; below, one batched call beats a loop over networks
DENSE_BELOW = 200  # weights; up to here a geodesic's acceleration is solved densely


class Space(Protocol):
    """What a path can be measured in: a map into a Euclidean space, or a chart."""

    damping: float
    size: int

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor: ...
    def speed2(self, points: Tensor, velocities: Tensor) -> Tensor: ...
    def acceleration(self, w: Tensor, v: Tensor) -> Tensor: ...


class MixedMetric(Metric):
    """The metric where samples see each other, as under the statistics of a batch.

    Products go through the graph: a row of the Jacobian is not one sample's alone.
    """

    @property
    def problem_size(self) -> ProblemSize:
        """The sizes that decide how to solve: the samples count as not to be parted."""
        return replace(super().problem_size, batches=True)


class FunctionSpace:
    r"""Weights compared by the function they realise on given inputs.

    .. math:: g_w(v, v) = \frac1n \sum_x |D\Phi(f(x; w))\,v|^2 + \lambda |v|^2

    The damping is geometry and no hack: it is the pullback of :math:`\sqrt\lambda\,w`
    appended to the outputs, so that the metric is never degenerate.

    Args:
        realization: the map from weights to functions, or a module to make one of.
        x: inputs, no labels, shape (n, ...), or `Rows` that read them batch by batch.
        space: where outputs are compared: `sphere`, `logit`, `prob` or `raw`; see
            `embed`.
        damping: the weight :math:`\lambda` of motion in weight space.

    Raises:
        ValueError: no inputs, non-finite inputs, an unknown space, a space of classes
            for a module with several decisions a sample, a negative damping.

    Source: Raghavan and Thomson 2021; :eq:`drv-geodesics-pullback` (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> S = FunctionSpace(mlp([2, 3]), torch.eye(2).double())
        >>> S(S.realization.theta0[None]).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        realization: Realization | nn.Module,
        x: Tensor | Rows,
        space: Annotated[str, SPACES] = "sphere",
        damping: float = 1e-4,
    ) -> None:
        if not isinstance(x, Rows):
            check_inputs(x)
        embed(torch.zeros(1, 2), space)  # names an unknown space at once
        if isinstance(realization, nn.Module):
            realization = Realization(realization)
        self.realization = realization
        self.x = x
        self.space = space
        self.damping = damping
        self.size = len(x)
        first = x[:2]
        # outputs that depend on the other inputs of a batch must not be stored
        modules = realization.module.modules()
        self.cacheable = not any(isinstance(m, BatchStatistics) for m in modules)
        if self.cacheable:
            w = realization.theta0.to(first.device)
            w = w.to(first.dtype) if first.is_floating_point() else w
            realization.check(w, first)
            self._require_one_decision(w, first[:1])

    def _require_one_decision(self, w: Tensor, x: Tensor) -> None:
        """Refuse a softmax over all the axes of an output, as of tokens or pixels."""
        with torch.no_grad():
            z = self.realization.run(self.realization.unflatten(w), x)
        wanted = f"'raw' for several decisions a sample, outputs {tuple(z.shape[1:])}"
        expect(self.space == "raw" or z.ndim <= 2, "space", wanted, self.space)

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        """The inputs of these rows, or all of them."""
        return self.x[slice(None) if rows is None else rows]

    def logits(
        self,
        points: Annotated[Tensor, "k self.realization.p"],
        rows: Tensor | None = None,
    ) -> Tensor:
        """Outputs of the networks at `points` (k, p), shape (k, n, c).

        The rows (n,) are those of all points, or (k, n) those of each.
        """
        x = self.inputs(rows)
        like = x if x.is_floating_point() else points
        require_matching("points", points, like, "x")
        own = rows is not None and rows.ndim == 2
        if len(points) == 1 or self._loops(points):
            inputs = x if own else [x] * len(points)
            pairs = zip(points, inputs, strict=True)
            return torch.stack([self.realization(w, xs) for w, xs in pairs])
        return torch.vmap(self.realization, (0, 0 if own else None))(points, x)

    def _loops(self, points: Tensor) -> bool:
        """Whether networks are run one by one: large or recurrent ones."""
        recurrent = (
            isinstance(m, nn.RNNBase) for m in self.realization.module.modules()
        )
        return points.shape[1] > LOOP_ABOVE or any(recurrent)

    def embed(self, outputs: Annotated[Tensor, "... c"]) -> Tensor:
        """The points of the space that stand for outputs; see `embed`."""
        return embed(outputs, self.space)

    def embedded(
        self,
        points: Annotated[Tensor, "k self.realization.p"],
        rows: Tensor | None = None,
    ) -> Tensor:
        """Embedded outputs, shape (k, n, c)."""
        return self.embed(self.logits(points, rows))

    def __call__(
        self,
        points: Annotated[Tensor, "k self.realization.p"],
        rows: Tensor | None = None,
    ) -> Tensor:
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

        if self._loops(points):
            pairs = zip(points, velocities, strict=True)
            flat = torch.stack([one(w, v) for w, v in pairs])
        else:
            flat = torch.vmap(one)(points, velocities)
        return flat + self.damping * velocities.square().sum(1)

    def acceleration(self, w: Tensor, v: Tensor) -> Tensor:
        """Geodesic acceleration; see `map_acceleration`.

        Raises:
            RuntimeError: the solve of a large network did not converge.
        """
        if w.numel() <= DENSE_BELOW:
            return map_acceleration(self.at_point, w, v, self.damping)
        rate = second_derivative(self.at_point, w, v)
        G, n = self.metric(w), self.size
        z = G.outputs().requires_grad_(True)
        bend = rate.view(n, -1) / math.sqrt(n)
        covector = torch.autograd.grad(self.embed(z), z, bend)[0]
        limit = 4 * w.numel()
        found = G.solve(covector, self.damping, "cg", tol=1e-12, max_iterations=limit)
        if (left := found.residual) > 1e-10:
            raise RuntimeError(f"acceleration: residual {left:.1e}; raise the damping")
        return -found.x

    def metric(self, w: Tensor, rows: Tensor | None = None) -> Metric:
        """The metric at one point, without the damping: `core`'s pullback metric.

        Args:
            w: the point, shape (p,).
            rows: which inputs to use; None for all.
        """
        x, metric = self.inputs(rows), output_metric(self.space)
        if self.cacheable:
            return PullbackMetric(self.realization, x, metric).at(w)
        return MixedMetric.from_linearization(self.realization.linearize(w, x), metric)

    def drift_covector(self, G: Metric, target: Tensor) -> Tensor:
        """What pulls back to the gradient of half the mean squared drift, (n, c)."""
        return drift_gradient(self.embed, G.outputs(), target) / G.n

    def on(self, x: Tensor) -> FunctionSpace:
        """The same space with other inputs."""
        return FunctionSpace(self.realization, x, self.space, self.damping)


@cache
def _load_rules() -> None:
    """torch scripts these rules on first use: a quarter second, and a deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def derivative(phi: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> Tensor:
    r"""The derivative :math:`D\phi_w[v]`, at the cost of two maps.

    Examples:
        >>> derivative(lambda w: w**3, torch.ones(1), 2 * torch.ones(1))
        tensor([6.])
    """
    _load_rules()
    return torch.func.jvp(phi, (w,), (v,))[1]


def second_derivative(phi, w: Tensor, v: Tensor) -> Tensor:
    r""":math:`D^2\phi_w[v, v]` by two nested forward derivatives; the cost of 3 maps.

    Examples:
        >>> second_derivative(lambda w: w**3, torch.ones(1), 2 * torch.ones(1))
        tensor([24.])
    """
    return derivative(lambda u: derivative(phi, u, v), w, v)


def map_acceleration(phi, w: Tensor, v: Tensor, damping: float = 0.0) -> Tensor:
    r"""Acceleration of the geodesic through `w` with velocity `v`, solved densely.

    .. math:: \ddot w = -(J^T J + \lambda I)^{-1} J^T D^2\phi_w[\dot w, \dot w]

    No Christoffel symbol is formed.

    Source: :eq:`drv-geodesics-equation` (derivations).

    Examples:
        >>> circle = lambda s: torch.stack([s[0].cos(), s[0].sin()])
        >>> abs(map_acceleration(circle, torch.ones(1), torch.ones(1)).item()) < 1e-6
        True
    """
    bend = second_derivative(phi, w, v)
    J = torch.func.jacfwd(phi)(w)
    stack = torch.cat([J, damping**0.5 * torch.eye(len(w)).to(J)])
    target = torch.cat([bend, torch.zeros_like(w)])
    return -torch.linalg.lstsq(stack, target[:, None]).solution[:, 0]
