"""Training shallow networks freely or in the restricted set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core.validation import expect
from geolib.inverse_stability import (
    BiasedReLU,
    ShallowReLU,
    lift_inputs,
    lift_to_restricted,
)
from geolib.inverse_stability.shallow_relu import finite_array
from geolib.networks import minimize

MODES = ("unrestricted", "projected", "reparametrised")
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}
FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class TrainedShallow:
    """A trained network and its training curve.

    Attributes:
        net: the network at the end.
        losses: loss before each step and after the last, shape (steps + 1,).
        lifted: whether `net` reads (x, 1, -1) instead of x.
    """

    net: BiasedReLU | ShallowReLU
    losses: np.ndarray
    lifted: bool = False

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, D) at raw inputs (n, d)."""
        return self.net(lift_inputs(x) if self.lifted else x)

    def restricted(self) -> ShallowReLU:
        """The network in the restricted set, lifted where it was not there already."""
        if isinstance(self.net, BiasedReLU):
            return lift_to_restricted(self.net)
        return self.net


def _curve(losses: Any) -> np.ndarray:
    """The losses of a run, refused where they are not finite."""
    curve = np.asarray(losses)
    if not np.isfinite(curve).all():
        raise ValueError("lr: the training loss diverges; take shorter steps")
    return curve


