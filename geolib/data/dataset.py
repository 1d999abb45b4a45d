"""What a reader returns, and the one error it raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class DataError(RuntimeError):
    """A data file is missing or is not the file that was published."""


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, split into a training and a test part.

    Attributes:
        name: the name given to `load`.
        x: `(n, ...)` training inputs, floating point; a missing entry is NaN.
        y: `(n,)` training targets: int64 classes from 0, or float64 for regression.
        x_test: test inputs.
        y_test: test targets.
        classes: names of the classes, in the order of their numbers.
        categories: for each categorical column of a table, the names that its
            codes 0, 1, ... stand for.
        note: what a reader must know before quoting a number on this data.
    """

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...] = ()
    categories: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    @property
    def missing(self) -> int:
        """How many entries of the training and test inputs are missing (NaN)."""
        return int(np.isnan(self.x).sum() + np.isnan(self.x_test).sum())


def stratified(y: Array, test: float, seed: int) -> tuple[Array, Array]:
    """Indices of a split that gives each class its share of the test part.

    Args:
        y: `(n,)` integer classes.
        test: the share of the test part, between 0 and 1.
        seed: of the permutation within each class.

    Returns:
        `(train, test)`, each in random order, so that the first rows of a part show
        every class; a class with one member stays in the training part.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        chosen.append(members[: int(np.floor(test * len(members) + 0.5))])
        if len(members) == 1:
            chosen[-1] = members[:0]
    out = rng.permutation(np.concatenate(chosen))
    return rng.permutation(np.setdiff1d(np.arange(len(y)), out)), out
