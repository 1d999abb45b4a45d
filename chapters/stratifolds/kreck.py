"""Certified lower bounds of the Fisher metric in two collars, by interval arithmetic.

For statistics T with covariance C under p and D = dE[T]/d(eta), the information
inequality gives F >= D^T C^{-1} D. For Hermite polynomials both are polynomials of the
mixing law's moments, so intervals of the coordinates give rigorous bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import comb, factorial
from typing import Any

import numpy as np
from mpmath import iv

Interval = Any


def ends(x: Interval) -> tuple[float, float]:
    """The two ends of an interval; intervals hold doubles, so this is exact."""
    return float(x.a), float(x.b)


def modulus(t: Interval, eps: float) -> tuple[Interval, Interval]:
    """Enclosures of the smooth modulus and of its slope on a cell of [0, eps].

    Where 2t/eps - 1 = r > 0 it is S(r) t + (1 - S(r)) h with the hyperbola h, and
    S' = S(1 - S)(1/r^2 + 1/(1 - r)^2) is largest at r = 1/2, where it is 2. On the
    outer cells f(r)/r^2 with f = exp(-1/r) rises, as r < 1/2 there.
    """
    h = iv.sqrt(t**2 + iv.mpf(eps) ** 2 / 4)
    low, high = ends(2 * t / iv.mpf(eps) - 1)
    if high <= 0:
        return h, t / h
    low, high = max(low, 0.0), min(high, 1.0)
    S = iv.mpf([ends(_rise(low))[0], ends(_rise(high))[1]])
    bend = iv.mpf([0, 2])
    edge = high if low < 0.25 else 1 - low
    if edge < 0.25:
        r = iv.mpf(edge)
        top = iv.exp(-1 / r + 1 / (1 - r)) * (1 / r**2 + 1 / (1 - r) ** 2)
        bend = iv.mpf([0, ends(top)[1]])
    gap = iv.mpf(eps) ** 2 / 4 / (h + t)  # h - t
    return h - S * gap, t / h + S * gap / h - bend * gap * 2 / iv.mpf(eps)


def _rise(r: float) -> Interval:
    """The smooth step S at a point."""
    if r <= 0 or r >= 1:
        return iv.mpf(float(r > 0.5))
    return 1 / (1 + iv.exp(1 / iv.mpf(r) - 1 / (1 - iv.mpf(r))))


def certified(
    bound: Callable[[Interval, Interval], float],
    first: Sequence[float],
    second: Sequence[float],
    goal: float,
    depth: int = 4,
) -> float:
    """The least of a bound over the cells of two axes, halved where it misses a goal."""
    least = float("inf")
    for t, u in product(pairwise(first), pairwise(second)):
        here = bound(iv.mpf(list(t)), iv.mpf(list(u)))
        if here < goal and depth:
            halves = [(a, (a + b) / 2, b) for a, b in (t, u)]
            here = certified(bound, *halves, goal, depth - 1)
        least = min(least, here)
    return least


def tube_floor(eps: float, most: float = 3.0, goal: float = 0.08) -> float:
    """A lower bound of the least Fisher eigenvalue over eps^2 in mixture A's collar.

    It holds for |t| <= eps and |t|_eps <= nu <= most, and is the goal or better where
    halving the cells gets there. Reflection exchanges t and -t.
    """

    def bound(t: Interval, nu: Interval) -> float:
        m, slope = modulus(t, eps)
        if ends(nu)[1] < ends(m)[0]:
            return float("inf")  # inadmissible
        nu = iv.mpf([max(ends(nu)[0], ends(m)[0]), ends(nu)[1]])
        return informed(*_tube_moments(t, m, slope, nu)) / eps**2

    heights = np.geomspace(eps / 2, most, 17).tolist()
    return certified(bound, np.linspace(0, eps, 9).tolist(), heights, goal)


def cap_floor(eps: float, goal: float = 0.045) -> float:
    """A lower bound of the least Fisher eigenvalue in mixture B's cap, v <= eps/2."""

    def bound(v: Interval, z: Interval) -> float:
        return informed(*_cap_moments(v, 2 * v * z))

    width = np.linspace(0, eps / 2, 3).tolist()
    return certified(bound, width, np.linspace(-1, 1, 9).tolist(), goal)


