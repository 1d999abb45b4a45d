"""Narrow latent space (h / d to 0): the face k = 1, solved by one quadrature."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes.loss_curves import Curves, solve
from geolib.regimes.setup import check_times, positive
from geolib.regimes.spectral_measures import SpectralMeasure, covariance_law

PANELS = 400  # of the quadrature; eight Gauss points each leave 1e-12 on its curves


def narrow(
    times: ArrayLike,
    kappa: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    overlap: ArrayLike | None = None,
    method: str = "ode",
    rtol: float = 1e-10,
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
        method: `ode`, or `quadrature` (kappa < 2 only).
        rtol: tolerance of the ODE.

    Raises:
        ValueError: bad times or parameters; `quadrature` with kappa >= 2, where s first
            runs backwards on the other root.

    Cost: about 0.05 s for 200 times and 400 nodes, either way.

    Source: :eq:`drv-regimes-narrow` and :eq:`drv-regimes-first-integral`
    (derivations); one latent is Oja's flow, Oja 1982.

    Examples:
        >>> one = narrow([0.0], kappa=0.5, c=1.0)
        >>> round(float(one.population[0]), 12)      # -(kappa - kappa^2 / 2)
        -0.375
    """
    t, mu = check_times(times), covariance_law(c, law)
    kappa = positive("kappa", kappa)
    if method == "quadrature":
        s, log_v = _by_quadrature(t, kappa, mu)
    elif method == "ode":
        s, log_v = _by_ode(t, kappa, mu, rtol)
    else:
        raise ValueError(f"method: expected 'ode' or 'quadrature', got {method!r}")
    e = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes) - log_v[:, None])
    r, q = e @ mu.weights, e @ (mu.weights * mu.nodes)
    p = r if overlap is None else e @ (mu.weights * np.asarray(overlap, float))
    return Curves(-q * (1 - r / 2), -p * (1 - r / 2))


def _by_ode(
    t: np.ndarray, kappa: float, mu: SpectralMeasure, rtol: float
) -> tuple[np.ndarray, np.ndarray]:
    """s and log v at each time; log v because v itself overflows."""
    x, w = mu.nodes, mu.weights

    def field(_: float, y: np.ndarray) -> np.ndarray:
        e = kappa * np.exp(2 * y[0] * x - y[1]) * w
        return np.array([2 - e.sum(), 2 * e @ x])

    states = solve(field, np.zeros(2), t, rtol, rtol * 1e-2)
    return states[:, 0], states[:, 1]


def _log_v(s: np.ndarray, kappa: float, mu: SpectralMeasure) -> np.ndarray:
    """log v on the root v = (F + sqrt(F^2 + 4 (1 - kappa))) / 2 of the first integral.

    F and v are taken in units of their largest exponential, which may overflow.
    """
    largest = 2 * s * mu.nodes.max()
    F = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes) - largest[..., None])
    F = F @ mu.weights
    root = np.sqrt(np.maximum(F**2 + 4 * (1 - kappa) * np.exp(-2 * largest), 0.0))
    return largest + np.log((F + root) / 2)


def _dt_ds(s: np.ndarray, kappa: float, mu: SpectralMeasure) -> np.ndarray:
    """The integrand 1 / (2 - F / v) of t(s)."""
    log_v = _log_v(s, kappa, mu)
    e = np.exp(2 * np.multiply.outer(s, mu.nodes) - log_v[..., None])
    return 1 / (2 - kappa * (e @ mu.weights))


def _by_quadrature(
    t: np.ndarray, kappa: float, mu: SpectralMeasure
) -> tuple[np.ndarray, np.ndarray]:
    r"""Invert t(s) by Gauss-Legendre panels of ds / (2 - F / v) and Newton steps."""
    if kappa >= 2:
        raise ValueError(
            f"kappa: the quadrature needs kappa < 2, got {kappa}; use method='ode'"
        )
    node, weight = np.polynomial.legendre.leggauss(8)

    def integral(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        half = (right - left) / 2
        at = left[:, None] + half[:, None] * (1 + node)
        return _dt_ds(at, kappa, mu) @ weight * half

    # r tends to one from either side, so s' lies between its start and one.
    longest = t[-1] * max(1.0, 2 - kappa) + 1e-12
    # Panels shrink towards 0, where the rate is steep when kappa is near 2.
    edges = longest * np.linspace(0.0, 1.0, PANELS + 1) ** 2
    clock = np.append(0.0, np.cumsum(integral(edges[:-1], edges[1:])))
    s = np.interp(t, clock, edges)
    for _ in range(4):
        panel = np.clip(np.searchsorted(edges, s, "right") - 1, 0, PANELS - 1)
        here = clock[panel] + integral(edges[panel], s)
        s = np.clip(s - (here - t) / _dt_ds(s, kappa, mu), 0.0, longest)
    return s, _log_v(s, kappa, mu)
