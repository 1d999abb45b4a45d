"""The planar expansion of untied and deep networks against draws of large ones."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

STEPS = chapter_module("regimes", "experiments_steps")


def derivatives(layers, kind, order, d, h, n, seed):
    """The loss over d and its time derivatives at 0 of one draw, by autograd."""
    rng = np.random.default_rng(seed)
    sizes = [d, *[h] * (layers - 1), d]
    W = [
        torch.tensor(rng.standard_normal((b, a)) / d**0.5, requires_grad=True)
        for a, b in pairwise(sizes)
    ]
    X = torch.tensor(rng.standard_normal((d, n)))
    S = X @ X.T / n

    def loss(kind):
        path = W[0]
        for w in W[1:]:
            path = w @ path
        B = torch.eye(d, dtype=torch.float64) - path
        return ((B @ S * B) if kind == "train" else B * B).sum() / 2

    out = [loss(kind)]
    for _ in range(order):
        moved = torch.autograd.grad(out[-1], W, create_graph=True)
        push = torch.autograd.grad(loss("train"), W, create_graph=True)
        out.append(-sum((a * b).sum() for a, b in zip(moved, push, strict=True)))
    return [y.item() / d for y in out]


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("kind", ["train", "population"])
def test_planar_derivatives_are_those_of_large_networks(layers, kind):
    d, h, n = 160, 107, 133
    draws = [derivatives(layers, kind, 2, d, h, n, seed) for seed in range(12)]
    network = STEPS.Network(layers)
    for s, found in enumerate(np.mean(draws, 0)):
        table = network.planar(kind, s)
        told = (
            sum(f * (h / d) ** k * (d / n) ** m for (_, k, m), f in table.items()) / 2
        )
        assert found == pytest.approx(told, rel=0.05)


def test_one_layer_is_a_linear_regression_without_latents():
    """W' = (1 - W) S: the mean of the first derivative is -(1 + sigma^2 d) (1 + d/n)."""
    table = STEPS.Network(1).planar("train", 1)
    assert table == {(0, 0, 0): -2, (0, 0, 1): -2, (2, 0, 0): -2, (2, 0, 1): -2}
