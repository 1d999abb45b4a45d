"""Pairs of networks that attain the constants."""

from __future__ import annotations

from math import sqrt

import numpy as np

from geolib.inverse_stability import ShallowReLU


def expect(holds: object, name: str, wanted: str, got: object) -> None:
    """Refuse an argument by name; a comparison with NaN does not hold."""
    if not holds:
        raise ValueError(f"{name}: expected {wanted}, got {got!r}")


def extremal_pair(
    m: int = 3, delta: float = 1.0, eps: float = 1e-3
) -> tuple[ShallowReLU, ShallowReLU]:
    r"""Two networks of N*_{(3,m,1)} at the largest distance that delta allows.

    .. math:: \operatorname{dist}(\Gamma, \Theta) = s(m)\,\sqrt{\delta}, \qquad
        |R(\Gamma) - R(\Theta)|_{W^{1,\infty}} = \delta

    Around the origin the derivative of the difference takes the values 0, ±δ only:
    two small neurons of opposite sign, which no permutation pairs well, jump by ±2δ,
    and large neurons shared by both networks absorb the jumps. For m > 3 identical
    larger neurons are appended to both.

    Args:
        m: width, at least 1.
        delta: W^{1,inf} distance of the two functions.
        eps: ratio of the last two inner weights to the first; small and positive.

    Raises:
        ValueError: non-positive arguments, or eps above 0.1.

    Source: :eq:`drv-inverse_stability-pair` (derivations).

    Examples:
        >>> f, g = extremal_pair(1)
        >>> f.A[:, 0], g.A[:, 0], f.C, g.C
        (array([1.]), array([-1.]), array([[1.]]), array([[-1.]]))
    """
    good = m >= 1 and 0 < delta < np.inf and 0 < eps <= 0.1
    wanted = "m >= 1, delta > 0 and eps in (0, 0.1]"
    expect(good, "m, delta, eps", wanted, (m, delta, eps))
    two, five = sqrt(2.0), sqrt(5.0)
    # One row a neuron: size, sign of its first weight, slope over eps, sign of c.
    shapes: dict[int, tuple[list[tuple], list[tuple]]] = {
        1: ([(1, 1, 1, 1)], [(1, -1, 1, -1)]),
        2: ([(two, -1, 2, 1), (2, -1, 1, 1)], [(1, 1, 1, -1), (five, -1, 1, 1)]),
        3: (
            [(two, 1, 2, 1), (2, -1, 1, 1), (2, 1, 1, 1)],
            [(two, -1, 2, -1), (five, -1, 1, 1), (five, 1, 1, 1)],
        ),
    }
    left, right = shapes[min(m, 3)]
    # Distinct from all slopes above, and 3 apart from every size and each other.
    extra: list[tuple] = [(3.0 * (i + 2), 1, 3 + i, 1) for i in range(m - 3)]
    root = sqrt(delta)
    return _build(left + extra, eps, root), _build(right + extra, eps, root)


def _build(rows: list[tuple], eps: float, root: float) -> ShallowReLU:
    t, sign, slope, outer = np.array(rows, dtype=np.float64).T
    A = np.column_stack([sign, eps * slope, eps * slope]) * t[:, None]
    return ShallowReLU(root * A, root * (t * outer)[None, :])


def lipschitz_pair(
    delta: float = 1e-3, eps: float = 0.1
) -> tuple[ShallowReLU, ShallowReLU]:
    r"""Two networks of N*_{(3,3,2)} at nearly three times the distance of delta.

    .. math:: \mu = 1, \qquad \operatorname{dist}(\Gamma, \Theta)
        = 1 - \frac{1 - 2\delta}{\sqrt{1 + 2\delta}} = 3\delta + O(\delta^2)

    All kinks are matched and no neuron is small, the regime in which distances are
    linear in delta. The middle one of three neurons grows while one of its outer weights
    shrinks; its jump of 2 delta is shared out between its two neighbours.

    Args:
        delta: W^{1,inf} distance of the two functions, in (0, 1/2).
        eps: tilt of the neighbours' directions, in (0, 1/2).

    Raises:
        ValueError: arguments outside these intervals.

    Source: :eq:`drv-inverse_stability-lipschitz-pair` (derivations).

    Examples:
        >>> f, g = lipschitz_pair(1e-4)
        >>> float(round(abs(f.C - g.C).max() / 1e-4, 3))
        3.0
    """
    good = 0 < delta < 0.5 and 0 < eps < 0.5
    expect(good, "delta, eps", "both in (0, 1/2)", (delta, eps))
    rows = np.array([[1.0, 0.5 + s * eps, 0.5 - s * eps] for s in (-1, 0, 1)])
    grown = 1 + 2 * delta
    before = np.array([[2.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
    after = before.copy()
    after[0] = np.sqrt([4 - delta, grown, 4 - delta])
    after[2, 1] = (2 * delta - 1) / grown
    pair = [ShallowReLU(w[0][:, None] * rows, w[0] * w[1:]) for w in (before, after)]
    return pair[0], pair[1]
