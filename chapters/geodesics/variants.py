"""Our own variants of the chapter's methods, that only its tables compare.

Learning in turn: a metric that carries losses, and stored inputs chosen by the metric.
Pruning: masks by the metric, labels in the metric, a walk and then labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pruners import gradual, prune_and_finetune
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Metric, PullbackMetric, Realization
from geolib.geodesics import FunctionSpace, embed, sparse_path
from geolib.geodesics.embedding import EmbeddedOutputs, drift_gradient
from geolib.geodesics.learners import (
    InvariantPath,
    Learner,
    restrict,
)
from geolib.geodesics.sparse_path import (
    MetricMask,
    Sparse,
    Target,
    kept_outputs,
    label_loss,
    trained_path,
)
from geolib.networks import Meter, Table

# ---- learning in turn ----------------------------------------------------------------


class CarriedLoss(InvariantPath):
    r"""The metric also carries the losses, and a step that does not pay is not taken.

    .. math:: \theta = (G_{\text{mem}} + \beta H + \mu I)^{-1} \nabla F, \qquad
              F = \tfrac12 |\Phi - \Phi_{\text{stored}}|^2
              + \beta\,(L_{\text{new}} + a\,L_{\text{mem}})

    with H the Gauss-Newton matrix of the two losses. Where a softmax is saturated H
    sees no curvature and the undamped step is far too long; it is tried first, as every
    step of the path.

    Args:
        damping: its floor.
        carry: :math:`\beta`.
        labels: a, the weight of the labels of the stored inputs.

    Source: damping rule of Levenberg 1944 and Marquardt 1963;
        :eq:`drv-geodesics-carried` (derivations).
    """

    def __init__(
        self, *args, damping=0.1, carry: float = 1.0, labels: float = 0.0, **rest
    ):
        super().__init__(*args, damping=damping, **rest)
        self.carry, self.labels = carry, labels

    def cost(self, batch: int) -> int:
        if not len(self.memory):
            return batch
        both = batch + min(self.replayed, len(self.memory))
        return (self.iterations + 3) * both  # gradient, products, the step's trial

    def step(self, w: Tensor, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if not len(self.memory):
            return super().step(w, x, y, progress)
        rows = self.recall()
        G, covector = self.carried_metric(w, x, y, rows)
        return self.tried(w, G, G.pull(covector), lambda u: self.total(u, x, y, rows))

    def carried_metric(
        self, w: Tensor, x: Tensor, y: Tensor, rows: Tensor
    ) -> tuple[Metric, Tensor]:
        """G_mem + beta H on stored and new inputs together, and what pulls back to dF.

        A stored output counts by its place and, as every output, by its softmax.
        """
        memory, n, m = self.memory, len(x), len(rows)
        owned = torch.cat([memory.allowed[rows], self.now.expand(n, -1)])
        counts = torch.tensor([m, n], device=w.device)
        place = torch.repeat_interleave(w.new_tensor([m**-0.5, 0]), counts)
        loss = w.new_tensor([self.labels / m, 1 / n]) * self.carry
        share = torch.repeat_interleave(loss, counts)

        def phi(z: Tensor, a: Tensor, p: Tensor, s: Tensor) -> Tensor:
            sphere = embed(restrict(z, a))
            return torch.cat([p * self.embed(z, a), s.sqrt() * sphere])

        field = PullbackMetric(
            self.R,
            torch.cat([memory.x[rows], x]),
            EmbeddedOutputs(phi, owned, place, share),
            reduction="sum",
        )
        G = field.at(w)
        z = G.outputs()
        slope = torch.softmax(restrict(z, owned), -1)
        labels = torch.cat([memory.y[rows], y])
        covector = share[:, None] * (slope - F.one_hot(labels, z.shape[1]).to(z))
        target = self.embed(memory.z[rows], owned[:m])
        back = drift_gradient(lambda u: self.embed(u, owned[:m]), z[:m], target)
        covector[:m] += back / m
        return G, covector

    @torch.no_grad()
    def total(self, w: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> float:
        """The objective F on given rows of the memory and of the new task."""
        value = self.kept(w, rows) + self.carry * self.loss(w, x, y).item()
        if self.labels:
            old = restrict(self.R(w, self.memory.x[rows]), self.memory.allowed[rows])
            loss = F.cross_entropy(old, self.memory.y[rows])
            value += self.carry * self.labels * loss.item()
        return value


LEARNER_VARIANTS: dict[str, type[Learner]] = {
    "invariant path + loss": CarriedLoss,
}


# ---- pruning -------------------------------------------------------------------------


def pulled_outputs(
    space: FunctionSpace, R: Realization, w: Tensor, labels: Tensor, pull: float
) -> Target:
    """The embedded outputs of a network at `w`, moved the part `pull` toward labels."""
    plain = kept_outputs(space, R, w)

    def target(rows: Tensor) -> Tensor:
        points = plain(rows)
        corners = 2 * F.one_hot(labels[rows], points.shape[1]).to(points)
        return (1 - pull) * points + pull * corners

    return target


def path_by_metric(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    memory: float = 0.9,
    labels: float = 0.0,
    **settings,
) -> Sparse:
    """The invariant path, which drops the weights whose loss the metric says is least.

    Args:
        memory: of `MetricMask`.
        labels: the part of the way to the labels that the outputs to keep are moved.
        settings: of `sparse_path`.
    """
    space, meter = FunctionSpace(R, data.x), Meter()
    choose = MetricMask(space, meter, memory=memory)
    target = pulled_outputs(space, R, w, data.y, labels)
    found = sparse_path(space, w, sparsity, choose=choose, target=target, **settings)
    return _paid(found, meter)


def path_to_labels(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    *,
    labels: float = 0.0,
    **settings,
) -> Sparse:
    """The invariant path, its reference moved the part `labels` of the way to them."""
    space = FunctionSpace(R, data.x)
    target = pulled_outputs(space, R, w, data.y, labels)
    return sparse_path(space, w, sparsity, target=target, **settings)


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
        path: settings of the walk; its masks are the metric's if `metric_mask`.
        settings: of `prune_and_finetune`; the mask stays that of the walk.
    """
    plan = {"seed": settings.get("seed", 0), **path}
    walk = path_by_metric if plan.pop("metric_mask", False) else path_to_labels
    walked = walk(R, w, data, sparsity, **plan)
    # the dropped weights are zero, so the smallest magnitudes are the walk's mask
    found = prune_and_finetune(R, walked.weights, data, sparsity, **settings)
    paid = walked.gradient_evaluations + found.gradient_evaluations
    return Sparse(found.weights, found.mask, paid)


