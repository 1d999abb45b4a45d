"""Polygons in weight space: paths with free corners, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.geodesics import WeightPath
from geolib.geodesics.path import Basis, orders


@dataclass(frozen=True)
class LinearSplineBasis(Basis):
    """Hat functions on the knots 1/n, ..., (n-1)/n: a polygon with free corners.

    Examples:
        >>> LinearSplineBasis(3).values(torch.tensor([0.25]))
        tensor([[1., 0., 0.]])
    """

    size: int = 3

    def values(self, t: Tensor) -> Tensor:
        n, k = self.size + 1, orders(self.size, t)
        return (1 - (n * t[:, None] - k).abs()).clamp_min(0)

    def slopes(self, t: Tensor) -> Tensor:
        """The derivatives; at a knot that of the piece after it."""
        gap = (self.size + 1) * t[:, None] - orders(self.size, t)
        inside = (gap >= -1) & (gap < 1)
        return (self.size + 1) * (1 - 2 * (gap >= 0).to(t.dtype)) * inside


def polygon(points: Sequence[Tensor] | Tensor) -> WeightPath:
    """Return the path through the given points at equal time steps.

    Args:
        points: at least two weight vectors, shape (k, p).

    Raises:
        ValueError: fewer than two points.

    Source: linear interpolation, with :eq:`drv-geodesics-path` (derivations).

    Examples:
        >>> polygon([torch.zeros(1), torch.ones(1), torch.zeros(1) + 4])(
        ...     torch.tensor([0.5])
        ... ).item()
        1.0
    """
    expect(len(points) >= 2, "points", "at least two", len(points))
    w = points if isinstance(points, Tensor) else torch.stack(list(points))
    a, b, n = w[0], w[-1], len(w) - 1
    if n == 1:
        return WeightPath(a, b)
    t = orders(n - 1, a) / n
    return WeightPath(
        a, b, LinearSplineBasis(n - 1), w[1:-1] - (a + t[:, None] * (b - a))
    )
