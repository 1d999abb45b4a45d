"""Length, energy and speed of a path of networks, and how short a path could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geolib.doors import checked
from geolib.geodesics import FunctionSpace, WeightPath
from geolib.geodesics.function_space import Space


@dataclass(frozen=True)
class Lengths:
    r"""Length and energy of a path, in functions and in weights.

    Attributes:
        output: length of the curve of functions, without the damping.
        weight: length of the curve of weights.
        energy: energy with the damping; at least half the squared total length.
        total: length in the full metric.
        speed: the full speed on each piece, shape (grid - 1,).
        chord: distance of the end functions: no path is shorter.
        arc: for `sphere`, the greater lower bound by great circles; else the chord.
    """

    output: float
    weight: float
    energy: float
    total: float
    speed: Tensor
    chord: float
    arc: float

    @property
    def detour(self) -> float:
        """Length over the best lower bound: 1 for a path that cannot be improved."""
        return self.output / self.arc if self.arc > 0 else float("inf")

    @property
    def unevenness(self) -> float:
        r"""Standard deviation of the speed over its mean; zero on a geodesic."""
        return (self.speed.std(correction=0) / self.speed.mean()).item()


@checked
@torch.no_grad()
def lengths(
    space: Space, path: WeightPath, grid: Annotated[int, "2 <= grid <= 10**6"] = 129
) -> Lengths:
    r"""Measure the path on `grid` equidistant times.

    .. math:: L = \sum_i |\Phi(w_{i+1}) - \Phi(w_i)|, \qquad
              E = \frac{n}{2} \sum_i \big(|\Phi(w_{i+1}) - \Phi(w_i)|^2
              + \lambda|w_{i+1} - w_i|^2\big) \ge \tfrac12 L_{\text{total}}^2

    A polygon is never longer than its curve and grows to it as the grid is refined,
    so compare lengths only at equal grids.

    Args:
        space: where lengths are measured; its inputs matter.
        path: the curve of weights.
        grid: at least 65 for a network: a coarse grid hides barriers.

    Raises:
        ValueError: fewer than two times.

    Source: :eq:`drv-geodesics-energy` (derivations).

    Examples:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> flat = FunctionSpace(net, torch.ones(1, 1), "raw")
        >>> line = WeightPath(torch.zeros(1), torch.tensor([2.0]))
        >>> round(lengths(flat, line).output, 4)
        2.0
    """
    t = path.times(grid)
    phi, step2 = [], []
    for k in range(0, grid, 16):  # bounded memory on large networks
        w = path(t[k : k + 17])  # the last one is the first of the next piece
        phi.append(space(w[:16]).flatten(1))
        step2.append(w.diff(dim=0).square().sum(1))
    out = torch.cat(phi)
    out2, weight2 = out.diff(dim=0).square().sum(1), torch.cat(step2)
    total = (out2 + space.damping * weight2).sqrt()
    chord = (out[-1] - out[0]).norm().item()
    arc = chord
    if isinstance(space, FunctionSpace) and space.space == "sphere":
        ends = space.embedded(torch.stack([path.a, path.b]))
        arc = angle_length(ends[0], ends[1]).item()
    return Lengths(
        output=out2.sqrt().sum().item(),
        weight=weight2.sqrt().sum().item(),
        energy=((grid - 1) / 2 * total.square().sum()).item(),
        total=total.sum().item(),
        speed=(grid - 1) * total,
        chord=chord,
        arc=arc,
    )


def angle_length(p: Tensor, q: Tensor) -> Tensor:
    r"""Lower bound on the Fisher length of any path, by great circles per input.

    .. math:: \Big(\tfrac1n \sum_x \big(2 \arccos \tfrac14
              \langle \Phi_p(x), \Phi_q(x)\rangle\big)^2\Big)^{1/2}

    Args:
        p, q: `sphere` embeddings of the two end networks, shape (n, c), radius 2.

    Source: :eq:`drv-geodesics-arc` (derivations).

    Examples:
        >>> north, east = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(angle_length(north, east).item(), 4)
        3.1416
    """
    # atan2 keeps the digits that arccos loses between nearly equal vectors
    arc = 4 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))
    return arc.square().mean().sqrt()
