"""What must hold for every module, point and data set: drawn at random."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    init_,
    normal,
    rng,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")
ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "softplus": nn.Softplus}


@st.composite
def problems(draw):
    """A random MLP, data, and output metric, in float64."""
    widths = draw(st.lists(st.integers(2, 5), min_size=2, max_size=4))
    act = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    bias = draw(st.booleans())
    seed = draw(st.integers(0, 10**6))
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), act()]
    net = init_(nn.Sequential(*layers[:-1]).double(), seed, bias_scale=0.5)
    x = normal((draw(st.integers(1, 6)), widths[0]), seed + 1)
    metric = draw(st.sampled_from([Euclidean(), Bernoulli(), Categorical()]))
    return Realization(net), x, metric, seed


EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


@given(problems())
@EXAMPLES
def test_symmetric_positive_semi_definite_and_adjoint(problem):
    R, x, metric, seed = problem
    G = PullbackMetric(R, x, metric).at(R.theta0)
    dense = G.dense()
    top = float(dense.abs().max()) + 1e-300
    assert float((dense - dense.mT).abs().max()) <= 1e-14 * top
    assert float(torch.linalg.eigvalsh(dense)[0]) >= -1e-13 * top * len(dense)
    v, w = normal((2, R.p), seed + 2)
    assert float(G.inner(v, v)) >= -1e-13 * top * float(v @ v)
    torch.testing.assert_close(G.inner(v, w), G.inner(w, v), rtol=1e-9, atol=1e-12)
    L = R.linearize(R.theta0, x)
    u = normal(tuple(L.outputs.shape), seed + 3)
    torch.testing.assert_close(
        (L.jvp(v) * u).sum(), v @ L.vjp(u), rtol=1e-9, atol=1e-11
    )


class Reparametrised(nn.Module):
    """R composed with theta = A psi + sinh-like bend: the same functions, new names."""

    def __init__(self, R, A, psi):
        super().__init__()
        self.R, self.A = [R], A
        self.psi = nn.Parameter(psi)

    def theta(self, psi):
        return self.A @ torch.sinh(psi)

    def forward(self, x):
        return self.R[0](self.theta(self.psi), x)


@given(problems())
@EXAMPLES
def test_congruence_under_a_reparametrisation(problem):
    """G in the coordinates psi is D^T G D with D = d theta / d psi."""
    R, x, metric, seed = problem
    A = torch.linalg.qr(normal((R.p, R.p), seed))[0] * 0.7
    psi = torch.asinh(torch.linalg.solve(A, R.theta0))
    S = Realization(Reparametrised(R, A, psi).double())
    D = A * torch.cosh(psi)
    G = PullbackMetric(R, x, metric).at(R.theta0).dense()
    H = PullbackMetric(S, x, metric).at(psi)
    expected = D.mT @ G @ D
    scale = float(expected.abs().max()) + 1e-300
    assert float((H.dense() - expected).abs().max()) < 1e-9 * scale
    v = normal(R.p, seed + 4)
    assert float(((H @ v) - expected @ v).norm()) < 1e-9 * scale * float(v.norm())


@given(problems(), st.floats(1e-3, 10.0))
@EXAMPLES
def test_all_methods_give_one_solution_that_is_linear_in_the_right_side(
    problem, damping
):
    R, x, metric, seed = problem
    G = PullbackMetric(R, x, metric).at(R.theta0)
    g = normal((2, R.p), seed + 5)
    answers = [
        G.solve(g[0], damping, m, tol=1e-12).x for m in ("cholesky", "woodbury", "cg")
    ]
    for a in answers[1:]:
        torch.testing.assert_close(a, answers[0], rtol=1e-7, atol=1e-7)
    both = G.solve(g[0] + 2 * g[1], damping, "woodbury").x
    alone = answers[1] + 2 * G.solve(g[1], damping, "woodbury").x
    torch.testing.assert_close(both, alone, rtol=1e-8, atol=1e-8)


@given(problems(), st.integers(1, 4))
@EXAMPLES
def test_streaming_and_sample_order_do_not_matter(problem, size):
    R, x, metric, seed = problem
    G = PullbackMetric(R, x, metric).at(R.theta0)
    shuffled = x[torch.as_tensor(rng(seed).permutation(len(x)))]
    H = PullbackMetric(R, shuffled, metric, batch_size=size).at(R.theta0)
    torch.testing.assert_close(H.dense(), G.dense(), rtol=1e-10, atol=1e-12)
