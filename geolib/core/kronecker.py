r"""K-FAC: the Kronecker-factored approximation of a pulled-back metric."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from geolib.core.jacobian_factors import DenseBlock, JacobianFactors, LayerBlock
from geolib.core.validation import single

FLOOR = 1e-6  # of the largest eigenvalue: what a solve without damping lifts others to


class KroneckerFactors:
    r"""The metric with each layer's block replaced by a Kronecker product.

    .. math:: F_l = B_l \otimes A_l, \qquad
              B_l = \sum_{i t} \delta_{i t} \delta_{i t}^T, \qquad
              A_l = \tfrac{1}{n t} \sum_{i t} x_{i t} x_{i t}^T,

    with x the layer's inputs (a 1 appended for the bias) and :math:`\delta` the rows of
    A's output gradients, which carry the output metric and the 1/n. Parameters outside
    linear layers keep the diagonal of G. Half precision is worked with in float32.

    Args:
        rows: the factored Jacobian of G, from `G.rows()`.

    Attributes:
        layers: the blocks of linear layers, in the order of the pairs.

    Cost: two Gram matrices of the layer's widths for each layer; a solve costs two
    symmetric eigenproblems of these once, and four products a call.

    Source: Martens and Grosse 2015 (Grosse and Martens 2016 for convolutions, in the
    `expand` form for shared weights); :eq:`drv-core-kfac` (derivations).

    Examples:
        >>> from geolib.core import PullbackMetric
        >>> G = PullbackMetric(torch.nn.Linear(2, 1), torch.eye(2)).at(torch.zeros(3))
        >>> KroneckerFactors(G.rows()).pairs[0][1]  # inputs (1, 0) and (0, 1), with a 1
        tensor([[0.5000, 0.0000, 0.5000],
                [0.0000, 0.5000, 0.5000],
                [0.5000, 0.5000, 1.0000]])
    """

    def __init__(self, rows: JacobianFactors) -> None:
        self.p, self.like = rows.p, single(rows.like)
        self.layers = [b for b in rows.blocks if isinstance(b, LayerBlock)]
        self._others = [b for b in rows.blocks if isinstance(b, DenseBlock)]

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(B, A) of each layer; a leading axis counts the groups of a convolution."""
        found = []
        for layer in self.layers:
            x, delta = _joint_inputs(layer), _gradients(layer)
            B, A = delta.mT @ delta, x.mT @ x / x.shape[1]
            found.append((B[0], A[0]) if layer.g == 1 else (B, A))
        return found

    def split(self, v: Tensor) -> list[Tensor]:
        """The layers' parts of a flat vector, (out, in [+ 1]) each, groups first."""
        parts = []
        for layer in self.layers:
            W = v[layer.weight].view(layer.g, layer.a, layer.d)
            if layer.bias is not None:
                W = torch.cat([W, v[layer.bias].view(layer.g, layer.a, 1)], dim=-1)
            parts.append(W[0] if layer.g == 1 else W)
        return parts

    def join(self, parts: list[Tensor], out: Tensor | None = None) -> Tensor:
        """The inverse of `split`; other parameters are taken from `out`, or are 0."""
        out = self.like.new_zeros(self.p) if out is None else out.clone()
        for layer, W in zip(self.layers, parts, strict=True):
            W = W.reshape(layer.g, layer.a, -1)
            out[layer.weight] = W[..., : layer.d].reshape(-1)
            if layer.bias is not None:
                out[layer.bias] = W[..., layer.d].reshape(-1)
        return out

    def solve(self, v: Tensor, damping: float, factored: bool = False) -> Tensor:
        r"""The vector :math:`(F + \lambda I)^{-1} v`, layer by layer, (p,).

        With `factored` the damping goes into the factors, as K-FAC's optimizers do it,

        .. math:: (B + \tfrac{\sqrt\lambda}{\pi} I)^{-1}\, V\,
            (A + \pi \sqrt\lambda I)^{-1}, \qquad
            \pi^2 = \frac{\mathrm{tr} A / \dim A}{\mathrm{tr} B / \dim B} .

        Args:
            v: shape (p,).
            damping: at least 0. With 0 the least eigenvalues are lifted to 1e-6 of the
                top; the factored form inverts the factors as they are.
            factored: see above.

        Raises:
            LinAlgError: singular factors, in the factored form without damping.
        """
        given, v = v, single(v)
        form = self._factored if factored else self._exact
        parts = [form(k, V, damping) for k, V in enumerate(self.split(v))]
        out = self.join(parts, v)
        for block in self._others:
            scale = _lifted(single(block.rows).square().sum(dim=(0, 1)), damping)
            out[block.index] = _divided(v[block.index], scale)
        return out.to(given)

    def _exact(self, k: int, V: Tensor, damping: float) -> Tensor:
        (sb, Qb), (sa, Qa) = self._eigen[k]
        scale = sb.clamp_min(0)[..., :, None] * sa.clamp_min(0)[..., None, :]
        scale = _lifted(scale, damping)
        return Qb @ _divided(Qb.mT @ V @ Qa, scale) @ Qa.mT

    def _factored(self, k: int, V: Tensor, damping: float) -> Tensor:
        B, A = self.pairs[k]
        if damping > 0:
            mean_a = A.diagonal(0, -2, -1).mean(-1)
            mean_b = B.diagonal(0, -2, -1).mean(-1)
            share = mean_a / mean_b  # no share where a factor is zero: a dead layer
            share = torch.where((mean_a > 0) & (mean_b > 0), share, 1.0)
            pi, root = share.sqrt()[..., None, None], damping**0.5
            A = A + pi * root * torch.eye(A.shape[-1]).to(A)
            B = B + root / pi * torch.eye(B.shape[-1]).to(B)
        try:
            return torch.linalg.solve(A, torch.linalg.solve(B, V).mT).mT
        except torch.linalg.LinAlgError:
            sizes = f"{self.layers[k].d} inputs and {self.layers[k].a} outputs"
            what = f"the factors of a linear layer of {sizes} are singular"
            text = f"damping: {what}; expected more than {damping:g}"
            raise torch.linalg.LinAlgError(text) from None

    @cached_property
    def _eigen(self) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        eigh = torch.linalg.eigh
        return [(tuple(eigh(B)), tuple(eigh(A))) for B, A in self.pairs]

    def dense(self) -> Tensor:
        """F itself, shape (p, p), block-diagonal; the slow reference."""
        unit = torch.eye(self.p, dtype=self.like.dtype, device=self.like.device)
        columns = []
        for e in unit:
            blocks = zip(self.pairs, self.split(e), strict=True)
            out = self.join([B @ V @ A for (B, A), V in blocks])
            for block in self._others:
                scale = single(block.rows).square().sum(dim=(0, 1))
                out[block.index] = scale * e[block.index]
            columns.append(out)
        return torch.stack(columns, dim=1)


def _lifted(scale: Tensor, damping: float) -> Tensor:
    """Eigenvalues with the damping, which is at least a share of the largest."""
    return scale + max(damping, FLOOR * float(scale.max() if scale.numel() else 0))


def _divided(v: Tensor, scale: Tensor) -> Tensor:
    """v / scale, and 0 where the scale is: what no output sees does not move."""
    return torch.where(scale > 0, v / scale, 0.0)


def _joint_inputs(layer: LayerBlock) -> Tensor:
    """Inputs at all positions of all samples, (groups, n t, in [+ 1])."""
    x = single(layer.x)
    if layer.bias is not None:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    return x.reshape(layer.g, -1, x.shape[-1])


def _gradients(layer: LayerBlock) -> Tensor:
    """Output gradients at all positions, roots and samples, (groups, n r t, out)."""
    return single(layer.delta).permute(2, 0, 1, 3, 4).reshape(layer.g, -1, layer.a)
