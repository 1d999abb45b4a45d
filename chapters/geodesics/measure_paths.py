"""Tunes the searches for paths and computes the tables of the page on connecting.

    python chapters/geodesics/measure_paths.py tune-digits [--seconds 150]

Finished entries are kept in `measured/*.json`, as in `measure.py`.
"""

from __future__ import annotations

import argparse

import measure
import torch

from geolib.geodesics import pairs, study

SEARCHES = ("geodesic", "Bezier, labels")


def tune(name: str) -> None:
    """Four settings a search, by the mean barrier on validation rows."""
    chosen = pairs.TUNING_PAIRS[: 2 if name == "digits" else 1]
    for kind in SEARCHES:

        def score(setting, pair, kind=kind):
            return -pairs.validation_barrier(name, kind, setting, pair)

        def work(kind=kind, score=score):
            return study.best_setting(score, pairs.PATH_GRID[name][kind], chosen)

        measure.entry(f"tuning-paths-{name}", kind, work)


def paths(name: str, count: int) -> None:
    """All kinds of paths between pairs of networks of fresh seeds."""
    for pair in range(count):
        for kind in pairs.KINDS:
            search = kind.removeprefix("aligned ")
            setting = {}
            if search in SEARCHES:
                setting = measure.settings(f"tuning-paths-{name}", search)

            def work(kind=kind, setting=setting, pair=pair):
                return pairs.path_score(name, kind, setting, pair)

            measure.entry(f"paths-{name}", f"{kind} | {pair}", work)


def ablation() -> None:
    """Barrier after equal compute: free knots or sines, fixed or random times."""
    for pair in pairs.TUNING_PAIRS[:1]:
        for knots in (True, False):
            for jitter in (False, True):
                for pieces in (2, 4, 16):
                    setting = {"knots": knots, "jitter": jitter, "segments": pieces}

                    def work(setting=setting, pair=pair):
                        return pairs.train_barrier("digits", setting, pair)

                    kind = "knots" if knots else "sines"
                    times = "random" if jitter else "fixed"
                    key = f"{kind} | {times} | {pieces} | {pair}"
                    measure.entry("ablation-paths-digits", key, work)


JOBS = {
    "tune-digits": lambda: tune("digits"),
    "tune-mnist": lambda: tune("mnist"),
    "paths-mnist": lambda: paths("mnist", 1),
    "ablation-digits": ablation,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    measure.LIMIT = args.seconds
    torch.set_num_threads(1)
    JOBS[args.job]()
