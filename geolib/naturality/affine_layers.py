r"""Networks whose layers are single matrices, and layers seen in other coordinates."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolib.core.validation import expect


class AffineLayer(nn.Module):
    r"""An affine layer held in one matrix, optionally seen through (U, V).

    .. math:: y = U^{-1} \, W \, V^{-1} \, (x, 1)^T .

    In the home chart U and V are absent. In the chart
    :math:`W' = U W V` the layer's own input is :math:`V^{-1}(x, 1)` and its own
    output gradient :math:`U^{-T} g`: what a layer-wise method such as K-FAC reads.

    Args:
        weight: (out, in + 1), or (out, in) where `like` has no bias.
        left, right: :math:`U^{-1}` and :math:`V^{-1}`, or None.
        like: the `nn.Linear` or `nn.Conv2d` that the matrix was made of; a convolution
            is an affine layer at each patch of its image.

    Raises:
        ValueError: a convolution with groups, or whose padding is not a number of zeros.

    Source: :eq:`drv-naturality-kfac` (derivations).

    Examples:
        >>> layer = AffineLayer(torch.tensor([[2.0, 1.0]]))
        >>> layer(torch.tensor([[3.0]])).item()
        7.0
    """

    def __init__(
        self,
        weight: Tensor,
        left: Tensor | None = None,
        right: Tensor | None = None,
        like: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.left, self.right = left, right
        self.image: list[Any] = []  # a list is no part of the module
        if isinstance(like, nn.Conv2d):
            plain = like.groups == 1 and like.padding_mode == "zeros"
            plain = plain and not isinstance(like.padding, str)
            wanted = "convolutions in one group, padded by a number of zeros"
            expect(plain, "module", wanted, like)
            self.image = [like]
        self.biased = getattr(like, "bias", weight) is not None

    def features(self, x: Tensor) -> Tensor:
        """Return the layer's own input, (n, *, in + 1); a convolution's at each patch."""
        for c in self.image:
            x = F.unfold(x, c.kernel_size, c.dilation, c.padding, c.stride).mT
        a = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1) if self.biased else x
        return a if self.right is None else a @ self.right.T

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.features(x), self.weight)
        y = y if self.left is None else y @ self.left.T
        for c in self.image:
            y = y.mT.unflatten(-1, c(x[:1]).shape[2:])
        return y


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
    return [index for _, index in _named_blocks(module)]


def _named_blocks(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """The blocks, each with the names of its parameters: a weight, perhaps its bias."""
    start, places = 0, {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            places[name] = torch.arange(start, start + p.numel()).view(p.shape)
            start += p.numel()
    if not places:
        raise ValueError(f"module: {type(module).__name__} has no trainable parameters")
    biases = {}
    for name, place in places.items():
        bias = f"{name.removesuffix('weight')}bias"
        if place.ndim > 1 and len(places.get(bias, ())) == len(place):
            biases[name] = bias
    found = []
    for name in [n for n in places if n not in biases.values()]:
        names = [n for n in (name, biases.get(name)) if n in places]
        rows = len(places[name]) if places[name].ndim > 1 else 1
        block = torch.cat([places[n].reshape(rows, -1) for n in names], 1)
        found.append((names, block))
    return found


class InChart(nn.Module):
    r"""A network with every block of its parameters in the chart :math:`W' = U W V`.

    Its parameters are these matrices, in the order of `blocks`. Linear layers and
    convolutions become an `AffineLayer` each; what other layers hold is computed.

    Args:
        module: the network, which is left alone.
        layers: the pairs (U, V), one per block, or None for the home chart.

    Raises:
        ValueError: parameters that are shared or frozen; a convolution with groups, or
            whose padding is not a number of zeros.

    Source: :eq:`drv-naturality-kfac` (derivations).
    """

    def __init__(self, module: nn.Module, layers: Any = None) -> None:
        super().__init__()
        used = [p for _, p in module.named_parameters(remove_duplicate=False)]
        good = len({*used}) == len(used) and all(p.requires_grad for p in used)
        expect(
            good, "module", "layers that share no parameter, and none frozen", module
        )
        self.matrices, self.net = nn.ParameterList(), copy.deepcopy(module)
        self.net.requires_grad_(False)
        self.computed: list[tuple[int, dict[str, torch.Size], Any, Any]] = []
        flat = nn.utils.parameters_to_vector(used).detach()
        found = _named_blocks(module)
        for (names, at), pair in zip(found, layers or [None] * len(found), strict=True):
            if pair is None:
                self._place(names, flat[at], None, None)
            else:
                inverses = (torch.linalg.inv(M) for M in pair)
                self._place(names, pair[0] @ flat[at] @ pair[1], *inverses)

    def _place(
        self, names: list[str], W: Tensor, left: Tensor | None, right: Tensor | None
    ) -> None:
        """Let the matrix W stand for the parameters of these names."""
        path = f"net.{names[0]}".rpartition(".")[0]
        owner = self.get_submodule(path)
        if type(owner) in (nn.Linear, nn.Conv2d, AffineLayer):
            layer = AffineLayer(W, left, right, owner)
            self.matrices.append(layer.weight)
            self.set_submodule(path, layer)
        else:  # attention reads the weights of its layers by itself, for one
            shapes = {name: self.net.get_parameter(name).shape for name in names}
            self.computed.append((len(self.matrices), shapes, left, right))
            self.matrices.append(nn.Parameter(W))

    def forward(self, *args: Any, **options: Any) -> Any:
        given: dict[str, Tensor] = {}
        for k, shapes, left, right in self.computed:
            W = self.matrices[k] if left is None else left @ self.matrices[k] @ right
            widths = [shape.numel() // len(W) for shape in shapes.values()]
            parts = zip(shapes.items(), W.split(widths, 1), strict=True)
            given |= {name: part.reshape(shape) for (name, shape), part in parts}
        return torch.func.functional_call(self.net, given, args, options)
