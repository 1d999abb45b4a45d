"""The study of VGG networks: train two, join them, make one sparse."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruners import METHODS
from torch import nn
from vgg import vgg

from geolib.core import Realization
from geolib.geodesics import connect, sparsify
from geolib.networks import (
    Table,
    accuracy,
    recalibrate,
    table,
    train_module,
    with_batch_statistics,
)
from geolib.sweep import Store

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
        file = folder / f"{tag}-{s}.pt"
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
        "arc": {"steps": 3 * bends, "batch": batch, "lr": 3e-3},
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
    found = connect(nets[0], nets[1], data.x, method=method, align=False, **plan)
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
    """One sparse network, scored on the validation rows.

    All methods train as BatchNorm does, by the statistics of each batch, and every
    network's running statistics are estimated from its own weights.
    """
    R = Realization(with_batch_statistics(net), check=False)
    found = METHODS[method](R, R.theta0, data, level, **plan)
    twin = copy.deepcopy(net)
    Realization(twin).load(found.weights)
    recalibrate(twin, data.x)
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


def vgg_entry(name: str, _key: str) -> dict[str, Any]:
    """A narrow VGG11 on few images: what a CPU can do, and no more than that."""
    plan = {"width": 1 / 8, "steps": 400, "batch": 64, "lr": 2e-3, "bends": 60}
    rows = {"train": 5000, "validation": 1000}
    data = table(name, dtype=torch.float32, **rows)
    folder = HERE.parents[1] / "_build" / f"vgg-{name}"
    found = vgg_study(data, folder, sparsities=(0.9,), grid=9, **plan)
    return {**found, "settings": {**found["settings"], **plan, **rows}}


STAGES = ("training", "arc", "curve on labels", "pruning on labels", "walk")


def step_cost(width: str, name: str, stage: str) -> dict[str, float]:
    """CPU seconds of a step of 256 images 32 x 32 in one stage of a study, on one core.

    Args:
        width: part of the full width, as `0.25`.
        name: `vgg11` or `vgg16`, with BatchNorm.
        stage: one of `STAGES`; a step of the walk costs about a dozen passes.
    """
    a, b = (vgg(name, seed, width=float(width)) for seed in (0, 1))
    draws = np.random.default_rng(0)
    x = torch.from_numpy(draws.standard_normal((1024, 3, 32, 32))).float()
    y = torch.from_numpy(draws.integers(10, size=1024))
    marks: list[float] = []
    plan: dict[str, Any] = {
        "batch": 256,
        "callback": lambda *_: marks.append(time.process_time()),
    }
    if stage == "training":
        data = Table(x, y, x, y, x, y)
        for steps in (2, 2, 8):  # the first call also loads what torch needs
            start = time.process_time()
            train_module(a, data, steps=steps, batch=256, augment=True)
            marks.append(time.process_time() - start)
        return {"seconds": (marks[2] - marks[1]) / 6}
    if stage in ("arc", "curve on labels"):
        told = {} if stage == "arc" else {"method": "curve", "labels": y}
        connect(a.eval(), b.eval(), x, align=False, steps=5, **told, **plan)
    else:
        labels = y if stage == "pruning on labels" else None
        sparsify(a.eval(), x, 0.9, labels=labels, steps=5, **plan)
    return {"seconds": float(np.median(np.diff(marks[:5])))}


def ends(study: dict[str, Any]) -> str:
    """The accuracies of the two networks of a study, in words."""
    return " and ".join(f"{v:.2f}" for v in study["ends"].values())


def path_rows(study: dict[str, Any]) -> list[dict[str, str]]:
    """What a study found of each path, as rows of a table."""
    return [
        {
            "path": name,
            "loss barrier": f"{row['barrier']:.2f}",
            "worst accuracy": f"{row['worst']:.2f}",
            "passes": str(row["passes"]),
        }
        for name, row in study["paths"].items()
    ]


def sparse_rows(study: dict[str, Any]) -> list[dict[str, str]]:
    """What a study found of each sparse method, as rows of a table."""
    return [
        {"method": name}
        | {f"{100 * float(p):.0f} %": f"{v['accuracy']:.2f}" for p, v in row.items()}
        for name, row in study["sparse"].items()
    ]
