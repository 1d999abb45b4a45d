"""The comparisons of the chapter: specs, grids, seeds and tables, with one store.

    geolib sweep geodesics-pruning --size book

runs what the store lacks (also `-tuning`, `-learning`, `-paths`, `-vgg`), and with
`--publish` writes the records into `measured/`, which the notebooks read, recompute in
part, and check. What one entry means is in `comparisons.py`. Beside these, whose
settings were tuned, three sweeps take methods as they come, over more networks:
`mode-connectivity`, `sparsification`, `continual-learning`.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparisons import (
    VARIANT_GRID as VARIANT_GRID,
    KINDS as KINDS,
    LEARN_GRID as LEARN_GRID,
    LEARN_VARIANT_GRID as LEARN_VARIANT_GRID,
    PATH_GRID,
    PRUNE_GRID as PRUNE_GRID,
    PRUNE_NET,
    REPORT_SEEDS as REPORT_SEEDS,
    TUNING_PAIRS,
    TUNING_SEEDS,
    Setting,
    aligned_weights as aligned_weights,
    best_setting,
    data_table as data_table,
    dense as dense,
    dense_each as dense_each,
    learn_score as learn_score,
    path_score as path_score,
    prune_score as prune_score,
    train_barrier,
    uses_memory as uses_memory,
    validation_barrier,
)
from pruners import METHODS as METHODS
from torch import nn
from variants import PRUNING_VARIANTS as PRUNING_VARIANTS

from geolib import sweep as sweeps
from geolib.core import Realization
from geolib.geodesics import connect, learn_sequence
from geolib.networks import (
    Table,
    accuracy,
    mlp,
    recalibrate,
    split_tasks,
    table,
    train,
    train_module,
    vgg,
)
from geolib.sweep import Store, Sweep, grid

HERE = Path(__file__).parent


def vgg_study(
    data: Table,
    folder: str | Path,
    *,
    name: str = "vgg11",
    batch_norm: bool = True,
    width: float = 1.0,
    seeds: tuple[int, int] = (0, 1),
    steps: int = 8000,
    batch: int = 128,
    lr: float = 1e-3,
    bends: int = 2000,
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.99),
    walk: int = 40,
    device: str = "cpu",
    grid: int = 25,
) -> dict[str, Any]:
    """Train two VGGs, join them, sparsify one; every stage is kept in `folder`.

    Started again after a kill it reads the finished stages and resumes the training
    that was under way. The straight line, the Bezier curve trained on labels and the
    geodesic get equal passes; BatchNorm statistics are re-estimated at every scored
    point. Scores are on the validation rows, held out of the training data.

    Args:
        walk: steps of the invariant path to a sparse network, each of about ten passes;
            gradual pruning takes ten gradient steps for each.

    Returns:
        A record of all figures, with the settings they were measured at.
    """
    folder = Path(folder)
    tag = f"{name}{'-bn' if batch_norm else ''}"
    nets = []
    for s in seeds:
        net: nn.Module = vgg(
            name, s, batch_norm, int(data.y.max()) + 1, width, data.x.dtype
        )
        file = folder / f"{tag}-{s}.safetensors"
        options = {"steps": steps, "batch": batch, "lr": lr, "seed": s}
        nets.append(
            train_module(net.to(device), data, augment=True, file=file, **options)
        )
    shared = {"name": name, "batch_norm": batch_norm, "width": width, "steps": steps}
    record: dict[str, Any] = {"settings": shared, "ends": {}, "paths": {}, "sparse": {}}
    for s, net in zip(seeds, nets, strict=True):
        R = Realization(net)
        record["ends"][str(s)] = accuracy(R, R.theta0, data.x_val, data.y_val, 512)
    plans: dict[str, dict[str, Any]] = {
        "line": {},
        "curve": {"labels": data.y, "steps": 3 * bends, "batch": batch, "lr": 3e-3},
        "geodesic": {"steps": bends, "batch": batch, "lr": 1e-3, "checkpoint": True},
    }
    for method, plan in plans.items():
        work = partial(_joined, nets, data, method, plan, grid)
        record["paths"][method] = kept(folder, f"{tag}-{method}", work)
    record["sparse"] = _sparse_stages(
        data, folder, tag, nets[0], sparsities, batch, walk
    )
    return record


def _joined(nets, data, method: str, plan: dict[str, Any], grid: int) -> dict[str, Any]:
    """The path of one method between both networks, scored on the validation rows."""
    found = connect(nets[0], nets[1], data.x, method=method, **plan)
    scored = found.profile(data.x_val, data.y_val, grid)
    return {
        "barrier": scored.barrier,
        "worst": scored.worst,
        "middle": scored.middle,
        "passes": found.gradient_evaluations,
        "statistics": found.statistics,
        "message": found.message,
    }


def _sparse_stages(data, folder, tag, net, sparsities, batch, walk) -> dict[str, Any]:
    """Every method at every sparsity."""
    record: dict[str, Any] = {}
    plans: dict[str, dict[str, Any]] = {
        "one-shot": {},
        "gradual + labels": {"batch": batch, "steps": 10 * walk},
        "invariant path": {"batch": batch, "steps": walk},
    }
    for level, (method, plan) in itertools.product(sparsities, plans.items()):
        key = f"{tag}-{method.replace(' ', '-')}-{level:g}".replace(".", "_")
        found = kept(folder, key, partial(_cut, net, data, method, plan, level))
        record.setdefault(method, {})[f"{level:g}"] = found
    return record


def _cut(net, data, method: str, plan: dict[str, Any], level: float) -> dict[str, Any]:
    """One sparse network, its BatchNorm re-estimated, scored on the validation rows."""
    R = Realization(net)
    found = METHODS[method](R, R.theta0, data, level, **plan)
    twin = copy.deepcopy(net)
    Realization(twin).load(found.weights)
    recalibrate(twin, data.x)  # the statistics were the dense network's
    own = Realization(twin)
    score = accuracy(own, own.theta0, data.x_val, data.y_val, 512)
    return {"accuracy": score, "passes": found.gradient_evaluations}


def kept(folder: str | Path, key: str, work: Callable[[], dict[str, Any]]) -> dict:
    """Run `work()` once and keep its record; a finished stage is read, not run.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> kept(folder, "a", lambda: {"value": 1}), kept(folder, "a", dict)
        ({'value': 1}, {'value': 1})
    """
    store = Store(folder)
    if not store.has("vgg", key):
        store.put("vgg", key, {"status": "done", "spec": {}, "record": work()})
    return store.rows("vgg", [key])[0]


def measured(file: str) -> dict[str, dict[str, Any]]:
    """The entries of a file of measured results; none if it is not there.

    Raises:
        FileNotFoundError: this machine has no checkout of the book, so that settings
            which were chosen and stored there would be missed in silence.
    """
    if not HERE.is_dir():
        raise FileNotFoundError(f"measured: this machine has no {HERE}")
    return sweeps.measured(HERE / "measured" / f"{file}.json").entries


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


# ---- the sweeps ----------------------------------------------------------------------

SPARSITIES = {
    "digits": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    "mnist": (0.9, 0.95, 0.98, 0.99),
}
TUNED_AT = {"digits": (0.9, 0.95, 0.98), "mnist": (0.95, 0.99)}
PRUNERS = {**PRUNE_GRID, **VARIANT_GRID}
LEARNERS = {**LEARN_GRID, **LEARN_VARIANT_GRID}
SEARCHES = ("geodesic", "Bezier, labels")


@dataclass(frozen=True)
class Spec:
    """One entry of a file in `measured/`: its key says what is computed."""

    file: str
    key: str


def run(spec: Spec) -> dict[str, Any]:
    """Compute one entry; `cpu` is the processor time that it took."""
    start = time.process_time()
    kind, _, name = spec.file.rpartition("-")
    if name == "fashion":
        kind, name = kind.removesuffix("-mnist"), "mnist-fashion"
    parts = spec.key.split(" | ")
    found = RUNS[kind](name, *parts)
    return {**found, "cpu": round(time.process_time() - start, 2)}


def chosen(file: str, key: str) -> dict[str, Any]:
    """The setting that was chosen on validation rows; none for an untuned method."""
    return measured(file).get(key, {"setting": {}})["setting"]


def tune_pruning(name: str, label: str) -> dict[str, Any]:
    """The best setting of a method, by its mean accuracy over sparsities."""

    def score(setting: Setting, seed: int) -> float:
        found = [
            prune_score(name, label, setting, p, seed, "val") for p in TUNED_AT[name]
        ]
        return sum(f["accuracy"] for f in found) / len(found)

    return best_setting(score, PRUNERS[label], tuning_seeds(name))


def tune_learning(name: str, groups: str, scenario: str, label: str) -> dict[str, Any]:
    """The best setting of a method, by its average accuracy."""

    def score(setting: Setting, seed: int) -> float:
        row = learn_score(name, groups, scenario, label, setting, seed, part="val")
        return row["average"]

    seeds = tuning_seeds(name)
    return best_setting(
        score, LEARNERS[label], seeds if scenario == "class" else seeds[:1]
    )


def tune_path(name: str, kind: str) -> dict[str, Any]:
    """The best setting of a search, by the mean barrier on validation rows."""

    def score(setting: Setting, pair: int) -> float:
        return -validation_barrier(name, kind, setting, pair)

    pairs = TUNING_PAIRS[: 2 if name == "digits" else 1]
    return best_setting(score, PATH_GRID[name][kind], pairs)


def tuning_seeds(name: str) -> Sequence[int]:
    """The seeds that a setting is scored with."""
    return TUNING_SEEDS if name == "digits" else TUNING_SEEDS[:1]


def prune_entry(name: str, row: str, sparsity: str, seed: str) -> dict[str, Any]:
    """One sparse network; a row is a method or one of its two longer runs."""
    label = row.removesuffix(" x4").removesuffix(", 40 steps")
    source = "digits" if label in VARIANT_GRID else name  # tuned on digits only
    setting = chosen(f"tuning-prune-{source}", label)
    if row.endswith(" x4"):
        setting = {**setting, "steps": 1600}
    if row.endswith(", 40 steps"):
        setting = {**setting, "steps": 40}
    return prune_score(name, label, setting, float(sparsity), int(seed))


def learn_entry(
    name: str, groups: str, scenario: str, label: str, memory: str, seed: str
) -> dict[str, Any]:
    """One sequence of tasks, with the setting of its protocol."""
    tuned = tuned_protocol(name, groups, scenario)
    setting = chosen(f"tuning-learn-{name}", f"{tuned} | {label}")
    arguments = name, groups, scenario, label, setting, int(seed), int(memory)
    return learn_score(*arguments)


def tuned_protocol(name: str, groups: str, scenario: str) -> str:
    """The protocol whose tuning serves this one.

    Five tasks are harder than two and all classes at once harder than those of a task:
    settings are chosen on the hard ones.

    Examples:
        >>> tuned_protocol("digits", "2x5", "task"), tuned_protocol("mnist", "2x5", "task")
        ('5x2 | task', '5x2 | class')
    """
    if name == "mnist-fashion":
        return "pair | class"
    return f"5x2 | {scenario if name == 'digits' else 'class'}"


def path_entry(name: str, kind: str, pair: str) -> dict[str, Any]:
    """One path between the networks of a pair."""
    setting = chosen(f"tuning-paths-{name}", kind.removeprefix("aligned "))
    return path_score(name, kind, setting, int(pair))


def ablation_entry(
    name: str, kind: str, times: str, pieces: str, pair: str
) -> dict[str, Any]:
    """Barrier after equal compute: free knots or sines, fixed or random times."""
    setting = {
        "knots": kind == "knots",
        "jitter": times == "random",
        "segments": int(pieces),
    }
    return {"barrier": train_barrier(name, setting, int(pair))}


def vgg_entry(name: str, _key: str) -> dict[str, Any]:
    """A narrow VGG11 on few images: what a CPU can do, and no more than that."""
    plan = {"width": 1 / 8, "steps": 400, "batch": 64, "lr": 2e-3, "bends": 60}
    rows = {"train": 5000, "validation": 1000}
    data = table(name, dtype=torch.float32, **rows)
    folder = HERE.parents[1] / "_build" / f"vgg-{name}"
    found = vgg_study(data, folder, sparsities=(0.9,), grid=9, **plan)
    return {**found, "settings": {**found["settings"], **plan, **rows}}


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "tuning-prune": tune_pruning,
    "tuning-learn": tune_learning,
    "tuning-paths": tune_path,
    "prune": prune_entry,
    "learn": learn_entry,
    "memory": learn_entry,
    "paths": path_entry,
    "ablation-paths": ablation_entry,
    "vgg": vgg_entry,
}


def tuning(*names: str) -> Iterator[Spec]:
    """All searches for settings on the named data sets."""
    for name in names:
        if name in PRUNE_NET:
            plan = PRUNERS if name == "digits" else PRUNE_GRID
            yield from (Spec(f"tuning-prune-{name}", label) for label in plan)
        for tuned in dict.fromkeys(tuned_protocol(name, *p) for p in protocols(name)):
            for label in LEARNERS:
                yield Spec(f"tuning-learn-{name}", f"{tuned} | {label}")
        if name in PATH_GRID:
            yield from (Spec(f"tuning-paths-{name}", kind) for kind in SEARCHES)


def protocols(name: str) -> list[tuple[str, str]]:
    """Groups of classes and scenarios that are reported."""
    if name == "mnist-fashion":
        return [("pair", "class")]
    return [(g, s) for g in ("5x2", "2x5") for s in ("class", "task")]


def pruning(*names: str, seeds: int = 5) -> Iterator[Spec]:
    """Sparse networks of fresh seeds."""
    for name in names:
        rows = [*METHODS, *VARIANT_GRID]
        if name == "digits":
            rows += ["gradual + labels x4", "invariant path, 40 steps"]
        for seed in REPORT_SEEDS[:seeds]:
            for row in rows:
                for p in SPARSITIES[name]:
                    yield Spec(f"prune-{name}", f"{row} | {p:g} | {seed}")


def learning(*names: str, seeds: int = 3) -> Iterator[Spec]:
    """Sequences of tasks of fresh seeds; on digits with other memories too."""
    for name in names:
        for seed in REPORT_SEEDS[:seeds]:
            for groups, scenario in protocols(name):
                for label in LEARNERS:
                    key = f"{groups} | {scenario} | {label} | 50 | {seed}"
                    yield Spec(f"learn-{name}", key)
            if name == "digits":
                for label in filter(uses_memory, LEARNERS):
                    for size in (5, 20, 200):
                        key = f"5x2 | class | {label} | {size} | {seed}"
                        yield Spec(f"memory-{name}", key)


def paths(name: str, pairs: int) -> Iterator[Spec]:
    """All kinds of paths between networks of fresh seeds."""
    for pair in range(pairs):
        yield from (Spec(f"paths-{name}", f"{kind} | {pair}") for kind in KINDS)


def ablations() -> Iterator[Spec]:
    """Knots and sines, fixed and random times, three numbers of pieces."""
    for kind in ("knots", "sines"):
        for times in ("fixed", "random"):
            for pieces in (2, 4, 16):
                key = f"{kind} | {times} | {pieces} | {TUNING_PAIRS[0]}"
                yield Spec("ablation-paths-digits", key)


def entry(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A record in its file and under its key, rounded to five digits."""
    figures = {
        k: round(v, 5) if isinstance(v, float) else v
        for k, v in row.items()
        if k not in ("file", "key")
    }
    # of the ablation only the barrier was ever kept
    return row["file"], row["key"], figures.get("barrier", figures)


