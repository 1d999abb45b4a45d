r"""Random numbers that repeat on every machine: NumPy draws in float64, then casts.

PyTorch's own layer initialisation gives different float32 numbers on different CPU
types, and training amplifies that; NumPy's generator does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

Seed = int | np.random.Generator
GAINS = {"he": 2.0, "lecun": 1.0}
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def rng(seed: Seed) -> np.random.Generator:
    """Return the generator of a seed; a generator is handed through with its state.

    Raises:
        ValueError: a seed that is neither a generator nor a non-negative integer.

    Source: NumPy's `default_rng`.

    Examples:
        >>> rng(0).integers(10)
        np.int64(8)
    """
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(seed)


def normal(
    shape: Annotated[int | Sequence[int], "0 <= shape <= 10**9"],
    seed: Seed,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draw independent N(0, scale^2) numbers in float64, then cast them.

    Args:
        shape: of the tensor.
        seed: a non-negative integer, or a NumPy generator, whose state then moves on.
        scale: standard deviation.
        dtype: of the result.

    Source: NumPy's `default_rng`.

    Examples:
        >>> normal((2, 3), seed=0)[0, 0]
        tensor(0.1257, dtype=torch.float64)
    """
    draw = scale * rng(seed).standard_normal(shape)
    return torch.as_tensor(np.asarray(draw)).to(dtype)


def init_(
    module: nn.Module,
    seed: Seed,
    scheme: Annotated[str, ("he", "lecun", "glorot")] = "lecun",
    bias_scale: float = 0.0,
) -> nn.Module:
    r"""Redraw the parameters of a module in place and return it.

    .. math:: W_{ij} \sim N(0, c / \text{fan-in}), \qquad
              c = 2 \text{ (he)},\; 1 \text{ (lecun)},\;
              \tfrac{2 \text{ fan-in}}{\text{fan-in} + \text{fan-out}}
              \text{ (glorot)}.

    Linear, convolution and any other weights with two or more axes follow that law
    (embeddings: N(0, 1)); their biases are N(0, bias_scale^2), zero by default.
    Normalisation layers become the identity, recurrent layers uniform in
    +-1/sqrt(hidden). Lone vectors and scalars of a module unknown here keep their
    values. Parameters are drawn in the order of `named_parameters()`.

    Args:
        module: its parameters are overwritten.
        seed: a non-negative integer, or a NumPy generator.
        scheme: he, lecun or glorot.
        bias_scale: standard deviation of the biases.

    Source: LeCun, Bottou, Orr and Mueller 1998; Glorot and Bengio 2010; He, Zhang, Ren
    and Sun 2015.

    Raises:
        ValueError: an unknown scheme.

    Examples:
        >>> net = init_(nn.Linear(3, 2).double(), seed=0)
        >>> net.weight[0, 0].item(), net.bias.tolist()
        (0.07259..., [0.0, 0.0])
    """
    generator = rng(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            for name, p in owner.named_parameters(recurse=False):
                if id(p) not in seen:
                    seen.add(id(p))
                    _draw(p, name, owner, generator, scheme, bias_scale)
    return module


def _draw(p: nn.Parameter, name: str, owner: nn.Module, *law: Any) -> None:
    generator, scheme, bias_scale = law
    if isinstance(owner, NORMS):
        p.fill_(1.0 if name == "weight" else 0.0)
    elif isinstance(owner, nn.RNNBase):
        bound = 1 / math.sqrt(owner.hidden_size)
        p.copy_(torch.from_numpy(generator.uniform(-bound, bound, p.shape)))
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        p.copy_(normal(p.shape, generator))
    elif p.ndim >= 2:
        p.copy_(normal(p.shape, generator, _scale(p, owner, scheme)))
    elif name.endswith("bias"):
        p.copy_(normal(p.shape, generator, bias_scale))


def _scale(p: Tensor, owner: nn.Module, scheme: str) -> float:
    receptive = math.prod(p.shape[2:])
    fan_out, fan_in = p.shape[0] * receptive, p.shape[1] * receptive
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        fan_in, fan_out = fan_out, fan_in
    if scheme == "glorot":
        return math.sqrt(2.0 / (fan_in + fan_out))
    return math.sqrt(GAINS[scheme] / fan_in)
