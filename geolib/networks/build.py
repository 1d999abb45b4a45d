"""Networks that the chapters share, with weights drawn by NumPy from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import nn

from geolib.core import init_
from geolib.core.validation import expect


def mlp(
    sizes: Annotated[Sequence[int], "1 <= sizes <= 10**6"],
    seed: int = 0,
    activation: type[nn.Module] = nn.ReLU,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    r"""Build a fully connected network that flattens its input.

    .. math:: h_0 = x, \qquad h_{k+1} = \sigma(W_k h_k + b_k), \qquad
              W_k \sim N(0, 2 / \text{fan-in}),\ b_k = 0

    with no activation behind the last layer.

    Args:
        sizes: the widths, inputs first and outputs last.
        seed: of NumPy's draw of the weights.
        activation: a module class.
        dtype: of the parameters.

    Raises:
        ValueError: fewer than two widths, or one below 1.

    Source: He et al. 2015, equation 10 (the variance).

    Examples:
        >>> mlp([64, 32, 10])(torch.zeros(1, 64, dtype=torch.float64)).shape
        torch.Size([1, 10])
    """
    expect(len(sizes) >= 2, "sizes", "two or more widths", sizes)
    layers: list[nn.Module] = [nn.Flatten()]
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(fan_in, fan_out, dtype=dtype)]
        layers += [activation()] if k < len(sizes) - 2 else []
    net = nn.Sequential(*layers)
    init_(net, seed, "he")
    return net


def lenet(
    seed: int = 0,
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
    batch_norm: bool = False,
    widths: Annotated[tuple[int, int, int], "1 <= widths <= 10**6"] = (8, 16, 64),
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Build two convolutions with pooling and two linear layers, BatchNorm if asked.

    Args:
        seed: of NumPy's draw of the weights.
        channels, side: of the square images; the side is a multiple of 4.
        classes: outputs.
        batch_norm: a BatchNorm layer behind each convolution.
        widths: channels of the convolutions, units of the hidden layer.
        dtype: of the parameters.

    Source: LeCun et al. 1998, section II.B, with ReLU and maximum pooling.

    Examples:
        >>> lenet(side=8)(torch.zeros(2, 1, 8, 8, dtype=torch.float64)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for fan_in, width in pairwise((channels, *widths[:2])):
        layers += [*convolution(fan_in, width, batch_norm), nn.MaxPool2d(2)]
    seen = widths[1] * (side // 4) ** 2
    layers += [nn.Flatten(), nn.Linear(seen, widths[2]), nn.ReLU()]
    return drawn([*layers, nn.Linear(widths[2], classes)], seed, dtype)


def convolution(
    fan_in: int, fan_out: int, batch_norm: bool, bias: bool = True
) -> list[nn.Module]:
    """Three by three, with BatchNorm if asked, and ReLU."""
    norm = [nn.BatchNorm2d(fan_out)] if batch_norm else []
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=bias), *norm, nn.ReLU()]


def drawn(layers: list[nn.Module], seed: int, dtype: torch.dtype) -> nn.Sequential:
    """The layers in a row, in evaluation mode, with the weights of a seed."""
    net = nn.Sequential(*layers).to(dtype).eval()
    init_(net, seed, "he")
    return net
