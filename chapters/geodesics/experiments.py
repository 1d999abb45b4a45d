"""The comparisons of the chapter: specs, grids, seeds and tables, with one store.

    geolib sweep geodesics-pruning --size book

runs what the store lacks (also `-tuning`, `-learning`, `-paths`, `-vgg`), and with
`--publish` writes the records into `measured/`, which the notebooks read, recompute in
part, and check. What one entry means is in `comparisons.py`; the study of VGG networks is
in `experiments_vgg.py`, sweeps of untuned methods over more networks are in
`experiments_networks.py`, the contest on MNIST in `experiments_contest.py`, pairs of VGGs
on all of CIFAR-10 in `experiments_scale.py`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from experiments_contest import CONTEST as CONTEST
from experiments_contest import METHODS as CONTESTANTS
from experiments_networks import (
    CONTINUAL_LEARNING as CONTINUAL_LEARNING,
    MODE_CONNECTIVITY as MODE_CONNECTIVITY,
    SPARSIFICATION as SPARSIFICATION,
)
from experiments_vgg import (
    STAGES,
    kept as kept,
    step_cost,
    vgg_entry,
    vgg_study as vgg_study,
)
from pruners import METHODS as METHODS
from variants import PRUNING_VARIANTS as PRUNING_VARIANTS

from geolib import sweep as sweeps
from geolib.sweep import Sweep

HERE = Path(__file__).parent


def measured(file: str) -> dict[str, dict[str, Any]]:
    """The entries of a file of measured results; none if it is not there.

    Raises:
        FileNotFoundError: this machine has no checkout of the book, so that settings
            which were chosen and stored there would be missed in silence.
    """
    if not HERE.is_dir():
        raise FileNotFoundError(f"measured: this machine has no {HERE}")
    return sweeps.measured(HERE / "measured" / f"{file}.json").entries


def about(file: str) -> dict[str, Any]:
    """What is said of a file of measured results: date, machine, device, torch."""
    return dict(sweeps.measured(HERE / "measured" / f"{file}.json").about)


def origin(file: str) -> str:
    """When and on what the rows of a file of measured results were computed."""
    said = about(file)
    machine = ", ".join(said[k] for k in ("machine", "device") if k in said)
    return f"{said['date']} on {machine}, torch {said['torch']}"


def setting(row: Mapping[str, Any]) -> str:
    """A chosen setting in words.

    Examples:
        >>> setting({"setting": {"lr": 0.01, "strength": 1e6, "flat": True}})
        'lr 0.01, strength 1,000,000, flat'
    """
    words = [
        k if v is True else f"{k} {v:,.7g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in row["setting"].items()
    ]
    return ", ".join(words) or "as published"


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds, with one digit.

    Examples:
        >>> spread(np.array([1.0, 3.0]))
        '2.0 +- 1.4'
    """
    return f"{values.mean():.1f} +- {values.std(ddof=1):.1f}"


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


def learnt(
    entries: Mapping[str, Mapping[str, Any]],
    protocol: str,
    name: str,
    part: str = "average",
    memory: int = 50,
) -> np.ndarray:
    """One figure of a method in learning tasks in turn, in percent, shape (seeds,).

    Examples:
        >>> row = {"5x2 | class | replay | 50 | 1": {"average": 0.9}}
        >>> learnt(row, "5x2 | class", "replay").tolist()
        [90.0]
    """
    return 100 * column(entries, f"{protocol} | {name} | {memory}", part)


def learn_rows(
    entries: Mapping[str, Mapping[str, Any]], protocols: Sequence[str]
) -> list[dict[str, str]]:
    """Stored inputs, seconds, and average / forgetting of every method, as rows."""

    def score(protocol: str, name: str) -> str:
        average = spread(learnt(entries, protocol, name))
        return f"{average} / {learnt(entries, protocol, name, 'forgetting').mean():.0f}"

    first = protocols[0]
    return [
        {
            "method": name,
            "stored": f"{learnt(entries, first, name, 'stored').mean() / 100:.0f}",
            "CPU s": f"{learnt(entries, first, name, 'cpu').mean() / 100:.1f}",
        }
        | {p.replace(" |", ","): score(p, name) for p in protocols}
        for name in LEARN_GRID
    ]


def learn_lead(
    entries: Mapping[str, Mapping[str, Any]], protocol: str
) -> tuple[str, float]:
    """The best rival that keeps no more than the paths, and their lead on it in points."""
    found = {n: learnt(entries, protocol, n).mean() for n in LEARN_GRID if n != "joint"}
    ours = max(v for n, v in found.items() if "invariant" in n)
    best = max((n for n in found if "invariant" not in n), key=found.__getitem__)
    return best, float(ours - found[best])


