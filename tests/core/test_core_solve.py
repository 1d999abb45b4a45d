"""Solves against float64 dense linear algebra, on regular and singular metrics."""

import math
from contextlib import suppress
from itertools import product

import pytest
import torch
from core_cases import CASES, Given, make, residuals
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    PullbackMetric,
    Realization,
    conjugate_gradient,
    init_,
    normal,
    rng,
)
from geolib.core.linear_solvers import default_rtol, largest_eigenpairs
from geolib.files import ArgumentError

METHODS = ["cholesky", "woodbury", "cg"]  # those with a pseudo-inverse


def build(case, metric=None, **options):
    module, x = make(case)
    R = Realization(module)
    return PullbackMetric(R, x, metric, **options).at(R.theta0)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def graded(rows, p, least, seed, dtype):
    """A with squared singular values from 1 to `least`, v to (A^T A)^+ v, the metric."""
    A = torch.logspace(0, math.log10(least) / 2, rows).double()[:, None]
    A = (A * torch.linalg.qr(normal((p, p), seed))[0][:rows]).to(dtype)
    R = Realization(nn.Linear(p, 1, bias=False).to(dtype))
    G = PullbackMetric(R, A, reduction="sum").at(R.theta0)
    _, s, V = torch.linalg.svd(A.double(), full_matrices=False)
    kept = s**2 > default_rtol(dtype) * s[0] ** 2
    V, w = V[kept], s[kept] ** 2
    return A.double(), lambda b: V.mT @ (V @ b / w), G


