"""The popular rules that torch lacks, by hand."""

import pytest
import torch
from naturality_cases import fit, network
from naturality_chapter import POPULAR
from torch import nn

from geolib.naturality import (
    NaturalGradient,
)


def test_gradients_that_are_sparse_or_not_finite_are_refused():
    table = nn.Embedding(5, 2, sparse=True).double()
    index = torch.tensor([0, 1, 1])

    def closure():
        z = table(index)
        return z, 0.5 * (z**2).sum() / 3

    with pytest.raises(ValueError, match="sparse gradient"):
        NaturalGradient(table.parameters(), damping=0.0).step(closure)
    closure()[1].backward()
    for cls in (POPULAR.SignSGD, POPULAR.Lion, POPULAR.PolarMuon, POPULAR.Shampoo):
        with pytest.raises(ValueError, match="expected a dense tensor"):
            cls(table.parameters(), 0.1).step()
    w = torch.ones(2, 2, requires_grad=True)
    w.grad = torch.full((2, 2), torch.inf)
    with pytest.raises(ValueError, match="finite"):
        POPULAR.SignSGD([w], 0.1).step()
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="theta|params"):
        fit(module, NaturalGradient(module, damping=0.0), 1)
    with pytest.raises(ValueError, match="finite"):
        fit(module, NaturalGradient(module.parameters(), damping=0.0), 1)


def test_euclidean_rules_by_hand():
    G = torch.tensor([[3.0, 0.0], [0.0, -2.0]], dtype=torch.float64)

    def stepped(cls, **options):
        x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        x.grad = G.clone()
        cls([x], lr=1.0, **options).step()
        return x.detach()

    assert torch.equal(stepped(POPULAR.SignSGD), -G.sign())
    assert torch.equal(stepped(POPULAR.Lion), -G.sign())
    assert torch.allclose(stepped(POPULAR.PolarMuon), -G.sign())
    expected = -G / (0.1 + G**2).sqrt()
    assert torch.allclose(
        stepped(POPULAR.Shampoo, accumulator=0.1),
        torch.diag(expected.diag()),
        atol=1e-12,
    )
