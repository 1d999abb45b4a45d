"""The baselines of sparsification, in the harness of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.function_space import FunctionSpace
from geolib.geodesics.magnitude_masks import cubic_sparsity, magnitude_mask, matrices
from geolib.geodesics.sparse_path import (
    Chooser,
    Sparse,
    metric_scores,
    outputs_in_pieces,
    penalty_path,
    sparse_path,
)
from geolib.networks.splits import Table
from geolib.networks.training import Meter, batches, cosine, minimize


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


def prune_and_finetune(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    gradual: bool = False,
    distil: bool = False,
    metric_mask: bool = False,
    flat: bool = False,
    lr: float = 3e-3,
    steps: int = 400,
    batch: int = 256,
    seed: int = 0,
    every: int = 1,
) -> Sparse:
    """Magnitude pruning, at once or gradually, with Adam on the kept weights.

    Args:
        gradual: grow the number of zeros along `cubic_sparsity`, masks re-chosen every
            `every` steps; else prune at the start.
        distil: match the dense network's outputs instead of the labels.
        metric_mask: masks by `metric_chooser` with one probe, not by magnitude.
        flat: keep the learning rate while pruning, let it fall only afterwards; else
            let it fall along a cosine from the start.

    Cost: steps * batch gradient evaluations, and steps / every * batch more with
    `metric_mask`.

    Source: Han et al. 2015 (at once); Zhu and Gupta 2017 (gradual).
    """
    prunable, meter, x = matrices(R), Meter(), data.x
    reference = outputs_in_pieces(R, w, x) if distil else None
    choose = None
    if metric_mask:
        choose = metric_chooser(FunctionSpace(R, x), meter, 1, by_step=True)
    mask = torch.ones_like(prunable)
    if not gradual:
        mask = magnitude_mask(w, prunable, sparsity)
    leaf = w.detach().clone().requires_grad_(True)
    draws = batches(len(x), batch, steps, seed, x.device)

    def loss(step: int) -> Tensor:
        nonlocal mask
        rows, number = next(draws), step + 1
        if gradual and (number % every == 0 or number == steps):
            level, now = cubic_sparsity(sparsity, number, steps), leaf.detach()
            if choose is None:
                mask = magnitude_mask(now, prunable, level)
            else:
                mask = choose(now, level, rows, number)
        put_under_mask()
        meter.add(len(rows))
        z = R(leaf * mask, x[rows])
        if reference is None:
            return F.cross_entropy(z, data.y[rows])
        return distillation(z, reference[rows])

    def put_under_mask(*_: object) -> None:
        with torch.no_grad():
            leaf.mul_(mask)

    def rate(lr: float, step: int, steps: int) -> float:
        late = max(0.0, (step + 1) / steps - 0.7) / 0.3 * steps
        return cosine(lr, late if flat else step, steps)

    minimize([leaf], loss, steps, lr, schedule=rate, after=put_under_mask)
    return Sparse(leaf.detach(), mask, meter.gradient_evaluations)


def distillation(z: Tensor, reference: Tensor) -> Tensor:
    r"""Mean divergence :math:`\mathrm{KL}(p_{\text{ref}} \| p)` of two sets of logits.

    Source: Hinton et al. 2015, section 2 (temperature 1).

    Examples:
        >>> distillation(torch.zeros(1, 2), torch.ones(1, 2)).item()
        0.0
    """
    return F.kl_div(
        torch.log_softmax(z, -1),
        torch.log_softmax(reference, -1),
        log_target=True,
        reduction="batchmean",
    )


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
    free = space.metric(w, rows, mask)
    step = free.solve(rhs, damping, "cg", tol=1e-6, max_iterations=iterations).x
    return Sparse((w + step) * mask, mask, (iterations + 2) * len(rows))


def labelled_reference(space: FunctionSpace, w: Tensor, y: Tensor, pull: float):
    """The outputs of w on the sphere, moved part of the way to those of the labels."""
    dense = space.embed(outputs_in_pieces(space.realization, w, space.x))
    corners = 2 * F.one_hot(y, dense.shape[1]).to(dense)
    return (1 - pull) * dense + pull * corners


def invariant_path(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    labels: float = 0.0,
    metric_mask: bool = False,
    **settings,
) -> Sparse:
    """The invariant path of `sparse_path`, and our variants of it.

    Args:
        labels: move the reference this part of the way to the labels.
        metric_mask: drop the weights whose loss the metric says costs least.
        settings: of `sparse_path`.
    """
    space, meter = FunctionSpace(R, data.x), Meter()
    choose = metric_chooser(space, meter) if metric_mask else None
    reference = labelled_reference(space, w, data.y, labels) if labels else None
    found = sparse_path(
        space, w, sparsity, choose=choose, reference=reference, **settings
    )
    paid = found.gradient_evaluations + meter.gradient_evaluations
    return Sparse(found.weights, found.mask, paid, found.points, found.drifts)


def path_then_labels(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    path: Mapping[str, Any],
    **settings,
) -> Sparse:
    """Walk to the sparse subspace, then train the weights that are left on labels.

    Args:
        path: settings of the walk, `invariant_path`.
        settings: of `prune_and_finetune`; the mask stays that of the walk.
    """
    seed = settings.get("seed", 0)
    walked = invariant_path(R, w, data, sparsity, seed=seed, **path)
    # the dropped weights are zero, so the smallest magnitudes are the walk's mask
    found = prune_and_finetune(R, walked.weights, data, sparsity, **settings)
    paid = walked.gradient_evaluations + found.gradient_evaluations
    return Sparse(found.weights, found.mask, paid)


def _penalty(R: Realization, w: Tensor, data: Table, sparsity: float, **k) -> Sparse:
    return penalty_path(R, w, data.x, sparsity, **k)


METHODS: dict[str, Callable[..., Sparse]] = {
    "one-shot": one_shot,
    "surgeon": optimal_brain_surgeon,
    "magnitude + labels": prune_and_finetune,
    "magnitude + distillation": partial(prune_and_finetune, distil=True),
    "gradual + labels": partial(prune_and_finetune, gradual=True),
    "gradual + distillation": partial(prune_and_finetune, gradual=True, distil=True),
    "penalty path": _penalty,
    "invariant path": invariant_path,
}
VARIANTS: dict[str, Callable[..., Sparse]] = {  # our own, against the baselines' wins
    "metric mask": lambda *a, **k: invariant_path(*a, metric_mask=True, **k),
    "labels in the metric": invariant_path,
    "metric path, then labels": path_then_labels,
    "gradual + labels, metric mask": partial(
        prune_and_finetune, gradual=True, metric_mask=True, every=10
    ),
}
