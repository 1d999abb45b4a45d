"""VGG networks for the images of CIFAR-10."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from geolib.doors import checked
from geolib.networks.build import convolution, drawn

VGG_PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
        *(512, 512, 512, "M", 512, 512, 512, "M"),
    ),
}


@checked
def vgg(
    name: Annotated[str, VGG_PLANS] = "vgg11",
    seed: int = 0,
    batch_norm: bool = True,
    classes: int = 10,
    width: Annotated[float, "0 < width <= 100"] = 1.0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build a VGG for 32 x 32 images: five pooling stages, then one linear layer.

    Args:
        name: `vgg11` or `vgg16`.
        seed: of NumPy's draw of the weights.
        batch_norm: a BatchNorm layer behind each convolution.
        classes: outputs.
        dtype: of the parameters.
        width: factor on every number of channels (tests use 1/16).

    Raises:
        ValueError: an unknown name.

    Source: Simonyan and Zisserman 2015, table 1, columns A and D.

    Examples:
        >>> vgg(width=1 / 16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    fan_in = 3
    for step in VGG_PLANS[name]:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            continue
        fan_out = max(1, round(step * width))
        layers += convolution(fan_in, fan_out, batch_norm, bias=not batch_norm)
        fan_in = fan_out
    return drawn([*layers, nn.Flatten(), nn.Linear(fan_in, classes)], seed, dtype)
