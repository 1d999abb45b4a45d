"""Which regime is a setup in, which theory fits it best, and what does that predict?

`classify_regime` reads the regime off the first two derivatives of the loss;
`theory_curves` evaluates any theory; `predict` joins them and adds an error bar.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.data_matrix import DataMatrix, prepare
from geolib.regimes.fock import fock_curves
from geolib.regimes.large_data import NextOrder, large_data, large_data_next
from geolib.regimes.loss_curves import Curves
from geolib.regimes.mean_field import mean_field, mean_field_next
from geolib.regimes.narrow import narrow
from geolib.regimes.prism import REGIMES, face
from geolib.regimes.setup import Setup, check_times
from geolib.regimes.small_data import small_data
from geolib.regimes.spectral_measures import SpectralMeasure, marchenko_pastur
from geolib.regimes.trace_words import KINDS, spectral_table, value

ORDERS = (1, 2)
FLOOR = 0.03  # share of the summed monomials below which a derivative counts as zero
NEAR = 0.2  # distance from a fixed point of the leading flow that is called critical

THEORIES = (*REGIMES, "interior")
NEXT = ("large-data + next", "mean-field + next")
BY_SPECTRUM = ("mean-field", "narrow")  # those that know any population covariance
NOISE = 2.0  # standard deviations of the seed-to-seed noise inside a bar


# ---- classification ------------------------------------------------------------------


@dataclass(frozen=True)
class Regime:
    """Where a setup lies on the prism.

    Attributes:
        name: the cell: `interior`, one face, or two or three joined by "x".
        active: the faces whose leading terms alone give the derivatives within `tol`.
        errors: for every face the relative error of its leading terms.
        rate: the fast rate T; curves are functions of T t.
        noise_floor: relative seed-to-seed fluctuation to expect.
        critical: a leading term nearly cancels (kappa near 1 and h / d below `tol`, or
            rho near 1 and d / h below `tol`), so that relative errors mislead.
    """

    name: str
    active: tuple[str, ...]
    errors: dict[str, float]
    rate: float
    noise_floor: float
    critical: bool

    @property
    def best(self) -> str:
        """The face with the least error."""
        return min(self.errors, key=lambda name: self.errors[name])


def classify_regime(
    problem: int | Setup | DataMatrix,
    h: int | None = None,
    n: int | None = None,
    sigma2: float | None = None,
    *,
    tol: float = 0.1,
) -> Regime:
    r"""The regime of a setup follows from exact derivatives and no fitted constant.

    .. math:: \epsilon_F = \max_{s = 1, 2}
        \frac{|Y_s - Y_s^F|}{\max(|Y_s|,\, 0.03 \sum |\text{monomials of } Y_s|)} ,

    over the training and the population loss, with :math:`Y_s` the planar derivative
    and :math:`Y_s^F` its part on the face F. Faces with :math:`\epsilon_F` below `tol`
    are active: none is the interior, one a face, two an edge, three a vertex. A data
    matrix lends the moments of its own spectrum: Gaussian weights are free of every S.
    Large and small data then ask how far S is from the identity, or from d / n times a
    projector.

    Args:
        problem: the input dimension d, with `h`, `n` and `sigma2`; or one `Setup`
            alone; or a data matrix from `prepare`, with `h` and `sigma2`.
        h: width.
        n: number of samples.
        sigma2: initial variance.
        tol: largest error of an active face.

    Returns:
        `Regime`: `name`, `active` faces, `errors` and `best`, `critical`.

    Raises:
        ValueError: sizes that make no `Setup`, or a `tol` outside (0, 1).

    Cost: under a millisecond once a spectrum's tables are there; 20 ms for a new one.

    Source: :eq:`drv-regimes-classify` (derivations), beyond the paper.

    Examples:
        >>> classify_regime(256, 16384, 256, 0.2 / 16384).name
        'mean-field'
        >>> classify_regime(256, 256, 256, 1 / 256).name
        'interior'
    """
    if not 0 < tol < 1:
        raise ValueError(f"tol: expected a number in (0, 1), got {tol!r}")
    setup, data = _sizes(problem, h, n, sigma2)
    if data is None:
        law, rate = marchenko_pastur(1.0, setup.c), setup.rate
    else:
        law = data.law
        spread = max(1.0, law.moment(2) / law.moment(1))
        rate = max(1.0, setup.kappa, setup.rho) * spread
    errors = face_errors(setup, law)
    active = tuple(name for name in REGIMES if errors[name] < tol)
    critical = (setup.eta < tol and abs(1 - setup.kappa) < NEAR) or (
        1 / setup.eta < tol and abs(1 - setup.rho) < NEAR
    )
    name = " x ".join(active) if active else "interior"
    return Regime(name, active, errors, rate, setup.noise_floor, critical)


def _sizes(problem: Any, h: Any, n: Any, sigma2: Any) -> tuple[Setup, Any]:
    """The setup, and the data matrix if there is one."""
    if isinstance(problem, Setup):
        return problem, None
    if isinstance(problem, DataMatrix):
        if None in (h, sigma2):
            raise ValueError("h, sigma2: expected both with a data matrix")
        return Setup(problem.d, h, problem.n, sigma2), problem
    if None in (h, n, sigma2):
        raise ValueError("d, h, n, sigma2: expected all four, or one Setup")
    return Setup(problem, h, n, sigma2), None


def face_errors(setup: Setup, law: SpectralMeasure) -> dict[str, float]:
    """The error of each face's leading terms; see `classify_regime`."""
    rho, kappa, c = setup.ratios
    moments = tuple(law.moment(j) for j in range(1, max(ORDERS) + 2))
    errors = dict.fromkeys(REGIMES, 0.0)
    for kind in KINDS:
        for s in ORDERS:
            table = spectral_table(kind, s, moments)
            terms = {
                (l, k): f * rho**k * kappa ** (l - k) for (l, k), f in table.items()
            }
            full = sum(terms.values())
            size = max(abs(full), FLOOR * sum(map(abs, terms.values())))
            leading = {
                "mean-field": sum(v for (l, k), v in terms.items() if l == k),
                "narrow": sum(v for (l, k), v in terms.items() if k == 1),
                "free": sum(v for (l, k), v in terms.items() if l == s + 2),
            }
            for name in ("large-data", "small-data"):
                leading[name] = value(_face(name, kind, s), rho, kappa, c)
            for name, part in leading.items():
                errors[name] = max(errors[name], abs(full - part) / size)
    return errors


