"""Bump functions: the smooth partition between a stratum's collar and the rest."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_step(r: Tensor) -> Tensor:
    r"""A smooth step is exactly 0 for r <= 0 and exactly 1 for r >= 1.

    .. math:: S(r) = \frac{f(r)}{f(r) + f(1 - r)}, \qquad f(r) = e^{-1/r}\,[r > 0]

    Args:
        r: any shape.

    Returns:
        The step, of the same shape.

    Source: :eq:`drv-stratifolds-step` (derivations).

    Examples:
        >>> smooth_step(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return _step(r)[0]


def _step(r: Tensor) -> tuple[Tensor, Tensor]:
    """The step S and its slope S(1 - S)(1/r^2 + 1/(1-r)^2), from one logistic."""
    inside = (r > 0) & (r < 1)
    # f(1-r)/f(r) = exp(1/r - 1/(1-r)): no 0/0 at the ends
    safe = r.where(inside, 0.5)
    low, high = 1 / safe, 1 / (1 - safe)
    s = torch.sigmoid(high - low)
    slope = s * (1 - s) * (low * low + high * high)
    return s.where(inside, (r >= 1).to(r.dtype)), slope.where(inside, 0.0)


def smooth_modulus(t: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r"""The smooth modulus is a positive stand-in for ``|t|``, given with its slope.

    .. math:: |t|_\varepsilon = S(a)\,|t| + (1 - S(a))\sqrt{t^2 + \varepsilon^2/4},
              \qquad a = 2|t|/\varepsilon - 1

    A hyperbola for :math:`|t| < \varepsilon/2`, exactly :math:`|t|` from
    :math:`|t| = \varepsilon` on, never below :math:`\varepsilon/2`.

    Args:
        t: signed distance, any shape.
        eps: width of the collar, positive, in the units of `t`.

    Returns:
        The pair :math:`(|t|_\varepsilon,\ d|t|_\varepsilon/dt)`.

    Raises:
        ValueError: `eps` is not positive.

    Source: :eq:`eq-stratifolds-modulus`; bounds in
    :eq:`drv-stratifolds-modulus` (derivations).

    Examples:
        >>> smooth_modulus(torch.tensor([0.0, 0.3]), eps=0.2)[0]
        tensor([0.1000, 0.3000])
    """
    check_eps(eps)
    size = t.abs()
    if bool((size >= eps).all()):  # most of a descent: no row is inside the collar
        return size, torch.sign(t)
    s, ds = _step(2 * size / eps - 1)
    hyperbola = torch.sqrt(t * t + eps * eps / 4)
    short = size - hyperbola
    modulus = torch.where(size >= eps, size, hyperbola + s * short)
    slope = torch.lerp(t / hyperbola, torch.sign(t), s)
    return modulus, slope + ds * (2 / eps) * torch.sign(t) * short


def check_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Examples:
        >>> check_finite(torch.zeros(2), "x")
    """
    if not bool(torch.isfinite(torch.view_as_real(x + 0j)).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def check_eps(eps: float) -> float:
    """Refuse a collar width that is not a positive finite number; give it as a float.

    Examples:
        >>> check_eps(1)
        1.0
    """
    if not 0 < float(eps) < float("inf"):
        raise ValueError(f"eps: expected a positive finite width, got {eps!r}")
    return float(eps)
