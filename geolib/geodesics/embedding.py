"""Output spaces: where the outputs of a network are compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from geolib.geodesics.checks import check_inputs

SPACES = ("raw", "logit", "prob", "sphere")


def embed(outputs: Tensor, space: str = "sphere") -> Tensor:
    r"""Map network outputs to the space whose Euclidean distance is the metric.

    .. math:: \Phi(z) = z, \quad z - \bar z, \quad \mathrm{softmax}(z), \quad
              2\,e^{\frac12 \log\mathrm{softmax}(z)}

    for `raw`, `logit`, `prob` and `sphere`. The last lies on a sphere of radius 2 and
    pulls back to the Fisher information; `logit` forgets what softmax ignores.

    Args:
        outputs: shape (..., c).
        space: one of `SPACES`.

    Raises:
        ValueError: an unknown space, or classes asked for where there is one output.

    Source: Amari and Nagaoka 2000, section 2.5 (the square-root embedding).

    Examples:
        >>> z = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        >>> round(embed(z, "sphere").norm().item(), 12)
        2.0
    """
    if space in SPACES[1:] and outputs.shape[-1] < 2:
        raise ValueError(
            f"space: {space!r} compares classes, but the network has one output; "
            "use 'raw'"
        )
    if space == "sphere":  # through the logarithm: no root of an underflowed p
        return 2 * torch.exp(torch.log_softmax(outputs, -1) / 2)
    if space == "logit":
        return outputs - outputs.mean(-1, keepdim=True)
    if space == "prob":
        return torch.softmax(outputs, -1)
    if space == "raw":
        return outputs
    raise ValueError(f"space: expected one of {SPACES}, got {space!r}")


class Embedded(nn.Module):
    """The module followed by `embed`: its pullback metric is that of the output space.

    Its parameters are those of `module`, in the same order.

    Examples:
        >>> Embedded(nn.Linear(2, 3), "prob")(torch.zeros(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(self, module: nn.Module, space: str = "sphere") -> None:
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"space: expected one of {SPACES}, got {space!r}")
        self.module = module
        self.space = space

    def forward(self, x: Tensor) -> Tensor:
        return embed(self.module(x), self.space)


class Features(nn.Module):
    """A module that returns what one of its submodules computed.

    Distances between inner representations take the place of distances between outputs.

    Args:
        module: the network.
        layer: a name out of `module.named_modules()`.

    Raises:
        ValueError: no submodule of that name.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
        >>> Features(net, "1")(torch.zeros(4, 2)).shape
        torch.Size([4, 5])
    """

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        names = [name for name, _ in module.named_modules() if name]
        if layer not in names:
            raise ValueError(f"layer: expected one of {names}, got {layer!r}")
        self.module = module
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        target = dict(self.module.named_modules())[self.layer]
        hook = target.register_forward_hook(lambda _m, _i, out: caught.append(out))
        try:
            self.module(x)
        finally:
            hook.remove()
        return caught[-1].flatten(1)


def noise_like(x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Gaussian inputs with the mean and scale of each coordinate of `x`.

    The metric needs inputs but no labels; where no data may be kept, noise will do.

    Raises:
        ValueError: fewer than one sample asked for, or non-finite inputs.

    Examples:
        >>> noise_like(torch.zeros(5, 2), 3).shape
        torch.Size([3, 2])
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    check_inputs(x)
    draw = np.random.default_rng(seed).standard_normal((count, *x.shape[1:]))
    noise = torch.from_numpy(draw).to(x)
    return x.mean(0) + x.std(0, correction=0) * noise


def angle_length(p: Tensor, q: Tensor) -> Tensor:
    r"""Lower bound on the Fisher length of any path, by great circles per input.

    .. math:: \Big(\tfrac1n \sum_x \big(2 \arccos \tfrac14
              \langle \Phi_p(x), \Phi_q(x)\rangle\big)^2\Big)^{1/2}

    Args:
        p, q: `sphere` embeddings of the two end networks, shape (n, c), radius 2.

    Source: own derivation, from Cauchy and Schwarz applied to each input's arc.

    Examples:
        >>> north, east = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(angle_length(north, east).item(), 4)
        3.1416
    """
    # atan2 keeps the digits that arccos loses between nearly equal vectors
    arc = 4 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))
    return arc.square().mean().sqrt()
