"""Our attempts to turn what the baselines win in continual learning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core.linear_solvers import Operator, conjugate_gradient
from geolib.core.realization import Linearization
from geolib.geodesics.learners import DistilledLogits, InvariantPath, Learner
from geolib.geodesics.tasks import Task, restrict


class CarriedLoss(InvariantPath):
    r"""The metric also carries the losses, and a step that does not pay is not taken.

    .. math:: \theta = (G_{\text{mem}} + \beta H + \mu I)^{-1} \nabla F, \qquad
              F = \tfrac12 |\Phi - \Phi_{\text{stored}}|^2
              + \beta\,(L_{\text{new}} + a\,L_{\text{mem}})

    with H the Gauss-Newton matrix of the two losses. Where a softmax is saturated H
    sees no curvature and the undamped step is far too long: mu is multiplied by 4 when
    F on the same inputs falls by less than a quarter of what the quadratic model
    promised, and the step is not taken when F grows; mu returns to its floor later.

    Args:
        mu: floor of the damping.
        carry: beta.
        labels: a, the weight of the labels of the stored inputs.

    Source: damping rule of Levenberg 1944 and Marquardt 1963; the step is ours.
    """

    def __init__(self, *args, mu=0.1, carry: float = 1.0, labels: float = 0.0, **rest):
        super().__init__(*args, mu=mu, **rest)
        self.carry, self.labels, self.floor = carry, labels, mu

    def begin(self, w: Tensor, task: Task) -> int:
        self.mu = self.floor
        return super().begin(w, task)

    def cost(self, batch: int) -> int:
        if not len(self.memory):
            return batch
        both = batch + min(self.replayed, len(self.memory))
        return (self.cg + 3) * both  # gradient, products, and the step's trial

    def step(self, w: Tensor, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if not len(self.memory):
            return super().step(w, x, y, progress)
        rows, memory = self.recall(), self.memory
        owned = memory.allowed[rows]  # type: ignore[index]
        metric, grad = self.protect(w, rows)
        parts = [(self.R.linearize(w, x), y, self.now, self.carry)]
        if self.labels:
            old = self.R.linearize(w, memory.x[rows])  # type: ignore[index]
            parts.append((old, memory.y[rows], owned, self.carry * self.labels))  # type: ignore[index]
        curves = [metric]
        for L, labels, allowed, weight in parts:
            curve, slope = softmax_curve(L, labels, allowed, weight)
            curves.append(curve)
            grad = grad + slope

        def product(v: Tensor) -> Tensor:
            total = self.mu * v
            for curve in curves:
                total = total + curve(v)
            return total

        theta = conjugate_gradient(product, grad, 1e-6, self.cg)[0]
        # exact at any stage of conjugate gradients: theta . (model theta) = theta . g
        promised = (theta @ grad + self.mu * theta @ theta).item() / 2
        won = self.total(w, x, y, rows) - self.total(w - theta, x, y, rows)
        if won < 0.25 * promised:
            self.mu *= 4
        elif won > 0.75 * promised:
            self.mu = max(self.floor, self.mu / 2)
        return w - theta if won > 0 else w

    @torch.no_grad()
    def total(self, w: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> float:
        """The objective F on given rows of the memory and of the new task."""
        memory = self.memory
        owned = memory.allowed[rows]  # type: ignore[index]
        old = self.R(w, memory.x[rows])  # type: ignore[index]
        gap = self.place(old, owned) - self.place(memory.z[rows], owned)  # type: ignore[index]
        value = gap.square().sum(1).mean() / 2 + self.carry * self.loss(w, x, y)
        if self.labels:
            loss = F.cross_entropy(restrict(old, owned), memory.y[rows])  # type: ignore[index]
            value = value + self.carry * self.labels * loss
        return value.item()


def softmax_curve(
    L: Linearization, y: Tensor, allowed: Tensor, weight: float
) -> tuple[Operator, Tensor]:
    """Gauss-Newton product and gradient of a weighted mean cross-entropy."""
    p = torch.softmax(restrict(L.outputs, allowed), -1)
    scale = weight / len(y)

    def curve(v: Tensor) -> Tensor:
        dz = L.jvp(v)
        return scale * L.vjp(p * (dz - (p * dz).sum(1, keepdim=True)))

    return curve, scale * L.vjp(p - F.one_hot(y, p.shape[1]).to(p))


class ChosenLogits(DistilledLogits):
    """Distilled logits whose stored inputs are chosen by the metric, not by lot.

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
        return some[choose_inputs(J, self.keep, self.rule)], len(some)


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


IDEAS: dict[str, type[Learner]] = {
    "invariant path + loss": CarriedLoss,
    "distilled logits, chosen inputs": ChosenLogits,
}
