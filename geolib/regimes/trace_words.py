"""The loss expansion: traces of words in A and S, their derivatives, their means.

Both losses are sums of traces of words in A = W^T W and S = X X^T / n, and so are all
their time derivatives. Means over Gaussian weights and data follow by integration by
parts: exactly (`exact_loss`), or to leading order in the sizes (`planar_loss`), whose
monomials fill a prism with one face for each regime (`face`). A population that is not
isotropic has a third letter P, its covariance, of which traces of powers are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from math import prod
from typing import Annotated, Any

from geolib.core.validation import expect

# Names of the five faces, in the order in which the chapter treats them.
REGIMES = ("large-data", "small-data", "mean-field", "narrow", "free")
KINDS = ("train", "population")
Kind = Annotated[str, KINDS]
Order = Annotated[int, "0 <= order <= 12"]
Traces = dict[str, int]  # a sum of traces: factors by word
Exact = dict[tuple[int, ...], Fraction]
Key = tuple[int, ...]
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


def twice_the_loss(kind: str, covariance: bool = False) -> Traces:
    """Twice the loss as a sum of traces.

    Examples:
        >>> twice_the_loss("train")
        {'S': 1, 'AS': -2, 'AAS': 1}
    """
    tail = "S" if kind == "train" else "P" * covariance
    return {canonical("A" * k + tail): cf for k, cf in ((0, 1), (1, -2), (2, 1))}


def derive(traces: Traces) -> Traces:
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
def _derivative(kind: str, order: int, covariance: bool) -> Traces:
    if not order:
        return twice_the_loss(kind, covariance)
    return derive(_derivative(kind, order - 1, covariance))


def loss_words(kind: Kind, order: Order, *, covariance: bool = False) -> list[Traces]:
    r"""Twice the loss and its first `order` time derivatives are sums of traces.

    .. math:: 2 L_{train} = tr S - 2\, tr SA + tr SAA , \qquad
        2 L_{pop} = tr P - 2\, tr PA + tr PAA , \quad P = I \text{ by default}

    Args:
        kind: `train` or `population`.
        order: highest derivative.
        covariance: keep a letter P for the population's covariance.

    Returns:
        One dictionary {canonical word: integer} a derivative, from the zeroth.

    Raises:
        ValueError: an unknown kind or a negative order.

    Source: :eq:`drv-regimes-words` (derivations).

    Examples:
        >>> loss_words("population", 1)[1]
        {'AAS': 16, 'AS': -8, 'AAAS': -8}
    """
    return [dict(_derivative(kind, s, covariance)) for s in range(order + 1)]


# ---- the exact mean, all genera ------------------------------------------------------


def exact_loss(kind: Kind, order: Order, *, covariance: bool = False) -> Exact:
    r"""The mean of a time derivative of the loss at 0, all genera, is a polynomial.

    .. math:: E\, \frac{d^s L}{dt^s}(0)
        = \sum \mathrm{coef}\; d^q h^k \sigma^{2l} n^{-m}
          \prod_j (tr\, \Sigma^j)^{e_j}

    Words are differentiated, then averaged by Gaussian integration by parts on
    products of traces, which is exact for every finite d, h, n.

    Args:
        kind: `train` or `population`.
        order: the derivative s.
        covariance: of samples of any covariance, and the loss over that population;
            else it is the identity, and there are no e.

    Returns:
        {(q, k, l, m, e_1, ..., e_{s+1}): coefficient}, coefficients exact.

    Raises:
        ValueError: an unknown kind or a negative order.

    Cost: about 1 s at s = 5, growing about tenfold with each order.

    Source: :eq:`drv-regimes-wick` (derivations).

    Examples:
        >>> exact_loss("population", 0)[(1, 0, 0, 0)]
        Fraction(1, 2)
    """
    words, top = loss_words(kind, order, covariance=covariance)[order], order + 1
    top *= covariance
    total = sum(factor * _mean((word,), top) for word, factor in words.items())
    return {key: Fraction(int(k), 2) for key, k in sorted(total.items())}


def evaluate(
    poly: Exact,
    d: Annotated[int, "d >= 1"],
    h: Annotated[int, "h >= 1"],
    n: Annotated[int, "n >= 1"],
    sigma2: Fraction | int = 1,
    traces: Sequence[Fraction | int] = (),
) -> Fraction:
    r"""The value of an `exact_loss` polynomial at one setup is a rational number.

    Args:
        poly: {(q, k, l, m): coefficient} of :math:`d^q h^k \sigma^{2l} n^{-m}`.
        d, h, n: the sizes.
        sigma2: initial variance, a whole number or a fraction.
        traces: of the powers of the population's covariance, from the first on.

    Source: :eq:`eq-regimes-ratios`.

    Examples:
        >>> evaluate(exact_loss("train", 1), 1, 1, 1)
        Fraction(-120, 1)
    """
    at = Fraction(d), Fraction(h), Fraction(sigma2), 1 / Fraction(n), *traces
    return Fraction(sum(k * prod(map(pow, at, key)) for key, k in poly.items()))


@cache
def _ring(names: str, top: int) -> list[Any]:
    """The one of a polynomial ring over Z, its generators, and `top` more for P."""
    from sympy import ZZ
    from sympy.polys.rings import ring

    over, *generators = ring(names + f", P1:{top + 1}" * (top > 0), ZZ)
    return [over.one, *generators]


@cache
def _mean(traces: tuple[str, ...], top: int) -> Any:
    """E of a product of traces of canonical words, sorted from short to long.

    Traces of up to `top` letters P are generators; where that is 0 there are no P.
    """
    one, d, h, sigma2, n_inverse, *powers = _ring("d, h, sigma2, n_inverse", top)
    if not traces:
        return one
    # The shortest trace first: its letter is contracted with everything else.
    first, *others = traces
    if not first.strip("P"):
        return [d, *powers][len(first)] * _mean(tuple(others), top)
    letter = "S" if "S" in first else "A"
    i = first.index(letter)
    rest, P = first[i + 1 :] + first[:i], "P" * (letter == "S" and top > 0)
    loop, link = (one, n_inverse) if letter == "S" else (h * sigma2, sigma2)
    pairs = _contractions(letter, P, rest, others)
    linked = sum((_mean(_sorted(p), top) for p in pairs), 0 * one)
    return loop * _mean(_sorted((P + rest, *others)), top) + link * linked


def _contractions(
    letter: str, P: str, rest: str, others: list[str]
) -> list[tuple[str, ...]]:
    """What tr(Y rest) times the others becomes when Y meets each other Y: the factors
    that meet leave a P."""
    out: list[tuple[str, ...]] = []
    for j, y in enumerate(rest):
        if y == letter:
            u, v = rest[:j], rest[j + 1 :]
            out += [(u + P + v[::-1] + letter, *others), (letter + u, P + v, *others)]
    for i, other in enumerate(others):
        remain = others[:i] + others[i + 1 :]
        for j, y in enumerate(other):
            if y == letter:
                turn = other[j + 1 :] + other[:j]
                new = letter + rest + P
                out += [(new + turn[::-1], *remain), (new + turn, *remain)]
    return out


def _sorted(traces: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(map(canonical, traces), key=lambda w: (len(w), w)))


# ---- the planar part: A and S are free -----------------------------------------------


class PlanarTraces:
    r"""The large-size limit of tr(word) / d, in any commutative ring.

    A of the law (rho, kappa) is free of S and P. The first A of a word is contracted
    with the others without crossings,

    .. math:: \varphi(A U) = \rho\,\varphi(U)
        + \kappa \sum_{U = U_1 A U_2} \varphi(A U_1)\, \varphi(U_2) ,

    until none is left. Numbers give numbers, polynomials polynomials.

    Args:
        rho, kappa: ring elements.
        moment: the traces of words without A, ring elements.
    """

    def __init__(self, rho: Any, kappa: Any, moment: Callable[[str], Any]) -> None:
        self.rho, self.kappa, self.moment = rho, kappa, moment
        self.seen: dict[str, Any] = {}

    def __call__(self, word: str) -> Any:
        """The planar trace over d of one word."""
        word = canonical(word)
        if word not in self.seen:
            first = self._first_letter_away if "A" in word else self.moment
            self.seen[word] = first(word)
        return self.seen[word]

    def _first_letter_away(self, word: str) -> Any:
        rest = word[1:]  # canonical words begin with their A
        out = self.rho * self(rest)
        for j, letter in enumerate(rest):
            if letter == "A":
                out = out + self.kappa * self("A" + rest[:j]) * self(rest[j + 1 :])
        return out

    def total(self, words: Traces) -> Any:
        """A sum of traces over d."""
        return sum(factor * self(word) for word, factor in words.items())


@cache
def _planar_ring(top: int = 0) -> PlanarTraces:
    """Planar traces in Z[rho, kappa, c, P1, ...].

    A letter S is contracted as A is, with (1, c) for (rho, kappa) and a P left behind:
    :math:`\\varphi(SU) = \\varphi(PU) + c \\sum \\varphi(SU_1) \\varphi(PU_2)`.
    """
    one, rho, kappa, c, *powers = _ring("rho, kappa, c", top)
    P = "P" * (top > 0)

    def moment(word: str) -> Any:
        if "S" not in word:
            return [one, *powers][len(word)]
        i = word.index("S")
        rest = word[i + 1 :] + word[:i]
        out = traces(P + rest)
        for j, letter in enumerate(rest):
            if letter == "S":
                out = out + c * traces("S" + rest[:j]) * traces(P + rest[j + 1 :])
        return out

    traces = PlanarTraces(rho, kappa, moment)
    return traces


def planar_loss(kind: Kind, order: Order, *, covariance: bool = False) -> list[Planar]:
    r"""Every derivative up to `order` has a leading part when all sizes grow together.

    .. math:: \frac1d \frac{d^s L}{dt^s}(0) \to
        \sum \mathrm{coef}\; \rho^k \kappa^{l-k} c^m
        \prod_j \varphi(\Sigma^j)^{e_j}

    Args:
        kind: `train` or `population`.
        order: highest derivative.
        covariance: as in `exact_loss`; else there are no e.

    Returns:
        One dictionary {(l, k, m, e_1, ..., e_{s+1}): coefficient} a derivative, from
        the zeroth.

    Raises:
        ValueError: an unknown kind or a negative order.

    Cost: about 1 s for order 7.

    Source: :eq:`drv-regimes-planar`, :eq:`drv-regimes-third` (derivations).

    Examples:
        >>> planar_loss("population", 1)[1][(1, 1, 0)]
        Fraction(-4, 1)
        >>> planar_loss("population", 1, covariance=True)[1][(1, 1, 0, 0, 1)]
        Fraction(-4, 1)
    """
    return [dict(_planar_table(kind, s, covariance)) for s in range(order + 1)]


@cache
def _planar_table(kind: str, order: int, covariance: bool) -> Planar:
    traces = _planar_ring((order + 1) * covariance)
    poly = traces.total(_derivative(kind, order, covariance))
    table = {
        (k + j, k, *more): Fraction(int(f), 2) for (k, j, *more), f in poly.items()
    }
    return dict(sorted(table.items()))


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


def face(name: str, kind: Kind, order: Order, *, covariance: bool = False) -> Planar:
    r"""The leading monomials of the s-th derivative that lie on a regime's face.

    The faces are m = 0 (large data), m largest (small data), k = l (mean-field), k = 1
    (narrow) and l = s + 2 (free).

    Args:
        name: one of `REGIMES`.
        kind: `train` or `population`.
        order: the derivative s.
        covariance: as in `planar_loss`.

    Returns:
        {(l, k, m): coefficient of :math:`\rho^k \kappa^{l-k} c^m`}, with e.

    Raises:
        ValueError: an unknown regime or kind, or a negative order.

    Source: :eq:`drv-regimes-rays` (derivations).

    Examples:
        >>> face("free", "population", 0)
        {(2, 1, 0): Fraction(1, 2), (2, 2, 0): Fraction(1, 2)}
    """
    table = planar_loss(kind, order, covariance=covariance)[order]
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
    from sympy import RR
    from sympy.polys.rings import ring

    over, rho, kappa = ring("rho, kappa", RR)
    traces = PlanarTraces(rho, kappa, lambda word: over((1.0, *moments)[len(word)]))
    poly = traces.total(_derivative(kind, order, False))
    return {(k + j, k): float(f) / 2 for (k, j), f in poly.items()}
