"""VGGs on all of CIFAR-10: a sweep whose unit is a pair of networks.

    geolib sweep vgg --size quarter --scheduler inline

A unit trains the two networks of a pair, joins them by paths of equal passes and makes
the first of them sparse; `split` learns five tasks of two classes in turn instead. Every
stage that has ended is kept, and a training writes its state as it goes, so that a unit
which was killed goes on from there. Scores are on 5,000 training images that are held out;
each method's rate is the best of the same row on a short pair of its own, by 5,000 images
of the other 45,000. VGG16 takes the rates of VGG11. `full` is the full width, for a GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparisons import GROUPS, KNOWN, Setting
from experiments_contest import Axes, best_of
from experiments_vgg import kept
from lenet import joined, pruned
from torch import nn
from vgg import vgg

from geolib.core import Realization
from geolib.files import digest
from geolib.geodesics import learn_sequence, sparsify
from geolib.networks import Table, accuracy, split_tasks, table, train_module
from geolib.sweep import Sweep

FOLDER = Path(__file__).parents[2] / "_build" / "vgg-sweep"
HELD = 5000  # images for scores, and as many more for settings
TRAIN = {"batch": 128, "lr": 3e-3}
TUNED_ON = 50  # the pair, or seed, that settings are chosen on, by short runs
LEVELS = (0.9, 0.95)  # of zeros; settings are chosen at the higher
OURS, RIVAL = "sparsify, labels", "gradual LAMP + labels"
LEARNERS = ("distilled logits, chosen inputs", "DER++")
EACH = 13  # steps of Adam for one of `sparsify`
GRID = 11  # points of a path that are scored


@dataclass(frozen=True)
class Budget:
    """Compute of each stage: steps of 128 or 256 images, or passes."""

    training: int = 4000
    joining: int = 204_800
    pruning: int = 31  # steps of `sparsify`, 256 images each
    learning: int = 76_800  # passes a task


BUDGET, SHORT = Budget(), Budget(1000, 120_000, 8, 19_200)
# The rows of settings that are tried; they grow where the best is at their end.
RATES: Axes = {"lr": (1e-3, 3e-3, 1e-2, 3e-2)}
BY_STRENGTH: Axes = {"lr": (3e-4, 1e-3, 3e-3), "strength": (0.3, 1.0, 3.0)}
PATHS: Mapping[str, Axes] = {
    "line": {},
    "aligned line": {},
    "aligned arc": RATES,
    "Bezier, labels": RATES,
}


@dataclass(frozen=True)
class VggSpec:
    """One unit: `seed` is the number of a pair, or the seed of a sequence of tasks."""

    task: str
    network: str
    seed: int
    width: float = 0.25
    device: str = "cpu"

    @property
    def budget(self) -> Budget:
        """That of the pair, or seed, that settings are chosen on is short."""
        return SHORT if self.seed == TUNED_ON else BUDGET

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a stage and its processor time; what has ended is read."""
        plan = digest(repr((self.budget, TRAIN)).encode())[:8]  # of an older one: again
        parts = self.network, self.width, self.seed, plan, name
        key = re.sub(r"\W+", "-", " ".join(map(str, parts)))
        return kept(FOLDER, key, partial(_timed, work))


def _timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.process_time()
    found = {k: round(v, 5) if isinstance(v, float) else v for k, v in work().items()}
    return {**found, "cpu": round(time.process_time() - start, 1)}


@functools.lru_cache(maxsize=1)
def images(device: str = "cpu") -> Table:
    """CIFAR-10 with its held-out images as validation rows."""
    return table("cifar10", validation=HELD, dtype=torch.float32, device=device)


def data_of(spec: VggSpec) -> Table:
    """The images of a unit: those that settings are chosen by are training images."""
    data = images(spec.device)
    if spec.seed != TUNED_ON:
        return data
    held = {"x_val": data.x[:HELD], "y_val": data.y[:HELD]}
    return replace(data, x=data.x[HELD:], y=data.y[HELD:], **held)


def trained(spec: VggSpec, seed: int) -> nn.Module:
    """A network by Adam with cosine decay, on mirrored and shifted images."""
    classes = int(images(spec.device).y.max()) + 1
    made = vgg(spec.network, seed, True, classes, spec.width)
    net = made.to(spec.device, memory_format=torch.channels_last)  # a fifth faster
    file = FOLDER / f"{spec.network}-{spec.width:g}-{seed}.pt"
    plan = {
        "steps": spec.budget.training,
        "seed": seed,
        "file": file,
        "every": 50,
        **TRAIN,
    }
    return train_module(net, data_of(spec), augment=True, **plan)


@functools.lru_cache(maxsize=2)
def pair_of(spec: VggSpec) -> tuple[nn.Module, nn.Module]:
    """The networks of a pair: seeds 2 pair and 2 pair + 1."""
    return trained(spec, 2 * spec.seed), trained(spec, 2 * spec.seed + 1)


