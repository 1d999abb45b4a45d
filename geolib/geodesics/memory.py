"""What is kept of earlier tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.networks.splits import Task

FORBIDDEN = -1e9  # a logit that no softmax sees; finite, so that 0 * it is 0
NOTHING = torch.zeros(0)


@dataclass
class Memory:
    """Inputs kept of earlier tasks, with what the network said about them then.

    Attributes:
        x, y: inputs and labels.
        z: the network's outputs when the task was finished.
        allowed: the classes that may be answered, shape (m, c).
    """

    x: Tensor = NOTHING
    y: Tensor = NOTHING
    z: Tensor = NOTHING
    allowed: Tensor = NOTHING

    def __len__(self) -> int:
        return len(self.x)

    def store(self, task: Task, z: Tensor, allowed: Tensor, rows: Tensor) -> None:
        """Keep some rows of a task; `z` are the outputs on all of them."""
        new = (task.x[rows], task.y[rows], z[rows], allowed.expand(len(rows), -1))
        old = (self.x, self.y, self.z, self.allowed)
        self.x, self.y, self.z, self.allowed = (
            torch.cat([a, b]) if len(a) else b for a, b in zip(old, new, strict=True)
        )


def restrict(z: Tensor, allowed: Tensor) -> Tensor:
    """Logits with the classes that may not be answered pushed out of the softmax.

    Examples:
        >>> restrict(torch.zeros(1, 2), torch.tensor([True, False])).argmax().item()
        0
    """
    return z.masked_fill(~allowed, FORBIDDEN)