_face = lru_cache(maxsize=None)(face)


# ---- curves of a named theory --------------------------------------------------------


def theory_curves(
    name: str,
    times: ArrayLike,
    setup: Setup,
    law: SpectralMeasure | None = None,
    overlap: np.ndarray | None = None,
    depth: int = 7,
) -> Curves:
    """A theory's losses over d, every theory in the same unit, and no warning.

    Args:
        name: a name of `REGIMES`, `interior`, or one of the two faces whose first
            correction is known: `large-data + next`, `mean-field + next`.
        times: (T,) increasing.
        setup: the sizes.
        law: spectral law of S, if it is not Marchenko-Pastur's.
        overlap: population variance along each node of `law`.
        depth: of the Fock space, for the free face and the interior.

    Returns:
        `Curves` of the training and population loss over d.

    Raises:
        ValueError: an unknown name, or a correction that is not known.

    Source: :eq:`drv-regimes-units` (derivations).

    Examples:
        >>> wide = Setup(64, 128, 64, 1 / 128)
        >>> two = theory_curves("mean-field + next", [0.0], wide)
        >>> round(float(two.population[0]), 6)        # rho^2 / 2 times d / h
        0.25
    """
    t = check_times(times)
    if name.endswith(" + next"):
        lead = name.removesuffix(" + next")
        if name not in NEXT:
            raise ValueError(
                f"name: next order is known for two faces, not for {lead!r}"
            )
        curves = theory_curves(lead, t, setup, law, overlap)
        return curves.moved(_next_order(lead, t, setup, law, overlap), 1.0)
    rho, kappa, c = setup.ratios
    data: dict[str, Any] = {"c": c} if law is None else {"law": law}
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
        # The losses of the zero map: tr S / 2 and tr Sigma / 2, over d.
        train = 1.0 if law is None else law.moment(1)
        variance = 1.0 if overlap is None or law is None else overlap @ law.weights
        zero = Curves(np.full(t.shape, train / 2), np.full(t.shape, variance / 2))
        return zero.moved(thin, setup.eta)
    if name not in THEORIES:
        raise ValueError(f"name: expected one of {THEORIES}, got {name!r}")
    return fock_curves(t, rho, kappa, depth=depth, target=name == "interior", **data)


def _next_order(
    name: str, t: np.ndarray, setup: Setup, law: Any, overlap: Any
) -> Curves:
    """The first correction of a face in its small ratio, c or d / h, as it is added."""
    rho, kappa, c = setup.ratios
    if name == "large-data":
        step = _large_data_step(tuple(t), rho, kappa)
        return Curves(c * step.train, c * step.population)
    data: dict[str, Any] = {"c": c} if law is None else {"law": law}
    wide = mean_field_next(t, rho, overlap=overlap, **data)
    return Curves(wide.train / setup.eta, wide.population / setup.eta)


