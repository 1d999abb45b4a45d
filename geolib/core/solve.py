r"""Ways to solve (G + damping I) x = g, and the choice between them.

.. math:: x = (G + \lambda I)^{-1} g = \tfrac1\lambda \bigl(g
          - A^T (K + \lambda I)^{-1} A g\bigr), \qquad
          (G + \lambda I)^{-1} A^T b = A^T (K + \lambda I)^{-1} b,

with G = A^T A and K = A A^T: a covector g on the parameters needs the first form, one
that comes from the outputs, g = A^T b, the second, which subtracts nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from geolib.core.kronecker import KroneckerFactors
from geolib.core.linear_solvers import (
    MetricOperator,
    Operator,
    Solution,
    conjugate_gradient,
    pseudo_solve,
    solve_dense,
    solve_factored,
)
from geolib.core.nystrom import (
    FunctionSpaceOperator,
    nystrom_preconditioner,
    sample_factors,
    sampled_spectrum,
)
from geolib.core.solve_cost import (
    IterationBudget,
    Plan,
    by_rows,
    direct_method,
    feasible,
    nystrom_plan,
    plan,
    should_sample_spectrum,
)
from geolib.core.validation import (
    expect,
    require_factorisable,
    require_finite,
    require_matching,
    require_vector,
)

METHODS = ("auto", "cholesky", "woodbury", "nystrom", "cg", "kfac")
DEFAULT_ROWS = 512  # of the Nystrom sample, unless "auto" chooses
TYPICAL_STEPS = 20  # iterations that the same default is planned for


def solve(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    method: str,
    tol: float | None,
    rtol: float | None,
    max_iterations: int | None,
    free: Tensor | None,
) -> Solution:
    """See :meth:`Metric.solve`."""
    _check(G, g, damping, method, tol, rtol, free)
    tol = math.sqrt(torch.finfo(G.theta.dtype).eps) if tol is None else tol
    run = _Solve(G, g, damping, tol, rtol)
    found = _chosen(run, method, max_iterations, free)
    finite = math.isfinite(found.residual) and bool(found.x.isfinite().all())
    wanted = f"more, for method {found.method!r} to solve in {g.dtype}"
    expect(finite, "damping", wanted, damping)
    return found


def _chosen(
    run: _Solve, method: str, max_iterations: int | None, free: Tensor | None
) -> Solution:
    G = run.G
    if method == "auto" and G.theta.dtype not in (torch.float16, torch.bfloat16):
        return run.auto()
    if method == "woodbury":
        return run.woodbury()
    if method == "cholesky":
        return run.cholesky()
    if method == "nystrom":
        rows = min(DEFAULT_ROWS, max(1, G.problem_size.m // 4))
        way = nystrom_plan(G.problem_size, rows, TYPICAL_STEPS)
        return run.nystrom(way, max_iterations or 2000)
    limit = max_iterations
    if limit is None:
        limit = max(200, min(2 * min(G.p, G.problem_size.m), 2000))
        limit = max(limit, min(2 * G.p, 2000)) if method == "kfac" else limit
    return run.cg(limit, preconditioned=method == "kfac", free=free)


class _Solve:
    """One system, and what its methods share: the right-hand side and the kernel."""

    def __init__(
        self,
        G: MetricOperator,
        g: Tensor,
        damping: float,
        tol: float,
        rtol: float | None,
    ) -> None:
        self.G, self.g, self.damping, self.tol, self.rtol = G, g, damping, tol, rtol

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
        direct = chosen = Plan(*direct_method(size))
        fits = feasible(size, direct.method)
        if should_sample_spectrum(size, self.damping):
            B = sample_factors(self.G, size.sample)
            values, least = sampled_spectrum(self.G, B)
            chosen = plan(size, self.damping, self.tol, values, least)
        elif not fits:
            chosen = Plan("cg", math.inf, size.product())
        spent = 0
        if chosen.step:  # an iterative method
            if chosen.method == "cg":
                found = self.cg(
                    min(2 * self.G.p, 10_000), watched=chosen if fits else None
                )
            else:
                found = self.nystrom(chosen, min(2 * size.m, 10_000), watched=fits)
            if found.converged or not fits:
                return found
            spent, chosen = found.iterations, direct
        found = self.woodbury() if chosen.method == "woodbury" else self.cholesky()
        return replace(found, iterations=spent)

    def cholesky(self) -> Solution:
        """G is formed and factorised; without damping, its eigenvalues are inverted."""
        G, g, damping = self.G.dense(), self.covector, self.damping
        if damping > 0:
            x = solve_dense(G, g, damping)
            residual = _ratio((g - G @ x - damping * x).norm(), g.norm())
            return Solution(x, residual, 0, residual <= self.tol, "cholesky")
        x = pseudo_solve(G, g, 1, self.rtol)
        r = g - G @ x
        inside = _ratio((G @ r).norm(), (G @ g).norm())
        residual = _ratio(r.norm(), g.norm())
        return Solution(x, residual, 0, inside <= self.tol, "pseudo-inverse")

    def woodbury(self) -> Solution:
        """K is formed and factorised; without damping, its eigenvalues are inverted."""
        A, K = self.G.rows(), self.kernel
        if self.source is not None:
            return self._woodbury_outputs(A.rmatvec, K, self.source)
        return self._woodbury_parameters(A.rmatvec, K, A.matvec(self.covector))

    def _woodbury_outputs(self, pull: Operator, K: Tensor, b: Tensor) -> Solution:
        """x = A^T (K + damping)^-1 b, which solves the system for g = A^T b."""
        if self.damping == 0:
            a, method = pseudo_solve(K, b, 1, self.rtol), "woodbury pseudo-inverse"
        else:
            a, method = _refined(K, b, self.damping), "woodbury"
        residual = _ratio(_norm(K, b - K @ a - self.damping * a), _norm(K, b))
        return Solution(pull(a), residual, 0, residual <= self.tol, method)

    def _woodbury_parameters(self, pull: Operator, K: Tensor, c: Tensor) -> Solution:
        """x = (g - A^T (K + damping)^-1 c) / damping with c = A g, or A^T (K^+)^2 c."""
        g = self.covector
        if self.damping == 0:
            a = pseudo_solve(K, c, 2, self.rtol)
            r = g - pull(K @ a)
            inside = _ratio(_norm(K, c - K @ (K @ a)), _norm(K, c))
            residual, method = _ratio(r.norm(), g.norm()), "woodbury pseudo-inverse"
            return Solution(pull(a), residual, 0, inside <= self.tol, method)
        a = _refined(K, c, self.damping)
        x = (g - pull(a)) / self.damping
        gap = a - (c - K @ a) / self.damping
        residual = _ratio(_norm(K, gap), g.norm())
        return Solution(x, residual, 0, residual <= self.tol, "woodbury")

    def nystrom(self, way: Plan, limit: int, watched: bool = False) -> Solution:
        """Conjugate gradients on K, preconditioned by the rows of some samples."""
        if self.damping == 0:
            raise ValueError("damping: method 'nystrom' needs a positive one, got 0")
        G, damping = self.G, self.damping
        B = sample_factors(G, max(1, min(way.rows // G.problem_size.r, G.n)))
        precondition = nystrom_preconditioner(G, B, damping)
        A = FunctionSpaceOperator(G, self.kernel if way.formed else None)

        def on_functions(b: Tensor, tol: float) -> tuple[Tensor, float, int, bool]:
            """(K + damping)^-1 b, its residual measured where x lives, |A^T r|."""
            budget = IterationBudget(G.problem_size, tol, way.step) if watched else None
            return conjugate_gradient(
                lambda d: torch.add(A.times(d), d, alpha=damping),
                b,
                tol,
                limit,
                precondition,
                budget,
                A.size,
            )

        if self.source is not None:  # x = A^T (K + damping)^-1 b
            a, residual, steps, done = on_functions(self.source, self.tol)
            return Solution(A.pull(a), residual, steps, done, "nystrom")
        # x = (g - A^T (K + damping)^-1 A g) / damping: an error of a counts for more
        # in x, by the factor |A^T A g| / (damping |g|).
        g = self.covector
        b = A.push(g)
        scale = max(_ratio(A.size(b), damping * g.norm()), 1e-300)
        a, residual, steps, done = on_functions(b, self.tol / scale)
        return Solution(
            (g - A.pull(a)) / damping, scale * residual, steps, done, "nystrom"
        )

    def cg(
        self,
        limit: int,
        preconditioned: bool = False,
        free: Tensor | None = None,
        watched: Plan | None = None,
    ) -> Solution:
        """Conjugate gradients on the parameters, by the factored rows if that pays."""
        size, G, damping = self.G.problem_size, self.G, self.damping
        apply: Operator = G.product
        if by_rows(size, limit):
            A = G.rows()
            apply = lambda v: A.rmatvec(A.matvec(v))  # noqa: E731
        g, precondition = self.covector, None
        if preconditioned:
            factors = KroneckerFactors(G.rows())
            precondition = lambda v: factors.solve(v, damping)  # noqa: E731
        if free is not None:
            mask = free.to(g)
            g, whole = mask * g, apply
            apply = lambda v: mask * whole(v)  # noqa: E731
        budget = None
        if watched is not None:
            budget = IterationBudget(size, self.tol, watched.step)
        x, residual, steps, converged = conjugate_gradient(
            lambda v: torch.add(apply(v), v, alpha=damping),
            g,
            self.tol,
            limit,
            precondition,
            budget_left=budget,
        )
        name = "kfac" if preconditioned else "cg"
        return Solution(x, residual, steps, converged, name)


def _in_range(G: MetricOperator, u: Tensor) -> Tensor | None:
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

    K is positive semi-definite by construction, so a failure means that rounding
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
        raise ValueError(
            f"damping: the kernel + {damping:.3g} I cannot be factorised in "
            f"{K.dtype}; use more damping or float64"
        )
    K.diagonal().copy_(diagonal)
    a = solve_factored(chol, b)
    gap = b - K @ a - damping * a
    return a + solve_factored(chol, gap)


def _norm(K: Tensor, a: Tensor) -> Tensor:
    """|A^T a|."""
    return (a @ (K @ a)).clamp_min(0).sqrt()


def _ratio(a: Tensor, b: Tensor) -> float:
    return 0.0 if float(a) == 0 else float(a) / max(float(b), 1e-300)


def _check(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    method: str,
    tol: float | None,
    rtol: float | None,
    free: Tensor | None,
) -> None:
    if method not in ("auto", "cg"):
        require_factorisable(f"method {method!r}", G.theta.dtype)
    most = torch.finfo(G.theta.dtype).max
    expect(
        damping < most,
        "damping",
        f"a number below {most:.1e}, theta's largest",
        damping,
    )
    if free is not None:
        expect(method == "cg", "free", "method 'cg' with it", method)
        shape = tuple(getattr(free, "shape", ()))
        expect(shape == (G.p,), "free", f"a mask of shape ({G.p},)", shape)
    if isinstance(g, Tensor) and g.ndim == 2:
        shape, outer = tuple(g.shape), (G.n, G.problem_size.o)
        expect(
            shape == outer, "g", f"shape ({G.p},) or, on the outputs, {outer}", shape
        )
        require_matching("g", g, G.theta, "theta")
    else:
        require_vector("g", g, G.p, G.theta, "theta")
    require_finite("g", g)
