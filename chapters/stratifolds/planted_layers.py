"""Networks of many kinds of layers with a stratum planted in them, or none.

BatchNorm, LayerNorm, convolutions or attention; the rule is that of `planted.py`, and
`geolib sweep planted-layers` measures what `find_strata` says of them. Some weights that
look like a stratum are none: a cut unit, or a constant one, under LayerNorm, which takes
the mean over all units, and a constant channel that is read with a padded border. To
verify one of these counts as invented.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import init_, normal
from geolib.stratifolds import find_strata

FAMILIES = ("BatchNorm", "LayerNorm", "convolution", "attention")
KINDS = ("overlap", "dead output", "constant unit", "none")
ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.GELU, nn.SiLU)


@dataclass(frozen=True)
class Layered:
    """One network and what was found; `true` says whether a stratum was planted."""

    family: str
    kind: str
    depth: int
    true: bool
    missed: bool
    invented: bool


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a skip connection."""

    def __init__(self, d: int, heads: int, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attend = nn.MultiheadAttention(d, heads, batch_first=True)
        self.up, self.act, self.down = nn.Linear(d, width), act(), nn.Linear(width, d)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        x = x + self.attend(h, h, h, need_weights=False)[0]
        return x + self.down(self.act(self.up(self.two(x))))


class Tokens(nn.Module):
    """Blocks, then a linear map of the mean token."""

    def __init__(self, blocks: list[Block], d: int, out: int) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(d, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


Channel = tuple[list[Tensor], list[Tensor], list[Tensor]]  # weights, vectors, columns


def network(
    number: int,
) -> tuple[nn.Module, Tensor, list[list[Channel]], str, int, bool]:
    """A network by its number, data, its units by layer, family, depth, padding."""
    rng = np.random.default_rng([77, number])
    family, depth = FAMILIES[number % 4], 1 + number // 16 % 5
    act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    out, padded = int(rng.integers(1, 4)), bool(rng.integers(2))
    widths = [int(w) for w in rng.integers(4, 8, depth + 1)]
    if family == "attention":
        depth = 1 + depth % 2
        blocks = [Block(8, 2, widths[0], act) for _ in range(depth)]
        net: nn.Module = Tokens(blocks, 8, out)
        x = rng.standard_normal((150, 3, 8))
    else:
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            if family == "convolution":
                layers += [nn.Conv2d(a, b, 3 if padded else 2, padding=int(padded))]
                layers += [nn.BatchNorm2d(b)] if number // 4 % 2 else []
            else:
                norm = nn.BatchNorm1d if family == "BatchNorm" else nn.LayerNorm
                layers += [nn.Linear(a, b), norm(b)]
            layers.append(act())
        if family == "convolution":
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(widths[-1], out))
        image = (7, 7) if family == "convolution" else ()
        x = rng.standard_normal((300, widths[0], *image))
    init_(net.double(), number, bias_scale=0.5).eval()
    with torch.no_grad():
        for k, m in enumerate(m for m in net.modules() if hasattr(m, "running_mean")):
            size = m.running_mean.shape
            m.running_mean.copy_(0.3 * normal(size, number + k))
            m.running_var.copy_(1 + normal(size, number + k + 50).abs())
            m.weight.copy_(1 + 0.3 * normal(size, number + k + 100))
            m.bias.copy_(0.3 * normal(size, number + k + 150))
    return net, torch.from_numpy(x), layers_of(net), family, depth, padded


def layers_of(net: nn.Module) -> list[list[Channel]]:
    """The units that may be moved, in the order in which they are made."""
    if isinstance(net, Tokens):
        found = []
        for b in net.blocks:
            assert isinstance(b, Block)
            heads = b.attend.in_proj_weight.detach().view(3, 2, 4, 8).unbind(1)
            bias = b.attend.in_proj_bias.detach().view(3, 2, 4).unbind(1)
            reads = b.attend.out_proj.weight.detach().view(8, 2, 4).unbind(1)
            found.append(
                [([h], [c], [r]) for h, c, r in zip(heads, bias, reads, strict=True)]
            )
            found.append(between([b.up, b.act, b.down]))
        return found
    assert isinstance(net, nn.Sequential)
    at = [k for k, m in enumerate(net) if isinstance(m, (nn.Linear, nn.Conv2d))]
    return [between(list(net[a : b + 1])) for a, b in zip(at[:-1], at[1:], strict=True)]


def between(layers: list[nn.Module]) -> list[Channel]:
    """The units from a linear layer to the next."""
    first, last = layers[0], layers[-1]
    norms = [m for m in layers[1:-1] if hasattr(m, "weight")]
    vectors = [first.bias, *(t for m in norms for t in (m.weight, m.bias))]
    vectors += [t for m in norms if hasattr(m, "running_mean")
                for t in (m.running_mean, m.running_var)]  # fmt: skip
    return [
        (
            [first.weight.detach()[i]],
            [t.detach()[i] for t in vectors],
            [last.weight.detach()[:, i]],
        )
        for i in range(len(first.weight))
    ]


def trial(number: int) -> Layered:
    """Draw a network by its number, plant, look."""
    net, x, layers, family, depth, padded = network(number)
    kind = KINDS[number // 4 % 4]
    rng = np.random.default_rng([78, number])
    at = int(rng.integers(len(layers)))
    i, j = sorted(int(u) for u in rng.choice(len(layers[at]), 2, replace=False))
    weights, vectors, reads = layers[at][i]
    head = family == "attention" and at % 2 == 0
    if kind == "constant unit" and head:
        kind = "overlap"
    if kind == "overlap":
        other = [t for part in layers[at][j][:2] for t in part]
        for a, b in zip([*weights, *vectors], other, strict=True):
            b.copy_(a)
    elif kind == "dead output":
        for t in reads:
            t.zero_()
    elif kind == "constant unit":
        for t in weights:
            t.zero_()
        for t in vectors[:1]:
            t.copy_(t.abs() + 0.1)
    bordered = family == "convolution" and padded and at < len(layers) - 1
    true = kind == "overlap" or (
        kind != "none"
        and family != "LayerNorm"
        and not (kind == "constant unit" and bordered)
    )
    found = [s for s in find_strata(net, x, near=1e-6) if s.verified]
    units = (i, j) if kind == "overlap" else (i,)
    layer = at  # the units of blocks come before their heads
    if family == "attention":
        layer = at // 2 + head * len(layers) // 2
    right = [s for s in found if (s.kind, s.layer, s.units) == (kind, layer, units)]
    wrong = [s for s in found if s.kind != "dormant unit" and not (true and s in right)]
    return Layered(family, kind, depth, true, true and not right, bool(wrong))
