"""Small data (n / d to 0): the face m = top, by a bidiagonal matrix."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.loss_curves import Curves, solve
from geolib.regimes.setup import check_times


def bidiagonal(rho: float, kappa: float, size: int) -> np.ndarray:
    r"""The Golub-Kahan form of a large Gaussian matrix seen from one fixed input.

    .. math:: B_{jj} = \sqrt\rho , \qquad B_{j,j+1} = \sqrt\kappa ,
        \qquad B \in R^{Q \times (Q+1)}

    Examples:
        >>> bidiagonal(4.0, 9.0, 2)
        array([[2., 3., 0.],
               [0., 2., 3.]])
    """
    shape = size, size + 1
    return np.sqrt(rho) * np.eye(*shape) + np.sqrt(kappa) * np.eye(*shape, 1)


def small_data(
    tau: ArrayLike,
    rho: float | None = None,
    kappa: float | None = None,
    *,
    size: Annotated[int, "1 <= size <= 1000"] = 20,
    W0: Annotated[ArrayLike | None, "h d"] = None,
    target: bool = True,
    rtol: Annotated[float, "1e-14 <= rtol < 1"] = 1e-9,
) -> Curves:
    r"""The losses with few samples, at times tau = t d / n: one stands for all.

    With few samples S acts as (d / n) times a random projector, and the infinite
    hierarchy of its moments is that of *one* sample :math:`e_1` seen by the bidiagonal
    form of the initial weights:

    .. math::
        u = W e_1, \; z = W^T u , \qquad
        W' = -u z^T - (W z - 2 u) e_1^T , \\
        L_{train}/d = \tfrac12 (1 - 2 |u|^2 + |z|^2), \qquad
        \frac{d}{d\tau} \frac{L_{pop} - L_{pop}(0)}{n} = -4 |W z - u|^2 .

    Args:
        tau: (T,) increasing rescaled times t d / n.
        rho, kappa: sigma^2 h and sigma^2 d.
        size: rows Q of the bidiagonal matrix; the error falls exponentially in it.
        W0: a bidiagonal matrix to start from instead (that of an actual draw).
        target: False for the free flow (start scale to infinity).
        rtol: tolerance of the integration.

    Returns:
        `Curves`: the training loss over d, and the population loss *less its initial
        value, over n*.

    Raises:
        ValueError: bad times, parameters or size, or neither W0 nor rho and kappa.

    Cost: about 0.05 s at Q = 20.

    Source: :eq:`drv-regimes-hierarchy` (the paper's moment hierarchy) and
    :eq:`drv-regimes-bidiagonal` (its resummation, ours; derivations).

    Examples:
        >>> few = small_data([0.0, 20.0], 1.0, 1.0)
        >>> round(float(few.population[1]), 5)
        -1.12838
    """
    t = check_times(tau, "tau")
    if W0 is None:
        if rho is None or kappa is None:
            raise ValueError("rho, kappa: expected both, or W0")
        W0 = bidiagonal(rho, kappa, size)
    W0 = np.asarray(W0, dtype=np.float64)
    shape, goal = W0.shape, 1.0 if target else 0.0

    def field(_: float, y: np.ndarray) -> np.ndarray:
        W = y[:-1].reshape(shape)
        u = W[:, 0]
        z = u @ W
        residual = W @ z - goal * u
        dW = -u[:, None] * z
        dW[:, 0] -= residual - goal * u
        return np.append(dW, -4 * residual @ residual)

    states = solve(field, np.append(W0, 0.0), t, rtol, rtol * 1e-3)
    W = states[:, :-1].reshape(-1, *shape)
    u = W[:, :, 0]
    z = (u[:, None] @ W)[:, 0]
    train = goal * (0.5 - (u**2).sum(1)) + (z**2).sum(1) / 2
    return Curves(train, states[:, -1])
