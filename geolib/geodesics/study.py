"""The comparisons of the chapter: methods crossed with settings, seeds and data.

Settings are chosen on validation rows with networks of their own seeds; tables use
other seeds, fixed before any of them was looked at, and are scored on test rows. Every
method gets a grid of the same size. A label is the name of a method, or that name and
a variant in brackets, as in `invariant path (Fisher)`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.continual import KNOWN, learn_sequence
from geolib.geodesics.models import mlp
from geolib.geodesics.pruning import IDEAS, METHODS
from geolib.geodesics.tasks import Task, pair_tasks, split_tasks
from geolib.geodesics.train import Table, accuracy, table, train

Setting = Mapping[str, Any]
Grid = Mapping[str, Sequence[Setting]]

TUNING_SEEDS = (100, 101)
REPORT_SEEDS = (10, 11, 12, 13, 14)
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
    # 36 steps of 11 products cost what 400 gradient steps cost
    "invariant path": [{"mu": m, "steps": 36} for m in (1e-5, 3e-5, 1e-4, 3e-4)],
}
IDEA_GRID: Grid = {  # our own attempts on the baselines' wins
    "metric mask": [{"mu": m, "steps": 26} for m in (3e-4, 1e-3, 3e-3, 1e-2)],
    "labels in the metric": [
        {"mu": m, "labels": a, "steps": 36} for m in (3e-4, 3e-3) for a in (0.1, 0.3)
    ],
    "metric path, then labels": [
        {
            "path": {"mu": 3e-3, "metric_mask": True, "steps": steps},
            "steps": 400 - 15 * steps,
            "lr": lr,
        }
        for steps in (13, 20)
        for lr in (3e-3, 1e-2)
    ],
    "gradual + labels, metric mask": [
        {"lr": r, "flat": f, "steps": 360}
        for r, f in ((3e-3, True), (1e-2, True), (3e-2, True), (1e-2, False))
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
    "invariant path": [
        {"mu": m, "rate": r}
        for m, r in ((1.0, 3.0), (3.0, 1.0), (3.0, 3.0), (10.0, 3.0))
    ],
    "invariant path (Fisher)": [
        {"space": "sphere", "mu": m, "rate": r} for m in (0.01, 0.1) for r in (1.0, 3.0)
    ],
}
LEARN_IDEA_GRID: Grid = {
    "invariant path + loss": [
        {"mu": m, "labels": a} for m in (0.1, 1.0) for a in (0.0, 1.0)
    ],
    "distilled logits, chosen inputs": [
        {"rule": r, "strength": s} for r in ("mean", "far") for s in (0.1, 0.3)
    ],
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
    options = dict(setting)
    if method not in ("one-shot", "surgeon"):
        options["seed"] = seed
    found = {**METHODS, **IDEAS}[method](R, w, data, level, **options)
    x, y = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    score = accuracy(R, found.weights, x, y)
    return {"accuracy": score, "passes": found.passes}


LEARN_NET: dict[str, dict[str, Any]] = {
    "digits": {"sizes": (64, 64, 64, 10), "passes": 38_400, "rows": None},
    "mnist": {"sizes": (196, 100, 100, 10), "passes": 38_400, "rows": None},
    "mnist-fashion": {"sizes": (784, 256, 128, 20), "passes": 38_400, "rows": None},
}


@functools.lru_cache(maxsize=8)
def task_list(name: str, groups: str, part: str = "test") -> tuple[Task, ...]:
    """The tasks of a protocol: `5x2` or `2x5` of one data set, or MNIST then Fashion."""
    rows = LEARN_NET[name]["rows"]
    if name == "mnist-fashion":
        pair = [data_table(n, rows) for n in ("mnist", "fashion_mnist")]  # type: ignore[arg-type]
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
) -> dict[str, Any]:
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
        method_of(method),
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
        "table": [
            [round(float(a), 4) for a in r[: i + 1]] for i, r in enumerate(found.table)
        ],
    }


def method_of(label: str) -> str:
    """The method behind a label of a table.

    Examples:
        >>> method_of("invariant path (Fisher)")
        'invariant path'
    """
    return label.split(" (")[0]


def uses_memory(label: str) -> bool:
    """Whether the method keeps inputs of earlier tasks.

    Examples:
        >>> uses_memory("replay"), uses_memory("joint")
        (True, False)
    """
    return KNOWN[method_of(label)].needs_memory


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


def stored(file: str) -> dict[str, dict[str, Any]]:
    """The entries of a file of measured results; none if it is not there."""
    path = Path(file)
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def column(
    entries: Mapping[str, Mapping[str, Any]], start: str, part: str = "accuracy"
) -> np.ndarray:
    """One figure of all entries whose key is `start` and a seed, shape (seeds,).

    Examples:
        >>> column({"a | 0.5 | 1": {"accuracy": 0.9}}, "a | 0.5").tolist()
        [0.9]
    """
    found = [v[part] for k, v in entries.items() if k.rpartition(" | ")[0] == start]
    return np.array(found, float)
