"""The invariant path toward a sparse subspace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.embedding import embed
from geolib.geodesics.function_space import FunctionSpace
from geolib.geodesics.magnitude_masks import (
    cubic_sparsity,
    magnitude_mask,
    matrices,
)
from geolib.networks.training import Meter, batches

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


def outputs_in_pieces(R: Realization, w: Tensor, x: Tensor) -> Tensor:
    """The outputs on all inputs, a bounded number of them at a time, without a graph.

    Examples:
        >>> R = Realization(torch.nn.Linear(2, 1))
        >>> outputs_in_pieces(R, R.theta0, torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    with torch.no_grad():
        return torch.cat([R(w, part) for part in x.split(PIECE)])


def sparse_path(
    space: FunctionSpace,
    w: Tensor,
    sparsity: float,
    *,
    steps: int = 40,
    batch: int = 256,
    damping: float = 1e-4,
    iterations: int = 9,
    seed: int = 0,
    choose: Chooser | None = None,
    reference: Tensor | None = None,
    trace: bool = True,
) -> Sparse:
    r"""Walk to a sparse subspace along which the function moves as little as it can.

    Each step zeroes the weights that are smallest *now* (never the ones chosen at the
    start), then moves the others to take back the drift r of the function:

    .. math:: \theta_F = -(J_F^T J_F + \mu I)^{-1} J_F^T r,
              \qquad r = \Phi(w \odot m) - \Phi_{\text{ref}}

    with the Jacobian at the network *after* zeroing. The number of zeros grows as
    `cubic_sparsity`. With one step and the drift linearised this is Optimal Brain
    Surgeon.

    Args:
        space: the function that is kept: network, inputs (no labels) and output space.
        w: the dense weights, shape (p,).
        sparsity: share of zeros in [0, 1) among the entries of matrices and filters.
        steps: number of cuts and corrections.
        batch: inputs of a step.
        damping: :math:`\mu`; less lets a step go farther.
        iterations: most conjugate-gradient steps of a solve; stopping early damps
            further.
        seed: of the order of the inputs.
        choose: maps (weights, sparsity, rows, step) to a mask; the largest magnitudes
            by default.
        reference: embedded outputs to keep, shape (n, c); those of `w` by default.
        trace: keep the weights after each step; without it memory is that of a few
            networks, whatever the number of steps.

    Raises:
        ValueError: a sparsity outside [0, 1).
        RuntimeError: the outputs are not finite.

    Cost: steps * (iterations + 2) * batch gradient evaluations.

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
    if reference is None:
        reference = space.embed(outputs_in_pieces(R, w, space.x))
    points, drifts = [w], []
    mask = torch.ones_like(prunable)
    plan = batches(space.size, batch, steps, seed, space.x.device)
    for step, rows in enumerate(plan, start=1):
        level = cubic_sparsity(sparsity, step, steps)
        if choose is None:
            mask = magnitude_mask(w, prunable, level)
        else:
            mask = choose(w, level, rows, step)
        target = reference[rows]
        w = gauss_newton_correction(
            space, w * mask, mask, rows, target, damping, iterations
        )
        meter.add((iterations + 2) * len(rows))
        points += [w] if trace else []
        with torch.no_grad():
            gap = space.embedded(w[None], rows)[0] - target
        drifts.append(gap.square().sum(1).mean().sqrt().item())
        if not math.isfinite(drifts[-1]):
            raise RuntimeError("sparse_path: the outputs are not finite; raise damping")
    return Sparse(w, mask, meter.gradient_evaluations, tuple(points), tuple(drifts))


def gauss_newton_correction(
    space: FunctionSpace,
    w: Tensor,
    free: Tensor,
    rows: Tensor,
    target: Tensor,
    damping: float,
    iterations: int,
) -> Tensor:
    """One damped Gauss-Newton step of the free weights back to the target outputs.

    Cost: iterations + 2 gradient evaluations on the rows: the products, the
    right-hand side and the final residual.

    Source: :eq:`drv-geodesics-correction` (derivations).
    """
    G = space.metric(w, rows, free)
    covector = space.drift_covector(G, target)
    step = G.solve(covector, damping, "cg", tol=1e-6, max_iterations=iterations).x
    return w - step


def metric_scores(
    space: FunctionSpace, w: Tensor, rows: Tensor | None, probes: int, seed: int
) -> Tensor:
    r"""What zeroing each weight alone costs: :math:`w_i^2\, G_{ii}`.

    The diagonal comes from random signs u on the embedded outputs: the mean of
    :math:`(J^T u)_i^2` is :math:`(J^T J)_{ii}`.

    Cost: `probes` gradient evaluations on the rows.

    Source: LeCun et al. 1990 (saliency); :eq:`drv-geodesics-diagonal` (derivations).

    Examples:
        >>> net = torch.nn.Linear(2, 1, bias=False).double()
        >>> S = FunctionSpace(net, torch.tensor([[1.0, 0.0]]).double(), "raw")
        >>> metric_scores(S, torch.tensor([3.0, 3.0]).double(), None, 4, 0).tolist()
        [9.0, 0.0]
    """
    x = space.x if rows is None else space.x[rows]
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
    return w.square() * total / (probes * len(x))


def bhattacharyya(z: Tensor, reference: Tensor) -> Tensor:
    r"""The divergence :math:`-\log \sum_c \sqrt{p_c q_c}` of each row of logits.

    To second order it is an eighth of the Fisher metric.

    Args:
        z, reference: logits, shape (n, c).

    Source: Bhattacharyya 1943; :eq:`drv-geodesics-bhattacharyya` (derivations).

    Examples:
        >>> bhattacharyya(torch.zeros(1, 2), torch.zeros(1, 2)).abs().item() < 1e-6
        True
    """
    overlap = (embed(z) * embed(reference)).sum(-1) / 4
    return -torch.log(overlap)


def metric_chooser(
    space: FunctionSpace, meter: Meter, probes: int = 4, by_step: bool = False
) -> Chooser:
    """Masks of the weights whose loss the metric says costs most; see `metric_scores`.

    Args:
        space: its metric.
        meter: pays for the probes.
        probes: random signs of a diagonal.
        by_step: new signs at each step; else the same ones for rows of one number.
    """
    prunable = matrices(space.realization)

    def choose(w: Tensor, sparsity: float, rows: Tensor, step: int) -> Tensor:
        seed = step if by_step else len(rows)
        score = metric_scores(space, w, rows, probes, seed)
        meter.add(probes * len(rows))
        # a weight that is already zero stays the first to go
        return magnitude_mask(w, prunable, sparsity, score)

    return choose


def labelled_reference(space: FunctionSpace, w: Tensor, y: Tensor, pull: float):
    """The outputs of w on the sphere, moved part of the way to those of the labels."""
    dense = space.embed(outputs_in_pieces(space.realization, w, space.x))
    corners = 2 * F.one_hot(y, dense.shape[1]).to(dense)
    return (1 - pull) * dense + pull * corners
