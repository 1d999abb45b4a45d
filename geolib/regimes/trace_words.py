"""The loss expansion: traces of words in A and S, their derivatives, their means.

Both losses are sums of traces of words in A = W^T W and S = X X^T / n, and so are all
their time derivatives. Means over Gaussian weights and data follow by integration by
parts: exactly (`exact_loss`), or to leading order in the sizes (`planar_loss`), whose
monomials fill a prism with one face for each regime (`face`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from math import prod
from typing import Annotated, Any

from geolib.core.validation import expect
from geolib.regimes.spectral_measures import free_poisson_moment

# Names of the five faces, in the order in which the chapter treats them.
REGIMES = ("large-data", "small-data", "mean-field", "narrow", "free")
KINDS = ("train", "population")
Kind = Annotated[str, KINDS]
Order = Annotated[int, "0 <= order <= 12"]
Exact = dict[tuple[int, int, int, int], Fraction]
Key = tuple[int, int, int]
Planar = dict[Key, Fraction]

# One factor A differentiated: A' = -2 A S A - S A A - A A S + 2 S A + 2 A S.
VELOCITY = (("ASA", -2), ("SAA", -1), ("AAS", -1), ("SA", 2), ("AS", 2))


@cache
def canonical(word: str) -> str:
    """The first of a trace's rotations and reversals in the alphabet.

    tr W is unchanged by rotation, and by reversal as A and S are symmetric.

    Examples:
        >>> canonical("SAAS")
        'AASS'
    """
    back = word[::-1]
    turns = range(len(word))
    return min(w[i:] + w[:i] for w in (word, back) for i in turns) if word else ""


def twice_the_loss(kind: str) -> dict[str, int]:
    """Twice the loss as a sum of traces.

    Examples:
        >>> twice_the_loss("train")
        {'S': 1, 'AS': -2, 'AAS': 1}
    """
    tail = "S" if kind == "train" else ""
    return {canonical("A" * k + tail): cf for k, cf in ((0, 1), (1, -2), (2, 1))}


def derive(traces: dict[str, int]) -> dict[str, int]:
    """The time derivative of a sum of traces along the flow.

    Examples:
        >>> derive({"A": 1})
        {'AAS': -4, 'AS': 4}
    """
    out: Counter[str] = Counter()
    for word, factor in traces.items():
        for i, letter in enumerate(word):
            if letter == "A":
                for piece, k in VELOCITY:
                    out[canonical(word[:i] + piece + word[i + 1 :])] += k * factor
    return {word: k for word, k in out.items() if k}


@cache
def _derivative(kind: str, order: int) -> dict[str, int]:
    return derive(_derivative(kind, order - 1)) if order else twice_the_loss(kind)


def loss_words(kind: Kind, order: Order) -> list[dict[str, int]]:
    r"""Twice the loss and its first `order` time derivatives are sums of traces.

    .. math:: 2 L_{train} = tr S - 2\, tr SA + tr SAA , \qquad
        2 L_{pop} = d - 2\, tr A + tr AA

    Args:
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {canonical word: integer} a derivative, from the zeroth.

    Raises:
        ValueError: an unknown kind or a negative order.

    Source: :eq:`drv-regimes-words` (derivations).

    Examples:
        >>> loss_words("population", 1)[1]
        {'AAS': 16, 'AS': -8, 'AAAS': -8}
    """
    return [dict(_derivative(kind, s)) for s in range(order + 1)]


# ---- the exact mean, all genera ------------------------------------------------------


def exact_loss(kind: Kind, order: Order) -> Exact:
    r"""The mean of a time derivative of the loss at 0, all genera, is a polynomial.

    .. math:: E\, \frac{d^s L}{dt^s}(0)
        = \sum \mathrm{coef}\; d^q h^k \sigma^{2l} n^{-m}

    Words are differentiated, then averaged by Gaussian integration by parts on
    products of traces, which is exact for every finite d, h, n.

    Args:
        kind: `train` or `population`.
        order: the derivative s.

    Returns:
        {(q, k, l, m): coefficient}, coefficients exact.

    Raises:
        ValueError: an unknown kind or a negative order.

    Cost: about 1 s at s = 5, growing about tenfold with each order.

    Source: :eq:`drv-regimes-wick` (derivations).

    Examples:
        >>> exact_loss("population", 0)[(1, 0, 0, 0)]
        Fraction(1, 2)
    """
    words = loss_words(kind, order)[order]
    total = sum(factor * _mean((word,)) for word, factor in words.items())
    return {key: Fraction(int(k), 2) for key, k in sorted(total.items())}


def evaluate(
    poly: Exact,
    d: Annotated[int, "d >= 1"],
    h: Annotated[int, "h >= 1"],
    n: Annotated[int, "n >= 1"],
    sigma2: Fraction | int = 1,
) -> Fraction:
    r"""The value of an `exact_loss` polynomial at one setup is a rational number.

    Args:
        poly: {(q, k, l, m): coefficient} of :math:`d^q h^k \sigma^{2l} n^{-m}`.
        d, h, n: the sizes.
        sigma2: initial variance, a whole number or a fraction.

    Source: :eq:`eq-regimes-ratios`.

    Examples:
        >>> evaluate(exact_loss("train", 1), 1, 1, 1)
        Fraction(-120, 1)
    """
    at = Fraction(d), Fraction(h), Fraction(sigma2), 1 / Fraction(n)
    return Fraction(sum(k * prod(map(pow, at, key)) for key, k in poly.items()))


@cache
def _sizes() -> tuple[Any, ...]:
    """The polynomial ring Z[d, h, sigma^2, 1/n] and its generators."""
    from sympy import ZZ
    from sympy.polys.rings import ring

    return ring("d, h, sigma2, n_inverse", ZZ)


@cache
def _mean(traces: tuple[str, ...]) -> Any:
    """E of a product of traces of canonical words, sorted from short to long."""
    one, d, h, sigma2, n_inverse = _sizes()[0].one, *_sizes()[1:]
    if not traces:
        return one
    # The shortest trace first: its letter is contracted with everything else.
    first, *others = traces
    if not first:
        return d * _mean(tuple(others))
    letter = "S" if "S" in first else "A"
    i = first.index(letter)
    rest = first[i + 1 :] + first[:i]
    loop, link = (one, n_inverse) if letter == "S" else (h * sigma2, sigma2)
    linked = sum(
        (_mean(_sorted(p)) for p in _contractions(letter, rest, others)), 0 * one
    )
    return loop * _mean(_sorted((rest, *others))) + link * linked


def _contractions(letter: str, rest: str, others: list[str]) -> list[tuple[str, ...]]:
    """What tr(Y rest) times the others becomes when Y meets each other Y."""
    out: list[tuple[str, ...]] = []
    for j, y in enumerate(rest):
        if y == letter:
            u, v = rest[:j], rest[j + 1 :]
            out += [(u + v[::-1] + letter, *others), (letter + u, v, *others)]
    for i, other in enumerate(others):
        remain = others[:i] + others[i + 1 :]
        for j, y in enumerate(other):
            if y == letter:
                turn = other[j + 1 :] + other[:j]
                out += [
                    (letter + rest + turn[::-1], *remain),
                    (letter + rest + turn, *remain),
                ]
    return out


def _sorted(traces: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(map(canonical, traces), key=lambda w: (len(w), w)))


# ---- the planar part: A and S are free -----------------------------------------------


class PlanarTraces:
    r"""The large-size limit of tr(word) / d, in any commutative ring.

    A of the law (rho, kappa) is free of S, of which only the moments are known. The
    first A of a word is contracted with the others without crossings,

    .. math:: \varphi(A U) = \rho\,\varphi(U)
        + \kappa \sum_{U = U_1 A U_2} \varphi(A U_1)\, \varphi(U_2) ,

    until words of S alone are left. Numbers give numbers, polynomials polynomials.

    Args:
        rho, kappa: ring elements.
        moment: the moments of S as a function of their order, ring elements.
    """

    def __init__(self, rho: Any, kappa: Any, moment: Callable[[int], Any]) -> None:
        self.rho, self.kappa, self.moment = rho, kappa, moment
        self.seen: dict[str, Any] = {}

    def __call__(self, word: str) -> Any:
        """The planar trace over d of one word."""
        word = canonical(word)
        if word not in self.seen:
            self.seen[word] = self._first_letter_away(word)
        return self.seen[word]

    def _first_letter_away(self, word: str) -> Any:
        if "A" not in word:
            return self.moment(len(word))
        rest = word[1:]  # canonical words begin with their A
        out = self.rho * self(rest)
        for j, letter in enumerate(rest):
            if letter == "A":
                out = out + self.kappa * self("A" + rest[:j]) * self(rest[j + 1 :])
        return out

    def by_power(self, kind: str, order: int) -> dict[int, Any]:
        """Twice the s-th derivative of the loss over d, by the number l of letters A."""
        out: dict[int, Any] = {}
        for word, factor in loss_words(kind, order)[order].items():
            l = word.count("A")
            out[l] = out.get(l, 0) + factor * self(word)
        return out


@cache
def _planar_ring() -> PlanarTraces:
    """Planar traces in Z[rho, c]; kappa is 1, its power being l - k."""
    from sympy import ZZ
    from sympy.polys.rings import ring

    _, rho, c = ring("rho, c", ZZ)
    return PlanarTraces(rho, 1, lambda order: free_poisson_moment(order, c**0, c))


def planar_loss(kind: Kind, order: Order) -> list[Planar]:
    r"""Every derivative up to `order` has a leading part when all sizes grow together.

    .. math:: \frac1d \frac{d^s L}{dt^s}(0) \to
        \sum \mathrm{coef}\; \rho^k \kappa^{l-k} c^m

    Args:
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {(l, k, m): coefficient} a derivative, from the zeroth.

    Raises:
        ValueError: an unknown kind or a negative order.

    Cost: about 1 s for order 7.

    Source: :eq:`drv-regimes-planar` (derivations).

    Examples:
        >>> planar_loss("population", 1)[1][(1, 1, 0)]
        Fraction(-4, 1)
    """
    words = loss_words(kind, order)
    return [dict(_planar_table(kind, s)) for s in range(len(words))]


@cache
def _planar_table(kind: str, order: int) -> Planar:
    parts = _planar_ring().by_power(kind, order)
    terms = {
        (l, k, m): Fraction(int(f), 2)
        for l, part in parts.items()
        for (k, m), f in part.items()
    }
    return dict(sorted(terms.items()))


def face_test(name: str, kind: Kind, order: Order) -> Callable[[Key], bool]:
    """Whether a monomial (l, k, m) lies on a regime's face.

    Raises:
        ValueError: an unknown regime.

    Examples:
        >>> face_test("mean-field", "train", 3)((2, 2, 0))
        True
    """
    top = order if kind == "train" else max(order - 1, 0)
    tests: dict[str, Callable[[Key], bool]] = {
        "large-data": lambda p: p[2] == 0,
        "small-data": lambda p: p[2] == top,
        "mean-field": lambda p: p[0] == p[1],
        "narrow": lambda p: p[1] == 1,
        "free": lambda p: p[0] == order + 2,
    }
    expect(name in tests, "name", f"one of {REGIMES}", name)
    return tests[name]


def face(name: str, kind: Kind, order: Order) -> Planar:
    r"""The leading monomials of the s-th derivative that lie on a regime's face.

    The faces are m = 0 (large data), m largest (small data), k = l (mean-field), k = 1
    (narrow) and l = s + 2 (free).

    Args:
        name: one of `REGIMES`.
        kind: `train` or `population`.
        order: the derivative s.

    Returns:
        {(l, k, m): coefficient of :math:`\rho^k \kappa^{l-k} c^m`}.

    Raises:
        ValueError: an unknown regime or kind, or a negative order.

    Source: :eq:`drv-regimes-rays` (derivations).

    Examples:
        >>> face("free", "population", 0)
        {(2, 1, 0): Fraction(1, 2), (2, 2, 0): Fraction(1, 2)}
    """
    table = planar_loss(kind, order)[order]
    return {k: f for k, f in table.items() if face_test(name, kind, order)(k)}


def value(table: Planar, rho: float, kappa: float, c: float) -> float:
    """The polynomial of rho, kappa and c that a table of monomials stands for.

    Examples:
        >>> value({(2, 1, 0): Fraction(8)}, 0.5, 2.0, 1.0)
        8.0
    """
    return sum(
        float(f) * rho**k * kappa ** (l - k) * c**m for (l, k, m), f in table.items()
    )


@lru_cache(maxsize=4096)
def spectral_table(
    kind: str, order: int, moments: tuple[float, ...]
) -> dict[tuple[int, int], float]:
    r"""The planar s-th derivative over d for S of any spectrum.

    Args:
        kind: `train` or `population`.
        order: the derivative s.
        moments: of the law of S, from the first to at least the (s + 1)-th.

    Returns:
        {(l, k): coefficient of :math:`\rho^k \kappa^{l-k}`}.

    Examples:
        >>> spectral_table("population", 1, (1.0, 2.0))[(2, 1)]
        8.0
    """
    from numpy.polynomial import Polynomial

    known = (1.0, *moments)
    traces = PlanarTraces(Polynomial([0.0, 1.0]), 1.0, lambda j: Polynomial([known[j]]))
    return {
        (l, k): float(f) / 2
        for l, part in traces.by_power(kind, order).items()
        for k, f in enumerate(part.coef)
        if f
    }
