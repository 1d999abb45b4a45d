"""Learning coefficients with known answers, beside integrals that are exact to rounding.

In every model of this file the output weights have a standard normal prior and the
truth is zero, so they can be integrated out: with N outputs of covariance G(a) in the
other weights a, Z(n) = E_a det(I + n G(a))^(-N/2). What is left has at most three
dimensions, and evidences can be had up to n = 10^30.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

SIZES = np.logspace(10, 30, 21)


@dataclass(frozen=True)
class Case:
    """A model with its published coefficient, and log Z(n) at the sizes n."""

    name: str
    known: float
    multiplicity: int
    log_z: np.ndarray

    @property
    def measured(self) -> float:
        """The slope of log Z in log n, the known power of log n being divided out."""
        x = np.log(SIZES)
        y = self.log_z - (self.multiplicity - 1) * np.log(x)
        # 1/log n is the next term of an expansion with a logarithm
        terms = [np.ones_like(x), -x]
        if self.multiplicity > 1:
            terms.append(1 / x)
        return float(np.linalg.lstsq(np.stack(terms, 1), y, rcond=None)[0][1])


def log_nodes(high: float, count: int, low: float = 1e-36) -> tuple[np.ndarray, ...]:
    """Nodes of (0, high], even in the logarithm, and the logs of their masses."""
    u = np.linspace(math.log(low), math.log(high), count)
    mass = u + math.log(u[1] - u[0])
    mass[[0, -1]] -= math.log(2)
    return u, mass


def reduced_rank(M: int, N: int, H: int) -> tuple[float, int]:
    """Aoyagi and Watanabe's coefficient for y = BAx of true rank zero."""
    if M + H < N:
        return H * M / 2, 1
    if N + H < M:
        return H * N / 2, 1
    if M + N < H:
        return M * N / 2, 1
    odd = (M + N + H) % 2
    square = -(H**2) - M**2 - N**2 + 2 * (H * M + H * N + M * N)
    return (square + odd) / 8, 1 + odd


def wishart_evidence(M: int, N: int, H: int, count: int) -> np.ndarray:
    """log Z(n) for y = BAx, by the density of the eigenvalues of A A^T."""
    small, large = sorted((M, H))
    u, mass = log_nodes(80.0, count)
    grids = np.meshgrid(*[u] * small, indexing="ij")
    log_p = sum(
        np.meshgrid(*[mass] * small, indexing="ij"),
        sum((large - small - 1) / 2 * g - np.exp(g) / 2 for g in grids),
    )
    with np.errstate(divide="ignore"):
        for i in range(small):
            for j in range(i):
                log_p = log_p + np.log(np.abs(np.exp(grids[i]) - np.exp(grids[j])))
    log_p = log_p - logsumexp(log_p)
    return np.array(
        [
            logsumexp(log_p - N / 2 * sum(np.log1p(n * np.exp(g)) for g in grids))
            for n in SIZES
        ]
    )


def product_evidence(dims: Sequence[int], count: int) -> np.ndarray:
    """log Z(n) for a product of norms: the tensor of outer product of normal vectors."""
    *rest, last = dims
    log_r, log_p = np.zeros(1), np.zeros(1)
    for d in rest:  # |a|^2 is chi-square with d degrees of freedom
        u, mass = log_nodes(80.0, count)
        log_r = (log_r[:, None] + u).ravel()
        log_p = (log_p[:, None] + mass + d / 2 * u - np.exp(u) / 2 - u).ravel()
    log_p = log_p - logsumexp(log_p)
    return np.array(
        [
            logsumexp(log_p - last / 2 * np.logaddexp(0, np.log(n) + log_r))
            for n in SIZES
        ]
    )


def odd_units_evidence(count: int) -> np.ndarray:
    """log Z(n) for two units b_1 s(a_1 x) + b_2 s(a_2 x) with s(t) = t + t^3.

    In orthonormal x and x^3 the covariance is that of (a, a^3). By symmetry
    0 < a_2 = r a_1 with a flat prior, r near 0 and near 1 on logarithmic nodes.
    """
    u, mass = log_nodes(1.0, count, 1e-20)
    v, near = log_nodes(0.5, count, 1e-20)
    log_r = np.concatenate([v, np.log1p(-np.exp(v))])
    gap = np.concatenate([np.log1p(-np.exp(2 * v)), v + np.log(2 - np.exp(v))])
    log_p = (2 * u + mass - u)[:, None] + np.concatenate([near, near])
    log_p = log_p - logsumexp(log_p)
    a = u[:, None]
    trace = np.exp(2 * a) * (1 + np.exp(2 * log_r))
    trace = trace + np.exp(6 * a) * (1 + np.exp(6 * log_r))
    log_det = 2 * (4 * a + log_r + gap)  # (a_1 a_2 (a_1^2 - a_2^2))^2
    return np.array(
        [
            logsumexp(
                log_p - np.logaddexp(np.log1p(n * trace), 2 * np.log(n) + log_det) / 2
            )
            for n in SIZES
        ]
    )


def cases(count: int = 240) -> Iterator[Case]:
    """Reduced-rank regression, rank-one tensors, deep chains, odd units."""
    for M in (1, 2, 3):
        for N in (1, 2, 3, 4):
            for H in (1, 2):
                known = reduced_rank(M, N, H)
                name = f"reduced rank {M} -> {H} -> {N}"
                yield Case(name, *known, wishart_evidence(M, N, H, count))
    for dims in ((1, 1), (2, 2), (2, 3), (1, 2, 3), (2, 2, 3), (1, 1, 1), (2, 2, 2)):
        known = min(dims) / 2, dims.count(min(dims))
        name = f"rank-one tensor {' x '.join(map(str, dims))}"
        yield Case(name, *known, product_evidence(dims, count))
    yield Case("two odd units", 2 / 3, 1, odd_units_evidence(count))
