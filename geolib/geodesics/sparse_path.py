"""The invariant path toward a sparse subspace."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Metric, Realization
from geolib.core.linearization import differentiation
from geolib.networks.rows import Rows
from geolib.networks.training import Meter, batches, cosine, minimize

from .function_space import FunctionSpace
from .magnitude_masks import (
    WARM,
    cubic_sparsity,
    layer_adaptive,
    magnitude_mask,
    matrices,
)


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


# maps (weights, sparsity, rows of the step, number of the step) to a mask; in training
# also Adam's second moments of the gradient, None in the first step
Chooser = Callable[..., Tensor]
# maps rows to the embedded outputs that they should have, shape (m, c)
Target = Callable[[Tensor], Tensor]


@differentiation()
def sparse_path(
    space: FunctionSpace,
    w: Annotated[Tensor, "real space.realization.p"],
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
    if choose is None:
        choose = lambda w, level, *_: magnitude_mask(w, prunable, level)  # noqa: E731
    target = kept_outputs(space, R, w) if target is None else target
    points, drifts, floor = [w], [], damping
    mask = torch.ones_like(prunable)
    plan = batches(space.size, batch, steps, seed, space.x.device)
    for step, rows in enumerate(plan, start=1):
        mask = choose(w, cubic_sparsity(sparsity, step, steps), rows, step)
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

    Cost: at most iterations + 2 gradient evaluations on the rows (the products, the
    right-hand side and, where the solve ended well, its residual), one for each trial.

    Source: :eq:`drv-geodesics-correction` (derivations); Marquardt 1963.
    """
    G = space.metric(w, rows)
    slope = free * G.pull(space.drift_covector(G, target))
    theta, promised = damped_step(G, slope, damping, iterations, free)

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


def damped_step(
    G: Metric, slope: Tensor, damping: float, limit: int, free: Tensor | None = None
) -> tuple[Tensor, float]:
    """The damped step against a slope, and what its quadratic model promises to win.

    That holds at any stage of conjugate gradients: step . (model step) = step . slope.
    """
    plan = {"tol": 1e-6, "max_iterations": limit, "free": free}
    step = G.solve(slope, damping, "cg", **plan).x.to(slope)  # type: ignore[arg-type]
    return step, (step @ slope + damping * step @ step).item() / 2


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


def kept_outputs(space: FunctionSpace, dense: Realization, w: Tensor) -> Target:
    """The embedded outputs of a network at `w`."""

    @torch.no_grad()
    def target(rows: Tensor) -> Tensor:
        return space.embed(dense(w, space.inputs(rows)))

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
        meter: pays for the probe of each step.
        memory: :math:`\beta`; 0 looks at the batch of the step alone.

    Source: LeCun et al. 1990 (saliency); :eq:`drv-geodesics-diagonal` (derivations).
    """

    def __init__(self, space: FunctionSpace, meter: Meter, memory: float = 0.9) -> None:
        self.space, self.meter, self.memory = space, meter, memory
        self.prunable = matrices(space.realization)
        self.mean: Tensor | None = None

    def __call__(
        self, w: Tensor, sparsity: float, rows: Tensor, step: int, *_: object
    ) -> Tensor:
        now = metric_diagonal(self.space, w, rows, 1, step)
        self.meter.add(len(rows))
        old = now if self.mean is None else self.mean
        self.mean = self.memory * old + (1 - self.memory) * now
        score = layer_adaptive(self.space.realization, w.square() * self.mean)
        return magnitude_mask(w, self.prunable, sparsity, score)


# maps (outputs, rows of the step) to a loss
RowLoss = Callable[[Tensor, Tensor], Tensor]


def label_loss(y: Tensor) -> RowLoss:
    """The mean cross-entropy of outputs and the labels of their rows."""
    return lambda z, rows: F.cross_entropy(z, y[rows])


@differentiation()
def trained_path(
    R: Realization,
    x: Tensor | Rows,
    w: Tensor,
    sparsity: float,
    choose: Chooser,
    loss: RowLoss,
    *,
    lr: float = 3e-3,
    steps: int = 400,
    batch: int = 256,
    seed: int = 0,
    flat: bool = True,
    callback: Callable[[int, float], object] | None = None,
) -> Sparse:
    """Train on a loss while weights are dropped one by one: the path with labels.

    Args:
        R, x, w: the network, its inputs and its dense weights.
        sparsity: share of zeros in the end; on the way it grows as `cubic_sparsity`.
        choose: maps (weights, sparsity, rows, step, second moments) to a mask.
        loss: maps outputs and the numbers of their rows to a loss.
        lr, steps, batch, seed: as in `geolib.networks.train`.
        flat: keep the learning rate while weights are dropped, and let it fall only
            afterwards; else let it fall along a cosine from the start.
        callback: called with the number of a step and its loss.

    Cost: steps * batch gradient evaluations.

    Source: Zhu and Gupta 2017 (the schedule).
    """
    leaf = w.detach().clone().requires_grad_(True)
    draws = batches(len(x), batch, steps, seed, x.device)
    mask = torch.ones_like(w, dtype=torch.bool)
    adam = torch.optim.Adam([leaf], lr=lr)

    def under_mask(step: int, value: Tensor | None = None) -> None:
        with torch.no_grad():
            leaf.mul_(mask)
        if callback is not None and value is not None:
            callback(step + 1, value.item())

    def step_loss(step: int) -> Tensor:
        nonlocal mask
        rows = next(draws)
        if step <= WARM * steps:  # anew at each step: every tenth costs a point at 99 %
            moments = adam.state[leaf].get("exp_avg_sq")
            level = cubic_sparsity(sparsity, step + 1, steps)
            mask = choose(leaf.detach(), level, rows, step + 1, moments)
            under_mask(step)
        return loss(R(leaf * mask, x[rows]), rows)

    def rate(lr: float, step: int, steps: int) -> float:
        late = max(0.0, (step + 1) / steps - WARM) / (1 - WARM) * steps
        return cosine(lr, late if flat else step, steps)

    minimize(
        [leaf], step_loss, steps, lr, schedule=rate, optimizer=adam, after=under_mask
    )
    return Sparse(leaf.detach(), mask, steps * min(batch, len(x)))


def adaptive_mask(R: Realization) -> Chooser:
    r"""Keep the weights that cost most in the metric that Adam's steps are steepest in.

    .. math:: s_i = w_i^2 \sqrt{v_i}, \qquad v \leftarrow \beta v + (1-\beta)\,g^2

    Adam moves along :math:`-g/\sqrt v`, the steepest descent of the metric with the
    diagonal :math:`\sqrt v`. It costs nothing: v is there. Layers compare after
    `layer_adaptive`.
    """
    prunable = matrices(R)

    def choose(w: Tensor, level: float, _rows, _step, v: Tensor | None) -> Tensor:
        score = w.square() if v is None else w.square() * v.sqrt()
        return magnitude_mask(w, prunable, level, layer_adaptive(R, score))

    return choose
