"""The invariant path toward a sparse subspace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.networks.training import Meter, batches

from .function_space import FunctionSpace
from .magnitude_masks import cubic_sparsity, layer_adaptive, magnitude_mask, matrices

PIECE = 4096  # inputs whose outputs are computed together


@dataclass(frozen=True)
class Sparse:
    """Sparse weights and how they were reached.

    Attributes:
        weights: shape (p,), exactly zero where not kept.
        mask: which weights are kept, shape (p,).
        gradient_evaluations: compute paid; see `Meter`.
        points: the weights along the way, first the dense ones.
        drifts: root mean square change of the embedded outputs after each step.
    """

    weights: Tensor
    mask: Tensor
    gradient_evaluations: int
    points: tuple[Tensor, ...] = ()
    drifts: tuple[float, ...] = ()


# maps (weights, sparsity, rows of the step, number of the step) to a mask
Chooser = Callable[[Tensor, float, Tensor, int], Tensor]
# maps rows to the embedded outputs that they should have, shape (m, c)
Target = Callable[[Tensor], Tensor]


@differentiation()
def sparse_path(
    space: FunctionSpace,
    w: Annotated[Tensor, "space.realization.p"],
    sparsity: float,
    *,
    steps: int = 40,
    batch: int = 256,
    damping: float = 1e-4,
    iterations: int = 9,
    seed: int = 0,
    choose: Chooser | None = None,
    target: Target | None = None,
    trace: bool = True,
    callback: Callable[[int, float], object] | None = None,
) -> Sparse:
    r"""Walk to a sparse subspace along which the function moves as little as it can.

    Each step zeroes the weights that are smallest *now* (never the ones chosen at the
    start), then moves the others to take back the drift r of the function:

    .. math:: \theta_F = -(J_F^T J_F + \mu I)^{-1} J_F^T r,
              \qquad r = \Phi(w \odot m) - \Phi_{\text{ref}}

    with the Jacobian at the network *after* zeroing. The number of zeros grows as
    `cubic_sparsity`. With one step and the drift linearised this is Optimal Brain
    Surgeon. A step is tried before it is taken: it is halved while the drift on its
    batch would grow, and :math:`\mu` follows the ratio of what was won to what the
    linearisation promised; see `next_damping`.

    Args:
        space: the function that is kept: network, inputs (no labels) and output space.
        w: the dense weights, shape (p,).
        sparsity: share of zeros in [0, 1) among the entries of matrices and filters.
        steps: number of cuts and corrections.
        batch: inputs of a step.
        damping: the least :math:`\mu`; less lets a step go farther.
        iterations: most conjugate-gradient steps of a solve; stopping early damps
            further.
        seed: of the order of the inputs.
        choose: maps (weights, sparsity, rows, step) to a mask; the largest magnitudes
            by default.
        target: maps rows to the embedded outputs to keep; by default those of `w`, as
            the network gives them for each batch.
        trace: keep the weights after each step; without it memory is that of a few
            networks and one batch, whatever the number of steps.
        callback: called with the number of a step and the drift on its batch.

    Raises:
        ValueError: a sparsity outside [0, 1).
        RuntimeError: the outputs are not finite.

    Cost: steps * (iterations + 3) * batch gradient evaluations, and one more on a
        batch for each time that a step is halved.

    Source: Raghavan and Thomson 2021 (the idea of paths toward sparse subspaces);
        :eq:`drv-geodesics-correction` (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> S = FunctionSpace(mlp([2, 8, 3]), torch.eye(2).double())
        >>> found = sparse_path(S, S.realization.theta0, 0.5, steps=4)
        >>> int((found.weights == 0).sum()) >= 20, found.drifts[-1] < 1e-2
        (True, True)
    """
    R, meter = space.realization, Meter()
    prunable = matrices(R)
    target = kept_outputs(space, R, w) if target is None else target
    points, drifts, floor = [w], [], damping
    mask = torch.ones_like(prunable)
    plan = batches(space.size, batch, steps, seed, space.x.device)
    for step, rows in enumerate(plan, start=1):
        level = cubic_sparsity(sparsity, step, steps)
        if choose is None:
            mask = magnitude_mask(w, prunable, level)
        else:
            mask = choose(w, level, rows, step)
        taken = tried_step(
            space, w * mask, mask, rows, target(rows), damping, iterations
        )
        w, damping = taken.weights, next_damping(damping, floor, taken.ratio)
        meter.add((iterations + 2 + taken.tries) * len(rows))
        points += [w] if trace else []
        drifts.append(taken.drift)
        if not math.isfinite(taken.drift):
            raise RuntimeError("sparse_path: the outputs are not finite; raise damping")
        if callback is not None:
            callback(step, taken.drift)
    return Sparse(w, mask, meter.gradient_evaluations, tuple(points), tuple(drifts))


@dataclass(frozen=True)
class Step:
    """A step that was tried: where it led, and what it won of what was promised."""

    weights: Tensor
    drift: float
    ratio: float
    tries: int


HALVINGS = 4  # a step that still loses after these is not taken


def tried_step(
    space: FunctionSpace,
    w: Tensor,
    free: Tensor,
    rows: Tensor,
    target: Tensor,
    damping: float,
    iterations: int,
) -> Step:
    r"""One damped Gauss-Newton step of the free weights back to the target outputs.

    It is tried on its own rows and halved while the drift would grow. Its `ratio` is
    that of the whole step: the fall of half the mean squared drift over the fall that
    the linearisation promises, :math:`\frac12(\theta\cdot g + \mu|\theta|^2)`, which
    holds at any stage of conjugate gradients.

    Cost: iterations + 2 gradient evaluations on the rows (the products, the right-hand
    side and the final residual) and one for each trial.

    Source: :eq:`drv-geodesics-correction` (derivations); Marquardt 1963.
    """
    G = space.metric(w, rows)
    slope = free * G.pull(space.drift_covector(G, target))
    plan = {"tol": 1e-6, "max_iterations": iterations, "free": free}
    theta = G.solve(slope, damping, "cg", **plan).x  # type: ignore[arg-type]
    promised = (theta @ slope + damping * theta @ theta).item() / 2

    def value(u: Tensor) -> float:
        with torch.no_grad():
            gap = space.embedded(u[None], rows)[0] - target
        return gap.square().sum(1).mean().item() / 2

    before = (space.embed(G.outputs()) - target).square().sum(1).mean().item() / 2
    after = value(w - theta)
    ratio = (before - after) / promised if promised > 0 else 1.0
    for tries in range(1, HALVINGS + 2):
        if after <= before or not math.isfinite(before):
            return Step(w - theta, math.sqrt(2 * after), ratio, tries)
        if tries <= HALVINGS:
            theta = theta / 2
            after = value(w - theta)
    return Step(w, math.sqrt(2 * before), ratio, tries)


def next_damping(damping: float, floor: float, ratio: float) -> float:
    """The damping after a step that won `ratio` of what its model promised.

    Source: Marquardt 1963, with the thresholds a quarter and three quarters.

    Examples:
        >>> [next_damping(1.0, 0.1, r) for r in (-2.0, 0.5, 0.9)]
        [4.0, 1.0, 0.5]
    """
    if not ratio >= 0.25:
        return 4 * damping
    return max(floor, damping / 2) if ratio > 0.75 else damping


def kept_outputs(
    space: FunctionSpace,
    dense: Realization,
    w: Tensor,
    labels: Tensor | None = None,
    pull: float = 0.0,
) -> Target:
    """The embedded outputs of a network at `w`, moved the part `pull` toward labels."""

    def target(rows: Tensor) -> Tensor:
        with torch.no_grad():
            points = space.embed(dense(w, space.inputs(rows)))
        if labels is None:
            return points
        corners = 2 * F.one_hot(labels[rows], points.shape[1]).to(points)
        return (1 - pull) * points + pull * corners

    return target


def metric_diagonal(
    space: FunctionSpace, w: Tensor, rows: Tensor, probes: int, seed: int
) -> Tensor:
    """An estimate of the diagonal of the metric from random signs on the outputs.

    Cost: `probes` gradient evaluations on the rows.
    """
    x = space.inputs(rows)
    L = space.realization.linearize(w, x)
    z = L.outputs.detach().requires_grad_(True)
    with torch.enable_grad():
        points = space.embed(z)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(w)
    for _ in range(probes):
        signs = torch.randint(2, points.shape, generator=generator) * 2 - 1
        (u,) = torch.autograd.grad(points, z, signs.to(w), retain_graph=True)
        total += L.vjp(u).square()
    return total / (probes * len(x))


class MetricMask:
    r"""Keep the weights whose loss costs most in the metric, averaged over the steps.

    .. math:: s_i = w_i^2\,v_i, \qquad v \leftarrow \beta v + (1-\beta)\,(J^T u)^2

    with random signs u on the embedded outputs of each batch: the mean of
    :math:`(J^T u)_i^2` is :math:`(J^T J)_{ii}`.

    Args:
        space: its metric.
        meter: pays for the probes.
        probes: random signs of each step.
        memory: :math:`\beta`; 0 looks at the batch of the step alone.
        relative: compare scores after `layer_adaptive`, else as they are.

    Source: LeCun et al. 1990 (saliency); :eq:`drv-geodesics-diagonal` (derivations).
    """

    def __init__(
        self,
        space: FunctionSpace,
        meter: Meter,
        probes: int = 1,
        memory: float = 0.9,
        relative: bool = True,
    ) -> None:
        self.space, self.meter, self.probes = space, meter, probes
        self.memory, self.relative = memory, relative
        self.prunable = matrices(space.realization)
        self.mean: Tensor | None = None

    def __call__(self, w: Tensor, sparsity: float, rows: Tensor, step: int) -> Tensor:
        now = metric_diagonal(self.space, w, rows, self.probes, step)
        self.meter.add(self.probes * len(rows))
        old = now if self.mean is None else self.mean
        self.mean = self.memory * old + (1 - self.memory) * now
        score = w.square() * self.mean
        if self.relative:
            score = layer_adaptive(self.space.realization, score)
        # a weight that is already zero stays the first to go
        return magnitude_mask(w, self.prunable, sparsity, score)
