"""Distances in parameter space, up to the symmetries of the realization map."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from geolib.core.validation import expect
from geolib.inverse_stability.arrangement import all_signs
from geolib.inverse_stability.shallow_relu import ShallowReLU, same_architecture

MAX_FLIPS = 12
GAUGES = ("permutation", "scale", "sign")


@dataclass(frozen=True, eq=False)
class Closest:
    """The parametrization of g nearest to f within a gauge orbit.

    Attributes:
        distance: its distance to f.
        net: the parametrization itself: R(net) = R(g); its neuron i answers neuron i
            of f.
    """

    distance: float
    net: ShallowReLU


def parameter_distance(
    f: ShallowReLU, g: ShallowReLU, gauge: Annotated[str, GAUGES] = "permutation"
) -> float:
    r"""Distance from f to the parametrizations of R(g) in one gauge orbit.

    .. math:: \operatorname{dist}(f, g) = \min_{T \in \text{gauge}}\,
        \|f - T g\|_\infty

    Gauges, each containing the one before: `permutation` of neurons; `scale`, with
    (a, c) -> (λ a, c / λ) for λ > 0; `sign`, with the flips a_i -> -a_i for i in a set
    F with :math:`\sum_F c_i a_i^T = 0`, which leave the function as it is. It is the
    whole fibre when the lines of g are distinct and g has no zero neuron. The narrower
    network is padded with zero neurons.

    Args:
        f: the fixed parameters.
        g: the network whose parametrizations compete.
        gauge: `permutation`, `scale` or `sign`.

    Raises:
        ValueError: unknown gauge, unequal dimensions, more than 12 neurons
            with gauge `sign`.

    Cost: O(m^2 (d + D)) and O(log m) matchings; `sign` tests 2^m sets.

    Source: the distance of Elbraechter, Berner and Grohs 2019, definition of inverse
    stability; the fibres: :eq:`drv-inverse_stability-fibre` (derivations).

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0]], [[4.0]])
        >>> g = ShallowReLU([[2.0, 0.0]], [[2.0]])
        >>> parameter_distance(f, g), parameter_distance(f, g, "scale")
        (2.0, 0.0)
    """
    return closest_parametrization(f, g, gauge).distance


def closest_parametrization(
    f: ShallowReLU, g: ShallowReLU, gauge: Annotated[str, GAUGES] = "permutation"
) -> Closest:
    """Find the parametrization of R(g) in a gauge orbit that is nearest to f.

    Args:
        f, g, gauge: as in `parameter_distance`.

    Returns:
        a `Closest` with the distance and the network.

    Raises:
        ValueError: as `parameter_distance`.

    Cost: as `parameter_distance`.

    Source: :eq:`drv-inverse_stability-fibre` (derivations).

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0]], [[4.0]])
        >>> g = ShallowReLU([[2.0, 0.0]], [[2.0]])
        >>> closest_parametrization(f, g, "scale").net.A
        array([[1., 0.]])
    """
    same_architecture(f, g)
    m = max(f.m, g.m)
    f, g = f.pad(m), g.pad(m)
    if gauge == "permutation":
        return _permuted(f, g)
    if gauge == "scale":
        return _rescaled(f, g, scale_costs(f.A, f.C.T, g.A, g.C.T))
    return _flipped(f, g)


def _permuted(f: ShallowReLU, g: ShallowReLU) -> Closest:
    theta = [np.column_stack([n.A, n.C.T]) for n in (f, g)]
    gap = np.abs(theta[0][:, None] - theta[1][None, :])
    value, order = bottleneck_assignment(gap.max(axis=2))
    return Closest(value, ShallowReLU(g.A[order], g.C[:, order]))


def _rescaled(
    f: ShallowReLU, g: ShallowReLU, costs: tuple[np.ndarray, np.ndarray]
) -> Closest:
    value, order = bottleneck_assignment(costs[0])
    scale = costs[1][np.arange(f.m), order]
    keep_a, keep_c = scale == 0.0, np.isinf(scale)
    factor = np.where(keep_a | keep_c, 1.0, scale)
    A, C = g.A[order] * factor[:, None], g.C[:, order] / factor
    A[keep_a], C[:, keep_a] = f.A[keep_a], 0.0
    A[keep_c], C[:, keep_c] = 0.0, f.C[:, keep_c]
    return Closest(value, ShallowReLU(A, C))


def _flipped(f: ShallowReLU, g: ShallowReLU) -> Closest:
    """Minimum over all sets F of flips that leave the function unchanged."""
    expect(f.m <= MAX_FLIPS, "gauge", f"at most {MAX_FLIPS} neurons for 'sign'", f.m)
    sets = all_signs(f.m) > 0
    lifted = np.einsum("om,md->mod", g.C, g.A).reshape(f.m, -1)
    silent = np.abs(sets @ lifted).max(axis=1) <= 1e-12 * np.abs(lifted).max()
    plus = scale_costs(f.A, f.C.T, g.A, g.C.T)
    minus = scale_costs(f.A, f.C.T, -g.A, g.C.T)
    found = []
    for flips in sets[silent]:  # the empty set is one of them
        turned = ShallowReLU(np.where(flips[:, None], -g.A, g.A), g.C)
        costs = [np.where(flips, q, p) for p, q in zip(plus, minus, strict=True)]
        found.append(_rescaled(f, turned, (costs[0], costs[1])))
    return min(found, key=lambda c: c.distance)


def bottleneck_assignment(cost: np.ndarray) -> tuple[float, np.ndarray]:
    r"""The permutation whose largest cost is smallest.

    .. math:: \min_{\pi} \max_i \text{cost}_{i \pi(i)}

    Not the sum assignment: the max-norm of a permuted difference is a maximum.

    Args:
        cost: finite square matrix, shape (m, m).

    Returns:
        the value and the columns assigned to rows 0..m-1.

    Cost: O(log m) matchings of O(m^3) at worst.

    Source: :eq:`drv-inverse_stability-bottleneck` (derivations).

    Examples:
        >>> value, columns = bottleneck_assignment(np.array([[1.0, 5.0], [2.0, 5.5]]))
        >>> value, columns.tolist()
        (5.0, [1, 0])
    """
    levels = np.unique(cost)
    floor = max(cost.min(axis=1).max(), cost.min(axis=0).max())
    low, high = int(np.searchsorted(levels, floor)), len(levels) - 1
    enough = lambda level: bool((_matching(cost, level) >= 0).all())  # noqa: E731
    level = levels[bisect_left(levels, True, low, high, key=enough)]
    return float(level), _matching(cost, level)


def _matching(cost: np.ndarray, level: float) -> np.ndarray:
    """As many rows as possible get a column of at most this cost, the others -1."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    allowed = cost <= level
    rows, columns = linear_sum_assignment(~allowed)
    return np.where(allowed[rows, columns], columns, -1)


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

    Source: :eq:`drv-inverse_stability-scale` (derivations).

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
        size_a[:, None] + np.abs(u).max(axis=1), size_c[:, None] + np.abs(w).max(axis=1)
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
    zero = u == 0
    step = np.where(zero, 1.0, u)
    centre, half = a[:, None] / step, level[..., None] / np.abs(step)
    low = np.where(zero, 1e-300, centre - half).max(axis=2, initial=1e-300)
    high = np.where(zero, 1e300, centre + half).min(axis=2, initial=1e300)
    missed = (zero & (np.abs(a[:, None]) > level[..., None])).any(axis=2)
    return low, np.where(missed, -1.0, high)
