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
from pathlib import Path

import torch

from geolib.geodesics import study
from geolib.geodesics.checkpoint import write_json

HERE = Path(__file__).parent / "measured"
PRUNE_LEVELS = {"digits": (0.9, 0.95, 0.98), "mnist": (0.98,)}


def entry(file: str, key: str, work) -> dict:
    """One stored result; computed if it is not there."""
    path = HERE / f"{file}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"entries": {}}
    if key not in stored["entries"]:
        check_clock()
        stored["entries"][key] = work()
        stored["made"] = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "torch": torch.__version__.split("+")[0],
            "threads": torch.get_num_threads(),
            "machine": f"{platform.machine()}, 2 cores, no GPU",
        }
        write_json(path, stored)
        print(file, key, stored["entries"][key], flush=True)
    return stored["entries"][key]


def check_clock() -> None:
    if time.process_time() > LIMIT:
        raise SystemExit("time is up; call again to go on")


def settings(file: str, key: str) -> dict:
    """The chosen setting; where a data set was not tuned, that of digits."""
    if not (HERE / f"{file}.json").exists():
        file = (
            file.rsplit("-", 1)[0] + "-digits"
            if "fashion" not in file
            else ("tuning-learn-digits")
        )
    return json.loads((HERE / f"{file}.json").read_text())["entries"][key]["setting"]


def tune_prune(name: str) -> None:
    for method, grid in {**study.PRUNE_GRID, **study.IDEA_GRID}.items():
        seeds = study.TUNING_SEEDS if name == "digits" else study.TUNING_SEEDS[:1]

        def score(setting, seed, method=method):
            found = [
                study.prune_score(name, method, setting, level, seed, "val")["accuracy"]
                for level in PRUNE_LEVELS[name]
            ]
            return sum(found) / len(found)

        def work(grid=grid, score=score, seeds=seeds):
            return study.best_setting(score, grid, seeds)

        entry(f"tuning-prune-{name}", method, work)


def learn_plans(name: str) -> list[tuple[str, str]]:
    if name == "mnist-fashion":
        return [("pair", "class")]
    return [(g, s) for g in ("5x2", "2x5") for s in ("class", "task")]


def tune_learn(name: str) -> None:
    # settings are chosen on the hardest protocol and used for all of them
    for groups, scenario in learn_plans(name)[:1]:
        grids = dict(study.LEARN_GRID)
        grids["invariant path + loss"] = study.LEARN_IDEA_GRID["invariant path"]
        for label, grid in grids.items():
            method = label.removesuffix(" + loss")

            def score(setting, seed, method=method, g=groups, s=scenario):
                row = study.learn_score(name, g, s, method, setting, seed, part="val")
                return row["average"]

            def work(grid=grid, score=score):
                return study.best_setting(score, grid, study.TUNING_SEEDS[:1])

            entry(f"tuning-learn-{name}", label, work)


def prune(name: str, levels, seeds, quick: bool = False) -> None:
    methods = [*study.METHODS, *study.IDEA_GRID]
    for seed in range(seeds):
        for method in methods:
            fixed = method in ("one-shot", "surgeon")
            chosen = {} if fixed else settings(f"tuning-prune-{name}", method)
            for level in levels:

                def work(m=method, c=chosen, p=level, s=seed):
                    return study.prune_score(name, m, c, p, s)

                entry(f"prune-{name}", f"{method} | {level:g} | {seed}", work)
            if method == "gradual + labels" and not quick:
                long = {**chosen, "steps": 1600}
                for level in levels:

                    def more(m=method, c=long, p=level, s=seed):
                        return study.prune_score(name, m, c, p, s)

                    entry(f"prune-{name}", f"{method} x4 | {level:g} | {seed}", more)


def learn(name: str, seeds: int, memories=(50,)) -> None:
    labels = [*study.LEARN_GRID, "invariant path + loss"]
    for seed in range(seeds):
        for groups, scenario in learn_plans(name):
            for label in labels:
                method = label.removesuffix(" + loss")
                chosen = settings(f"tuning-learn-{name}", label)
                for memory in memories:

                    def work(
                        g=groups, s=scenario, m=method, c=chosen, k=memory, r=seed
                    ):
                        return study.learn_score(name, g, s, m, c, r, k)

                    key = f"{groups} | {scenario} | {label} | {memory} | {seed}"
                    entry(f"learn-{name}", key, work)


def memory_sweep(seeds: int = 3) -> None:
    for label in (
        "replay",
        "penalty path",
        "distilled logits",
        "invariant path",
        "invariant path + loss",
    ):
        chosen = settings("tuning-learn-digits", label)
        method = label.removesuffix(" + loss")
        for memory in (5, 20, 200):
            for seed in range(seeds):

                def work(m=method, c=chosen, k=memory, r=seed):
                    return study.learn_score("digits", "5x2", "class", m, c, r, k)

                key = f"5x2 | class | {label} | {memory} | {seed}"
                entry("memory-digits", key, work)


JOBS = {
    "tune-digits": lambda: (tune_prune("digits"), tune_learn("digits")),
    "tune-mnist": lambda: (tune_prune("mnist"), tune_learn("mnist")),
    "tune-fashion": lambda: tune_learn("mnist-fashion"),
    "prune-digits": lambda: prune("digits", (0.5, 0.8, 0.9, 0.95, 0.98), 5),
    "prune-mnist": lambda: prune("mnist", (0.95, 0.98), 2, quick=True),
    "learn-digits": lambda: learn("digits", 3),
    "learn-mnist": lambda: learn("mnist", 3),
    "learn-fashion": lambda: learn("mnist-fashion", 3),
    "memory-digits": memory_sweep,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    LIMIT = args.seconds
    torch.set_num_threads(1)
    JOBS[args.job]()
