"""What is measured along a path: length, energy, speed, loss, accuracy, barrier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core.validation import check_labels
from geolib.plotting import panels

from .embedding import angle_length
from .function_space import FunctionSpace, Space
from .path import WeightPath


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


@dataclass(frozen=True)
class Profile:
    """Loss and accuracy along a path.

    Attributes:
        times: shape (k,).
        loss: mean cross-entropy at each time, shape (k,).
        accuracy: shape (k,).
    """

    times: Tensor
    loss: Tensor
    accuracy: Tensor

    @property
    def barrier(self) -> float:
        """Largest excess of the loss over the line between its end values."""
        ends = self.loss[0] + self.times * (self.loss[-1] - self.loss[0])
        return (self.loss - ends).max().clamp_min(0).item()

    @property
    def worst(self) -> float:
        """Least accuracy on the path."""
        return self.accuracy.min().item()

    @property
    def middle(self) -> float:
        """Accuracy of the network half way."""
        return self.accuracy[len(self.accuracy) // 2].item()

    def plot(self, axes: Any = None) -> Any:
        """Draw loss and accuracy along the path, on Matplotlib axes that are returned."""
        if axes is None:
            axes = panels()[1]
        axes.plot(self.times, self.loss, label="loss")
        axes.plot(self.times, self.accuracy, "--", label="accuracy")
        axes.set(xlabel="time on the path", ylim=(0, None))
        axes.legend()
        return axes


@torch.no_grad()
def profile(
    path: WeightPath,
    logits: Callable[[Tensor], Tensor],
    labels: Tensor,
    grid: Annotated[int, "3 <= grid <= 10**6 and grid % 2"] = 65,
) -> Profile:
    """Score every network on a path by its loss and its accuracy.

    Args:
        path: the curve of weights.
        logits: maps weights (p,) to outputs (n, c), say
            `lambda w: R(w, x)`; a BatchNorm network re-estimates its statistics here.
        labels: classes, shape (n,).
        grid: how many times are scored; odd.

    Raises:
        ValueError: a grid that is even (it would miss the middle) or below 3, labels
            that do not fit the outputs, or outputs that are not finite.

    Source: Garipov et al. 2018, section 3 (the loss along a curve).

    Examples:
        >>> line = WeightPath(torch.tensor([-1.0]), torch.tensor([1.0]))
        >>> found = profile(line, lambda w: torch.stack([w, -w], 1), torch.tensor([0]))
        >>> found.worst, found.accuracy[-1].item()
        (0.0, 1.0)
    """
    t = path.times(grid)
    loss: list[Tensor] = []
    accuracy: list[Tensor] = []
    for s in t:
        z = logits(path(s[None])[0])
        if not loss:
            labels = check_labels(z.shape[1], labels, len(z), "labels")
        if not bool(torch.isfinite(z).all()):
            raise ValueError(f"logits: not finite at time {s.item():.3g} of the path")
        loss.append(F.cross_entropy(z, labels))
        accuracy.append((z.argmax(1) == labels).to(z).mean())
    return Profile(t, torch.stack(loss), torch.stack(accuracy))
