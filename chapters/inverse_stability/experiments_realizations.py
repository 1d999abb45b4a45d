"""Local minima of regularized networks against their width, and what theorems say of them.

Half an hour on one core; the UCI tables are read from `GEOLIB_DATA`.

geolib sweep realizations --size full
geolib sweep restriction --size full
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from realization_training import TrainedRealization, train_realization
from shallow_training import MODES, train_shallow

from geolib.data import load
from geolib.inverse_stability import ShallowReLU, w1inf_seminorm
from geolib.sweep import Sweep, grid

TABLES = {
    "diabetes": "mse",
    "uci/yacht": "mse",
    "uci/energy": "mse",
    "uci/concrete": "mse",
    "uci/power-plant": "mse",
    "uci/banknote_authentication": "cross_entropy",
}
REAL = [name for name, loss in TABLES.items() if loss == "mse"]

Data = tuple[np.ndarray, np.ndarray]


def wave(n: int, seed: int) -> Data:
    """A noisy sine on [-1, 1]; inputs (t, 1), so that neurons have biases."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(-1, 1, n))
    y = np.sin(4 * t) + 0.1 * rng.normal(size=n)
    return np.column_stack([t, np.ones(n)]), y


def planar_teacher(n: int, seed: int, width: int = 6) -> Data:
    """Noisy outputs of a random network of `width` neurons on the unit disc."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    x *= np.sqrt(rng.random((n, 1))) / np.linalg.norm(x, axis=1, keepdims=True)
    teacher = ShallowReLU(rng.normal(size=(width, 2)), rng.normal(size=(1, width)))
    return x, teacher(x)[:, 0] + 0.05 * rng.normal(size=n)


def standardized(name: str, rows: int) -> Data:
    """The first rows of a table, each column and a real target of unit deviation."""
    data = load(name)
    pick = np.random.default_rng(0).permutation(len(data.x))[:rows]
    x, y = data.x[pick].astype(float), data.y[pick].astype(float)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if TABLES.get(name, "mse") == "mse":
        y = (y - y.mean()) / y.std()
    return np.column_stack([x, np.ones(len(x))]), y


def lipschitz(x: np.ndarray, y: np.ndarray, loss: str, radius: float) -> float:
    r"""A Lipschitz constant of the loss in W^{1,inf} on {path norm <= radius}.

    .. math:: c = \frac1n \sum_i \|x_i\|_1\,\bigl(|y_i| + V \|x_i\|_1\bigr)
        \text{ (squares)}, \qquad c = \frac1n \sum_i \|x_i\|_1 \text{ (cross entropy)}

    Source: :eq:`drv-inverse_stability-loss-lipschitz` (derivations).
    """
    size = np.abs(x).sum(axis=1)
    slope = 1.0 if loss == "cross_entropy" else np.abs(y) + radius * size
    return float((size * slope).mean())


def local_minima(
    data: Data,
    widths: Sequence[int],
    seeds: int,
    loss: str,
    penalty: float,
    boxes: int = 2000,
) -> list[dict[str, Any]]:
    """Train from `seeds` random starts for each width, and compare with the optimum.

    Returns a row for each run: the excess of its objective over the reference (the
    optimum for two inputs, else the best network found), `lower`, below which no network
    of any width comes (from `boxes` boxes beyond the plane), whether it is a certified
    local minimum, and the quantities of the almost-optimality theorem on the functions
    with path norm at most V: `eta` is the lower bound V/(2(m + 1)) of the
    approximation gap, `patch` the radius within which the function is minimal for
    certain, `lipschitz` the bound c |g* - g| that needs no theorem, with a lower bound of
    |g* - g| beyond the plane.
    """
    x, y = data
    widest = train_realization(
        x,
        y,
        max(*widths, 2 * len(x)),
        loss=loss,
        penalty=penalty,
        seed=None,
        boxes=boxes,
    )
    fits = {
        (m, s): train_realization(x, y, m, loss=loss, penalty=penalty, seed=s)
        for m in widths
        for s in range(seeds)
    }
    best = min([widest, *fits.values()], key=lambda f: f.objective)
    lower = max(f.lower for f in [widest, *fits.values()])
    return [
        {"width": m, "seed": s, "lower": lower}
        | _row(fit, best, data, m, loss, penalty)
        for (m, s), fit in fits.items()
    ]


def _row(
    fit: TrainedRealization,
    best: TrainedRealization,
    data: Data,
    m: int,
    loss: str,
    penalty: float,
) -> dict[str, Any]:
    radius = max(fit.path_norm, best.path_norm)
    size = np.abs(fit.net.A).max(axis=1)
    losses = [f.objective - penalty * f.path_norm for f in (fit, best)]
    wide = max(fit.net.m, best.net.m)
    gap = fit.net.pad(wide) - best.net.pad(wide)
    delta = w1inf_seminorm(gap, "auto" if gap.d == 2 else "bounds").lower
    return {
        "excess": fit.objective - best.objective,
        "relative": (fit.objective - best.objective) / best.objective,
        "best": best.objective,
        "local_minimum": fit.local_minimum,
        "steepest": fit.steepest,
        "curvature": fit.curvature,
        "neurons": len(fit.net.live),
        "path_norm": radius,
        "eta": radius / (2 * (m + 1)),
        "patch": float((size[size > 0] ** 2).min(initial=np.inf)) / 2,
        "loss_excess": losses[0] - losses[1],
        "delta": delta,
        "lipschitz": lipschitz(*data, loss, radius) * delta,
    }


def fan_gap(m: int, times: int = 8) -> float:
    r"""How near m neurons come to a fan of `times` m, in units of its path norm.

    The fan has neurons of equal size whose directions are spread over a half-plane; the
    approximation keeps the middle one of each block. Exact, by `w1inf_seminorm`.
    """
    n = m * times
    angle = (np.arange(n) + 0.5) * np.pi / n
    rows = np.column_stack([np.cos(angle), np.sin(angle)])
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    fan = ShallowReLU(rows, np.full((1, n), 1 / n))
    kept = np.arange(m) * times + times // 2
    few = ShallowReLU(rows[kept], np.full((1, m), 1 / m))
    return w1inf_seminorm(fan - few).value


@dataclass(frozen=True)
class Spec:
    """All runs on one table: they share the reference."""

    table: str
    rows: int = 200
    widths: tuple[int, ...] = (4, 16, 64)
    seeds: int = 10
    penalty: float = 0.03
    boxes: int = 400_000


def run(spec: Spec) -> dict[str, list[dict[str, Any]]]:
    """The rows of `local_minima` on a table."""
    data, loss = standardized(spec.table, spec.rows), TABLES[spec.table]
    sizes = spec.widths, spec.seeds, loss, spec.penalty, spec.boxes
    return {"runs": local_minima(data, *sizes)}


REALIZATIONS = Sweep(
    "realizations",
    run,
    {
        "small": lambda: [Spec("diabetes", 20, (2, 64), 1, boxes=200)],
        "book": lambda: [Spec("diabetes")],
        "full": lambda: grid(Spec, table=list(TABLES)),
    },
    text="Local minima of regularized networks against their width, on tables.",
    about={"device": "cpu, float64, one thread"},
)


@dataclass(frozen=True)
class Restricted:
    """Training of ten networks on a table of numbers, in one mode."""

    table: str
    mode: str
    rows: int = 200
    width: int = 16
    steps: int = 2000
    lr: float = 0.01
    seeds: int = 10


def restricted(spec: Restricted) -> dict[str, list[float]]:
    """The final training loss of each seed."""
    x, y = standardized(spec.table, spec.rows)
    fits = train_shallow(
        x[:, :-1], y[:, None], spec.width, spec.mode,
        steps=spec.steps, lr=spec.lr, seeds=range(spec.seeds),
    )  # fmt: skip
    return {"losses": [float(f.losses[-1]) for f in fits]}


RESTRICTION = Sweep(
    "restriction",
    restricted,
    {
        "small": lambda: [Restricted("diabetes", m, 20, 4, 20, seeds=2) for m in MODES],
        "book": lambda: grid(Restricted, table="diabetes", mode=MODES),
        "full": lambda: grid(Restricted, table=REAL, mode=MODES),
    },
    text="Training losses with and without the restriction, on tables.",
    about={"device": "cpu, float64, one thread"},
)
