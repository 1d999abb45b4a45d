"""Is `predict` right, for any setup? Random setups and data matrices against training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from time import process_time
from typing import Any

import numpy as np
import torch

from geolib.data import load
from geolib.regimes import (
    Setup,
    SpectralMeasure,
    draw_weights,
    gradient_flow,
    predict,
    prepare,
)
from geolib.regimes.ensemble import _Copies, corrected
from geolib.regimes.predict import KINDS
from geolib.regimes.simulate import FlowProblem, run as follow_batch
from geolib.sweep import Sweep, grid, sweep_rows


@dataclass(frozen=True)
class Trial:
    """One random setup of the trial: its number decides everything."""

    number: int


OLD = 0x10000  # numbers below it were tried while `predict` was written
FRESH = 0x82ECB3  # of the commit that froze the code, whose digits nobody chose


def random_setup(number: int) -> Setup:
    """d uniform from 20 to 400; log-uniform sigma^2 d from .003 to 30, h and n from 2 to
    4 d."""
    rng = np.random.default_rng([17, number])

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    d = int(rng.integers(20, 401))
    h, n = (round(log_uniform(2, 4 * d)) for _ in range(2))
    return Setup(d, h, n, log_uniform(0.003, 30) / d)


def training_runs(
    setup: Setup, t: np.ndarray, seeds: Iterable[int], data: np.ndarray | None = None
) -> np.ndarray:
    """Losses over d, (seeds, 2, T), of flows from the plain Gaussian draws.

    Weights of more rows than columns are replaced by their triangular factor, samples
    of more columns than rows likewise: A and S stay the same. On one data matrix all
    weights run as one batch.
    """
    weights = [draw_weights(setup, seed) for seed in seeds]
    if setup.h > setup.d:
        weights = [np.linalg.qr(W, mode="r") for W in weights]
    if data is not None:
        S = torch.as_tensor(data @ data.T / data.shape[1])
        problem = FlowProblem(setup.d, setup.n, S=S.expand(len(weights), -1, -1))
        W = torch.as_tensor(np.stack(weights))
        runs = [follow_batch(W, problem, t, "covariance", rtol=1e-5, atol=1e-7)]
    else:
        runs = []
        for seed, W in zip(seeds, weights, strict=True):
            rng = np.random.default_rng([seed, 1])
            X = rng.standard_normal((setup.n, setup.d)).T
            if setup.n > setup.d:
                X = np.linalg.qr(X.T, mode="r").T * np.sqrt(setup.d / setup.n)
            runs.append(gradient_flow(W, X, t, rtol=1e-5, atol=1e-7))
    train, population = (np.vstack([getattr(r, k) for r in runs]) for k in KINDS)
    return np.stack([train, population], 1) / setup.d


def score(answer: Any, runs: np.ndarray) -> dict[str, Any]:
    """What the trial notes of one prediction; errors are over the first loss.

    Of the runs' mean, as `expected`: the largest distance of each loss. Of the bars: the
    share of runs that are inside at all times with both losses, and of points inside;
    their median half-width over the loss's largest change, and that of the narrowest
    bars around the runs' own mean, in proportion to their scatter, that hold 95 of 100.
    Of theories: the distance of each.
    """
    trace = 1.0 if answer.data is None else answer.data.law.moment(1)
    mean, noise = expected(runs, answer.setup, trace)
    first = mean[:, 0]
    pair = np.stack([answer.train, answer.population])
    bars = np.stack([answer.train_bar, answer.population_bar])
    inside = np.abs(runs - pair) <= bars * (1 + 1e-12)
    change = np.abs(mean - mean[:, :1]).max(1)
    scatter = runs.std(0, ddof=1)
    far = np.abs(runs - runs.mean(0)) / np.maximum(scatter, 1e-15)
    narrowest = np.quantile(far.max((1, 2)), 0.95) * scatter
    off = {
        name: float((np.abs(np.stack(y) - mean).max(1) / first).max())
        for name, y in answer.theories.items()
    }
    return {
        "theory": answer.theory,
        "error": (np.abs(pair - mean).max(1) / first).round(5).tolist(),
        "noise": float((noise.max(1) / first).max()),
        "runs_inside": float(inside.all((1, 2)).mean()),
        "points_inside": float(inside.mean()),
        "width": (np.median(bars, 1) / change).round(5).tolist(),
        "narrowest": (np.median(narrowest, 1) / change).round(5).tolist(),
        "width_over_first": (np.median(bars, 1) / first).round(5).tolist(),
        "least": float(min(pair.min(), 0.0)),
        "named": off[answer.theory],
        "best": min(off.values()),
    }


def expected(
    runs: np.ndarray, setup: Setup, trace: float
) -> tuple[np.ndarray, np.ndarray]:
    """The runs' mean (2, T) and its noise, `corrected` where there are 16 of them.

    With rho, kappa and tr S / d of the data the expected losses at the start are
    (1 - 2 rho + rho^2 + rho kappa + sigma^2 rho) / 2 for the population, and tr S / d
    times that for training.
    """
    if len(runs) < 16:
        return runs.mean(0), runs.std(0, ddof=1) / len(runs) ** 0.5
    rho, kappa, _ = setup.ratios
    square = (1 - 2 * rho + rho * (rho + kappa + setup.sigma2)) / 2
    return corrected(runs, np.array([trace, 1.0]) * square)


def trial(spec: Trial) -> dict[str, Any]:
    """Predict one random setup, train 24 networks (d up to 150) or eight, and score.

    Seconds are of the processor, in one thread.
    """
    setup = random_setup(spec.number)
    before = process_time()
    answer = predict(setup)
    seconds = process_time() - before
    count, first = 24 if setup.d <= 150 else 8, 32 * spec.number
    runs = training_runs(setup, answer.times, range(first, first + count))
    sizes = {"d": setup.d, "h": setup.h, "n": setup.n, "kappa": round(setup.kappa, 5)}
    return {**sizes, **score(answer, runs), "seconds": round(seconds, 3)}


MATRICES = (
    *("digits", "mnist", "fashion_mnist"),
    *("uci/energy", "uci/concrete", "uci/wine-quality-red"),
    *("uci/ionosphere", "uci/sonar"),
    *("power .5", "power 1", "power 1.5", "power 2", "power 2.5"),
    *("spiked", "student-2.2", "not centred", "float32"),
)


KINDS_OF_MATRIX = (
    ("images", 3), ("tables", 8), ("power laws", 13), ("other draws", 17)
)  # fmt: skip


def matrix(name: str, number: int) -> np.ndarray:
    """The matrix (d, n) of that name; those that are drawn have d = 100, n = 200.

    Images: 300 of each set, pooled to 14 x 14; tables: at most 400 rows, columns scaled
    to unit variance. "power a" has population variances k^-a, "spiked" three of 25
    among ones, "student-2.2" its t distribution, "not centred" a mean of 3.
    """
    rng = np.random.default_rng([18, number])
    if name in MATRICES[:8]:
        x = np.asarray(load(name).x, dtype=float)
        x = x[rng.permutation(len(x))[: 300 if name in MATRICES[:3] else 400]]
        if x.ndim == 3:
            side = x.shape[1] // 2
            x = x.reshape(len(x), side, 2, side, 2).mean((2, 4))
        x = x.reshape(len(x), -1)
        x = x[:, np.ptp(x, axis=0) > 0]
        return (x if name in MATRICES[:3] else x / x.std(0)).T
    x = rng.standard_normal((100, 200))
    if name.startswith("power"):
        return np.arange(1, 101)[:, None] ** (-float(name.split()[1]) / 2) * x
    if name == "spiked":
        return np.where(np.arange(100) < 3, 5.0, 1.0)[:, None] * x
    if name == "student-2.2":
        return rng.standard_t(2.2, x.shape)
    return x + 3 if name == "not centred" else x.astype(np.float32)


@dataclass(frozen=True)
class DataTrial:
    """One matrix, and the number that decides its draw, width and variance."""

    name: str
    number: int


def data_trial(spec: DataTrial) -> dict[str, Any]:
    """The same trial on one data matrix, which every run keeps; 4000 / d weights.

    That is 16 to 256 of them: the scatter of one run is large where one direction holds
    most of the variance, and the mean of eight runs was less certain than `predict`.
    The width is log-uniform from 2 to 4 d and sigma^2 d from .003 to 30. A matrix that
    is not to be centred is predicted as it is.
    """
    rng = np.random.default_rng([19, spec.number, MATRICES.index(spec.name)])
    data = prepare(matrix(spec.name, spec.number), centre=spec.name != "not centred")
    h = round(float(np.exp(rng.uniform(np.log(2), np.log(4 * data.d)))))
    sigma2 = float(np.exp(rng.uniform(np.log(0.003), np.log(30)))) / data.d
    before = process_time()
    answer = predict(data, h=h, sigma2=sigma2)
    seconds = process_time() - before
    seeds = range(int(np.clip(4000 / data.d, 16, 256)))
    runs = training_runs(answer.setup, answer.times, seeds, data.X)
    sizes = {"d": data.d, "h": h, "n": data.n, "kappa": round(sigma2 * data.d, 5)}
    rank = round(data.effective_rank, 2)
    found = score(answer, runs)
    return {**sizes, "rank": rank, **found, "seconds": round(seconds, 3)}


def scatter_ratio(
    setup: Setup, law: SpectralMeasure, shares: Iterable[float]
) -> dict[float, float]:
    """What copies of each share say of one run's scatter, over what full copies say.

    The larger median over the times of both losses' quotients; 512 copies of each size.
    """
    rate = max(1.0, setup.kappa, setup.rho) * law.moment(2) / law.moment(1)
    copies = _Copies(setup, np.linspace(0, 3 / rate, 9), law, None, True)
    full = copies.run(1.0, 1e12).scatter
    said = {share: copies.run(share, 1e12).scatter * share**0.5 for share in shares}
    return {k: float(np.median(s / full, 1).max()) for k, s in said.items()}


# The bars that were set before anything was measured, and how a figure is one of them.
BARS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], float]]] = {
    "error, median": ("<= 0.02", lambda rows: _quantile(rows, "error", 0.5)),
    "error, 95th percentile": (
        "<= 0.08",
        lambda rows: _quantile(rows, "error", 0.95),
    ),
    "noise, median": (
        "",
        lambda rows: _quantile(rows, "noise", 0.5),
    ),
    "networks inside": (
        ">= 0.95",
        lambda rows: float(np.mean([r["runs_inside"] for r in rows])),
    ),
    "half-width, training": (
        "<= 0.1",
        lambda rows: float(np.median([r["width"][0] for r in rows])),
    ),
    "half-width, population": (
        "<= 0.1",
        lambda rows: float(np.median([r["width"][1] for r in rows])),
    ),
    "narrowest, training": (
        "",
        lambda rows: float(np.median([r["narrowest"][0] for r in rows])),
    ),
    "narrowest, population": (
        "",
        lambda rows: float(np.median([r["narrowest"][1] for r in rows])),
    ),
    "named within .03 of best": (
        ">= 0.9",
        lambda rows: float(np.mean([r["named"] <= r["best"] + 0.03 for r in rows])),
    ),
    "seconds, median": (
        "< 2",
        lambda rows: _quantile(rows, "seconds", 0.5),
    ),
    "seconds, largest": (
        "< 2",
        lambda rows: _quantile(rows, "seconds", 1),
    ),
}


def _quantile(rows: list[dict[str, Any]], key: str, level: float) -> float:
    """Of the worse of both losses, where there are two."""
    return float(np.quantile([np.max(r[key]) for r in rows], level))


def trial_table(name: str) -> list[dict[str, Any]]:
    """Each bar beside its figures, by half or by kind of matrix.

    Data have bars of their own for the error alone: a median of .03. Where all together
    miss a bar a last column says by how much.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sweep_rows(name):
        if name.startswith("predict"):
            group = "old setups" if row["number"] < OLD else "fresh setups"
        else:
            place = MATRICES.index(row["name"])
            group = next(k for k, end in KINDS_OF_MATRIX if place < end)
        groups.setdefault(group, []).append(row)
    groups = {**dict(sorted(groups.items())), "all": list(chain(*groups.values()))}
    table: list[dict[str, Any]] = [
        {"figure": "how many", **{g: str(len(rows)) for g, rows in groups.items()}}
    ]
    for figure, (bar, measure) in BARS.items():
        if figure.startswith("narrowest") and "narrowest" not in groups["all"][0]:
            continue  # rows of an earlier version
        if name.startswith("data") and figure == "error, median":
            bar = "<= 0.03"
        found = {g: measure(rows) for g, rows in groups.items()}
        table.append({"figure": figure, "bar": bar, **found})
        if over := _missed(found["all"], bar):
            table[-1]["missed by"] = over
    return table


def _missed(found: float, bar: str) -> str:
    """How far a figure is beyond its bar, or nothing."""
    if not bar:
        return ""
    sign, bound = bar.split()
    over = (found - float(bound)) * (-1 if sign == ">=" else 1)
    return f"{over:.2g}" if over > 0 else ""


PREDICT_TRIAL = Sweep(
    "predict-trial",
    trial,
    {
        "small": lambda: [Trial(k) for k in range(2)],
        "book": lambda: [Trial(f + k) for k in range(10) for f in (0, FRESH)],
        "full": lambda: [Trial(f + k) for k in range(100) for f in (0, FRESH)],
    },
    text="Predictions of random setups against training runs.",
    version=5,
)
DATA_TRIAL = Sweep(
    "data-trial",
    data_trial,
    {
        "small": lambda: grid(DataTrial, name=MATRICES[8:10], number=[5]),
        "book": lambda: grid(DataTrial, name=MATRICES[8:], number=[5]),
        "full": lambda: [DataTrial(name, k) for k in range(5, 10) for name in MATRICES],
    },
    text="Predictions of data matrices against training runs.",
    version=5,
)
