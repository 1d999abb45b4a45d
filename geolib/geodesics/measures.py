"""What is measured along a path: loss, accuracy, barrier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core.validation import check_labels
from geolib.plotting import panels

from .path import WeightPath


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