@pytest.mark.parametrize("method", [*METHODS, "nystrom", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_damped_solve_of_any_vector(case, method):
    G = build(case, Bernoulli())
    g = normal(G.p, 1)
    s = G.solve(g, 0.05, method, tol=1e-10)
    H = G.dense() + 0.05 * torch.eye(G.p, dtype=torch.float64)
    assert relative(s.x, torch.linalg.solve(H, g)) < 1e-8
    assert s.converged
    assert s.residual < 1e-9
    assert abs(s.residual - relative(H @ s.x, g)) < 1e-9


@pytest.mark.parametrize("method", [*METHODS, "nystrom", "auto"])
@pytest.mark.parametrize("metric", [Bernoulli, Categorical])
@pytest.mark.parametrize("case", ["mlp", "conv", "sequence", "shared"])
def test_damped_solve_of_a_covector_on_the_outputs(case, metric, method):
    G = build(case, metric())
    z = G.outputs()
    y = torch.as_tensor(rng(0).integers(0, 2, len(z)))
    u = (z.softmax(-1) - nn.functional.one_hot(y, z.shape[1])) / len(z)
    s = G.solve(u, 1e-2, method, tol=1e-10)
    H = G.dense() + 1e-2 * torch.eye(G.p, dtype=torch.float64)
    assert relative(s.x, torch.linalg.solve(H, G.pull(u))) < 1e-8
    assert s.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["mlp", "wide", "conv"])
def test_without_damping_it_is_the_pseudo_inverse(case, method):
    G = build(case)
    g = G @ normal(G.p, 1)
    s = G.solve(g, 0.0, method, tol=1e-11, rtol=1e-10)
    x = torch.linalg.pinv(G.dense(), hermitian=True, rtol=1e-10) @ g
    assert relative(s.x, x) < 1e-5
    assert s.converged
    assert s.residual < 1e-8
    assert s.iterations > 0 if method == "cg" else s.method.endswith("pseudo-inverse")


@pytest.mark.parametrize("method", ["cholesky", "woodbury"])
def test_a_right_side_outside_the_range_is_projected_and_reported(method):
    G = build("wide")
    g = normal(G.p, 1)
    s = G.solve(g, 0.0, method, rtol=1e-10)
    P = torch.linalg.pinv(G.dense(), hermitian=True, rtol=1e-10)
    assert relative(s.x, P @ g) < 1e-5
    missed = g - G.dense() @ P @ g
    assert s.residual == pytest.approx(float(missed.norm() / g.norm()), rel=1e-5)
    assert s.residual > 0.1
    assert s.converged


@pytest.mark.parametrize("case", ["wide", "mlp", "conv"])
@pytest.mark.parametrize("masked", [False, True])
def test_cg_without_damping_is_the_least_of_the_nearest(case, masked):
    """Off the range of G it once ended at 1e29; within, it is as right as before."""
    G, D = build(case), build(case).dense()
    free = torch.arange(G.p) % 3 != 0 if masked else None
    if masked:
        D = D * free * free[:, None]
    g = normal(G.p, 1)
    x = torch.linalg.pinv(D, hermitian=True, rtol=1e-7) @ (
        g if free is None else free * g
    )
    plan = {"tol": 1e-9, "rtol": 1e-7, "free": free}
    s = G.solve(g, 0.0, "cg", max_iterations=2000, **plan)
    assert relative(s.x, x) < 1e-5  # off the range a yes is not owed
    few = G.solve(g, 0.0, "cg", max_iterations=2, **plan)
    assert not few.converged
    assert few.x.norm() < 2 * x.norm()


@pytest.mark.slow_for("cg-*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_without_damping_a_yes_means_that_x_is_right(method, dtype):
    """Residuals hide what small eigenvalues do: an x off by a fifth had converged."""
    cut, said = default_rtol(dtype), []
    for seed in range(5):
        for least in (1e-2, 30 * cut, 2 * cut, 1.0001 * cut, 0.9999 * cut):
            A, exact, G = graded(8, 12, least, seed, dtype)
            v, u = normal(12, seed + 5), normal((8, 1), seed + 6).to(dtype)
            on = exact(A.mT @ (A @ v))
            inside, outside = (A.mT @ (A @ on)).to(dtype), (v - on).to(dtype)
            for g in (inside, outside, v.to(dtype), u):
                b = A.mT @ u[:, 0].double() if g is u else g.double()
                found = G.solve(g, 0.0, method)
                said.append(found.converged)
                if found.converged:
                    assert relative(found.x.double(), exact(b)) < 0.2
                if least == 1e-2 and (g is inside or g is u):
                    assert found.converged
    assert 10 <= sum(said) < len(said) - 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["cholesky", "woodbury"])
def test_a_right_side_that_hides_beside_the_range_is_not_solved_for(method, dtype):
    """Rounding of what is off the range counts for more than the little that is on it."""
    said = []
    for seed, share in product(range(5), (1.0, 1e-2, 1e-4)):
        least = 100 * default_rtol(dtype)  # far from the cut
        A, exact, G = graded(8, 12, least, seed, dtype)
        v = normal(12, seed + 5)
        off = v - A.mT @ torch.linalg.lstsq(A.mT, v[:, None]).solution[:, 0]
        g = (share * A[0] + off / off.norm()).to(dtype)  # A[0] is the largest's vector
        found = G.solve(g, 0.0, method)
        gap = relative(found.x.double(), exact(g.double()))
        said.append((found.converged, gap < 0.2))
    assert (True, False) not in said
    if method == "cholesky":  # "woodbury" loses fewer digits
        assert (False, False) in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["cg", "nystrom", "kfac", "cholesky", "woodbury"])
def test_a_little_damping_does_not_hide_an_error_behind_a_residual(method, dtype):
    """A residual of the tolerance's size once was enough, with x off by all of itself."""
    said, limits = [], (None,) if method in ("cholesky", "woodbury") else (None, 20)
    for seed, damping in product(range(3), (1e-2, 1e-8, 1e-11)):
        A, _, G = graded(14, 20, 1e-12, seed, dtype)
        v, u = normal(20, seed + 5), normal((14, 1), seed + 6).to(dtype)
        _, s, V = torch.linalg.svd(A, full_matrices=False)
        flat = (A.mT @ (A @ v) + damping * v).to(dtype)  # (G + damping) v
        for g, limit in product((u, flat, v.to(dtype)), limits):
            b = A.mT @ u[:, 0].double() if g is u else g.double()
            exact = V.mT @ ((V @ b) / (s**2 + damping)) + (b - V.mT @ (V @ b)) / damping
            with suppress(ArgumentError):  # a damping that is below rounding
                found = G.solve(g, damping, method, max_iterations=limit)
                near = relative(found.x.double(), exact) < 0.2
                said.append((found.converged, near, found.residual < 1e-5))
    assert not {(True, False, True), (True, False, False)} & set(said)
    assert (True, True, True) in said
    if method == "cg":  # what a residual alone would have called converged
        assert (False, False, True) in said


