"""The baselines of sparsification, in the harness of the path.

Each maps (network, weights, table, sparsity) to a sparse network and its compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from rivals import bhattacharyya
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics import (
    FunctionSpace,
    magnitude_mask,
    matrices,
    sparse_path,
)
from geolib.geodesics.magnitude_masks import layer_adaptive
from geolib.geodesics.sparse_path import (
    RowLoss,
    Sparse,
    Chooser,
    adaptive_mask,
    label_loss,
    trained_path,
)
from geolib.networks import Meter, Table
from geolib.networks.training import batches


def one_shot(R: Realization, w: Tensor, data: Table, sparsity: float) -> Sparse:
    """Drop the smallest weights and do nothing else.

    Examples:
        >>> from geolib.networks import mlp, table
        >>> R = Realization(mlp([64, 8, 10]))
        >>> one_shot(R, R.theta0, table("digits"), 0.5).gradient_evaluations
        0
    """
    mask = magnitude_mask(w, matrices(R), sparsity)
    return Sparse(w * mask, mask, 0)


PIECE = 4096  # inputs whose outputs are computed together


def outputs_in_pieces(R: Realization, w: Tensor, x: Tensor) -> Tensor:
    """The outputs on all inputs, a bounded number of them at a time, without a graph.

    Examples:
        >>> R = Realization(torch.nn.Linear(2, 1))
        >>> outputs_in_pieces(R, R.theta0, torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    with torch.no_grad():
        return torch.cat([R(w, part) for part in x.split(PIECE)])


def prune_and_finetune(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    gradual: bool = False,
    distil: bool = False,
    **plan,
) -> Sparse:
    """Magnitude pruning, at once or gradually, with Adam on the kept weights.

    Args:
        gradual: grow the number of zeros along `cubic_sparsity`, the smallest weights
            chosen anew at each step; else prune at the start.
        distil: match the dense network's outputs instead of the labels.
        plan: of `trained_path`.

    Cost: steps * batch gradient evaluations.

    Source: Han et al. 2015 (at once); Zhu and Gupta 2017 (gradual).
    """
    prunable = matrices(R)
    at_once = magnitude_mask(w, prunable, sparsity)

    def choose(
        now: Tensor, level: float, _rows: Tensor, _step: int, _moments: object
    ) -> Tensor:
        return magnitude_mask(now, prunable, level) if gradual else at_once

    dense = outputs_in_pieces(R, w, data.x) if distil else None
    loss = label_loss(data.y) if dense is None else distillation_loss(dense)
    plan = {"flat": False, **plan}
    return trained_path(R, data.x, w, sparsity, choose, loss, **plan)


def distillation_loss(dense: Tensor) -> RowLoss:
    """The mean divergence of outputs and the dense network's on their rows."""
    return lambda z, rows: distillation(z, dense[rows])


def distillation(z: Tensor, reference: Tensor) -> Tensor:
    r"""Mean divergence :math:`\mathrm{KL}(p_{\text{ref}} \| p)` of two sets of logits.

    Source: Hinton et al. 2015, section 2 (temperature 1).

    Examples:
        >>> distillation(torch.zeros(1, 2), torch.ones(1, 2)).item()
        0.0
    """
    old, new = torch.log_softmax(reference, -1), torch.log_softmax(z, -1)
    return F.kl_div(new, old, log_target=True, reduction="batchmean")


def gradual(
    R: Realization, w: Tensor, data: Table, sparsity: float, *, keep: str, **plan
) -> Sparse:
    """Gradual pruning on labels with one of the masks of `KEEP`, chosen at each step.

    Args:
        keep: name of the mask.
        plan: of `trained_path`.

    Cost: steps * batch gradient evaluations; the Kronecker factors are those of the
        gradient's own batch and pay one more each time that they are taken anew.
    """
    meter = Meter()
    choose = KEEP[keep](R, data, meter)
    found = trained_path(R, data.x, w, sparsity, choose, label_loss(data.y), **plan)
    paid = found.gradient_evaluations + meter.gradient_evaluations
    return replace(found, gradient_evaluations=paid)


def magnitude(R: Realization, *_: object) -> Chooser:
    """The smallest weights of all layers together."""
    prunable = matrices(R)
    return lambda w, level, *_: magnitude_mask(w, prunable, level)


def lamp(R: Realization, *_: object) -> Chooser:
    """Layer-adaptive magnitudes (LAMP): w^2 over those that are not smaller.

    Source: Lee et al. 2021, equation 4.
    """
    prunable = matrices(R)

    def choose(w: Tensor, level: float, *_: object) -> Tensor:
        return magnitude_mask(w, prunable, level, layer_adaptive(R, w.square()))

    return choose


def erk(R: Realization, *_: object) -> Chooser:
    r"""Magnitudes within each layer, densities by Erdos-Renyi-kernel (ERK).

    .. math:: d_l \propto \frac{\sum \text{sizes of the axes}}{\prod \text{sizes}},
              \qquad d_l \le 1

    Source: Evci et al. 2020, section 3.
    """
    layers = [k for k, s in enumerate(R.shapes) if len(s) >= 2]
    sizes = np.array([R.sizes[k] for k in layers], float)
    raw = np.array([sum(R.shapes[k]) for k in layers]) / sizes

    def densities(level: float) -> np.ndarray:
        full = np.zeros(len(layers), bool)
        while True:
            left = (1 - level) * sizes.sum() - sizes[full].sum()
            scale = left / (raw * sizes)[~full].sum()
            found = np.where(full, 1.0, scale * raw)
            if (found <= 1 + 1e-12).all():
                return found
            full |= found > 1

    def choose(w: Tensor, level: float, *_: object) -> Tensor:
        share = densities(level)
        kept = np.floor(share * sizes)
        # whole weights: the largest remainders bring the sum to what was asked for
        missing = int(sizes.sum() - round(level * sizes.sum()) - kept.sum())
        kept[np.argsort(kept - share * sizes)[:missing]] += 1
        parts = [torch.ones_like(p, dtype=torch.bool) for p in w.split(R.sizes)]
        for k, count in zip(layers, kept.astype(int), strict=True):
            size = w.split(R.sizes)[k].abs()
            parts[k] = torch.zeros_like(size, dtype=torch.bool)
            parts[k][torch.topk(size, int(count)).indices] = True
        return torch.cat(parts)

    return choose


def kronecker_obs(
    R: Realization, data: Table, meter: Meter, damping: float = 1e-3, every: int = 10
) -> Chooser:
    r"""Optimal brain surgeon with the Fisher matrix of each layer as a product A x B.

    .. math:: s_{ij} = \frac{w_{ij}^2}{(B^{-1})_{ii}\,(A^{-1})_{jj}}

    with A the second moments of a layer's inputs and B those of the gradients at its
    outputs, each with the part `damping` of its mean diagonal added, taken anew on the
    step's batch every tenth step.

    Source: Wang et al. 2019, equation 7 (Kron-OBS); Singh and Alistarh 2020 (the
        empirical Fisher matrix of the labels).
    """
    prunable = matrices(R)

    def inverse_diagonal(rows: Tensor) -> Tensor:
        second = rows.T @ rows / len(rows)
        mean = second.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(second)).to(second)
        return torch.linalg.inv(second + damping * mean * eye).diagonal()

    def curvature(w: Tensor, rows: Tensor) -> Tensor:
        L = R.linearize(w, data.x[rows])
        slope = torch.softmax(L.outputs, 1)
        slope = slope - F.one_hot(data.y[rows], slope.shape[1]).to(slope)
        found = R.unflatten(torch.ones_like(w))
        calls = L.linear_calls()
        for call, g in zip(calls, L.pull_to(calls, slope), strict=True):
            sides = call.cotangents(g), call.inputs()  # of a convolution, all places
            b, a = (inverse_diagonal(side.flatten(0, -2)) for side in sides)
            found[call.weight] = (1 / (b[:, None] * a)).view_as(found[call.weight])
        meter.add(len(rows))
        return R.flatten(found)

    kept = torch.ones(())

    def choose(w: Tensor, level: float, rows: Tensor, step: int, _v: object) -> Tensor:
        nonlocal kept
        if step % every == 1:
            kept = curvature(w, rows)
        return magnitude_mask(w, prunable, level, w.square() * kept)

    return choose