def informed(D: list[list[Interval]], C: list[list[Interval]]) -> float:
    """A lower bound of the least eigenvalue of any F >= D^T C^-1 D.

    For every matrix A also F >= G^T H^-1 G with G = A^T D and H = A^T C A. Let R make
    R^T F R the identity at the middle, and A = C^-1 D R there. Then A^T D R and H are
    near the identity, and R^T F R >= (1 - |A^T D R - I|)^2 / (1 + |H - I|).
    """
    D0, C0 = (np.array([[float(x.mid) for x in row] for row in M]) for M in (D, C))
    solved = np.linalg.solve(C0, D0)
    R = np.linalg.inv(np.linalg.cholesky(D0.T @ solved)).T
    A = solved @ R
    away_G = _distance(_product(_product(A.T, D), R))
    away_H = _distance(_product(_product(A.T, C), A))
    scale = float(np.linalg.norm(R, 2)) * (1 + 1e-9)
    return max(0.0, 1 - away_G) ** 2 / (1 + away_H) / scale**2


def _product(A: Any, B: Any) -> list[list[Interval]]:
    """A product of matrices of numbers or intervals."""
    return [
        [sum(a * B[k][j] for k, a in enumerate(row)) for j in range(len(B[0]))]
        for row in A
    ]


def _distance(M: list[list[Interval]]) -> float:
    """An upper bound of the Frobenius distance from the identity."""
    off = [abs(x - (i == j)) for i, row in enumerate(M) for j, x in enumerate(row)]
    return ends(iv.sqrt(sum(x**2 for x in off)))[1]


def _tube_moments(
    t: Interval, m: Interval, slope: Interval, nu: Interval
) -> tuple[list[list[Interval]], list[list[Interval]]]:
    """dE[He_k]/d(t, nu) and the covariance of He_1, ..., He_4."""
    raw = [iv.mpf(1)] + [(t if k % 2 else m) * nu ** (k - 1) for k in range(1, 9)]
    D = [
        [
            (1 if k % 2 else slope) * nu ** (k - 1),
            (k - 1) * (t if k % 2 else m) * nu ** max(k - 2, 0),
        ]
        for k in range(1, 5)
    ]
    return D, _hermite_covariance(raw, 4)


def _cap_moments(
    v: Interval, y: Interval
) -> tuple[list[list[Interval]], list[list[Interval]]]:
    """dE[He_k]/d(b, v, y) and the covariance of He_1, He_2, He_3."""
    mid = -y / 4
    atoms = [(1 - v / 4, mid), ((2 * v + y) / 16, mid + 2), ((2 * v - y) / 16, mid - 2)]
    raw = [sum(a * c**k for a, c in atoms) for k in range(7)]
    raw[0], raw[1] = iv.mpf(1), iv.mpf(0)  # exactly
    D = []
    for k in (1, 2, 3):
        up, down = (mid + 2) ** k, (mid - 2) ** k
        by_y = (up - down) / 16 - k * raw[k - 1] / 4
        D.append([k * raw[k - 1], (up + down - 2 * mid**k) / 8, by_y])
    return D, _hermite_covariance(raw, 3)


def _hermite_covariance(raw: list[Interval], degree: int) -> list[list[Interval]]:
    """The covariance of He_1, He_2, ... under N(0, 1) * a law with these moments."""
    return [
        [
            sum(
                comb(j, r) * comb(k, r) * factorial(r) * raw[j + k - 2 * r]
                for r in range(min(j, k) + 1)
            )
            - raw[j] * raw[k]
            for k in range(1, degree + 1)
        ]
        for j in range(1, degree + 1)
    ]
