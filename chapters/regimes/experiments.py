"""Measured errors of the theories: scores, the phase map, and a cut that fails.

`geolib sweep phase-map` measures larger maps than the notebooks do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments_trial import (
    DATA_TRIAL as DATA_TRIAL,
    PREDICT_TRIAL as PREDICT_TRIAL,
)
from geolib.regimes import (
    REGIMES,
    Setup,
    classify_regime,
    ensemble,
    marchenko_pastur,
    planar_loss,
    simulate,
    theory_curves,
)
from geolib.regimes.predict import curve_errors
from geolib.sweep import Sweep, grid
from polytope import prism, regime_of_facet

SOLVED = REGIMES[:4]
TINT = dict(zip(REGIMES, ("blue", "green", "orange", "pink", "gold"), strict=True))
NEXT = ("large-data + next", "mean-field + next")


def excess_error(run: Any, curves: Any) -> tuple[float, float]:
    r"""Largest distance of mean simulated and predicted change of a loss, relative.

    .. math:: \max_t |\Delta L_{sim} - \Delta L_{th}| / \max_t |\Delta L_{sim}| ,
        \qquad \Delta L(t) = L(t) - L(0) ,

    for the training and for the population loss. The change is compared, as the loss
    at time 0 fluctuates from seed to seed by more than the theories err.
    """
    out = []
    for simulated, theory in zip((run.train, run.population), curves, strict=True):
        mean = simulated.mean(0) / run.d
        moved = mean - mean[0]
        scale = np.abs(moved).max()
        out.append(float(np.abs(moved - (theory - theory[0])).max() / scale))
    return out[0], out[1]


def headline_error(run: Any, curves: Any, name: str) -> tuple[float, float]:
    r"""Largest distance of simulated and predicted loss over its natural scale.

    The scale is the initial loss, except for the training loss in the narrow regime
    (its excess over tr S / 2, per sample S) and both narrow and small-data population
    losses (their change). Averaged over seeds one by one.
    """
    d, errors = run.d, []
    for row in range(run.train.shape[0]):
        train, population = run.train[row] / d, run.population[row] / d
        if name == "narrow":
            train = train - run.trace[row] / (2 * d) + 0.5
            pairs = ((train, curves.train, 0.5), (population, curves.population, 0.5))
            scaled = [
                np.abs(sim - th).max() / np.abs(th - base).max()
                for sim, th, base in pairs
            ]
        else:
            first = np.abs(train - curves.train).max() / curves.train[0]
            if name == "small-data":
                moved = curves.population - curves.population[0]
                second = np.abs(population - population[0] - moved).max()
                scaled = [first, second / np.abs(moved).max()]
            else:
                second = np.abs(population - curves.population).max()
                scaled = [first, second / curves.population[0]]
        errors.append(scaled)
    mean = np.mean(errors, axis=0)
    return float(mean[0]), float(mean[1])


def error_rate(name: str, setup: Setup) -> float:
    """What the error of a solved face goes to zero like: its small ratio and the scatter
    of what is drawn."""
    d, h, n = setup.d, setup.h, setup.n
    rates = {
        "large-data": (d / n, h * d),
        "mean-field": (d / h, n * d),
        "narrow": (h / min(d, n), h * d),
        "small-data": (n / d, n * d),
    }
    ratio, draws = rates[name]
    return ratio + draws**-0.5


@dataclass(frozen=True)
class Cell:
    """One cell of the map: measured errors of theories, and those that are stated."""

    setup: Setup
    errors: dict[str, float]
    stated: dict[str, float]

    @property
    def named(self) -> str:
        """The solved face with the least stated error."""
        return min(SOLVED, key=lambda name: self.stated[name])

    def best(self, names: Iterable[str] = SOLVED) -> str:
        """The theory with the least measured error among `names`."""
        return min(names, key=lambda name: self.errors[name])


def measure_cell(
    setup: Setup,
    *,
    seeds: int = 2,
    theories: Iterable[str] = SOLVED,
    rtol: float = 1e-5,
    budget: float = 1e9,
) -> Cell:
    """Simulate one setup and score theories by the worse of their two excess errors.

    The stated errors are those against the ensemble, which has seen no run.

    Args:
        setup: the sizes; T t runs over [0, 3].
        seeds: how many draws are averaged.
        theories: names that `theory_curves` knows.
        rtol: tolerance of the simulation.
        budget: of the ensemble.
    """
    t = setup.times(25)
    run = simulate(setup, t, seeds=seeds, rtol=rtol, atol=rtol * 1e-2)
    mean = ensemble(setup, t, budget=budget).mean
    curves = {name: theory_curves(name, t, setup) for name in {*theories, *SOLVED}}
    curves["ensemble"] = mean
    errors = {name: max(excess_error(run, pair)) for name, pair in curves.items()}
    return Cell(setup, errors, curve_errors(curves, mean))


def phase_map(
    d: int,
    log_h: Iterable[int],
    log_n: Iterable[int],
    *,
    scale: float = 0.3,
    seeds: int = 2,
    theories: Iterable[str] = SOLVED,
) -> list[list[Cell]]:
    r"""Cells with h / d = 2^i (rows) and n / d = 2^j (columns).

    The initial variance is :math:`\sigma^2 = scale / (h + d)`, so that rho + kappa
    stays the same across the map.

    Args:
        d: input dimension.
        log_h, log_n: the exponents i and j.
        scale: rho + kappa.
        seeds, theories: as in `measure_cell`.
    """
    rows = []
    columns, names = list(log_n), tuple(theories)
    for i in log_h:
        h = max(1, round(d * 2.0**i))
        row = []
        for j in columns:
            setup = Setup(d, h, max(1, round(d * 2.0**j)), scale / (h + d))
            row.append(measure_cell(setup, seeds=seeds, theories=names))
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Spec:
    """One cell: h = d 2^log_h, n = d 2^log_n, initial variance scale / (h + d)."""

    log_h: int
    log_n: int
    d: int = 64
    scale: float = 0.3
    seeds: int = 2


def run(spec: Spec) -> dict[str, Any]:
    """Simulate the cell and score every solved theory on it."""
    exponents = [spec.log_h], [spec.log_n]
    ((cell,),) = phase_map(spec.d, *exponents, scale=spec.scale, seeds=spec.seeds)
    return {
        "h": cell.setup.h,
        "n": cell.setup.n,
        "errors": cell.errors,
        "best": cell.best(),
        "regime": classify_regime(cell.setup).name,
        "predicted": cell.named,
    }


def full_map() -> Sequence[Spec]:
    """A 13 by 13 map at d = 128, averaged over eight seeds, at three scales."""
    return grid(
        Spec, scale=[0.1, 0.3, 1.0], log_h=range(-6, 7), log_n=range(-6, 7), d=128,
        seeds=8,
    )  # fmt: skip


PHASE_MAP = Sweep(
    "phase-map",
    run,
    {
        "small": lambda: grid(Spec, log_h=[-3, 0, 3], log_n=[-3, 0, 3], d=16),
        "book": lambda: grid(Spec, log_h=range(-5, 6), log_n=range(-5, 6)),
        "full": full_map,
    },
    text="Error of every solved regime over hidden width and sample size.",
)


def small_data_cut(
    tau: ArrayLike, rho: float, kappa: float, order: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Both curves of `small_data` from the moment hierarchy cut at `order`: a warning.

    .. math::
        \dot M_k = - \sum_{j<k} [ 2 M_{j+1} M_{k-j} + M_j M_{k+1-j}
            + M_{j+2} M_{k-1-j} - 2 M_j M_{k-j} - 2 M_{j+1} M_{k-1-j} ]

    with :math:`M_0 = 1` and :math:`M_k = 0` for k > `order` diverges; the curves are
    infinite from the time at which the cut system blew up.

    Raises:
        ValueError: an order below 3.
    """
    from scipy.integrate import solve_ivp

    t = np.asarray(tau, float)
    if order < 3:
        raise ValueError(f"order: expected at least 3, got {order}")
    powers = range(1, order + 1)
    law = marchenko_pastur(rho, kappa)

    def field(_: float, y: np.ndarray) -> np.ndarray:
        M = np.concatenate(([1.0], y[:-1], [0.0, 0.0]))
        out = np.empty_like(y)
        for k in powers:
            p, q = M[: k + 2], M[k + 1 :: -1]  # p[j] = M_j, q[j] = M_{k+1-j}
            out[k - 1] = -(
                2 * p[1 : k + 1] @ q[1 : k + 1]
                + p[:k] @ q[:k]
                + p[2 : k + 2] @ q[2 : k + 2]
                - 2 * p[:k] @ q[1 : k + 1]
                - 2 * p[1 : k + 1] @ q[2 : k + 2]
            )
        out[-1] = -4 * (M[3] - 2 * M[2] + M[1])
        return out

    def wall(_: float, y: np.ndarray) -> float:
        return 1e6 - float(np.abs(y).max())

    wall.terminal = True  # type: ignore[attr-defined]
    start = [law.moment(k) for k in powers]
    span = (0.0, max(t[-1], 1e-12))
    out = solve_ivp(field, span, [*start, 0.0], "DOP853", t, events=wall, rtol=1e-7)
    train, population = np.full(t.shape, np.inf), np.full(t.shape, np.inf)
    reached = out.y.shape[1]
    train[:reached] = 0.5 * (1 - 2 * out.y[0] + out.y[1])
    population[:reached] = out.y[-1]
    return train, population


