r"""Networks whose layers are single matrices, and layers seen in other coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core.validation import expect


class AffineLayer(nn.Module):
    r"""An affine layer held in one matrix, optionally seen through (U, V).

    .. math:: y = U^{-1} \, W \, V^{-1} \, (x, 1)^T .

    In the home chart U and V are absent. In the chart
    :math:`W' = U W V` the layer's own input is :math:`V^{-1}(x, 1)` and its own
    output gradient :math:`U^{-T} g`: what a layer-wise method such as K-FAC reads.

    Args:
        weight: (out, in + 1).
        left, right: :math:`U^{-1}` and :math:`V^{-1}`, or None.

    Source: :eq:`drv-naturality-kfac` (derivations).

    Examples:
        >>> layer = AffineLayer(torch.tensor([[2.0, 1.0]]))
        >>> layer(torch.tensor([[3.0]])).item()
        7.0
    """

    def __init__(
        self, weight: Tensor, left: Tensor | None = None, right: Tensor | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.left, self.right = left, right

    def features(self, x: Tensor) -> Tensor:
        """Return the layer's own input, (n, in + 1)."""
        a = torch.cat([x, x.new_ones(x.shape[0], 1)], dim=1)
        return a if self.right is None else a @ self.right.T

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(self.features(x), self.weight)
        return y if self.left is None else y @ self.left.T


def affine_mlp(
    sizes: Annotated[Sequence[int], "1 <= sizes <= 10**6"],
    activation: Callable[[], nn.Module] = nn.Tanh,
    *,
    seed: int = 0,
    gain: float = 1.0,
) -> nn.Sequential:
    r"""Build a float64 multilayer perceptron of affine layers, drawn by NumPy.

    Each layer is one matrix (out, in + 1), its bias the last column. Weights are
    :math:`N(0, \mathrm{gain}^2/\mathrm{in})`, biases :math:`N(0, 0.1^2)`.

    Args:
        sizes: widths from inputs to outputs.
        activation: makes the layer between two of them.
        seed: of the draw.
        gain: standard deviation of the weights, times the root of the fan-in.

    Raises:
        ValueError: fewer than two widths, or one that is not positive.

    Source: :eq:`drv-naturality-families` (derivations), which acts on such matrices.

    Examples:
        >>> [tuple(w.shape) for w in affine_mlp([2, 3, 1]).parameters()]
        [(3, 3), (1, 4)]
    """
    expect(len(sizes) >= 2, "sizes", "two or more widths", sizes)
    rng = np.random.default_rng(seed)
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        w = gain * rng.standard_normal((fan_out, fan_in)) / np.sqrt(fan_in)
        b = 0.1 * rng.standard_normal((fan_out, 1))
        parts += [AffineLayer(torch.tensor(np.hstack([w, b]))), activation()]
    return nn.Sequential(*parts[:-1])


def blocks(module: nn.Module) -> list[Tensor]:
    """Index matrices (out, in or in + 1) of every layer into the flat vector.

    A layer's weight and bias are joined into one block if they have as many rows,
    weights of more than two axes are flattened, and any other parameter is a row.

    Examples:
        >>> [tuple(b.shape) for b in blocks(nn.Sequential(nn.Linear(2, 3)))]
        [(3, 3)]
    """
    start, index = 0, {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            index[name] = torch.arange(start, start + p.numel()).view(p.shape)
            start += p.numel()
    if not index:
        raise ValueError(f"module: {type(module).__name__} has no trainable parameters")
    result = []
    for name, i in index.items():
        stem = name.removesuffix("weight").removesuffix("bias")
        W, b = index.get(f"{stem}weight"), index.get(f"{stem}bias")
        both = W is not None and W.ndim > 1 and b is not None and len(W) == len(b)
        if both and i is b:
            continue  # it is joined to its weight
        block = i.reshape(i.shape[0], -1) if i.ndim > 1 else i.reshape(1, -1)
        if both and b is not None:
            block = torch.cat([block, b.reshape(-1, 1)], dim=1)
        result.append(block)
    return result


def in_chart(module: nn.Module, layers: Any) -> nn.Sequential:
    r"""The same network with every layer written in the chart :math:`W' = U W V`.

    Args:
        module: a Sequential of `AffineLayer` layers and activations.
        layers: the pairs (U, V), one per layer, or None for the home chart.

    Raises:
        TypeError: a layer with parameters that is not `AffineLayer`.
    """
    parts: list[nn.Module] = []
    pairs = iter(layers or ())
    for m in module.children():
        if isinstance(m, AffineLayer) and layers is None:
            parts.append(AffineLayer(m.weight.detach().clone()))
        elif isinstance(m, AffineLayer):
            U, V = next(pairs)
            inverses = torch.linalg.inv(U), torch.linalg.inv(V)
            parts.append(AffineLayer(U @ m.weight.detach() @ V, *inverses))
        elif any(True for _ in m.parameters()):
            raise TypeError(
                "module: expected a Sequential of AffineLayer layers (affine_mlp), got a "
                f"{type(m).__name__}"
            )
        else:
            parts.append(m)
    return nn.Sequential(*parts)
