"""Ways to learn the next task: replay, outputs as targets (DER), the invariant path."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Metric, PullbackMetric, Realization
from geolib.core.validation import expect
from geolib.networks.splits import Task
from geolib.networks.training import cosine

from .embedding import EmbeddedOutputs, drift_gradient, embed
from .sparse_path import damped_step, next_damping

FORBIDDEN = -1e9  # a logit that no softmax sees; finite, so that 0 * it is 0
NOTHING = torch.zeros(0)
RULES = ("random", "mean")


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
        """Keep some rows of a task; `z` are the outputs on these."""
        new = (task.x[rows], task.y[rows], z, allowed.expand(len(rows), -1))
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
    return z.masked_fill(~allowed, max(FORBIDDEN, torch.finfo(z.dtype).min))


def choose_inputs(J: Tensor, count: int) -> Tensor:
    r"""Rows of J whose mean stays nearest to the mean of all, chosen one by one.

    .. math:: i_k = \arg\min_i \Big|\,\bar J - \tfrac1k \Big(\sum_{l<k} J_{i_l} + J_i\Big)\Big|

    Args:
        J: one direction per input, shape (n, p).
        count: how many to choose.

    Returns:
        Distinct row numbers, shape (min(count, n),).

    Cost: :math:`n^2 p` for the Gram matrix.

    Source: Welling 2009 (herding).

    Examples:
        >>> choose_inputs(torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5]]), 2).tolist()
        [1, 2]
    """
    K = (J @ J.T).double()
    chosen: list[int] = []
    toward, total = K.mean(1), torch.zeros_like(K[0])
    for k in range(1, min(count, len(K)) + 1):
        # |mean - (total + J_i) / k|^2 up to what all candidates share
        score = 2 * toward - (2 * total + K.diagonal()) / k
        score[chosen] = -torch.inf
        chosen.append(int(score.argmax()))
        total = total + K[chosen[-1]]
    return torch.tensor(chosen, device=J.device)


SKETCH = 2**16  # longer directions are added up into so many random sums


class Learner:
    """Plain fine-tuning: Adam on the new task's labels, nothing kept.

    Args:
        lr: learning rate, falling to zero within each task.
        replayed: stored inputs looked at in each step.
        strength: of what keeps the old tasks, beside the new one's loss.
        rule: which inputs are stored: `random`, or `mean`, whose
            directions J^T u stand for those of the task; see `choose_inputs`.
        candidates: how many random inputs of a task are looked at for that.

    Examples:
        >>> sorted(LEARNERS)[-3:]
        ['fine-tuning', 'invariant path', 'replay']
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
        rule: str = "random",
        candidates: int = 500,
    ) -> None:
        expect(rule in RULES, "rule", f"one of {RULES}", rule)
        self.rule, self.candidates = rule, candidates
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

    def finish_cost(self, task: Task) -> int:
        """Compute of `finish_task`, which is kept back for it."""
        chosen = self.needs_memory and self.rule != "random"
        return min(self.candidates, len(task.x)) if chosen else 0

    def finish_task(self, w: Tensor, task: Task) -> None:
        """Keep what the method keeps."""
        self.finished.append(task)
        if self.needs_memory:
            rows = self.pick(w, task)
            with torch.no_grad():
                z = self.R(w, task.x[rows])
            self.memory.store(task, z, self.now, rows)

    def pick(self, w: Tensor, task: Task) -> Tensor:
        """Rows of the task to keep."""
        rng = np.random.default_rng(self.seed + len(self.finished))
        among = self.per_task if self.rule == "random" else self.candidates
        n = len(task.x)
        rows = np.sort(rng.choice(n, min(among, n), replace=False))
        some = torch.from_numpy(rows).to(task.x.device)
        if self.rule == "random":
            return some
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], self.classes)).to(w)
        signs = signs * self.now

        # one by one: no layer has to know how to run on copies of itself
        points = (self.R.linearize(w, x[None]) for x in task.x[some])
        slopes = (L.vjp(signs.expand_as(L.outputs)) for L in points)
        if (p := self.R.p) > SKETCH:  # same products on average (Charikar et al. 2002)
            place = torch.from_numpy(rng.integers(SKETCH, size=p)).to(w.device)
            sign = torch.from_numpy(rng.choice([-1.0, 1.0], p))
            empty = w.new_zeros(SKETCH)
            slopes = (empty.index_add(0, place, sign.to(g) * g) for g in slopes)
        return some[choose_inputs(torch.stack(list(slopes)), self.per_task)]

    def recall(self) -> Tensor:
        """Row numbers of the stored inputs that this step looks at."""
        count = min(self.replayed, len(self.memory))
        rows = self.rng.choice(len(self.memory), count, replace=False)
        return torch.from_numpy(rows).to(self.x.device)


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


