"""Inputs in whatever form they come, read a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from geolib.core.validation import check_inputs, expect

PIECE = 1024  # rows that are read together


class Rows:
    """Inputs that are read when they are asked for, as tensors like the weights.

    Args:
        source: a tensor or array (n, ...), a data set of inputs or (input, label)
            pairs, or a `DataLoader` of one, of which the data set and its `collate_fn`
            are used: rows are drawn here, by a seed.
        transform: applied to each batch that was read, say from bytes to numbers.
        like: a tensor of the type and on the device that inputs should be; whole
            numbers, as the tokens of an embedding, keep their type.
        name: of the argument, for messages.
        index: which rows of the source there are, shape (m,); None for all.
        part: of each pair that is read: 0 for the input, 1 for the label.

    Raises:
        ValueError: no inputs, a loader without random access, non-finite inputs.

    Examples:
        >>> rows = Rows(np.array([[0, 255]], np.uint8), lambda x: x / 255, torch.zeros(1))
        >>> len(rows), rows[torch.tensor([0, 0])].tolist()
        (1, [[0.0, 1.0], [0.0, 1.0]])
    """

    def __init__(
        self,
        source: Any,
        transform: Callable[[Tensor], Tensor] | None,
        like: Tensor,
        name: str = "data",
        index: Tensor | None = None,
        part: int = 0,
    ) -> None:
        self.collate: Callable = default_collate
        if isinstance(source, DataLoader):
            self.collate = source.collate_fn or default_collate
            source = source.dataset
        if isinstance(source, np.ndarray):
            source = torch.from_numpy(np.ascontiguousarray(source))
        random_access = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        fits = isinstance(source, Tensor | Dataset) and random_access
        wanted = "a tensor, an array, or a data set or DataLoader"
        wanted += " whose rows can be read in any order"
        expect(fits, name, wanted, type(source))
        expect(len(source), name, "at least one input", None)
        self.source, self.transform, self.like = source, transform, like
        self.name, self.index, self.part = name, index, part
        self.device = like.device

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)  # type: ignore

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The inputs of these rows, of the shape of `rows` and then that of one input."""
        if isinstance(rows, Tensor) and rows.ndim > 1:
            return self[rows.flatten()].unflatten(0, rows.shape)
        x = self._read(rows)
        x = x if self.transform is None else self.transform(x)
        wanted = "rows that are tensors, or a transform that makes some of them"
        expect(isinstance(x, Tensor), self.name, wanted, type(x))
        x = x.to(self.like) if x.is_floating_point() else x.to(self.device)
        check_inputs(x, self.name)
        return x

    def split(self, size: int) -> Iterator[Tensor]:
        """All inputs, so many at a time."""
        return (self[i : i + size] for i in range(0, len(self), size))

    def _read(self, rows: Tensor | slice) -> Tensor:
        """A batch of inputs as they are stored; of pairs the first parts."""
        if self.index is not None:
            rows = self.index[rows]
        if isinstance(self.source, Tensor):
            at = rows if isinstance(rows, slice) else rows.to(self.source.device)
            return self.source[at]
        span = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        read = [self.source[i] for i in span]
        try:
            batch = self.collate(read)
        except (RuntimeError, TypeError) as error:
            said = f"expected rows that can be put in one tensor: {error}"
            raise ValueError(f"{self.name}: {said}") from error
        return batch[self.part] if isinstance(batch, list | tuple) else batch


def as_rows(
    data: Any,
    transform: Callable[[Tensor], Tensor] | None,
    like: Tensor,
    name: str = "data",
) -> Tensor | Rows:
    """Inputs as a tensor of the type of `like`, or as rows that are read when needed.

    Raises:
        ValueError: as `Rows`; bytes without a transform.

    Examples:
        >>> as_rows(np.zeros((2, 3)), None, torch.zeros(1)).dtype
        torch.float32
    """
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(np.ascontiguousarray(data))
    if transform is not None or not isinstance(data, Tensor):
        return Rows(data, transform, like, name)
    check_inputs(data, name)
    no_bytes(data, name)
    return data.to(like) if data.is_floating_point() else data


def no_bytes(x: Tensor, name: str) -> None:
    """Raise where inputs are bytes still: networks take numbers."""
    if x.dtype == torch.uint8:
        wanted = "expected a function that makes numbers of them, say lambda x: x / 255"
        raise ValueError(f"transform: {name} are bytes; {wanted}")


def part_of(x: Tensor | Rows, index: Tensor, like: Tensor) -> Rows:
    """Some rows of the inputs, not copied.

    Examples:
        >>> part_of(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2]), torch.zeros(1))[:]
        tensor([3.])
    """
    if isinstance(x, Tensor):
        return Rows(x, None, like, index=index)
    part = copy.copy(x)
    part.index = index if x.index is None else x.index[index]
    return part
