"""Taylor coefficients of the theories in exact arithmetic, to set beside the prism.

Each theory is a closed system of polynomial equations of motion; differentiating a
loss s times along it gives a polynomial in its variables, whose value at time 0 is a
polynomial in rho, kappa and c. None of this uses words, traces or integration by parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

from geolib.regimes.spectral_measures import free_poisson_moment
from geolib.regimes.trace_words import KINDS, Planar


@cache
def _ratios() -> tuple[Any, ...]:
    """The ring Q[rho, kappa, c] and its generators."""
    from sympy import QQ
    from sympy.polys.rings import ring

    return ring("rho, kappa, c", QQ)


@dataclass
class System:
    """Polynomial equations of motion in a ring of their own.

    `velocity` gives the derivative of each variable; `start` the mean at time 0 of a
    monomial with those powers, in Q[rho, kappa, c]. `unit` is the common factor of the
    loss over d, `per_order` what each derivative in t brings (the system may run in
    another time). A loss whose derivative alone is known gives it as `slope`.
    """

    loss: Any
    velocity: dict[Any, Any]
    start: Callable[[tuple[int, ...]], Any]
    unit: Any = 1
    per_order: Any = 1
    slope: Any = None

    def derivatives(self, order: int) -> list[Any]:
        """The loss over d and its time derivatives at 0, in Q[rho, kappa, c]."""
        loss, factor, out = self.loss, self.unit, []
        for s in range(order + 1):
            out.append(factor * sum(f * self.start(p) for p, f in loss.terms()))
            if self.slope is not None and s == 0:
                loss = self.slope
                continue
            loss = sum(loss.diff(x) * v for x, v in self.velocity.items())
            factor = factor * self.per_order
        return out


def _variables(names: str) -> tuple[Any, ...]:
    from sympy import QQ
    from sympy.polys.rings import ring

    return ring(names, QQ)[1:]


def _large_data(kind: str, order: int) -> System:
    """a' = 4 a (1 - a), L = (1 - a)^2 / 2, averaged over Marchenko-Pastur's law."""
    _, rho, kappa, _ = _ratios()
    (a,) = _variables("a")

    def start(powers: tuple[int, ...]) -> Any:
        return free_poisson_moment(powers[0], rho, kappa)

    return System((1 - a) ** 2 / 2, {a: 4 * a * (1 - a)}, start)


def _mean_field(kind: str, order: int) -> System:
    """a' = 4 x a (1 - a) from a = rho, averaged over x of the law (1, c)."""
    _, rho, _, c = _ratios()
    a, x = _variables("a, x")
    weight = x if kind == "train" else 1

    def start(powers: tuple[int, ...]) -> Any:
        return rho ** powers[0] * free_poisson_moment(powers[1], c**0, c)

    return System(weight * (1 - a) ** 2 / 2, {a: 4 * x * a * (1 - a)}, start)


def _narrow(kind: str, order: int) -> System:
    """s' = 2 - F u, u' = -u^2 F1 with u = 1 / v and F_j the j-th derivative of F.

    The loss is less that of the zero map, and per latent; per input it gains the
    factor rho / kappa. F_j starts at kappa 2^j times the j-th moment of the law (1, c),
    so that one factor kappa of each monomial cancels.
    """
    ring, rho, kappa, c = _ratios()
    u, *F = _variables(",".join(["u", *(f"F{j}" for j in range(order + 3))]))
    moved = {F[j]: F[j + 1] * (2 - F[0] * u) for j in range(order + 2)}
    r, q = F[0] * u, F[1] * u / 2
    loss = -q * (1 - r / 2) if kind == "train" else -r * (1 - r / 2)
    begin = [2**j * free_poisson_moment(j, c**0, c) for j in range(len(F))]

    def start(powers: tuple[int, ...]) -> Any:
        count = sum(powers[1:])
        values = prod((b**p for b, p in zip(begin, powers[1:], strict=True)), start=1)
        return ring.one * kappa ** (count - 1) * values

    return System(loss, {u: -(u**2) * F[1], **moved}, start, unit=rho)


def _small_data(kind: str, order: int) -> System:
    """The moment hierarchy, untruncated: M_k at time 0 are those of (rho, kappa).

    Its time is tau = c t; the population loss moves by n / d = 1 / c of its slope.
    """
    _, rho, kappa, c = _ratios()
    top = order + 4
    M = [1, *_variables(",".join(f"M{j}" for j in range(1, top + 1)))]
    begin = [free_poisson_moment(j, rho, kappa) for j in range(1, top + 1)]
    velocity = {
        M[k]: -sum(
            2 * M[j + 1] * M[k - j]
            + M[j] * M[k + 1 - j]
            + M[j + 2] * M[k - 1 - j]
            - 2 * M[j] * M[k - j]
            - 2 * M[j + 1] * M[k - 1 - j]
            for j in range(k)
        )
        for k in range(1, top)
    }

    def start(powers: tuple[int, ...]) -> Any:
        return prod((b**p for b, p in zip(begin, powers, strict=True)), start=c**0)

    loss = (1 - 2 * M[1] + M[2]) / 2
    slope = None if kind == "train" else -4 * (M[3] - 2 * M[2] + M[1])
    return System(loss, velocity, start, per_order=c, slope=slope)


SOLVED = {
    "large-data": _large_data,
    "small-data": _small_data,
    "mean-field": _mean_field,
    "narrow": _narrow,
}


def theory_taylor(name: str, kind: str, order: int) -> list[Planar]:
    r"""Time derivatives at 0 of a solved face's loss over d are exact polynomials.

    .. math:: \frac1d \frac{d^s L}{dt^s}(0)
        = \sum \mathrm{coef}\; \rho^k \kappa^{l-k} c^m

    Args:
        name: one of the four solved regimes.
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {(l, k, m): coefficient} a derivative, like `planar_loss`.

    Raises:
        ValueError: a regime with no closed system, or an unknown kind.

    Cost: under a second to order 5; small data takes the longest.

    Source: :eq:`drv-regimes-logistic`, :eq:`drv-regimes-narrow` and
    :eq:`drv-regimes-hierarchy` (derivations).

    Examples:
        >>> theory_taylor("mean-field", "population", 1)[1]
        {(1, 1, 0): Fraction(-4, 1), (2, 2, 0): Fraction(8, 1), ...}
    """
    if name not in SOLVED:
        raise ValueError(f"name: expected one of {tuple(SOLVED)}, got {name!r}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    # A term rho^k kappa^j c^m is the monomial (l, k, m) = (k + j, k, m).
    return [
        {
            (k + j, k, m): Fraction(int(f.numerator), int(f.denominator))
            for (k, j, m), f in sorted(poly.terms())
        }
        for poly in SOLVED[name](kind, order).derivatives(order)
    ]
