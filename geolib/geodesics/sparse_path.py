"""The invariant path toward a sparse subspace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.core.linear_solvers import conjugate_gradient
from geolib.geodesics.embedding import Embedded, embed
from geolib.geodesics.masks import check_level, cubic_level, magnitude_mask, matrices
from geolib.geodesics.train import Meter, batches


@dataclass(frozen=True)
class Sparse:
    """Sparse weights and how they were reached.

    Attributes:
        weights: shape (p,), exactly zero where not kept.
        keep: shape (p,).
        passes: compute paid; see `Meter`.
        points: the weights along the way, first the dense ones.
        drifts: root mean square change of the embedded outputs after each step.
    """

    weights: Tensor
    keep: Tensor
    passes: int
    points: tuple[Tensor, ...] = ()
    drifts: tuple[float, ...] = ()


Chooser = Callable[[Tensor, float, Tensor], Tensor]


def sparse_path(
    R: Realization,
    w: Tensor,
    x: Tensor,
    level: float,
    *,
    steps: int = 40,
    batch: int = 256,
    mu: float = 1e-4,
    cg: int = 9,
    space: str = "sphere",
    warm: float = 0.7,
    seed: int = 0,
    choose: Chooser | None = None,
    y: Tensor | None = None,
    pull: float = 0.0,
    trace: bool = True,
) -> Sparse:
    r"""Walk to a sparse subspace along which the function moves as little as it can.

    Each step zeroes the weights that are smallest *now* (never the ones chosen at the
    start), then moves the others to take back the drift r of the function:

    .. math:: \theta_F = -(J_F^T J_F + \mu I)^{-1} J_F^T r,
              \qquad r = \Phi(w \odot m) - \Phi_{\text{ref}}

    with the Jacobian at the network *after* zeroing. The number of zeros grows as
    `cubic_level`. With one step and the drift linearised this is Optimal Brain Surgeon.

    Args:
        x: inputs; no labels are needed.
        mu: damping: how far a step may go.
        cg: most conjugate-gradient steps of a solve; stopping early damps further.
        choose: maps (weights, level, rows) to a mask; magnitudes by default.
        y, pull: with labels, move the reference this part of the way to them.
        trace: keep the weights after each step; without it memory is that of a few
            networks, whatever the number of steps.

    Raises:
        ValueError: a level outside [0, 1).
        RuntimeError: the outputs are not finite.

    Cost: steps * (cg + 2) * batch passes.

    Source: Raghavan and Thomson 2021 (the idea of paths toward sparse subspaces); the
    step is our derivation.
    """
    check_level(level)
    map_ = Realization(Embedded(R.module, space))
    prunable, meter = matrices(R), Meter()
    with torch.no_grad():
        reference = torch.cat([map_(w, part) for part in x.split(4096)])
        if y is not None and pull > 0:
            reference = (1 - pull) * reference + pull * _label_points(reference, y)
    if choose is None:

        def choose(u: Tensor, p: float, _rows: Tensor) -> Tensor:
            return magnitude_mask(u, prunable, p)

    points, drifts = [w], []
    keep = torch.ones_like(prunable)
    plan = batches(len(x), batch, steps, seed, x.device)
    for step, rows in enumerate(plan, start=1):
        keep = choose(w, cubic_level(level, step, steps, warm), rows)
        target = reference[rows]
        w = repair(map_, w * keep, keep, x[rows], target, mu, cg, meter)
        points += [w] if trace else []
        with torch.no_grad():
            gap = map_(w, x[rows]) - target
        drifts.append(gap.square().sum(1).mean().sqrt().item())
        if not math.isfinite(drifts[-1]):
            raise RuntimeError("sparse_path: the outputs are not finite; raise mu")
    return Sparse(w, keep, meter.passes, tuple(points), tuple(drifts))


def repair(
    map_: Realization,
    w: Tensor,
    free: Tensor,
    x: Tensor,
    target: Tensor,
    mu: float,
    cg: int,
    meter: Meter,
) -> Tensor:
    """One damped Gauss-Newton step of the free weights back to the target outputs."""
    L = map_.linearize(w, x)
    n = len(x)
    free_ = free.to(w)
    rhs = free_ * L.vjp((L.outputs - target) / n)

    def product(v: Tensor) -> Tensor:
        return free_ * L.vjp(L.jvp(v) / n) + mu * v

    step = conjugate_gradient(product, rhs, 1e-6, cg)[0]
    # one product for the right-hand side and one for the final residual
    meter.add((cg + 2) * n)
    return w - free_ * step


def _label_points(like: Tensor, y: Tensor) -> Tensor:
    """The sphere points of the labels: 2 at the class, 0 elsewhere."""
    return 2 * F.one_hot(y, like.shape[1]).to(like)


def metric_scores(
    R: Realization, w: Tensor, x: Tensor, space: str, probes: int, seed: int
) -> Tensor:
    r"""What zeroing each weight alone costs: :math:`w_i^2\, G_{ii}`.

    The diagonal comes from random signs u: the mean of :math:`(J^T u)_i^2` is
    :math:`(J^T J)_{ii}`.

    Cost: `probes` backward passes over x.

    Source: LeCun et al. 1990 (saliency), with the pullback metric as the Hessian.

    Examples:
        >>> net = torch.nn.Linear(2, 1, bias=False).double()
        >>> R = Realization(net)
        >>> x = torch.tensor([[1.0, 0.0]]).double()
        >>> metric_scores(R, torch.tensor([3.0, 3.0]).double(), x, "raw", 4, 0).tolist()
        [9.0, 0.0]
    """
    L = Realization(Embedded(R.module, space)).linearize(w, x)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(w)
    for _ in range(probes):
        signs = torch.randint(2, L.outputs.shape, generator=generator) * 2 - 1
        total += L.vjp(signs.to(w)).square()
    return w.square() * total / (probes * len(x))


def bhattacharyya(z: Tensor, reference: Tensor) -> Tensor:
    r"""Divergence :math:`-\log \sum_c \sqrt{p_c q_c}` of each row of logits.

    To second order an eighth of the Fisher metric.

    Examples:
        >>> bhattacharyya(torch.zeros(1, 2), torch.zeros(1, 2)).abs().item() < 1e-6
        True
    """
    overlap = (embed(z) * embed(reference)).sum(-1) / 4
    return -torch.log(overlap)


def penalty_path(
    R: Realization,
    w: Tensor,
    x: Tensor,
    level: float,
    *,
    steps: int = 400,
    batch: int = 256,
    eta: float = 0.8,
    lam: float = 300.0,
    seed: int = 0,
) -> Sparse:
    r"""The published form of the path: unit steps down a penalised objective.

    .. math:: u = \nabla \sum_x \mathrm{BD}(f_w, f_{w_0}) + \lambda\,(w - P_p w),
              \qquad w \leftarrow w - \eta\,u/|u|

    where P zeroes the smallest weights, chosen anew each step. It approaches the sparse
    subspace and does not reach it; the weights returned are the hard projection.

    Cost: steps * batch passes.

    Source: public code of Raghavan et al. 2024 (`FlexibleMachineLearning`), as read.
    """
    prunable, meter, start = matrices(R), Meter(), w
    with torch.no_grad():
        reference = torch.cat([R(start, part) for part in x.split(4096)])
    for rows in batches(len(x), batch, steps, seed, x.device):
        keep = magnitude_mask(w, prunable, level)
        leaf = w.detach().requires_grad_(True)
        loss = bhattacharyya(R(leaf, x[rows]), reference[rows]).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        u = grad + lam * (w - w * keep)
        w = w - eta * u / u.norm().clamp_min(1e-30)
        meter.add(len(rows))
    keep = magnitude_mask(w, prunable, level)
    return Sparse(w * keep, keep, meter.passes, (start, w, w * keep))
