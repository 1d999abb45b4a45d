"""Leaving a degenerate minimum: merge, and regrow where the loss falls fastest."""

from __future__ import annotations

import numpy as np

from geolib.inverse_stability.net import ShallowReLU, as_points
from geolib.inverse_stability.normal_form import merge_parallel
from geolib.inverse_stability.parallel import TOLERANCE


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
        size: weight of the new neurons, epsilon.
        candidates: random directions tried for each slot.
        seed: of the NumPy generator.
        tol: directions closer than this are duplicates.

    Returns:
        a network of the same width; the merged one where nothing was free or the
        residual vanishes.

    Source: own derivation (spec, E3), the functional gradient step of greedy fitting.

    Examples:
        >>> net = ShallowReLU([[1.0], [1.0]], [[1.0, 1.0]])
        >>> x = np.array([[1.0], [-1.0]])
        >>> escape_degenerate(net, x, net(x) - 2 * abs(x)).A.round(3).ravel().tolist()
        [1.414, -0.01]
    """
    merged = merge_parallel(net, tol)
    x = as_points(x, net.d)
    residual = np.asarray(residual, dtype=np.float64)
    if residual.shape != (len(x), net.D):
        raise ValueError(
            f"residual: expected shape {(len(x), net.D)}, got {residual.shape}"
        )
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