def initial_network(d: int, m: int, D: int, seed: int) -> BiasedReLU:
    """A network with He-scaled inner and small outer weights, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(m, d)) * np.sqrt(2 / d)
    b = 0.1 * rng.normal(size=m)
    return BiasedReLU(W, b, rng.normal(size=(D, m)) / np.sqrt(m))


def train_shallow(
    x: np.ndarray,
    y: np.ndarray,
    width: int,
    mode: str = "projected",
    *,
    loss: str = "mse",
    steps: int = 1000,
    lr: float = 1e-2,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[TrainedShallow]:
    r"""Full-batch Adam with a cosine schedule, from the same function in every mode.

    `unrestricted` trains (W, b, C). `projected` trains the lifted (A, C) and returns
    to the restricted set after each step: the last two columns of A are clamped to be
    positive, then every neuron is balanced. `reparametrised` never leaves it:

    .. math:: a = t\,\frac{(w, \zeta(p), \zeta(q))}{\|(w, \zeta(p), \zeta(q))\|_\infty},
        \quad c = t\,\frac{v}{\|v\|_\infty}, \quad t = e^\tau,\ \zeta = \text{softplus}

    Args:
        x: inputs, shape (n, d).
        y: targets (n, D) for `mse`, class numbers (n,) for `cross_entropy`.
        width: number of hidden neurons, at least 1.
        mode: one of the three.
        loss: `mse` or `cross_entropy`.
        steps, lr: number (at least 1) and length of the steps of Adam.
        seeds: of the initial networks, which are trained side by side.
        device, dtype: where and in which precision to train.

    Returns:
        a `TrainedShallow` for each seed.

    Raises:
        ValueError: unknown mode, loss or device, no seed, wrong shapes or numbers, NaN in the
            data, negative classes, divergence.

    Source: Elbraechter, Berner and Grohs 2019, on learning (the set and the lift);
    :eq:`drv-inverse_stability-projection` (derivations).

    Examples:
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> (run,) = train_shallow(x, abs(x), 4, "unrestricted", steps=200, lr=0.05)
        >>> bool(run.losses[-1] < 0.1 * run.losses[0])
        True
    """
    expect(mode in MODES, "mode", f"one of {MODES}", mode)
    expect(loss in LOSSES, "loss", f"one of {tuple(LOSSES)}", loss)
    expect(width >= 1, "width", "a positive number", width)
    expect(steps >= 1, "steps", "a positive number", steps)
    expect(0 < lr < np.inf, "lr", "a positive number", lr)
    expect(len(seeds), "seeds", "one seed or more", seeds)
    axes = 2 if loss == "mse" else 1
    wanted = f"shapes (n, d) and {'(n, D)' if axes == 2 else '(n,)'}"
    fits = np.ndim(x) == 2 and np.ndim(y) == axes and len(y) == len(x)
    expect(fits, "x, y", wanted, (np.shape(x), np.shape(y)))
    x, y = finite_array("x, y", x, 2), finite_array("x, y", y, axes)
    if axes == 1:
        whole = (y >= 0).all() and (y == y.round()).all()
        expect(whole, "y", "class numbers 0, 1, ...", y)
    try:
        device = str(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: cannot use {device!r}: {error}") from error
    outputs = y.shape[1] if axes == 2 else int(y.max()) + 1
    start = [initial_network(x.shape[1], width, outputs, seed) for seed in seeds]
    model = _Model(mode, start, device, dtype)
    seen = x if mode == "unrestricted" else lift_inputs(x)
    inputs = torch.tensor(seen, device=device, dtype=dtype)
    kind = dtype if axes == 2 else torch.int64
    target = torch.tensor(y.T, device=device, dtype=kind).expand(len(seeds), *y.T.shape)

    def losses() -> Tensor:
        """One for each seed; none depends on the weights of another."""
        A, b, C = model.weights()
        z = A @ inputs.T if b is None else A @ inputs.T + b[..., None]
        each = LOSSES[loss](C @ F.relu(z), target, reduction="none")
        return each.flatten(1).mean(1)

    curves: list[Tensor] = []

    def total(_step: int) -> Tensor:
        values = losses()
        curves.append(values.detach())
        return values.sum()

    minimize(model.raw, total, steps, lr, after=lambda *_: model.project())
    with torch.no_grad():
        curves.append(losses())
    found = _curve(torch.stack(curves, 1).double().cpu().numpy())
    lifted = mode != "unrestricted"
    nets = zip(model.networks(), found, strict=True)
    return [TrainedShallow(net, curve, lifted) for net, curve in nets]


class _Model:
    """Raw parameters of one mode, for all seeds, and the weights (A, b, C) they mean."""

    def __init__(
        self, mode: str, start: list[BiasedReLU], device: str, dtype: torch.dtype
    ) -> None:
        self.mode = mode
        raw = [self._raw(net) for net in start]
        self.raw = [
            torch.tensor(np.stack(p), device=device, dtype=dtype, requires_grad=True)
            for p in zip(*raw, strict=True)
        ]

    def _raw(self, net: BiasedReLU) -> list[np.ndarray]:
        if self.mode == "unrestricted":
            return [net.W, net.b, net.C]
        lifted = lift_to_restricted(net)
        if self.mode == "projected":
            return [lifted.A, lifted.C]
        t = np.abs(lifted.A).max(axis=1)
        u = lifted.A / t[:, None]
        inner = np.column_stack([u[:, :-2], np.log(np.expm1(u[:, -2:]))])
        return [np.log(t), inner, lifted.C / t]

    def weights(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """A (seeds, m, d), b (seeds, m) or None, and C (seeds, D, m)."""
        if self.mode == "unrestricted":
            W, b, C = self.raw
            return W, b, C
        if self.mode == "projected":
            A, C = self.raw
            return A, None, C
        tau, inner, v = self.raw
        u = torch.cat([inner[..., :-2], F.softplus(inner[..., -2:])], dim=2)
        t = tau.exp()
        A = t[..., None] * u / u.abs().amax(dim=2, keepdim=True)
        return A, None, t[:, None] * v / v.abs().amax(dim=1, keepdim=True)

    @torch.no_grad()
    def project(self) -> None:
        """Back to the restricted set: positive last columns, balanced neurons."""
        if self.mode != "projected":
            return
        A, C = self.raw
        A[..., -2:] = A[..., -2:].clamp_min(FLOOR)
        a, c = A.abs().amax(dim=2), C.abs().amax(dim=1)
        t = (a * c).sqrt()
        A *= (t / a)[..., None]
        C *= torch.where(c > 0, t / c.clamp_min(1e-300), c)[:, None]

    def networks(self) -> Iterator[BiasedReLU | ShallowReLU]:
        A, b, C = self.weights()
        for k in range(len(A)):
            yield ShallowReLU(A[k], C[k]) if b is None else BiasedReLU(A[k], b[k], C[k])