def run_pair(spec: VggSpec) -> dict[str, Any]:
    """Both networks, the paths between them, and the first one made sparse."""
    data, nets, record = data_of(spec), pair_of(spec), {}
    for name, net in zip(("first", "second"), nets, strict=True):
        R = Realization(net)
        score = accuracy(R, R.theta0, data.x_val, data.y_val, 512)
        record[f"{name} network"] = {"accuracy": round(score, 5)}
    for kind, grid in PATHS.items():
        record[kind] = searched(spec, kind, grid, join)
    for method, level in itertools.product((OURS, RIVAL), LEVELS):
        record[f"{method} | {level:g}"] = searched(spec, method, RATES, cut, level)
    return record


Search = Callable[..., dict[str, Any]]


def searched(
    spec: VggSpec, method: str, grid: Axes, search: Search, level: float = 0.0
) -> dict[str, Any]:
    """A stage of a unit, with the setting that did best on the pair for settings."""
    trial = replace(spec, network="vgg11", seed=TUNED_ON)
    top = LEVELS[-1] if level else 0.0

    def score(setting: Setting) -> tuple[float, float]:
        return goodness(ended(trial, method, setting, search, top))

    best = best_of(grid, score) if grid else {"setting": {}}
    return {**ended(spec, method, best["setting"], search, level), **best}


def ended(
    spec: VggSpec,
    method: str,
    setting: Setting,
    search: Search,
    level: float,
) -> dict[str, Any]:
    """What one setting gives, computed once."""
    name = f"{method} {level:g} {setting}"
    return spec.stage(name, lambda: search(spec, method, setting, level))


def goodness(found: Mapping[str, float]) -> tuple[float, float]:
    """What a setting is chosen by: an accuracy, or a small barrier and a good midpoint.

    Examples:
        >>> goodness({"test_barrier": 0.25, "middle": 0.9}), goodness({"average": 0.5})
        ((-0.25, 0.9), (0.5, 0.0))
    """
    if "test_barrier" in found:
        score = -found["test_barrier"], found["middle"]
    else:
        score = next(found[k] for k in ("accuracy", "average") if k in found), 0.0
    return score if math.isfinite(score[0]) else (-1e9, 0.0)


def join(spec: VggSpec, kind: str, setting: Setting, _level: float) -> dict[str, Any]:
    """One path between the networks of a pair."""
    plan = {"passes": spec.budget.joining, "grid": GRID}
    return joined(pair_of(spec), data_of(spec), kind, setting, spec.seed, "val", **plan)


def cut(spec: VggSpec, method: str, setting: Setting, level: float) -> dict[str, Any]:
    """The first network of a pair made sparse: as many steps of Adam for each method."""
    net, data, seed = pair_of(spec)[0], data_of(spec), spec.seed
    if method == RIVAL:
        plan = {**setting, "steps": EACH * spec.budget.pruning}
        return pruned(net, data, method, plan, level, seed, "val", data.x)
    plan = {"labels": data.y, "steps": spec.budget.pruning, "seed": seed, **setting}
    found = sparsify(net, data.x, level, **plan)
    R = Realization(found.module)
    score = accuracy(R, R.theta0, data.x_val, data.y_val, 512)
    return {"accuracy": score, "passes": found.gradient_evaluations}


def run_split(spec: VggSpec) -> dict[str, Any]:
    """Five tasks of two classes in turn, by our default and by its rival."""
    return {m: searched(spec, m, BY_STRENGTH, learn) for m in LEARNERS}


def learn(
    spec: VggSpec, method: str, setting: Setting, _level: float
) -> dict[str, Any]:
    """One sequence, all classes competing and 50 images of a task kept.

    The network has no BatchNorm: what is stored would be judged by other statistics.
    """
    tasks = split_tasks(data_of(spec), GROUPS["5x2"], "val")
    net = vgg(spec.network, spec.seed, False, len(tasks) * 2, spec.width)
    plan = {"gradient_evaluations": spec.budget.learning, "seed": spec.seed}
    found = learn_sequence(net.to(spec.device), tasks, KNOWN[method], **plan, **setting)
    if not found.converged:
        return {"average": 0.0, "forgetting": 1.0, "passes": found.gradient_evaluations}
    figures = {"average": found.average, "forgetting": found.forgetting}
    return {**figures, "passes": found.gradient_evaluations}


RUNS = {"pair": run_pair, "split": run_split}


def run_vgg(spec: VggSpec) -> dict[str, Any]:
    """One unit, and what it ran on."""
    threads = f"{torch.get_num_threads()} CPU threads"
    name = threads if spec.device == "cpu" else torch.cuda.get_device_name(spec.device)
    return {**RUNS[spec.task](spec), "ran_on": name}


def units(width: float, device: str = "cpu") -> list[VggSpec]:
    """What is asked for at one width, whole tables first."""
    some = [("pair", "vgg11", pair) for pair in range(3)]
    some += [("pair", "vgg16", 0)] + [("split", "vgg11", seed) for seed in range(3)]
    return [VggSpec(*unit, width, device) for unit in some]