def pareto(monomials: Iterable[tuple[int, int, int, int]]) -> set[tuple[int, ...]]:
    r"""The Pareto front: monomials :math:`d^q h^k \sigma^{2l} n^{-m}` not dominated.

    One dominates another when it has the same l and is at least as large in each of
    d, h and n: q and k no smaller, m no larger. Monomials are (q, k, l, m).

    """
    pool = list(monomials)
    return {
        (q, k, l, m)
        for q, k, l, m in pool
        if not any(
            L == l and Q >= q and K >= k and M <= m and (Q, K, M) != (q, k, m)
            for Q, K, L, M in pool
        )
    }


def power_series_losses(
    W: np.ndarray, X: np.ndarray, order: int, P: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    r"""Time derivatives of both losses at 0, draw by draw, without any words.

    With :math:`W(t) = \sum_k W_k t^k` the flow gives
    :math:`(k + 1) W_{k+1} = -\sum_{i+j=k} W_i C_j`, where :math:`C_j` are the
    coefficients of :math:`BS + SB`.

    Args:
        W: (draws, h, d).
        X: (draws, d, n).
        order: highest derivative.
        P: (d, d) the population's covariance, default the identity.

    Returns:
        (draws, order + 1) by kind of loss.
    """
    _, d, n = X.shape
    S, one = X @ X.mT / n, np.eye(d)
    series, B = [W], []
    for k in range(order + 1):
        square = sum(series[i].mT @ series[k - i] for i in range(k + 1))
        B.append(square - one if k == 0 else square)
        C = [b @ S + S @ b for b in B]
        series.append(-sum(series[i] @ C[k - i] for i in range(k + 1)) / (k + 1))
    pairs = [[(B[i], B[k - i]) for i in range(k + 1)] for k in range(order + 1)]
    train = [sum(np.einsum("bij,bji->b", S @ a, b) for a, b in row) for row in pairs]
    P = one if P is None else P
    population = [sum(((P @ a) * b).sum((1, 2)) for a, b in row) for row in pairs]
    scale = np.array([factorial(k) / 2 for k in range(order + 1)])
    return {
        "train": np.stack(train, 1) * scale,
        "population": np.stack(population, 1) * scale,
    }


# ---- figures that move ---------------------------------------------------------------


def solid_prism(order: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The faces of the training loss's prism in (l, m, k), and its lattice points."""
    body = prism("train", order)
    corners = np.array(body.vertices, float)[:, [0, 2, 1]]
    faces = []
    for facet in body.facets:
        points = corners[sorted(facet.vertices)]
        out = points - points.mean(0)
        u, v = np.linalg.svd(out)[2][:2]
        around = points[np.argsort(np.arctan2(out @ v, out @ u))]
        name = regime_of_facet(facet)
        faces.append({"name": name, "color": TINT[name], "points": around})
    inside = planar_loss("train", order)[order]
    return faces, np.array(list(inside), float)[:, [0, 2, 1]]


def predicted_setups(
    ds: list[int], sizes: list[int], variances: list[float], depth: int = 4
) -> dict[str, list[Any]]:
    """What is predicted for every setup of a grid of d, h, n and the start's variance.

    Args:
        ds: input dimensions.
        sizes: widths, and numbers of samples.
        variances: of one initial weight.
        depth: of the Fock space, where no face is active.

    Returns:
        Lists over the product of the four: `active` faces, the `cell`, the `theory`
        whose curves are shown, its `error` at the start, and both losses over their
        first value, (times, loss) pairs with T t in [0, 3].
    """
    found: dict[str, list[Any]] = {
        k: [] for k in ("active", "cell", "theory", "error", "train", "population")
    }
    known: dict[Any, Any] = {}
    unit = 3 * np.linspace(0, 1, 15) ** 2  # denser where the curves are steep
    for d, h, n, sigma2 in product(ds, sizes, sizes, variances):
        setup = Setup(d, h, n, sigma2)
        regime = classify_regime(setup)
        theory = regime.best if regime.active else "interior"
        key = (*setup.ratios, theory)
        if key not in known:
            curves = theory_curves(theory, unit / regime.rate, setup, depth=depth)
            known[key] = [
                np.stack([unit, loss / loss[0]], 1)
                for loss in (curves.train, curves.population)
            ]
        found["active"].append(list(regime.active))
        found["cell"].append(regime.name.replace(" x ", " \u00d7 "))
        found["theory"].append(theory)
        found["error"].append(regime.errors.get(theory))
        found["train"].append(known[key][0])
        found["population"].append(known[key][1])
    return found
