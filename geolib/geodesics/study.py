"""The comparisons of the chapter: methods crossed with settings, seeds and data.

Settings are chosen on validation rows with networks of their own seeds (100 and up);
tables use seeds from 0 and are scored on test rows. Every method gets a grid of the
same size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.continual import learn_sequence
from geolib.geodesics.models import mlp
from geolib.geodesics.pruning import METHODS
from geolib.geodesics.tasks import Task, pair_tasks, split_tasks
from geolib.geodesics.train import Table, accuracy, table, train

Setting = Mapping[str, Any]
Grid = Mapping[str, Sequence[Setting]]

TUNING_SEEDS = (100, 101)
GROUPS = {
    "5x2": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
    "2x5": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
}

GRADUAL: Sequence[Setting] = [
    {"lr": 1e-2, "flat": False},
    *({"lr": r, "flat": True} for r in (3e-3, 1e-2, 3e-2)),
]
PRUNE_GRID: Grid = {
    "magnitude + labels": [{"lr": r} for r in (1e-3, 3e-3, 1e-2, 3e-2)],
    "magnitude + distillation": [{"lr": r} for r in (1e-3, 3e-3, 1e-2, 3e-2)],
    "gradual + labels": GRADUAL,
    "gradual + distillation": GRADUAL,
    "penalty path": [{"eta": e, "lam": k} for e in (0.8, 2.0) for k in (300.0, 3000.0)],
    "invariant path": [{"mu": m} for m in (1e-5, 3e-5, 1e-4, 3e-4)],
}
IDEA_GRID: Grid = {  # our own attempts on the baselines' wins
    "metric mask": [
        {"mu": m, "metric_mask": True, "steps": 29} for m in (3e-4, 1e-3, 3e-3, 1e-2)
    ],
    "labels in the metric": [
        {"mu": m, "labels": a} for m in (3e-4, 3e-3) for a in (0.1, 0.3)
    ],
}
LEARN_GRID: Grid = {
    "joint": [{"lr": r} for r in (1e-3, 3e-3, 1e-2, 3e-2)],
    "fine-tuning": [{"lr": r} for r in (1e-3, 3e-3, 1e-2, 3e-2)],
    "elastic weights": [{"strength": s} for s in (1e2, 1e4, 1e6, 1e8)],
    "without forgetting": [{"strength": s} for s in (0.1, 1.0, 10.0, 100.0)],
    "replay": [{"lr": r, "strength": s} for r in (3e-3, 1e-2) for s in (1.0, 3.0)],
    "distilled logits": [
        {"lr": r, "strength": s} for r in (3e-3, 1e-2) for s in (0.1, 0.3)
    ],
    "penalty path": [
        {"lr": r, "strength": s} for r in (3e-3, 1e-2) for s in (1.0, 3.0)
    ],
    "invariant path": [{"mu": m, "rate": r} for m in (1.0, 3.0) for r in (1.0, 3.0)],
}
LEARN_IDEA_GRID: Grid = {
    "invariant path": [{"mu": m, "carry": c} for m in (0.01, 0.1) for c in (1.0, 10.0)],
}


@functools.lru_cache(maxsize=8)
def data_table(name: str, rows: int | None = None, halve: bool = False) -> Table:
    """A data set as the comparisons use it: digits in float64, images in float32.

    `halve` averages 2 x 2 pixels: the protocols with many tasks and methods run on
    14 x 14 images.
    """
    if name == "digits":
        return table(name, validation=200)
    data = table(name, train=rows, validation=2000, dtype=torch.float32)

    def flat(x: Tensor) -> Tensor:
        x = F.avg_pool2d(x[:, None], 2) if halve else x
        return x.flatten(1)

    x, x_val, x_test = flat(data.x), flat(data.x_val), flat(data.x_test)
    return Table(x, data.y, x_val, data.y_val, x_test, data.y_test, name)


@functools.lru_cache(maxsize=64)
def dense(
    name: str, sizes: tuple[int, ...], seed: int, steps: int, rows: int | None = None
) -> tuple[Realization, Tensor]:
    """A trained network: its realization and its weights."""
    data = data_table(name, rows)
    R = Realization(mlp(sizes, seed, dtype=data.x.dtype))
    return R, train(R, data.x, data.y, steps=steps, seed=seed)


PRUNE_NET: dict[str, dict[str, Any]] = {
    "digits": {"sizes": (64, 32, 32, 10), "steps": 1200, "rows": None},
    "mnist": {"sizes": (784, 300, 100, 10), "steps": 2000, "rows": None},
}


def prune_score(
    name: str,
    method: str,
    setting: Setting,
    level: float,
    seed: int,
    part: str = "test",
) -> dict[str, float]:
    """Accuracy of one sparse network, and the compute it took.

    Examples:
        >>> found = prune_score("digits", "one-shot", {}, 0.0, 0)
        >>> found["accuracy"] > 0.95, found["passes"]
        (True, 0)
    """
    plan = PRUNE_NET[name]
    R, w = dense(name, seed=seed, **plan)  # type: ignore[arg-type]
    data = data_table(name, plan["rows"])  # type: ignore[arg-type]
    own = "invariant path" if method in IDEA_GRID else method
    options = dict(setting)
    if own not in ("one-shot", "surgeon"):
        options["seed"] = seed
    found = METHODS[own](R, w, data, level, **options)
    x, y = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    score = accuracy(R, found.weights, x, y)
    return {"accuracy": score, "passes": found.passes}


LEARN_NET: dict[str, dict[str, Any]] = {
    "digits": {"sizes": (64, 64, 64, 10), "passes": 38_400, "rows": None},
    "mnist": {"sizes": (196, 100, 100, 10), "passes": 38_400, "rows": 10_000},
    "mnist-fashion": {"sizes": (196, 100, 100, 20), "passes": 38_400, "rows": 10_000},
}


@functools.lru_cache(maxsize=8)
def task_list(name: str, groups: str, part: str = "test") -> tuple[Task, ...]:
    """The tasks of a protocol: `5x2` or `2x5` of one data set, or MNIST then Fashion."""
    rows = LEARN_NET[name]["rows"]
    if name == "mnist-fashion":
        pair = [data_table(n, rows, True) for n in ("mnist", "fashion_mnist")]  # type: ignore[arg-type]
        return tuple(pair_tasks(pair[0], pair[1], shift=10, part=part))
    return tuple(split_tasks(data_table(name, rows, True), GROUPS[groups], part))  # type: ignore[arg-type]


def learn_score(
    name: str,
    groups: str,
    scenario: str,
    method: str,
    setting: Setting,
    seed: int,
    memory: int = 50,
    part: str = "test",
) -> dict[str, float]:
    """Average accuracy and forgetting of one run, and the compute it took.

    Examples:
        >>> row = learn_score("digits", "2x5", "class", "fine-tuning", {}, 0)
        >>> row["average"] < 0.6 < row["forgetting"]
        True
    """
    plan = LEARN_NET[name]
    tasks = list(task_list(name, groups, part))
    net = mlp(plan["sizes"], seed, dtype=tasks[0].x.dtype)  # type: ignore[arg-type]
    found = learn_sequence(
        net,
        tasks,
        method,
        scenario=scenario,
        memory=memory,
        passes=int(plan["passes"]),  # type: ignore[call-overload]
        seed=seed,
        **setting,
    )
    return {
        "average": found.average,
        "forgetting": found.forgetting,
        "last": float(found.table[-1, -1]),
        "first": float(found.table[-1, 0]),
        "passes": found.passes,
        "stored": found.stored,
    }


def best_setting(
    score: Callable[[Setting, int], float],
    grid: Sequence[Setting],
    seeds: Sequence[int] = TUNING_SEEDS,
) -> dict[str, Any]:
    """The setting of the greatest mean score, with all scores kept.

    Examples:
        >>> best_setting(lambda s, seed: s["a"], [{"a": 1}, {"a": 2}])["setting"]
        {'a': 2}
    """
    means = [float(np.mean([score(s, seed) for seed in seeds])) for s in grid]
    scores = [m if math.isfinite(m) else -math.inf for m in means]
    winner = int(np.argmax(scores))
    return {"setting": dict(grid[winner]), "scores": [round(s, 4) for s in scores]}


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation.

    Examples:
        >>> spread([1.0, 3.0])
        (2.0, 1.414...)
    """
    v = np.asarray(values, float)
    return float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0