KEEP: dict[str, Callable[[Realization, Table, Meter], Chooser]] = {
    "magnitude": magnitude,
    "LAMP": lamp,
    "ERK": erk,
    "Kronecker OBS": kronecker_obs,
    "adaptive metric": lambda R, *_: adaptive_mask(R),
}


def optimal_brain_surgeon(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    damping: float = 1e-4,
    iterations: int = 100,
    batch: int = 1000,
    seed: int = 0,
) -> Sparse:
    r"""One step: prune by magnitude and solve once for the change of the others.

    .. math:: \theta_F = (J_F^T J_F + \mu I)^{-1} J_F^T J\,(w \odot (1 - m))

    Source: Hassibi and Stork 1993, with a magnitude mask and damping;
        :eq:`drv-geodesics-surgeon` (derivations).
    """
    mask = magnitude_mask(w, matrices(R), sparsity)
    space = FunctionSpace(R, data.x)
    rows = next(batches(len(data.x), batch, 1, seed, data.x.device))
    G = space.metric(w, rows)
    rhs = mask * (G @ (w * ~mask))
    plan = {"tol": 1e-6, "max_iterations": iterations, "free": mask}
    step = G.solve(rhs, damping, "cg", **plan).x
    return Sparse((w + step) * mask, mask, (iterations + 2) * len(rows))


