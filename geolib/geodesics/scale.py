"""Paper-scale training and experiments that resume after a kill."""

from __future__ import annotations

import copy
import json
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolib.core import DeviceMemoryError, Realization, fitting_batch
from geolib.geodesics import checkpoint
from geolib.geodesics.batchnorm import recalibrate
from geolib.geodesics.checks import check_inputs, check_labels
from geolib.geodesics.connect import connect
from geolib.geodesics.models import vgg
from geolib.geodesics.pruning import METHODS as PRUNERS
from geolib.geodesics.train import Table, accuracy, cosine


def train_module(
    module: nn.Module,
    data: Table,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    augment: bool = False,
    file: str | File | None = None,
    every: int = 200,
) -> nn.Module:
    """Train a module in training mode by Adam; with a `file` it resumes after a kill.

    The state (weights, buffers, optimizer, step) is written every so many steps. All
    random draws depend on the seed and the step alone, so that a resumed run takes
    the very steps of an uninterrupted one. Returns the module in evaluation mode.

    Args:
        augment: random crops (4 pixels) and mirror images; for 4-axis images.

    Raises:
        ValueError: a damaged checkpoint, or one of another run (seed, steps, sizes).
        RuntimeError: the loss is not finite.
        DeviceMemoryError: the batch does not fit on the device; says which one does.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> from geolib.geodesics.train import table
        >>> train_module(mlp([64, 8, 10]), table("digits"), steps=3).training
        False
    """
    module.eval()
    with torch.no_grad():
        check_inputs(data.x)
        check_labels(module(data.x[:2]).shape[1], data.y, len(data.x))
    adam = torch.optim.Adam(module.parameters(), lr=lr)
    size = sum(p.numel() for p in module.parameters())
    run = {"seed": seed, "steps": steps, "batch": batch, "lr": lr, "size": size}
    first = _resume(module, adam, file, run)
    module.train()
    for step in range(first, steps):
        adam.param_groups[0]["lr"] = cosine(lr, step, steps)
        adam.zero_grad()
        loss = _backward(module, *_draw(data, batch, seed, step, augment))
        if loss is None:
            raise _too_large(module, data, batch, file)
        adam.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            if not bool(torch.isfinite(loss)):
                raise RuntimeError(f"train_module: loss not finite at step {step}")
            _store(module, adam, file, run | {"step": step + 1})
    return module.eval()


