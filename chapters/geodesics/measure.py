"""Tunes every method and computes the chapter's heavier tables, once.

    python chapters/geodesics/measure.py tune-digits [--seconds 150]

Every entry is a pure function of its settings and seed; finished entries are kept in
`measured/*.json` and a second call goes on where the first stopped. The notebooks read
these files, recompute some entries live and claim that they agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from geolib.geodesics import scale, study, table
from geolib.geodesics.checkpoint import write_json

HERE = Path(__file__).parent / "measured"
LEVELS = {
    "digits": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    "mnist": (0.9, 0.95, 0.98, 0.99),
}
TUNED_AT = {"digits": (0.9, 0.95, 0.98), "mnist": (0.95, 0.99)}
TUNING = {  # seeds a setting is scored with
    "digits": study.TUNING_SEEDS,
    "mnist": study.TUNING_SEEDS[:1],
    "mnist-fashion": study.TUNING_SEEDS[:1],
}
PRUNERS = {**study.PRUNE_GRID, **study.IDEA_GRID}
LEARNERS = {**study.LEARN_GRID, **study.LEARN_IDEA_GRID}
IDEAS = {*study.IDEA_GRID, *study.LEARN_IDEA_GRID}
LIMIT = float("inf")


def entry(file: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One stored result; computed if it is not there."""
    path = HERE / f"{file}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"entries": {}}
    if key not in stored["entries"]:
        if time.process_time() > LIMIT:
            raise SystemExit("time is up; call again to go on")
        start = time.process_time()
        found = work()
        found["cpu"] = round(time.process_time() - start, 2)
        stored["entries"][key] = {
            k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()
        }
        stored["made"] = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "torch": torch.__version__.split("+")[0],
            "threads": torch.get_num_threads(),
            "machine": f"{platform.machine()}, 2 cores, no GPU",
        }
        write_json(path, stored)
        print(file, key, stored["entries"][key], flush=True)
    return stored["entries"][key]


def setting(file: str, key: str) -> dict[str, Any]:
    """The setting that was chosen on validation rows."""
    return json.loads((HERE / f"{file}.json").read_text())["entries"][key]["setting"]


def tune_prune(name: str, labels) -> None:
    for label in labels:

        def score(chosen, seed, label=label) -> float:
            found = [
                study.prune_score(name, label, chosen, level, seed, "val")["accuracy"]
                for level in TUNED_AT[name]
            ]
            return sum(found) / len(found)

        def work(score=score, label=label):
            return study.best_setting(score, PRUNERS[label], TUNING[name])

        entry(f"tuning-prune-{name}", label, work)


def prune(name: str, seeds: int, labels) -> None:
    for seed in study.REPORT_SEEDS[:seeds]:
        for label in labels:
            # the ideas were tuned on digits only
            source = "digits" if label in IDEAS else name
            known = label in PRUNERS
            chosen = setting(f"tuning-prune-{source}", label) if known else {}
            plans = {label: chosen}
            if label == "gradual + labels" and name == "digits":
                plans[f"{label} x4"] = {**chosen, "steps": 1600}
            if label == "invariant path" and name == "digits":
                # the length that the acceptance figures of the chapter were set for
                plans[f"{label}, 40 steps"] = {**chosen, "steps": 40}
            for row, options in plans.items():
                for level in LEVELS[name]:

                    def work(m=label, c=options, p=level, s=seed):
                        return study.prune_score(name, m, c, p, s)

                    entry(f"prune-{name}", f"{row} | {level:g} | {seed}", work)


def protocols(name: str) -> Iterator[tuple[str, str, str]]:
    """Groups, scenario, and the protocol whose tuning serves them.

    Five tasks are harder than two and all classes at once harder than those of a task:
    settings are chosen on the hard ones.
    """
    if name == "mnist-fashion":
        yield "pair", "class", "pair | class"
        return
    for groups in ("5x2", "2x5"):
        yield groups, "class", "5x2 | class"
        yield groups, "task", "5x2 | task" if name == "digits" else "5x2 | class"


