"""Rivals of the path in learning one task after another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import OutputMetric, PullbackMetric
from geolib.core.output_metrics import LocalMetric, RootMetric
from geolib.geodesics import embed
from geolib.geodesics.learners import (
    DarkExperienceReplay,
    Learner,
    Replay,
    restrict,
)
from geolib.networks import Task


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


class Joint(Learner):
    """All tasks so far together: what could be had if nothing had to be thrown away."""

    def start_task(self, w: Tensor, task: Task) -> int:
        super().start_task(w, task)
        tasks = [*self.finished, task]
        self.x = torch.cat([t.x for t in tasks])
        self.y = torch.cat([t.y for t in tasks])
        if self.scenario == "task":
            owner = torch.cat([self.allowed(t).expand(len(t.x), -1) for t in tasks])
            self.by_class = torch.zeros(self.classes, self.classes, dtype=torch.bool)
            self.by_class = self.by_class.to(self.x.device)
            self.by_class[self.y] = owner
        return 0

    def new_loss(self, z: Tensor, y: Tensor) -> Tensor:
        if self.scenario == "task":
            return F.cross_entropy(restrict(z, self.by_class[y]), y)
        return F.cross_entropy(z, y)


class Outer(OutputMetric):
    """The metric u u^T for a given u of each sample: that of one gradient a sample."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        return RootMetric(z, self.u[samples, :, None])


class EWC(Learner):
    r"""Elastic weight consolidation (EWC): a spring on each weight, as stiff as its Fisher.

    .. math:: L_{\text{new}} + \tfrac{s}{2} \sum_{\text{tasks}}
              \sum_i F_i\,(w_i - w^*_i)^2

    Source: Kirkpatrick et al. 2017, equation 3.
    """

    samples = 200

    def __init__(self, *args, **rest) -> None:
        super().__init__(*args, **rest)
        self.springs: list[tuple[Tensor, Tensor]] = []

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        total = super().loss(w, x, y)
        for fisher, old in self.springs:
            total = total + self.strength / 2 * (fisher * (w - old).square()).sum()
        return total

    def finish_cost(self, task: Task) -> int:
        return min(self.samples, len(task.x))

    def finish_task(self, w: Tensor, task: Task) -> None:
        super().finish_task(w, task)
        rows = self.rng.permutation(len(task.x))[: self.samples]
        pick = torch.from_numpy(rows).to(task.x.device)
        with torch.no_grad():
            p = torch.softmax(restrict(self.R(w, task.x[pick]), self.now), -1)
        # labels are drawn from the model: the Fisher information, not its shortcut
        u = torch.from_numpy(self.rng.uniform(size=(len(pick), 1))).to(p)
        y = (p.cumsum(1) < u).sum(1).clamp_max(self.classes - 1)
        gradients = Outer(p - F.one_hot(y, self.classes))  # of each loss in the logits
        G = PullbackMetric(self.R, task.x[pick], gradients, batch_size=64).at(w)
        fisher = sum(A.dense().square().sum(0) for A in G.row_batches())
        self.springs.append((fisher, w))


class LwF(Learner):
    r"""Learning without forgetting (LwF): old outputs on *new* inputs are targets.

    Source: Li and Hoiem 2016, section 3 (temperature 2).
    """

    def start_task(self, w: Tensor, task: Task) -> int:
        self.teacher = w
        old = sorted({c for t in self.finished for c in t.classes})
        self.old = torch.tensor(old, dtype=torch.long, device=task.x.device)
        return super().start_task(w, task)

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        z = self.R(w, x)
        total = self.new_loss(z, y)
        if not len(self.old):
            return total
        with torch.no_grad():
            target = torch.log_softmax(self.R(self.teacher, x)[:, self.old] / 2, -1)
        guess = torch.log_softmax(z[:, self.old] / 2, -1)
        kl = F.kl_div(guess, target, log_target=True, reduction="batchmean")
        return total + 4 * self.strength * kl


class PenaltyPath(Replay):
    r"""The published form: the Bhattacharyya divergence on stored inputs is a penalty.

    Source: public code of Raghavan et al. 2024 (`FlexibleMachineLearning`), as read.
    """

    def old_loss(self, z: Tensor, rows: Tensor) -> Tensor:
        allowed = self.memory.allowed[rows]
        old = restrict(self.memory.z[rows], allowed)
        return bhattacharyya(restrict(z, allowed), old).sum()


class DERPlusPlus(DarkExperienceReplay):
    r"""DER++: targets for some stored inputs, and labels for as many others.

    .. math:: L_{\text{new}} + \alpha\,|z - z_{\text{stored}}|^2/c
              + \beta\,L(z', y'_{\text{stored}})

    The two draws share the replayed inputs of a step: half of them each.

    Args:
        labels: :math:`\beta`; :math:`\alpha` is the strength.

    Source: Buzzega et al. 2020, equation 6.
    """

    def __init__(self, *args, labels: float = 0.5, **rest) -> None:
        super().__init__(*args, **rest)
        self.labels = labels

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            return Learner.loss(self, w, x, y)
        rows, n = self.recall(), len(x)
        z = self.R(w, torch.cat([x, self.memory.x[rows]]))
        half = len(rows) // 2
        total = self.new_loss(z[:n], y)
        if half:
            outputs = self.old_loss(z[n : n + half], rows[:half])
            total = total + self.strength * outputs
        rest = Replay.old_loss(self, z[n + half :], rows[half:])
        return total + self.labels * rest


class ErAce(Replay):
    """ER-ACE: the new loss sees the new task's classes alone, the replayed one all.

    As in a reservoir, what is replayed holds the present task in the share of one task.

    Source: Caccia et al. 2022, equation 5.
    """

    def start_task(self, w: Tensor, task: Task) -> int:
        self.own = torch.zeros(self.classes, dtype=torch.bool, device=task.x.device)
        self.own[list(task.classes)] = True
        return super().start_task(w, task)

    def new_loss(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(restrict(z, self.own), y)

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            return Learner.loss(self, w, x, y)
        rows, memory = self.recall(), self.memory
        z, n = self.R(w, torch.cat([x, memory.x[rows]])), len(x)
        share = min(n, max(1, len(rows) // len(self.finished)))
        old = torch.cat([z[:share], z[n:]])
        allowed = torch.cat([self.now.expand(share, -1), memory.allowed[rows]])
        labels = torch.cat([y[:share], memory.y[rows]])
        replayed = F.cross_entropy(restrict(old, allowed), labels)
        return self.new_loss(z[:n], y) + self.strength * replayed


RIVALS: dict[str, type[Learner]] = {
    "joint": Joint,
    "elastic weights": EWC,
    "without forgetting": LwF,
    "DER++": DERPlusPlus,
    "ER-ACE": ErAce,
    "penalty path": PenaltyPath,
}
