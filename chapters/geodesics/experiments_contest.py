"""The contest on MNIST: every method tuned on one size of grid, at equal passes.

    geolib sweep geodesics-contest --size full

A setting is chosen on validation rows with networks of seeds of its own and kept with
each run; the rows of the table have other seeds and are scored on test rows. A method
"with chosen inputs" takes the setting that was chosen for its rival without. Pruning:
784-300-100-10, 102,400 passes. Connecting: 196-100-100-10 on 14 x 14 pixels, MNIST or
Fashion-MNIST, 307,200 passes. Learning in turn: the same networks and data, five tasks
of two classes or two of five, all classes competing, 50 inputs stored a task, 38,400
passes a task; methods without a memory, and replay of labels alone, in the first alone.
`learn pair` is MNIST and then Fashion-MNIST with twenty classes, `learn permuted` MNIST
with ten orders of the pixels, 12,800 passes each. The tasks of `lenet.py`, networks with BatchNorm
on 14 x 14 pixels, have three seeds (pruning on Fashion-MNIST five): pruning by 102,400
passes, connecting by 76,800.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparisons
from comparisons import (
    BATCH,
    NETS,
    PASSES,
    Setting,
    aligned_weights,
    data_of,
    learn_score,
    prune_score,
    trained_pair,
)
from lenet import join_lenet, prune_lenet

from geolib.files import digest
from geolib.geodesics import (
    FunctionSpace,
    Geodesic,
    SineBasis,
    WeightPath,
    geodesic,
    profile,
    trained_curve,
)
from geolib.sweep import Store, Sweep, measured

FOLDER = Path(__file__).parents[2] / "_build" / "contest-settings"
LEVELS = (0.9, 0.95, 0.98, 0.99)  # of zeros; settings are chosen at the highest
LENET_LEVELS = (0.8, 0.95, 0.98)
# Learning in turn: the data and how its classes are divided, by the name of the task.
PROTOCOLS = {
    "learn": ("mnist", "5x2"),
    "learn 2x5": ("mnist", "2x5"),
    "learn fashion": ("fashion_mnist", "5x2"),
    "learn fashion 2x5": ("fashion_mnist", "2x5"),
    "learn pair": ("mnist-fashion-14", "pair"),
    "learn permuted": ("permuted", "ten"),
}
JOINED = {"connect": "mnist", "connect fashion": "fashion_mnist"}  # its data by task
LENETS = {  # networks with BatchNorm
    "prune lenet": "mnist",
    "prune fashion lenet": "fashion_mnist",
    "connect lenet": "mnist",
    "connect fashion lenet": "fashion_mnist",
}
SEEDS = {
    "prune": (10, 11, 12, 13, 14),
    "learn": (10, 11, 12, 13, 14),
    "connect": (0, 1, 2, 3, 4),
}
LENET_SEEDS = {"prune fashion lenet": 5}  # three of them for the others
SCORE = {"prune": "accuracy", "learn": "average"}
TUNED_BY = {"prune": 100, "learn": 100, "connect": 50}  # seed, or pair of seeds

# Rivals whose passes take less time than ours get as many more as fit in our seconds (the
# ratio of the stored `cpu` of both), with the settings that were chosen at equal passes.
LONGER = {"prune longer": 1.5, "learn longer": 2.1}

# The values of each setting that are tried at first. Where the best is the first or the
# last of its row, the row grows by a step of about three, until it is inside.
Axes = Mapping[str, Sequence[float]]
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
GROWN = 6  # times at most
BY_RATE: Axes = {"lr": RATES, "flat": (True,)}
PRUNING: dict[str, Axes] = {
    "adaptive metric + labels": BY_RATE,
    "gradual LAMP + labels": BY_RATE,
    "gradual Kronecker OBS + labels": BY_RATE,
    "gradual magnitude + labels": BY_RATE,
    "gradual ERK + labels": BY_RATE,
    "metric mask": {"damping": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "steps": (30,)},
}


def _by_strength(*strengths: float) -> Axes:
    return {"lr": (1e-4, *RATES), "strength": strengths}


LEARNING: dict[str, Axes] = {
    "distilled logits": _by_strength(0.3, 1.0, 3.0),
    "distilled logits, chosen inputs": {},
    "DER++": _by_strength(0.3, 1.0, 3.0),
    "ER-ACE": _by_strength(0.3, 1.0, 3.0),
    "penalty path": _by_strength(1.0, 3.0, 10.0),
    "replay": _by_strength(1.0, 3.0, 10.0),
    "invariant path": {
        "damping": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        "rate": (0.3, 1.0, 3.0),
    },
    "invariant path, chosen inputs": {},
    "without forgetting": _by_strength(1.0, 10.0, 100.0),
    "elastic weights": _by_strength(1e2, 1e4, 1e6),
}
# in the first task alone: they keep no memory, or replay labels alone, and came last
FIRST_ALONE = ("without forgetting", "elastic weights", "replay")
CONNECTING: dict[str, Axes] = {
    kind: {"lr": RATES}
    for kind in (
        "aligned arc",
        "Bezier, labels",
        "aligned Bezier, labels",
        "aligned geodesic",
        "arc",
    )
} | {"aligned line": {}, "line": {}}
METHODS = {"prune": PRUNING, "learn": LEARNING}
METHODS |= dict.fromkeys(JOINED, CONNECTING)
METHODS |= {task: METHODS[task.split()[0]] for task in LENETS}
METHODS |= {
    task: {m: g for m, g in LEARNING.items() if m not in FIRST_ALONE}
    for task in PROTOCOLS
    if task != "learn"
}
QUICK = {
    "prune longer": ("gradual magnitude + labels", "gradual ERK + labels"),
    "learn longer": ("DER++", "distilled logits"),
}
METHODS |= {t: {m: METHODS[t[:5]][m] for m in QUICK[t]} for t in LONGER}


@dataclass(frozen=True)
class ContestSpec:
    """One run: a seed (or pair of networks) of one method; `level` is that of zeros."""

    task: str
    method: str
    seed: int
    level: float = 0.0


def run_contest(spec: ContestSpec) -> dict[str, Any]:
    """One run with the setting that was chosen for its method."""
    found = tuned(spec.task, spec.method)
    start = time.process_time()
    record = score(
        spec.task, spec.method, found["setting"], spec.seed, spec.level, "test"
    )
    seconds = round(time.process_time() - start, 2)
    return {**record, **found, "cpu": seconds}


def tuned(task: str, method: str) -> dict[str, Any]:
    """The setting of a method, the scores of all that were tried, and the edges."""
    if task in LONGER:
        return chosen_before(task.removesuffix(" longer"), method)
    method = method.removesuffix(", chosen inputs")  # ours have the rival's setting
    return best_of(METHODS[task][method], lambda s: validated(task, method, s))


def best_of(
    grid: Axes, score: Callable[[Setting], tuple[float, float]]
) -> dict[str, Any]:
    """The setting of the greatest score; rows grow until it is at none of their ends.

    Examples:
        >>> found = best_of({"lr": (0.1, 0.3)}, lambda s: (-abs(s["lr"] - 1), 0.0))
        >>> found["setting"], found["edges"], len(found["scores"])
        ({'lr': 0.9}, [], 4)
    """
    axes = {name: list(values) for name, values in grid.items()}
    scores: dict[str, tuple[float, float]] = {}
    for _ in range(GROWN + 1):
        for values in itertools.product(*axes.values()):
            setting = dict(zip(axes, values, strict=True))
            scores[json.dumps(setting)] = score(setting)
        best = json.loads(max(scores, key=scores.__getitem__))
        edges = [n for n in axes if _grown(n, axes[n], best[n]) != axes[n]]
        if not edges:
            break
        axes |= {n: _grown(n, axes[n], best[n]) for n in edges}
    return {
        "setting": best,
        "edges": edges,
        "scores": {k: v[0] for k, v in scores.items()},
    }


def chosen_before(task: str, method: str) -> dict[str, Any]:
    """What `tuned` found for a method, as its stored rows have it."""
    rows = measured(Path(__file__).parent / "measured" / "contest-mnist.json").entries
    row = next(v for k, v in rows.items() if k.startswith(f"{task} | {method} |"))
    return {k: row[k] for k in ("setting", "edges", "scores")}


def _grown(name: str, values: list[float], best: float) -> list[float]:
    """A row of values, with one more at the end where the best one is."""
    if len(values) < 2 or values[0] < best < values[-1]:
        return values
    step = 10.0 if name == "strength" and values[1] >= 10 * values[0] else 10**0.5
    if best == values[0]:
        return [float(f"{best / step:.1g}"), *values]
    return [*values, float(f"{best * step:.1g}")]


def validated(task: str, method: str, setting: Setting) -> tuple[float, float]:
    """The score of one setting on validation rows; computed once and kept.

    Of paths without any barrier the one with the better midpoint counts as better.
    """
    what = json.dumps([task, method, setting])
    store, key = Store(FOLDER), digest(what.encode())
    if not store.has("tuned", key):
        seed = TUNED_BY[task.split()[0]]
        found = score(task, method, setting, seed, levels_of(task)[-1], "val")
        if task.startswith("connect"):
            value = [-found["test_barrier"], found["middle"]]
        else:
            value = [found[SCORE[task[:5]]], 0.0]
        value = [round(v, 4) if math.isfinite(v) else -1e9 for v in value]
        entry = {"status": "done", "spec": {"what": what}, "record": {"score": value}}
        store.put("tuned", key, entry)
    first, second = store.rows("tuned", [key])[0]["score"]
    return first, second


def score(
    task: str, method: str, setting: Setting, seed: int, level: float, part: str
) -> dict[str, Any]:
    """What one run of a method is worth on one part of the data."""
    if task in LENETS:
        run = [LENETS[task], method, setting]
        if task.startswith("connect"):
            return join_lenet(*run, seed, part)
        return prune_lenet(*run, level, seed, part)
    if task == "prune longer":
        setting = {**setting, "steps": round(400 * LONGER[task])}
    if task.startswith("prune"):
        return dict(prune_score("mnist", method, setting, level, seed, part))
    if task in PROTOCOLS or task in LONGER:
        plan: dict[str, Any] = {"memory": 50, "part": part, "more": LONGER.get(task, 1)}
        name = method.removesuffix(", chosen inputs")
        known = method if method in comparisons.KNOWN else name
        if known == name != method:
            setting = {**setting, "rule": "mean"}
        data = PROTOCOLS[task.removesuffix(" longer")]
        row = learn_score(*data, "class", known, setting, seed, **plan)
        return {k: row[k] for k in ("average", "forgetting", "last", "passes")}
    return join_score(JOINED[task], method, setting, seed, part)


def join_score(
    name: str, kind: str, setting: Setting, pair: int, part: str
) -> dict[str, Any]:
    """Barriers, and the accuracies of the path, its midpoint and its better end."""
    R, a, b = trained_pair(name, pair)
    data = data_of(name)
    steps, n = PASSES // BATCH, len(data.x)
    if kind.startswith("aligned"):
        b = aligned_weights(NETS[name], a, b)
    plain = kind.removeprefix("aligned ")
    plan = {"batch": BATCH, "seed": pair, **setting}
    if plain == "line":
        found = Geodesic(WeightPath(a, b), [], 0, 1.0, True, "a straight line")
    elif plain == "Bezier, labels":
        found = trained_curve(R, a, b, data.x, data.y, steps=steps, **plan)
    elif plain == "arc":  # the answers of both ends on all inputs are paid for
        left = (PASSES - 2 * n) // BATCH
        found = trained_curve(R, a, b, data.x, steps=left, **plan)
    else:
        basis, left = SineBasis(4), (PASSES - 2 * n) // (3 * BATCH)
        space = FunctionSpace(R, data.x)
        found = geodesic(space, a, b, basis=basis, steps=left, **plan)
    x, y = (data.x_val, data.y_val) if part == "val" else (data.x_test, data.y_test)
    outer = profile(found.path, lambda w: R(w, x), y, 33)
    inner = profile(found.path, lambda w: R(w, data.x[:5000]), data.y[:5000], 33)
    return {
        "train_barrier": inner.barrier,
        "test_barrier": outer.barrier,
        "worst": outer.worst,
        "middle": outer.middle,
        "better_end": max(outer.accuracy[0].item(), outer.accuracy[-1].item()),
        "passes": found.gradient_evaluations,
    }


def task_specs(task: str) -> list[ContestSpec]:
    """The rows of one task, seed by seed: what is stored early is a whole table."""
    seeds = SEEDS[task.split()[0]][: LENET_SEEDS.get(task, 3 if task in LENETS else 5)]
    rows = itertools.product(seeds, levels_of(task)[::-1], METHODS[task])
    return [ContestSpec(task, m, seed, level) for seed, level, m in rows]


def levels_of(task: str) -> Sequence[float]:
    """The shares of zeros of a task; none but 0 where nothing is pruned."""
    if not task.startswith("prune"):
        return (0.0,)
    return LENET_LEVELS if task in LENETS else LEVELS


def contest_entry(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A record in its file and under its key, rounded to five digits, with its date."""
    key = f"{row['task']} | {row['method']} | {row['level']:g} | {row['seed']}"
    names = ("task", "method", "level", "seed", "key")
    figures = {
        k: round(v, 5) if isinstance(v, float) else v
        for k, v in row.items()
        if k not in names
    }
    figures["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    return "contest-mnist", key, figures


CONTEST = Sweep(
    "geodesics-contest",
    run_contest,
    {task: functools.partial(task_specs, task) for task in METHODS}
    | {"full": lambda: [spec for task in METHODS for spec in task_specs(task)]},
    text="Sparse networks, paths and tasks in turn on MNIST, all methods tuned alike.",
    kept_as=contest_entry,
    about={"device": "two shared cores, one thread"},
)