@pytest.mark.parametrize("method", ["nystrom", "kfac"])
def test_what_preconditions_by_a_damped_metric_refuses_none(method):
    """K-FAC's way once said that it had converged to what is not the least solution."""
    G = build("wide")
    with pytest.raises(ValueError, match=f"damping: expected more: method '{method}'"):
        G.solve(G @ normal(G.p, 1), 0.0, method)


def test_covectors_that_the_metric_cannot_see_still_get_the_right_answer():
    G = build("mlp", residuals(lambda z, y: ((z - y) ** 2).sum(), torch.zeros(7, 2)))
    u = normal((7, 2), 3)
    s = G.solve(u, 0.1, "woodbury")
    H = G.dense() + 0.1 * torch.eye(G.p, dtype=torch.float64)
    assert relative(s.x, torch.linalg.solve(H, G.pull(u))) < 1e-10


@pytest.mark.parametrize("method", [*METHODS, "nystrom"])
def test_streaming_solves_alike(method):
    whole, stream = build("conv", Bernoulli()), build("conv", Bernoulli(), batch_size=3)
    u = normal((4, 2), 3)
    a, b = (G.solve(u, 0.1, method, tol=1e-9).x for G in (whole, stream))
    assert relative(a, b) < 1e-9


def test_too_few_iterations_are_confessed():
    G = build("mlp")
    s = G.solve(normal(G.p, 1), 1e-6, "cg", max_iterations=2, tol=1e-12)
    assert (s.converged, s.iterations) == (False, 2)
    H = G.dense() + 1e-6 * torch.eye(G.p, dtype=torch.float64)
    assert s.residual == pytest.approx(relative(H @ s.x, normal(G.p, 1)), rel=1e-9)


@pytest.mark.slow_for("sequence", "grouped_conv")
@pytest.mark.parametrize("case", ["mlp", "conv", "shared", "sequence", "grouped_conv"])
def test_the_kronecker_preconditioner_keeps_the_answer(case):
    G = build(case)
    g = normal(G.p, 1)
    s = G.solve(g, 1e-3, "kfac", tol=1e-10, max_iterations=3000)
    H = G.dense() + 1e-3 * torch.eye(G.p, dtype=torch.float64)
    assert relative(s.x, torch.linalg.solve(H, g)) < 1e-7
    assert s.converged


def test_the_kronecker_preconditioner_is_exact_for_one_linear_layer():
    R = Realization(init_(nn.Linear(4, 3).double(), 0, bias_scale=1.0))
    G = PullbackMetric(R, normal((20, 4), 1)).at(R.theta0)
    s = G.solve(normal(R.p, 2), 1e-2, "kfac", tol=1e-12)
    assert s.iterations <= 2
    assert G.solve(normal(R.p, 2), 1e-2, "cg", tol=1e-12).iterations > 3


def test_zero_right_side():
    G = build("mlp")
    for method in (*METHODS, "nystrom"):
        s = G.solve(torch.zeros(G.p, dtype=torch.float64), 0.1, method)
        assert (float(s.x.norm()), s.residual, s.converged) == (0.0, 0.0, True)


