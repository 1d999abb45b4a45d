"""Training shallow networks freely, projected on the restricted set, or inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.inverse_stability.net import BiasedReLU, ShallowReLU
from geolib.inverse_stability.restricted import lift_inputs, lift_to_restricted

MODES = ("unrestricted", "projected", "reparametrised")
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}
FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained network and its training curve.

    Attributes:
        net: `BiasedReLU` for the unrestricted mode, otherwise the network on
            (x, 1, -1), a member of the restricted set.
        losses: training loss before each step and after the last.
        mode: how it was trained.
    """

    net: BiasedReLU | ShallowReLU
    losses: np.ndarray
    mode: str

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, D) at raw inputs (n, d)."""
        return self.net(x if isinstance(self.net, BiasedReLU) else lift_inputs(x))

    def restricted(self) -> ShallowReLU:
        """The network in the restricted set, lifted where it was not there already."""
        if isinstance(self.net, BiasedReLU):
            return lift_to_restricted(self.net)
        return self.net


def initial_network(d: int, m: int, D: int, seed: int) -> BiasedReLU:
    """A network with He-scaled inner and small outer weights, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(m, d)) * np.sqrt(2 / d)
    b = 0.1 * rng.normal(size=m)
    return BiasedReLU(W, b, rng.normal(size=(D, m)) / np.sqrt(m))


def fit(
    x: np.ndarray,
    y: np.ndarray,
    width: int,
    mode: str = "projected",
    *,
    loss: str = "mse",
    steps: int = 1000,
    lr: float = 1e-2,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Fit:
    r"""Full-batch Adam with a cosine schedule, from the same function in every mode.

    `unrestricted` trains (W, b, C). `projected` trains the lifted (A, C) and returns
    to the restricted set after each step: the last two columns of A are clamped to be
    positive, then every neuron is balanced. `reparametrised` never leaves it:

    .. math:: a = t\,\frac{(w, \zeta(p), \zeta(q))}{\|(w, \zeta(p), \zeta(q))\|_\infty},
        \quad c = t\,\frac{v}{\|v\|_\infty}, \quad t = e^\tau,\ \zeta = \text{softplus}

    Args:
        x: inputs, shape (n, d).
        y: targets (n, D) for `mse`, class numbers (n,) for `cross_entropy`.
        width: number of hidden neurons.
        mode: one of the three.
        loss: `mse` or `cross_entropy`.
        steps, lr: of Adam.
        seed: of the initial network.
        device, dtype: where and in which precision to train.

    Raises:
        ValueError: unknown mode or loss, wrong shapes, NaN in the data, divergence.

    Source: the learning set-up of the paper (as recalled); projection and
    reparametrisation are this book's.

    Examples:
        >>> x = np.linspace(-1, 1, 20)[:, None]
        >>> run = fit(x, abs(x), 4, "unrestricted", steps=200, lr=0.05)
        >>> bool(run.losses[-1] < 0.1 * run.losses[0])
        True
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {tuple(LOSSES)}, got {loss!r}")
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    if x.ndim != 2 or len(y) != len(x) or y.ndim != (2 if loss == "mse" else 1):
        shape = "(n, D)" if loss == "mse" else "(n,)"
        raise ValueError(
            f"x, y: expected shapes (n, d) and {shape}, got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x, y: expected finite data, got NaN or infinity")
    outputs = y.shape[1] if loss == "mse" else int(y.max()) + 1
    start = initial_network(x.shape[1], width, outputs, seed)
    model = _Model(mode, start, device, dtype)
    inputs = torch.as_tensor(x if mode == "unrestricted" else lift_inputs(x))
    target = torch.as_tensor(y, device=device)
    target = target.to(dtype) if loss == "mse" else target.long()
    losses = _adam(model, inputs.to(device, dtype), target, LOSSES[loss], steps, lr)
    return Fit(model.network(), losses, mode)


class _Model:
    """Raw parameters of one mode, and the weights (A, b, C) that they stand for."""

    def __init__(
        self, mode: str, start: BiasedReLU, device: str, dtype: torch.dtype
    ) -> None:
        self.mode = mode
        if mode == "unrestricted":
            raw = [start.W, start.b, start.C]
        else:
            lifted = lift_to_restricted(start)
            raw = [lifted.A, lifted.C]
            if mode == "reparametrised":
                t = np.abs(lifted.A).max(axis=1)
                heads = lifted.A[:, -2:] / t[:, None]
                inner = np.column_stack(
                    [lifted.A[:, :-2] / t[:, None], np.log(np.expm1(heads))]
                )
                raw = [np.log(t), inner, lifted.C / t]
        self.raw = [
            torch.tensor(r, device=device, dtype=dtype, requires_grad=True) for r in raw
        ]

    def weights(self) -> tuple[Tensor, Tensor | None, Tensor]:
        if self.mode == "unrestricted":
            W, b, C = self.raw
            return W, b, C
        if self.mode == "projected":
            A, C = self.raw
            return A, None, C
        tau, inner, v = self.raw
        u = torch.cat([inner[:, :-2], F.softplus(inner[:, -2:])], dim=1)
        t = tau.exp()
        A = t[:, None] * u / u.abs().amax(dim=1, keepdim=True)
        return A, None, t * v / v.abs().amax(dim=0)

    def __call__(self, x: Tensor) -> Tensor:
        A, b, C = self.weights()
        return F.linear(F.relu(F.linear(x, A, b)), C)

    @torch.no_grad()
    def project(self) -> None:
        """Back to the restricted set: positive last columns, balanced neurons."""
        if self.mode != "projected":
            return
        A, C = self.raw
        A[:, -2:] = A[:, -2:].clamp_min(FLOOR)
        a, c = A.abs().amax(dim=1), C.abs().amax(dim=0)
        t = (a * c).sqrt()
        A *= (t / a)[:, None]
        C *= torch.where(c > 0, t / c.clamp_min(1e-300), c)

    def network(self) -> BiasedReLU | ShallowReLU:
        with torch.no_grad():
            A, b, C = (None if w is None else w.double() for w in self.weights())
        return ShallowReLU(A, C) if b is None else BiasedReLU(A, b, C)  # type: ignore[arg-type]


def _adam(
    model: _Model,
    x: Tensor,
    target: Tensor,
    criterion: Callable[..., Tensor],
    steps: int,
    lr: float,
) -> np.ndarray:
    optimizer = torch.optim.Adam(model.raw, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = criterion(model(x), target)
        value.backward()
        losses.append(value.detach())
        optimizer.step()
        schedule.step()
        model.project()
    with torch.no_grad():
        losses.append(criterion(model(x), target))
    curve = torch.stack(losses).double().cpu().numpy()
    if not np.isfinite(curve).all():
        raise ValueError(f"lr: the training loss diverges with learning rate {lr}")
    return curve
