"""Canonical forms of deep networks: same function, same form for all gauges."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from geolib.core import init_
from geolib.inverse_stability import canonicalize
from geolib.networks import align


def mlp():
    return nn.Sequential(
        nn.Linear(10, 32),
        nn.ReLU(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def cnn():
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        nn.Conv2d(8, 12, 3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, padding="same"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


def prepared(make, seed):
    """Weights, biases and batch-norm statistics drawn by NumPy, float64, eval."""
    net = init_(make().double(), seed, "he", bias_scale=0.3)
    rng = np.random.default_rng(seed + 100)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            for t, values in [
                (layer.running_mean, rng.normal(size=n)),
                (layer.running_var, rng.uniform(0.3, 2, n)),
                (layer.weight.data, rng.normal(size=n)),
                (layer.bias.data, rng.normal(size=n)),
            ]:
                t.copy_(torch.as_tensor(values))
    return net.eval()


INPUT = {mlp: (64, 10), cnn: (8, 2, 14, 15)}


def outputs(net, make):
    x = np.random.default_rng(9).normal(size=INPUT[make])
    with torch.no_grad():
        return net(torch.as_tensor(x)).numpy()


def linears(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def gauge(net, seed, scales=True):
    """Randomly permute and rescale the hidden channels of a folded network."""
    net, rng = deepcopy(net), np.random.default_rng(seed)
    layers = linears(net)
    for a, b in pairwise(layers):
        n = a.weight.shape[0]
        order = torch.as_tensor(rng.permutation(n))
        s = torch.as_tensor(10 ** rng.uniform(-2, 2, n) if scales else np.ones(n))
        a.weight.copy_((a.weight.flatten(1) * s[:, None])[order].view_as(a.weight))
        a.bias.copy_((a.bias * s)[order])
        cols = b.weight.reshape(b.weight.shape[0], n, -1) / s[None, :, None]
        b.weight.copy_(cols[:, order].reshape(b.weight.shape))
    return net


def gap(a, b):
    return max(
        (p - q).abs().max().item()
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


@pytest.mark.parametrize("make", [mlp, cnn])
def test_same_function(make):
    net = prepared(make, 0)
    form = canonicalize(net)
    want = outputs(net, make)
    assert np.abs(outputs(form.module, make) - want).max() <= 1e-12 * np.abs(want).max()
    assert form.converged
    assert form.energy[1] < form.energy[0]
    assert form.folded == (2 if make is cnn else 0)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_gauge_invariant_and_idempotent(make):
    form = canonicalize(prepared(make, 1)).module
    again = canonicalize(form)
    assert gap(again.module, form) < 1e-12
    assert again.sweeps <= 2
    for seed in range(3):
        other = gauge(form, seed)
        assert gap(other, form) > 1
        assert gap(canonicalize(other).module, form) < 1e-10


def test_channels_are_balanced():
    layers = linears(canonicalize(prepared(mlp, 2)).module)
    for a, b in pairwise(layers):
        inner = (a.weight**2).sum(1) + a.bias**2
        torch.testing.assert_close(inner, (b.weight**2).sum(0), rtol=1e-10, atol=0)


def test_energy_is_minimal_against_a_general_optimizer():
    """The energy as a function of all log-scales, minimized by SciPy instead."""
    from scipy.optimize import minimize

    net = init_(
        nn.Sequential(
            nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
        ).double(),
        5,
        bias_scale=0.5,
    ).eval()
    W = [m.weight.detach().numpy() for m in linears(net)]
    b = [m.bias.detach().numpy() for m in linears(net)]

    def energy(u):
        s, t = np.exp(u[:6]), np.exp(u[6:])
        return (
            ((s[:, None] * W[0]) ** 2).sum()
            + ((s * b[0]) ** 2).sum()
            + ((t[:, None] * W[1] / s) ** 2).sum()
            + ((t * b[1]) ** 2).sum()
            + ((W[2] / t) ** 2).sum()
        )

    best = minimize(energy, np.zeros(11), tol=1e-12).fun
    form = canonicalize(net)
    assert form.dropped == 0
    assert form.energy[1] == pytest.approx(best, rel=1e-9)


@torch.no_grad()
def test_dead_parallel_and_constant_channels_go():
    net = prepared(mlp, 3)
    layers = linears(net)
    want_width = [32, 24, 16]
    layers[0].weight[3] = 0  # constant, positive bias: folded away
    layers[0].bias[3] = 0.7
    layers[0].weight[5], layers[0].bias[5] = (
        2 * layers[0].weight[4],
        2 * layers[0].bias[4],
    )
    layers[1].weight[7] = -layers[1].weight[7].abs()  # never on: inputs are >= 0
    layers[1].bias[7] = -0.1
    layers[1].weight[8] = -0.01 * layers[1].weight[8].abs()
    layers[1].bias[8] = 0.9  # on near the origin: this one must stay
    layers[2].weight[:, 9] = 0  # nobody reads channel 9 of the second layer
    form = canonicalize(net)
    want = outputs(net, mlp)
    np.testing.assert_allclose(outputs(form.module, mlp), want, atol=1e-12)
    assert (form.merged, form.dropped) == (1, 3)
    widths = [m.weight.shape[0] for m in linears(form.module)][:3]
    assert widths == [want_width[0] - 2, want_width[1] - 2, want_width[2]]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1])
def test_constant_channel_before_a_padded_convolution(padding):
    """Zero padding makes a constant channel visible at the border: it must stay."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=padding)
    )
    net = init_(net.double(), 0).eval()
    net[0].weight[1] = 0
    net[0].bias[1] = 1.5
    form = canonicalize(net)
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 1, 8, 8)))
    torch.testing.assert_close(form.module(x), net(x), rtol=1e-12, atol=1e-12)
    assert form.module[0].weight.shape[0] == (3 if padding else 2)


