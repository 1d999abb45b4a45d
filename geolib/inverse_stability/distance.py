"""Distances in parameter space, up to the symmetries of the realization map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.matching import (
    bottleneck_assignment,
    scale_costs,
    sum_assignment,
)
from geolib.inverse_stability.net import ShallowReLU, same_architecture
from geolib.inverse_stability.normal_form import AbsoluteValueForm

MAX_FLIPS = 12
GAUGES = ("permutation", "scale", "sign")


@dataclass(frozen=True, eq=False)
class Closest:
    """The parametrization of g nearest to f within a gauge orbit.

    Attributes:
        distance: its distance to f.
        net: the parametrization itself: R(net) = R(g).
        order: neuron `order[i]` of (padded) g answers neuron i of f.
        flipped: which neurons of g were turned to -a, by their index in g.
    """

    distance: float
    net: ShallowReLU
    order: np.ndarray
    flipped: tuple[int, ...] = ()


def parameter_distance(
    f: ShallowReLU, g: ShallowReLU, gauge: str = "permutation", norm: str = "max"
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
        norm: `max` (largest entry, the theorem's) or `l2` (`permutation` only).

    Raises:
        ValueError: unknown gauge or norm, unequal dimensions, more than 12 neurons
            with gauge `sign`.

    Cost: O(m^2 (d + D)) and O(log m) matchings; `sign` tests 2^m sets.

    Source: the distance of Elbraechter, Berner and Grohs 2019, definition of inverse
    stability (as recalled); fibres are derived in this book.

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0]], [[4.0]])
        >>> g = ShallowReLU([[2.0, 0.0]], [[2.0]])
        >>> parameter_distance(f, g), parameter_distance(f, g, "scale")
        (2.0, 0.0)
    """
    return closest_parametrization(f, g, gauge, norm).distance


def closest_parametrization(
    f: ShallowReLU, g: ShallowReLU, gauge: str = "permutation", norm: str = "max"
) -> Closest:
    """The minimizer behind `parameter_distance`; same arguments, errors and cost.

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0]], [[4.0]])
        >>> g = ShallowReLU([[2.0, 0.0]], [[2.0]])
        >>> closest_parametrization(f, g, "scale").net.A
        array([[1., 0.]])
    """
    same_architecture(f, g)
    if gauge not in GAUGES:
        raise ValueError(f"gauge: expected one of {GAUGES}, got {gauge!r}")
    if norm not in ("max", "l2") or (norm == "l2" and gauge != "permutation"):
        raise ValueError(
            "norm: expected 'max', or 'l2' with gauge 'permutation'; "
            f"got {norm!r} with gauge {gauge!r}"
        )
    m = max(f.m, g.m)
    f, g = f.pad(m), g.pad(m)
    if gauge == "permutation":
        return _permuted(f, g, norm)
    if gauge == "scale":
        return _rescaled(f, g, scale_costs(f.A, f.C.T, g.A, g.C.T))
    return _flipped(f, g)


def absolute_value_distance(
    f: AbsoluteValueForm, g: AbsoluteValueForm
) -> tuple[float, float]:
    r"""Distances of two normal forms: of the kinks, and of the linear parts.

    .. math:: \min_\pi \max_h \min_{s = \pm 1} \max\bigl(\|a_h - s\,a'_{\pi h}\|_\infty,
        \|c_h - c'_{\pi h}\|_\infty\bigr), \qquad \|B - B'\|_{\max}

    Missing kinks are zero. At W^{1,inf} distance δ the first is at most
    :math:`2\sqrt{2\delta}`, the second at most δ.

    Source: own derivation (spec, Theorem C).
    """
    h = max(len(f.A), len(g.A), 1)
    a, c = _padded(f, h)
    u, w = _padded(g, h)
    side = np.abs(c[:, None] - w[None, :]).max(axis=2)
    turn = [np.abs(a[:, None] - s * u[None, :]).max(axis=2) for s in (1, -1)]
    value, _ = bottleneck_assignment(np.maximum(np.minimum(*turn), side))
    return value, float(np.abs(f.B - g.B).max())


def _padded(form: AbsoluteValueForm, h: int) -> tuple[np.ndarray, np.ndarray]:
    extra = ((0, h - len(form.A)), (0, 0))
    return np.pad(form.A, extra), np.pad(form.C.T, extra)


def _permuted(f: ShallowReLU, g: ShallowReLU, norm: str) -> Closest:
    gap = np.concatenate(
        [
            np.abs(f.A[:, None] - g.A[None, :]),
            np.abs(f.C.T[:, None] - g.C.T[None, :]),
        ],
        axis=2,
    )
    if norm == "max":
        value, order = bottleneck_assignment(gap.max(axis=2))
    else:
        total, order = sum_assignment((gap**2).sum(axis=2))
        value = total**0.5
    return Closest(value, ShallowReLU(g.A[order], g.C[:, order]), order)


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
    return Closest(value, ShallowReLU(A, C), order)


def _flipped(f: ShallowReLU, g: ShallowReLU) -> Closest:
    """Minimum over all sets F of flips that leave the function unchanged."""
    if f.m > MAX_FLIPS:
        raise ValueError(
            f"gauge: 'sign' tests 2^m sets and takes at most {MAX_FLIPS} neurons, "
            f"got {f.m}"
        )
    sets = (np.arange(2**f.m)[:, None] >> np.arange(f.m)) & 1 == 1
    lifted = np.einsum("om,md->mod", g.C, g.A).reshape(f.m, -1)
    silent = np.abs(sets @ lifted).max(axis=1) <= 1e-12 * np.abs(lifted).max()
    plus = scale_costs(f.A, f.C.T, g.A, g.C.T)
    minus = scale_costs(f.A, f.C.T, -g.A, g.C.T)
    best: Closest | None = None
    for flips in sets[silent]:
        turned = ShallowReLU(np.where(flips[:, None], -g.A, g.A), g.C)
        costs = tuple(np.where(flips, q, p) for p, q in zip(plus, minus, strict=True))
        found = _rescaled(f, turned, costs)  # type: ignore[arg-type]
        if best is None or found.distance < best.distance:
            where = tuple(int(i) for i in np.flatnonzero(flips))
            best = Closest(found.distance, found.net, found.order, where)
    assert best is not None  # the empty set never changes the function
    return best
