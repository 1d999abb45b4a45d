"""Gauges of a shallow network: balanced, merged, and the absolute-value normal form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.kinks import kinks
from geolib.inverse_stability.net import ShallowReLU, as_points
from geolib.inverse_stability.parallel import TOLERANCE, parallel_classes, unit_rows


def balance(net: ShallowReLU) -> ShallowReLU:
    r"""Rescale every neuron so that both its sides have the same largest entry.

    .. math:: (a_i, c_i) \mapsto (s a_i, c_i / s), \qquad
        s = \sqrt{\|c_i\|_\infty / \|a_i\|_\infty}

    A neuron with a zero side contributes nothing and becomes the zero neuron.

    Source: condition (N1) of the restricted set, as recalled.

    Examples:
        >>> f = balance(ShallowReLU([[8.0, 0.0]], [[2.0]]))
        >>> f.A, f.C
        (array([[4., 0.]]), array([[4.]]))
    """
    a = np.abs(net.A).max(axis=1)
    c = np.abs(net.C).max(axis=0)
    live = (a > 0) & (c > 0)
    a, c = np.where(live, a, 1.0), np.where(live, c, 1.0)
    t = np.where(live, np.sqrt(a) * np.sqrt(c), 0.0)
    return ShallowReLU(net.A / a[:, None] * t[:, None], net.C / c * t)


def merge_parallel(net: ShallowReLU, tol: float = TOLERANCE) -> ShallowReLU:
    r"""Replace neurons with positively parallel inner weights by one, then balance.

    .. math:: c_1\rho(\langle a, x\rangle) + c_2\rho(\langle \lambda a, x\rangle)
        = (c_1 + \lambda c_2)\,\rho(\langle a, x\rangle), \qquad \lambda > 0

    The width stays the same: freed slots hold zero neurons, at the end.

    Args:
        net: the network.
        tol: largest entrywise difference of two unit directions that count as equal.

    Source: condition (N3) of the restricted set, as recalled.

    Examples:
        >>> f = merge_parallel(ShallowReLU([[1.0, 0.0], [3.0, 0.0]], [[1.0, 1.0]]))
        >>> f.A, f.C
        (array([[2., 0.], [0., 0.]]), array([[2., 0.]]))
    """
    live = np.flatnonzero(net.A.any(axis=1) & net.C.any(axis=0))
    if not len(live):
        return ShallowReLU.zeros(net.m, net.d, net.D)
    labels, _ = parallel_classes(unit_rows(net.A[live]), tol)
    first = live[np.unique(labels, return_index=True)[1]]
    top = np.abs(net.A).max(axis=1)
    C = np.zeros((net.D, len(first)))
    np.add.at(C.T, labels, (net.C[:, live] * top[live]).T)
    merged = balance(ShallowReLU(net.A[first] / top[first, None], C))
    keep = np.argsort(~merged.A.any(axis=1), kind="stable")  # cancelled classes last
    return ShallowReLU(merged.A[keep], merged.C[:, keep]).pad(net.m)


@dataclass(frozen=True, eq=False)
class AbsoluteValueForm:
    r"""The normal form that every realization has exactly once (up to signs of a_h).

    .. math:: f(x) = \tfrac12 \sum_h c_h\, |\langle a_h, x\rangle| + B x

    Attributes:
        A: kink normals scaled so that ‖a_h‖ = ‖c_h‖ (largest entry), shape (h, d).
        C: jumps, c_h a_h^T = J_h, shape (D, h).
        B: the linear part, the mean of Df at x and at -x, shape (D, d).
    """

    A: np.ndarray
    C: np.ndarray
    B: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Outputs of shape (n, D) at inputs of shape (n, d)."""
        x = as_points(x, self.B.shape[1])
        return np.abs(x @ self.A.T) @ self.C.T / 2 + x @ self.B.T


def absolute_value_form(net: ShallowReLU, tol: float = TOLERANCE) -> AbsoluteValueForm:
    r"""The normal form in which all four pathologies of the W^{1,inf} norm disappear.

    .. math:: c_h a_h^T = J_h, \qquad B = \tfrac12\bigl(Df(x) + Df(-x)\bigr)
        = \tfrac12\sum_h (P_h + Q_h)

    No condition on the network. Hyperplanes with an exactly vanishing jump are left
    out. For two networks at W^{1,inf} distance :math:`\delta` the terms differ by at
    most :math:`2\sqrt{2\delta}` after matching and the linear parts by at most
    :math:`\delta` (see `absolute_value_distance`).

    Source: own derivation (spec, Theorem C).

    Examples:
        >>> f = absolute_value_form(ShallowReLU([[1.0, 0.0]], [[1.0]]))
        >>> f.A, f.C, f.B
        (array([[1., 0.]]), array([[1.]]), array([[0.5, 0. ]]))
    """
    k = kinks(net, tol)
    B = (k.on + k.off).sum(axis=0) / 2
    live = np.abs(k.jumps).reshape(len(k.jumps), -1).any(axis=1)
    normals, jumps = k.normals[live], k.jumps[live]
    strength = np.einsum("hod,hd->ho", jumps, normals)
    if not len(normals):
        return AbsoluteValueForm(normals, np.zeros((net.D, 0)), B)
    terms = balance(ShallowReLU(normals, strength.T))
    return AbsoluteValueForm(terms.A, terms.C, B)