@lru_cache(maxsize=16)
def _large_data_step(t: tuple[float, ...], rho: float, kappa: float) -> NextOrder:
    """The correction before its factor c: setups that differ in n share it."""
    return large_data_next(t, rho, kappa)


# ---- prediction ----------------------------------------------------------------------


class RegimeWarning(UserWarning):
    """A theory was asked for outside its regime."""


@dataclass(frozen=True)
class Prediction:
    """Predicted losses over d with error bars.

    A bar adds the size of the first neglected or last included correction to the
    seed-to-seed noise. It is an estimate, not a bound.

    Attributes:
        times: (T,).
        train, population: (T,) losses over d.
        train_bar, population_bar: (T,) half-widths.
        theory: the name of the theory that was used.
        regime: what `classify_regime` says.
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
    r"""The training and population loss of a linear autoencoder are predicted.

    For a `Setup` the data are isotropic and Gaussian. For a data matrix every theory
    that can take its spectrum does: mean-field, narrow, free and interior. The error
    bar is

    .. math:: |\text{correction}| + \epsilon_F\, |L(t) - L(0)| + 2\,\text{(seed noise)}.

    Args:
        problem: a `Setup`, a `DataMatrix` from `prepare`, or a raw matrix (d, n) with
            one sample a column, which is then prepared with the defaults.
        times: (T,) increasing; default 41 times with T t in [0, 3].
        h, sigma2: width and initial variance, for a data matrix.
        theory: `auto` takes the face with the least error, or the Fock solver where no
            face is within `tol`; or a name of `REGIMES`, or `interior`.
        population: (d, d) covariance of the population, default the identity; only
            mean-field and narrow can take one.
        depth: of the Fock space.
        tol: largest classification error of a face that `auto` accepts.

    Returns:
        `Prediction`: `times`, `train`, `population`, `train_bar`, `population_bar`,
        the `theory` that was used and the `regime` that it rests on.

    Raises:
        ValueError: a data matrix without h and sigma2, an unknown theory, a population
            that the theory cannot take, or anything that `prepare` refuses.

    Warns:
        RegimeWarning: a theory asked for by name where it is not within `tol`; the
            message names the regime and the expected error.

    Cost: under 0.2 s for the solved faces, about 1 s for the Fock solver.

    Source: :eq:`drv-regimes-bar` (derivations), beyond the paper.

    Examples:
        >>> answer = predict(Setup(256, 16384, 256, 0.2 / 16384))
        >>> answer.theory
        'mean-field'
    """
    if isinstance(problem, Setup) and not h is sigma2 is None:
        raise ValueError("h, sigma2: a Setup has its own; pass them with data only")
    if not isinstance(problem, Setup | DataMatrix):
        problem = prepare(problem)
    setup, data = _sizes(problem, h, None, sigma2)
    regime = classify_regime(problem, h, sigma2=sigma2, tol=tol)
    overlap = None
    if population is not None:
        if data is None:
            raise ValueError("population: only a data matrix can have its own")
        overlap = data.overlap(population)
    t = check_times(np.linspace(0, 3 / regime.rate, 41) if times is None else times)
    name = _choose(theory, regime, tol, overlap is not None)
    law = None if data is None else data.law
    curves, step = _best_curves(name, t, setup, (law, overlap), depth)
    bars = []
    for i, noise in enumerate(_start_noise(setup, data)):
        moved = np.maximum.accumulate(np.abs(curves[i] - curves[i][0]))
        if step is None:
            unknown = regime.errors[name] * moved
        else:
            unknown = np.maximum.accumulate(np.abs(step[i]))
        bars.append(unknown + NOISE * (noise + setup.noise_floor * moved))
    return Prediction(t, *curves, bars[0], bars[1], name, regime)


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


def _best_curves(
    name: str, t: np.ndarray, setup: Setup, spectrum: tuple[Any, Any], depth: int
) -> tuple[Curves, Curves | None]:
    """Losses over d and the correction that measures their error, if one is known."""
    lead = theory_curves(name, t, setup, *spectrum, depth)
    # The correction of large data is known for Gaussian data only.
    if name == "mean-field" or (name == "large-data" and spectrum[0] is None):
        step = _next_order(name, t, setup, *spectrum)
        return lead.moved(step, 1.0), step
    if name == "interior":
        coarse = theory_curves(name, t, setup, *spectrum, max(2, depth - 2))
        return lead, lead.moved(coarse, -1.0)
    return lead, None
