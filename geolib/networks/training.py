"""Training a network: one loop around torch's Adam, with a schedule, a meter and checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.core.validation import check_inputs, check_labels, class_labels, expect
from geolib.files import write_whole
from geolib.networks.splits import Table

Result = TypeVar("Result")


@dataclass
class Meter:
    """A count of compute, in gradient evaluations times inputs.

    One forward and one backward pass on one input count 1, and so does one product
    with the metric (a forward and a backward derivative).

    Attributes:
        gradient_evaluations: the count so far.

    Examples:
        >>> meter = Meter()
        >>> meter.add(256)
        >>> meter.gradient_evaluations
        256
    """

    gradient_evaluations: int = 0

    def add(self, inputs: int) -> None:
        """Count one gradient evaluation on so many inputs."""
        self.gradient_evaluations += inputs


def batches(size: int, batch: int, steps: int, seed: int, device) -> Iterator[Tensor]:
    """`steps` random sets of row numbers, without repetition within an epoch.

    Examples:
        >>> [len(rows) for rows in batches(5, 2, 3, 0, "cpu")]
        [2, 2, 2]
    """
    rng = np.random.default_rng(seed)
    batch = min(batch, size)
    left = np.empty(0, np.int64)
    for _ in range(steps):
        if len(left) < batch:
            left = rng.permutation(size)
        rows, left = left[:batch], left[batch:]
        yield torch.from_numpy(rows).to(device)


def cosine(lr: float, step: float, steps: int) -> float:
    """The learning rate of a step that falls along half a cosine to zero.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    return lr * (1 + math.cos(math.pi * step / steps)) / 2


@differentiation()
def minimize(
    parameters: Iterable[Tensor],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    *,
    schedule: Callable[[float, int, int], float] = cosine,
    optimizer: torch.optim.Optimizer | None = None,
    first: int = 0,
    after: Callable[[int, Tensor], None] | None = None,
) -> list[Tensor]:
    r"""Run Adam on a loss that is drawn anew at each step, and return its values.

    Every search of the package that follows gradients runs in this loop: training of
    weights, of modules, of the bends of a path, and of weights under a mask.

    Args:
        parameters: leaf tensors, changed in place.
        loss: maps the number of a step to the loss; or it leaves gradients in the
            parameters itself and returns a value without a graph.
        steps: number of the last step plus one.
        lr: learning rate that the schedule starts from.
        schedule: maps (lr, step, steps) to the rate of a step.
        optimizer: Adam on the parameters by default; its state may be an older one's.
        first: number of the first step, above 0 where a run is resumed.
        after: called with a step's number and value when it has been taken, to put
            weights back under a mask, say, or to keep a state.

    Source: Kingma and Ba 2015, algorithm 1.

    Examples:
        >>> w = torch.tensor([3.0], requires_grad=True)
        >>> values = minimize([w], lambda step: (w - 1).square().sum(), 200, 0.1)
        >>> abs(w.item() - 1) < 1e-2
        True
    """
    leaves = list(parameters)
    expect(leaves, "parameters", "at least one", leaves)
    adam = torch.optim.Adam(leaves, lr=lr) if optimizer is None else optimizer
    values = []
    for step in range(first, steps):
        adam.param_groups[0]["lr"] = schedule(lr, step, steps)
        adam.zero_grad()
        value = loss(step)
        if value.requires_grad:
            value.backward()
        adam.step()
        values.append(value.detach())
        if after is not None:
            after(step, value.detach())
    return values


