"""Embeddings, connections and class axes, each against its definition."""

import pytest
import torch
from dense_reference import dense_metric, expected_score_blocks
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    init_,
    normal,
)

METRICS = [Euclidean(), Bernoulli(), Categorical(), Categorical(reference=True)]


def matrix(metric, z):
    """M at one output z, shape (o, o); differentiable in z."""
    return metric.at(z[None], slice(0, 1)).dense(len(z))[0]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_the_embedding_pulls_the_flat_metric_back(metric):
    for seed in range(3):
        z = normal(4, seed, scale=3.0)
        D = torch.func.jacfwd(metric.embedding)(z)
        assert float((D.mT @ D - matrix(metric, z)).abs().max()) < 1e-14


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_christoffel_symbols_are_the_derivatives_of_the_metric(metric):
    z, a, b = normal((3, 4), 1, scale=2.0)
    dM = torch.func.jacrev(lambda z: matrix(metric, z))(z)  # (i, j, derivative)
    first = 0.5 * (
        torch.einsum("jki,i,j->k", dM, a, b)
        + torch.einsum("ikj,i,j->k", dM, a, b)
        - torch.einsum("ijk,i,j->k", dM, a, b)
    )
    found = metric.christoffel(z[None], a[None], b[None])[0]
    assert float((found - first).abs().max()) < 1e-14


def test_embeddings_survive_saturated_logits():
    z = torch.tensor([[800.0, -900.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for metric in METRICS:
        (g,) = torch.autograd.grad(metric.embedding(z).sum(), z)
        assert bool(torch.isfinite(g).all())


class Tokens(nn.Module):
    """Logits of classes at each of three positions; the classes lie on `axis`."""

    def __init__(self, axis):
        super().__init__()
        self.body, self.read, self.axis = nn.Linear(2, 4), nn.Linear(4, 3), axis

    def forward(self, x):
        return self.read(torch.tanh(self.body(x))).movedim(-1, self.axis)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("batch", [None, 2])
def test_classes_on_any_axis_against_the_sum_over_positions(axis, reference, batch):
    module = init_(Tokens(axis).double(), 0)
    R, x = Realization(module), normal((5, 6, 2), 1)
    metric = Categorical(reference, dim=axis)
    G = PullbackMetric(R, x, metric, batch_size=batch).at(R.theta0)
    flat = Realization(init_(Tokens(-1).double(), 0))  # each position as a sample
    z = flat(flat.theta0, x.view(30, 1, 2)).detach()
    if reference:
        z = nn.functional.pad(z, (0, 1))
    blocks = expected_score_blocks(z, "categorical")
    blocks = blocks[:, :-1, :-1] if reference else blocks
    expected = 6 * dense_metric(flat, flat.theta0, x.view(30, 1, 2), blocks)
    assert float((G.dense() - expected).abs().max()) < 1e-13
    v = normal(R.p, 2)
    assert float((G @ v - expected @ v).abs().max()) < 1e-13
    u = normal((5, 18), 3)
    u = u if reference else u - u.view(5, 6, 3).mean(-1).repeat_interleave(3, 1)
    direct, by_kernel = (
        G.solve(G.pull(u) if m == "cholesky" else u, 0.1, m, tol=1e-10).x
        for m in ("cholesky", "woodbury")
    )
    assert float((direct - by_kernel).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("dim", "message"),
    [
        (
            None,
            r"outputs of shape \(5, 6, 3\) do not tell which axis holds the classes",
        ),
        (0, "dim: expected an axis of the classes .* 1 to 2 or negative; got 0"),
        (-3, "dim: expected an axis"),
        (3, "dim: expected an axis"),
    ],
)
def test_an_axis_that_cannot_hold_the_classes_is_refused(dim, message):
    R, x = Realization(Tokens(-1).double()), normal((5, 6, 2), 1)
    with pytest.raises(ValueError, match=message):
        PullbackMetric(R, x, Categorical(dim=dim)).at(R.theta0).dense()
