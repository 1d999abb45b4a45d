"""Our own variants of the chapter's methods, that only its tables compare.

Learning in turn: a metric that carries losses, and stored inputs chosen by the metric.
Pruning: masks by the metric, labels in the metric, a walk and then labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pruners import label_loss, prune_and_finetune, train_under_masks
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Metric, PullbackMetric, Realization
from geolib.geodesics import FunctionSpace, embed, sparse_path
from geolib.geodesics.embedding import EmbeddedOutputs, drift_gradient
from geolib.geodesics.learners import (
    DarkExperienceReplay,
    InvariantPath,
    Learner,
    restrict,
)
from geolib.geodesics.magnitude_masks import cubic_sparsity
from geolib.geodesics.sparse_path import (
    Sparse,
    labelled_reference,
    metric_chooser,
)
from geolib.networks import Meter, Table, Task

# ---- learning in turn ----------------------------------------------------------------


class CarriedLoss(InvariantPath):
    r"""The metric also carries the losses, and a step that does not pay is not taken.

    .. math:: \theta = (G_{\text{mem}} + \beta H + \mu I)^{-1} \nabla F, \qquad
              F = \tfrac12 |\Phi - \Phi_{\text{stored}}|^2
              + \beta\,(L_{\text{new}} + a\,L_{\text{mem}})

    with H the Gauss-Newton matrix of the two losses. Where a softmax is saturated H
    sees no curvature and the undamped step is far too long: the damping is multiplied
    by 4 when F on the same inputs falls by less than a quarter of what the quadratic
    model promised, and the step is not taken when F grows; it returns to its floor
    later.

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
        self.carry, self.labels, self.floor = carry, labels, damping

    def start_task(self, w: Tensor, task: Task) -> int:
        self.damping = self.floor
        return super().start_task(w, task)

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
        grad, limit = G.pull(covector), self.iterations
        step = G.solve(grad, self.damping, "cg", tol=1e-6, max_iterations=limit).x
        # exact at any stage of conjugate gradients: step . (model step) = step . g
        promised = (step @ grad + self.damping * step @ step).item() / 2
        won = self.total(w, x, y, rows) - self.total(w - step, x, y, rows)
        if won < 0.25 * promised:
            self.damping *= 4
        elif won > 0.75 * promised:
            self.damping = max(self.floor, self.damping / 2)
        return w - step if won > 0 else w

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
        memory = self.memory
        owned = memory.allowed[rows]
        old = self.R(w, memory.x[rows])
        gap = self.embed(old, owned) - self.embed(memory.z[rows], owned)
        value = gap.square().sum(1).mean() / 2 + self.carry * self.loss(w, x, y)
        if self.labels:
            loss = F.cross_entropy(restrict(old, owned), memory.y[rows])
            value = value + self.carry * self.labels * loss
        return value.item()


class HerdedDER(DarkExperienceReplay):
    """Dark experience replay (DER) with herding: the metric chooses what is stored.

    Args:
        rule: see `choose_inputs`.
        candidates: how many random inputs of a task are looked at.
    """

    def __init__(self, *args, rule: str = "mean", candidates: int = 500, **rest):
        super().__init__(*args, **rest)
        self.rule, self.candidates = rule, candidates

    def pick(self, w: Tensor, task: Task) -> tuple[Tensor, int]:
        rows = self.rng.permutation(len(task.x))[: self.candidates]
        some = torch.from_numpy(rows).to(task.x.device)
        signs = torch.from_numpy(self.rng.choice([-1.0, 1.0], self.classes)).to(w)
        signs = signs * self.now

        def direction(x: Tensor) -> Tensor:
            return torch.func.grad(lambda u: self.R(u, x[None])[0] @ signs)(w)

        J = torch.vmap(direction, chunk_size=64)(task.x[some])
        return some[choose_inputs(J, self.per_task, self.rule)], len(some)


def choose_inputs(J: Tensor, count: int, rule: str) -> Tensor:
    r"""Rows of J that stand for all of them in the metric :math:`J^T J`.

    Args:
        J: one direction per input, shape (n, p).
        count: how many to choose.
        rule: `far`: the row farthest from the span of the chosen ones (a pivoted
            Cholesky factor of the Gram matrix); `mean`: the row that brings the mean of
            the chosen ones nearest to the mean of all.

    Returns:
        Distinct row numbers, shape (min(count, n),).

    Raises:
        ValueError: an unknown rule.

    Cost: :math:`n^2 p` for the Gram matrix.

    Source: `mean`: Welling 2009 (herding).

    Examples:
        >>> J = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5]])
        >>> choose_inputs(J, 2, "far").tolist()
        [0, 2]
    """
    if rule not in ("far", "mean"):
        raise ValueError(f"rule: expected 'far' or 'mean', got {rule!r}")
    K = (J @ J.T).double()
    left = K.diagonal().clone()
    chosen: list[int] = []
    toward, total = K.mean(1), torch.zeros(len(K), dtype=K.dtype, device=K.device)
    factor: list[Tensor] = []
    for k in range(1, min(count, len(K)) + 1):
        if rule == "far":
            score = left
        else:  # |mean - (total + J_i) / k|^2 up to what all candidates share
            score = 2 * toward - (2 * total + K.diagonal()) / k
        free = score.clone()
        free[chosen] = -torch.inf
        i = int(free.argmax())
        chosen.append(i)
        total = total + K[i]
        column = K[i] - sum((f * f[i] for f in factor), torch.zeros_like(left))
        factor.append(column / left[i].clamp_min(1e-300).sqrt())
        left = (left - factor[-1].square()).clamp_min(0)
    return torch.tensor(chosen, device=J.device)


LEARNER_VARIANTS: dict[str, type[Learner]] = {
    "invariant path + loss": CarriedLoss,
    "distilled logits, chosen inputs": HerdedDER,
}


# ---- pruning -------------------------------------------------------------------------


def path_by_metric(
    R: Realization, w: Tensor, data: Table, sparsity: float, **settings
) -> Sparse:
    """The invariant path, which drops the weights whose loss the metric says is least.

    Args:
        settings: of `sparse_path`.
    """
    space, meter = FunctionSpace(R, data.x), Meter()
    choose = metric_chooser(space, meter)
    found = sparse_path(space, w, sparsity, choose=choose, **settings)
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
    reference = labelled_reference(space, w, data.y, labels) if labels else None
    return sparse_path(space, w, sparsity, reference=reference, **settings)


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
    *,
    steps: int = 400,
    every: int = 10,
    **plan,
) -> Sparse:
    """Gradual pruning on labels, with masks that the metric chooses every tenth step.

    Args:
        every: steps between two choices, each of which pays for one probe.
        steps, plan: of `train_under_masks`.
    """
    meter = Meter()
    choose = metric_chooser(FunctionSpace(R, data.x), meter, 1, by_step=True)
    mask = torch.ones_like(w, dtype=torch.bool)

    def masks(now: Tensor, rows: Tensor, step: int) -> Tensor:
        nonlocal mask
        if step % every == 0 or step == steps:
            mask = choose(now, cubic_sparsity(sparsity, step, steps), rows, step)
        return mask

    loss = label_loss(data.y)
    found = train_under_masks(R, w, data.x, masks, loss, steps=steps, **plan)
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
}
