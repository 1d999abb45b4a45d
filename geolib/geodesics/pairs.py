"""Every way to join two trained networks, at equal compute and under one score.

Settings are chosen on validation rows between networks of their own seeds (100 and
up); tables use seeds from 0. Both searches get a grid of the same size.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geolib.core import Realization
from geolib.geodesics.bvp import Geodesic, geodesic
from geolib.geodesics.curves import trained_curve
from geolib.geodesics.measures import calibration_error, lengths, profile
from geolib.geodesics.models import mlp
from geolib.geodesics.path import HatBasis, Path, SineBasis
from geolib.geodesics.space import FunctionSpace
from geolib.geodesics.study import data_table
from geolib.geodesics.train import Table, train
from geolib.networks import align

Setting = Mapping[str, Any]

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
    """The data set of the comparison; 10,000 training rows of MNIST."""
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
        >>> join("digits", "straight line", {}, 0).passes
        0
    """
    R, a, b = trained_pair(name, pair)
    data = data_of(name)
    steps = PASSES // BATCH
    if kind.startswith("aligned"):
        b = aligned_weights(NETS[name], a, b)
    if kind.endswith("line"):
        return Geodesic(Path(a, b), [], 0, 1.0, True, "a straight line")
    options = {"batch": BATCH, "seed": pair, **setting}
    if kind == "Bezier, labels":
        return trained_curve(R, a, b, data.x, data.y, steps=steps, **options)
    pieces = options.setdefault("segments", 4)
    bends = options.pop("bends", 4)
    knots = options.pop("knots", False)
    basis = HatBasis(pieces - 1) if knots else SineBasis(bends)
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
        "passes": found.passes,
        "seconds": round(seconds, 2),
        "converged": found.converged,
        **_averages(R, data, found.path, a, b),
    }


def _averages(
    R: Realization, data: Table, path: Path, a: Tensor, b: Tensor
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