def tune_learn(name: str, labels) -> None:
    for tuned in dict.fromkeys(p[2] for p in protocols(name)):
        groups, scenario = tuned.split(" | ")
        seeds = TUNING[name] if scenario == "class" else TUNING[name][:1]
        for label in labels:

            def score(chosen, seed, m=label, g=groups, s=scenario) -> float:
                row = study.learn_score(name, g, s, m, chosen, seed, part="val")
                return row["average"]

            def work(score=score, label=label, seeds=seeds):
                return study.best_setting(score, LEARNERS[label], seeds)

            entry(f"tuning-learn-{name}", f"{tuned} | {label}", work)


def learn(name: str, labels, seeds: int = 3) -> None:
    for groups, scenario, tuned in protocols(name):
        for label in labels:
            chosen = setting(f"tuning-learn-{name}", f"{tuned} | {label}")
            for seed in study.REPORT_SEEDS[:seeds]:

                def work(g=groups, s=scenario, m=label, c=chosen, r=seed):
                    return study.learn_score(name, g, s, m, c, r, 50)

                key = f"{groups} | {scenario} | {label} | 50 | {seed}"
                entry(f"learn-{name}", key, work)


def memory_sweep(labels, seeds: int = 3) -> None:
    for label in labels:
        if not study.uses_memory(label):
            continue
        chosen = setting("tuning-learn-digits", f"5x2 | class | {label}")
        for memory in (5, 20, 200):
            for seed in study.REPORT_SEEDS[:seeds]:

                def work(m=label, c=chosen, k=memory, r=seed):
                    return study.learn_score("digits", "5x2", "class", m, c, r, k)

                key = f"5x2 | class | {label} | {memory} | {seed}"
                entry("memory-digits", key, work)


def vgg_small(name: str = "cifar10") -> None:
    """A narrow VGG11 on few images: what a CPU can do, and no more than that."""
    plan = {"width": 1 / 8, "steps": 400, "batch": 64, "lr": 2e-3, "bends": 60}
    rows = {"train": 5000, "validation": 1000}

    def work() -> dict[str, Any]:
        data = table(name, dtype=torch.float32, **rows)
        folder = HERE.parents[2] / "_build" / f"vgg-{name}"
        found = scale.vgg_study(data, folder, levels=(0.9,), grid=9, **plan)
        return {**found, "settings": {**found["settings"], **plan, **rows}}

    entry(f"vgg-{name}", "vgg11-bn", work)


def jobs(labels_of: Callable[[Any], list[str]]) -> dict[str, Callable[[], None]]:
    prunes = [*study.METHODS, *study.IDEA_GRID]
    return {
        "tune-learn-digits": lambda: tune_learn("digits", labels_of(LEARNERS)),
        "learn-digits": lambda: learn("digits", labels_of(LEARNERS)),
        "memory-digits": lambda: memory_sweep(labels_of(LEARNERS)),
        "tune-learn-mnist": lambda: tune_learn("mnist", labels_of(LEARNERS)),
        "learn-mnist": lambda: learn("mnist", labels_of(LEARNERS)),
        "tune-learn-mnist-fashion": lambda: tune_learn(
            "mnist-fashion", labels_of(LEARNERS)
        ),
        "learn-mnist-fashion": lambda: learn("mnist-fashion", labels_of(LEARNERS)),
        "tune-prune-digits": lambda: tune_prune("digits", labels_of(PRUNERS)),
        "prune-digits": lambda: prune("digits", 5, labels_of(prunes)),
        "tune-prune-mnist": lambda: tune_prune("mnist", labels_of(study.PRUNE_GRID)),
        "prune-mnist": lambda: prune("mnist", 5, labels_of(prunes)),
        "vgg": vgg_small,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="+", choices=sorted(jobs(list)))
    parser.add_argument("--seconds", type=float, default=LIMIT)
    parser.add_argument("--part", choices=("all", "plain", "ideas"), default="all")
    args = parser.parse_args()
    LIMIT = args.seconds
    torch.set_num_threads(1)

    def labels_of(names) -> list[str]:
        wanted = {"all": (0, 1), "plain": (0,), "ideas": (1,)}[args.part]
        return [n for n in names if (n in IDEAS) in wanted]

    for job in args.jobs:
        jobs(labels_of)[job]()
