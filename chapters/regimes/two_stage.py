"""Large data with few latents: the second, slow stage, where the limits do not commute."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from geolib.regimes import SpectralMeasure, large_data
from geolib.regimes.loss_curves import Curves, logistic
from geolib.regimes.setup import check_times


def large_data_two_stage(
    times: ArrayLike, W0: ArrayLike, S: ArrayLike, *, grid: int = 2000
) -> Curves:
    r"""The losses over d for h < d and long times, when the limits do not commute.

    After the fast stage :math:`W W^T` is near the identity and the flow is Oja's: the
    row space of W turns towards the leading eigenvectors of S as
    :math:`range(e^{S s} W_0^T)`, with projector :math:`P_s`:

    .. math::
        L_{train} &= L_{LD}(t) + \tfrac12 (tr S - d)
                     + \tfrac12 [h - tr(S P_s)] \\
        s(t) &= \int_0^t (2 - \phi(a)/\eta)\, dt

    Args:
        times: (T,) increasing.
        W0: (h, d) initial weights, h < d.
        S: (d, d) sample covariance.
        grid: points of the quadrature of s(t).

    Raises:
        ValueError: h >= d (nothing turns then: use `large_data`), or bad shapes.

    Cost: one eigendecomposition of S and one QR of (d, h) a time.

    Source: :eq:`drv-regimes-two-stage` (derivations); the second stage is the subspace
    flow of Oja 1982, solved by Yan, Helmke and Moore 1994.

    Examples:
        >>> S = np.diag([2.0, 1.0, 0.5])                # one latent, three inputs
        >>> two = large_data_two_stage([60.0], [[0.3, 0.3, 0.3]], S)
        >>> round(float(2 * 3 * two.train[0]), 6)       # 1 + 0.5: all but the first
        1.5
    """
    t = check_times(times)
    W0, S = np.asarray(W0, dtype=np.float64), np.asarray(S, dtype=np.float64)
    h, d = W0.shape
    if S.shape != (d, d):
        raise ValueError(f"S: expected ({d}, {d}) to fit W0, got {S.shape}")
    if h >= d:
        raise ValueError(f"W0: two stages need h < d, got h = {h}, d = {d}")
    a0 = np.append(np.linalg.svd(W0, compute_uv=False) ** 2, np.zeros(d - h))
    leading = large_data(t, 1.0, 1.0, law=SpectralMeasure(a0, np.full(d, 1 / d))).train
    fine = np.linspace(0.0, t[-1], grid) if t[-1] > 0 else np.zeros(2)
    a = logistic(a0, np.minimum(fine, 170.0)[:, None])
    rate = 2 - a.sum(1) / h
    s = np.append(0, np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(fine)))
    values, vectors = np.linalg.eigh(S)
    rows = W0 @ vectors
    kept = np.empty_like(t)
    for i, clock in enumerate(np.interp(t, fine, s)):
        basis = np.linalg.qr((rows * np.exp(clock * (values - values[-1]))).T)[0]
        kept[i] = values @ (basis**2).sum(1)
    train = leading + (np.trace(S) - d + h - kept) / (2 * d)
    return Curves(train, leading)
