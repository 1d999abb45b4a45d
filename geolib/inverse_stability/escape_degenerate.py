"""Leaving a degenerate minimum: merge, and regrow where the loss falls fastest."""

from __future__ import annotations

import numpy as np

from geolib.inverse_stability.collinear import TOLERANCE
from geolib.inverse_stability.shallow_relu import (
    ShallowReLU,
    as_points,
    expect,
    finite_array,
)


def escape_degenerate(
    net: ShallowReLU,
    x: np.ndarray,
    residual: np.ndarray,
    *,
    size: float = 1e-2,
    candidates: int = 512,
    seed: int = 0,
    tol: float = TOLERANCE,
) -> ShallowReLU:
    r"""Merge duplicates and let each freed slot grow where the loss falls fastest.

    .. math:: u_* = \operatorname*{arg\,max}_{u}\ \Bigl\|\sum_i \ell_i\,
        \varrho(\langle u, x_i\rangle)\Bigr\|, \qquad
        (a, c) = \varepsilon\,(u_*, -v / \|v\|_\infty), \quad
        v = \sum_i \ell_i\, \varrho(\langle u_*, x_i\rangle)

    where :math:`\ell_i` is the derivative of the loss by the i-th output (for squares,
    the residual). A zero neuron added this way is a descent direction of the
    realization that the weights before merging did not have.

    Args:
        net: the network; freed slots are its duplicate and its zero neurons.
        x: inputs, shape (n, d).
        residual: derivative of the loss by the outputs, shape (n, D).
        size: weight of the new neurons, epsilon, positive.
        candidates: random directions tried for each slot, at least 1.
        seed: of the NumPy generator.
        tol: directions closer than this are duplicates, in [0, 1).

    Returns:
        a network of the same width; the merged one where nothing was free or the
        residual vanishes.

    Raises:
        ValueError: wrong shapes or numbers, NaN or infinite data.

    Cost: O(candidates n (d + D)) for each free slot.

    Source: :eq:`drv-inverse_stability-escape` (derivations).

    Examples:
        >>> net = ShallowReLU([[1.0], [1.0]], [[1.0, 1.0]])
        >>> x = np.array([[1.0], [-1.0]])
        >>> escape_degenerate(net, x, net(x) - 2 * abs(x)).A.round(3).ravel().tolist()
        [1.414, -0.01]
    """
    expect(0 < size < np.inf, "size", "a positive number", size)
    expect(candidates >= 1, "candidates", "a positive number", candidates)
    x = as_points(x, net.d)
    residual = finite_array("residual", residual, np.ndim(residual))
    shape = (len(x), net.D)
    expect(residual.shape == shape, "residual", f"shape {shape}", residual.shape)
    merged = net.merge_parallel(tol)
    A, C = merged.A.copy(), merged.C.copy()
    rng = np.random.default_rng(seed)
    for slot in np.flatnonzero(~A.any(axis=1)):
        u = rng.normal(size=(candidates, net.d))
        u /= np.abs(u).max(axis=1, keepdims=True)
        pull = np.maximum(u @ x.T, 0.0) @ residual
        best = int(np.linalg.norm(pull, axis=1).argmax())
        top = np.abs(pull[best]).max()
        if top > 0:
            A[slot], C[:, slot] = size * u[best], -size * pull[best] / top
    return ShallowReLU(A, C)
