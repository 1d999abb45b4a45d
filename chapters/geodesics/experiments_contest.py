"""The contest on MNIST: every method tuned on one size of grid, at equal passes.

    geolib sweep geodesics-contest --size full

A setting is chosen on validation rows with networks of seeds of its own and kept with
each run; the rows of the table have other seeds and are scored on test rows. A method
"with chosen inputs" takes the setting that was chosen for its rival without. Pruning:
784-300-100-10, 102,400 passes. Connecting: 196-100-100-10 on 14 x 14 pixels, 307,200
passes. Learning in turn: five tasks of two classes, all classes competing, 50 inputs
stored a task, 38,400 passes a task.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
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
    best_setting,
    data_of,
    learn_score,
    prune_score,
    trained_pair,
)

from geolib.geodesics import (
    FunctionSpace,
    Geodesic,
    SineBasis,
    WeightPath,
    geodesic,
    profile,
    trained_curve,
)
from geolib.sweep import Store, Sweep

FOLDER = Path(__file__).parents[2] / "_build" / "contest-settings"
LEVELS = (0.9, 0.95, 0.98, 0.99)
SEEDS = {"prune": (10, 11, 12), "learn": (10, 11, 12, 13, 14), "connect": range(3)}
TUNED_BY = {"prune": 100, "learn": 100, "connect": 50}  # seed, or pair of seeds

RATES = (3e-3, 1e-2, 3e-2)
BY_RATE: Sequence[Setting] = [{"lr": r, "flat": True} for r in RATES]
PRUNING: dict[str, Sequence[Setting]] = {
    "adaptive metric + labels": BY_RATE,
    "gradual LAMP + labels": BY_RATE,
    "gradual Kronecker OBS + labels": BY_RATE,
    "gradual ERK + labels": BY_RATE,
    "gradual + labels": BY_RATE,
    "metric mask": [{"damping": m, "steps": 30} for m in (1e-3, 1e-2, 1e-1)],
}


def _grid(**second: Sequence[float]) -> list[Setting]:
    ((name, values),) = second.items()
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    return [{"lr": r, name: v} for r in rates for v in values]


LEARNING: dict[str, Sequence[Setting]] = {
    "distilled logits": _grid(strength=(0.3, 1.0)),
    "distilled logits, chosen inputs": [],
    "DER++": _grid(strength=(0.3, 1.0)),
    "ER-ACE": _grid(strength=(1.0, 3.0)),
    "penalty path": _grid(strength=(1.0, 3.0)),
    "replay": _grid(strength=(1.0, 3.0)),
    "without forgetting": _grid(strength=(1.0, 10.0)),
    "elastic weights": _grid(strength=(1e2, 1e4)),
}
CONNECTING: dict[str, Sequence[Setting]] = {
    kind: [{"lr": r} for r in (1e-3, 3e-3, 1e-2)]
    for kind in (
        "aligned arc",
        "Bezier, labels",
        "aligned Bezier, labels",
        "aligned geodesic",
        "arc",
    )
} | {"aligned line": [{}], "line": [{}]}
METHODS = {"prune": PRUNING, "learn": LEARNING, "connect": CONNECTING}


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
    """The setting of a method and the validation scores of its grid; computed once."""
    method = method.removesuffix(", chosen inputs")  # ours have the rival's setting
    store, key = Store(FOLDER), f"{task}-{method}".replace(" ", "_").replace(",", "")
    if not store.has("tuned", key):

        def value(setting: Setting, seed: int) -> float:
            found = score(task, method, setting, seed, 0.99, "val")
            if task == "connect":
                return -found["test_barrier"]
            return found["accuracy" if task == "prune" else "average"]

        grid = METHODS[task][method]
        if len(grid) == 1:
            record = {"setting": dict(grid[0]), "scores": []}
        else:
            record = best_setting(value, grid, [TUNED_BY[task]])
        store.put("tuned", key, {"status": "done", "spec": {}, "record": record})
    row = store.rows("tuned", [key])[0]
    return {"setting": row["setting"], "scores": row["scores"]}


def score(
    task: str, method: str, setting: Setting, seed: int, level: float, part: str
) -> dict[str, Any]:
    """What one run of a method is worth on one part of the data."""
    if task == "prune":
        return dict(prune_score("mnist", method, setting, level, seed, part))
    if task == "learn":
        plan = {"memory": 50, "part": part}
        name = method.removesuffix(", chosen inputs")
        known = method if method in comparisons.KNOWN else name
        row = learn_score("mnist", "5x2", "class", known, setting, seed, **plan)
        return {k: row[k] for k in ("average", "forgetting", "last", "passes")}
    return join_score(method, setting, seed, part)


def join_score(kind: str, setting: Setting, pair: int, part: str) -> dict[str, Any]:
    """Barriers, and the accuracies of the path, its midpoint and its better end."""
    R, a, b = trained_pair("mnist", pair)
    data = data_of("mnist")
    steps, n = PASSES // BATCH, len(data.x)
    if kind.startswith("aligned"):
        b = aligned_weights(NETS["mnist"], a, b)
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


def contest_specs() -> list[ContestSpec]:
    """All rows, seed by seed, so that what is stored early is a whole table."""
    found = [
        ContestSpec(task, method, seed)
        for task in ("learn", "connect")
        for method, seed in itertools.product(METHODS[task], SEEDS[task])
    ]
    rows = itertools.product(SEEDS["prune"], LEVELS[::-1], PRUNING)
    return found + [ContestSpec("prune", m, s, level) for s, level, m in rows]


def contest_entry(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A record in its file and under its key, rounded to five digits."""
    key = f"{row['task']} | {row['method']} | {row['level']:g} | {row['seed']}"
    names = ("task", "method", "level", "seed", "key")
    figures = {
        k: round(v, 5) if isinstance(v, float) else v
        for k, v in row.items()
        if k not in names
    }
    return "contest-mnist", key, figures


CONTEST = Sweep(
    "geodesics-contest",
    run_contest,
    {"full": contest_specs},
    text="Sparse networks, paths and tasks in turn on MNIST, all methods tuned alike.",
    kept_as=contest_entry,
    about={"device": "two shared cores, one thread"},
)
