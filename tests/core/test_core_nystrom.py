"""Landmarks: the rows of a few samples, against dense formulas."""

import pytest
import torch
from core_cases import make
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    PullbackMetric,
    Realization,
    init_,
    normal,
    solve,
)
from geolib.core.nystrom import (
    FunctionSpaceOperator,
    nystrom_preconditioner,
    sample_factors,
    sampled_spectrum,
)
from geolib.core.solve_cost import Plan

CASES = ["mlp", "conv", "shared", "sequence", "grouped_conv", "sneaky"]


def build(case, metric=None, **options):
    module, x = make(case)
    R = Realization(module)
    return PullbackMetric(R, x, metric, **options).at(R.theta0)


def smooth(n=200, o=1, **options):
    """Inputs near a curve, so that K's eigenvalues fall fast."""
    net = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, o)).double()
    R = Realization(init_(net, 0))
    t = normal((n, 1), 1)
    x = torch.cat([t, t**2, torch.sin(t), torch.cos(t)], 1) + 1e-2 * normal((n, 4), 2)
    return PullbackMetric(R, x, **options).at(R.theta0)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", [Bernoulli(), Categorical()])
def test_cross_grams_are_products_of_rows(case, metric):
    G = build(case, metric)
    A = G.rows()
    B = A.at(torch.tensor([2, 0]))
    J = A.dense().view(A.n, A.r, A.p)[[2, 0]].reshape(B.m, A.p)
    torch.testing.assert_close(B.dense(), J)
    torch.testing.assert_close(A.cross(B), A.dense() @ J.mT)
    torch.testing.assert_close(B.cross(A), J @ A.dense().mT)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_landmarks_are_rows_of_distinct_samples_however_they_come(batch_size):
    G = build("mlp", Categorical(), batch_size=batch_size)
    B = sample_factors(G, 4)
    rows = build("mlp", Categorical()).rows().dense()
    found = [int((rows - b).norm(dim=1).argmin()) for b in B.dense()]
    assert found == sorted(set(found))
    torch.testing.assert_close(B.dense(), rows[found])
    assert sample_factors(G, 4, seed=3).dense().shape == B.dense().shape
    everything = sample_factors(G, 100).dense()
    torch.testing.assert_close(everything, rows)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("case", ["wide", "conv"])
def test_the_preconditioner_is_its_formula(case, batch_size):
    G = build(case, Bernoulli(), batch_size=batch_size)
    B, damping = sample_factors(G, 2), 1e-2
    A, rows = build(case, Bernoulli()).rows().dense(), B.dense()
    C, W = A @ rows.mT, rows @ rows.mT
    K = C @ torch.linalg.solve(W, C.mT)
    unit = torch.eye(len(K), dtype=torch.float64)
    expected = damping * torch.linalg.inv(K + damping * unit)
    apply = nystrom_preconditioner(G, B, damping)
    found = torch.stack([apply(e) for e in unit], dim=1)
    assert relative(found, expected) < 1e-7


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("formed", [False, True])
def test_function_space_products(batch_size, formed):
    G, A = (
        build("conv", Categorical(), batch_size=batch_size),
        build("conv", Categorical()).rows().dense(),
    )
    S = FunctionSpaceOperator(G, G.kernel() if formed else None)
    v, a = normal(G.p, 1), normal(len(A), 2)
    torch.testing.assert_close(S.push(v), A @ v)
    torch.testing.assert_close(S.pull(a), A.mT @ a)
    torch.testing.assert_close(S.times(a), A @ (A.mT @ a))
    torch.testing.assert_close(S.size(a), (A.mT @ a).norm())


def test_landmarks_save_most_of_the_iterations():
    G = smooth()
    u = normal((200, 1), 3)
    plain = G.solve(u, 1e-5, "cg", tol=1e-8)
    helped = G.solve(u, 1e-5, "nystrom", tol=1e-8)
    assert plain.converged
    assert helped.converged
    assert helped.iterations < 0.4 * plain.iterations


def test_all_samples_as_landmarks_leave_nothing_to_do():
    G = build("mlp")
    way = Plan("nystrom", 1.0, 1.0, 10**6)
    g = normal((7, 2), 1)
    s = solve._Solve(G, g, 1e-2, 1e-10, None, 50, None).nystrom(way)
    assert s.iterations <= 2
    H = G.dense() + 1e-2 * torch.eye(G.p, dtype=torch.float64)
    assert relative(s.x, torch.linalg.solve(H, G.pull(g))) < 1e-9


@pytest.mark.parametrize("two_sided", [False, True])
def test_too_few_iterations_are_confessed(two_sided):
    G = smooth()
    g = normal((200, 1), 3) if two_sided else normal(G.p, 3)
    s = G.solve(g, 1e-6, "nystrom", tol=1e-12, max_iterations=2)
    H = G.dense() + 1e-6 * torch.eye(G.p, dtype=torch.float64)
    g = G.pull(g) if two_sided else g
    assert (s.converged, s.iterations, s.method) == (False, 2, "nystrom")
    assert s.residual == pytest.approx(relative(H @ s.x, g), rel=1e-6)


def test_the_sampled_spectrum_resembles_the_kernels():
    G = smooth(400)
    exact = torch.linalg.eigvalsh(G.kernel()).flip(0)
    values, least = sampled_spectrum(G, sample_factors(G, 100))
    assert least == 0.0  # fewer parameters than rows: K is singular
    for i in (0, 2, 5):
        assert 0.5 < values[i] / float(exact[i]) < 2
    full = smooth(60)
    values, least = sampled_spectrum(full, sample_factors(full, 60))
    exact = torch.linalg.eigvalsh(full.kernel())
    assert values[0] == pytest.approx(float(exact[-1]))
    assert 4 * least == pytest.approx(float(exact[0]), rel=1e-6, abs=1e-15)
