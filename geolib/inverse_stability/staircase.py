"""A one-dimensional test bed of almost optimality: staircase derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Staircase:
    r"""A function on [0, 1] with f(0) = 0 and a piecewise constant derivative.

    .. math:: f'(x) = s_i \text{ for } b_{i-1} < x < b_i, \qquad
        |f|_{W^{1,\infty}} = \max_i |s_i|

    Attributes:
        breaks: interior break points, increasing, shape (n,).
        slopes: the values of f', shape (n + 1,).
    """

    breaks: np.ndarray
    slopes: np.ndarray

    def __post_init__(self) -> None:
        b, s = (np.asarray(v, dtype=np.float64) for v in (self.breaks, self.slopes))
        if b.ndim != 1 or s.shape != (len(b) + 1,):
            raise ValueError(
                f"breaks, slopes: expected (n,) and (n + 1,), got {b.shape}, {s.shape}"
            )
        edges = np.concatenate([[0.0], b, [1.0]])
        if not (np.isfinite(s).all() and (np.diff(edges) > 0).all()):
            raise ValueError("breaks: expected increasing points inside (0, 1)")
        object.__setattr__(self, "breaks", b)
        object.__setattr__(self, "slopes", s)

    @property
    def variation(self) -> float:
        """Total variation of the derivative."""
        return float(np.abs(np.diff(self.slopes)).sum())

    def at(self, x: np.ndarray) -> np.ndarray:
        """Derivative at points x that are not break points."""
        return self.slopes[np.searchsorted(self.breaks, x)]

    def combine(self, other: Staircase, weight: float) -> Staircase:
        """(1 - weight) f + weight g, on the union of the breaks."""
        breaks = np.union1d(self.breaks, other.breaks)
        edges = np.concatenate([[0.0], breaks, [1.0]])
        middle = (edges[1:] + edges[:-1]) / 2
        mixed = (1 - weight) * self.at(middle) + weight * other.at(middle)
        return Staircase(breaks, mixed)

    def distance(self, other: Staircase) -> float:
        """The W^{1,inf} distance."""
        edges = np.concatenate([[0.0], np.union1d(self.breaks, other.breaks), [1.0]])
        middle = (edges[1:] + edges[:-1]) / 2
        return float(np.abs(self.at(middle) - other.at(middle)).max())


def best_approximation(f: Staircase, pieces: int) -> tuple[Staircase, float]:
    r"""The nearest staircase with at most `pieces` breaks, and its distance; exact.

    .. math:: \min_{h \in \Omega_m} |f - h|_{W^{1,\infty}}

    A level e is feasible when greedily grown runs of slopes with range at most 2e
    number at most m + 1. The smallest feasible level is half the range of some run;
    all of these are tried by bisection. Mid-range values do not increase the total
    variation.

    Cost: O(n^2) candidate levels for n slopes and O(log n) greedy passes.

    Examples:
        >>> f = Staircase(np.array([0.25, 0.5]), np.array([0.0, 1.0, 4.0]))
        >>> best_approximation(f, 1)[1]
        0.5
    """
    if pieces < 0:
        raise ValueError(f"pieces: expected a non-negative number, got {pieces}")
    s = f.slopes
    high = np.maximum.accumulate(np.triu(np.tile(s, (len(s), 1))) + _lower(s), axis=1)
    low = np.minimum.accumulate(np.triu(np.tile(s, (len(s), 1))) - _lower(s), axis=1)
    levels = np.unique(np.triu(high - low) / 2)
    first, last = 0, len(levels) - 1
    while first < last:
        middle = (first + last) // 2
        if len(_runs(s, levels[middle])) <= pieces + 1:
            last = middle
        else:
            first = middle + 1
    runs = _runs(s, levels[first])
    values = np.array([(s[i:j].max() + s[i:j].min()) / 2 for i, j in runs])
    breaks = np.array([f.breaks[i - 1] for i, _ in runs[1:]])
    return Staircase(breaks, values), float(levels[first])


def _lower(s: np.ndarray) -> np.ndarray:
    """Minus infinity below the diagonal, so that runs start there."""
    return np.where(np.tri(len(s), k=-1, dtype=bool), -np.inf, 0.0)


def _runs(s: np.ndarray, level: float) -> list[tuple[int, int]]:
    """Greedy runs of slopes whose range is at most 2 level."""
    runs, start = [], 0
    low = high = s[0]
    for i, value in enumerate(s):
        low, high = min(low, value), max(high, value)
        if (high - low) / 2 > level:
            runs.append((start, i))
            start, low, high = i, value, value
    return [*runs, (start, len(s))]


def realization_move(
    minimum: Staircase, target: Staircase, radius: float, pieces: int
) -> Staircase:
    r"""The step that the proof of almost optimality takes from a local minimum.

    .. math:: \lambda = \min\Bigl(1, \frac{r'}{2|g - g_*|}\Bigr), \quad
        f = (1 - \lambda) g_* + \lambda g, \quad
        h = \operatorname*{arg\,min}_{\Omega_m} |f - h|

    For a convex, c-Lipschitz loss,
    :math:`L(h) \le (1 - \lambda) L(g_*) + \lambda L(g) + c\,\eta`.

    Args:
        minimum, target: g_* and g.
        radius: r', within which g_* is minimal.
        pieces: m, the number of breaks that the class allows.

    Source: Theorem 1.3 of the paper as recalled; the proof is this book's.

    Examples:
        >>> flat = Staircase(np.array([]), np.array([0.0]))
        >>> steep = Staircase(np.array([]), np.array([4.0]))
        >>> realization_move(flat, steep, 2.0, 3).slopes
        array([1.])
    """
    if not radius > 0:
        raise ValueError(f"radius: expected a positive number, got {radius!r}")
    gap = minimum.distance(target)
    weight = min(1.0, radius / (2 * gap)) if gap > 0 else 1.0
    return best_approximation(minimum.combine(target, weight), pieces)[0]
