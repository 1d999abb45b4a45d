r"""Ways to solve (G + damping I) x = g, and the choice between them.

.. math:: x = (G + \lambda I)^{-1} g = \tfrac1\lambda \bigl(g
          - A^T (K + \lambda I)^{-1} A g\bigr), \qquad
          (G + \lambda I)^{-1} A^T b = A^T (K + \lambda I)^{-1} b,

with G = A^T A and K = A A^T: a covector g on the parameters needs the first form, one
that comes from the outputs, g = A^T b, the second, which subtracts nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import linear_solvers as linear
from . import nystrom
from . import solve_cost as cost
from .kronecker import KroneckerFactors
from .linear_solvers import Operator, Solution
from .nystrom import Operand
from .validation import expect, require_finite, require_matching, require_vector, single

DEFAULT_ROWS = 512  # of the Nystrom sample, unless "auto" chooses
METHODS = "auto", "cholesky", "woodbury", "nystrom", "cg", "kfac"
DAMPED = "nystrom", "kfac"  # what they precondition by is that of a damped metric
TYPICAL_STEPS = 20  # iterations that the same default is planned for


def solve(
    G: Operand, g: Tensor, damping: float, method: str, tol: Any, *limits: Any
) -> Solution:
    """See :meth:`Metric.solve`."""
    _check(G, g, damping, method, limits[-1])
    G, g = G.single, single(g)
    tol = math.sqrt(torch.finfo(g.dtype).eps) if tol is None else tol
    found = getattr(_Solve(G, g, damping, tol, *limits), method)()
    most = 0.5 if damping > 0 and found.iterations == 0 else math.inf  # nothing cut it
    finite = found.residual < most and bool(found.x.isfinite().all())
    wanted = f"more, for method {found.method!r} to solve in {g.dtype}"
    expect(finite, "damping", wanted, damping)
    return found


@dataclass
class _Solve:
    """One system, and what its methods share: the right-hand side and the kernel."""

    G: Operand
    g: Tensor
    damping: float
    tol: float
    rtol: float | None
    limit: int | None
    free: Tensor | None

    @cached_property
    def covector(self) -> Tensor:
        """g on the parameters, (p,)."""
        return self.g if self.g.ndim == 1 else self.G.pull(self.g)

    @cached_property
    def source(self) -> Tensor | None:
        """b with g = A^T b; None if g is on the parameters, or out of A's reach."""
        return _in_range(self.G, self.g) if self.g.ndim == 2 else None

    @cached_property
    def kernel(self) -> Tensor:
        """K = A A^T."""
        return self.G.rows().gram()

    def auto(self) -> Solution:
        """Direct where that is cheap; else what a sample of the spectrum makes cheapest.

        Iterations are given up when they fall behind the forecast of a direct solve.
        """
        size = self.G.problem_size
        direct = chosen = cost.Plan(*cost.direct_method(size))
        fits = cost.feasible(size, direct.method)
        if cost.should_sample_spectrum(size, self.damping):
            B = nystrom.sample_factors(self.G, size.sample)
            values, least = nystrom.sampled_spectrum(self.G, B)
            chosen = cost.plan(size, self.damping, self.tol, values, least)
        elif not fits:
            chosen = cost.Plan("cg", math.inf, size.product())
        spent = 0
        if chosen.step:  # an iterative method
            self.limit = min(
                2 * (self.G.p if chosen.method == "cg" else size.m), 10_000
            )
            found = getattr(self, chosen.method)(chosen)
            if found.converged or not fits:
                return found
            spent, chosen = found.iterations, direct
        return replace(getattr(self, chosen.method)(), iterations=spent)

    def cholesky(self) -> Solution:
        """G is formed and factorised; without damping, its eigenvalues are inverted."""
        G, g, damping = self.G.dense(), self.covector, self.damping
        if damping > 0:
            x = _refined(G, g, damping)
            r = g - G @ x - damping * x
            return self._damped(x, r.norm(), g.norm(), "cholesky")
        inverse = linear.PseudoInverse(G, self.rtol)
        error = lambda r: inverse(G @ r, 2)  # noqa: E731
        return self._judged(inverse(g), G.mv, error, inverse.sure, "pseudo-inverse")

    def woodbury(self) -> Solution:
        """K is formed and factorised; without damping, its eigenvalues are inverted.

        x = A^T (K + damping)^-1 b solves the system for g = A^T b; for a g on the
        parameters, with c = A g, x = (g - A^T (K + damping)^-1 c) / damping, or
        A^T (K^+)^2 c.
        """
        A, K, damping, b = self.G.rows(), self.kernel, self.damping, self.source
        c = A.matvec(self.covector) if b is None else b
        if damping == 0:
            inverse = linear.PseudoInverse(K, self.rtol)
            x = A.rmatvec(inverse(c, 2 if b is None else 1))
            apply = lambda v: A.rmatvec(A.matvec(v))  # noqa: E731
            error = lambda r: A.rmatvec(inverse(A.matvec(r), 2))  # noqa: E731
            x = x + error(self.covector - apply(x))  # (K^+)^2 costs digits
            way = apply, error, inverse.sure, "woodbury pseudo-inverse"
            return self._judged(x, *way)
        a = _refined(K, c, damping)
        r = _norm(K, c - K @ a - damping * a)
        if b is not None:
            return self._damped(A.rmatvec(a), r, _norm(K, b), "woodbury")
        x, g = (self.covector - A.rmatvec(a)) / damping, self.covector.norm()
        return self._damped(x, r / damping, g, "woodbury")

    def _damped(self, x: Tensor, r: Tensor, g: Tensor, by: str) -> Solution:
        """A damped x, and whether it is known, by the sizes of its residual and of g."""
        residual = _ratio(r, g)
        known = bool(r <= linear.KNOWN * self.damping * x.norm())
        return Solution(x, residual, 0, known and residual <= self.tol, by)

    def _judged(self, x: Tensor, apply: Any, error: Any, ok: bool, by: str) -> Solution:
        """An undamped x, and whether it is G^+ g.

        G (g - G x) must vanish. That hides what small eigenvalues do: the error of x that
        `error` makes of g - G x must be below a tenth of x, and the cut be sure.
        """
        g = self.covector
        r = g - apply(x)
        ok = ok and _ratio(apply(r).norm(), apply(g).norm()) <= self.tol
        ok = ok and bool(error(r).norm() <= linear.KNOWN * x.norm())
        return Solution(x, _ratio(r.norm(), g.norm()), 0, ok, by)

    def nystrom(self, way: cost.Plan | None = None) -> Solution:
        """Conjugate gradients on K, preconditioned by the rows of some samples."""
        G, damping, size = self.G, self.damping, self.G.problem_size
        planned = way is not None
        if way is None:
            rows = min(DEFAULT_ROWS, max(1, size.m // 4))
            way = cost.nystrom_plan(size, rows, TYPICAL_STEPS)
        step, limit = way.step, self.limit or 2000
        B = nystrom.sample_factors(G, max(1, min(way.rows // size.r, G.n)))
        precondition = nystrom.nystrom_preconditioner(G, B, damping)
        A = nystrom.FunctionSpaceOperator(G, self.kernel if way.formed else None)

        def on_functions(b: Tensor, tol: float, known: Operator) -> Any:
            """(K + damping)^-1 b, its residual measured where x lives, |A^T r|."""
            H: Operator = lambda d: torch.add(A.times(d), d, alpha=damping)  # noqa: E731
            budget = cost.IterationBudget(size, tol, step) if planned else None
            limits = tol, limit, precondition, budget, A.size
            most: Operator = lambda a: linear.KNOWN / 2 * damping * known(a)  # noqa: E731
            return linear.conjugate_gradient(H, b, *limits, most)

        if self.source is not None:  # x = A^T (K + damping)^-1 b
            a, residual, steps, done = on_functions(self.source, self.tol, A.size)
            return Solution(A.pull(a), residual, steps, done, "nystrom")
        # x = (g - A^T (K + damping)^-1 A g) / damping: an error of a counts for more
        # in x, by the factor |A^T A g| / (damping |g|).
        g = self.covector
        b = A.push(g)
        scale = max(_ratio(A.size(b), damping * g.norm()), 1e-300)
        known: Operator = lambda a: (g - A.pull(a)).norm()  # noqa: E731
        a, residual, steps, done = on_functions(b, self.tol / scale, known)
        x = (g - A.pull(a)) / damping
        return Solution(x, scale * residual, steps, done, "nystrom")

    def kfac(self) -> Solution:
        """As `cg`, preconditioned by the Kronecker factors of the damped metric."""
        factors = KroneckerFactors(self.G.rows())
        self.limit = self.limit or max(200, min(2 * self.G.p, 2000))
        found = self.cg(precondition=lambda v: factors.solve(v, self.damping))
        return replace(found, method="kfac")

    def cg(
        self, way: cost.Plan | None = None, precondition: Operator | None = None
    ) -> Solution:
        """Conjugate gradients on the parameters, by the factored rows if that pays.

        Without damping as two problems of least squares, which a g that is out of G's
        range leaves bounded: A^T y near g, and then A x = y.
        """
        size, G, damping = self.G.problem_size, self.G, self.damping
        limit = self.limit or max(200, min(2 * min(G.p, size.m), 2000))
        g, apply = self.covector, G.product
        if cost.by_rows(size, limit):
            A = G.rows()
            apply = lambda v: A.rmatvec(A.matvec(v))  # noqa: E731
        if self.free is not None:
            mask, whole = self.free.to(g), apply
            g, apply = mask * g, lambda v: mask * whole(v)
        if damping == 0:
            return self._least_squares(g, limit)
        H: Operator = lambda v: torch.add(apply(v), v, alpha=damping)  # noqa: E731
        budget = cost.IterationBudget(size, self.tol, way.step) if way else None
        most: Operator = lambda x: linear.KNOWN / 2 * damping * x.norm()  # noqa: E731
        limits = self.tol, limit, precondition, budget, torch.linalg.vector_norm, most
        return Solution(*linear.conjugate_gradient(H, g, *limits), "cg")

    def _least_squares(self, g: Tensor, limit: int) -> Solution:
        """x = A^+ y with y = (A^T)^+ g.

        With no eigenvalue of G in (0, cut), G^+ makes of r at most |r| / cut, and of the
        part of it in G's range at most |A r| / cut^1.5.
        """
        A, rtol = nystrom.FunctionSpaceOperator(self.G), self.rtol
        rtol = linear.default_rtol(g.dtype) if rtol is None else rtol
        tol = min(self.tol, linear.KNOWN * rtol) / 8
        free = 1.0 if self.free is None else self.free.to(g)
        push: Operator = lambda v: A.push(free * v)  # noqa: E731
        pull: Operator = lambda a: free * A.pull(a)  # noqa: E731
        y, steps = self.source, 0
        if y is None:
            y, steps, _ = linear.least_squares(pull, push, g, tol, limit)
        x, more, ritz = linear.least_squares(push, pull, y, tol, limit)
        cut, r = rtol * max(ritz, default=0.0), g - pull(push(x))
        residual, least = _ratio(r.norm(), g.norm()), self.tol * pull(push(g)).norm()
        done = residual <= self.tol or bool(pull(push(r)).norm() <= least)
        error = min(r.norm(), push(r).norm() / max(cut, 1e-300) ** 0.5)
        done = done and bool(error <= linear.KNOWN * cut * x.norm())
        none = min(ritz, default=math.inf) >= cut  # what counts as zero is not in x
        done = done and none
        return Solution(x, residual, steps + more, done, "cg")


def _in_range(G: Operand, u: Tensor) -> Tensor | None:
    """b with A^T b = J^T u, or None if the output metric's root cannot reach u."""
    parts, misses, size = [], 0.0, float(u.norm())
    for samples, _, local in G.batches():
        s = local.root_solve(u[samples])
        misses += float((local.root(s) - u[samples]).norm()) ** 2
        parts.append(s)
    if math.sqrt(misses) > 32 * torch.finfo(u.dtype).eps * size:
        return None
    return torch.cat(parts).reshape(-1) / math.sqrt(G.scale)


def _refined(K: Tensor, b: Tensor, damping: float) -> Tensor:
    """Solve (K + damping) a = b by Cholesky and one step of refinement.

    K, a kernel or G, is positive semi-definite by construction, so a failure means that rounding
    is larger than the damping; a jitter of that size is then added, and the
    residual that is reported tells what it cost.
    """
    eps = torch.finfo(K.dtype).eps
    jitter, diagonal = 0.0, K.diagonal().clone()
    for _ in range(4):  # on K itself, which is large: a copy costs time and memory
        K.diagonal().copy_(diagonal + (damping + jitter))
        chol, info = torch.linalg.cholesky_ex(K)
        if not int(info):
            break
        jitter = max(10 * jitter, 8 * eps * float(diagonal.sum()))
    else:
        what = f"the metric + {damping:.3g} I cannot be factorised in {K.dtype}"
        raise ValueError(f"damping: {what}; use more damping or float64")
    K.diagonal().copy_(diagonal)
    a = linear.solve_factored(chol, b)
    gap = b - K @ a - damping * a
    return a + linear.solve_factored(chol, gap)


def _norm(K: Tensor, a: Tensor) -> Tensor:
    """|A^T a|."""
    return (a @ (K @ a)).clamp_min(0).sqrt()


def _ratio(a: Tensor, b: Tensor) -> float:
    return 0.0 if float(a) == 0 else float(a) / max(float(b), 1e-300)


def _check(
    G: Operand, g: Tensor, damping: float, method: str, free: Tensor | None
) -> None:
    most = torch.finfo(G.theta.dtype).max
    wanted = f"a number below {most:.1e}, theta's largest"
    expect(damping < most, "damping", wanted, damping)
    wanted = f"more: method {method!r} needs a positive one"
    expect(damping > 0 or method not in DAMPED, "damping", wanted, damping)
    expect(free is None or method == "cg", "free", "method 'cg' with it", method)
    if isinstance(g, Tensor) and g.ndim == 2:
        shape, outer = tuple(g.shape), (G.n, G.problem_size.o)
        wanted = f"shape ({G.p},) or, on the outputs, {outer}"
        expect(shape == outer, "g", wanted, shape)
        require_matching("g", g, G.theta, "theta")
    else:
        require_vector("g", g, G.p, G.theta, "theta")
    require_finite("g", g)