class HerdedDER(DarkExperienceReplay):
    """Dark experience replay (DER) with herding: the metric chooses what is stored."""

    def __init__(self, *args, **rest) -> None:
        super().__init__(*args, **{"rule": "mean", "lr": 1e-3, **rest})


class InvariantPath(Learner):
    r"""The path that moves the stored outputs least for what it gains.

    .. math:: \theta = (G_{\text{mem}} + \mu I)^{-1}
              \big(\gamma\,\nabla L_{\text{new}}
              + J^T(\Phi - \Phi_{\text{stored}})\big), \qquad w \leftarrow w - \theta

    with :math:`\gamma = \mu\,\text{rate} / \max(1, |\nabla L|)` and no Adam behind it,
    whose scaling would leave the invariant directions. The second part of the bracket
    takes back the drift. A step is tried before it is taken: one that loses is not, and
    the damping follows the ratio of what was won to what was promised.

    Args:
        damping: :math:`\mu`, at least, and that of :math:`\gamma`.
        rate: how long a step may be in directions that no stored output sees.
        iterations: conjugate-gradient steps of a solve.
        space: `logit` or `sphere`.
    """

    needs_memory = True

    def __init__(
        self, *args, damping=3.0, rate=1.0, iterations=9, space="logit", **rest
    ) -> None:
        super().__init__(*args, **rest)
        self.damping = self.floor = damping
        self.rate, self.space, self.iterations = rate, space, iterations

    def start_task(self, w: Tensor, task: Task) -> int:
        self.damping = self.floor
        return super().start_task(w, task)

    def cost(self, batch: int) -> int:
        if not len(self.memory):
            return batch
        old = min(self.replayed, len(self.memory))
        return 2 * batch + (self.iterations + 3) * old  # the step's trial included

    def step(self, w: Tensor, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if not len(self.memory):  # nothing to protect yet
            return super().step(w, x, y, progress)
        rows = self.recall()
        G, covector = self.memory_metric(w, rows)
        grad = self.gradient(w, x, y)
        length = self.floor * cosine(self.rate, progress, 1)
        weight = length / grad.norm().clamp_min(1).item()

        value = lambda u: self.kept(u, rows) + weight * self.loss(u, x, y).item()  # noqa: E731
        return self.tried(w, G, weight * grad + G.pull(covector), value)

    @torch.no_grad()
    def tried(
        self, w: Tensor, G: Metric, slope: Tensor, value: Callable[[Tensor], float]
    ) -> Tensor:
        """The weights after the damped step down `slope`, if `value` falls there."""
        step, promised = damped_step(G, slope, self.damping, self.iterations)
        won = value(w) - value(w - step)
        ratio = won / promised if promised > 0 else 1.0
        self.damping = next_damping(self.damping, self.floor, ratio)
        return w - step if won > 0 else w

    @torch.no_grad()
    def kept(self, w: Tensor, rows: Tensor) -> float:
        """Half the mean squared drift of some stored outputs."""
        memory, allowed = self.memory, self.memory.allowed[rows]
        gap = self.embed(self.R(w, memory.x[rows]), allowed)
        gap = gap - self.embed(memory.z[rows], allowed)
        return gap.square().sum(1).mean().item() / 2

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
    "fine-tuning": Learner,
    "replay": Replay,
    "distilled logits": DarkExperienceReplay,
    "distilled logits, chosen inputs": HerdedDER,
    "invariant path": InvariantPath,
}
