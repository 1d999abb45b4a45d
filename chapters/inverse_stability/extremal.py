"""Pairs of networks that attain the constants."""

from __future__ import annotations

from math import sqrt

import numpy as np

from geolib.inverse_stability import BiasedReLU, ShallowReLU


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


# Jumps of the difference in units of delta, in the order of the angles, and which of
# them are lonely: the first in the second network, the second in the first.
IN_QUADRANT: dict[int, tuple[tuple[int, ...], tuple[int, int]]] = {
    2: ((1, -1, 1), (0, 2)),
    3: ((-1, 2, -2, 1), (1, 3)),
    4: ((-1, 2, -2, 2, -1), (1, 3)),
}


def quadrant_pair(
    m: int, delta: float = 1.0, eps: float = 1e-2
) -> tuple[ShallowReLU, ShallowReLU]:
    r"""Two networks of N*_{(2,m,1)} at the largest distance that delta allows.

    .. math:: \operatorname{dist}(\Gamma, \Theta) = s(m - 1)\,\sqrt{\delta}
        \quad (m \ge 2), \qquad \frac{2 \sqrt\delta}{\sqrt{1 + \varepsilon}}
        \quad (m = 1)

    The kinks are crossed in the order of their slopes, and the derivative of the
    difference ends where it began, so that a neuron more than in the half-plane is
    needed to bring it back. For m > 4 identical neurons are appended to both.

    Args:
        m: width, at least 1.
        delta: W^{1,inf} distance of the two functions.
        eps: step of the slopes, small and positive.

    Raises:
        ValueError: non-positive arguments, or eps above 0.1.

    Source: :eq:`drv-inverse_stability-quadrant` (derivations).

    Examples:
        >>> f, g = quadrant_pair(2)
        >>> f.C, g.C
        (array([[ 4., -1.]]), array([[1.        , 3.87298335]]))
    """
    good = m >= 1 and 0 < delta < np.inf and 0 < eps <= 0.1
    wanted = "m >= 1, delta > 0 and eps in (0, 0.1]"
    expect(good, "m, delta, eps", wanted, (m, delta, eps))
    if m == 1:
        t = sqrt(delta / (1 + eps))
        f, g = ([[t * eps, t]], [[-t]]), ([[t, t * eps]], [[t]])
        return ShallowReLU(*f), ShallowReLU(*g)
    jumps, lonely = IN_QUADRANT[min(m, 4)]
    size, sign, slope = np.zeros((3, 2, len(jumps) + max(m - 4, 0)))
    size[:] = 3.0 + np.arange(size.shape[1])
    slope[:] = 1.0 + np.arange(size.shape[1])
    sign[:] = 1.0
    size[1, : len(jumps)] = np.sqrt(size[0, : len(jumps)] ** 2 + jumps)
    sign[0, lonely[1]] = -1.0
    for k in (0, 1):
        size[k, lonely[1 - k]] = sqrt(jumps[lonely[1 - k]])
    keep = [np.arange(size.shape[1]) != lonely[k] for k in (0, 1)]
    pair = []
    for t, s, p, use in zip(size * sqrt(delta), sign, slope, keep, strict=True):
        rows = np.column_stack([np.ones(len(p)), eps * p]) * t[:, None]
        pair.append(ShallowReLU(rows[use], (t * s)[None, use]))
    return pair[0], pair[1]


def angle_pair(theta: float) -> tuple[ShallowReLU, ShallowReLU]:
    """Two networks of N*_{(2,4,1)} whose difference is two narrow hats, one for each
    of their lonely neurons: five kinks at an angle of theta, and zero elsewhere.

    Args:
        theta: angle in radians, in (0, 0.3].

    Raises:
        ValueError: an angle outside the interval.

    Source: :eq:`drv-inverse_stability-angle` (derivations).

    Examples:
        >>> f, g = angle_pair(0.01)
        >>> bool(abs((f - g)([[1.0, 0.3]])).max() < 1e-14)
        True
    """
    expect(0 < theta <= 0.3, "theta", "an angle in (0, 0.3]", theta)
    turn = theta * (np.arange(5) + 0.5)
    normals = np.column_stack([np.cos(turn), np.sin(turn)])
    top = normals.max(axis=1)
    jumps = np.array([-1.0, 2 * np.cos(theta), -2.0, 2 * np.cos(theta), -1.0])
    size = np.array([3.0, 0.0, 4.0, 0.0, 5.0])  # squared sizes grow by the jumps
    before, after = size**2, size**2 + jumps * top
    before[3] = jumps[3] * top[3]
    pair = []
    for square, lonely in ((before, 3), (after, 1)):
        use = [0, lonely, 2, 4]
        t = np.sqrt(square[use])
        sign = np.where((np.array(use) == 3), -1.0, 1.0)
        pair.append(ShallowReLU(normals[use] / top[use, None] * t[:, None], [t * sign]))
    return pair[0], pair[1]


def interval_pair(delta: float = 1.0) -> tuple[BiasedReLU, BiasedReLU]:
    """Two networks of three neurons on (-1, 1) that differ by 2 sqrt(2 delta).

    Their kinks are at -0.95 (shared), -0.9, 0 (shared) and 0.95. The derivative of the
    difference is 0, -delta, delta, -delta, delta from left to right.

    Raises:
        ValueError: a delta that is not positive.

    Source: :eq:`drv-inverse_stability-box-bound` (derivations).

    Examples:
        >>> f, g = interval_pair()
        >>> f.C.round(3), g.C.round(3)
        (array([[ 4.   ,  5.   , -1.414]]), array([[3.873, 4.796, 1.414]]))
    """
    expect(0 < delta < np.inf, "delta", "a positive number", delta)
    root = sqrt(delta)
    before = np.array([4.0, 5.0, sqrt(2.0)]) * root
    after = np.array([sqrt(15.0), sqrt(23.0), sqrt(2.0)]) * root
    signs = np.array([1.0, 1.0, -1.0])
    at = np.array([-0.95, 0.0, 0.95]), np.array([-0.95, 0.0, -0.9])
    f = BiasedReLU(before[:, None], -at[0] * before, (signs * before)[None, :])
    return f, BiasedReLU(after[:, None], -at[1] * after, after[None, :])


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
