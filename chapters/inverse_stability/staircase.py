"""A one-dimensional space of functions in which almost optimality can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.files import expect


@dataclass(frozen=True, eq=False)
class Staircase:
    r"""A function on [0, 1] with f(0) = 0 and a piecewise constant derivative.

    .. math:: f'(x) = s_i \text{ for } b_{i-1} < x < b_i, \qquad
        |f|_{W^{1,\infty}} = \max_i |s_i|

    Attributes:
        breaks: interior break points, increasing, shape (n,).
        slopes: the values of f', shape (n + 1,).

    Raises:
        ValueError: shapes that do not fit, break points that do not increase inside
            (0, 1), slopes that are not finite.

    Source: :eq:`drv-inverse_stability-staircase` (derivations).

    Examples:
        >>> f = Staircase([0.25, 0.5], [0.0, 1.0, 4.0])
        >>> f.best_approximation(1)[1]
        0.5
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

    def best_approximation(self, pieces: int) -> tuple[Staircase, float]:
        r"""The nearest staircase with at most `pieces` breaks, and its distance; exact.

        .. math:: \min_{h \in \Omega_m} |f - h|_{W^{1,\infty}}

        A level e is feasible when greedily grown runs of slopes with range at most 2e
        number at most m + 1. The smallest feasible level is half the range of some run;
        all of these are tried by bisection. Mid-range values do not increase the total
        variation.

        Raises:
            ValueError: a negative number of breaks.

        Cost: O(n^2) candidate levels for n slopes and O(log n) greedy passes.
        """
        expect(pieces >= 0, "pieces", "a non-negative number", pieces)
        s = self.slopes
        rows = np.triu(np.tile(s, (len(s), 1)))
        high = np.maximum.accumulate(rows + _lower(s), axis=1)
        low = np.minimum.accumulate(rows - _lower(s), axis=1)
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
        breaks = np.array([self.breaks[i - 1] for i, _ in runs[1:]])
        return Staircase(breaks, values), float(levels[first])

    def realization_move(
        self, target: Staircase, radius: float, pieces: int
    ) -> Staircase:
        r"""The step from this local minimum in the proof of almost optimality.

        .. math:: \lambda = \min\Bigl(1, \frac{r'}{2|g - g_*|}\Bigr), \quad
            f = (1 - \lambda) g_* + \lambda g, \quad
            h = \operatorname*{arg\,min}_{\Omega_m} |f - h|

        For a convex, c-Lipschitz loss,
        :math:`L(h) \le (1 - \lambda) L(g_*) + \lambda L(g) + c\,\eta`. Here g_* is
        this function, minimal within the radius r', g the target, and m = `pieces`.

        Raises:
            ValueError: a radius that is not positive.

        Examples:
            >>> flat, steep = Staircase([], [0.0]), Staircase([], [4.0])
            >>> flat.realization_move(steep, 2.0, 3).slopes
            array([1.])
        """
        expect(radius > 0, "radius", "a positive number", radius)
        gap = self.distance(target)
        weight = min(1.0, radius / (2 * gap)) if gap > 0 else 1.0
        return self.combine(target, weight).best_approximation(pieces)[0]


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
