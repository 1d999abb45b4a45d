"""The choice of `method="auto"`: sensible, and never a wrong answer."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from geolib.core import (
    Categorical,
    PullbackMetric,
    Realization,
    conjugate_gradient,
    init_,
    normal,
    rng,
    solve,
)
from geolib.core.solve_cost import (
    GPU_CALL,
    IterationBudget,
    ProblemSize,
    by_rows,
    direct_method,
    feasible,
    iterations,
    nystrom_plan,
    plan,
    should_sample_spectrum,
)


def mlp_problem(widths, n, r=1, loose=0, **options):
    pairs = list(pairwise(widths))
    layers = tuple((1, 1, a, b) for a, b in pairs)
    p = sum(a * b for a, b in pairs) + loose
    return ProblemSize(p, n, widths[-1], r, layers, loose, **options)


def test_the_facts_of_a_metric():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 3)
    )
    R = Realization(init_(net.double(), 0))
    G = PullbackMetric(R, normal((5, 2, 5, 5), 1), Categorical()).at(R.theta0)
    f = G.problem_size
    assert (f.p, f.n, f.o, f.r, f.m) == (R.p, 5, 3, 2, 10)
    assert f.layers == ((2, 9, 9, 2), (1, 1, 36, 3))
    assert f.loose == 72
    assert not f.batches


def test_a_gpu_solves_at_once_where_a_cpu_would_look_for_iterations():
    widths, n = (64, 70, 70, 1), 4096
    assert should_sample_spectrum(mlp_problem(widths, n), 1e-3)
    there = mlp_problem(widths, n, call=GPU_CALL)
    assert not should_sample_spectrum(there, 1e-3)
    assert direct_method(there)[0] == "woodbury"


@pytest.mark.parametrize(
    ("problem", "method"),
    [
        (mlp_problem((64, 960, 960, 1), 256), "woodbury"),
        (mlp_problem((16, 23, 23, 1), 4096), "cholesky"),
        (mlp_problem((16, 23, 23, 1), 32), "woodbury"),
        (mlp_problem((64, 70, 70, 8), 512, 8), "woodbury"),
    ],
)
def test_the_direct_method_that_was_measured_to_be_faster(problem, method):
    assert direct_method(problem)[0] == method


def test_the_spectrum_is_looked_at_only_where_a_direct_solve_is_dear():
    small = mlp_problem((64, 960, 960, 1), 32)
    large = mlp_problem((64, 70, 70, 1), 4096)
    huge = mlp_problem((64, 3000, 3000, 1), 100_000)
    assert not should_sample_spectrum(small, 1e-3)
    assert should_sample_spectrum(large, 1e-3)
    assert not should_sample_spectrum(large, 0.0)  # only a pseudo-inverse will do
    assert not feasible(huge, "woodbury")
    assert should_sample_spectrum(huge, 1e-3)
    assert not should_sample_spectrum(huge, 0.0)


@pytest.mark.parametrize(
    ("problem", "values", "least", "method"),
    [  # spectra of the kinds that were measured: steep, flat, well conditioned
        (mlp_problem((64, 70, 70, 1), 4096), [2.0] * 8 + [0.01] * 248, 0, "nystrom"),
        (mlp_problem((64, 70, 70, 8), 512, 8), [4.0] * 256, 1e-3, "cg"),
        (mlp_problem((64, 70, 70, 1), 4096), [1e-3] * 256, 0, "cg"),
        (mlp_problem((64, 280, 280, 1), 4096), [1e3] * 256, 0, "woodbury"),
        (mlp_problem((64, 960, 960, 1), 512), [2.0] * 256, 1e-3, "woodbury"),
        (mlp_problem((64, 280, 280, 8), 512, 8), [16.0] * 256, 1e-2, "cg"),
        (mlp_problem((64, 280, 280, 8), 512, 8), [16.0] * 256, 0, "woodbury"),
    ],
)
def test_the_plan_follows_the_spectrum(problem, values, least, method):
    assert plan(problem, 1e-3, 3.5e-4, values, least).method == method


def test_more_landmarks_and_forming_the_kernel_pay_where_the_spectrum_says_so():
    problem = mlp_problem((64, 70, 70, 1), 4096)
    steep = [10.0] * 65 + [1e-2] * 191
    steeper = [10.0] * 30 + [1e-2] * 226
    rows = [plan(problem, 1e-3, 3.5e-4, v, 0).rows for v in (steep, steeper)]
    assert rows == [256, 128]
    wide = mlp_problem((64, 960, 960, 1), 4096)
    assert nystrom_plan(wide, 256, 30).formed
    assert not nystrom_plan(problem, 256, 3).formed
    assert not nystrom_plan(
        mlp_problem((64, 960, 1), 4096, batches=True), 256, 30
    ).formed


def test_chebyshevs_bound_bounds():
    d = torch.linspace(1, 50, 300, dtype=torch.float64)
    steps = conjugate_gradient(lambda v: d * v, normal(300, 1), 1e-6, 300)[2]
    # The bound is on the error in the norm of d: sqrt(50) more for the residual.
    assert steps <= iterations(49.0, 1e-6 / 50**0.5)
    assert steps > 0.5 * iterations(49.0, 1e-6)


def test_products_by_rows_need_memory_and_few_roots():
    assert by_rows(mlp_problem((64, 300, 300, 1), 256))
    assert not by_rows(mlp_problem((64, 300, 300, 1000), 256, 999))
    assert not by_rows(mlp_problem((64, 300, 300, 1), 256, batches=True))
    assert not by_rows(mlp_problem((64, 300, 1), 10**5, loose=10**5))


def test_patience_ends_when_the_forecast_passes_the_direct_cost():
    problem = mlp_problem((64, 70, 70, 1), 4096)
    budget = direct_method(problem)[1]
    budget_left = IterationBudget(problem, 1e-6, budget / 100)
    assert budget_left(16, 0.999)  # a fifth of the cost may be lost
    assert budget_left(40, 1e-3)  # half the way after 40: 40 more
    assert not budget_left(40, 0.1)  # 200 more
    assert budget_left(41, 0.1)  # only asked every fourth time
    huge = mlp_problem((64, 3000, 3000, 1), 100_000)
    assert IterationBudget(huge, 1e-6, 1.0)(
        4 * 10**12, 0.999
    )  # nothing else is possible


def regression(seed=0, n=40):
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    R = Realization(init_(net, seed))
    return PullbackMetric(R, normal((n, 4), 1)).at(R.theta0)


@pytest.mark.parametrize("tol", [1e-6, 1e-9])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("way", ["cg", "nystrom"])
def test_auto_gives_the_answer_with_and_without_giving_up_on_iterations(
    monkeypatch, tol, two_sided, way
):
    G = regression()
    g = normal((40, 2), 3) if two_sided else normal(G.p, 3)
    H = G.dense() + 1e-2 * torch.eye(G.p, dtype=torch.float64)
    x = torch.linalg.solve(H, G.pull(g) if two_sided else g)
    direct = G.solve(g, 1e-2, "auto", tol=tol)
    assert (direct.iterations, direct.method) in ((0, "woodbury"), (0, "cholesky"))
    chosen = solve.cost.Plan(way, 1.0, 1.0, 8, way == "nystrom" and two_sided)
    monkeypatch.setattr(solve.cost, "should_sample_spectrum", lambda *_: True)
    monkeypatch.setattr(solve.cost, "plan", lambda *_: chosen)
    monkeypatch.setattr(
        solve.cost, "IterationBudget", lambda *_: lambda steps, _: steps < 3
    )
    gave_up = G.solve(g, 1e-2, "auto", tol=tol)
    assert gave_up.iterations == 3
    assert gave_up.method in ("woodbury", "cholesky")
    monkeypatch.setattr(solve.cost, "IterationBudget", lambda *_: lambda *_: True)
    patient = G.solve(g, 1e-2, "auto", tol=tol)
    assert patient.method == way
    assert patient.iterations > 5
    for s in (direct, gave_up, patient):
        assert s.converged
        assert float((s.x - x).norm() / x.norm()) < 1e4 * tol


def test_products_by_rows_and_by_graph_give_the_same_iterates(monkeypatch):
    G = regression()
    g = normal(G.p, 3)
    answers = []
    for choice in (True, False):
        monkeypatch.setattr(solve.cost, "by_rows", lambda *_, c=choice: c)
        answers.append(G.solve(g, 1e-2, "cg", max_iterations=7).x)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-12)


def test_an_integer_buffer_stays_an_integer_constant():
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)
            self.register_buffer("order", torch.as_tensor(rng(0).permutation(4)))

        def forward(self, x):
            return self.a(x[:, self.order])

    module = init_(Picks().double(), 0)
    R, x = Realization(module), normal((6, 4), 1)
    torch.testing.assert_close(R(R.theta0, x), module(x).detach())
    assert R.p == 15
    G = PullbackMetric(R, x).at(R.theta0)
    H = PullbackMetric(Realization(module.a), x[:, module.order]).at(R.theta0)
    torch.testing.assert_close(G.dense(), H.dense())
