"""The nine edges and six vertices of the prism: two or three limits at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.loss_curves import Curves, logistic, solve
from geolib.regimes.setup import check_times
from geolib.regimes.small_data import small_data
from geolib.regimes.spectral_measures import marchenko_pastur

# Each formula takes (times, rho, kappa, c) and gives both losses over d. In small data
# the training loss runs in tau = c t and the population loss moves by 1 / c of a slope.
Formula = Callable[[np.ndarray, float, float, float], Curves]


def _growth(rate: float, t: np.ndarray) -> np.ndarray:
    """(e^{rate t} - 1) / rate, also at rate 0."""
    return t if rate == 0 else np.expm1(rate * t) / rate


def _twice(loss: np.ndarray) -> Curves:
    """With many samples both losses are the same."""
    return Curves(loss, loss)


def _large_meanfield(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """One logistic from rho."""
    return _twice((1 - logistic(rho, t)) ** 2 / 2)


def _few(large: Formula) -> Formula:
    """Along each of few samples the same in c t; the population loss moves by 1 / c."""

    def small(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
        train = large(c * t, rho, kappa, c).train
        start = large(np.zeros(1), rho, kappa, c).train
        return Curves(train, start + (train - start) / c)

    return small


def _large_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """The squared length r of each row follows a logistic from kappa."""
    r = logistic(kappa, t)
    return _twice(0.5 - rho / kappa * (r - r**2 / 2))


def _small_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """Rows keep their length; along the few samples they grow at 2 (2 - kappa)."""
    tau, rate, eta = c * t, 2 * (2 - kappa), rho / kappa
    train = 0.5 - eta * kappa * (1 - kappa / 2) * np.exp(rate * tau)
    moved = -4 * kappa * (1 - kappa) ** 2 * _growth(rate, tau) / c
    return Curves(train, 0.5 + eta * (kappa**2 / 2 - kappa + moved))


def _meanfield_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """A small start: every direction x of S grows by itself, a = rho e^{4 x t}."""
    mu = marchenko_pastur(1.0, c)
    a = rho * np.exp(4 * np.multiply.outer(t, mu.nodes))
    return Curves(0.5 - a @ (mu.weights * mu.nodes), 0.5 - a @ mu.weights)


def _large_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """Without a target each eigenvalue of A_0 decays, a' = -4 a^2."""
    mu = marchenko_pastur(rho, kappa)
    a = mu.nodes / (1 + 4 * np.multiply.outer(t, mu.nodes))
    return _twice(a**2 @ mu.weights / 2)


def _meanfield_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """Without a target each direction x of S decays, a' = -4 x a^2 from rho."""
    mu = marchenko_pastur(1.0, c)
    a = rho / (1 + 4 * rho * np.multiply.outer(t, mu.nodes))
    return Curves(a**2 @ (mu.weights * mu.nodes) / 2, a**2 @ mu.weights / 2)


def _narrow_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """s runs backwards, s' = -F^2 / F(0), as v = F(0) / F without a target."""
    mu = marchenko_pastur(1.0, c)

    def moments(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes))
        return e @ mu.weights, 2 * e @ (mu.weights * mu.nodes)

    def field(_: float, s: np.ndarray) -> np.ndarray:
        return -(moments(s)[0] ** 2) / kappa

    F, slope = moments(solve(field, np.zeros(1), t, 1e-11, 1e-13)[:, 0])
    r, q, eta = F**2 / kappa, F * slope / (2 * kappa), rho / kappa
    return Curves(eta * q * r / 2, eta * r**2 / 2)


def _small_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    """The bidiagonal flow without its target."""
    few = small_data(c * t, rho, kappa, target=False)
    return Curves(few.train, (rho**2 + rho * kappa) / 2 + few.population / c)


EDGES: dict[frozenset[str], Formula] = {
    frozenset(("large-data", "mean-field")): _large_meanfield,
    frozenset(("large-data", "narrow")): _large_narrow,
    frozenset(("small-data", "mean-field")): _few(_large_meanfield),
    frozenset(("small-data", "narrow")): _small_narrow,
    frozenset(("mean-field", "narrow")): _meanfield_narrow,
    frozenset(("large-data", "free")): _large_free,
    frozenset(("mean-field", "free")): _meanfield_free,
    frozenset(("narrow", "free")): _narrow_free,
    frozenset(("small-data", "free")): _small_free,
}


def _large_start(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    return _twice(0.5 - rho * np.exp(4 * t))


def _large_wide_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    return _twice(rho**2 / 2 / (1 + 4 * rho * t) ** 2)


def _large_narrow_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    return _twice(rho * kappa / 2 / (1 + 4 * kappa * t) ** 2)


def _small_narrow_free(t: np.ndarray, rho: float, kappa: float, c: float) -> Curves:
    start = rho * kappa / 2
    moved = -4 * kappa**2 * rho * _growth(-2 * kappa, c * t) / c
    return Curves(start * np.exp(-2 * kappa * c * t), start + moved)


VERTICES: dict[frozenset[str], Formula] = {
    frozenset(("large-data", "mean-field", "narrow")): _large_start,
    frozenset(("small-data", "mean-field", "narrow")): _few(_large_start),
    frozenset(("large-data", "mean-field", "free")): _large_wide_free,
    frozenset(("small-data", "mean-field", "free")): _few(_large_wide_free),
    frozenset(("large-data", "narrow", "free")): _large_narrow_free,
    frozenset(("small-data", "narrow", "free")): _small_narrow_free,
}


def cell_curves(
    faces: tuple[str, ...], times: ArrayLike, rho: float, kappa: float, c: float
) -> Curves:
    r"""The leading losses over d where two (edge) or three (vertex) faces meet.

    For instance, large data with mean-field:

    .. math:: L/d = \tfrac12 (1 - a)^2 , \qquad
        a = \frac{\rho\, e^{4t}}{1 - \rho + \rho\, e^{4t}} ,

    and the vertex of a small start with large data: :math:`L/d = 1/2 - \rho e^{4t}`.
    Cells of the free face give the loss without its target, :math:`\tfrac12 \phi(S
    A^2)`.

    Args:
        faces: two or three names of `REGIMES` that meet, in any order.
        times: (T,) increasing.
        rho, kappa, c: sigma^2 h, sigma^2 d and d / n.

    Raises:
        ValueError: faces that do not meet, bad times, parameters that are not positive.

    Cost: O(T) to O(400 T).

    Source: :eq:`drv-regimes-edges` (derivations); each cell is a limit of a solved face.

    Examples:
        >>> faces = ("large-data", "free", "mean-field")
        >>> cell = cell_curves(faces, [0.0, 1.0], 2, 1, 1)
        >>> cell.train.round(6).tolist()        # rho^2 / 2 / (1 + 4 rho t)^2
        [2.0, 0.024691]
    """
    t = check_times(times)
    formula = {**EDGES, **VERTICES}.get(frozenset(faces))
    if formula is None or len(faces) != len(set(faces)):
        raise ValueError(f"faces: {faces} do not meet in an edge or a vertex")
    return formula(t, float(rho), float(kappa), float(c))
