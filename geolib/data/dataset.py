"""What a reader returns, and the one error it raises."""

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


def digits(seed: int) -> Dataset:
    """8 x 8 digits: 1200 for training, 597 for testing, inputs float64 `(n, 64)`.

    Inputs are divided by 16, centred per pixel and divided by one standard deviation,
    both taken from the training part.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x, x_test, y, y_test = train_test_split(
        bunch.data / 16,
        bunch.target.astype(np.int64),
        train_size=1200,
        stratify=bunch.target,
        random_state=seed,
    )
    mean = x.mean(axis=0)
    scale = (x - mean).std()
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    return Dataset("digits", x, y, x_test, y_test, tuple("0123456789"))


def diabetes(seed: int) -> Dataset:
    """Diabetes progression: 353 + 89 rows, 10 columns; inputs and target standardised.

    Mean and standard deviation per column come from the training part.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    train, test = order[89:], order[:89]
    x, x_test = standardised(bunch.data[train], bunch.data[test])
    y, y_test = standardised(bunch.target[train], bunch.target[test])
    return Dataset("diabetes", x, y, x_test, y_test)


def breast_cancer(seed: int) -> Dataset:
    """Wisconsin diagnostic breast cancer: 569 rows, 30 columns, standardised.

    A stratified fifth is the test part; class 0 is malignant, class 1 benign.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    train, test = stratified(bunch.target, 0.2, seed)
    x, x_test = standardised(bunch.data[train], bunch.data[test])
    y = bunch.target.astype(np.int64)
    names = tuple(str(c) for c in bunch.target_names)
    return Dataset("breast_cancer", x, y[train], x_test, y[test], names)


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both parts minus the mean and over the standard deviation of the first."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / scale, (test - mean) / scale


EMBEDDED = {"digits": digits, "diabetes": diabetes, "breast_cancer": breast_cancer}
