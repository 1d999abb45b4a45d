"""Taylor coefficients of the theories in exact arithmetic, to set beside the prism.

Each theory is a closed system of polynomial equations of motion; differentiating a
loss s times along it gives a polynomial in its variables, whose value at time 0 is a
polynomial in rho, kappa and c, and in the moments P_j of the population's covariance if
it is not the identity. None of this uses words, traces or integration by parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import comb, prod
from typing import Any

from geolib.regimes.trace_words import KINDS, Planar


def narayana(order: int) -> list[int]:
    """The Narayana numbers N(order, 1..order): non-crossing partitions by blocks.

    Examples:
        >>> narayana(4)
        [1, 6, 6, 1]
    """
    return [comb(order, k) * comb(order, k - 1) // order for k in range(1, order + 1)]


def free_poisson_moment(order: int, alpha: Any, beta: Any) -> Any:
    r"""A moment of the Marchenko-Pastur (free Poisson) law, in any ring.

    .. math:: m_l(\alpha, \beta) = \sum_{k=1}^l N(l, k)\, \alpha^k \beta^{l-k}

    Examples:
        >>> free_poisson_moment(2, 3, 5)        # alpha^2 + alpha beta
        24
    """
    if order == 0:
        return alpha**0
    return sum(
        n * alpha**k * beta ** (order - k) for k, n in enumerate(narayana(order), 1)
    )


@cache
def _ratios(top: int = 0) -> tuple[Any, ...]:
    """The ring Q[rho, kappa, c, P1, ...] and its generators."""
    from sympy import QQ
    from sympy.polys.rings import ring

    return ring("rho, kappa, c" + f", P1:{top + 1}" * (top > 0), QQ)


def sample_moments(top: int, covariance: bool) -> tuple[list[Any], list[Any]]:
    r"""The moments of S, and those with one factor of the population's covariance.

    The n x n matrix with the eigenvalues of S has the free cumulants :math:`c P_j`,
    which make its moments :math:`c m_j`. With :math:`G_j = \varphi(\Sigma S^j)`,

    .. math:: m_{j+1} = G_j + c \sum_{i<j} m_{i+1} G_{j-1-i} .
    """
    ring, _, _, c, *P = _ratios(top * covariance)
    one = ring.one
    power = [one, *P] if covariance else [one] * (top + 1)
    small = [one]  # moments of the n x n matrix
    for n in range(1, top + 1):
        # Sums over i_1 + ... + i_s = n - s of m_{i_1} ... m_{i_s}, for s = 1, 2, ...
        total, product = 0 * one, [one, *[0 * one] * n]
        for s in range(1, n + 1):
            product = [
                sum(
                    (product[i] * small[k - i] for i in range(k + 1) if k - i < n),
                    0 * one,
                )
                for k in range(n - s + 1)
            ]
            total += c * power[s] * product[n - s]
        small.append(total)
    m = [one, *(x // c for x in small[1:])]
    if not covariance:
        return m, m
    G: list[Any] = []
    for j in range(top):
        G.append(m[j + 1] - c * sum(m[i + 1] * G[j - 1 - i] for i in range(j)))
    return m, G


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


def _large_data(kind: str, order: int, covariance: bool) -> System:
    """a' = 4 a (1 - a), L = (1 - a)^2 / 2, averaged over Marchenko-Pastur's law."""
    if covariance:
        raise ValueError("name: large data is solved for an isotropic population alone")
    _, rho, kappa, _ = _ratios()
    (a,) = _variables("a")

    def start(powers: tuple[int, ...]) -> Any:
        return free_poisson_moment(powers[0], rho, kappa)

    return System((1 - a) ** 2 / 2, {a: 4 * a * (1 - a)}, start)


def _mean_field(kind: str, order: int, covariance: bool) -> System:
    """a' = 4 x a (1 - a) from a = rho, averaged over x of the law of S."""
    _, rho, *_ = _ratios((order + 1) * covariance)
    a, x = _variables("a, x")
    m, G = sample_moments(order + 1, covariance)
    begin = m[1:] if kind == "train" else G

    def start(powers: tuple[int, ...]) -> Any:
        return rho ** powers[0] * begin[powers[1]]

    return System((1 - a) ** 2 / 2, {a: 4 * x * a * (1 - a)}, start)