def vgg_row(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A unit in the file of its width, with its date."""
    names = ("task", "network", "seed", "width", "device")
    figures = {k: v for k, v in row.items() if k not in names}
    figures["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    key = " | ".join(str(row[k]) for k in names[:3])
    return f"vgg-{row['width']:g}", key, figures


VGG_PAIRS = Sweep(
    "vgg",
    run_vgg,
    {
        "small": lambda: units(1 / 8)[:1],
        "quarter": lambda: units(1 / 4),
        "full": lambda: units(1.0, "cuda"),
    },
    text="Pairs of VGGs on all of CIFAR-10: paths, sparse networks, tasks in turn.",
    kept_as=vgg_row,
)


Entries = Mapping[str, Mapping[str, Any]]
NAMES = {"pair": "{}-BN", "split": "split CIFAR-10, {}"}


def study() -> dict[str, dict[str, float]]:
    """Steps of 256 images of each stage, for the pairs of a quarter of the width."""

    def steps(budget: Budget, searches: int, cuts: int) -> dict[str, float]:
        joins = searches * budget.joining / 256
        return {
            "training": 2 * budget.training * TRAIN["batch"] / 256,
            "arc": joins,
            "curve on labels": joins,
            "pruning on labels": 2 * cuts * EACH * budget.pruning,
        }

    each, tried = (
        steps(BUDGET, 1, len(LEVELS)),
        steps(SHORT, len(RATES["lr"]), len(RATES["lr"])),
    )
    pairs = [spec.network for spec in units(1 / 4) if spec.task == "pair"]
    return {
        stage: {
            "vgg11": pairs.count("vgg11") * each[stage] + tried[stage],
            "vgg16": pairs.count("vgg16") * each[stage],
        }
        for stage in each
    }


def cost_rows(costs: Entries) -> list[dict[str, str]]:
    """What a step of each stage costs at a quarter of the width, and the pairs' hours."""
    rows = []
    for stage, of in study().items():
        cells: dict[str, str] = {"stage, steps of 256 images": stage}
        for name, steps in of.items():
            each, head = costs[f"{name} | {stage}"]["seconds"], name.upper()
            cells |= {
                f"{head}, s a step": f"{each:.2f}",
                f"{head}, steps": f"{steps:.0f}",
            }
            cells |= {f"{head}, hours": f"{each * steps / 3600:.1f}"}
        rows.append(cells)
    return rows


def cost_hours(costs: Entries) -> float:
    """Hours of all pairs on one core; the scoring of paths comes on top."""
    seconds = [
        costs[f"{name} | {stage}"]["seconds"] * steps
        for stage, of in study().items()
        for name, steps in of.items()
    ]
    return sum(seconds) / 3600


def scale_rows(entries: Entries) -> list[dict[str, str]]:
    """Every unit at a quarter of the width, and whether, where and when it was run."""
    rows = []
    for spec in units(1 / 4):
        found = entries.get(f"{spec.task} | {spec.network} | {spec.seed}", {})
        pair = f"{2 * spec.seed}, {2 * spec.seed + 1}"
        rows.append(
            {
                "network": NAMES[spec.task].format(spec.network.upper()),
                "width": "a quarter",
                "seeds": pair if spec.task == "pair" else f"{spec.seed}",
                "images": "45,000",
                "device": found.get("ran_on", "-"),
                "date": found.get("date", "not run"),
            }
        )
    return rows


def pair_rows(entries: Entries) -> list[dict[str, str]]:
    """The pairs that have ended: their networks, paths and sparse networks."""
    rows = []
    for key, row in entries.items():
        if not key.startswith("pair"):
            continue
        ends = (row[f"{k} network"]["accuracy"] for k in ("first", "second"))
        cells = {"pair": key.removeprefix("pair | ").replace(" | ", ", ").upper()}
        cells["dense, %"] = " and ".join(f"{100 * a:.1f}" for a in ends)
        cells |= {f"barrier, {k}": f"{row[k]['test_barrier']:.3f}" for k in PATHS}
        for level, method in itertools.product(LEVELS, (OURS, RIVAL)):
            score = 100 * row[f"{method} | {level:g}"]["accuracy"]
            cells[f"{method.split(',')[0]}, {100 * level:.0f} %"] = f"{score:.1f}"
        rows.append(cells)
    return rows


def bars(entries: Entries) -> dict[str, float]:
    """Of the pairs that have ended, the figures that their bars are about.

    The dense network of least accuracy; the largest barrier of an aligned arc as a part
    of the line's; and by level our mean lead over the rival, in points.
    """
    pairs = [row for key, row in entries.items() if key.startswith("pair")]
    barrier = [
        [row[k]["test_barrier"] for k in ("aligned arc", "line")] for row in pairs
    ]
    found = {
        "dense": min(
            row[f"{k} network"]["accuracy"]
            for row in pairs
            for k in ("first", "second")
        ),
        "arc": max(arc / line for arc, line in barrier),
    }
    for level in LEVELS:
        ours, rival = (
            [row[f"{m} | {level:g}"]["accuracy"] for row in pairs]
            for m in (OURS, RIVAL)
        )
        found[f"{100 * level:.0f}"] = 100 * (sum(ours) - sum(rival)) / len(pairs)
    return found
