"""`learn_sequence`: tasks one after another, and how much of each is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.networks.rows import PIECE
from geolib.networks.splits import Task
from geolib.networks.training import Meter, batches

from .learners import LEARNERS, Learner, restrict


@dataclass(frozen=True)
class Learned:
    r"""What `learn_sequence` returns.

    Attributes:
        weights: the final weights, shape (p,).
        table: accuracy on task j after task i, shape (tasks, tasks); NaN for j > i.
        gradient_evaluations: compute paid for all tasks; see `Meter`.
        stored: how many inputs were kept in the end.
        converged: False if training was stopped by non-finite weights.
    """

    weights: Tensor
    table: np.ndarray
    gradient_evaluations: int
    stored: int
    converged: bool = True

    @property
    def average(self) -> float:
        """Mean accuracy over the tasks after the last one."""
        return float(self.table[-1].mean())

    @property
    def forgetting(self) -> float:
        r"""Mean drop of the earlier tasks from their best to the end.

        .. math:: \frac{1}{T-1} \sum_{j<T}
                  \big(\max_{j \le i < T} a_{ij} - a_{Tj}\big)
        """
        last = len(self.table) - 1
        best = [self.table[j:last, j].max() for j in range(last)]
        return float(np.mean(np.array(best) - self.table[-1, :-1])) if last else 0.0


@differentiation()
def learn_sequence(
    module: nn.Module,
    tasks: Annotated[Sequence[Task], "tasks"],
    method: str | type[Learner] = "distilled logits, chosen inputs",
    *,
    scenario: Annotated[str, ("class", "task")] = "class",
    memory: int = 50,
    gradient_evaluations: Annotated[
        int, "1 <= gradient_evaluations <= 10**10"
    ] = 38_400,
    batch: int = 64,
    seed: int = 0,
    w: Tensor | None = None,
    callback: Callable[[int, np.ndarray], object] | None = None,
    **settings,
) -> Learned:
    r"""Learn tasks one after another and measure what is forgotten.

    .. math:: \min_\theta\; \tfrac12 \theta^T (G_{\text{mem}} + \mu I)\,\theta
              + \langle \nabla L_{\text{new}}, \theta \rangle

    is one step of the method "invariant path": downhill for the new task, along
    directions in which the network's outputs on the stored inputs stand still. The
    default keeps those outputs as targets, and the metric chooses which inputs to store.

    Args:
        module: the network, with an output for every class of every task; unchanged.
        tasks: see `split_tasks`, or `Task.of` for data sets and loaders of one's own.
        method: one of `LEARNERS`, or a class of one's own like those.
        scenario: `class`: all classes compete; `task`: only those of the task at hand.
        memory: inputs kept per task (0 for methods without a memory).
        gradient_evaluations: compute for each task, the same for every method: a
            method whose step costs more takes fewer steps.
        batch: inputs of the new task per step.
        seed: of all draws.
        w: start, shape (p,); the module's own weights by default.
        callback: called after each task with its number, from 0, and the accuracies on
            all tasks so far.
        settings: of the method; see `geolib.geodesics.learners`.

    Raises:
        ValueError: no tasks, an unknown method or scenario, labels the module has no
            output for, a method that needs a memory without one.

    Cost: tasks * gradient_evaluations.

    Source: Raghavan and Thomson 2021 (the idea); :eq:`drv-geodesics-invariant-step`
        (derivations).

    Examples:
        >>> from geolib.networks import mlp, split_tasks, table
        >>> tasks = split_tasks(table("digits"), [[0, 1], [2, 3]])
        >>> found = learn_sequence(mlp([64, 16, 10]), tasks, "replay",
        ...                        gradient_evaluations=6400)
        >>> found.table.shape
        (2, 2)
    """
    if isinstance(method, str):
        expect(method in LEARNERS, "method", f"one of {sorted(LEARNERS)}", method)
    kind = LEARNERS[method] if isinstance(method, str) else method
    wanted = (
        f"more: {method!r} needs at least {int(kind.needs_memory)} stored input a task"
    )
    expect(memory >= kind.needs_memory, "memory", wanted, memory)
    R = Realization(module)
    w = R.theta0.clone() if w is None else w.clone()
    classes = R(w, tasks[0].x[:1]).shape[1]
    most = max(max(task.classes) for task in tasks)
    wanted = f"labels below the module's {classes} outputs"
    expect(most < classes, "tasks", wanted, most)
    learner = kind(R, memory, scenario, classes, seed, **settings)
    scores = np.full((len(tasks), len(tasks)), np.nan)
    meter, good = Meter(), True
    for i, task in enumerate(tasks):
        used = learner.start_task(w, task) + learner.finish_cost(task)
        x, y = learner.x, learner.y
        cost = learner.cost(min(batch, len(x)))
        steps = max(1, (gradient_evaluations - used) // cost)
        plan = batches(len(x), batch, steps, 1000 * seed + i, x.device)
        for step, rows in enumerate(plan):
            w = learner.step(w, x[rows], y[rows], step / steps)
        meter.add(used + steps * cost)
        learner.finish_task(w, task)
        good = good and bool(torch.isfinite(w).all())
        if not good:
            break
        for j in range(i + 1):
            scores[i, j] = _score(learner, w, tasks[j])
        if callback is not None:
            callback(i, scores[i, : i + 1].copy())
    found = w, scores, meter.gradient_evaluations, len(learner.memory)
    return Learned(*found, good)


def _score(learner: Learner, w: Tensor, task: Task) -> float:
    allowed = learner.allowed(task)
    with torch.no_grad():
        parts = [restrict(learner.R(w, x), allowed) for x in task.x_test.split(PIECE)]
    right = torch.cat([z.argmax(1) for z in parts]) == task.y_test
    return right.to(torch.float64).mean().item()
