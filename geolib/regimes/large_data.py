"""Large data (n / d to infinity): the face m = 0, solved in closed form."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from .loss_curves import Curves, logistic, solve
from .setup import check_times
from .spectral_measures import SpectralMeasure, coarser, marchenko_pastur

TINY = 1e-3  # below this E the closed form cancels; the quadrature does not
HUGE = 1e75  # e^{4t} - 1 is capped here: squares stay finite, the loss has long settled


def large_data(
    times: ArrayLike, rho: float, kappa: float, *, law: SpectralMeasure | None = None
) -> Curves:
    r"""The losses over d when samples abound: each eigenvalue follows a logistic.

    .. math::
        L/d = \tfrac12 \int \mu_{\rho,\kappa}(da)
              \Big[\frac{1-a}{1+Ea}\Big]^2 , \qquad E = e^{4t} - 1 ,

    and in closed form, with
    :math:`R = \int \mu / (1 + E a) = 2 / (g + \sqrt{g^2 + 4 \kappa E})`,
    :math:`g = 1 + E(\rho - \kappa)`,

    .. math:: L/d = \frac{1 - 2(1+E) R + (1+E)^2 (R + E R')}{2 E^2} .

    Args:
        times: (T,) increasing.
        rho, kappa: sigma^2 h and sigma^2 d.
        law: spectral law of the initial map instead of Marchenko-Pastur's; the integral
            is then a quadrature.

    Returns:
        `Curves`; both losses are the same array of values.

    Raises:
        ValueError: bad times, or a parameter that is not positive.

    Cost: closed form O(T); quadrature O(400 T).

    Source: :eq:`drv-regimes-closed` (derivations), the closed form after Golikov,
    Gusev and Yarotsky 2026b; the logistic goes back to Baldi and Hornik 1989.

    Examples:
        >>> float(large_data([50.0], 0.5, 1.0).train[0])     # (1 - h/d) / 2
        0.25
    """
    t = check_times(times)
    rho, kappa = float(rho), float(kappa)
    E = np.minimum(np.expm1(np.minimum(4 * t, 200.0)), HUGE)
    quadrature = (E < TINY) | (law is not None)
    out = np.empty_like(t)
    if quadrature.any():
        mu = law or marchenko_pastur(rho, kappa)
        ratio = (1 - mu.nodes) / (1 + E[quadrature, None] * mu.nodes)
        out[quadrature] = 0.5 * ratio**2 @ mu.weights
    if not quadrature.all():
        out[~quadrature] = _closed(E[~quadrature], rho, kappa)
    return Curves(out, out.copy())


def _closed(E: np.ndarray, rho: float, kappa: float) -> np.ndarray:
    g = 1 + E * (rho - kappa)
    root = np.sqrt(g**2 + 4 * kappa * E)
    # The two expressions are equal; each is free of cancellation on its own side.
    R = np.where(g >= 0, 2 / (np.abs(g) + root), (np.abs(g) + root) / (2 * kappa * E))
    slope = -(kappa * R**2 + (rho - kappa) * R) / root
    return (1 - 2 * (1 + E) * R + (1 + E) ** 2 * (R + E * slope)) / (2 * E**2)


def large_data_next(
    times: ArrayLike,
    rho: float,
    kappa: float,
    *,
    law: SpectralMeasure | None = None,
    nodes: int = 64,
    rtol: Annotated[float, "1e-14 <= rtol < 1"] = 1e-9,
) -> Curves:
    r"""The first correction in c = d / n, and with it the generalisation gap.

    With :math:`S = I + \sqrt c\,G`, G semicircular, on nodes :math:`a_i` of the initial
    law (:math:`a_i' = -4 a_i b_i`, :math:`b = a - 1`):

    .. math::
        U_{ij}' &= -4 (a_i + a_j - 1) U_{ij} + (a_i + a_j)(a_i + a_j - 2) \\
        Z_i' &= -4 (2 a_i - 1) Z_i + \sum_j w_j
                [-4 U_{ij}^2 + (4 a_i + 2 (a_i + a_j - 2)) U_{ij}] \\
        (L_{pop} - L_0)/d &= \tfrac{c}{2} \sum_i w_i
                [2 b_i Z_i + \textstyle\sum_j w_j U_{ij}^2] \\
        (L_{pop} - L_{train})/d &= \tfrac{c}{2} \sum_{ij} w_i w_j (b_i + b_j) U_{ij}

    Args:
        times: (T,) increasing.
        rho, kappa: sigma^2 h and sigma^2 d.
        law: spectral law of the initial map instead of Marchenko-Pastur's.
        nodes: quadrature nodes; the cost grows as their square.
        rtol: tolerance of the integration.

    Returns:
        `Curves` to be multiplied by c and added.

    Raises:
        ValueError: bad times or parameters.

    Cost: about 0.2 s for 64 nodes.

    Source: :eq:`drv-regimes-large-next` (derivations), beyond the paper.

    Examples:
        >>> step = large_data_next([0.0, 0.5], 1.0, 1.0)
        >>> (step.population > step.train).tolist()
        [False, True]
    """
    t = check_times(times)
    mu = law or marchenko_pastur(rho, kappa, nodes - 1)  # and an atom beside
    mu, _ = coarser(mu, mu.nodes, nodes)
    w, a0, size = mu.weights, mu.nodes, mu.nodes.size

    def field(time: float, y: np.ndarray) -> np.ndarray:
        a = logistic(a0, time)
        U, Z = y[:-size].reshape(size, size), y[-size:]
        pair = a[:, None] + a
        dU = -4 * (pair - 1) * U + pair * (pair - 2)
        source = (-4 * U + 4 * a[:, None] + 2 * (pair - 2)) * U
        return np.append(dU, -4 * (2 * a - 1) * Z + source @ w)

    states = solve(field, np.zeros(size * (size + 1)), t, rtol, rtol * 1e-2)
    b = logistic(a0, t[:, None]) - 1
    U, Z = states[:, :-size].reshape(-1, size, size), states[:, -size:]
    population = (2 * b * Z + U**2 @ w) @ w / 2
    return Curves(population - (U @ w * b) @ w, population)
