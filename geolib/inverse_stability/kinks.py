"""The hyperplanes on which the derivative of a realization jumps."""

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.collinear import TOLERANCE, parallel_classes, unit_rows
from geolib.inverse_stability.shallow_relu import ShallowReLU

# Unit rows of one direction, computed in two ways, differ by a few roundings.
ROUNDING = 32 * float(np.finfo(float).eps)


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
        blur: how far each partial derivative can be from this formula on the slivers
            between directions that were treated as one, shape (D, d); zero when these
            were equal up to rounding.
    """

    normals: np.ndarray
    on: np.ndarray
    off: np.ndarray
    blur: np.ndarray

    @property
    def jumps(self) -> np.ndarray:
        """Change of the derivative across each hyperplane, shape (h, D, d)."""
        return self.on - self.off

    @property
    def half_jump(self) -> float:
        """Half the largest entry of a jump, a lower bound of the W^{1,inf} norm."""
        return float(np.abs(self.jumps).max(initial=0.0) / 2)

    def gradients(self, signs: np.ndarray) -> np.ndarray:
        """Derivatives (k, D, d) on the cells with sign vectors `signs` (k, h)."""
        h, D, d = self.on.shape
        active = (signs > 0).astype(np.float64)
        flat = active @ self.on.reshape(h, -1) + (1 - active) @ self.off.reshape(h, -1)
        return flat.reshape(-1, D, d)

    def largest(self, signs: np.ndarray) -> float:
        """The largest partial derivative on these cells, without filling the memory."""
        block = max(1, 20_000_000 // len(self.normals))
        starts = range(0, len(signs), block)
        return max(
            float(np.abs(self.gradients(signs[i : i + block])).max()) for i in starts
        )


def kinks(net: ShallowReLU, tol: float = TOLERANCE) -> Kinks:
    r"""Collect the neurons of each hyperplane.

    .. math:: J_h = P_h - Q_h = \Bigl(\sum_{a_i \in \mathbb{R} n_h} c_i \|a_i\|\Bigr)
        n_h^T

    Neurons with a zero inner or outer weight are left out; a hyperplane whose jump is
    exactly zero stays, as a linear part.

    Args:
        net: the network.
        tol: largest entrywise difference of two normals that count as one.

    Source: :eq:`drv-inverse_stability-jump` (derivations).

    Examples:
        >>> k = kinks(ShallowReLU([[1.0, 0.0], [-2.0, 0.0]], [[1.0, 1.0]]))
        >>> k.normals, k.jumps
        (array([[1., 0.]]), array([[[3., 0.]]]))
    """
    live = net.live
    return collect(net.A[live], net.C[:, live], net.A[live], tol)


def collect(rows: np.ndarray, C: np.ndarray, A: np.ndarray, tol: float) -> Kinks:
    """Kinks of neurons that switch with <rows_i, .> and add c_i a_i^T when on."""
    unit = unit_rows(rows)
    labels, signs = parallel_classes(unit, tol, opposite=True)
    first = np.unique(labels, return_index=True)[1]
    rank_one = np.einsum("om,md->mod", C, A)
    on, off = np.zeros((2, len(first), *rank_one.shape[1:]))
    np.add.at(on, labels[signs > 0], rank_one[signs > 0])
    np.add.at(off, labels[signs < 0], rank_one[signs < 0])
    apart = np.abs(unit - signs[:, None] * unit[first[labels]]).max(axis=1) > ROUNDING
    return Kinks(unit[first], on, off, np.abs(rank_one[apart]).sum(axis=0))
