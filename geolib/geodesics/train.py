"""Training with the compute counted: the harness all methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.data import load
from geolib.geodesics.checks import check_inputs, check_labels, check_positive


@dataclass
class Meter:
    """Counts compute: gradient evaluations times inputs.

    One forward and one backward pass on one input count 1, and so does one product
    with the metric (a forward and a backward derivative).

    Examples:
        >>> meter = Meter()
        >>> meter.add(256)
        >>> meter.passes
        256
    """

    passes: int = 0

    def add(self, inputs: int) -> None:
        self.passes += inputs


@dataclass(frozen=True)
class Table:
    """Inputs and labels as tensors, with a validation part cut from the training data.

    Attributes:
        x, y: training inputs (n, ...) and classes (n,).
        x_val, y_val: held-out training data; every setting is chosen on it.
        x_test, y_test: looked at once, in the end.
    """

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str = field(default="", compare=False)


def table(
    name: str = "digits",
    *,
    train: int | None = None,
    validation: int = 200,
    test: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Table:
    """Read a data set of `geolib.data` into tensors.

    The validation rows are drawn from the training rows by a fixed seed. Images get
    the mean and standard deviation of the kept training pixels removed.

    Args:
        train: how many training rows to keep, after the validation rows are removed.
        validation: 0 keeps every row for training (the validation part is then empty).

    Raises:
        DataError: the data is missing or corrupt; see `geolib.data.load`.
        ValueError: more rows asked for than there are.

    Examples:
        >>> table("digits").x.shape
        torch.Size([1000, 64])
    """
    data = load(name)
    order = np.random.default_rng(0).permutation(len(data.x))
    if validation < 0 or validation + (train or 1) > len(order):
        raise ValueError(
            f"train, validation: {name} has {len(order)} training rows, asked for "
            f"{train} and {validation}"
        )
    held = np.sort(order[:validation])
    kept = np.sort(order[validation:][:train])
    x, x_val, x_test = data.x[kept], data.x[held], data.x_test[:test]
    if x.ndim > 2:  # images come in [0, 1]; tables are already standardised
        axes = (0, 2, 3) if x.ndim == 4 else (0, 1, 2)
        shift = x.mean(axes, keepdims=True, dtype=np.float64)
        scale = x.std(axes, keepdims=True, dtype=np.float64)
        x, x_val, x_test = ((part - shift) / scale for part in (x, x_val, x_test))

    def inputs(part) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(part)).to(device, dtype)

    def labels(part) -> Tensor:
        return torch.from_numpy(np.asarray(part, np.int64)).to(device)

    return Table(
        inputs(x),
        labels(data.y[kept]),
        inputs(x_val),
        labels(data.y[held]),
        inputs(x_test),
        labels(data.y_test[:test]),
        name,
    )


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


def cosine(lr: float, step: int, steps: int) -> float:
    """The learning rate of a step that falls along half a cosine to zero."""
    return lr * (1 + math.cos(math.pi * step / steps)) / 2


class Adam:
    r"""Adam on one flat vector, with an optional mask of the weights that move.

    Source: Kingma and Ba 2015, algorithm 1.

    Examples:
        >>> adam = Adam(torch.zeros(2))
        >>> adam.step(torch.zeros(2), torch.tensor([1.0, -2.0]), 0.1).tolist()
        [-0.1..., 0.1...]
    """

    def __init__(self, like: Tensor) -> None:
        self.m = torch.zeros_like(like)
        self.v = torch.zeros_like(like)
        self.t = 0

    def step(self, w: Tensor, grad: Tensor, lr: float) -> Tensor:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad.square()
        scale = (self.v / (1 - 0.999**self.t)).sqrt() + 1e-8
        return w - lr * (self.m / (1 - 0.9**self.t)) / scale


def gradient(loss: Callable[[Tensor], Tensor], w: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of a loss at `w`."""
    leaf = w.detach().requires_grad_(True)
    value = loss(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.item(), grad


def train(
    R: Realization,
    x: Tensor,
    y: Tensor,
    *,
    w: Tensor | None = None,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    meter: Meter | None = None,
) -> Tensor:
    """Minimise the cross-entropy by Adam with cosine decay; returns the weights.

    Raises:
        ValueError: a label outside the classes of the network, NaN inputs, or
            options out of range.
        RuntimeError: the weights left the finite numbers.

    Cost: steps * batch passes.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, y = torch.eye(2).double(), torch.tensor([0, 2])
        >>> w = train(R, x, y, steps=200, lr=0.1)
        >>> R(w, x).argmax(1).tolist()
        [0, 2]
    """
    w = R.theta0.clone() if w is None else w.clone()
    check_inputs(x)
    check_labels(R(w, x[:1]).shape[1], y, len(x))
    check_positive(steps=steps, batch=batch, lr=lr)
    adam, meter = Adam(w), meter or Meter()
    for step, rows in enumerate(batches(len(x), batch, steps, seed, x.device)):

        def loss(u: Tensor, r: Tensor = rows) -> Tensor:
            return F.cross_entropy(R(u, x[r]), y[r])

        _, grad = gradient(loss, w)
        w = adam.step(w, grad, cosine(lr, step, steps))
        meter.add(len(rows))
    if not bool(torch.isfinite(w).all()):
        raise RuntimeError("train: the weights are not finite; lower lr")
    return w


@torch.no_grad()
def accuracy(R: Realization, w: Tensor, x: Tensor, y: Tensor, batch=4096) -> float:
    """Share of right guesses.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> accuracy(R, R.theta0, torch.eye(2).double(), torch.tensor([9, 9]))
        0.0
    """
    right = [
        (R(w, xs).argmax(1) == ys).sum().item()
        for xs, ys in zip(x.split(batch), y.split(batch), strict=True)
    ]
    return sum(right) / len(y)
