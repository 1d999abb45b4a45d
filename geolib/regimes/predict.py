"""Which regime is a setup in, which theory fits it best, and what does that predict?

`classify_regime` reads the regime off the first two derivatives of the loss;
`theory_curves` evaluates any theory; `predict` joins them and adds an error bar.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from geolib.core.validation import expect
from geolib.plotting import panels

from .data_matrix import DataMatrix, prepare
from .descent import Rule
from .ensemble import BUDGET, ensemble
from .fock import fock_curves
from .large_data import large_data, large_data_next
from .loss_curves import Curves, StiffError
from .mean_field import mean_field, mean_field_next
from .narrow import narrow, per_input
from .setup import Setup, check_covariance, check_times, first_loss
from .simulate import _seeds, draw_data, draw_weights, gradient_flow
from .small_data import small_data
from .spectral_measures import SpectralMeasure, covariance_law, marchenko_pastur
from .stepped import stepped_face, stepped_next
from .trace_words import KINDS, REGIMES, face, spectral_table, value

ORDERS = (1, 2)
FLOOR = 0.03  # share of the summed monomials below which a derivative counts as zero

THEORIES = (*REGIMES, "interior", "ensemble")
NEXT = ("large-data + next", "mean-field + next")
BY_SPECTRUM = ("mean-field", "narrow")  # those that know any population covariance
LEVEL = 0.99  # of the quantile of one run's scatter on either side of a bar
LARGE = 4.0  # rho + kappa from which the free face is looked at


# ---- classification ------------------------------------------------------------------


@dataclass(frozen=True)
class Regime:
    """Where a setup lies on the prism.

    Attributes:
        name: the cell: `interior`, one face, or two or three joined by "x".
        active: the faces whose leading terms alone give the derivatives within `tol`.
        errors: for every face the relative error of its leading terms.
        rate: the fast rate T; curves are functions of T t.
    """

    name: str
    active: tuple[str, ...]
    errors: dict[str, float]
    rate: float

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
    tol: Annotated[float, "0 < tol < 1"] = 0.1,
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
        `Regime`: `name`, `active` faces, `errors` and `best`.

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
    setup, data = _sizes(problem, h, n, sigma2)
    if data is None:
        law, rate = marchenko_pastur(1.0, setup.c), setup.rate
    else:
        law = data.law
        spread = max(1.0, law.moment(2) / law.moment(1))
        rate = max(1.0, setup.kappa, setup.rho) * spread
    errors = face_errors(setup, law)
    active = tuple(name for name in REGIMES if errors[name] < tol)
    name = " x ".join(active) if active else "interior"
    return Regime(name, active, errors, rate)


def _sizes(problem: Any, h: Any, n: Any, sigma2: Any) -> tuple[Setup, Any]:
    """The setup, and the data matrix if there is one."""
    if isinstance(problem, Setup):
        return problem, None
    data = problem if isinstance(problem, DataMatrix) else None
    four = (data.d, h, data.n, sigma2) if data else (problem, h, n, sigma2)
    wanted = "all four; d and n come with data, all with a Setup"
    expect(None not in four, "d, h, n, sigma2", wanted, four)
    expect(data or problem >= 1, "problem", "an input dimension d >= 1", problem)
    return Setup(*four), data


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
    name: Annotated[str, (*THEORIES, *NEXT)],
    times: ArrayLike,
    setup: Setup,
    law: SpectralMeasure | None = None,
    overlap: np.ndarray | None = None,
    depth: int = 6,
    rule: Rule | None = None,
) -> Curves:
    """A theory's losses over d, every theory in the same unit, and no warning.

    Args:
        name: a name of `REGIMES`; one of the two faces whose first correction is
            known, `large-data + next` and `mean-field + next`; `interior`, the flow on
            the graph of `fock_curves`; or `ensemble`, the mean of `ensemble`.
        times: (T,) increasing.
        setup: the sizes.
        law: spectral law of S, if it is not Marchenko-Pastur's.
        overlap: population variance along each node of `law`.
        depth: of the Fock space, for the free face and the interior.
        rule: steps in discrete time instead of the flow, for all but the free face.

    Returns:
        `Curves` of the training and population loss over d.

    Raises:
        ValueError: an unknown name, or one that has no steps with a rule.

    Source: :eq:`drv-regimes-units` (derivations).

    Examples:
        >>> wide = Setup(64, 128, 64, 1 / 128)
        >>> two = theory_curves("mean-field + next", [0.0], wide)
        >>> round(float(two.population[0]), 6)        # rho^2 / 2 times d / h
        0.25
    """
    t = check_times(times)
    if name == "ensemble":
        return ensemble(setup, t, law, rule=rule).mean
    if name in NEXT:
        lead = name.removesuffix(" + next")
        curves = theory_curves(lead, t, setup, law, overlap, rule=rule)
        more: Any = stepped_next if rule else _next_order
        return curves.moved(more(lead, t, setup, rule, law, overlap), 1.0)
    if rule is not None and name != "interior":
        return stepped_face(name, t, setup, rule, law, overlap)
    rho, kappa, c = setup.ratios
    data: dict[str, Any] = {"c": None if law else c, "law": law}
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
        return per_input(thin, setup.eta, covariance_law(**data), overlap)
    data |= {"depth": depth, "target": name == "interior", "rule": rule}
    return fock_curves(t, rho, kappa, **data)


def _next_order(
    name: str, t: np.ndarray, setup: Setup, rule: None, law: Any, overlap: Any
) -> Curves:
    """The first correction of a face in its small ratio, c or d / h, of the flow."""
    if name == "large-data":
        step, small = _large_data_step(tuple(t), setup.rho, setup.kappa), setup.c
    else:
        c, small = None if law else setup.c, 1 / setup.eta
        step = mean_field_next(t, setup.rho, c, law=law, overlap=overlap)
    return Curves(*(small * y for y in step))


# Setups that differ in n share the correction before its factor c.
_large_data_step = lru_cache(maxsize=16)(large_data_next)


# ---- prediction ----------------------------------------------------------------------


class RegimeWarning(UserWarning):
    """A theory was asked for outside its regime."""


@dataclass(frozen=True)
class Prediction:
    """Predicted losses over d with error bars for one training run.

    Attributes:
        times: (T,).
        train, population: (T,) losses over d.
        train_bar, population_bar: (T,) half-widths.
        theory: the name of the theory whose curves these are.
        regime: the faces whose curves describe the setup; its `errors` are measured
            on the whole window, against an ensemble of copies.
        setup: the sizes.
        data: the prepared matrix, if there is one; with its `scale` and `mean`.
        covariance: (d, d) of the population in the data's scale, if one was given.
        rule: of the training, if it is not the flow.
        theories: (T,) losses by every theory that was looked at.
    """

    times: np.ndarray
    train: np.ndarray
    population: np.ndarray
    train_bar: np.ndarray
    population_bar: np.ndarray
    theory: str
    regime: Regime
    setup: Setup
    data: DataMatrix | None = None
    covariance: np.ndarray | None = None
    rule: Rule | None = None
    theories: dict[str, Curves] = field(default_factory=dict)

    def in_data_units(self) -> Prediction:
        r"""The same for the matrix as it was given: own times, losses summed over d.

        With :math:`x_{raw} = s\,x + m` the flow of the raw loss runs :math:`s^2` times
        faster, and its losses are :math:`s^2` times larger.

        .. math:: t_{raw} = t / s^2, \qquad L_{raw} = s^2 L

        The mean m is subtracted; it belongs to a bias that this model does not have.
        """
        unit = 1.0 if self.data is None else self.data.scale**2
        curves = ("train", "population", "train_bar", "population_bar")
        size = unit * self.setup.d
        grown: dict[str, Any] = {k: getattr(self, k) * size for k in curves}
        theories = self.theories.items()
        grown["theories"] = {k: Curves(*(size * y for y in c)) for k, c in theories}
        if (r := self.rule) is not None:
            more = {"decay": r.decay * unit, "noise": r.noise * unit**0.5}
            grown["rule"] = replace(r, lr=r.lr / unit, **more)
        return replace(self, times=self.times / unit, **grown)

    def plot(self, axes: Any = None) -> Any:
        """Both losses with their bars, on Matplotlib axes that are returned."""
        if axes is None:
            axes = panels()[1]
        for name in ("train", "population"):
            y, bar = getattr(self, name), getattr(self, f"{name}_bar")
            (line,) = axes.plot(self.times, y, label=name)
            low = np.maximum(y - bar, 0.0)  # losses are not negative
            axes.fill_between(
                self.times, low, y + bar, color=line.get_color(), alpha=0.2
            )
        axes.set(xlabel="time", ylabel="loss", title=self.theory)
        axes.legend()
        return axes

    def check(self, seeds: int = 3) -> Check:
        """Train `seeds` networks and compare; `predict` itself has not seen them.

        Args:
            seeds: how many draws of the weights, and of the data where none are given.

        Cost: that of `simulate`.
        """
        t, d, runs = self.times, self.setup.d, []
        for s in _seeds(seeds):
            W = draw_weights(self.setup, s)
            X = draw_data(self.setup, s) if self.data is None else self.data.X
            run = gradient_flow(W, X, t, population=self.covariance, rule=self.rule)
            runs.append(run)
        found = Curves(*(np.vstack([getattr(r, k) / d for r in runs]) for k in KINDS))
        answer = Curves(self.train, self.population)
        pairs = list(zip(found, answer, strict=True))
        error = Curves(*(abs(y.mean(0) - z).max() / y[:, 0].mean() for y, z in pairs))
        bars = zip(pairs, (self.train_bar, self.population_bar), strict=True)
        inside = [abs(y - z) <= bar for (y, z), bar in bars]
        return Check(found, error, float(np.mean(np.all(inside, axis=(0, 2)))))


class Check(NamedTuple):
    """A prediction beside training runs.

    Attributes:
        runs: (seeds, T) losses over d of each.
        error: largest distance of their mean and the prediction, over the first loss.
        inside: share of runs that stay inside the bars at all times, with both losses.
    """

    runs: Curves
    error: Curves
    inside: float


def predict(
    problem: Setup | DataMatrix | ArrayLike,
    times: ArrayLike | None = None,
    *,
    h: int | None = None,
    sigma2: float | None = None,
    theory: str = "auto",
    population: ArrayLike | None = None,
    rule: Rule | str | None = None,
    lr: Annotated[float | None, "0 < lr"] = None,
    tol: Annotated[float, "0 < tol < 1"] = 0.03,
    budget: Annotated[float, "0 < budget <= 5e11"] = BUDGET,
) -> Prediction:
    r"""The training and population loss of a linear autoencoder are predicted.

    An `ensemble` of copies is averaged to E(t). Every theory's curves are held against
    it over the whole window by `curve_errors`, and the nearest is named if its error is
    below `tol`; else the answer is E itself. So neither few latents, few samples nor a
    low effective rank can go unseen. The bar is meant for one run and all times: with
    the scatter s of one run, from m copies, the largest deviation r of a copy in units
    of it, and what is in doubt of E,

    .. math:: \max(r, t_{.99}(m - 1))\, s(t) + \mathrm{doubt}(t) + |L_F(t) - E(t)| .

    Args:
        problem: a `Setup`, a `DataMatrix` from `prepare`, or a raw matrix (d, n) with
            one sample a column, which is then prepared with the defaults.
        times: (T,) increasing; default 41 times with T t in [0, 3].
        h, sigma2: width and initial variance, for a data matrix.
        theory: `auto`, a name of `REGIMES`, a face `+ next`, or `ensemble`.
        population: (d, d) covariance of the population, default the identity; only
            mean-field, narrow and the ensemble can take one.
        rule: steps in discrete time instead of the flow, "gd" for those of gradient
            descent; `times` are then moved to whole numbers of them.
        lr: the learning rate of "gd".
        tol: largest error of a theory that `auto` names.
        budget: operations that the ensemble may spend. With much less than the default
            copies are smaller, and with two or three samples bars may then not hold.

    Returns:
        `Prediction`: `times`, `train`, `population`, their bars, the `theory`, and the
        `regime` that the curves say.

    Raises:
        ValueError: a data matrix without h and sigma2, an unknown theory, a population
            or a rule that the theory cannot take, a rule under which copies diverge, or
            anything that `prepare` refuses.

    Warns:
        RegimeWarning: a theory asked for by name whose error is not below `tol`; the
            message names the regime and the error.

    Cost: some tenths of a second, a second where scatter is large; `budget` scales it.

    Source: :eq:`drv-regimes-bar` (derivations), beyond the paper.

    Examples:
        >>> answer = predict(Setup(64, 4096, 64, 0.2 / 4096), budget=1e9)
        >>> answer.theory
        'mean-field + next'
    """
    twice = isinstance(problem, Setup) and not h is sigma2 is None
    expect(not twice, "h, sigma2", "none: a Setup has its own", (h, sigma2))
    if not isinstance(problem, Setup | DataMatrix):
        shape, wanted = np.shape(problem), "a Setup, or data (d, n) of many columns"
        expect(len(shape) == 2, "problem", wanted, shape)
        problem = prepare(problem)
    rule = _rule(rule, lr)
    setup, data = _sizes(problem, h, None, sigma2)
    start = classify_regime(problem, h, sigma2=sigma2)
    t = check_times(np.linspace(0, 3 / start.rate, 41) if times is None else times)
    t = check_times(rule.grid(t)) if rule else t
    overlap = P = None
    if population is not None:
        if data is None:
            raise ValueError("population: only a data matrix can have its own")
        P = check_covariance(population, setup.d)
        overlap = data.overlap(P)
    names = _allowed(theory, setup, P, rule)
    if "free" in names:
        budget /= 2  # at large starts, where the free face is a second ensemble
        far = abs(first_loss(setup, 0.0) / first_loss(setup) - 1) if t[0] == 0 else 0.0
        if theory != "free" and far >= tol:  # seen without it
            names.remove("free")
    law = None if data is None else data.law
    turned = None if P is None or data is None else data.vectors.T @ P @ data.vectors
    copies = ensemble(setup, t, law, turned, rule=rule, budget=budget)
    curves = {"ensemble": copies.mean}
    for name in names:
        if name == "free":
            curves[name] = ensemble(setup, t, law, target=False, budget=budget).mean
        elif name != "ensemble":
            with contextlib.suppress(*[StiffError] * (name != theory)):
                curves[name] = theory_curves(name, t, setup, law, overlap, rule=rule)
    errors = curve_errors(curves, copies.mean)
    regime = _by_curves(errors, start, tol)
    name = theory
    if theory == "auto":
        name = min(sorted(curves.keys() - {"ensemble"}), key=errors.__getitem__)
        name = name if errors[name] < tol else "ensemble"
    elif errors[name] >= tol:
        warnings.warn(
            f"{name} theory used outside its regime: this setup is in "
            f"'{regime.name}', where its error is {errors[name]:.2g} of the change",
            RegimeWarning,
            stacklevel=2,
        )
    quantile = max(float(stdtrit(copies.copies - 1, LEVEL)), copies.reach)
    parts = zip(curves[name], copies.mean, copies.scatter, copies.doubt, strict=True)
    bars = [abs(y - e) + quantile * s + doubt for y, e, s, doubt in parts]
    found = t, *curves[name], bars[0], bars[1], name, regime, setup, data, P, rule
    return Prediction(*found, curves)


def _rule(rule: Rule | str | None, lr: float | None) -> Rule | None:
    """A rule with its learning rate, which "gd" has beside it and a `Rule` in it."""
    expect((rule == "gd") == (lr is not None), "lr", "one with rule='gd' alone", lr)
    known = lr is not None or not isinstance(rule, str)
    expect(known, "rule", "'gd' with an lr, a Rule or None", rule)
    return Rule(lr) if lr is not None else rule  # type: ignore[return-value]


def _allowed(theory: str, setup: Setup, population: Any, rule: Any) -> list[str]:
    """The theories to look at: those that know population and rule, and no absurd one."""
    every, why = [*REGIMES, *NEXT, "ensemble"], ""
    if population is not None:
        every = [*BY_SPECTRUM, "mean-field + next", "ensemble"]
        why = "; every other knows only the identity as its population"
    if rule is not None:
        every = [k for k in every if k != "free"]
        why += "; with a rule the solved faces, their next orders and the ensemble"
    wanted = f"'auto' or one of {tuple(every)}{why}"
    expect(theory in ("auto", *every), "theory", wanted, theory)
    if theory != "free" and setup.kappa + setup.rho < LARGE:
        every = [name for name in every if name != "free"]
    return every


def curve_errors(curves: dict[str, Curves], mean: Curves) -> dict[str, float]:
    r"""The error of each theory is its largest distance from the ensemble's mean.

    .. math:: \epsilon_F = \max_{t,\;train, pop} \max\Big(
        \frac{|\Delta L_F - \Delta E|}{\max_{t'} |\Delta E(t')|},\;
        \frac{|L_F - E|}{E(0)} \Big), \qquad \Delta L = L(t) - L(0)

    The first follows losses that hardly move, the second losses that start elsewhere.

    Args:
        curves: (T,) losses of theories by name.
        mean: of the ensemble, at the same times.

    Source: :eq:`drv-regimes-bar` (derivations).

    Examples:
        >>> mean = Curves(np.array([2.0, 1.0]), np.array([2.0, 1.0]))
        >>> curve_errors({"off": Curves(mean.train, mean.population - [0, 0.25])}, mean)
        {'off': 0.25}
    """

    def error(y: np.ndarray, e: np.ndarray) -> float:
        change = max(float(np.abs(e - e[0]).max()), 1e-12 * float(e[0]))
        moved = np.abs((y - y[0]) - (e - e[0])).max() / change
        return float(max(moved, np.abs(y - e).max() / e[0]))

    return {
        name: max(error(y, e) for y, e in zip(pair, mean, strict=True))
        for name, pair in curves.items()
    }


def _by_curves(errors: dict[str, float], start: Regime, tol: float) -> Regime:
    """The regime that the curves say: a face also stands where its next order does."""
    faces = {
        name: min(errors[k] for k in errors if k.removesuffix(" + next") == name)
        for name in REGIMES
        if name in errors
    }
    active = tuple(name for name in faces if faces[name] < tol)
    name = " x ".join(active) if active else "interior"
    return replace(start, name=name, active=active, errors=faces)
