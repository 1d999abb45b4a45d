r"""Conjugate gradients in function space, preconditioned by those of a few samples (Nystrom).

.. math:: (K + \lambda)\, \alpha = b, \qquad K = A A^T, \qquad
          \hat K = C\, W^{-1} C^T, \quad C = A B^T, \quad W = B B^T,

with B the rows of A that belong to some samples, the Nystrom sample ("landmarks").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from geolib.core.jacobian_factors import JacobianFactors, join_samples
from geolib.core.linearization import Linearization
from geolib.core.output_metrics import LocalMetric
from geolib.core.random import rng
from geolib.core.solve_cost import ProblemSize, by_rows


class Operand(Protocol):
    """What a solve asks of a metric."""

    p: int
    n: int
    scale: float
    theta: Tensor

    @property
    def single(self) -> Operand: ...
    @property
    def problem_size(self) -> ProblemSize: ...
    def batches(self) -> Iterator[tuple[slice, Linearization, LocalMetric]]: ...
    def row_batches(self) -> Iterator[JacobianFactors]: ...
    def rows(self) -> JacobianFactors: ...
    def dense(self) -> Tensor: ...
    def pull(self, u: Tensor) -> Tensor: ...
    def product(self, v: Tensor) -> Tensor: ...


class FunctionSpaceOperator:
    """A and its transpose between vectors of R^p and of function space, R^m.

    By the factored rows where these are cheaper, else by automatic differentiation,
    batch by batch.

    Args:
        G: the metric.
        K: its kernel, if it was formed; products with K are then products with it.
    """

    def __init__(self, G: Operand, K: Tensor | None = None) -> None:
        self.G, self.K = G, K
        self.rows = G.rows() if by_rows(G.problem_size) else None
        self.root = G.scale**0.5

    def push(self, v: Tensor) -> Tensor:
        """A v, shape (m,)."""
        if self.rows is not None:
            return self.rows.matvec(v)
        parts = [local.root_t(L.jvp(v)) for _, L, local in self.G.batches()]
        return self.root * torch.cat(parts).reshape(-1)

    def pull(self, a: Tensor) -> Tensor:
        """A^T a, shape (p,)."""
        if self.rows is not None:
            return self.rows.rmatvec(a)
        a, total = self.root * a.view(self.G.n, -1), a.new_zeros(self.G.p)
        for samples, L, local in self.G.batches():
            total += L.vjp(local.root(a[samples]))
        return total

    def times(self, a: Tensor) -> Tensor:
        """K a."""
        return self.push(self.pull(a)) if self.K is None else self.K @ a

    def size(self, a: Tensor) -> Tensor:
        """|A^T a|."""
        if self.K is None:
            return self.pull(a).norm()
        return (a @ (self.K @ a)).clamp_min(0).sqrt()


def sample_factors(G: Operand, count: int, seed: int = 0) -> JacobianFactors:
    """The rows of `count` samples drawn at random; one pass over the batches."""
    index = torch.as_tensor(rng(seed).permutation(G.n)[:count]).sort().values
    found, start = [], 0
    for A in G.row_batches():
        inside = index[(index >= start) & (index < start + A.n)] - start
        if len(inside):
            found.append(A.at(inside.to(A.like.device)))
        start += A.n
    return join_samples(found)


def sampled_spectrum(G: Operand, B: JacobianFactors) -> tuple[list[float], float]:
    """The largest eigenvalues of K, in descending order, and the least, as W tells.

    W times n over the number of sampled rows' samples has about the same large
    eigenvalues, down to about half of them. Its own least one is at least K's
    (interlacing), and was some two to four times that where K has full rank.
    """
    values = torch.linalg.eigvalsh(B.gram().double()).flip(0)
    least = max(0.0, float(values[-1])) / 4 if G.problem_size.m <= G.p else 0.0
    return (values * (G.n / B.n)).tolist(), least


def nystrom_preconditioner(
    G: Operand, B: JacobianFactors, damping: float
) -> Callable[[Tensor], Tensor]:
    r"""Apply :math:`\lambda (\hat K + \lambda)^{-1}` in function space.

    Cost: m k (layer widths) + 2 m k^2 + k^3 once for k rows of B, and 2 m k a call;
    k m numbers of memory.

    Source: Frangella, Tropp and Udell 2023, algorithm 2.1 and section 5, with sampled
    columns (Williams and Seeger 2001) for their random ones.
    """
    W = B.gram().double()
    eps = torch.finfo(G.theta.dtype).eps
    W.diagonal().add_(8 * eps * float(W.diagonal().sum()) + torch.finfo(W.dtype).tiny)
    F = torch.cat([A.cross(B) for A in G.row_batches()]).mT
    F = torch.linalg.solve_triangular(torch.linalg.cholesky(W).to(F), F, upper=False)
    H = (F @ F.mT).double()  # a square, so that rounding leaves it semi-definite
    H.diagonal().add_(damping)
    F = torch.linalg.solve_triangular(torch.linalg.cholesky(H).to(F), F, upper=False)
    return lambda r: torch.sub(r, F.mT @ (F @ r))
