"""The nine edges and six vertices of the prism: two or three limits at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.curves import Curves
from geolib.regimes.law import Law, marchenko_pastur
from geolib.regimes.setup import check_times, positive
from geolib.regimes.small_data import small_data

Pair = tuple[np.ndarray, np.ndarray]
Formula = Callable[[np.ndarray, float, float, float], Pair]


def _over(law: Law, t: np.ndarray, f) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The integral of f(x, t) over a law, for each t."""
    return f(law.nodes, np.asarray(t)[:, None]) @ law.weights


def _growth(rate: float, t: np.ndarray) -> np.ndarray:
    """(e^{rate t} - 1) / rate, also at rate 0."""
    return t if rate == 0 else np.expm1(rate * t) / rate


def _logistic(t: np.ndarray, start: float) -> np.ndarray:
    """Solution of a' = 4 a (1 - a)."""
    return start / (start + (1 - start) * np.exp(-4 * t))


def _large_mean(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    loss = (1 - _logistic(t, rho)) ** 2 / 2
    return loss, loss


def _large_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    r = _logistic(t, kappa)
    loss = 0.5 - rho / kappa * (r - r**2 / 2)
    return loss, loss


def _small_mean(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    train = (1 - _logistic(c * t, rho)) ** 2 / 2
    start = (1 - rho) ** 2 / 2
    return train, start + (train - start) / c


def _small_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    tau, rate, eta = c * t, 2 * (2 - kappa), rho / kappa
    train = 0.5 - eta * kappa * (1 - kappa / 2) * np.exp(rate * tau)
    moved = -4 * kappa * (1 - kappa) ** 2 * _growth(rate, tau) / c
    return train, 0.5 + eta * (kappa**2 / 2 - kappa + moved)


def _small_start(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    mu = marchenko_pastur(1.0, c)
    train = 0.5 - rho * _over(mu, t, lambda x, s: x * np.exp(4 * s * x))
    return train, 0.5 - rho * _over(mu, t, lambda x, s: np.exp(4 * s * x))


def _free_large(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    mu = marchenko_pastur(rho, kappa)
    loss = _over(mu, t, lambda a, s: (a / (1 + 4 * a * s)) ** 2) / 2
    return loss, loss


def _free_mean(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    mu = marchenko_pastur(1.0, c)
    train = _over(mu, t, lambda x, s: x * (rho / (1 + 4 * rho * x * s)) ** 2) / 2
    return train, _over(mu, t, lambda x, s: (rho / (1 + 4 * rho * x * s)) ** 2) / 2


def _free_narrow(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    """s runs backwards: s' = -F^2 / F(0); its inverse t(s) is a quadrature."""
    mu = marchenko_pastur(1.0, c)
    from geolib.regimes.curves import solve

    def moments(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes))
        return e @ mu.weights, 2 * e @ (mu.weights * mu.nodes)

    def field(_: float, s: np.ndarray) -> np.ndarray:
        return -(moments(s)[0] ** 2) / kappa

    s = solve(field, np.zeros(1), t, 1e-11, 1e-13)[:, 0]
    F, slope = moments(s)
    r, q, eta = F**2 / kappa, F * slope / (2 * kappa), rho / kappa
    return eta * q * r / 2, eta * r**2 / 2


def _free_small(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
    out = small_data(c * t, rho, kappa, target=False)
    return out.train, (rho**2 + rho * kappa) / 2 + out.population / c


EDGES: dict[frozenset[str], Formula] = {
    frozenset(pair): formula
    for pair, formula in (
        (("large-data", "mean-field"), _large_mean),
        (("large-data", "narrow"), _large_narrow),
        (("small-data", "mean-field"), _small_mean),
        (("small-data", "narrow"), _small_narrow),
        (("mean-field", "narrow"), _small_start),
        (("large-data", "free"), _free_large),
        (("mean-field", "free"), _free_mean),
        (("narrow", "free"), _free_narrow),
        (("small-data", "free"), _free_small),
    )
}


def _vertex_start(small: bool) -> Formula:
    def formula(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
        train = 0.5 - rho * np.exp(4 * t * (c if small else 1.0))
        return train, 0.5 - rho - rho * np.expm1(4 * c * t) / c if small else train

    return formula


def _vertex_wide(small: bool) -> Formula:
    def formula(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
        start = rho**2 / 2
        train = start / (1 + 4 * rho * t * (c if small else 1.0)) ** 2
        return train, start + (train - start) / c if small else train

    return formula


def _vertex_narrow(small: bool) -> Formula:
    def formula(t: np.ndarray, rho: float, kappa: float, c: float) -> Pair:
        start = rho * kappa / 2
        if not small:
            return (start / (1 + 4 * kappa * t) ** 2,) * 2
        moved = -4 * kappa**2 * rho * _growth(-2 * kappa, c * t) / c
        return start * np.exp(-2 * kappa * c * t), start + moved

    return formula


VERTICES: dict[frozenset[str], Formula] = {
    frozenset((data, *pair)): make(data == "small-data")
    for data in ("large-data", "small-data")
    for pair, make in (
        (("mean-field", "narrow"), _vertex_start),
        (("mean-field", "free"), _vertex_wide),
        (("narrow", "free"), _vertex_narrow),
    )
}


def cell_curves(
    faces: tuple[str, ...], times: ArrayLike, rho: float, kappa: float, c: float
) -> Curves:
    r"""Leading losses over d where two (edge) or three (vertex) faces meet.

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

    Source: spec section 2.5 (ours; each cell is a limit of a solved face).

    Examples:
        >>> faces = ("large-data", "free", "mean-field")
        >>> cell = cell_curves(faces, [0.0, 1.0], 2, 1, 1)
        >>> cell.train.round(6).tolist()        # rho^2 / 2 / (1 + 4 rho t)^2
        [2.0, 0.024691]
    """
    t = check_times(times)
    for name, number in (("rho", rho), ("kappa", kappa), ("c", c)):
        positive(name, number)
    formula = {**EDGES, **VERTICES}.get(frozenset(faces))
    if formula is None or len(faces) != len(set(faces)):
        raise ValueError(f"faces: {faces} do not meet in an edge or a vertex")
    train, population = formula(t, float(rho), float(kappa), float(c))
    return Curves(train, population)
