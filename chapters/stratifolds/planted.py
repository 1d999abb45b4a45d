"""Networks with a stratum planted in them, or none, and what `find_strata` says.

The rule: a planted stratum is missed unless `find_strata` names its kind, its layer and its
units, all of them, and verifies it; that its units are called dormant is not enough. A
stratum is invented if it is verified and was not planted, dormant units excepted: a ReLU
network has some by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import init_
from geolib.stratifolds import find_strata

ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.GELU, nn.SiLU)
KINDS = ("overlap", "opposite", "dead output", "constant unit", "none")


@dataclass(frozen=True)
class Trial:
    """One network: what was planted where, and what was found.

    Attributes:
        kind: one of `KINDS`.
        depth: number of hidden layers.
        activation: its name.
        missed: planted, and not reported as verified.
        invented: reported as verified, and not planted.
    """

    kind: str
    depth: int
    activation: str
    missed: bool
    invented: bool


def trial(number: int) -> Trial:
    """Draw a network by its number, plant, look."""
    rng = np.random.default_rng([2026, number])
    kind, depth = KINDS[number % 5], 1 + number // 5 % 5
    # opposite units are a stratum where the activation is odd up to a constant
    allowed = ACTIVATIONS[:2] if kind == "opposite" else ACTIVATIONS
    act = allowed[rng.integers(len(allowed))]
    widths = [int(w) for w in rng.integers(4, 9, depth + 1)]
    sizes = [*widths, int(rng.integers(1, 4))]
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), act()]
    net = init_(nn.Sequential(*layers[:-1]).double(), number, bias_scale=0.5)
    at = int(rng.integers(depth))
    units = tuple(sorted(int(u) for u in rng.choice(sizes[at + 1], 2, replace=False)))
    plant(net, kind, at, units)
    x = torch.from_numpy(rng.standard_normal((400, widths[0])))
    found = [s for s in find_strata(net, x, near=1e-6) if s.verified]
    alone = kind in ("dead output", "constant unit")
    where = (at, units[:1] if alone else units)
    name = "overlap" if kind == "opposite" else kind
    right = [s for s in found if (s.kind, s.layer, s.units) == (name, *where)]
    wrong = [s for s in found if s not in right and s.kind != "dormant unit"]
    return Trial(kind, depth, act.__name__, kind != "none" and not right, bool(wrong))


@torch.no_grad()
def plant(net: nn.Sequential, kind: str, layer: int, units: tuple[int, ...]) -> None:
    """Move one hidden layer's weights onto a stratum, in place."""
    before, after = net[2 * layer], net[2 * layer + 2]
    i, j = units
    rows: tuple[Tensor, Tensor] = (before.weight, before.bias)
    if kind in ("overlap", "opposite"):
        for p in rows:
            p[j] = p[i] if kind == "overlap" else -p[i]
    elif kind == "dead output":
        after.weight[:, i] = 0
    elif kind == "constant unit":
        before.weight[i] = 0
        before.bias[i] = before.bias[i].abs() + 0.1  # a ReLU unit that is not off
