"""A user's own data matrix, made ready: centred, scaled, perhaps whitened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect
from geolib.regimes.setup import check_covariance
from geolib.regimes.spectral_measures import SpectralMeasure

RANGE = 1e-100, 1e100  # of entries


@dataclass(frozen=True)
class DataMatrix:
    """Samples as columns, with the spectrum of S = X X^T / n.

    Attributes:
        X: (d, n), one sample a column.
        values: (d,) eigenvalues of S, ascending.
        vectors: (d, d) its eigenvectors, one a column.
        dropped: how many constant coordinates were removed.
        mean: (d,) what was subtracted from every sample.
        scale: the number by which everything was divided after that (whitened data: by
            which its whitened form was).
    """

    X: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    dropped: int
    mean: np.ndarray
    scale: float

    @property
    def d(self) -> int:
        return int(self.X.shape[0])

    @property
    def n(self) -> int:
        return int(self.X.shape[1])

    @property
    def S(self) -> np.ndarray:
        """The sample covariance (d, d)."""
        return self.X @ self.X.T / self.n

    @property
    def law(self) -> SpectralMeasure:
        """The spectral law of S."""
        return SpectralMeasure.of_eigenvalues(self.values)

    @property
    def effective_rank(self) -> float:
        r""":math:`(tr S)^2 / tr S^2`: how many directions share the variance."""
        return float(self.values.sum() ** 2 / (self.values**2).sum())

    def overlap(self, covariance: ArrayLike) -> np.ndarray:
        r"""Population variance :math:`v_i^T \Sigma v_i` along each eigenvector of S."""
        P = check_covariance(covariance, self.d, "covariance")
        return np.einsum("ij,ij->j", self.vectors, P @ self.vectors)

    def take(self, columns: slice | np.ndarray) -> DataMatrix:
        """The same coordinates on some of the samples."""
        return _finish(self.X[:, columns], self.dropped, self.mean, self.scale)


def prepare(
    X: Annotated[ArrayLike, "d n"],
    *,
    centre: bool = True,
    scale: bool = True,
    whiten: bool = False,
    drop_constant: bool = False,
) -> DataMatrix:
    r"""A data matrix is checked and brought to the scale of the theories.

    .. math:: \operatorname{tr} S = d, \qquad S = X X^T / n

    Args:
        X: (d, n), one sample a *column* (transpose a table of samples first).
        centre: subtract the mean of every coordinate.
        scale: divide everything by one number so that the mean eigenvalue of S is 1.
        whiten: turn to principal coordinates of unit variance, without the null ones.
        drop_constant: remove constant coordinates instead of refusing them.

    Returns:
        `DataMatrix`, with the spectrum `values`, its `law` and `effective_rank`.

    Raises:
        ValueError: not a matrix, fewer than two samples, NaN or infinite entries, or
            constant coordinates that were not asked to be dropped, or entries whose
            squares overflow.

    Cost: one eigendecomposition of (d, d).

    Source: :eq:`drv-regimes-effective-rank` (derivations).

    Examples:
        >>> ready = prepare([[0.0, 2.0, 4.0], [1.0, 0.0, 1.0]])
        >>> round(float(ready.values.mean()), 12)
        1.0
        >>> prepare([[1.0, 1.0], [0.0, 1.0]])
        Traceback (most recent call last):
        ...
        ValueError: X: 1 of 2 coordinates are constant (the first is row 0); pass
        drop_constant=True to remove them
    """
    M = np.asarray(X, dtype=np.float64)
    fits = M.ndim == 2 and M.shape[0] >= 1 and M.shape[1] >= 2
    expect(fits, "X", "two or more samples as columns", M.shape)
    expect(np.isfinite(M).all(), "X", "finite numbers", "NaN or inf")
    constant = np.ptp(M, axis=1) == 0
    if constant.any():
        if not drop_constant or constant.all():
            share = f"{int(constant.sum())} of {len(M)} coordinates are constant"
            where = f"(the first is row {int(np.argmax(constant))})"
            hint = "; pass drop_constant=True to remove them" * (not drop_constant)
            raise ValueError(f"X: {share} {where}{hint}")
        M = M[~constant]
    mean = M.mean(1) if centre else np.zeros(len(M))
    M = M - mean[:, None]
    if whiten:
        values, vectors = np.linalg.eigh(M @ M.T / M.shape[1])
        keep = values > 1e-10 * values[-1]
        M = (vectors[:, keep] / np.sqrt(values[keep])).T @ M
    size = float(np.abs(M).max())
    wanted = f"a largest entry between {RANGE[0]} and {RANGE[1]} around the mean"
    expect(RANGE[0] < size < RANGE[1], "X", wanted, size)
    unit = float(np.sqrt((M**2).sum() / M.size)) if scale else 1.0
    return _finish(M / unit, int(constant.sum()), mean, unit)


def _finish(X: np.ndarray, dropped: int, mean: np.ndarray, scale: float) -> DataMatrix:
    values, vectors = np.linalg.eigh(X @ X.T / X.shape[1])
    values = np.where(values > 1e-12 * values[-1], values, 0.0)
    return DataMatrix(X, values, vectors, dropped, mean, scale)