def _narrow(kind: str, order: int, covariance: bool) -> System:
    """s' = 2 - F u, u' = -u^2 F1 with u = 1 / v and F_j the j-th derivative of F.

    The loss is less that of the zero map, and per latent; per input it gains the
    factor rho / kappa. F_j starts at kappa 2^j times the j-th moment of the law of S,
    so that one factor kappa of each monomial cancels; H_j has the population's variance
    beside.
    """
    ring, rho, kappa, *_ = _ratios((order + 2) * covariance)
    letters = "FH"[: 1 + covariance]
    names = [f"{k}{j}" for k in letters for j in range(order + 2)]
    u, *F = _variables(",".join(["u", *names]))
    H = F[order + 2 :] or F
    moved = {y[j]: y[j + 1] * (2 - F[0] * u) for y in (F, H) for j in range(order + 1)}
    pull = H[0] * u if kind == "population" else F[1] * u / 2
    parts = sample_moments(order + 2, covariance)[: len(letters)]
    begin = [2**j * part[j] for part in parts for j in range(order + 2)]

    def start(powers: tuple[int, ...]) -> Any:
        count = sum(powers[1:])
        values = prod((b**p for b, p in zip(begin, powers[1:], strict=True)), start=1)
        return ring.one * kappa ** (count - 1) * values

    loss = -pull * (1 - F[0] * u / 2)
    return System(loss, {u: -(u**2) * F[1], **moved}, start, unit=rho)


def _small_data(kind: str, order: int, covariance: bool) -> System:
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


def theory_taylor(
    name: str, kind: str, order: int, covariance: bool = False
) -> list[Planar]:
    r"""Time derivatives at 0 of a solved face's loss over d are exact polynomials.

    .. math:: \frac1d \frac{d^s L}{dt^s}(0)
        = \sum \mathrm{coef}\; \rho^k \kappa^{l-k} c^m \prod_j P_j^{e_j}

    Args:
        name: one of the four solved regimes.
        kind: `train` or `population`.
        order: highest derivative.
        covariance: of a population with the moments P_j; three faces are then solved.

    Returns:
        One dictionary {(l, k, m, e...): coefficient} a derivative, like `planar_loss`.

    Raises:
        ValueError: a regime with no closed system, or an unknown kind.

    Cost: under a second to order 5; small data takes the longest.

    Source: :eq:`drv-regimes-logistic`, :eq:`drv-regimes-narrow`,
    :eq:`drv-regimes-hierarchy` and :eq:`drv-regimes-third-small` (derivations).

    Examples:
        >>> theory_taylor("mean-field", "population", 1)[1]
        {(1, 1, 0): Fraction(-4, 1), (2, 2, 0): Fraction(8, 1), ...}
    """
    if name not in SOLVED:
        raise ValueError(f"name: expected one of {tuple(SOLVED)}, got {name!r}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    if covariance and name == "small-data":
        return _small_data_of(kind, order)
    # A term rho^k kappa^j c^m is the monomial (l, k, m) = (k + j, k, m).
    return [
        {
            (k + j, k, m, *e[: s + 1]): Fraction(int(f.numerator), int(f.denominator))
            for (k, j, m, *e), f in sorted(poly.terms())
        }
        for s, poly in enumerate(
            SOLVED[name](kind, order, covariance).derivatives(order)
        )
    ]


def _small_data_of(kind: str, order: int) -> list[Planar]:
    """Those of samples of any covariance, from the isotropic ones.

    Samples have the length P_1 d and time goes P_1 times faster. In a sample's own
    direction the population has the variance P_2 / P_1 and else P_1, and what is left
    there is the training loss of one sample.
    """
    train, population = (theory_taylor("small-data", k, order) for k in KINDS)
    out: list[Planar] = []
    for s in range(order + 1):
        alone, both = [0] * (s + 1), [0] * (s + 1)
        alone[0] = s + 1
        if s:
            both[0], both[1] = s - 1, 1
        table: dict[tuple[int, ...], Fraction] = {}
        parts = [(alone, train[s], 1, 0)]
        if kind == "population":
            parts = [(alone, population[s], 1, 0)]
            parts += [(alone, train[s], -1, -1), (both, train[s], 1, -1)] * (s > 0)
        for powers, terms, sign, shift in parts:
            for (l, k, m), f in terms.items():
                key = (l, k, m + shift, *powers)
                table[key] = table.get(key, Fraction(0)) + sign * f
        out.append({key: f for key, f in sorted(table.items()) if f})
    return out