IMAGES = ("mnist", "mnist-fashion")
TUNING = Sweep(
    "geodesics-tuning",
    run,
    {
        "small": lambda: [Spec("tuning-paths-digits", "geodesic")],
        "book": lambda: [*tuning("digits")],
        "full": lambda: [*tuning("digits", *IMAGES)],
    },
    text="Settings of all methods, chosen on validation rows.",
    kept_as=entry,
)
PRUNING = Sweep(
    "geodesics-pruning",
    run,
    {
        "small": lambda: [s for s in pruning("digits", seeds=1) if "one-shot" in s.key],
        "book": lambda: [*pruning("digits")],
        "full": lambda: [*pruning("digits", "mnist")],
    },
    text="Accuracy of sparse networks over sparsities, methods and seeds.",
    kept_as=entry,
)
LEARNING = Sweep(
    "geodesics-learning",
    run,
    {
        "small": lambda: [
            s for s in learning("digits", seeds=1) if "2x5 | class" in s.key
        ],
        "book": lambda: [*learning("digits")],
        "full": lambda: [*learning("digits", *IMAGES)],
    },
    text="Accuracy left after tasks in turn, over protocols, methods and seeds.",
    kept_as=entry,
)
PATHS = Sweep(
    "geodesics-paths",
    run,
    {
        "small": lambda: [*paths("digits", 1)],
        "book": lambda: [*ablations()],
        "full": lambda: [*ablations(), *paths("mnist", 1)],
    },
    text="Barriers, lengths and costs of paths between trained networks.",
    kept_as=entry,
)
VGG = Sweep(
    "geodesics-vgg",
    run,
    {"full": lambda: [Spec("vgg-cifar10", "vgg11-bn")]},
    text="A narrow VGG11 with BatchNorm: paths and sparsity.",
    kept_as=entry,
)

# ---- methods as they come, over more networks ----------------------------------------


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


JOINED = ["line", "aligned line", "curve", "geodesic", "aligned geodesic"]
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
        spec.method,
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
