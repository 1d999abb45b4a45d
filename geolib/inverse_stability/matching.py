"""Matching neurons: the bottleneck assignment and the cost of a rescaled neuron."""

from __future__ import annotations

import numpy as np


def bottleneck_assignment(cost: np.ndarray) -> tuple[float, np.ndarray]:
    r"""The permutation whose largest cost is smallest.

    .. math:: \min_{\pi} \max_i \text{cost}_{i \pi(i)}

    Not the sum assignment: the max-norm of a permuted difference is a maximum.

    Args:
        cost: finite square matrix, shape (m, m).

    Returns:
        the value and the columns assigned to rows 0..m-1.

    Cost: O(log m) bipartite matchings.

    Examples:
        >>> value, columns = bottleneck_assignment(np.array([[1.0, 5.0], [2.0, 5.5]]))
        >>> value, columns.tolist()
        (5.0, [1, 0])
    """
    levels = np.unique(cost)
    floor = max(cost.min(axis=1).max(), cost.min(axis=0).max())
    low, high = int(np.searchsorted(levels, floor)), len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if (_matching(cost, levels[middle]) >= 0).all():
            high = middle
        else:
            low = middle + 1
    return float(levels[low]), _matching(cost, levels[low])


def sum_assignment(cost: np.ndarray) -> tuple[float, np.ndarray]:
    """The permutation of least total cost, and that total."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum()), columns


def _matching(cost: np.ndarray, level: float) -> np.ndarray:
    from scipy.sparse import csr_array  # slow to import
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((cost <= level).astype(np.int8))
    return maximum_bipartite_matching(graph, perm_type="column")


def scale_costs(
    a: np.ndarray, c: np.ndarray, u: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""Distance from neuron (a, c) to the rescalings of neuron (u, w), for all pairs.

    .. math:: \min_{\lambda > 0} \max\bigl(\|a - \lambda u\|_\infty,
        \|c - w / \lambda\|_\infty\bigr)

    For a neuron (u, w) with a zero side, whose fibre is all (u', 0) and (0, w'), it is
    min(‖a‖, ‖c‖), and the returned scale is 0 (keep a) or infinite (keep c).

    Args:
        a, c: inner and outer weights of k neurons, shapes (k, d) and (k, D).
        u, w: those of l neurons, shapes (l, d) and (l, D).

    Returns:
        costs (k, l) and minimizing scales (k, l).

    Cost: 64 bisection steps on the level; each intersects two exact intervals.

    Examples:
        >>> one = np.ones((1, 1))
        >>> scale_costs(one, one, 4 * one, one / 4)
        (array([[0.]]), array([[0.25]]))
    """
    size_a, size_c = np.abs(a).max(axis=1), np.abs(c).max(axis=1)
    dead = np.logical_not(u.any(axis=1) & w.any(axis=1))
    u, w = np.where(dead[:, None], 1.0, u), np.where(dead[:, None], 1.0, w)
    low = np.zeros((len(a), len(u)))
    # Scaling (u, w) to (‖a‖, .) or (., ‖c‖) is admissible, which brackets the level.
    high = np.maximum(
        size_a[:, None] + np.abs(u).max(axis=1),
        size_c[:, None] + np.abs(w).max(axis=1),
    )
    for _ in range(64):
        level = (low + high) / 2
        l, r = _scales(a, c, u, w, level)
        low, high = np.where(l <= r, low, level), np.where(l <= r, level, high)
    l, r = _scales(a, c, u, w, high)
    exact_l, exact_r = _scales(a, c, u, w, low)  # low is attained when it stayed 0
    exact = exact_l <= exact_r
    cost = np.where(exact, low, high)
    scale = np.sqrt(np.where(exact, exact_l, l)) * np.sqrt(np.where(exact, exact_r, r))
    nearest = np.minimum(size_a, size_c)[:, None]
    keep = np.where(size_a >= size_c, 0.0, np.inf)[:, None]
    return np.where(dead, nearest, cost), np.where(dead, keep, scale)


def _scales(
    a: np.ndarray, c: np.ndarray, u: np.ndarray, w: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of scales that keep both sides within `level`."""
    l1, r1 = _interval(a, u, level)
    l2, r2 = _interval(c, w, level)
    tiny, huge = np.finfo(float).tiny, np.finfo(float).max
    l2, r2 = np.maximum(l2, tiny), np.clip(r2, tiny / 2, huge)
    l, r = np.maximum(l1, 1 / r2), np.minimum(r1, 1 / l2)
    return np.where(r2 >= l2, l, 1.0), np.where(r2 >= l2, r, 0.0)


def _interval(
    a: np.ndarray, u: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All lambda with |a_j - lambda u_j| <= level in every coordinate j."""
    low = np.full(level.shape, 1e-300)
    high = np.full(level.shape, 1e300)
    for j in range(a.shape[1]):
        aj, uj = a[:, None, j], np.broadcast_to(u[None, :, j], level.shape)
        zero = uj == 0
        step = np.where(zero, 1.0, np.abs(uj))
        centre = aj * np.sign(uj) / step
        low = np.where(zero, low, np.maximum(low, centre - level / step))
        high = np.where(zero, high, np.minimum(high, centre + level / step))
        high = np.where(zero & (np.abs(aj) > level), -1.0, high)
    return low, high
