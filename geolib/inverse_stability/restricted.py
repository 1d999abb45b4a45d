"""The restricted set N* on which the realization map is inverse stable."""

from __future__ import annotations

from typing import Any

import numpy as np

from geolib.inverse_stability.net import BiasedReLU, ShallowReLU
from geolib.inverse_stability.normal_form import balance, merge_parallel
from geolib.inverse_stability.parallel import TOLERANCE, parallel_classes, unit_rows


def restricted_defects(net: ShallowReLU, tol: float = 1e-9) -> list[str]:
    r"""Which of the three conditions of the restricted set a network violates.

    .. math:: \text{(N1) } \|a_i\|_\infty = \|c_i\|_\infty, \quad
        \text{(N2) } a_{i,d-1}, a_{i,d} > 0, \quad
        \text{(N3) no two } a_i \text{ positively parallel}

    for all non-zero neurons; zero neurons are allowed.

    Args:
        net: the network, of input dimension at least 2.
        tol: relative imbalance that (N1) tolerates.

    Source: definition of the restricted set, as recalled.

    Examples:
        >>> restricted_defects(ShallowReLU([[1.0, -1.0]], [[3.0]]))
        ['N1: neuron 0 is unbalanced', 'N2: neuron 0 leaves the quadrant']
    """
    if net.d < 2:
        raise ValueError(f"net: expected input dimension at least 2, got {net.d}")
    a, c = np.abs(net.A).max(axis=1), np.abs(net.C).max(axis=0)
    live = np.flatnonzero((a > 0) | (c > 0))
    top = np.maximum(a, c)
    found = [
        f"N1: neuron {i} is unbalanced" for i in live if abs(a[i] - c[i]) > tol * top[i]
    ]
    found += [
        f"N2: neuron {i} leaves the quadrant"
        for i in live
        if not (net.A[i, -2:] > 0).all()
    ]
    inner = np.flatnonzero(a > 0)
    if len(inner):
        labels, _ = parallel_classes(unit_rows(net.A[inner]), TOLERANCE)
        found += [
            f"N3: neurons {inner[labels == k].tolist()} are parallel"
            for k in range(labels.max() + 1)
            if (labels == k).sum() > 1
        ]
    return found


def in_restricted(net: ShallowReLU, tol: float = 1e-9) -> bool:
    """Whether the network lies in N*: no defect in `restricted_defects`.

    Examples:
        >>> in_restricted(ShallowReLU([[-2.0, 1.0, 1.0]], [[2.0]]))
        True
    """
    return not restricted_defects(net, tol)


def lift_inputs(x: Any) -> np.ndarray:
    """The inputs (x, 1, -1) that lifted networks read, shape (n, d + 2)."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (n, d), got {x.shape}")
    one = np.ones((len(x), 1))
    return np.hstack([x, one, -one])


def lift_to_restricted(
    net: BiasedReLU, tol: float = TOLERANCE, output_bias: Any = None
) -> ShallowReLU:
    r"""A network of the restricted set with the same values on (x, 1, -1).

    .. math:: (w, b) \mapsto (w,\ r + \max(b, 0),\ r + \max(-b, 0)), \qquad
        r = \|(w, b)\|_\infty

    Parallel rows (w, b) are merged *before* the lift, where two neurons that agree on
    the slice would otherwise become different ones; then the result is balanced.

    Args:
        net: the network with hidden biases.
        tol: directions closer than this are merged.
        output_bias: optional, shape (D,): one more neuron, with w = 0 and b = 1.

    Source: the lift x -> (x, 1, -1) of the paper, as recalled; scale-equivariant
    choice of the two positive entries: this book.

    Examples:
        >>> net = BiasedReLU([[2.0]], [-1.0], [[1.0]])
        >>> f = lift_to_restricted(net)
        >>> in_restricted(f), round(f(lift_inputs([[3.0]])).item(), 12)
        (True, 5.0)
    """
    flat = net.homogeneous()
    if output_bias is not None:
        bias = np.asarray(output_bias, dtype=np.float64).reshape(-1, 1)
        if len(bias) != flat.D:
            raise ValueError(f"output_bias: expected {flat.D} entries, got {len(bias)}")
        flat = ShallowReLU(
            np.vstack([flat.A, np.eye(flat.d)[-1:]]), np.hstack([flat.C, bias])
        )
    flat = merge_parallel(flat, tol)
    r = np.abs(flat.A).max(axis=1)
    b = flat.A[:, -1]
    lifted = np.column_stack(
        [flat.A[:, :-1], r + np.maximum(b, 0), r + np.maximum(-b, 0)]
    )
    return balance(ShallowReLU(lifted, flat.C))


def slice_of(net: ShallowReLU) -> BiasedReLU:
    """The network with biases that a lifted one is on the slice (x, 1, -1).

    Examples:
        >>> slice_of(ShallowReLU([[1.0, 3.0, 1.0]], [[1.0]])).b
        array([2.])
    """
    if net.d < 3:
        raise ValueError(f"net: expected input dimension at least 3, got {net.d}")
    return BiasedReLU(net.A[:, :-2], net.A[:, -2] - net.A[:, -1], net.C)