@torch.no_grad()
def test_all_channels_dead():
    net = init_(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double(), 0)
    net[0].weight.zero_()
    net[0].bias.fill_(-1.0)
    net[2].bias.fill_(4.0)
    form = canonicalize(net.eval())
    assert form.module(torch.ones(1, 2).double()).item() == 4.0
    assert form.module[0].weight.shape == (1, 2)


def test_float32_keeps_its_dtype():
    net = prepared(mlp, 0).float()
    form = canonicalize(net)
    assert form.module[0].weight.dtype == torch.float32
    x = torch.ones(3, 10)
    torch.testing.assert_close(form.module(x), net(x), rtol=1e-5, atol=1e-5)


def test_the_input_is_not_changed():
    net = prepared(cnn, 0)
    before = deepcopy(net.state_dict())
    canonicalize(net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_alignment_beats_sorting_under_noise():
    """Sorting is for hashing, matching is for distances."""
    form = canonicalize(prepared(mlp, 4)).module
    rng = np.random.default_rng(0)
    noisy = deepcopy(form)
    with torch.no_grad():
        for p in noisy.parameters():
            p *= 1 + 0.01 * torch.as_tensor(rng.normal(size=p.shape))
    truth = gap(noisy, form)
    other = canonicalize(gauge(noisy, 7)).module
    found = align(form, other)
    assert found.max_distance <= 1.5 * truth
    assert gap(other, form) > 5 * found.max_distance


@pytest.mark.slow
def test_vgg11_for_cifar():
    layers, c = [], 3
    for v in [64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0]:
        if v:
            layers += [nn.Conv2d(c, v, 3, padding=1), nn.BatchNorm2d(v), nn.ReLU()]
            c = v
        else:
            layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(512, 10))
    net = init_(net.double(), 0, "he").eval()
    form = canonicalize(net)
    assert form.folded == 8
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(1, 3, 32, 32)))
    with torch.no_grad():
        torch.testing.assert_close(form.module(x), net(x), rtol=1e-12, atol=1e-12)
