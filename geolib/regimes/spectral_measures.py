"""Spectral measures: Marchenko-Pastur's law, the spectrum of a data matrix, Jacobi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect


@dataclass(frozen=True)
class SpectralMeasure:
    r"""A probability measure on [0, inf) is stored as nodes and weights.

    .. math:: \int f\,d\mu = \sum_i w_i f(x_i)

    Attributes:
        nodes: (N,) points x_i >= 0.
        weights: (N,) masses w_i >= 0 that sum to one.

    Raises:
        ValueError: nodes below zero, weights that do not sum to one, or unequal sizes.

    Examples:
        >>> coin = SpectralMeasure(np.array([0.0, 2.0]), np.array([0.5, 0.5]))
        >>> coin.moment(2)
        2.0
    """

    nodes: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        x, w = self.nodes, self.weights
        alike = x.ndim == 1 and x.size and x.shape == w.shape
        expect(alike, "nodes, weights", "equal vectors", (x.shape, w.shape))
        whole = x.min() >= 0 and w.min() >= 0 and abs(w.sum() - 1) <= 1e-8
        wanted = "finite nodes >= 0 and weights >= 0 that sum to 1"
        expect(whole and math.isfinite(x.max()), "nodes, weights", wanted, w.sum())

    @classmethod
    def of_eigenvalues(cls, eigenvalues: ArrayLike) -> SpectralMeasure:
        """The empirical measure of a list; rounding around zero is removed.

        Examples:
            >>> SpectralMeasure.of_eigenvalues([4.0, -1e-17]).nodes.tolist()
            [0.0, 4.0]
        """
        x = np.sort(np.asarray(eigenvalues, dtype=np.float64).ravel())
        if x.size and np.isfinite(x).all() and x[0] >= -1e-10 * max(1.0, abs(x[-1])):
            x = np.where(x > 1e-12 * x[-1], x, 0.0)
        return cls(x, np.full(x.size, 1.0 / max(1, x.size)))

    def moment(self, order: int) -> float:
        """The moment of that order."""
        return float(self.nodes**order @ self.weights)


def reweighted(law: SpectralMeasure, density: np.ndarray) -> SpectralMeasure:
    """The law with its masses times a density on the nodes, of total mass one again.

    Raises:
        ValueError: no mass is left.

    Examples:
        >>> law = SpectralMeasure.of_eigenvalues([0.0, 1.0, 3.0])
        >>> reweighted(law, law.nodes).weights.tolist()
        [0.25, 0.75]
    """
    weights = law.weights * density
    keep = weights > 0
    expect(keep.any(), "density", "some mass to be left", "none")
    return SpectralMeasure(law.nodes[keep], weights[keep] / weights.sum())


def equal_shares(law: SpectralMeasure, values: np.ndarray, count: int) -> np.ndarray:
    """Means of a function on the nodes over `count` equal shares of the law.

    Examples:
        >>> law = SpectralMeasure.of_eigenvalues([0.0, 1.0, 2.0, 5.0])
        >>> equal_shares(law, law.nodes, 2).tolist()
        [0.5, 3.5]
    """
    order = np.argsort(law.nodes, kind="stable")
    weight = np.append(0.0, np.cumsum(law.weights[order]))
    total = np.append(0.0, np.cumsum((law.weights * values)[order]))
    return np.diff(np.interp(np.linspace(0, 1, count + 1), weight, total)) * count


def coarser(
    law: SpectralMeasure, values: np.ndarray, count: int
) -> tuple[SpectralMeasure, np.ndarray]:
    """At most `count` nodes and a function on them, by equal shares."""
    if law.nodes.size <= count:
        return law, values
    nodes, means = (equal_shares(law, v, count) for v in (law.nodes, values))
    return SpectralMeasure.of_eigenvalues(nodes), means


def marchenko_pastur(
    alpha: Annotated[float, "alpha > 0"],
    beta: Annotated[float, "beta > 0"],
    count: int = 400,
) -> SpectralMeasure:
    r"""A quadrature for the Marchenko-Pastur (free Poisson) law with mean `alpha`.

    .. math:: \mu_{\alpha,\beta}(dx)
        = \frac{\sqrt{(x_+ - x)(x - x_-)}}{2 \pi \beta x} dx
        + \max(0, 1 - \alpha/\beta)\, \delta_0, \qquad
        x_\pm = (\sqrt\alpha \pm \sqrt\beta)^2

    At large size the initial map has this law with (rho, kappa), the sample covariance
    with (1, c). In an angle the density times dx is smooth and periodic, so that the
    midpoint rule converges exponentially.

    Args:
        alpha: mean of the law, > 0.
        beta: scale of its spread, > 0.
        count: nodes of the midpoint rule in the angle.

    Returns:
        `SpectralMeasure` of `count` nodes, and one more where there is an atom.

    Raises:
        ValueError: a parameter that is not positive.

    Source: Marchenko and Pastur 1967; :eq:`drv-regimes-moments` (derivations).

    Examples:
        >>> law = marchenko_pastur(0.5, 2.0)
        >>> round(law.moment(2), 12)     # alpha^2 + alpha beta
        1.25
    """
    theta = (np.arange(count) + 0.5) * np.pi / count
    radius = 2 * np.sqrt(alpha * beta)
    # Written so that it loses no digits at a hard edge (alpha = beta).
    x = (np.sqrt(alpha) - np.sqrt(beta)) ** 2 + 2 * radius * np.sin(theta / 2) ** 2
    w = radius**2 * np.sin(theta) ** 2 / (2 * beta * x * count)
    atom = max(0.0, 1 - alpha / beta)
    if atom:
        x, w = np.append(0.0, x), np.append(atom, w)
    return SpectralMeasure(x, w / w.sum())


def gaussian_factor(d: int, n: int, rng: np.random.Generator) -> np.ndarray:
    r"""X (d, min(d, n)) with X X^T in law that of n standard normal columns.

    Bartlett's decomposition for n >= d, from d^2 / 2 numbers: lower triangular with
    standard normal entries below the diagonal and chi variables of n, n - 1, ...
    degrees on it.
    """
    if n < d:
        return rng.standard_normal((d, n))
    L = rng.standard_normal((d, d)) * np.tri(d, k=-1)
    L.flat[:: d + 1] = np.sqrt(rng.chisquare(n - np.arange(d)))
    return L


def covariance_law(c: float | None, law: SpectralMeasure | None) -> SpectralMeasure:
    """The law of S: Marchenko-Pastur's (1, c), or the given one.

    Raises:
        ValueError: neither or both, or a c that is not positive.
    """
    expect((c is None) != (law is None), "c, law", "exactly one of the two", (c, law))
    return law if law is not None else marchenko_pastur(1.0, c or 0.0)


def jacobi(law: SpectralMeasure, count: int) -> tuple[np.ndarray, np.ndarray]:
    r"""The first `count` recurrence coefficients (diagonal, off-diagonal) of a law.

    The tridiagonal matrix J with them satisfies
    :math:`\langle 0| J^k |0 \rangle = \int x^k` for k < 2 count. Lanczos with full
    reorthogonalisation on the nodes; a law with fewer nodes ends early, with zeros.

    Examples:
        >>> a, b = jacobi(marchenko_pastur(1.0, 1.0), 3)
        >>> a.round(10).tolist(), b.round(10).tolist()
        ([1.0, 2.0, 2.0], [1.0, 1.0])
    """
    a, b = np.zeros(count), np.zeros(count - 1)
    basis = np.zeros((count, law.nodes.size))
    v = np.sqrt(law.weights)
    for j in range(count):
        basis[j] = v / np.linalg.norm(v)
        v = law.nodes * basis[j]
        a[j] = v @ basis[j]
        if j == count - 1:
            break
        for _ in range(2):
            v = v - basis[: j + 1].T @ (basis[: j + 1] @ v)
        b[j] = np.linalg.norm(v)
        if b[j] < 1e-12 * max(1.0, a[0]):
            b[j] = 0.0
            break
    return a, b
