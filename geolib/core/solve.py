r"""Ways to solve (G + damping I) x = g, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from geolib.core.jacobian_factors import JacobianFactors
from geolib.core.kronecker import kronecker_preconditioner
from geolib.core.linear_solvers import (
    MetricOperator,
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
    require_dense,
    require_finite,
    require_matching,
    require_vector,
)

METHODS = ("auto", "cholesky", "woodbury", "nystrom", "cg")
DEFAULT_ROWS, TYPICAL = 512, 20  # of landmarks, and iterations, unless "auto" chooses


def solve(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    method: str,
    *,
    tol: float | None,
    rtol: float | None,
    max_iterations: int | None,
    precondition: str | None,
) -> Solution:
    """See :meth:`Metric.solve`."""
    _check(G, g, damping, method, precondition)
    tol = math.sqrt(torch.finfo(G.theta.dtype).eps) if tol is None else tol
    if method == "auto":
        return _auto(G, g, damping, tol, rtol)
    if method == "woodbury":
        return _by_woodbury(G, g, damping, tol, rtol)
    if method == "nystrom":
        k = min(DEFAULT_ROWS, max(1, G.problem_size.m // 4))
        way = nystrom_plan(G.problem_size, k, TYPICAL)
        return _by_nystrom(G, g, damping, tol, max_iterations or 2000, way)[0]
    vector = g if g.ndim == 1 else G.pull(g)
    if method == "cholesky":
        return _by_dense(G.dense(), vector, damping, tol, rtol)
    limit = max_iterations
    if limit is None:
        limit = max(200, min(2 * min(G.p, G.problem_size.m), 2000))
        limit = limit if precondition is None else max(limit, min(2 * G.p, 2000))
    return _by_cg(G, vector, damping, tol, limit, precondition)


def _auto(
    G: MetricOperator, g: Tensor, damping: float, tol: float, rtol: float | None
) -> Solution:
    """Direct where that is cheap; else what a sample of the spectrum makes cheapest.

    Iterations are given up when they fall behind the forecast of a direct solve.
    """
    problem, spent, K = G.problem_size, 0, None
    direct = chosen = Plan(*direct_method(problem))
    can_stop = feasible(problem, direct.method)
    if should_sample_spectrum(problem, damping):
        B = sample_factors(G, problem.sample)
        chosen = plan(problem, damping, tol, *sampled_spectrum(G, B))
    elif not can_stop:
        chosen = Plan("cg", math.inf, problem.product())
    if chosen.step:
        if chosen.method == "cg":
            vector = g if g.ndim == 1 else G.pull(g)
            budget_left = (
                IterationBudget(problem, tol, chosen.step) if can_stop else None
            )
            limit = min(2 * G.p, 10_000)
            s = _by_cg(G, vector, damping, tol, limit, None, budget_left)
        else:
            limit = min(2 * problem.m, 10_000)
            s, K = _by_nystrom(G, g, damping, tol, limit, chosen, can_stop)
        if s.converged or not can_stop:
            return s
        spent, chosen = s.iterations, direct
    if chosen.method == "woodbury":
        return replace(_by_woodbury(G, g, damping, tol, rtol, K), iterations=spent)
    vector = g if g.ndim == 1 else G.pull(g)
    return replace(_by_dense(G.dense(), vector, damping, tol, rtol), iterations=spent)


def _by_nystrom(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    tol: float,
    limit: int,
    way: Plan,
    can_stop: bool = False,
) -> tuple[Solution, Tensor | None]:
    """Conjugate gradients on K; also K itself, where that was formed on the way."""
    if damping == 0:
        raise ValueError("damping: method 'nystrom' needs a positive one, got 0")
    B = sample_factors(G, max(1, min(way.rows // G.problem_size.r, G.n)))
    precondition = nystrom_preconditioner(G, B, damping)
    K = G.rows().gram() if way.formed else None
    A = FunctionSpaceOperator(G, K)
    b = _in_range(G, g) if g.ndim == 2 else None
    vector, scale = None, 1.0
    if b is None:  # x = (g - A^T (K + damping)^-1 A g) / damping
        vector = g if g.ndim == 1 else G.pull(g)
        b = A.push(vector)
        scale = max(_ratio(A.size(b), damping * vector.norm()), 1e-300)
    a, residual, steps, converged = conjugate_gradient(
        lambda d: torch.add(A.times(d), d, alpha=damping),
        b,
        tol / scale,
        limit,
        precondition,
        IterationBudget(G.problem_size, tol / scale, way.step) if can_stop else None,
        A.size,
    )
    x = A.pull(a) if vector is None else (vector - A.pull(a)) / damping
    return Solution(x, scale * residual, steps, converged, "nystrom"), K


def _by_cg(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    tol: float,
    limit: int,
    precondition: str | None,
    budget_left: Callable[[int, float], bool] | None = None,
) -> Solution:
    """Conjugate gradients, with products by the factored rows where they are cheaper."""
    problem, apply = G.problem_size, G.__matmul__
    if by_rows(problem) or precondition == "kfac":
        A = G.rows()
        if by_rows(problem):
            apply = lambda v: A.rmatvec(A.matvec(v))  # noqa: E731
        preconditioner = (
            kronecker_preconditioner(A, damping) if precondition == "kfac" else None
        )
    else:
        preconditioner = None
    x, residual, steps, converged = conjugate_gradient(
        lambda v: torch.add(apply(v), v, alpha=damping),
        g,
        tol,
        limit,
        preconditioner,
        budget_left=budget_left,
    )
    return Solution(x, residual, steps, converged, "cg")


def _by_dense(
    G: Tensor, g: Tensor, damping: float, tol: float, rtol: float | None
) -> Solution:
    if damping > 0:
        x = solve_dense(G, g, damping)
        residual = _ratio((g - G @ x - damping * x).norm(), g.norm())
        return Solution(x, residual, 0, residual <= tol, "cholesky")
    x = pseudo_solve(G, g, 1, rtol)
    r = g - G @ x
    inside = _ratio((G @ r).norm(), (G @ g).norm())
    return Solution(x, _ratio(r.norm(), g.norm()), 0, inside <= tol, "pseudo-inverse")


def _by_woodbury(
    G: MetricOperator,
    g: Tensor,
    damping: float,
    tol: float,
    rtol: float | None,
    K: Tensor | None = None,
) -> Solution:
    A = G.rows()
    K = A.gram() if K is None else K
    b = _in_range(G, g) if g.ndim == 2 else None
    if b is not None:
        return _from_outputs(A, K, b, damping, tol, rtol)
    vector = g if g.ndim == 1 else G.pull(g)
    c = A.matvec(vector)
    if damping == 0:
        alpha = pseudo_solve(K, c, 2, rtol)
        x = A.rmatvec(alpha)
        r = vector - A.rmatvec(K @ alpha)
        inside = _ratio(_norm(K, c - K @ (K @ alpha)), _norm(K, c))
        residual = _ratio(r.norm(), vector.norm())
        return Solution(x, residual, 0, inside <= tol, "woodbury pseudo-inverse")
    alpha = _refined(K, c, damping)
    x = (vector - A.rmatvec(alpha)) / damping
    gap = alpha - (c - K @ alpha) / damping
    residual = _ratio(_norm(K, gap), vector.norm())
    return Solution(x, residual, 0, residual <= tol, "woodbury")


def _from_outputs(
    A: JacobianFactors,
    K: Tensor,
    b: Tensor,
    damping: float,
    tol: float,
    rtol: float | None,
) -> Solution:
    """x = A^T (K + damping)^-1 b, which solves the system for g = A^T b."""
    size = _norm(K, b)
    if damping == 0:
        alpha = pseudo_solve(K, b, 1, rtol)
        method = "woodbury pseudo-inverse"
    else:
        alpha = _refined(K, b, damping)
        method = "woodbury"
    gap = b - K @ alpha - damping * alpha
    residual = _ratio(_norm(K, gap), size)
    return Solution(A.rmatvec(alpha), residual, 0, residual <= tol, method)


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


def _norm(K: Tensor, a: Tensor) -> Tensor:
    """|A^T a|."""
    return (a @ (K @ a)).clamp_min(0).sqrt()


def _ratio(a: Tensor, b: Tensor) -> float:
    return 0.0 if float(a) == 0 else float(a) / max(float(b), 1e-300)


def _check(
    G: MetricOperator, g: Tensor, damping: float, method: str, precondition: str | None
) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    if precondition not in (None, "kfac"):
        raise ValueError(f"precondition: expected None or kfac, got {precondition!r}")
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping: expected a finite number >= 0, got {damping}")
    if isinstance(g, Tensor) and g.ndim == 2:
        require_dense("g", g)
        if tuple(g.shape) != (G.n, G.problem_size.o):
            raise ValueError(
                f"g: expected shape ({G.p},) or, on the outputs, {(G.n, G.problem_size.o)}; "
                f"got {tuple(g.shape)}"
            )
        require_matching("g", g, G.theta, "theta")
    else:
        require_vector("g", g, G.p, G.theta, "theta")
    require_finite("g", g)