def _backward(module: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """The loss, after its gradient; None if the device is full.

    The error is not passed on: its traceback would keep all that filled the device.
    """
    try:
        loss = F.cross_entropy(module(x), y)
        loss.backward()
    except torch.OutOfMemoryError:
        return None
    return loss.detach()


def _too_large(module, data, batch, file) -> DeviceMemoryError:
    """The batch that fits, and where the state is that was stored last."""

    def gradient(size: int) -> None:
        module.zero_grad()
        rows = torch.arange(size, device=data.x.device) % len(data.x)
        F.cross_entropy(module(data.x[rows]), data.y[rows]).backward()

    _, fits = fitting_batch(gradient, max(batch // 2, 1))
    kept = f"; what was stored before lies in {file}" if file is not None else ""
    return DeviceMemoryError(
        f"train_module: a batch of {batch} does not fit on {data.x.device}, one of "
        f"{fits} does{kept}"
    )


def _draw(
    data: Table, batch: int, seed: int, step: int, augment: bool
) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([seed, step])
    rows = torch.from_numpy(rng.integers(len(data.x), size=batch)).to(data.x.device)
    x = data.x[rows]
    if augment and x.ndim == 4:
        dx, dy = rng.integers(-4, 5, 2)
        x = torch.roll(F.pad(x, (4, 4, 4, 4)), (int(dx), int(dy)), (2, 3))
        x = x[:, :, 4:-4, 4:-4]
        mirror = torch.from_numpy(rng.random(batch) < 0.5).to(x.device)
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    return x, data.y[rows]


def _store(module, adam, file, record) -> None:
    if file is None:
        return
    tensors = {f"module.{n}": t for n, t in module.state_dict().items()}
    for k, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{k}.{n}": torch.as_tensor(t) for n, t in state.items()}
    checkpoint.save(file, tensors, record)


def _resume(module, adam, file, run: dict[str, Any]) -> int:
    if file is None or not File(file).exists():
        return 0
    tensors, record = checkpoint.load(file)
    other = {k: record.get(k) for k, v in run.items() if record.get(k) != v}
    if other:
        raise ValueError(
            f"checkpoint: {file} is of another run: it has {other}, this run has "
            f"{ {k: run[k] for k in other} }"
        )
    own = {n[7:]: t for n, t in tensors.items() if n.startswith("module.")}
    module.load_state_dict(own)
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("adam."):
            _, k, part = name.split(".")
            state.setdefault(int(k), {})[part] = t
    adam.load_state_dict({**adam.state_dict(), "state": state})
    return int(record["step"])


def stage(folder: str | File, name: str, work) -> dict[str, Any]:
    """Run `work()` once and keep its record; a finished stage is read, not run.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> stage(folder, "a", lambda: {"value": 1})
        {'value': 1}
        >>> stage(folder, "a", lambda: {"value": 2})
        {'value': 1}
    """
    file = File(folder) / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())
    record = work()
    checkpoint.write_json(file, record)
    return record


def vgg_study(
    data: Table,
    folder: str | File,
    *,
    name: str = "vgg11",
    batch_norm: bool = True,
    width: float = 1.0,
    seeds: tuple[int, int] = (0, 1),
    steps: int = 8000,
    batch: int = 128,
    lr: float = 1e-3,
    bends: int = 2000,
    levels: tuple[float, ...] = (0.9, 0.95, 0.99),
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
    folder = File(folder)
    tag = f"{name}{'-bn' if batch_norm else ''}"
    nets = []
    for s in seeds:
        net: nn.Module = vgg(
            name, s, batch_norm, int(data.y.max()) + 1, width, data.x.dtype
        )
        file = folder / f"{tag}-{s}.safetensors"
        options = {"steps": steps, "batch": batch, "lr": lr, "seed": s}
        nets.append(
            train_module(net.to(device), data, augment=True, file=file, **options)  # type: ignore[arg-type]
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

        def join(method: str = method, plan: dict[str, Any] = plan) -> dict[str, Any]:
            found = connect(nets[0], nets[1], data.x, method=method, **plan)
            scored = found.profile(data.x_val, data.y_val, grid)
            return {
                "barrier": scored.barrier,
                "worst": scored.worst,
                "middle": scored.middle,
                "passes": found.passes,
                "statistics": found.statistics,
                "message": found.message,
            }

        record["paths"][method] = stage(folder, f"{tag}-{method}", join)
    record["sparse"] = _sparse_stages(data, folder, tag, nets[0], levels, batch, walk)
    return record


def _sparse_stages(data, folder, tag, net, levels, batch, walk) -> dict[str, Any]:
    R = Realization(net)
    record: dict[str, Any] = {}
    plans: dict[str, dict[str, Any]] = {
        "one-shot": {},
        "gradual + labels": {"batch": batch, "steps": 10 * walk},
        "invariant path": {"batch": batch, "steps": walk},
    }
    for level in levels:
        for method, plan in plans.items():

            def cut(
                method: str = method,
                plan: dict[str, Any] = plan,
                level: float = level,
            ) -> dict[str, Any]:
                found = PRUNERS[method](R, R.theta0, data, level, **plan)
                twin = copy.deepcopy(net)
                Realization(twin).load(found.weights)
                recalibrate(twin, data.x)  # the statistics were the dense network's
                own = Realization(twin)
                score = accuracy(own, own.theta0, data.x_val, data.y_val, 512)
                return {"accuracy": score, "passes": found.passes}

            key = f"{tag}-{method.replace(' ', '-')}-{level:g}"
            record.setdefault(method, {})[f"{level:g}"] = stage(folder, key, cut)
    return record