def invariant_path(
    R: Realization, w: Tensor, data: Table, sparsity: float, **settings
) -> Sparse:
    """The invariant path of `sparse_path` on the table's inputs."""
    return sparse_path(FunctionSpace(R, data.x), w, sparsity, **settings)


def penalty_path(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    steps: int = 400,
    batch: int = 256,
    eta: float = 0.8,
    penalty: float = 300.0,
    seed: int = 0,
) -> Sparse:
    r"""The published form of the path: unit steps down a penalised objective.

    .. math:: u = \nabla \sum_x \mathrm{BD}(f_w, f_{w_0}) + \lambda\,(w - P_p w),
              \qquad w \leftarrow w - \eta\,u/|u|

    where P zeroes the smallest weights, chosen anew each step. It approaches the sparse
    subspace and does not reach it; the weights returned are the hard projection.

    Cost: steps * batch gradient evaluations.

    Source: public code of Raghavan et al. 2024 (`FlexibleMachineLearning`), as read.
    """
    prunable, start, x = matrices(R), w, data.x
    reference = outputs_in_pieces(R, start, x)
    for rows in batches(len(x), batch, steps, seed, x.device):
        mask = magnitude_mask(w, prunable, sparsity)
        leaf = w.detach().requires_grad_(True)
        loss = bhattacharyya(R(leaf, x[rows]), reference[rows]).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        u = grad + penalty * (w - w * mask)
        w = w - eta * u / u.norm().clamp_min(1e-30)
    mask = magnitude_mask(w, prunable, sparsity)
    paid = steps * min(batch, len(x))
    return Sparse(w * mask, mask, paid, (start, w, w * mask))


METHODS: dict[str, Callable[..., Sparse]] = {
    "one-shot": one_shot,
    "surgeon": optimal_brain_surgeon,
    "magnitude + labels": prune_and_finetune,
    "magnitude + distillation": partial(prune_and_finetune, distil=True),
    "gradual + labels": partial(prune_and_finetune, gradual=True),
    "gradual + distillation": partial(prune_and_finetune, gradual=True, distil=True),
    "gradual magnitude + labels": partial(gradual, keep="magnitude"),
    "gradual LAMP + labels": partial(gradual, keep="LAMP"),
    "gradual ERK + labels": partial(gradual, keep="ERK"),
    "gradual Kronecker OBS + labels": partial(gradual, keep="Kronecker OBS"),
    "penalty path": penalty_path,
    "invariant path": invariant_path,
}
