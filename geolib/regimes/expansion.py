"""The loss expansion: every time derivative at zero as an exact polynomial."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import cache

import numpy as np

from geolib.regimes.setup import positive
from geolib.regimes.words import canonical, loss_words

Exact = dict[tuple[int, int, int, int], Fraction]
Planar = dict[tuple[int, int, int], Fraction]


def exact_loss(kind: str, order: int) -> Exact:
    r"""The mean of the loss's time derivative at 0, all genera, as a polynomial.

    .. math:: E\, \frac{d^s L}{dt^s}(0)
        = \sum \mathrm{coef}\; d^q h^k \sigma^{2l} n^{-m}

    Words are differentiated, then averaged by Gaussian integration by parts on
    products of traces (spec 3.1), which is exact for every finite d, h, n.

    Args:
        kind: `train` or `population`.
        order: the derivative s.

    Returns:
        {(q, k, l, m): coefficient}, coefficients exact.

    Cost: about 2 s at s = 5, growing about tenfold with each order.

    Source: spec section 3.1.

    Examples:
        >>> exact_loss("population", 0)[(1, 0, 0, 0)]
        Fraction(1, 2)
    """
    total: Counter[tuple[int, int, int, int]] = Counter()
    for word, factor in loss_words(kind, order)[order].items():
        for key, k in _mean((word,)):
            total[key] += factor * k
    return {key: Fraction(k, 2) for key, k in sorted(total.items()) if k}


def evaluate(poly: Exact, d: int, h: int, n: int, sigma2: Fraction) -> Fraction:
    """The polynomial of `exact_loss` at one setup, exactly.

    Examples:
        >>> evaluate(exact_loss("train", 1), 1, 1, 1, Fraction(1))
        Fraction(-120, 1)
    """
    return sum(
        (
            k * Fraction(d) ** q * Fraction(h) ** p * sigma2**l / Fraction(n) ** m
            for (q, p, l, m), k in poly.items()
        ),
        Fraction(0),
    )


# A polynomial in (q, k, l, m) is a sorted tuple of (exponents, integer): hashable.
Terms = tuple[tuple[tuple[int, int, int, int], int], ...]


@cache
def _mean(traces: tuple[str, ...]) -> Terms:
    """E of a product of traces; `traces` is sorted and canonical, none empty or all."""
    empty = sum(1 for w in traces if not w)
    words = tuple(w for w in traces if w)
    if not words:
        return (((empty, 0, 0, 0), 1),)
    if empty:
        return tuple(((q + empty, k, l, m), cf) for (q, k, l, m), cf in _mean(words))
    # The shortest trace first: its letter is contracted with everything else.
    first = words[0]
    letter = "S" if "S" in first else "A"
    i = first.index(letter)
    rest, others = first[i + 1 :] + first[:i], words[1:]
    out: Counter[tuple[int, int, int, int]] = Counter()
    loop, link = ((0, 0, 0, 0), (0, 0, 0, 1))
    if letter == "A":
        loop, link = ((0, 1, 1, 0), (0, 0, 1, 0))
    _add(out, (rest, *others), loop)
    for j, y in enumerate(rest):
        if y == letter:
            u, v = rest[:j], rest[j + 1 :]
            _add(out, (u + v[::-1] + letter, *others), link)
            _add(out, (letter + u, v, *others), link)
    for i, other in enumerate(others):
        remain = others[:i] + others[i + 1 :]
        for j, y in enumerate(other):
            if y == letter:
                turn = other[j + 1 :] + other[:j]
                _add(out, (letter + rest + turn[::-1], *remain), link)
                _add(out, (letter + rest + turn, *remain), link)
    return tuple((key, cf) for key, cf in out.items() if cf)


def _add(
    out: Counter[tuple[int, int, int, int]],
    traces: tuple[str, ...],
    shift: tuple[int, int, int, int],
) -> None:
    key = tuple(sorted((canonical(w) for w in traces), key=lambda w: (len(w), w)))
    for (q, k, l, m), cf in _mean(key):
        out[(q + shift[0], k + shift[1], l + shift[2], m + shift[3])] += cf


def planar_loss(kind: str, order: int) -> list[Planar]:
    r"""The leading part of every derivative up to `order` when all sizes grow together.

    .. math:: \frac1d \frac{d^s L}{dt^s}(0) \to
        \sum \mathrm{coef}\; \rho^k \kappa^{l-k} c^m

    by the planar (genus zero) recursion for the trace of a word Y U,

    .. math:: \phi(Y U) = f \phi(U)
        + g \sum_{U = U_1 Y U_2} \phi(Y U_1) \phi(U_2) ,

    with (f, g) = (1, c) for Y = S and (rho, kappa) for Y = A.

    Args:
        kind: `train` or `population`.
        order: highest derivative.

    Returns:
        One dictionary {(l, k, m): coefficient} a derivative, from the zeroth.

    Cost: about 3 s for order 7.

    Source: spec section 3.1.

    Examples:
        >>> planar_loss("population", 1)[1][(1, 1, 0)]
        Fraction(-4, 1)
    """
    words = loss_words(kind, order)
    return [dict(_planar_table(kind, s)) for s in range(len(words))]


@cache
def _planar_table(kind: str, order: int) -> Planar:
    total: Counter[tuple[int, int, int]] = Counter()
    for word, factor in loss_words(kind, order)[order].items():
        table = _planar(word)
        letters = word.count("A")
        for k, m in zip(*np.nonzero(table), strict=True):
            total[(letters, int(k), int(m))] += factor * table[k, m]
    return {key: Fraction(k, 2) for key, k in sorted(total.items()) if k}


def _shape(word: str) -> tuple[int, int]:
    return word.count("A") + 1, word.count("S") + 1


@cache
def _planar(word: str) -> np.ndarray:
    """Coefficients [k, m] of rho^k kappa^(#A - k) c^m in the trace of `word` over d."""
    out = np.zeros(_shape(word), dtype=object)
    if not word:
        out[0, 0] = 1
        return out
    letter = "S" if "S" in word else "A"
    i = word.index(letter)
    rest = word[i + 1 :] + word[:i]
    k, m = (1, 0) if letter == "A" else (0, 1)
    inner = _planar(canonical(rest))
    out[k : k + inner.shape[0], : inner.shape[1]] += inner
    for j, y in enumerate(rest):
        if y == letter:
            a, b = (
                _planar(canonical(letter + rest[:j])),
                _planar(canonical(rest[j + 1 :])),
            )
            product = _convolve(a, b)
            out[: product.shape[0], m : m + product.shape[1]] += product
    return out


def _convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.zeros(tuple(np.add(a.shape, b.shape) - 1), dtype=object)
    for i, j in zip(*np.nonzero(b), strict=True):
        out[i : i + a.shape[0], j : j + a.shape[1]] += a * b[i, j]
    return out


def planar_numeric(
    kind: str, order: int, rho: float, kappa: float, c: float
) -> np.ndarray:
    """The same leading derivatives at one point, in floating point, (order + 1,).

    Faster than evaluating the polynomials, as each word's trace is one number.

    Raises:
        ValueError: an unknown kind, a negative order, a parameter that is not positive.

    Source: spec section 3.1.

    Examples:
        >>> planar_numeric("train", 1, 1.0, 1.0, 1.0).tolist()
        [0.5, -11.0]
    """
    weight = {"A": (positive("rho", rho), positive("kappa", kappa)), "S": (1.0, c)}
    positive("c", c)
    seen: dict[str, float] = {"": 1.0}

    def trace(word: str) -> float:
        word = canonical(word)
        if word not in seen:
            letter = "S" if "S" in word else "A"
            f, g = weight[letter]
            i = word.index(letter)
            rest = word[i + 1 :] + word[:i]
            value = f * trace(rest)
            for j, y in enumerate(rest):
                if y == letter:
                    value += g * trace(letter + rest[:j]) * trace(rest[j + 1 :])
            seen[word] = value
        return seen[word]

    return np.array(
        [
            sum(k * trace(word) for word, k in words.items()) / 2
            for words in loss_words(kind, order)
        ]
    )
