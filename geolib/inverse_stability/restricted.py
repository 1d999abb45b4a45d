"""The restricted set N* on which the realization map is inverse stable."""

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect

from .collinear import TOLERANCE, parallel_classes, unit_rows
from .shallow_relu import BiasedReLU, ShallowReLU, finite_array


def restricted_defects(net: ShallowReLU, tol: float = 1e-9) -> list[str]:
    r"""Which of the three conditions of the restricted set a network violates.

    .. math:: \text{(N1) } \|a_i\|_\infty = \|c_i\|_\infty, \quad
        \text{(N2) } a_{i,d-1}, a_{i,d} > 0, \quad
        \text{(N3) no two } a_i \text{ positively parallel}

    for all non-zero neurons; zero neurons are allowed.

    Examples:
        >>> restricted_defects(ShallowReLU([[1.0, -1.0]], [[3.0]]))
        ['N1: neuron 0 is unbalanced', 'N2: neuron 0 leaves the quadrant']
    """
    expect(net.d >= 2, "net", "input dimension at least 2", net.d)
    expect(0 <= tol < 1, "tol", "a number in [0, 1)", tol)
    live = np.flatnonzero(net.A.any(axis=1) | net.C.any(axis=0))
    outside = live[~(net.A[live, -2:] > 0).all(axis=1)]
    found = [f"N2: neuron {i} leaves the quadrant" for i in outside]
    return unbalanced(net, tol) + found + parallel(net)


def unbalanced(net: ShallowReLU, tol: float) -> list[str]:
    """The neurons that violate (N1)."""
    a, c = np.abs(net.A).max(axis=1), np.abs(net.C).max(axis=0)
    uneven = np.flatnonzero(np.abs(a - c) > tol * np.maximum(a, c))
    return [f"N1: neuron {i} is unbalanced" for i in uneven]


def parallel(net: ShallowReLU, tol: float = TOLERANCE) -> list[str]:
    """The groups of neurons that violate (N3)."""
    inner = np.flatnonzero(net.A.any(axis=1))
    labels, _ = parallel_classes(unit_rows(net.A[inner]), tol)
    groups = [inner[labels == k].tolist() for k in np.unique(labels)]
    return [f"N3: neurons {g} are parallel" for g in groups if len(g) > 1]


def in_restricted(net: ShallowReLU, tol: float = 1e-9) -> bool:
    """Whether the network lies in N*: no defect in `restricted_defects`.

    Args:
        net: the network, of input dimension at least 2.
        tol: relative imbalance that (N1) tolerates, in [0, 1).

    Raises:
        ValueError: one input only, or a tolerance outside [0, 1).

    Source: Elbraechter, Berner and Grohs 2019, the restricted set; see
    :eq:`drv-inverse_stability-restricted` (derivations).

    Examples:
        >>> in_restricted(ShallowReLU([[-2.0, 1.0, 1.0]], [[2.0]]))
        True
    """
    return not restricted_defects(net, tol)


def lift_inputs(x: Annotated[ArrayLike, "n d"]) -> np.ndarray:
    r"""The inputs that lifted networks read, shape (n, d + 2).

    .. math:: x \mapsto (x, 1, -1)

    Args:
        x: inputs, shape (n, d).

    Raises:
        ValueError: another shape, no points, NaN or infinity.

    Source: Elbraechter, Berner and Grohs 2019, on learning.

    Examples:
        >>> lift_inputs([[5.0]])
        array([[ 5.,  1., -1.]])
    """
    x = finite_array("x", x, 2)
    one = np.ones((len(x), 1))
    return np.hstack([x, one, -one])


def lift_to_restricted(net: BiasedReLU, tol: float = TOLERANCE) -> ShallowReLU:
    r"""A network of the restricted set with the same values on (x, 1, -1).

    .. math:: (w, b) \mapsto (w,\ r + \max(b, 0),\ r + \max(-b, 0)), \qquad
        r = \|(w, b)\|_\infty

    Parallel rows (w, b) are merged *before* the lift, where two neurons that agree on
    the slice would otherwise become different ones; then the result is balanced.

    Args:
        net: the network with hidden biases.
        tol: directions closer than this are merged, in [0, 1).

    Raises:
        ValueError: a tolerance outside [0, 1).

    Source: :eq:`drv-inverse_stability-lift` (derivations).

    Examples:
        >>> net = BiasedReLU([[2.0]], [-1.0], [[1.0]])
        >>> f = lift_to_restricted(net)
        >>> in_restricted(f), round(f(lift_inputs([[3.0]])).item(), 12)
        (True, 5.0)
    """
    flat = net.homogeneous().merge_parallel(tol)
    r, b = np.abs(flat.A).max(axis=1), flat.A[:, -1]
    heads = [r + np.maximum(b, 0), r + np.maximum(-b, 0)]
    return ShallowReLU(np.column_stack([flat.A[:, :-1], *heads]), flat.C).balance()
