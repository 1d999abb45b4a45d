"""The arcsine kernel: the overlap of two error-function units, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ErfKernel:
    r"""The overlap of two error-function units on standard normal inputs.

    .. math:: k(a, b) = E\Bigl[\mathrm{erf}\tfrac{a\cdot x}{\sqrt2}\,
              \mathrm{erf}\tfrac{b\cdot x}{\sqrt2}\Bigr]
              = \frac2\pi \arctan\frac{a\cdot b}{\sqrt{E}}, \quad
              E = (1+|a|^2)(1+|b|^2) - (a\cdot b)^2

    With :math:`p = b - a\,(a\cdot b)/(1+|a|^2)` the derivative in a is
    :math:`\tfrac2\pi\,p/\sqrt E`; the second derivatives follow from it. The roles of
    weights and inputs are symmetric, so k is also the kernel of infinitely many random
    units: that of inputs x, y under weights N(0, I) of erf(w.x) is
    :math:`k(\sqrt2 x, \sqrt2 y)`.

    Source: Williams 1997 (arcsine kernel); its derivatives are
    :eq:`drv-stratifolds-erf` (derivations).

    Examples:
        >>> ErfKernel()(torch.ones(1), torch.ones(1))
        tensor(0.3333)
    """

    @staticmethod
    def _parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = 1 + (a * a).sum(-1)
        dot = (a * b).sum(-1)
        E = n * (1 + (b * b).sum(-1)) - dot * dot
        p = b - a * (dot / n)[..., None]
        return n, dot, E, p

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b) for a, b of shape (..., n) that broadcast."""
        _, dot, E, _ = self._parts(a, b)
        return 2 / math.pi * torch.atan(dot / torch.sqrt(E))

    def d1(self, a: Tensor, b: Tensor) -> Tensor:
        """The derivative in a, (..., n)."""
        _, _, E, p = self._parts(a, b)
        return 2 / math.pi * p / torch.sqrt(E)[..., None]

    def d12(self, a: Tensor, b: Tensor) -> Tensor:
        """The mixed derivative in a and b, (..., n, n)."""
        n, _, E, p = self._parts(a, b)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        first = eye - a[..., :, None] * a[..., None, :] / n[..., None, None]
        second = p[..., :, None] * p[..., None, :] * (n / E)[..., None, None]
        return 2 / math.pi * (first - second) / torch.sqrt(E)[..., None, None]

    def d11(self, a: Tensor, b: Tensor) -> Tensor:
        """The second derivative in a, (..., n, n)."""
        n, dot, E, p = self._parts(a, b)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        A, Bm = a[..., None, :], b[..., :, None]
        ratio = (dot / n)[..., None, None]
        # rows: derivative index; columns: component of p
        dp = -eye * ratio - (Bm - 2 * ratio * a[..., :, None]) * A / n[..., None, None]
        half_dE = a * (1 + (b * b).sum(-1))[..., None] - b * dot[..., None]
        second = half_dE[..., :, None] * p[..., None, :] / E[..., None, None]
        return 2 / math.pi * (dp - second) / torch.sqrt(E)[..., None, None]
