"""The semi-norm of a network with biases over a box of inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geolib.inverse_stability.arrangement import (
    RAY_TOLERANCE,
    enumerate_cells,
    generic_cell_count,
)
from geolib.inverse_stability.collinear import TOLERANCE
from geolib.inverse_stability.kinks import collect
from geolib.inverse_stability.shallow_relu import BiasedReLU
from geolib.inverse_stability.w1inf_seminorm import Seminorm, enumerable


def seminorm_on_box(
    net: BiasedReLU, low: float | Sequence[float], high: float | Sequence[float]
) -> Seminorm:
    r"""The largest partial derivative over a box, biases included; exact.

    .. math:: |f|_{W^{1,\infty}(U)} = \operatorname*{ess\,sup}_{x \in U}\
        \max_{o,j} |\partial_j f_o(x)|, \qquad U = \prod_j (l_j, u_j)

    The affine arrangement is made central in (x, t), t > 0; the facets of the box join
    it as hyperplanes, and only cells on the inner side of all of them count. Where
    hyperplanes closer than the tolerance were treated as one, the value is only an
    upper bound and `lower` is zero.

    Args:
        net: the network with biases.
        low, high: corners of the box, scalars or length d, low < high.

    Raises:
        ValueError: an empty or unbounded box, or too many cells to enumerate.

    Cost: as `w1inf_seminorm` for d + 1 dimensions and 2 d + 1 more hyperplanes.

    Source: :eq:`drv-inverse_stability-box` (derivations).

    Examples:
        >>> hat = BiasedReLU([[1.0], [1.0]], [0.0, -1.0], [[1.0, -3.0]])
        >>> seminorm_on_box(hat, -1.0, 1.0).value, seminorm_on_box(hat, -1.0, 2.0).value
        (1.0, 2.0)
    """
    d = net.W.shape[1]
    below = np.broadcast_to(np.asarray(low, dtype=np.float64), (d,))
    above = np.broadcast_to(np.asarray(high, dtype=np.float64), (d,))
    if not (np.isfinite([below, above]).all() and (below < above).all()):
        raise ValueError(
            f"low, high: expected finite corners with low < high, got {low} and {high}"
        )
    live = np.flatnonzero(net.W.any(axis=1) & net.C.any(axis=0))
    sides = [
        np.column_stack([s * np.eye(d), -s * c]) for s, c in ((1, below), (-1, above))
    ]
    facets = np.vstack([*sides, np.eye(d + 1)[-1]])
    n = len(facets)
    k = collect(
        np.vstack([facets, np.column_stack([net.W[live], net.b[live]])]),
        np.pad(net.C[:, live], ((0, 0), (n, 0))),
        np.pad(net.W[live], ((n, 0), (0, 0))),
        TOLERANCE,
    )
    h = len(k.normals)
    if not enumerable(h, d + 1):
        raise ValueError(
            f"net: {h} hyperplanes in {d + 1} dimensions have up to "
            f"{generic_cell_count(h, d + 1)} cells, too many to enumerate"
        )
    found, narrow = enumerate_cells(k.normals)
    # The facets are distinct and come first: hyperplane i is facet i, positive inside.
    found = found[(found[:, :n] > 0).all(axis=1)]
    top = k.largest(found)
    blur = float(k.blur.max())
    lower = 0.0 if blur or narrow else top
    if narrow:
        top = float(np.maximum(np.abs(k.on), np.abs(k.off)).sum(axis=0).max())
    return Seminorm(lower, top + blur, "cells", h, len(found), RAY_TOLERANCE)