def contest(task: str, figures: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows of a table of the contest: means and standard errors over its seeds.

    Args:
        task: of `experiments_contest.py`, with the level after a bar.
        figures: by heading the figure in that column, all in percent or in nats.
    """
    entries, rows = measured("contest-mnist"), []
    for method in CONTESTANTS[task.split(" |")[0]]:
        name = task.replace(" |", f" | {method} |", 1)
        name = name if " |" in task else f"{task} | {method} | 0"
        found = {head: column(entries, name, part) for head, part in figures.items()}
        if not len(next(iter(found.values()))):
            continue
        row = next(v for k, v in entries.items() if k.startswith(f"{name} |"))
        cells = {
            head: f"{v.mean():.4f} +- {v.std(ddof=1) / len(v) ** 0.5:.4f}"
            for head, v in found.items()
        }
        chosen = setting(row) if row["setting"] else ""
        rows.append({"method": method, **cells, "chosen": chosen})
    return rows


def contest_origin(*tasks: str) -> str:
    """When and on what the rows of some tasks of the contest were computed."""
    said = about("contest-mnist")
    rows = [
        v
        for k, v in measured("contest-mnist").items()
        if k.partition(" | ")[0] in tasks
    ]
    days = " and ".join(sorted({row["date"] for row in rows}))
    machine = f"{said['machine']}, {said['device']}, torch {said['torch']}"
    return f"{days} on {machine}" if rows else "not run"


def contested(task: str, method: str, part: str) -> np.ndarray:
    """One figure of a method in the contest, shape (seeds,); empty if it did not run.

    Args:
        task: of `experiments_contest.py`, with the level after a bar.
        method: its name there.
        part: name of the figure.
    """
    name, _, level = task.partition(" | ")
    start = f"{name} | {method} | {level or 0}"
    return column(measured("contest-mnist"), start, part)


def contest_columns(heads: Mapping[str, str], part: str) -> list[dict[str, str]]:
    """The rows of a table of the contest with a column for each task, in percent.

    The last column is the mean of the processor time of a run over the tasks.

    Args:
        heads: by heading the task in that column.
        part: the figure that is shown, with its standard error over the seeds.
    """
    names = dict.fromkeys(
        m for t in heads.values() for m in CONTESTANTS[t.split(" |")[0]]
    )
    rows = []
    for method in names:
        found = {
            head: 100 * contested(task, method, part) for head, task in heads.items()
        }
        if any(map(len, found.values())):
            cells = {k: _error_bar(v) for k, v in found.items()}
            times = [contested(task, method, "cpu") for task in heads.values()]
            seconds = np.mean([v.mean() for v in times if len(v)])
            rows.append({"method": method, **cells, "CPU s": f"{seconds:.1f}"})
    return rows


def contest_whole(tasks: Mapping[str, str], least: int = 3) -> dict[str, str]:
    """Those tasks of the contest in which every method has so many rows, by heading."""
    return {
        head: task
        for head, task in tasks.items()
        if min(len(_rows_of(task, m)) for m in CONTESTANTS[task]) >= least
    }


def _error_bar(values: np.ndarray) -> str:
    """Mean and standard error, or a dash where nothing was run."""
    if not len(values):
        return "-"
    return f"{values.mean():.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def _rows_of(task: str, method: str) -> list[str]:
    """The keys of a method's rows in a task of the contest, all levels together."""
    return [
        k for k in measured("contest-mnist") if k.startswith(f"{task} | {method} |")
    ]


def contest_lead(
    task: str, ours: str, part: str, rivals: Sequence[str]
) -> tuple[str, float, float]:
    """The best rival, our lead on it in points, and the standard error of that."""
    mine = 100 * contested(task, ours, part)
    found = {n: 100 * contested(task, n, part) for n in rivals}
    best = max((n for n in found if len(found[n])), key=lambda n: found[n].mean())
    pair = (mine, found[best])
    error = sum(v.var(ddof=1) / len(v) for v in pair) ** 0.5
    return best, float(mine.mean() - found[best].mean()), float(error)


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
    "cost-vgg": step_cost,
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
        rows = ["one-shot", "surgeon", *PRUNE_GRID, *VARIANT_GRID]
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
    {
        "cost": lambda: [
            Spec("cost-vgg-0.25", f"{name} | {stage}")
            for name, stage in itertools.product(("vgg11", "vgg16"), STAGES)
        ],
        "full": lambda: [Spec("vgg-cifar10", "vgg11-bn")],
    },
    text="A narrow VGG11 with BatchNorm: paths, sparsity, and what a step costs.",
    kept_as=entry,
)
