"""The best theory's curves for a setup or a data matrix, with an error bar."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.classify import Regime, classify, classify_data
from geolib.regimes.curves import Curves
from geolib.regimes.fock import fock_curves
from geolib.regimes.large_data import large_data, large_data_next
from geolib.regimes.law import Law
from geolib.regimes.matrix import DataMatrix, prepare
from geolib.regimes.mean_field import mean_field, mean_field_next
from geolib.regimes.narrow import narrow
from geolib.regimes.prism import REGIMES
from geolib.regimes.setup import Setup, check_times
from geolib.regimes.small_data import small_data

THEORIES = (*REGIMES, "interior")
BY_SPECTRUM = ("mean-field", "narrow")  # those that know any population covariance
NOISE = 2.0  # standard deviations of the seed-to-seed noise inside a bar


class RegimeWarning(UserWarning):
    """A theory was asked for outside its regime."""


@dataclass(frozen=True)
class Prediction:
    """Predicted losses over d with error bars, all of shape (T,).

    A bar adds the size of the first neglected or last included correction to the
    seed-to-seed noise. It is an estimate, not a bound.
    """

    times: np.ndarray
    train: np.ndarray
    population: np.ndarray
    train_bar: np.ndarray
    population_bar: np.ndarray
    theory: str
    regime: Regime


def predict(
    problem: Setup | DataMatrix | ArrayLike,
    times: ArrayLike | None = None,
    *,
    h: int | None = None,
    sigma2: float | None = None,
    theory: str = "auto",
    population: ArrayLike | None = None,
    depth: int = 7,
    tol: float = 0.1,
) -> Prediction:
    r"""Predict training and population loss of a linear autoencoder.

    For a `Setup` the data are isotropic and Gaussian. For a data matrix every theory
    that can take its spectrum does: mean-field, narrow, free and interior.

    Args:
        problem: a `Setup`, a `DataMatrix` from `prepare`, or a raw matrix (d, n) with
            one sample a column, which is then prepared with the defaults.
        times: (T,) increasing; default 41 times with T t in [0, 3].
        h, sigma2: width and initial variance, for a data matrix.
        theory: `auto` takes the face with the least error, or the Fock solver where no
            face is within `tol`; or one of `THEORIES`.
        population: (d, d) covariance of the population, default the identity; only
            mean-field and narrow can take one.
        depth: of the Fock space.
        tol: largest classification error of a face that `auto` accepts.

    Returns:
        `Prediction`, with the `Regime` that it rests on.

    Raises:
        ValueError: a data matrix without h and sigma2, an unknown theory, a population
            that the theory cannot take, or anything that `prepare` refuses.

    Warns:
        RegimeWarning: a theory asked for by name where it is not within `tol`; the
            message names the regime and the expected error.

    Cost: under 0.2 s for the solved faces, about 1 s for the Fock solver.

    Source: spec sections 2 and 7 (error bars and the use of a spectrum are ours).

    Examples:
        >>> answer = predict(Setup(256, 16384, 256, 0.2 / 16384))
        >>> answer.theory
        'mean-field'
    """
    setup, regime, data = _resolve(problem, h, sigma2, tol)
    overlap = None
    if population is not None:
        if data is None:
            raise ValueError("population: only a data matrix can have its own")
        overlap = data.overlap(population)
    if times is None:
        t = np.linspace(0, 3 / regime.rate, 41)
    else:
        t = check_times(times)
    name = _choose(theory, regime, tol, overlap is not None)
    law = None if data is None else data.law
    curves, step = _curves(name, t, setup, law, overlap, depth)
    bars = []
    for curve, correction, start in zip(
        curves, step, _start_noise(setup, data), strict=True
    ):
        moved = np.maximum.accumulate(np.abs(curve - curve[0]))
        relative = 0.0 if correction is not None else regime.errors[name]
        known = np.zeros_like(t) if correction is None else np.abs(correction)
        noise = NOISE * (start + setup.noise_floor * moved)
        bars.append(np.maximum.accumulate(known) + relative * moved + noise)
    return Prediction(t, *curves, bars[0], bars[1], name, regime)


def _resolve(
    problem: Setup | DataMatrix | ArrayLike,
    h: int | None,
    sigma2: float | None,
    tol: float,
) -> tuple[Setup, Regime, DataMatrix | None]:
    if isinstance(problem, Setup):
        if h is not None or sigma2 is not None:
            raise ValueError("h, sigma2: a Setup has its own; pass them with data only")
        return problem, classify(problem, tol=tol), None
    data = problem if isinstance(problem, DataMatrix) else prepare(problem)
    if h is None or sigma2 is None:
        raise ValueError("h, sigma2: expected both with a data matrix")
    setup = Setup(data.d, h, data.n, sigma2)
    return setup, classify_data(data, h, sigma2, tol=tol), data


def _choose(theory: str, regime: Regime, tol: float, weighted: bool) -> str:
    if theory not in ("auto", *THEORIES):
        raise ValueError(
            f"theory: expected 'auto' or one of {THEORIES}, got {theory!r}"
        )
    if weighted and theory not in ("auto", *BY_SPECTRUM):
        raise ValueError(
            f"population: {theory!r} knows only the identity; use one of {BY_SPECTRUM}"
        )
    name = theory
    if theory == "auto":
        allowed = BY_SPECTRUM if weighted else REGIMES
        name = min(allowed, key=lambda face: regime.errors[face])
        if regime.errors[name] >= tol and not weighted:
            name = "interior"
    if name != "interior" and regime.errors[name] >= tol:
        warnings.warn(
            f"{name} theory used outside its regime: this setup is in "
            f"'{regime.name}', where its expected relative error is "
            f"{regime.errors[name]:.2g} (nearest face: {regime.best})",
            RegimeWarning,
            stacklevel=3,
        )
    return name


def _start_noise(setup: Setup, data: DataMatrix | None) -> tuple[float, float]:
    """Standard deviations of the two losses over d at time 0: of tr S and of tr A."""
    rho, kappa, _ = setup.ratios
    weights = rho * (1 + rho + kappa) * np.sqrt(2 / (setup.h * setup.d))
    samples = 0.5 * np.sqrt(2 / (setup.n * setup.d)) if data is None else 0.0
    return samples + weights, weights


Steps = tuple[np.ndarray | None, np.ndarray | None]


def _curves(
    name: str,
    t: np.ndarray,
    setup: Setup,
    law: Law | None,
    overlap: np.ndarray | None,
    depth: int,
) -> tuple[Curves, Steps]:
    """Losses over d and the correction that measures their error, if one is known."""
    rho, kappa, c = setup.ratios
    if name == "large-data" and law is None:
        add = large_data_next(t, rho, kappa)
        step = c * add.train, c * add.population
        lead = leading_curves(name, t, setup)
        return Curves(lead.train + step[0], lead.population + step[1]), step
    if name == "mean-field":
        source = {"c": c} if law is None else {"law": law, "overlap": overlap}
        extra = mean_field_next(t, rho, **source)  # type: ignore[arg-type]
        step = extra.train / setup.eta, extra.population / setup.eta
        lead = leading_curves(name, t, setup, law, overlap)
        return Curves(lead.train + step[0], lead.population + step[1]), step
    lead = leading_curves(name, t, setup, law, overlap, depth)
    if name == "interior":
        coarse = leading_curves(name, t, setup, law, overlap, max(2, depth - 2))
        return lead, (lead.train - coarse.train, lead.population - coarse.population)
    return lead, (None, None)


def leading_curves(
    name: str,
    times: ArrayLike,
    setup: Setup,
    law: Law | None = None,
    overlap: np.ndarray | None = None,
    depth: int = 7,
) -> Curves:
    """A theory's leading losses over d, every face in the same unit, and no warning.

    Args:
        name: one of `THEORIES`.
        times: (T,) increasing.
        setup: the sizes.
        law: spectral law of S, if it is not Marchenko-Pastur's.
        overlap: population variance along each node of `law`.
        depth: of the Fock space, for the free face and the interior.

    Raises:
        ValueError: an unknown name.
    """
    t = check_times(times)
    rho, kappa, c = setup.ratios
    data: dict = {"c": c} if law is None else {"law": law}
    if name == "large-data":
        return large_data(t, rho, kappa)
    if name == "small-data":
        few = small_data(c * t, rho, kappa)
        start = 0.5 - rho + (rho**2 + rho * kappa) / 2
        return Curves(few.train, start + few.population / c)
    if name == "mean-field":
        return mean_field(t, rho, overlap=overlap, **data)
    if name == "narrow":
        thin = narrow(t, kappa, overlap=overlap, **data)
        base = 1.0 if law is None else law.moment(1)
        score = 1.0 if overlap is None or law is None else overlap @ law.weights
        eta = setup.eta
        return Curves(base / 2 + eta * thin.train, score / 2 + eta * thin.population)
    if name not in THEORIES:
        raise ValueError(f"name: expected one of {THEORIES}, got {name!r}")
    return fock_curves(t, rho, kappa, depth=depth, target=name == "interior", **data)
