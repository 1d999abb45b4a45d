"""Tasks that come one after another, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.geodesics.train import Table

FORBIDDEN = -1e9  # a logit that no softmax sees; finite, so that 0 * it is 0


@dataclass(frozen=True)
class Task:
    """One task: inputs, labels, and the classes that may be answered.

    Attributes:
        x, y: training inputs (n, ...) and classes (n,).
        x_test, y_test: what it is scored on.
        classes: the classes that occur in it.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.x) == 0 or len(self.x) != len(self.y):
            raise ValueError(
                f"y: expected one label per input, got {len(self.x)} inputs and "
                f"{len(self.y)} labels"
            )
        if not bool(torch.isfinite(self.x).all()):
            raise ValueError("x: expected finite inputs, got NaN or inf")
        for name, labels in (("y", self.y), ("y_test", self.y_test)):
            odd = sorted(set(labels.tolist()) - set(self.classes))
            if odd:
                raise ValueError(
                    f"{name}: labels {odd} are not among the task's classes "
                    f"{self.classes}"
                )


def split_tasks(
    data: Table, groups: Sequence[Sequence[int]], part: str = "test"
) -> list[Task]:
    """Cut a data set into tasks by class.

    Args:
        groups: the classes of each task, each class in one group at most.
        part: score on the `test` rows, or on the validation rows with `val`.

    Raises:
        ValueError: a class in two groups, or one with no training input.

    Examples:
        >>> from geolib.geodesics.train import table
        >>> [len(t.x) for t in split_tasks(table("digits"), [[0, 1], [2, 3]])]
        [199, 208]
    """
    if part not in ("test", "val"):
        raise ValueError(f"part: expected 'test' or 'val', got {part!r}")
    flat = [c for group in groups for c in group]
    twice = sorted({c for c in flat if flat.count(c) > 1})
    if twice:
        raise ValueError(f"groups: classes {twice} are in two tasks")
    unseen = sorted(set(flat) - set(data.y.unique().tolist()))
    if unseen:
        raise ValueError(f"groups: no training input has the labels {unseen}")
    xs, ys = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)
    tasks = []
    for group in groups:
        chosen = torch.isin(data.y, torch.tensor(list(group), device=data.y.device))
        scored = torch.isin(ys, torch.tensor(list(group), device=ys.device))
        tasks.append(
            Task(data.x[chosen], data.y[chosen], xs[scored], ys[scored], tuple(group))
        )
    return tasks


def pair_tasks(first: Table, second: Table, shift: int, part: str = "test"):
    """Two data sets as two tasks; the second one's labels are shifted by `shift`.

    Examples:
        >>> from geolib.geodesics.train import table
        >>> digits = table("digits")
        >>> [t.classes[-1] for t in pair_tasks(digits, digits, 10)]
        [9, 19]
    """
    tasks = []
    for data, add in ((first, 0), (second, shift)):
        xs, ys = data.x_test, data.y_test
        if part == "val":
            xs, ys = data.x_val, data.y_val
        classes = tuple(int(c) + add for c in data.y.unique().tolist())
        tasks.append(Task(data.x, data.y + add, xs, ys + add, classes))
    return tasks


@dataclass
class Memory:
    """Inputs kept of earlier tasks, with what the network said about them then.

    Attributes:
        x, y: inputs and labels, or None while empty.
        z: the network's outputs when the task was finished.
        allowed: the classes that may be answered, shape (m, c).
    """

    x: Tensor | None = None
    y: Tensor | None = None
    z: Tensor | None = None
    allowed: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.x is None else len(self.x)

    def store(self, task: Task, z: Tensor, allowed: Tensor, rows: Tensor) -> None:
        """Keep some rows of a task; `z` are the outputs on all of them."""
        new = (task.x[rows], task.y[rows], z[rows], allowed.expand(len(rows), -1))
        if self.x is None:
            self.x, self.y, self.z, self.allowed = new
        else:
            old = (self.x, self.y, self.z, self.allowed)
            self.x, self.y, self.z, self.allowed = (
                torch.cat([a, b])  # type: ignore[list-item]
                for a, b in zip(old, new, strict=True)
            )


def restrict(z: Tensor, allowed: Tensor) -> Tensor:
    """Logits with the classes that may not be answered pushed out of the softmax.

    Examples:
        >>> restrict(torch.zeros(1, 2), torch.tensor([True, False])).argmax().item()
        0
    """
    return z.masked_fill(~allowed, FORBIDDEN)
