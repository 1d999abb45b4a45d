"""Exact norms of networks of two inputs: uniform, W^{1,inf}, H^1 and L^2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.kinks import kinks
from geolib.inverse_stability.net import ShallowReLU


@dataclass(frozen=True)
class PlanarNorms:
    """Four norms of one function of the plane.

    Attributes:
        uniform: sup of |f| over the square (-1, 1)^2.
        w1inf: the W^{1,inf} semi-norm.
        h1: 2-norm of the gradient over the unit disc.
        l2: 2-norm of the function over the unit disc.
    """

    uniform: float
    w1inf: float
    h1: float
    l2: float


def planar_norms(net: ShallowReLU) -> PlanarNorms:
    r"""Integrate over the sectors of the plane on which the network is linear.

    A 1-homogeneous function with gradient G on the sector of angles (s, t) has

    .. math:: \int \|\nabla f\|^2 = \tfrac12 (t - s)\,\|G\|_F^2, \qquad
        \int \|f\|^2 = \tfrac14 \operatorname{tr} G M G^T, \quad
        M = \int_s^t e_\phi e_\phi^T\,d\phi

    over the unit disc; the uniform norm is attained at a corner of the square or where
    a kink leaves it.

    Raises:
        ValueError: the input dimension is not two.

    Cost: O(m^2 D).

    Source: own derivation.

    Examples:
        >>> n = planar_norms(ShallowReLU([[1.0, 0.0]], [[1.0]]))
        >>> n.uniform, n.w1inf, round(n.h1**2 / np.pi, 6), round(n.l2**2 / np.pi, 6)
        (1.0, 1.0, 0.5, 0.125)
    """
    if net.d != 2:
        raise ValueError(f"net: expected input dimension 2, got {net.d}")
    k = kinks(net)
    if not len(k.normals):
        return PlanarNorms(0.0, 0.0, 0.0, 0.0)
    # Directions of the kink lines: both rays of each, sorted by angle.
    along = np.column_stack([-k.normals[:, 1], k.normals[:, 0]])
    rays = np.concatenate([along, -along])
    angle = np.sort(np.arctan2(rays[:, 1], rays[:, 0]))
    width = np.diff(np.append(angle, angle[0] + 2 * np.pi))
    middle = angle + width / 2
    inside = np.column_stack([np.cos(middle), np.sin(middle)])
    signs = np.where(inside @ k.normals.T > 0, 1, -1)
    G = k.gradients(signs)
    energy = (G**2).sum(axis=(1, 2))
    # M in the frame of the bisector: diag(w + sin w, w - sin w) / 2.
    across = np.column_stack([-inside[:, 1], inside[:, 0]])
    u = (np.einsum("kod,kd->ko", G, inside) ** 2).sum(axis=1)
    v = (np.einsum("kod,kd->ko", G, across) ** 2).sum(axis=1)
    sin = np.sin(width)
    mass = (u * (width + sin) + v * (width - sin)) / 2
    corners = np.array([[s, t] for s in (-1.0, 1.0) for t in (-1.0, 1.0)])
    ends = rays / np.abs(rays).max(axis=1, keepdims=True)
    return PlanarNorms(
        uniform=float(np.abs(net(np.concatenate([corners, ends]))).max()),
        w1inf=float(np.abs(G).max()),
        h1=float(np.sqrt((width * energy).sum() / 2)),
        l2=float(np.sqrt(mass.sum() / 4)),
    )
