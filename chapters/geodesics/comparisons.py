"""How methods are compared in this chapter: one score of one setting and seed each.

Settings are chosen on validation rows with networks of their own seeds; tables use
other seeds, fixed before any of them was looked at, and are scored on test rows. Every
method gets a grid of the same size. A label is the name of a method, or that name and
a variant in brackets, as in `invariant path (Fisher)`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from polygons import LinearSplineBasis
from path_lengths import lengths
from pruners import METHODS
from rivals import RIVALS
from torch import Tensor
from torch.nn import functional as F
from variants import LEARNER_VARIANTS, PRUNING_VARIANTS
from yardsticks import calibration_error

from geolib.core import Realization
from geolib.geodesics import (
    LEARNERS,
    FunctionSpace,
    Geodesic,
    SineBasis,
    WeightPath,
    geodesic,
    learn_sequence,
    profile,
    trained_curve,
)
from geolib.geodesics.learners import Learner
from geolib.networks import (
    Table,
    Task,
    accuracy,
    align,
    mlp,
    split_tasks,
    table,
    train,
)

KNOWN: dict[str, type[Learner]] = {**LEARNERS, **RIVALS, **LEARNER_VARIANTS}
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
    "penalty path": [
        {"eta": e, "penalty": k} for e in (0.8, 2.0) for k in (300.0, 3000.0)
    ],
    # 33 steps of 12 passes cost what 400 gradient steps cost
    "invariant path": [{"damping": m, "steps": 33} for m in (1e-5, 3e-5, 1e-4, 3e-4)],
}
VARIANT_GRID: Grid = {  # our own attempts on the baselines' wins
    "metric mask": [{"damping": m, "steps": 30} for m in (3e-4, 1e-3, 3e-3, 1e-2)],
    "labels in the metric": [
        {"damping": m, "labels": a, "steps": 33}
        for m in (3e-4, 3e-3)
        for a in (0.1, 0.3)
    ],
    "metric path, then labels": [
        {
            "path": {"damping": 3e-3, "metric_mask": True, "steps": steps},
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
        {"damping": m, "rate": r}
        for m, r in ((1.0, 3.0), (3.0, 1.0), (3.0, 3.0), (10.0, 3.0))
    ],
    "invariant path (Fisher)": [
        {"space": "sphere", "damping": m, "rate": r}
        for m in (0.01, 0.1)
        for r in (1.0, 3.0)
    ],
}
LEARN_VARIANT_GRID: Grid = {
    "invariant path + loss": [
        {"damping": m, "labels": a} for m in (0.1, 1.0) for a in (0.0, 1.0)
    ],
    "distilled logits, chosen inputs": [
        {"lr": r, "strength": s} for r in (3e-3, 1e-2) for s in (0.1, 0.3)
    ],
}


OLD_NAMES = {"mu": "damping", "cg": "iterations", "lam": "penalty"}  # in measured/


def standard(setting: Setting) -> dict[str, Any]:
    """A stored setting under the names that the functions take now.

    Examples:
        >>> standard({"mu": 0.1, "path": {"cg": 3}})
        {'damping': 0.1, 'path': {'iterations': 3}}
    """
    return {
        OLD_NAMES.get(k, k): standard(v) if isinstance(v, Mapping) else v
        for k, v in setting.items()
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


TRAINED: dict[tuple[Any, ...], tuple[Realization, Tensor]] = {}


def dense(
    name: str, sizes: tuple[int, ...], seed: int, steps: int, rows: int | None = None
) -> tuple[Realization, Tensor]:
    """A trained network: its realization and its weights."""
    return dense_each(name, sizes, [seed], steps, rows)[0]


def dense_each(
    name: str,
    sizes: tuple[int, ...],
    seeds: Sequence[int],
    steps: int,
    rows: int | None = None,
) -> list[tuple[Realization, Tensor]]:
    """As `dense` for several seeds: those not trained yet are, side by side."""
    keys = {seed: (name, sizes, seed, steps, rows) for seed in seeds}
    new = [seed for seed, key in keys.items() if key not in TRAINED]
    if new:
        data = data_table(name, rows)
        nets = [Realization(mlp(sizes, seed, dtype=data.x.dtype)) for seed in new]
        start = torch.stack([R.theta0 for R in nets])
        found = train(nets[0], data.x, data.y, w=start, steps=steps, seed=new)
        for seed, R, w in zip(new, nets, found, strict=True):
            TRAINED[keys[seed]] = R, w
    return [TRAINED[keys[seed]] for seed in seeds]


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
    R, w = dense(name, seed=seed, **plan)
    data = data_table(name, plan["rows"])
    options = standard(setting)
    if method not in ("one-shot", "surgeon"):
        options["seed"] = seed
    found = {**METHODS, **PRUNING_VARIANTS}[method](R, w, data, level, **options)
    x, y = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    score = accuracy(R, found.weights, x, y)
    return {"accuracy": score, "passes": found.gradient_evaluations}


LEARN_NET: dict[str, dict[str, Any]] = {
    "digits": {"sizes": (64, 64, 64, 10), "passes": 38_400, "rows": None},
    "mnist": {"sizes": (196, 100, 100, 10), "passes": 38_400, "rows": None},
    "fashion_mnist": {"sizes": (196, 100, 100, 10), "passes": 38_400, "rows": None},
    "mnist-fashion": {"sizes": (784, 256, 128, 20), "passes": 38_400, "rows": None},
    "mnist-fashion-14": {"sizes": (196, 100, 100, 20), "passes": 38_400, "rows": None},
    "permuted": {"sizes": (196, 100, 100, 10), "passes": 12_800, "rows": 10_000},
}


def pair_tasks(
    first: Table, second: Table, shift: int, part: str = "test"
) -> list[Task]:
    """Make two tasks of two data sets; the second one's labels are shifted.

    Args:
        first, second: the data sets, inputs of one shape.
        shift: added to the labels of the second.
        part: score on the `test` rows, or on the validation rows with `val`.

    Source: van de Ven and Tolias 2019, section 2 (class-incremental learning).

    Examples:
        >>> from geolib.networks import table
        >>> digits = table("digits")
        >>> [t.classes[-1] for t in pair_tasks(digits, digits, 10)]
        [9, 19]
    """
    tasks = []
    for data, add in ((first, 0), (second, shift)):
        xs, ys = data.x_test, data.y_test
        if part == "val":
            xs, ys = data.x_val, data.y_val
        classes = tuple(int(c) + add for c in data.y.unique().tolist())
        tasks.append(Task(data.x, data.y + add, xs, ys + add, classes))
    return tasks


def permuted_tasks(data: Table, count: int, part: str = "test") -> list[Task]:
    """Make tasks of one data set, each with the pixels in a random order of its own.

    Args:
        data: the data set, inputs (n, d).
        count: how many; the first keeps the order that there is.
        part: score on the `test` rows, or on the validation rows with `val`.

    Source: Goodfellow et al. 2013, section 4 (reformatted inputs).

    Examples:
        >>> tasks = permuted_tasks(data_table("digits"), 3)
        >>> [t.x[:, 1:].equal(tasks[0].x[:, 1:]) for t in tasks], len(tasks[2].classes)
        ([True, False, False], 10)
    """
    xs, ys = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    classes, d = tuple(data.y.unique().tolist()), data.x.shape[1]
    orders = [np.random.default_rng(k).permutation(d) for k in range(1, count)]
    orders = [torch.from_numpy(order) for order in [np.arange(d), *orders]]
    return [Task(data.x[:, o], data.y, xs[:, o], ys, classes) for o in orders]


@functools.lru_cache(maxsize=8)
def task_list(name: str, groups: str, part: str = "test") -> tuple[Task, ...]:
    """The tasks of a protocol: `5x2` or `2x5` of one data set, of two, or permuted."""
    rows = LEARN_NET[name]["rows"]
    if name.startswith("mnist-fashion"):
        small = name.endswith("14")
        pair = [data_table(n, rows, small) for n in ("mnist", "fashion_mnist")]
        return tuple(pair_tasks(pair[0], pair[1], shift=10, part=part))
    if name == "permuted":
        return tuple(permuted_tasks(data_table("mnist", rows, True), 10, part))
    return tuple(split_tasks(data_table(name, rows, True), GROUPS[groups], part))


def learn_score(
    name: str,
    groups: str,
    scenario: str,
    method: str,
    setting: Setting,
    seed: int,
    memory: int = 50,
    part: str = "test",
    more: float = 1,
) -> dict[str, Any]:
    """Average accuracy and forgetting of one run, and the compute it took.

    `more` is a factor on the passes of each task.

    Examples:
        >>> row = learn_score("digits", "2x5", "class", "fine-tuning", {}, 0)
        >>> row["average"] < 0.6 < row["forgetting"]
        True
    """
    plan = LEARN_NET[name]
    tasks = list(task_list(name, groups, part))
    net = mlp(plan["sizes"], seed, dtype=tasks[0].x.dtype)
    found = learn_sequence(
        net,
        tasks,
        learner_of(method),
        scenario=scenario,
        memory=memory,
        gradient_evaluations=round(more * plan["passes"]),
        seed=seed,
        **standard(setting),
    )
    return {
        "average": found.average,
        "forgetting": found.forgetting,
        "last": float(found.table[-1, -1]),
        "first": float(found.table[-1, 0]),
        "passes": found.gradient_evaluations,
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
    return learner_of(label).needs_memory


def learner_of(label: str) -> type[Learner]:
    """The class of a method of the library or of our variants.

    Examples:
        >>> learner_of("invariant path (Fisher)").__name__
        'InvariantPath'
    """
    return KNOWN[method_of(label)]


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


# ---- paths ---------------------------------------------------------------------------

KINDS = (
    "straight line",
    "aligned line",
    "Bezier, labels",
    "geodesic",
    "aligned geodesic",
)
# MNIST's images are averaged to 14 x 14, as in the comparisons of learning in turn
NETS: dict[str, tuple[int, ...]] = {
    "digits": (64, 32, 32, 10),
    "mnist": (196, 100, 100, 10),
    "fashion_mnist": (196, 100, 100, 10),
}
TRAIN_STEPS = 1200
PASSES = 307_200  # gradient evaluations times inputs that each search may spend
BATCH = 128
# the loss along a path and its length are taken on at most so many inputs
SCORED = 5000
PATH_GRID: dict[str, dict[str, Sequence[Setting]]] = {
    "digits": {
        "geodesic": [{"lr": r, "bends": m} for r in (3e-3, 1e-2) for m in (2, 4)],
        "Bezier, labels": [{"lr": r} for r in (3e-3, 1e-2, 2e-2, 5e-2)],
    },
    "mnist": {
        "geodesic": [{"lr": r} for r in (1e-3, 3e-3)],
        "Bezier, labels": [{"lr": r} for r in (1e-3, 3e-3)],
    },
}
TUNING_PAIRS = (50, 51)  # networks of the seeds 100 to 103


def data_of(name: str) -> Table:
    """The data set of the comparison; 10,000 training rows of images."""
    return data_table(name) if name == "digits" else data_table(name, 10_000, True)


@functools.lru_cache(maxsize=4)
def trained_pair(name: str, pair: int) -> tuple[Realization, Tensor, Tensor]:
    """The two trained networks of a pair: seeds 2 pair and 2 pair + 1."""
    data = data_of(name)
    seeds = (2 * pair, 2 * pair + 1)
    nets = [Realization(mlp(NETS[name], s, dtype=data.x.dtype)) for s in seeds]
    a, b = (
        train(R, data.x, data.y, steps=TRAIN_STEPS, seed=s)
        for R, s in zip(nets, seeds, strict=True)
    )
    return nets[0], a, b


def aligned_weights(sizes: Sequence[int], a: Tensor, b: Tensor) -> Tensor:
    """Weights of the second network with its hidden units in the order of the first."""
    first, second = (mlp(sizes, dtype=a.dtype).to(a.device) for _ in range(2))
    Realization(first).load(a)
    Realization(second).load(b)
    return Realization(align(first, second).module).theta0


def join(name: str, kind: str, setting: Setting, pair: int) -> Geodesic:
    """The path of one kind between the networks of a pair.

    Examples:
        >>> join("digits", "straight line", {}, 0).gradient_evaluations
        0
    """
    R, a, b = trained_pair(name, pair)
    data = data_of(name)
    steps = PASSES // BATCH
    if kind.startswith("aligned"):
        b = aligned_weights(NETS[name], a, b)
    if kind.endswith("line"):
        return Geodesic(WeightPath(a, b), [], 0, 1.0, True, "a straight line")
    options = {"batch": BATCH, "seed": pair, **standard(setting)}
    if kind == "Bezier, labels":
        return trained_curve(R, a, b, data.x, data.y, steps=steps, **options)
    pieces = options.setdefault("segments", 4)
    bends = options.pop("bends", 4)
    knots = options.pop("knots", False)
    basis = LinearSplineBasis(pieces - 1) if knots else SineBasis(bends)
    space = FunctionSpace(R, data.x)
    return geodesic(space, a, b, basis=basis, steps=steps // (pieces - 1), **options)


def path_score(name: str, kind: str, setting: Setting, pair: int) -> dict[str, Any]:
    """Barriers, accuracies, length with its lower bounds, and what the path cost.

    Examples:
        >>> row = path_score("digits", "straight line", {}, 0)
        >>> row["train_barrier"] > 0.2, row["chord"] <= row["arc"] <= row["length"]
        (True, True)
    """
    R, a, b = trained_pair(name, pair)
    data = data_of(name)
    clock = time.process_time()
    found = join(name, kind, setting, pair)
    seconds = time.process_time() - clock
    x, y = data.x[:SCORED], data.y[:SCORED]
    inner = profile(found.path, lambda w: R(w, x), y, 33)
    outer = profile(found.path, lambda w: R(w, data.x_test), data.y_test, 33)
    size = lengths(FunctionSpace(R, x), found.path, 65)
    return {
        "train_barrier": inner.barrier,
        "test_barrier": outer.barrier,
        "worst": outer.worst,
        "middle": outer.middle,
        "ends": (outer.accuracy[0] + outer.accuracy[-1]).item() / 2,
        "length": size.output,
        "arc": size.arc,
        "chord": size.chord,
        "passes": found.gradient_evaluations,
        "seconds": round(seconds, 2),
        "converged": found.converged,
        **_averages(R, data, found.path, a, b),
    }


def _averages(
    R: Realization, data: Table, path: WeightPath, a: Tensor, b: Tensor
) -> dict[str, float]:
    """The ensemble of both ends, and how well it and the midpoint are calibrated."""
    with torch.no_grad():
        both = (R(a, data.x_test) + R(b, data.x_test)) / 2
        middle = R(path(torch.tensor([0.5]).to(a))[0], data.x_test)
        one = R(a, data.x_test)
    y = data.y_test
    return {
        "ensemble": (both.argmax(1) == y).double().mean().item(),
        "ece_ensemble": calibration_error(both, y),
        "ece_middle": calibration_error(middle, y),
        "ece_end": calibration_error(one, y),
    }


def validation_barrier(name: str, kind: str, setting: Setting, pair: int) -> float:
    """Loss barrier on the validation rows: what settings are chosen by."""
    R = trained_pair(name, pair)[0]
    data = data_of(name)
    path = join(name, kind, setting, pair).path
    return profile(path, lambda w: R(w, data.x_val), data.y_val, 33).barrier


def train_barrier(name: str, setting: Setting, pair: int) -> float:
    """Training loss barrier of the geodesic search under a setting, on 129 times."""
    R = trained_pair(name, pair)[0]
    data = data_of(name)
    path = join(name, "geodesic", setting, pair).path
    return profile(path, lambda w: R(w, data.x), data.y, 129).barrier
