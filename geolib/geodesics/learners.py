"""Ways to learn the next task: the invariant path, EWC, LwF, replay and DER."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Metric, PullbackMetric, Realization
from geolib.geodesics.embedding import EmbeddedOutputs, drift_gradient, embed
from geolib.geodesics.sparse_path import bhattacharyya
from geolib.networks.splits import Task
from geolib.networks.training import cosine

FORBIDDEN = -1e9  # a logit that no softmax sees; finite, so that 0 * it is 0
NOTHING = torch.zeros(0)


@dataclass
class Memory:
    """Inputs kept of earlier tasks, with what the network said about them then.

    Attributes:
        x, y: inputs and labels.
        z: the network's outputs when the task was finished.
        allowed: the classes that may be answered, shape (m, c).
    """

    x: Tensor = NOTHING
    y: Tensor = NOTHING
    z: Tensor = NOTHING
    allowed: Tensor = NOTHING

    def __len__(self) -> int:
        return len(self.x)

    def store(self, task: Task, z: Tensor, allowed: Tensor, rows: Tensor) -> None:
        """Keep some rows of a task; `z` are the outputs on all of them."""
        new = (task.x[rows], task.y[rows], z[rows], allowed.expand(len(rows), -1))
        old = (self.x, self.y, self.z, self.allowed)
        self.x, self.y, self.z, self.allowed = (
            torch.cat([a, b]) if len(a) else b for a, b in zip(old, new, strict=True)
        )


def restrict(z: Tensor, allowed: Tensor) -> Tensor:
    """Logits with the classes that may not be answered pushed out of the softmax.

    Examples:
        >>> restrict(torch.zeros(1, 2), torch.tensor([True, False])).argmax().item()
        0
    """
    return z.masked_fill(~allowed, FORBIDDEN)


class Learner:
    """Plain fine-tuning: Adam on the new task's labels, nothing kept.

    Args:
        lr: learning rate, falling to zero within each task.
        replayed: stored inputs looked at in each step.

    Examples:
        >>> sorted(LEARNERS)[:3]
        ['distilled logits', 'elastic weights', 'fine-tuning']
    """

    needs_memory = False

    def __init__(
        self,
        R: Realization,
        memory: int,
        scenario: str,
        classes: int,
        seed: int,
        lr: float = 3e-3,
        replayed: int = 64,
        strength: float = 1.0,
    ) -> None:
        self.R, self.per_task, self.scenario = R, memory, scenario
        self.classes, self.seed = classes, seed
        self.lr, self.replayed, self.strength = lr, replayed, strength
        self.memory = Memory()
        self.rng = np.random.default_rng(seed + 12345)
        self.finished: list[Task] = []

    def allowed(self, task: Task) -> Tensor:
        """Which classes may be answered, shape (c,)."""
        flags = torch.ones(self.classes, dtype=torch.bool, device=task.x.device)
        if self.scenario == "task":
            flags[:] = False
            flags[list(task.classes)] = True
        return flags

    def start_task(self, w: Tensor, task: Task) -> int:
        """Prepare for a task; returns the compute it took."""
        self.x, self.y = task.x, task.y
        self.now = self.allowed(task)
        self.w = w.detach().clone().requires_grad_(True)
        self.adam = torch.optim.Adam([self.w])
        return 0

    def cost(self, batch: int) -> int:
        """Compute of one step."""
        return batch + min(self.replayed, len(self.memory))

    def step(self, w: Tensor, x: Tensor, y: Tensor, progress: float) -> Tensor:
        """One update; `progress` runs from 0 to 1 within the task."""
        self.adam.param_groups[0]["lr"] = cosine(self.lr, progress, 1)
        self.w.grad = self.gradient(w, x, y)
        with torch.no_grad():
            self.w.copy_(w)
        self.adam.step()
        return self.w.detach().clone()

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of the loss, shape (p,)."""
        leaf = w.detach().requires_grad_(True)
        return torch.autograd.grad(self.loss(leaf, x, y), leaf)[0]

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.new_loss(self.R(w, x), y)

    def new_loss(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(restrict(z, self.now), y)

    def finish_task(self, w: Tensor, task: Task) -> int:
        """Keep what the method keeps; returns the compute it took."""
        self.finished.append(task)
        if not self.needs_memory:
            return 0
        rows, paid = self.pick(w, task)
        with torch.no_grad():
            z = self.R(w, task.x)
        self.memory.store(task, z, self.now, rows)
        return paid

    def pick(self, w: Tensor, task: Task) -> tuple[Tensor, int]:
        """Rows of the task to keep, and the compute it took to choose them."""
        rng = np.random.default_rng(self.seed + len(self.finished))
        count = min(self.per_task, len(task.x))
        rows = np.sort(rng.choice(len(task.x), count, replace=False))
        return torch.from_numpy(rows).to(task.x.device), 0

    def recall(self) -> Tensor:
        """Row numbers of the stored inputs that this step looks at."""
        count = min(self.replayed, len(self.memory))
        rows = self.rng.choice(len(self.memory), count, replace=False)
        return torch.from_numpy(rows).to(self.x.device)


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

    def finish_task(self, w: Tensor, task: Task) -> int:
        super().finish_task(w, task)
        rows = self.rng.permutation(len(task.x))[: self.samples]
        pick = torch.from_numpy(rows).to(task.x.device)
        with torch.no_grad():
            p = torch.softmax(restrict(self.R(w, task.x[pick]), self.now), -1)
        # labels are drawn from the model: the Fisher information, not its shortcut
        u = torch.from_numpy(self.rng.uniform(size=(len(pick), 1))).to(p)
        y = (p.cumsum(1) < u).sum(1).clamp_max(self.classes - 1)

        def loss_of_one(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
            z = restrict(self.R(v, x[None]), self.now)
            return -torch.log_softmax(z, -1)[0].gather(0, y[None])[0]

        grads = torch.vmap(torch.func.grad(loss_of_one), (None, 0, 0), chunk_size=64)
        fisher = grads(w, task.x[pick], y).square().mean(0)
        self.springs.append((fisher, w))
        return len(pick)


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


class Replay(Learner):
    """The stored inputs are trained on again, with their labels."""

    needs_memory = True

    def loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            return super().loss(w, x, y)
        rows = self.recall()
        z = self.R(w, torch.cat([x, self.memory.x[rows]]))
        new, old = z[: len(x)], z[len(x) :]
        return self.new_loss(new, y) + self.strength * self.old_loss(old, rows)

    def old_loss(self, z: Tensor, rows: Tensor) -> Tensor:
        allowed = self.memory.allowed[rows]
        return F.cross_entropy(restrict(z, allowed), self.memory.y[rows])


class DarkExperienceReplay(Replay):
    r"""Dark experience replay (DER): the stored outputs are targets, by squared distance.

    Source: Buzzega et al. 2020, equation 5.
    """

    def old_loss(self, z: Tensor, rows: Tensor) -> Tensor:
        allowed = self.memory.allowed[rows].to(z)
        gap = (z - self.memory.z[rows]) * allowed
        return gap.square().sum(1).mean() / self.classes


class PenaltyPath(Replay):
    r"""The published form: the Bhattacharyya divergence on stored inputs is a penalty.

    Source: public code of Raghavan et al. 2024 (`FlexibleMachineLearning`), as read.
    """

    def old_loss(self, z: Tensor, rows: Tensor) -> Tensor:
        allowed = self.memory.allowed[rows]
        old = restrict(self.memory.z[rows], allowed)
        return bhattacharyya(restrict(z, allowed), old).sum()


class InvariantPath(Learner):
    r"""The path that moves the stored outputs least for what it gains.

    .. math:: \theta = (G_{\text{mem}} + \mu I)^{-1}
              \big(\gamma\,\nabla L_{\text{new}}
              + J^T(\Phi - \Phi_{\text{stored}})\big), \qquad w \leftarrow w - \theta

    with :math:`\gamma = \mu\,\text{rate} / \max(1, |\nabla L|)` and no Adam behind it,
    whose scaling would leave the invariant directions. The second part of the bracket
    takes back the drift.

    Args:
        damping: :math:`\mu`.
        rate: how long a step may be in directions that no stored output sees.
        iterations: conjugate-gradient steps of a solve.
        space: `logit` or `sphere`.
    """

    needs_memory = True

    def __init__(
        self,
        *args,
        damping: float = 3.0,
        rate: float = 1.0,
        iterations: int = 9,
        space: str = "logit",
        **rest,
    ):
        super().__init__(*args, **rest)
        self.damping, self.rate, self.space = damping, rate, space
        self.iterations = iterations

    def cost(self, batch: int) -> int:
        if not len(self.memory):
            return batch
        return batch + (self.iterations + 2) * min(self.replayed, len(self.memory))

    def step(self, w: Tensor, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if not len(self.memory):  # nothing to protect yet
            return super().step(w, x, y, progress)
        G, covector = self.memory_metric(w, self.recall())
        grad = self.gradient(w, x, y)
        length = self.damping * cosine(self.rate, progress, 1)
        rhs = length * grad / grad.norm().clamp_min(1) + G.pull(covector)
        limit = self.iterations
        found = G.solve(rhs, self.damping, "cg", tol=1e-6, max_iterations=limit)
        return w - found.x

    def memory_metric(self, w: Tensor, rows: Tensor) -> tuple[Metric, Tensor]:
        """The metric on stored inputs, and what pulls back to half their drift's slope.

        The second is the gradient of half the mean squared drift in the outputs, (m, c).
        """
        memory = self.memory
        allowed = memory.allowed[rows]
        G = PullbackMetric(
            self.R, memory.x[rows], EmbeddedOutputs(self.embed, allowed)
        ).at(w)
        target = self.embed(memory.z[rows], allowed)
        z = G.outputs()
        covector = drift_gradient(lambda u: self.embed(u, allowed), z, target)
        return G, covector / len(rows)

    def embed(self, z: Tensor, allowed: Tensor) -> Tensor:
        """The point of the output space that stands for logits, by allowed classes."""
        if self.space != "logit":
            return embed(restrict(z, allowed), self.space)
        kept = z * allowed
        mean = kept.sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)
        return (z - mean) * allowed


LEARNERS: dict[str, type[Learner]] = {
    "joint": Joint,
    "fine-tuning": Learner,
    "elastic weights": EWC,
    "without forgetting": LwF,
    "replay": Replay,
    "distilled logits": DarkExperienceReplay,
    "penalty path": PenaltyPath,
    "invariant path": InvariantPath,
}
