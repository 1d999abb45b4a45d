"""The baselines of sparsification, in the harness of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.masks import cubic_level, magnitude_mask, matrices
from geolib.geodesics.sparse_path import (
    Sparse,
    metric_scores,
    penalty_path,
    repair,
    sparse_path,
)
from geolib.geodesics.train import Adam, Meter, Table, batches, cosine, gradient


def one_shot(R: Realization, w: Tensor, data: Table, level: float) -> Sparse:
    """Drop the smallest weights and do nothing else.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> from geolib.geodesics.train import table
        >>> R = Realization(mlp([64, 8, 10]))
        >>> one_shot(R, R.theta0, table("digits"), 0.5).passes
        0
    """
    keep = magnitude_mask(w, matrices(R), level)
    return Sparse(w * keep, keep, 0)


def tuned(
    R: Realization,
    w: Tensor,
    data: Table,
    level: float,
    *,
    gradual: bool = False,
    distil: bool = False,
    flat: bool = False,
    lr: float = 3e-3,
    steps: int = 400,
    batch: int = 256,
    seed: int = 0,
    every: int = 1,
    metric: bool = False,
) -> Sparse:
    """Magnitude pruning, at once or gradually, with Adam on the kept weights.

    Args:
        gradual: grow the number of zeros along `cubic_level`, masks re-chosen every
            `every` steps; else prune at the start.
        distil: match the dense network's outputs instead of the labels.
        flat: keep the learning rate while pruning, let it fall only afterwards; else
            let it fall along a cosine from the start.
        metric: what counts as small is the loss that the metric predicts for dropping
            a weight (`metric_scores`, one probe), not its magnitude.

    Cost: steps * batch passes, and steps / every * batch more with `metric`.

    Source: Han et al. 2015 (at once); Zhu and Gupta 2017 (gradual).
    """
    prunable, meter, adam = matrices(R), Meter(), Adam(w)
    reference = _outputs(R, w, data.x) if distil else None
    keep = torch.ones_like(prunable)
    if not gradual:
        keep = magnitude_mask(w, prunable, level)
    plan = batches(len(data.x), batch, steps, seed, data.x.device)
    for step, rows in enumerate(plan, start=1):
        if gradual and (step % every == 0 or step == steps):
            score = None
            if metric:
                score = metric_scores(R, w, data.x[rows], "sphere", 1, step)
                meter.add(len(rows))
            keep = magnitude_mask(w, prunable, cubic_level(level, step, steps), score)
        w = w * keep

        def loss(u: Tensor, r: Tensor = rows, k: Tensor = keep) -> Tensor:
            z = R(u * k, data.x[r])
            if reference is None:
                return F.cross_entropy(z, data.y[r])
            return distillation(z, reference[r])

        _, grad = gradient(loss, w)
        late = max(0.0, step / steps - 0.7) / 0.3 * steps
        rate = cosine(lr, late if flat else step - 1, steps)  # type: ignore[arg-type]
        w = adam.step(w, grad * keep, rate) * keep
        meter.add(len(rows))
    return Sparse(w, keep, meter.passes)


def distillation(z: Tensor, reference: Tensor) -> Tensor:
    r"""Mean divergence :math:`\mathrm{KL}(p_{\text{ref}} \| p)` of two sets of logits.

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


def surgeon(
    R: Realization,
    w: Tensor,
    data: Table,
    level: float,
    *,
    mu: float = 1e-4,
    cg: int = 100,
    batch: int = 1000,
    seed: int = 0,
) -> Sparse:
    r"""One step: prune by magnitude and solve once for the change of the others.

    .. math:: \theta_F = (J_F^T J_F + \mu I)^{-1} J_F^T J\,(w \odot (1 - m))

    Source: Hassibi and Stork 1993, with a magnitude mask and damping.
    """
    from geolib.geodesics.embedding import Embedded

    keep, meter = magnitude_mask(w, matrices(R), level), Meter()
    map_ = Realization(Embedded(R.module, "sphere"))
    rows = next(batches(len(data.x), batch, 1, seed, data.x.device))
    L = map_.linearize(w, data.x[rows])
    target = L.outputs + L.jvp(w * ~keep)
    moved = repair(map_, w, keep, data.x[rows], target, mu, cg, meter)
    return Sparse(moved * keep, keep, meter.passes)


def by_metric(
    R: Realization,
    w: Tensor,
    data: Table,
    level: float,
    *,
    labels: float = 0.0,
    metric_mask: bool = False,
    **settings,
) -> Sparse:
    """The invariant path of `sparse_path`, and our variants of it.

    Args:
        labels: move the reference this part of the way to the labels.
        metric_mask: drop the weights whose loss the metric says costs least.
    """
    choose = None
    if metric_mask:
        prunable = matrices(R)

        def choose(u: Tensor, level: float, rows: Tensor) -> Tensor:
            score = metric_scores(R, u, data.x[rows], "sphere", 4, len(rows))
            # a weight that is already zero stays the first to go
            return magnitude_mask(u, prunable, level, score)

    extra = 4 * settings.get("batch", 256) * settings.get("steps", 40)
    found = sparse_path(
        R, w, data.x, level, choose=choose, y=data.y, pull=labels, **settings
    )
    passes = found.passes + (extra if metric_mask else 0)
    return Sparse(found.weights, found.keep, passes, found.points, found.drifts)


def path_then_labels(
    R: Realization,
    w: Tensor,
    data: Table,
    level: float,
    *,
    path: Mapping[str, Any],
    **settings,
) -> Sparse:
    """Walk to the sparse subspace, then train the weights that are left on labels.

    Args:
        path: settings of the walk, `by_metric`.
        settings: those of the training, `tuned`; the mask stays that of the walk.
    """
    walked = by_metric(R, w, data, level, seed=settings.get("seed", 0), **path)
    # the dropped weights are zero, so the smallest magnitudes are the walk's mask
    found = tuned(R, walked.weights, data, level, **settings)
    return Sparse(found.weights, found.keep, walked.passes + found.passes)


def by_penalty(
    R: Realization, w: Tensor, data: Table, level: float, **settings
) -> Sparse:
    """The published form, `penalty_path`, in the harness."""
    return penalty_path(R, w, data.x, level, **settings)


@torch.no_grad()
def _outputs(R: Realization, w: Tensor, x: Tensor) -> Tensor:
    return torch.cat([R(w, part) for part in x.split(4096)])


METHODS: dict[str, Callable[..., Sparse]] = {
    "one-shot": one_shot,
    "surgeon": surgeon,
    "magnitude + labels": tuned,
    "magnitude + distillation": lambda *a, **k: tuned(*a, distil=True, **k),
    "gradual + labels": lambda *a, **k: tuned(*a, gradual=True, **k),
    "gradual + distillation": lambda *a, **k: tuned(*a, gradual=True, distil=True, **k),
    "penalty path": by_penalty,
    "invariant path": by_metric,
}
IDEAS: dict[str, Callable[..., Sparse]] = {  # our own, against the baselines' wins
    "metric mask": lambda *a, **k: by_metric(*a, metric_mask=True, **k),
    "labels in the metric": by_metric,
    "metric path, then labels": path_then_labels,
    "gradual + labels, metric mask": lambda *a, **k: tuned(
        *a, gradual=True, metric=True, every=10, **k
    ),
}
