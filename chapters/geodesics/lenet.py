"""The contest's networks with BatchNorm: a LeNet on images of 14 x 14 pixels.

Every method trains as BatchNorm does in training, by the statistics of each batch; every
network is scored with running statistics that are estimated from its own weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comparisons import data_table
from pruners import METHODS
from torch import Tensor, nn
from variants import PRUNING_VARIANTS

from geolib.core import Realization
from geolib.geodesics import connect
from geolib.networks import (
    Table,
    accuracy,
    lenet,
    recalibrate,
    train_module,
    with_batch_statistics,
)

TRAIN = {"steps": 1200, "batch": 64, "lr": 3e-3}
STATISTICS = 5000  # training inputs that running statistics are estimated on
PRUNERS = {**METHODS, **PRUNING_VARIANTS}
# Connecting: training rows, compute and batch of a search, points that are scored
ROWS, PASSES, BATCH, GRID = 10_000, 76_800, 128, 17
METHOD_OF = {
    "line": "line",
    "arc": "arc",
    "geodesic": "geodesic",
    "Bezier, labels": "curve",
}


@functools.lru_cache(maxsize=4)
def images(name: str, rows: int | None = None) -> Table:
    """A data set as images (n, 1, 14, 14)."""
    flat = data_table(name, rows, True)
    parts = ("x", "x_val", "x_test")
    return replace(flat, **{k: getattr(flat, k).view(-1, 1, 14, 14) for k in parts})


@functools.lru_cache(maxsize=12)
def trained(name: str, seed: int, rows: int | None = None) -> nn.Module:
    """A trained LeNet with BatchNorm, in evaluation mode.

    Examples:
        >>> sum(p.numel() for p in lenet(side=14, batch_norm=True).parameters())
        11226
    """
    net = lenet(seed, side=14, batch_norm=True, dtype=torch.float32)
    return train_module(net, images(name, rows), seed=seed, **TRAIN)


def prune_lenet(
    name: str,
    method: str,
    setting: Mapping[str, Any],
    level: float,
    seed: int,
    part: str = "test",
) -> dict[str, float]:
    """Accuracy of one sparse LeNet, and the compute it took."""
    net, data = trained(name, seed), images(name)
    few = data.x[:STATISTICS]
    return pruned(net, data, method, setting, level, seed, part, few)


def pruned(
    net: nn.Module,
    data: Table,
    method: str,
    setting: Mapping[str, Any],
    level: float,
    seed: int,
    part: str,
    statistics: Tensor,
) -> dict[str, float]:
    """A network with BatchNorm, sparse by one method; `statistics` are inputs for them."""
    R = Realization(with_batch_statistics(net), check=False)
    found = PRUNERS[method](R, R.theta0, data, level, seed=seed, **setting)
    twin = copy.deepcopy(net)
    Realization(twin).load(found.weights)
    own = Realization(recalibrate(twin, statistics))
    x, y = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    score = accuracy(own, own.theta0, x, y)
    return {"accuracy": score, "passes": found.gradient_evaluations}


def join_lenet(
    name: str, kind: str, setting: Mapping[str, Any], pair: int, part: str
) -> dict[str, Any]:
    """Barriers, and the accuracies of the path, its midpoint and its better end."""
    nets = [trained(name, seed, ROWS) for seed in (2 * pair, 2 * pair + 1)]
    return joined(nets, images(name, ROWS), kind, setting, pair, part)


def joined(
    nets: Sequence[nn.Module],
    data: Table,
    kind: str,
    setting: Mapping[str, Any],
    seed: int,
    part: str,
    passes: int = PASSES,
    grid: int = GRID,
) -> dict[str, Any]:
    """A path of one kind between two networks with BatchNorm, by so many passes."""
    method = METHOD_OF[kind.removeprefix("aligned ")]
    plan: dict[str, Any] = {"method": method, "align": kind.startswith("aligned")}
    if method == "curve":
        plan |= {"labels": data.y, "steps": passes // BATCH}
    if method == "arc":  # the answers of both ends on all inputs are paid for
        plan |= {"steps": (passes - 2 * len(data.x)) // BATCH}
    if method == "geodesic":  # three networks a step and both ends, for each batch
        plan |= {"steps": passes // (5 * BATCH)}
    if method != "line":
        plan |= {"batch": BATCH, "seed": seed, **setting}
    found = replace(connect(*nets, data.x, **plan), x=data.x[:STATISTICS])
    x, y = (data.x_val, data.y_val) if part == "val" else (data.x_test, data.y_test)
    outer = found.profile(x, y, grid)
    return {
        "test_barrier": outer.barrier,
        "worst": outer.worst,
        "middle": outer.middle,
        "better_end": max(outer.accuracy[0].item(), outer.accuracy[-1].item()),
        "passes": found.gradient_evaluations,
    }
