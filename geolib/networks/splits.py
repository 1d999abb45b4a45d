"""Data sets cut into parts: training, validation and test rows, and tasks by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from geolib.core.validation import check_inputs, class_labels, expect
from geolib.data import load
from geolib.networks.rows import Rows, no_bytes


@dataclass(frozen=True)
class Table:
    """Inputs and targets as tensors, with a validation part cut from the training data.

    Attributes:
        x, y: training inputs (n, ...), and classes (n,) or numbers to regress.
        x_val, y_val: held-out training data; every setting is chosen on it.
        x_test, y_test: looked at once, in the end.
    """

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    name: str = field(default="", compare=False)


def table(
    name: str = "digits",
    *,
    train: int | None = None,
    validation: int = 200,
    test: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Table:
    r"""Read a data set of `geolib.data` into tensors.

    The validation rows are drawn from the training rows by a fixed seed. Images are
    standardised channel by channel with the kept training pixels,

    .. math:: x \mapsto (x - \mathrm{mean}) / \mathrm{sd}

    Args:
        name: of the data set; see `geolib.data.load`.
        train: how many training rows to keep, after the validation rows are removed.
        validation: 0 keeps every row for training (the validation part is then empty).
        test: how many test rows to keep.
        device, dtype: of the inputs, and of targets that are no classes.

    Raises:
        DataError: the data is missing or corrupt; see `geolib.data.load`.
        ValueError: more rows asked for than there are.

    Source: :eq:`drv-geodesics-standardise` (derivations).

    Examples:
        >>> table("digits").x.shape
        torch.Size([1000, 64])
    """
    data = load(name)
    order = np.random.default_rng(0).permutation(len(data.x))
    if validation < 0 or validation + (train or 1) > len(order):
        rows = f"{len(order)} training rows, asked for {train} and {validation}"
        raise ValueError(f"train, validation: {name} has {rows}")
    held = np.sort(order[:validation])
    kept = np.sort(order[validation:][:train])
    x, x_val, x_test = data.x[kept], data.x[held], data.x_test[:test]
    if x.ndim > 2:  # images come in [0, 1]; tables are already standardised
        axes = (0, 2, 3) if x.ndim == 4 else (0, 1, 2)
        shift = x.mean(axes, keepdims=True, dtype=np.float64)
        scale = x.std(axes, keepdims=True, dtype=np.float64)
        x, x_val, x_test = ((part - shift) / scale for part in (x, x_val, x_test))

    parts = (x, data.y[kept], x_val, data.y[held], x_test, data.y_test[:test])

    def tensor(part: np.ndarray) -> Tensor:
        kind = dtype if part.dtype.kind == "f" else torch.int64
        return torch.from_numpy(np.ascontiguousarray(part)).to(device, kind)

    return Table(*map(tensor, parts), name=name)  # type: ignore[misc, arg-type]


@dataclass(frozen=True)
class Task:
    """One task: inputs, labels, and the classes that may be answered.

    Attributes:
        x, y: training inputs (n, ...) and classes (n,).
        x_test, y_test: what it is scored on.
        classes: the classes that occur in it.

    Raises:
        ValueError: no input, another number of labels than inputs (or several for
            one), non-finite inputs, a label that is not among the classes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        least = min(self.classes, default=0)
        expect(least >= 0, "classes", "numbers from 0 on (leave out other rows)", least)
        for part in ("", "_test"):
            x, name = getattr(self, "x" + part), "y" + part
            check_inputs(x, "x" + part)
            labels = class_labels(getattr(self, name), len(x), name)
            object.__setattr__(self, name, labels)
            odd = sorted(set(labels.tolist()) - set(self.classes))
            wanted = f"labels among the task's classes {self.classes}"
            expect(not odd, name, wanted, odd)

    @classmethod
    def of(
        cls,
        train: Any,
        test: Any,
        transform: Callable[[Tensor], Tensor] | None = None,
        like: Tensor | None = None,
    ) -> Task:
        """Read a task from two sets of (input, label) pairs.

        Args:
            train, test: pairs of tensors or arrays `(x, y)`, data sets of pairs, or a
                `DataLoader` of one; their rows are read in the order of the set.
            transform: applied to the inputs, say from bytes to numbers.
            like: a tensor of the type and on the device of the network; by default
                32-bit numbers on the CPU.

        Raises:
            ValueError: bytes without a transform, labels that are not whole numbers, and
                as `Task` and `Rows`.

        Examples:
            >>> x, y = np.array([[0], [255]], np.uint8), np.array([1, 0])
            >>> Task.of((x, y), (x, y), lambda x: x / 255).x.tolist()
            [[0.0], [1.0]]
        """
        like, parts = torch.zeros(1) if like is None else like, []
        for name, data in (("train", train), ("test", test)):
            if isinstance(data, tuple):
                data = TensorDataset(*(torch.as_tensor(a) for a in data))
            x = Rows(data, transform, like, name)[:]
            no_bytes(x, name)
            y = Rows(data, None, like, name, part=1)[:]
            parts += [x, class_labels(y, len(x), name)]
        x, y, x_test, y_test = parts
        return cls(x, y, x_test, y_test, tuple(y.unique().tolist()))


def split_tasks(
    data: Table,
    groups: Sequence[Sequence[int]],
    part: Annotated[str, ("test", "val")] = "test",
) -> list[Task]:
    """Cut a data set into tasks by class.

    Args:
        data: the data set.
        groups: the classes of each task, each class in one group at most.
        part: score on the `test` rows, or on the validation rows with `val`.

    Raises:
        ValueError: a class in two groups, or one with no training input; another part.

    Source: van de Ven and Tolias 2019, section 2 (the split protocol).

    Examples:
        >>> from geolib.networks import table
        >>> [len(t.x) for t in split_tasks(table("digits"), [[0, 1], [2, 3]])]
        [199, 208]
    """
    flat = [c for group in groups for c in group]
    if twice := sorted({c for c in flat if flat.count(c) > 1}):
        raise ValueError(f"groups: classes {twice} are in two tasks")
    if unseen := sorted(set(flat) - set(data.y.unique().tolist())):
        raise ValueError(f"groups: no training input has the labels {unseen}")
    xs, ys = (data.x_test, data.y_test) if part == "test" else (data.x_val, data.y_val)

    def rows(x: Tensor, y: Tensor, group: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.isin(y, torch.tensor(list(group), device=y.device))
        return x[chosen], y[chosen]

    return [
        Task(*rows(data.x, data.y, group), *rows(xs, ys, group), tuple(group))
        for group in groups
    ]
