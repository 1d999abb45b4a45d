"""`load`, `available`, `fetch`: one name for every data set."""

import time
from dataclasses import replace
from typing import Annotated

import numpy as np

from geolib.files import DATA_READ, did_you_mean

from .dataset import EMBEDDED, Dataset
from .files import (
    CIFAR,
    CIFAR10_NPZ,
    CLASSIFICATION,
    IDX,
    PATIENCE,
    REGRESSION,
    checksum_error,
    download,
)
from .images import cifar10_from_npz, load_cifar, load_idx, unit
from .tables import fetch_regression, load_classification, load_regression, packed


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    Examples:
        >>> names()[:5]
        ('digits', 'diabetes', 'breast_cancer', 'mnist', 'fashion_mnist')
    """
    tables = sorted([*REGRESSION, *CLASSIFICATION])
    return (*EMBEDDED, *IDX, *CIFAR, *(f"uci/{table}" for table in tables))


def load(
    name: str,
    *,
    split: Annotated[int, "0 <= split < 2**32"] = 0,
    train: Annotated[int | None, "train >= 1"] = None,
    test: Annotated[int | None, "test >= 1"] = None,
) -> Dataset:
    """Read a data set from this disk; the network is never touched.

    Args:
        name: one of `names()`.
        split: which split, for the embedded data and the tables: the seed of the
            permutation, or the number of the published split of a regression table.
        train: keep only the first so many training rows.
        test: keep only the first so many test rows.

    Returns:
        Inputs and targets as NumPy arrays. `digits`, `diabetes`, `breast_cancer` are
        float64 and standardised by their training part; images are float32 in [0, 1];
        tables are raw float64. Classes are int64 from 0.

    Raises:
        DataError: a file is missing or corrupt; the message has the fetching command.
        ValueError: an unknown name, split or count.

    Examples:
        >>> data = load("digits")
        >>> data.x.shape, data.x_test.shape, str(data.x.dtype)
        ((1200, 64), (597, 64), 'float64')
    """
    table = _known(name)
    DATA_READ[name] = None
    if name in EMBEDDED:
        data = EMBEDDED[name](split)
    elif name in IDX:
        data = load_idx(name)
    elif name in CIFAR:
        data = load_cifar(train)
    elif table in REGRESSION:
        data = load_regression(table, split)
    else:
        data = load_classification(table, split)
    x, y = data.x[:train], data.y[:train]
    x_test, y_test = data.x_test[:test], data.y_test[:test]
    if x.dtype == np.uint8:  # images; only what is kept becomes floating point
        x, x_test = unit(x), unit(x_test)
    return replace(data, x=x, y=y, x_test=x_test, y_test=y_test)


def available(name: str) -> bool:
    """Whether `load(name)` works here: every file is there with its checksum.

    Examples:
        >>> available("digits")
        True
    """
    table = _known(name)
    if name in EMBEDDED:
        return True
    if table in REGRESSION:
        return packed(table)[1] is None
    if name == "cifar10" and cifar10_from_npz():
        return all(checksum_error(file) is None for file in CIFAR10_NPZ)
    return all(checksum_error(file) is None for file in _files(name))


def fetch(name: str) -> None:
    """Download the files of a data set into the data folder, each one checked.

    Files that are already right are left alone. CIFAR-10 is fetched in its official
    binary form.

    Raises:
        DataError: no network, or what came is not the published file.
        ValueError: an unknown name.

    Examples:
        >>> fetch("digits")  # is bundled: nothing to do
    """
    table, until = _known(name), time.monotonic() + PATIENCE
    if name in EMBEDDED:
        return
    if table in REGRESSION:
        fetch_regression(table, until)
        return
    for file in _files(name):
        download(name, file, until)


def _files(name: str) -> tuple:
    if name in CIFAR:
        return (CIFAR[name],)
    return IDX.get(name) or CLASSIFICATION[name.removeprefix("uci/")]


def _known(name: str) -> str:
    """The name without the prefix of a table."""
    if name not in names():
        hint = did_you_mean(name, names())
        raise ValueError(f"name: no data set {name!r}{hint} (see geolib.data.names())")
    return name.removeprefix("uci/")
