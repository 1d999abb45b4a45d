"""How far apart two networks are in both spaces, and what one implies of the other."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from geolib.core.validation import expect
from geolib.inverse_stability.collinear import TOLERANCE, parallel_classes, unit_rows
from geolib.inverse_stability.distance import closest_parametrization
from geolib.inverse_stability.kinks import ROUNDING, kinks
from geolib.inverse_stability.shallow_relu import ShallowReLU, same_architecture
from geolib.inverse_stability.w1inf_seminorm import Seminorm, w1inf_seminorm

SHARP = 2 * sqrt(2.0)


def sharp_constant(m: int) -> float:
    r"""The best constant of inverse stability for width m.

    .. math:: s(1) = 2, \quad s(2) = 1 + \sqrt2, \quad s(m) = 2\sqrt2 \ (m \ge 3)

    Args:
        m: width, at least 1.

    Raises:
        ValueError: a width below 1.

    Source: :eq:`drv-inverse_stability-sharp` (derivations); the constant of
    Elbraechter, Berner and Grohs 2019 is 4.

    Examples:
        >>> [round(sharp_constant(m), 4) for m in (1, 2, 3, 4)]
        [2.0, 2.4142, 2.8284, 2.8284]
    """
    expect(m >= 1, "m", "a positive width", m)
    return (2.0, 1 + sqrt(2.0), SHARP)[min(m, 3) - 1]


@dataclass(frozen=True)
class Certificate:
    """What is known about a pair of networks.

    Attributes:
        delta: W^{1,inf} distance of the functions, exact or bracketed.
        half_jump: half the largest jump of the difference, a lower bound of delta.
        distance: max-norm distance of the parameters up to permutation.
        ratio: distance over the square root of the best lower bound of delta.
        matched: hyperplane directions that both networks have.
        unmatched: directions of only one of them.
        smallest: mu, the smallest ‖a_i‖ of a non-zero neuron of either.
        defects: hypotheses of the theorem that fail (empty when it applies).
        bound: the theorem's bound of the distance; infinite when it does not apply.
        delta_at_least: distance^2 / 8, what the theorem says of the functions.
        tolerance: directions closer than this were treated as equal.
    """

    delta: Seminorm
    half_jump: float
    distance: float
    ratio: float
    matched: int
    unmatched: int
    smallest: float
    defects: tuple[str, ...]
    bound: float
    delta_at_least: float
    tolerance: float

    @property
    def applies(self) -> bool:
        """Whether the hypotheses of the theorem hold for this pair."""
        return not self.defects

    @property
    def holds(self) -> bool:
        """Whether the distance obeys the bound (up to rounding)."""
        return self.distance <= self.bound * (1 + 1e-9) + 1e-12


def certify(
    f: ShallowReLU, g: ShallowReLU, method: str = "auto", *, tol: float = TOLERANCE
) -> Certificate:
    r"""Measure a pair in both spaces and apply the sharp inverse stability theorem.

    .. math:: \operatorname{dist}(f, g) \le \min\bigl(2\sqrt2\,\sqrt{\delta_J},\
        s(m)\,\sqrt{\delta}\bigr), \qquad \delta \ge \operatorname{dist}(f, g)^2 / 8

    The hypotheses are checked, not assumed: both networks balanced, no parallel
    neurons, all inner weights of both in one open half-space.

    Args:
        f, g: the networks; the narrower one is padded with zero neurons.
        method: how to compute delta, see `w1inf_seminorm`.
        tol: directions closer than this are equal, in [0, 1).

    Raises:
        ValueError: unequal dimensions, or as `w1inf_seminorm`.

    Cost: that of `w1inf_seminorm` and one bottleneck assignment.

    Source: :eq:`drv-inverse_stability-sharp` (derivations), which sharpens the
    (4, 1/2) inverse stability of Elbraechter, Berner and Grohs 2019.

    Examples:
        >>> f = ShallowReLU([[1.0, 1.0, 1.0]], [[1.0]])
        >>> c = certify(f, ShallowReLU([[2.0, 2.0, 2.0]], [[2.0]]))
        >>> c.applies, c.distance, c.delta.value, c.half_jump, round(c.bound, 4)
        (True, 1.0, 3.0, 1.5, 3.4641)
    """
    same_architecture(f, g)
    delta = w1inf_seminorm(f - g, method, tol=tol)
    # Only directions that agree up to rounding give a jump that the function has.
    half_jump = kinks(f - g, min(tol, ROUNDING)).half_jump
    distance = closest_parametrization(f, g).distance
    matched, unmatched = _count_matches(f, g, tol)
    defects = _defects("f", f, tol) + _defects("g", g, tol) + _half_space_defect(f, g)
    low = max(delta.lower, half_jump)
    sharp = sharp_constant(max(f.m, g.m)) * sqrt(delta.upper)
    sizes = np.concatenate([np.abs(n.A).max(axis=1) for n in (f, g)])
    return Certificate(
        delta=delta,
        half_jump=half_jump,
        distance=distance,
        ratio=distance / sqrt(low) if low > 0 else (np.inf if distance > 0 else 0.0),
        matched=matched,
        unmatched=unmatched,
        smallest=float(sizes[sizes > 0].min(initial=np.inf)),
        defects=tuple(defects),
        bound=np.inf if defects else min(SHARP * sqrt(half_jump), sharp),
        delta_at_least=0.0 if defects else distance**2 / 8,
        tolerance=tol,
    )


def _count_matches(f: ShallowReLU, g: ShallowReLU, tol: float) -> tuple[int, int]:
    rows = [n.A[n.live] for n in (f, g)]
    if not len(rows[0]) + len(rows[1]):
        return 0, 0
    labels, _ = parallel_classes(unit_rows(np.vstack(rows)), tol, opposite=True)
    mine, theirs = set(labels[: len(rows[0])]), set(labels[len(rows[0]) :])
    return len(mine & theirs), len(mine ^ theirs)


def _defects(name: str, net: ShallowReLU, tol: float) -> list[str]:
    a, c = np.abs(net.A).max(axis=1), np.abs(net.C).max(axis=0)
    found = []
    if (np.abs(a - c) > 1e-9 * np.maximum(a, c)).any():
        found.append(f"{name} is not balanced")
    live = net.A[a > 0]
    if len(live) and parallel_classes(unit_rows(live), tol)[0].max() + 1 < len(live):
        found.append(f"{name} has parallel neurons")
    return found


def _half_space_defect(f: ShallowReLU, g: ShallowReLU) -> list[str]:
    """Whether some v has <a_i, v> > 0 for all non-zero inner weights of both."""
    rows = unit_rows(np.vstack([f.A, g.A]))
    rows = rows[rows.any(axis=1)]
    if not len(rows) or (rows[:, -1] > 0).all():
        return []
    from scipy.optimize import linprog  # slow to import

    # Maximize the margin t of a direction v in the unit cube.
    d = rows.shape[1]
    found = linprog(
        np.append(np.zeros(d), -1.0),
        A_ub=np.column_stack([-rows, np.ones(len(rows))]),
        b_ub=np.zeros(len(rows)),
        bounds=[(-1, 1)] * d + [(None, 1)],
    )
    inside = found.status == 0 and found.x[-1] > 1e-9
    return [] if inside else ["f and g do not lie in one open half-space"]
