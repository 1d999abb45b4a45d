r"""A Kronecker-factored stand-in for G, to precondition conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolib.core.jacobian_factors import DenseBlock, JacobianFactors, LayerBlock


def kronecker_preconditioner(
    A: JacobianFactors, damping: float
) -> Callable[[Tensor], Tensor]:
    r"""Apply (F + damping I)^-1 with F Kronecker-factored, layer by layer.

    .. math:: F_l = \Bigl(\sum_{i t} \delta_{i t} \delta_{i t}^T\Bigr) \otimes
              \Bigl(\tfrac{1}{n t} \sum_{i t} x_{i t} x_{i t}^T\Bigr),

    with a 1 appended to x for the bias. Parameters of other layers are scaled by the
    diagonal of G. With damping 0 the least eigenvalues are lifted to 1e-6 of the top.

    Cost: two symmetric eigenproblems of the layer's widths for each layer.

    Source: Martens and Grosse 2015 (the `expand` form for shared weights).
    """
    parts = []
    for block in A.blocks:
        if isinstance(block, LayerBlock):
            parts.append(_layer(block, damping))
        elif isinstance(block, DenseBlock):
            parts.append(_diagonal(block, damping))

    def apply(v: Tensor) -> Tensor:
        out = v.clone()
        for part in parts:
            part(v, out)
        return out

    return apply


def _layer(block: LayerBlock, damping: float) -> Callable[[Tensor, Tensor], None]:
    x = block.x
    if block.bias is not None:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    x = x.reshape(block.g, -1, x.shape[-1])
    delta = block.delta.permute(2, 0, 1, 3, 4).reshape(block.g, -1, block.a)
    sx, Qx = torch.linalg.eigh(x.mT @ x / x.shape[1])
    sd, Qd = torch.linalg.eigh(delta.mT @ delta)
    scale = sd.clamp_min(0)[:, :, None] * sx.clamp_min(0)[:, None, :]
    scale = scale + max(damping, 1e-6 * float(scale.max()))
    bias = block.bias

    def apply(v: Tensor, out: Tensor) -> None:
        W = v[block.weight].view(block.g, block.a, block.d)
        if bias is not None:
            W = torch.cat([W, v[bias].view(block.g, block.a, 1)], dim=-1)
        W = Qd @ ((Qd.mT @ W @ Qx) / scale) @ Qx.mT
        out[block.weight] = W[..., : block.d].reshape(-1)
        if bias is not None:
            out[bias] = W[..., block.d].reshape(-1)

    return apply


def _diagonal(block: DenseBlock, damping: float) -> Callable[[Tensor, Tensor], None]:
    scale = block.rows.square().sum(dim=(0, 1))
    scale = scale + max(damping, 1e-6 * float(scale.max()))

    def apply(v: Tensor, out: Tensor) -> None:
        out[block.index] = v[block.index] / scale

    return apply
