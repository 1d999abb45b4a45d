"""The semi-norm of a network with biases over a box of inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geolib.inverse_stability.arrangement import cells, generic_cell_count
from geolib.inverse_stability.kinks import Kinks
from geolib.inverse_stability.net import BiasedReLU
from geolib.inverse_stability.parallel import parallel_classes, unit_rows
from geolib.inverse_stability.seminorm import Seminorm, enumerable


def seminorm_on_box(
    net: BiasedReLU, low: float | Sequence[float], high: float | Sequence[float]
) -> Seminorm:
    r"""The largest partial derivative over a box, biases included; exact.

    .. math:: |f|_{W^{1,\infty}(U)} = \operatorname*{ess\,sup}_{x \in U}\
        \max_{o,j} |\partial_j f_o(x)|, \qquad U = \prod_j (l_j, u_j)

    The affine arrangement is made central in (x, t), t > 0; the facets of the box join
    it as hyperplanes, and only cells on the inner side of all of them count.

    Args:
        net: the network with biases.
        low, high: corners of the box, scalars or length d, low < high.

    Raises:
        ValueError: an empty or unbounded box, or too many cells to enumerate.

    Cost: as `seminorm` for d + 1 dimensions and 2 d + 1 more hyperplanes.

    Source: own derivation (spec, Theorem C with biases).

    Examples:
        >>> hat = BiasedReLU([[1.0], [1.0]], [0.0, -1.0], [[1.0, -3.0]])
        >>> seminorm_on_box(hat, -1.0, 1.0).value, seminorm_on_box(hat, -1.0, 2.0).value
        (1.0, 2.0)
    """
    d, D = net.W.shape[1], net.C.shape[0]
    below = np.broadcast_to(np.asarray(low, dtype=np.float64), (d,))
    above = np.broadcast_to(np.asarray(high, dtype=np.float64), (d,))
    if not (np.isfinite([below, above]).all() and (below < above).all()):
        raise ValueError(
            f"low, high: expected finite corners with low < high, got {low} and {high}"
        )
    live = np.flatnonzero(net.W.any(axis=1) & net.C.any(axis=0))
    rows = np.column_stack([net.W[live], net.b[live]])
    eye = np.eye(d)
    facets = np.vstack(
        [
            np.column_stack([eye, -below]),
            np.column_stack([-eye, above]),
            np.append(np.zeros(d), 1.0),
        ]
    )
    unit = unit_rows(np.vstack([facets, rows]))
    labels, signs = parallel_classes(unit, opposite=True)
    h = int(labels.max()) + 1
    if not enumerable(h, d + 1):
        raise ValueError(
            f"net: {h} hyperplanes in {d + 1} dimensions have up to "
            f"{generic_cell_count(h, d + 1)} cells, too many to enumerate"
        )
    normals = unit[np.unique(labels, return_index=True)[1]]
    rank_one = np.einsum("om,md->mod", net.C[:, live], net.W[live])
    on, off = np.zeros((2, h, D, d))
    own, side = labels[len(facets) :], signs[len(facets) :]
    np.add.at(on, own[side > 0], rank_one[side > 0])
    np.add.at(off, own[side < 0], rank_one[side < 0])
    found = cells(normals)
    facet, inner = labels[: len(facets)], signs[: len(facets)]
    found = found[(found[:, facet] == inner).all(axis=1)]
    top = float(np.abs(Kinks(normals, on, off).gradients(found)).max())
    return Seminorm(top, top, "cells", h, len(found))