def gradual_by_metric(
    R: Realization,
    w: Tensor,
    data: Table,
    sparsity: float,
    **plan,
) -> Sparse:
    """Gradual pruning on labels, with masks that the metric chooses every tenth step.

    Args:
        plan: of `trained_path`; each choice of a mask pays for one probe.
    """
    meter, mask = Meter(), torch.ones_like(w, dtype=torch.bool)
    scored = MetricMask(FunctionSpace(R, data.x), meter)

    def choose(w: Tensor, level: float, rows: Tensor, step: int, _m: object) -> Tensor:
        nonlocal mask
        if step % 10 == 0 or level == sparsity:
            mask = scored(w, level, rows, step)
        return mask

    found = trained_path(R, data.x, w, sparsity, choose, label_loss(data.y), **plan)
    return _paid(found, meter)


def _paid(found: Sparse, meter: Meter) -> Sparse:
    """The same result, with what the masks cost."""
    total = found.gradient_evaluations + meter.gradient_evaluations
    return replace(found, gradient_evaluations=total)


PRUNING_VARIANTS: dict[str, Callable[..., Sparse]] = {  # against the baselines' wins
    "metric mask": path_by_metric,
    "labels in the metric": path_to_labels,
    "metric path, then labels": path_then_labels,
    "gradual + labels, metric mask": gradual_by_metric,
    "adaptive metric + labels": partial(gradual, keep="adaptive metric"),
}
