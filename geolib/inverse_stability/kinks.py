"""The hyperplanes on which the derivative of a shallow ReLU network jumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.net import ShallowReLU
from geolib.inverse_stability.parallel import TOLERANCE, parallel_classes, unit_rows


@dataclass(frozen=True)
class Kinks:
    r"""A network's derivative, hyperplane by hyperplane.

    On a cell with signs :math:`\sigma` the derivative is

    .. math:: Df = \sum_h \begin{cases} P_h & \sigma_h = +1 \\ Q_h & \sigma_h = -1
        \end{cases}

    where :math:`P_h` sums :math:`c_i a_i^T` over the neurons on at the positive side
    of hyperplane h and :math:`Q_h` over those on at its negative side.

    Attributes:
        normals: unit normals, shape (h, d), pairwise distinct as lines.
        on, off: the matrices P and Q, shape (h, D, d).
    """

    normals: np.ndarray
    on: np.ndarray
    off: np.ndarray

    @property
    def jumps(self) -> np.ndarray:
        """Change of the derivative across each hyperplane, shape (h, D, d)."""
        return self.on - self.off

    def gradients(self, signs: np.ndarray) -> np.ndarray:
        """Derivatives (k, D, d) on the cells with sign vectors `signs` (k, h)."""
        h, D, d = self.on.shape
        active = (signs > 0).astype(np.float64)
        flat = active @ self.on.reshape(h, -1) + (1 - active) @ self.off.reshape(h, -1)
        return flat.reshape(-1, D, d)


def kinks(net: ShallowReLU, tol: float = TOLERANCE) -> Kinks:
    r"""Collect the neurons of each hyperplane.

    .. math:: J_h = P_h - Q_h = \Bigl(\sum_{a_i \in \mathbb{R} n_h} c_i \|a_i\|\Bigr)
        n_h^T

    Neurons with a zero inner or outer weight are left out; a hyperplane whose jump is
    exactly zero stays, as a linear part.

    Args:
        net: the network.
        tol: largest entrywise difference of two normals that count as one.

    Examples:
        >>> k = kinks(ShallowReLU([[1.0, 0.0], [-2.0, 0.0]], [[1.0, 1.0]]))
        >>> k.normals, k.jumps
        (array([[1., 0.]]), array([[[3., 0.]]]))
    """
    live = np.flatnonzero(net.A.any(axis=1) & net.C.any(axis=0))
    A, C = net.A[live], net.C[:, live]
    if not len(live):
        empty = np.zeros((0, net.D, net.d))
        return Kinks(np.zeros((0, net.d)), empty, empty)
    unit = unit_rows(A)
    labels, signs = parallel_classes(unit, tol, opposite=True)
    h = labels.max() + 1
    first = np.unique(labels, return_index=True)[1]
    rank_one = np.einsum("om,md->mod", C, A)
    on, off = np.zeros((2, h, net.D, net.d))
    np.add.at(on, labels[signs > 0], rank_one[signs > 0])
    np.add.at(off, labels[signs < 0], rank_one[signs < 0])
    return Kinks(unit[first], on, off)


def jump_seminorm(net: ShallowReLU, tol: float = TOLERANCE) -> float:
    r"""Half the largest entry of a jump: a lower bound of the W^{1,inf} semi-norm.

    .. math:: \delta_J = \tfrac12 \max_h \|J_h\|_{\max} \le |f|_{W^{1,\infty}}
        \le h\, \delta_J + \|B\|_{\max}

    for h hyperplanes, with B the linear part of the absolute-value form.

    Cost: O(m log m + m d D) in any dimension.

    Source: own derivation (spec, Theorem B).

    Examples:
        >>> jump_seminorm(ShallowReLU([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 1.0]]))
        1.0
    """
    return float(np.abs(kinks(net, tol).jumps).max(initial=0.0) / 2)
