r"""The arcsine kernels of infinitely wide networks with activation erf."""

from __future__ import annotations

import torch
from torch import Tensor


def erf_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the NNGP and NTK kernels of an infinitely wide erf network.

    .. math:: K = \tfrac2\pi\arcsin\frac{2x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y)}}, \qquad
        \Theta = K + \tfrac4\pi\frac{x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y) - 4(x\cdot y)^2}} .

    For hidden weights N(0, I) and readout N(0, 1), one hidden layer, no biases.

    Args:
        x, y: inputs, (n, d) and (m, d).

    Returns:
        K and :math:`\Theta`, both (n, m).

    Source: Williams 1998 for K; :eq:`drv-naturality-erf` (derivations).

    Examples:
        >>> K, NTK = erf_kernels(torch.tensor([[0.5**0.5]]), torch.tensor([[0.5**0.5]]))
        >>> K  # 2 x.x = 1: arcsin(1/2) is a sixth of pi
        tensor([[0.3333]])
    """
    xy = x @ y.T
    norms = (1 + 2 * (x * x).sum(1))[:, None] * (1 + 2 * (y * y).sum(1))[None, :]
    K = 2 / torch.pi * torch.asin(2 * xy / norms.sqrt())
    slope = 4 / torch.pi / (norms - 4 * xy**2).sqrt()
    return K, K + xy * slope
