"""The three data sets that scikit-learn bundles; no file, no network."""

from __future__ import annotations

import numpy as np

from .dataset import Dataset, stratified


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
