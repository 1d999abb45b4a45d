"""Mean-field (h / d to infinity): the face k = l, solved for any sample covariance."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect
from geolib.regimes.loss_curves import Curves, logistic, solve
from geolib.regimes.setup import check_times
from geolib.regimes.spectral_measures import (
    SpectralMeasure,
    coarser,
    covariance_law,
    marchenko_pastur,
)


def mean_field(
    times: ArrayLike,
    rho: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    overlap: ArrayLike | None = None,
) -> Curves:
    r"""The losses over d of a very wide autoencoder: the map is a function of S.

    .. math::
        1 - a(x, t) = \frac{(1-\rho) e^{-4xt}}{\rho + (1-\rho) e^{-4xt}} , \qquad
        L_{train}/d = \tfrac12 \int \mu(dx)\, x (1-a)^2 , \qquad
        L_{pop}/d = \tfrac12 \int \mu(dx)\, (1-a)^2

    Args:
        times: (T,) increasing.
        rho: sigma^2 h.
        c: d / n, for isotropic Gaussian data (the law is then Marchenko-Pastur's).
        law: the spectral law of S instead of `c`.
        overlap: (N,) population variance v_i^T Sigma v_i along the i-th node's
            direction, for a population that is not isotropic; default ones.

    Raises:
        ValueError: bad times, neither or both of `c` and `law`, or a wrong `overlap`.

    Cost: O(T N).

    Source: :eq:`drv-regimes-logistic` (derivations). A linear network that starts in
    the eigenbasis of its data is solved mode by mode in Fukumizu 1998 and Saxe,
    McClelland and Ganguli 2014.

    Examples:
        >>> wide = mean_field([0.0, 1.0], rho=0.2, c=0.5)
        >>> round(float(wide.train[0]), 6)       # (1 - rho)^2 / 2
        0.32
    """
    t, mu = check_times(times), covariance_law(c, law)
    growth = np.multiply.outer(t, mu.nodes)
    left = (1 - logistic(float(rho), growth)) ** 2 / 2
    variance = variances(overlap, mu)
    return Curves(left @ (mu.weights * mu.nodes), left @ (mu.weights * variance))


def mean_field_next(
    times: ArrayLike,
    rho: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    overlap: ArrayLike | None = None,
    nodes: int = 64,
    rtol: Annotated[float, "1e-14 <= rtol < 1"] = 1e-9,
) -> Curves:
    r"""The coefficients of d / h beyond the leading mean-field curves.

    On nodes :math:`x_i` of the law of S, with :math:`b = a - 1`:

    .. math::
        F_{ij}' &= -[(x_i + x_j)(a_i + a_j) + 2 x_i b_i + 2 x_j b_j] F_{ij},
                   \qquad F(0) = \rho \\
        Z_i' &= -4 x_i (a_i + b_i) Z_i - 2 \sum_j w_j (x_i + x_j) F_{ij}^2,
                   \qquad Z(0) = 0 \\
        \delta L_{pop}/d &= \tfrac12 \sum_i w_i g_i , \quad
        \delta L_{train}/d = \tfrac12 \sum_i w_i x_i g_i , \quad
        g_i = 2 b_i Z_i + \sum_j w_j F_{ij}^2

    Args:
        times: (T,) increasing.
        rho: sigma^2 h.
        c, law, overlap: as in `mean_field`; more than `nodes` nodes are merged.
        nodes: quadrature nodes; the cost grows as their square.
        rtol: tolerance of the integration.

    Returns:
        `Curves` to be multiplied by d / h and added to `mean_field`'s.

    Raises:
        ValueError: bad times, neither or both of `c` and `law`, or a wrong `overlap`.

    Cost: about 0.1 s for 64 nodes.

    Source: :eq:`drv-regimes-mean-field-next` (derivations), beyond the paper.

    Examples:
        >>> round(float(mean_field_next([0.0], 0.5, 1.0).population[0]), 9)  # rho^2 / 2
        0.125
    """
    t, rho = check_times(times), float(rho)
    if law is None and c is not None:
        law, c = marchenko_pastur(1.0, c, nodes - 1), None  # and an atom beside
    fine = covariance_law(c, law)
    mu, variance = coarser(fine, variances(overlap, fine), nodes)
    x, w, size = mu.nodes, mu.weights, mu.nodes.size
    both = x[:, None] + x

    def field(time: float, y: np.ndarray) -> np.ndarray:
        a = logistic(rho, time * x)
        F, Z = y[:-size].reshape(size, size), y[-size:]
        pull = 2 * x * (a - 1)
        dF = -(both * (a[:, None] + a) + pull[:, None] + pull) * F
        dZ = -4 * x * (2 * a - 1) * Z - 2 * (both * F**2) @ w
        return np.append(dF, dZ)

    start = np.append(np.full(size * size, rho), np.zeros(size))
    states = solve(field, start, t, rtol, rtol * 1e-2)
    F, Z = states[:, :-size].reshape(-1, size, size), states[:, -size:]
    g = 2 * (logistic(rho, np.multiply.outer(t, x)) - 1) * Z + F**2 @ w
    return Curves(g @ (w * x) / 2, g @ (w * variance) / 2)


def variances(overlap: ArrayLike | None, law: SpectralMeasure) -> np.ndarray:
    """The population variance along each node's direction; ones by default."""
    out = np.ones_like(law.nodes) if overlap is None else np.asarray(overlap, float)
    fits = out.shape == law.nodes.shape and np.isfinite(out).all()
    expect(fits, "overlap", f"{law.nodes.size} finite values", out.shape)
    return out
