"""Draws repeat, follow their law, and touch nothing global."""

import numpy as np
import pytest
import torch
from torch import nn

from geolib.core import init_, normal, rng


def spread(p):
    return p.detach().std().item()


def test_draws_are_numpys():
    expected = np.random.default_rng(7).standard_normal((2, 3))
    np.testing.assert_array_equal(normal((2, 3), 7).numpy(), expected)
    assert normal((2, 3), 7, dtype=torch.float32).dtype == torch.float32
    generator = rng(7)
    assert not torch.equal(normal(3, generator), normal(3, generator))
    assert rng(generator) is generator


def test_nothing_global_moves():
    layer = nn.Linear(50, 50)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    init_(layer, 0)
    normal(5, 1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize(
    ("scheme", "variance"), [("he", 2 / 400), ("lecun", 1 / 400), ("glorot", 2 / 1000)]
)
def test_init_follows_its_law(scheme, variance):
    layer = init_(nn.Linear(400, 600), 0, scheme, bias_scale=0.5)
    assert abs(spread(layer.weight) ** 2 / variance - 1) < 0.02
    assert abs(spread(layer.bias) / 0.5 - 1) < 0.1
    assert torch.equal(init_(nn.Linear(3, 2), 0).bias, torch.zeros(2))


def test_convolution_counts_its_window_and_transposed_swaps():
    conv = init_(nn.Conv2d(30, 40, 3), 0, "lecun")
    assert abs(spread(conv.weight) ** 2 * 30 * 9 - 1) < 0.05
    up = init_(nn.ConvTranspose2d(30, 40, 3), 0, "lecun")
    assert abs(spread(up.weight) ** 2 * 30 * 9 - 1) < 0.05
    grouped = init_(nn.Conv2d(30, 40, 3, groups=10), 0, "lecun")
    assert abs(spread(grouped.weight) ** 2 * 3 * 9 - 1) < 0.1


def test_every_kind_of_layer_is_redrawn_alike_whatever_it_held():
    def build():
        return nn.Sequential(
            nn.Embedding(5, 4),
            nn.LSTM(4, 3, batch_first=True),
            nn.LayerNorm(3),
            nn.MultiheadAttention(3, 1),
            nn.Linear(3, 2),
        )

    a, b = init_(build(), 3), init_(build(), 3)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert float(a[1].weight_hh_l0.detach().abs().max()) <= 3**-0.5


def test_a_shared_weight_is_drawn_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    init_(net, 0)
    expected = init_(nn.Linear(3, 3), 0).weight
    assert torch.equal(net[0].weight, expected)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True, "0"])
def test_bad_seeds(seed):
    wanted = "seed: expected a non-negative integer"
    with pytest.raises((ValueError, TypeError), match=wanted):
        normal(3, seed)


def test_bad_scheme():
    with pytest.raises(
        ValueError, match="scheme: expected one of 'he', 'lecun', 'glorot'"
    ):
        init_(nn.Linear(2, 2), 0, "best")
