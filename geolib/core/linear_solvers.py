r"""Solving (G + damping I) x = g for symmetric positive semi-definite G."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
KNOWN = 0.1  # of x: how large an error may be behind a solve that has converged


@dataclass(frozen=True)
class Solution:
    """What a solve found, and how well.

    Attributes:
        x: the solution, shape (p,); of weights in half precision in float32.
        residual: |g - (G + damping) x| / |g|. With damping 0 and g outside the range
            of G it cannot vanish; `converged` then judges |G (g - G x)|.
        iterations: of the iterative methods; 0 for direct ones.
        converged: whether the residual r came below the tolerance that was asked for,
            and x is known to a tenth: |r| <= damping |x| / 10, as the error is at most
            |r| / damping. Without damping the direct methods look at the error that
            eigenvalues make of r, and doubt one near rtol; "cg", which knows none, takes
            the least above zero for rtol times the largest. Small eigenvalues, or a g
            beyond the range of G, can leave x no digit; then the answer is no.
        method: cholesky, woodbury, nystrom, cg, kfac, or a pseudo-inverse form of the
            first two.
    """

    x: Tensor
    residual: float
    iterations: int
    converged: bool
    method: str


@dataclass(frozen=True)
class Spectrum:
    """Largest eigenvalues, in descending order.

    Attributes:
        values: shape (k,).
        vectors: shape (p, k), orthonormal, or None when not asked for.
        residuals: |G v - value v| for each pair; zeros for the direct method.
        converged: whether all residuals are below the tolerance.
        method: dense, kernel or lanczos.
    """

    values: Tensor
    vectors: Tensor | None
    residuals: Tensor
    converged: bool
    method: str


def default_rtol(dtype: torch.dtype) -> float:
    """Relative size below which an eigenvalue counts as zero: eps^(2/3)."""
    return torch.finfo(dtype).eps ** (2 / 3)


def solve_factored(chol: Tensor, g: Tensor) -> Tensor:
    """Solve L L^T x = g for the factor L; unlike `cholesky_solve` it copies no L."""
    half = torch.linalg.solve_triangular(chol, g[:, None], upper=False)
    return torch.linalg.solve_triangular(chol.mT, half, upper=True)[:, 0]


class PseudoInverse:
    """G^+ by the eigenvalues of G.

    Args:
        G: symmetric and positive semi-definite, (m, m).
        rtol: eigenvalues below rtol times the largest are zero.

    Attributes:
        sure: no eigenvalue is so near to that cut that rounding decides on its side.
    """

    def __init__(self, G: Tensor, rtol: float | None) -> None:
        values, self.vectors = torch.linalg.eigh(G)
        top, eps = values.abs().max(), torch.finfo(G.dtype).eps
        cut = (default_rtol(G.dtype) if rtol is None else rtol) * top
        if values[0] < -torch.maximum(cut, 1e3 * eps * top):
            what = f"eigenvalue {float(values[0]):.3g} beside {float(top):.3g}"
            raise ValueError(f"metric: not positive semi-definite, {what}")
        self.inverse = values.where(values > cut, math.inf).reciprocal()
        self.sure = not bool(((values - cut).abs() < 8 * eps * top).any())

    def __call__(self, g: Tensor, power: int = 1) -> Tensor:
        """(G^+)^power g."""
        return self.vectors @ (self.inverse**power * (self.vectors.mT @ g))


class RootSystem:
    r"""The systems :math:`(A^T A + \lambda I)^+ x = g` of one dense root A.

    Solved by the singular values of A, found once: forming :math:`A^TA` would square
    the condition number, and with it lose half of the digits.

    Args:
        A: (m, p).
    """

    def __init__(self, A: Tensor) -> None:
        self.A = A
        self.left, self.values, self.right = torch.linalg.svd(A, full_matrices=False)

    def _inverse(self, damping: float, rtol: float) -> Tensor:
        w = self.values.square()
        if damping > 0:
            return 1 / (w + damping)
        kept = w > rtol * w[:1]
        return torch.where(kept, 1 / torch.where(kept, w, 1.0), 0.0)

    def solve(self, g: Tensor, damping: float, rtol: float) -> Tensor:
        """Return x for g, (p,); undamped the least, squares below rtol left out."""
        inverse, b = self._inverse(damping, rtol), self.right @ g
        x = self.right.T @ (inverse * b)
        if damping > 0 and len(b) < len(g):
            x = x + (g - self.right.T @ b) / damping
        return x

    def least_squares(self, r: Tensor, damping: float, rtol: float) -> Tensor:
        """Return x for g = A^T r, r of shape (m,): all digits of A are kept."""
        inverse = self._inverse(damping, rtol)
        return self.right.T @ (inverse * self.values * (self.left.T @ r))


def conjugate_gradient(
    apply: Operator,
    g: Annotated[Tensor, "p"],
    tol: float,
    max_iterations: int,
    precondition: Operator | None = None,
    budget_left: Callable[[int, float], bool] | None = None,
    norm: Operator = torch.linalg.vector_norm,
    allowed: Callable[[Tensor], Any] = lambda x: math.inf,
) -> tuple[Tensor, float, int, bool]:
    """Solve H x = g for positive definite H; stops at |g - H x| <= tol |g|.

    Returns x, the relative residual, the number of iterations and whether it is below
    the tolerance; one that the recurrence says is, is recomputed.

    Args:
        apply: v to H v.
        g: the right-hand side.
        tol: relative residual to reach.
        max_iterations: bound on the products with H; one more checks a good end.
        precondition: r to an approximation of H^-1 r.
        budget_left: given the iterations and the relative residual so far, whether to
            go on.
        norm: what residuals are measured in. Where it is expensive it is evaluated
            only when the preconditioned residual suggests that the end is near.
        allowed: x to the residual that it may have at most, besides.

    Raises:
        ValueError: a direction of negative curvature: H is not PSD.

    Cost: one product with H an iteration.

    Source: Hestenes and Stiefel 1952.

    Examples:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> x, residual, steps, done = conjugate_gradient(
        ...     lambda v: H @ v, torch.ones(2), 1e-6, 10)
        >>> float((H @ x - 1).abs().max()) < 1e-6, steps
        (True, 2)
    """
    size = float(norm(g))
    if size == 0:
        return torch.zeros_like(g), 0.0, 0, True
    x, r = torch.zeros_like(g), g.clone()
    z = r if precondition is None else precondition(r)
    d, rz = z.clone(), float(r @ z)
    steps, guess, goal = 0, size, tol * size
    per_root = size / math.sqrt(rz) if rz > 0 else 0.0
    while guess > goal and steps < max_iterations and rz > 0:
        Hd = apply(d)
        bend = float(d @ Hd)
        if bend <= 0:
            slack = 1e2 * torch.finfo(g.dtype).eps * float(d.norm() * Hd.norm())
            if bend < -slack:
                what = f"not positive semi-definite: v.Hv = {bend:.3g} < 0"
                raise ValueError(f"metric: {what}")
            break  # d lies in the null space: no further progress is possible
        x = torch.add(x, d, alpha=rz / bend)
        r = torch.add(r, Hd, alpha=-rz / bend)
        z = r if precondition is None else precondition(r)
        rz, old = float(r @ z), rz
        d = torch.add(z, d, alpha=rz / old)
        steps += 1
        guess = per_root * math.sqrt(max(rz, 0.0))
        if guess <= goal and rz > 0:
            guess, goal = float(norm(r)), min(tol * size, float(allowed(x)))
            per_root = guess / math.sqrt(rz)
        if budget_left is not None and not budget_left(steps, guess / size):
            break
    residual = float(norm(r)) / size  # the recurrence's: where it is small, look
    if residual <= 2 * tol:
        residual = float(norm(g - apply(x))) / size
    done = residual <= 2 * tol and residual * size <= 2 * float(allowed(x))
    return x, residual, steps, done


def least_squares(
    push: Operator, pull: Operator, y: Tensor, tol: float, max_iterations: int
) -> tuple[Tensor, int, Sequence[float]]:
    r"""The least x of those that minimise |y - A x|, the iterations, and Ritz values.

    These are eigenvalues of A^T A as the iterations have seen them, in ascending order.
    They end where |y - A x| <= tol |y|, or where A^T (y - A x) is rounding.

    Args:
        push: v to A v.
        pull: a to A^T a.
        y, tol, max_iterations: as for `conjugate_gradient`.

    Cost: one product with A and one with its transpose an iteration.

    Source: Hestenes and Stiefel 1952 (CGLS).

    Examples:
        >>> A = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
        >>> least_squares(A.mv, A.mT.mv, torch.ones(3), 1e-6, 10)
        (tensor([0.6000, 0.0000]), 1, [5.0...])
    """
    from scipy.linalg import eigvalsh_tridiagonal

    r, d = y, pull(y)
    x, s, steps = torch.zeros_like(d), float(d @ d), 0
    size, slack = float(y.norm()), 8 * torch.finfo(y.dtype).eps
    top, steep, linked = 0.0, [], [0.0]  # A's size as seen, and a tridiagonal matrix
    while s > 0 and steps < max_iterations:
        q = push(d)
        bend = float(q @ q)
        top = max(top, (bend / float(d @ d)) ** 0.5)
        if s**0.5 <= slack * top * float(r.norm()):
            break
        x, r = torch.add(x, d, alpha=s / bend), torch.sub(r, q, alpha=s / bend)
        steps += 1
        steep.append(bend / s)
        if float(r.norm()) <= tol * size:
            break
        z = pull(r)
        old, s = s, float(z @ z)
        d = torch.add(z, d, alpha=s / old)
        linked.append(s / old)
    a, b = np.array(steep), np.array(linked[:steps])
    T = a + np.append(0, b[1:] * a[:-1]), b[1:] ** 0.5 * a[:-1]
    return x, steps, eigvalsh_tridiagonal(*T).tolist() if steps else []


def largest_eigenpairs(apply: Operator, start: Tensor, k: int, tol: float) -> Spectrum:
    """The k largest eigenvalues by ARPACK's Lanczos, and what is left of each pair.

    The residuals are computed anew; a pair that ARPACK gave up is left out.

    Source: scipy.sparse.linalg.eigsh.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def matvec(v: Any) -> Any:
        return apply(torch.as_tensor(v.reshape(-1)).to(start)).cpu().numpy()

    begin = start.cpu().numpy()
    H = LinearOperator((len(begin), len(begin)), matvec, dtype=begin.dtype)
    try:
        values, vectors = eigsh(H, k, v0=begin, tol=tol, which="LA")
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    w, V = torch.as_tensor(values).to(start), torch.as_tensor(vectors).to(start)
    order = w.argsort(descending=True)
    w, V = w[order].clamp_min(0), V[:, order]
    gaps = [apply(v) - s * v for s, v in zip(w, V.mT, strict=True)]
    residuals = torch.stack([w[:0].sum(), *(gap.norm() for gap in gaps)])[1:]
    converged = len(w) == k and bool((residuals <= tol * w[:1]).all())
    return Spectrum(w, V, residuals, converged, "lanczos")
