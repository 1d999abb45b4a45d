"""Sweeps of the methods as they come, untuned, over more networks and data sets.

    geolib sweep mode-connectivity --size full

and likewise `sparsification` and `continual-learning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from comparisons import KNOWN
from pruners import METHODS

from geolib.core import Realization
from geolib.geodesics import connect, learn_sequence
from geolib.networks import Table, accuracy, mlp, split_tasks, table, train
from geolib.sweep import Sweep, grid


@dataclass(frozen=True)
class Trained:
    """A data set, a perceptron, and where it trains (`auto`: a GPU if any)."""

    dataset: str = "digits"
    hidden: tuple[int, ...] = (32, 32)
    device: str = "cpu"
    dtype: str = "float64"

    def data(self) -> Table:
        """The data set in that precision, there."""
        gpu = self.device == "auto" and torch.cuda.is_available()
        device = "cuda" if gpu else self.device.replace("auto", "cpu")
        return table(self.dataset, device=device, dtype=getattr(torch, self.dtype))

    def network(self, data: Table, seed: int) -> Realization:
        """A fresh perceptron for these inputs and classes, where the data is."""
        sizes = [data.x[0].numel(), *self.hidden, int(data.y.max()) + 1]
        made = mlp(sizes, seed=seed, dtype=data.x.dtype)
        return Realization(made.to(data.x.device))


IMAGE_NETS = {"hidden": [(256, 128)], "device": "auto", "dtype": "float32"}
IMAGE_SETS = ["mnist", "fashion_mnist"]


@dataclass(frozen=True)
class PathSpec(Trained):
    """One path: the two ends have the seeds 2 pair and 2 pair + 1.

    `steps` is the budget of the geodesic; the curve gets as many passes.
    """

    pair: int = 0
    method: str = "line"
    train_steps: int = 600
    steps: int = 2000


def run_path(spec: PathSpec) -> dict[str, Any]:
    """Train both ends, join them, and score the path on training and test data."""
    data = spec.data()
    seeds = (2 * spec.pair, 2 * spec.pair + 1)
    a, b = (spec.network(data, seed) for seed in seeds)
    for R, seed in zip((a, b), seeds, strict=True):
        R.load(train(R, data.x, data.y, steps=spec.train_steps, seed=seed))
    method = spec.method.removeprefix("aligned ")
    options: dict[str, Any] = {
        "line": {},
        "curve": {"steps": 3 * spec.steps, "seed": spec.pair},
        "arc": {"steps": 3 * spec.steps, "seed": spec.pair},
        "geodesic": {"steps": spec.steps, "seed": spec.pair},
    }[method]
    align = spec.method != method
    found = connect(
        a.module, b.module, data.x, data.y, method=method, align=align, **options
    )
    train_part = found.profile(data.x, data.y)
    test_part = found.profile(data.x_test, data.y_test)
    return {
        "barrier": train_part.barrier,
        "test_barrier": test_part.barrier,
        "worst": test_part.worst,
        "middle": test_part.middle,
        "ends": [test_part.accuracy[0].item(), test_part.accuracy[-1].item()],
        "passes": found.gradient_evaluations,
        "ran_on": data.x.device.type,
    }


JOINED = [
    "line", "aligned line", "curve", "geodesic", "aligned geodesic", "aligned arc",
]  # fmt: skip
MODE_CONNECTIVITY = Sweep(
    "mode-connectivity",
    run_path,
    {
        "small": lambda: grid(
            PathSpec, pair=range(2), method=["line", "geodesic"], hidden=[(16,)],
            train_steps=150, steps=150,
        ),
        "book": lambda: grid(PathSpec, pair=range(3), method=JOINED),
        "full": lambda: [
            *grid(PathSpec, pair=range(8), method=JOINED),
            *grid(
                PathSpec, pair=range(5), method=JOINED, dataset=IMAGE_SETS,
                train_steps=4000, steps=4000, **IMAGE_NETS,
            ),
        ],
    },
    text="Loss barriers of paths between trained networks, over pairs and methods.",
)  # fmt: skip


@dataclass(frozen=True)
class SparseSpec(Trained):
    """One network made sparse: `level` is the share of zeros in its matrices."""

    seed: int = 0
    level: float = 0.9
    method: str = "one-shot"
    train_steps: int = 600


def run_sparse(spec: SparseSpec) -> dict[str, Any]:
    """Train, prune, and score before and after on the test rows."""
    data = spec.data()
    R = spec.network(data, spec.seed)
    w = train(R, data.x, data.y, steps=spec.train_steps, seed=spec.seed)
    found = METHODS[spec.method](R, w, data, spec.level)
    return {
        "dense": accuracy(R, w, data.x_test, data.y_test),
        "accuracy": accuracy(R, found.weights, data.x_test, data.y_test),
        "zeros": int((found.weights == 0).sum()),
        "weights": R.p,
        "passes": found.gradient_evaluations,
        "ran_on": data.x.device.type,
    }


PRUNED = [
    "one-shot", "surgeon", "magnitude + labels", "gradual + labels",
    "gradual + distillation", "penalty path", "invariant path",
]  # fmt: skip
LEVELS = [0.5, 0.8, 0.9, 0.95, 0.98]
SPARSIFICATION = Sweep(
    "sparsification",
    run_sparse,
    {
        "small": lambda: grid(
            SparseSpec, level=[0.5, 0.9], method=["one-shot", "invariant path"],
            hidden=[(16,)], train_steps=150,
        ),
        "book": lambda: grid(
            SparseSpec, seed=range(3), level=[0.9, 0.95, 0.98], method=PRUNED
        ),
        "full": lambda: [
            *grid(SparseSpec, seed=range(5), level=LEVELS, method=PRUNED),
            *grid(
                SparseSpec, seed=range(5), level=LEVELS, method=PRUNED,
                dataset=IMAGE_SETS, train_steps=4000, **IMAGE_NETS,
            ),
        ],
    },
    text="Accuracy against sparsity, over levels, seeds and methods.",
)  # fmt: skip


@dataclass(frozen=True)
class TasksSpec(Trained):
    """One sequence of five tasks of two classes.

    `order` 0 is 0/1, 2/3, ...; any other is the seed of a permutation of the classes.
    """

    hidden: tuple[int, ...] = (64, 64, 64)
    order: int = 0
    seed: int = 0
    method: str = "joint"
    scenario: str = "class"
    memory: int = 50
    passes: int = 38_400
    tasks: int = 5


def groups(order: int, tasks: int = 5) -> list[list[int]]:
    """The classes of each task.

    Examples:
        >>> groups(0)
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    """
    drawn = np.random.default_rng(order).permutation(10) if order else np.arange(10)
    return drawn[: 2 * tasks].reshape(-1, 2).tolist()


def run_tasks(spec: TasksSpec) -> dict[str, Any]:
    """Learn the tasks in their order; accuracies are shares."""
    data = spec.data()
    found = learn_sequence(
        spec.network(data, spec.seed).module,
        split_tasks(data, groups(spec.order, spec.tasks)),
        KNOWN[spec.method],
        scenario=spec.scenario,
        memory=spec.memory,
        gradient_evaluations=spec.passes,
        seed=spec.seed,
    )
    return {
        "average": found.average,
        "forgetting": found.forgetting,
        "last": found.table[-1],
        "spent": found.gradient_evaluations,
        "stored": found.stored,
        "converged": found.converged,
        "ran_on": data.x.device.type,
    }


LEARNT = [
    "joint", "fine-tuning", "elastic weights", "without forgetting", "replay",
    "distilled logits", "penalty path", "invariant path",
]  # fmt: skip
CONTINUAL_LEARNING = Sweep(
    "continual-learning",
    run_tasks,
    {
        "small": lambda: grid(
            TasksSpec, seed=range(2), hidden=[(32,)], passes=12_800,
            method=["joint", "fine-tuning", "replay"],
        ),
        "book": lambda: grid(
            TasksSpec, order=range(2), seed=range(1, 4), method=LEARNT
        ),
        "full": lambda: [
            *grid(
                TasksSpec, order=range(4), seed=range(5), method=LEARNT,
                scenario=["class", "task"],
            ),
            *grid(
                TasksSpec, order=range(4), seed=range(5), method=LEARNT,
                dataset="mnist", passes=384_000,
                **{**IMAGE_NETS, "hidden": [(256, 256)]},
            ),
        ],
    },
    text="Accuracy left after five tasks, over class orders, seeds and methods.",
)  # fmt: skip