def test_float32_covectors_on_the_outputs_keep_their_digits():
    """The same problem in both precisions; G's condition number is about 3e4."""
    module, x = make("wide")
    module = module.float()
    R, theta = Realization(module), Realization(module).theta0
    u = normal((6, 1), 1, dtype=torch.float32)
    s = PullbackMetric(R, x.float()).at(theta).solve(u, 1e-4, "woodbury")
    exact = PullbackMetric(R, x.float().double()).at(theta.double())
    H = exact.dense() + 1e-4 * torch.eye(exact.p, dtype=torch.float64)
    assert s.x.dtype == torch.float32
    x = torch.linalg.solve(H, exact.pull(u.double()))
    assert relative(s.x.double(), x) < 1e-3
    assert s.residual < 1e-5


@pytest.mark.parametrize("case", ["mlp", "wide", "conv", "shared"])
@pytest.mark.parametrize("vectors", [False, True])
def test_spectrum_and_rank(case, vectors):
    G = build(case)
    dense = torch.linalg.eigvalsh(G.dense()).flip(0)
    found = G.spectrum(4, vectors=vectors)
    torch.testing.assert_close(found.values, dense[:4], rtol=1e-9, atol=1e-12)
    assert found.converged
    if vectors:
        V = found.vectors
        torch.testing.assert_close(V.mT @ V, torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(G @ V, V * found.values, rtol=1e-7, atol=1e-10)
    everything = G.spectrum().values
    assert everything.shape == (G.p,)
    torch.testing.assert_close(everything, dense.clamp_min(0), rtol=1e-6, atol=1e-12)
    assert G.rank() == int(torch.linalg.matrix_rank(G.rows().dense()))


@pytest.mark.parametrize("vectors", [False, True])
def test_the_spectrum_by_lanczos_is_that_of_the_dense_metric(monkeypatch, vectors):
    from geolib.core import metric

    G = build("nobias")
    dense = torch.linalg.eigvalsh(G.dense()).flip(0)[:3]
    monkeypatch.setattr(metric, "DIRECT", 0)
    found = G.spectrum(3, vectors=vectors)
    assert (found.method, found.converged) == ("lanczos", True)
    torch.testing.assert_close(found.values, dense, rtol=1e-9, atol=0)
    assert (found.vectors is not None) == vectors
    assert float(found.residuals.max()) <= 1e-9 * float(dense[0])


def test_rank_counts_the_softmax_null_directions():
    net = init_(nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 3)).double(), 0)
    R = Realization(net)
    x = normal((4, 2), 1)
    assert PullbackMetric(R, x).at(R.theta0).rank() == 12
    assert PullbackMetric(R, x, Categorical()).at(R.theta0).rank() == 8
    zero = PullbackMetric(R, x, Given(lambda z, _: torch.zeros(4, 3, 3).double()))
    assert zero.at(R.theta0).rank() == 0


def test_lanczos_agrees_with_the_dense_spectrum_and_reports_residuals():
    Q = torch.linalg.qr(normal((60, 60), 0))[0]
    values = torch.logspace(0, -8, 60, dtype=torch.float64)
    H = (Q * values) @ Q.mT
    found = largest_eigenpairs(lambda v: H @ v, normal(60, 1), 6, 1e-10)
    torch.testing.assert_close(found.values, values[:6], rtol=1e-9, atol=0)
    V = found.vectors
    assert float((H @ V - V * found.values).norm(dim=0).max()) < 1e-9
    assert found.converged
    wild = (Q * torch.linspace(1, 0.999, 60, dtype=torch.float64)) @ Q.mT
    assert not largest_eigenpairs(lambda v: wild @ v, normal(60, 1), 6, 1e-30).converged