@differentiation()
def train(
    R: Realization,
    x: Tensor,
    y: Tensor,
    *,
    w: Tensor | None = None,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    r"""Minimise the cross-entropy by Adam with cosine decay, and return the weights.

    .. math:: \min_w \frac1n \sum_i -\log \mathrm{softmax}(R(w, x_i))_{y_i}

    Args:
        R: the network as a function of its weights; it is not changed.
        x: inputs, shape (n, ...).
        y: classes, shape (n,).
        w: start, shape (p,); the module's own weights by default. With k starts,
            shape (k, p), as many networks are trained side by side.
        steps: gradient steps.
        batch: inputs of a step, drawn without repetition within an epoch.
        lr: learning rate of the first step.
        seed: of the order of the inputs; for k networks a sequence of k.

    Returns:
        Weights, of the shape of the start.

    Raises:
        ValueError: a label outside the classes of the network, NaN inputs, or
            options out of range.
        RuntimeError: the weights left the finite numbers.

    Cost: steps * batch gradient evaluations a network.

    Source: Kingma and Ba 2015, algorithm 1.

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, y = torch.eye(2).double(), torch.tensor([0, 2])
        >>> w = train(R, x, y, steps=200, lr=0.1)
        >>> R(w, x).argmax(1).tolist()
        [0, 2]
    """
    start = R.theta0 if w is None else w
    leaf = start.detach().clone().requires_grad_(True)
    check_inputs(x)
    first, count = (leaf, 1) if leaf.ndim == 1 else (leaf[0], len(leaf))
    seeds = [seed] if isinstance(seed, int) else seed
    expect(len(seeds) == count, "seed", f"one for each of {count} starts", seed)
    y = check_labels(R(first, x[:1]).shape[1], y, len(x))
    draws = zip(
        *(batches(len(x), batch, steps, s, x.device) for s in seeds), strict=True
    )

    def loss(_step: int) -> Tensor:
        rows = torch.stack(next(draws))
        if len(rows) == 1:
            return F.cross_entropy(R(leaf.view(-1), x[rows[0]]), y[rows[0]])
        return summed_losses(torch.vmap(R)(leaf, x[rows]), y[rows])

    minimize([leaf], loss, steps, lr)
    if not bool(torch.isfinite(leaf).all()):
        raise RuntimeError("train: the weights are not finite; lower lr")
    return leaf.detach()


def summed_losses(z: Tensor, y: Tensor) -> Tensor:
    """The sum over networks of their mean cross-entropy, z (k, n, c) and y (k, n).

    Its gradient holds those of all networks: none sees another's weights.

    Examples:
        >>> z, y = torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.long)
        >>> round(summed_losses(z, y).item() / math.log(2), 6)
        3.0
    """
    total = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum")
    return total / y.shape[1]


@torch.no_grad()
def accuracy(
    R: Realization,
    w: Annotated[Tensor, "R.p"],
    x: Annotated[Tensor, "n ..."],
    y: Annotated[Tensor, "n"],
    batch: int = 4096,
) -> float:
    """Return the share of inputs whose largest output is that of their class.

    Args:
        R: the network as a function of its weights.
        w: weights, shape (p,).
        x, y: inputs (n, ...) and classes (n,).
        batch: inputs that are looked at together.

    Raises:
        ValueError: no input, weights that are not finite, or another number of labels.

    Source: definition, the mean of the 0-1 score.

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> accuracy(R, R.theta0, torch.eye(2).double(), torch.tensor([9, 9]))
        0.0
    """
    fits, y = w.dtype == x.dtype or not x.is_floating_point(), class_labels(y, len(x))
    expect(fits, "w", f"{x.dtype} as x is", w.dtype)
    right = [
        (R(w, xs).argmax(1) == ys).sum().item()
        for xs, ys in zip(x.split(batch), y.split(batch), strict=True)
    ]
    return sum(right) / len(y)


@differentiation()
def train_module(
    module: nn.Module,
    data: Table,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    augment: bool = False,
    file: str | Path | None = None,
    every: int = 200,
) -> nn.Module:
    """Train a module in training mode by Adam; with a `file` it resumes after a kill.

    The state (weights, buffers, optimizer, step) is written every so many steps. All
    random draws depend on the seed and the step alone, so that a resumed run takes
    the very steps of an uninterrupted one.

    Args:
        module: changed in place, and returned in evaluation mode.
        data: its training part is used.
        steps, batch, lr, seed: as in `train`; inputs are drawn with repetition.
        augment: random crops (4 pixels) and mirror images; for 4-axis images.
        file: where the state is kept.
        every: steps between two writings.

    Raises:
        ValueError: a damaged checkpoint, or one of another run (seed, steps, sizes).
        RuntimeError: the loss is not finite.
        DeviceMemoryError: the batch does not fit on the device; says which one does.

    Cost: steps * batch gradient evaluations.

    Source: Kingma and Ba 2015, algorithm 1.

    Examples:
        >>> from geolib.networks import mlp, table
        >>> train_module(mlp([64, 8, 10]), table("digits"), steps=3).training
        False
    """
    module.eval()
    with torch.no_grad():
        check_inputs(data.x)
        y = check_labels(module(data.x[:2]).shape[1], data.y, len(data.x))
    data = replace(data, y=y)
    expect(any(True for _ in module.parameters()), "module", "parameters", module)
    adam = torch.optim.Adam(module.parameters(), lr=lr)
    size = sum(p.numel() for p in module.parameters())
    run = {"seed": seed, "steps": steps, "batch": batch, "lr": lr, "size": size}
    first = _resume(module, adam, file, run)

    def loss(step: int) -> Tensor:
        value = _backward(module, *_draw(data, batch, seed, step, augment))
        if value is None:
            raise _too_large(module, data, batch, file)
        return value

    def after(step: int, value: Tensor) -> None:
        if (step + 1) % every == 0 or step + 1 == steps:
            if not bool(torch.isfinite(value)):
                raise RuntimeError(
                    f"lr: the loss is not finite at step {step}; lower it"
                )
            _store(module, adam, file, run | {"step": step + 1})

    module.train()
    hooks: dict[str, Any] = {"optimizer": adam, "first": first, "after": after}
    minimize(module.parameters(), loss, steps, lr, **hooks)
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
    what = f"a batch of {batch} does not fit on {data.x.device}, one of {fits} does"
    return DeviceMemoryError(f"train_module: {what}{kept}")


class DeviceMemoryError(MemoryError):
    """Not even the smallest piece fits into the device's memory."""


def fitting_batch(
    run: Callable[[int], Result], start: int, smallest: int = 1
) -> tuple[Result, int]:
    r"""Call `run(batch)` with the first batch size of a halving sequence that fits.

    .. math:: b_k = \max(\lfloor b_0 / 2^k \rfloor, b_{\min}), \qquad k = 0, 1, \dots

    `run` must start from nothing on every call: a call that ran out of memory is
    forgotten, its cached blocks are given back, and the next smaller size is tried.

    Args:
        run: the work, as a function of the batch size (in samples).
        start: batch size to try first.
        smallest: batch size below which there is no point in going on.

    Returns:
        The result, and the batch size that fitted.

    Raises:
        ValueError: sizes that are not `1 <= smallest <= start`.
        DeviceMemoryError: `smallest` did not fit; names every size that was tried.

    Cost: at most :math:`\log_2(b_0 / b_{\min}) + 1` calls.

    Source: ours.

    Examples:
        >>> fitting_batch(lambda batch: 10 * batch, 64)
        (640, 64)
    """
    fits, wanted = 1 <= smallest <= start, "1 <= smallest <= start"
    expect(fits, "start, smallest", wanted, (start, smallest))
    tried: list[int] = []
    problem = ""
    while smallest not in tried:
        tried.append(max(tried[-1] // 2, smallest) if tried else start)
        try:
            return run(tried[-1]), tried[-1]
        except torch.OutOfMemoryError as full:
            problem = str(full)  # its traceback would keep all that filled the device
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    what = f"the device ran out of memory at batch sizes {tried}"
    raise DeviceMemoryError(f"{what}; use a smaller model or fewer outputs ({problem})")


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
    held = {"module": module.state_dict(), "adam": adam.state_dict(), "record": record}
    whole = io.BytesIO()
    torch.save(held, whole)
    write_whole(Path(file), whole.getvalue())


def _resume(module, adam, file, run: dict[str, Any]) -> int:
    if file is None or not Path(file).exists():
        return 0
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        record = held["record"]
    except (RuntimeError, EOFError, KeyError, TypeError, UnpicklingError) as error:
        what = f"{file} is damaged or not one of ours ({error})"
        raise ValueError(f"file: {what}; delete it and start again") from error
    if other := {k: record.get(k) for k, v in run.items() if record.get(k) != v}:
        ours = {k: run[k] for k in other}
        what = f"{file} is of another run: it has {other}, this run has {ours}"
        raise ValueError(f"file: {what}")
    module.load_state_dict(held["module"])
    adam.load_state_dict(held["adam"])
    return int(record["step"])
