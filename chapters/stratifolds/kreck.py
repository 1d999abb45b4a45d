"""Certified lower bounds of the Fisher metric in two collars, by interval arithmetic.

For statistics T with covariance C under p and D = dE[T]/d(eta), the information
inequality gives F >= D^T C^{-1} D. For T = x, x^2, ... both are polynomials of the
mixing law's moments, so intervals of the coordinates give rigorous bounds.
"""

from __future__ import annotations

from math import comb, factorial
from typing import Any

from mpmath import iv

Interval = Any


def cells(low: float, high: float, count: int) -> list[Interval]:
    """Adjacent intervals that cover [low, high]."""
    ends = [low + (high - low) * k / count for k in range(count)] + [high]
    return [iv.mpf([ends[k], ends[k + 1]]) for k in range(count)]


def ends(x: Interval) -> tuple[float, float]:
    """The two ends of an interval; intervals hold doubles, so this is exact."""
    return float(x.a), float(x.b)


def tube_floor(eps: float, most: float = 3.0, count: int = 40) -> float:
    """A lower bound of the least Fisher eigenvalue over eps^2 in mixture A's collar.

    It holds for |t| <= eps and |t|_eps <= nu <= most, and uses of the smooth modulus m
    only max(|t|, eps/2) <= m <= (t^2 + eps^2/4)^(1/2) and |dm/dt| <= 1, the slope of
    the hyperbola where that is the modulus. With T = x, x^2 the bound is det/trace of
    D^T C^{-1} D.
    """
    least = float("inf")
    for t in cells(0.0, eps, count):  # reflection exchanges t and -t
        low = max(ends(t)[0], eps / 2)
        hyperbola = iv.sqrt(t**2 + iv.mpf(eps) ** 2 / 4)
        m = iv.mpf([low, ends(hyperbola)[1]])
        slope = t / hyperbola if ends(t)[1] <= eps / 2 else iv.mpf(1)
        for nu in cells(eps / 2, most, count):
            first, last = ends(nu)
            if last < low:
                continue  # inadmissible
            nu = iv.mpf([max(first, low), last])
            var = 1 + m * nu - t**2
            cross = t * (2 + nu * (nu - m))  # >= 0, as nu >= m
            square = 2 + 4 * m * nu + m * nu**3 - (m * nu) ** 2
            # an upper bound: the sign of the middle term is not used
            move = slope * nu
            trace = square + 2 * cross * move + var * (move**2 + m**2)
            least = min(least, ends(m**2 / trace / iv.mpf(eps) ** 2)[0])
    return least


def cap_floor(eps: float, count: int = 12) -> float:
    """A lower bound of the least Fisher eigenvalue in mixture B's cap, v <= eps/2.

    With T = He_1, He_2, He_3 around b; of three eigenvalues the least is at least
    4 det/trace^2.
    """
    least = float("inf")
    for v in cells(0.0, eps / 2, count):
        for z in cells(-1.0, 1.0, count):
            D, C = _cap_moments(v, 2 * v * z)
            adjugate, det = _adjugate(C)
            gram = [
                [sum(D[i][k] * D[j][k] for k in range(3)) for j in range(3)]
                for i in range(3)
            ]
            trace = sum(gram[i][j] * adjugate[i][j] for i in range(3) for j in range(3))
            bound = 4 * _adjugate(D)[1] ** 2 * det / trace**2
            least = min(least, ends(bound)[0])
    return least


def _cap_moments(v: Interval, y: Interval) -> tuple[list[list[Interval]], ...]:
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
    C = [
        [
            sum(
                comb(j, r) * comb(k, r) * factorial(r) * raw[j + k - 2 * r]
                for r in range(min(j, k) + 1)
            )
            - raw[j] * raw[k]
            for k in (1, 2, 3)
        ]
        for j in (1, 2, 3)
    ]
    return D, C


def _adjugate(A: list[list[Interval]]) -> tuple[list[list[Interval]], Interval]:
    """The adjugate and the determinant of a 3 by 3 matrix."""

    def minor(i: int, j: int) -> Interval:
        (a, b), (c, d) = (
            [A[p][q] for q in range(3) if q != j] for p in range(3) if p != i
        )
        return (-1) ** (i + j) * (a * d - b * c)

    adjugate = [[minor(j, i) for j in range(3)] for i in range(3)]
    return adjugate, sum(A[0][k] * adjugate[k][0] for k in range(3))