def test_lanczos_goes_on_past_an_invariant_subspace():
    d = torch.tensor([3.0, 3.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    found = largest_eigenpairs(lambda v: d * v, normal(5, 1), 4, 1e-10)
    torch.testing.assert_close(found.values, d[:4], rtol=1e-9, atol=1e-9)


def test_an_indefinite_operator_is_refused():
    d = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        conjugate_gradient(lambda v: d * v, normal(3, 1), 1e-8, 50)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"g": torch.full((32,), math.nan)},
            ValueError,
            "g: .* 32 of 32 entries are not",
        ),
        ({"g": torch.zeros(3)}, ValueError, r"g: expected shape \(32,\), got \(3,\)"),
        ({"g": torch.zeros(3, 2)}, ValueError, r"on the outputs, \(7, 2\), got \(3, 2"),
        ({"g": torch.zeros(7, 5)}, ValueError, r"on the outputs, \(7, 2\), got \(7, 5"),
        ({"g": torch.ones(32).to_sparse()}, TypeError, "g: expected a dense tensor"),
        ({"g": torch.ones(7, 2).to_sparse()}, TypeError, "g: expected a dense tensor"),
        ({"g": torch.ones(32, device="meta")}, TypeError, "g: is on meta but theta"),
        ({"g": torch.ones(7, 2, device="meta")}, TypeError, "g: is on meta but theta"),
        ({"g": "gradient"}, TypeError, "g: expected a tensor.*, got str"),
        ({"damping": -1.0}, ValueError, "damping: expected a finite number >= 0"),
        ({"damping": math.nan}, ValueError, "damping: expected a finite"),
        ({"damping": 0.0, "method": "nystrom"}, ValueError, "needs a positive one"),
        ({"method": "lu"}, ValueError, "method: expected one of"),
        (
            {"tol": math.nan},
            ValueError,
            "tol: expected .* tol < inf, got nan",
        ),
        (
            {"rtol": math.inf},
            ValueError,
            "rtol: expected a finite number >= 0, got inf",
        ),
        ({"free": torch.ones(32)}, ValueError, "free: expected method 'cg'"),
        (
            {"free": torch.ones(3), "method": "cg"},
            ValueError,
            r"free: expected .* of shape \(p\) with p = 32 .*, got shape \(3,\)",
        ),
    ],
)
def test_bad_input(change, error, message):
    G = build("mlp")
    arguments = {"g": normal(G.p, 0), "damping": 0.1} | change
    if isinstance(arguments["g"], torch.Tensor):
        arguments["g"] = arguments["g"].double()
    with pytest.raises(error, match=message):
        G.solve(**arguments)


def test_the_wrong_precision_and_a_hopeless_damping_are_named():
    G = build("mlp")
    with pytest.raises(TypeError, match=r"g: dtype torch.float32 does not match theta"):
        G.solve(torch.zeros(G.p), 0.1)
    with pytest.raises(ValueError, match="k: expected 1 to 32, got 0"):
        G.spectrum(0)
    with pytest.raises(
        ValueError, match="damping: expected more, for method 'cholesky'"
    ):
        build("wide").solve(normal(46, 0), 1e-30, "cholesky")


def test_only_the_free_parameters_move():
    G = build("mlp")
    g, free = normal(G.p, 1), normal(G.p, 5) > 0
    s = G.solve(g, 0.1, "cg", tol=1e-12, free=free)
    H = G.dense()[free][:, free] + 0.1 * torch.eye(int(free.sum())).double()
    assert relative(s.x[free], torch.linalg.solve(H, g[free])) < 1e-10
    assert float(s.x[~free].abs().max()) == 0.0


@pytest.mark.parametrize("rtol", [float("nan"), float("inf"), -1.0])
def test_a_rank_by_no_tolerance_is_refused(rtol):
    with pytest.raises(ValueError, match="rtol: expected a finite number >= 0"):
        build("mlp").rank(rtol)


def test_a_solve_that_stops_at_its_limit_pays_no_product_for_the_residual():
    d, g, calls = torch.arange(1.0, 11.0).double(), torch.ones(10).double(), []

    def apply(v):
        calls.append(v)
        return d * v

    x, residual, steps, done = conjugate_gradient(apply, g, 1e-12, 3)
    assert (len(calls), steps, done) == (3, 3, False)
    assert residual == pytest.approx(((g - d * x).norm() / g.norm()).item(), rel=1e-10)
    conjugate_gradient(apply, g, 1e-9, 50)
    assert len(calls) == 3 + 10 + 1  # a good end is looked at
