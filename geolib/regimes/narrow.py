"""Narrow latent space (h / d to 0): the face k = 1, solved by one quadrature."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.loss_curves import Curves, solve
from geolib.regimes.mean_field import variances
from geolib.regimes.setup import check_times
from geolib.regimes.spectral_measures import SpectralMeasure, covariance_law


def narrow(
    times: ArrayLike,
    kappa: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    overlap: ArrayLike | None = None,
    rtol: Annotated[float, "1e-14 <= rtol < 1"] = 1e-10,
) -> Curves:
    r"""The losses over h, less their values for the zero map, when latents decouple.

    Each row runs alone, :math:`w(t) = v^{-1/2} e^{s S} w_0`; with
    :math:`F(s) = \kappa \int \mu(dx) e^{2sx}`,

    .. math::
        s' = 2 - F(s)/v, \quad v' = F'(s), \quad s(0) = 0, \; v(0) = 1, \\
        r = F/v, \quad q = F'/(2v), \quad
        \frac{L_{train} - tr S/2}{h} = -q (1 - r/2), \quad
        \frac{L_{pop} - d/2}{h} = -(r - r^2/2) .

    The first integral :math:`v (v - F) = 1 - \kappa` leaves, for kappa < 2, the single
    quadrature :math:`t = \int_0^s ds' / (2 - F/v)`. It needs h far below d, n and the
    effective rank of S: rows that head for the same few eigenvectors do not decouple.

    Args:
        times: (T,) increasing.
        kappa: sigma^2 d.
        c: d / n, for isotropic Gaussian data.
        law: the law of S as a single row sees it, instead of `c`: the spectrum of S,
            or its eigenvalues weighted by the squares of a row's components.
        overlap: (N,) population variance of each node's direction; default ones. The
            population excess is then :math:`-(p - p r / 2)` with
            :math:`p = \kappa \int \mu(dx) \Sigma(x) e^{2sx} / v`.
        rtol: tolerance of the ODE.

    Raises:
        ValueError: bad times or parameters.

    Cost: about 0.05 s for 200 times and 400 nodes.

    Source: :eq:`drv-regimes-narrow` and :eq:`drv-regimes-first-integral`
    (derivations); one latent is Oja's flow, Oja 1982.

    Examples:
        >>> one = narrow([0.0], kappa=0.5, c=1.0)
        >>> round(float(one.population[0]), 12)      # -(kappa - kappa^2 / 2)
        -0.375
    """
    t, mu = check_times(times), covariance_law(c, law)
    kappa, x, w = float(kappa), mu.nodes, mu.weights

    def field(_: float, y: np.ndarray) -> np.ndarray:
        e = kappa * np.exp(2 * y[0] * x - y[1]) * w
        return np.array([2 - e.sum(), 2 * e @ x])

    # s and log v; log v because v itself overflows
    s, log_v = solve(field, np.zeros(2), t, rtol, rtol * 1e-2).T
    e = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes) - log_v[:, None])
    r, q = e @ mu.weights, e @ (mu.weights * mu.nodes)
    p = r if overlap is None else e @ (mu.weights * variances(overlap, mu))
    return Curves(-q * (1 - r / 2), -p * (1 - r / 2))


def per_input(
    change: Curves, eta: float, law: SpectralMeasure, variance: Any
) -> Curves:
    """Losses over d whose excess over those of the zero map, over h, is `change`."""
    zero = law.nodes @ law.weights / 2, variances(variance, law) @ law.weights / 2
    return Curves(*(z + eta * y for z, y in zip(zero, change, strict=True)))
