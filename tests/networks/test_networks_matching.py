"""Layer-wise alignment: planted permutations, brute force, and every refusal."""

from copy import deepcopy
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import nn

from geolib.core import init_
from geolib.inverse_stability import canonicalize
from geolib.networks import align, mlp, permute_channels
from geolib.networks.sequential import read_stages


def network(seed=0):
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(45, 7),
        nn.ReLU(),
        nn.Linear(7, 2),
    )
    net = init_(net.double(), seed, bias_scale=0.4)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for t in (net[1].weight, net[1].bias, net[1].running_mean):
            t.copy_(torch.as_tensor(rng.normal(size=5)))
    return net.eval()


@torch.no_grad()
def shuffled(net, seed):
    """The same function with the channels in another order, written out by hand."""
    rng = np.random.default_rng(seed)
    p, q = (torch.as_tensor(rng.permutation(n)) for n in (5, 7))
    net = deepcopy(net)
    for t in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
        t.copy_(t[p])
    for t in (net[1].running_mean, net[1].running_var):
        t.copy_(t[p])
    net[5].weight.copy_(net[5].weight.reshape(7, 5, 9)[:, p].reshape(7, 45)[q])
    net[5].bias.copy_(net[5].bias[q])
    net[7].weight.copy_(net[7].weight[:, q])
    return net


@pytest.mark.parametrize("seed", range(3))
def test_planted_permutation_is_found(seed):
    a = network(seed)
    b = shuffled(a, seed + 10)
    x = torch.as_tensor(np.random.default_rng(1).normal(size=(4, 1, 8, 8)))
    torch.testing.assert_close(a(x), b(x))
    found = align(a, b)
    assert found.before > 1
    assert found.distance == 0.0
    assert found.converged
    for name, p in a.state_dict().items():
        assert torch.equal(p, found.module.state_dict()[name])


def test_aligned_network_computes_the_second_function():
    a, b = network(0), network(1)
    x = torch.as_tensor(np.random.default_rng(1).normal(size=(4, 1, 8, 8)))
    before = deepcopy(b.state_dict())
    found = align(a, b)
    torch.testing.assert_close(found.module(x), b(x), rtol=1e-12, atol=1e-12)
    assert 0 < found.distance < found.before
    assert all(torch.equal(t, before[n]) for n, t in b.state_dict().items())


def test_distance_is_that_of_the_weights():
    a, b = network(0), network(1)
    found = align(a, b)
    gaps = [
        p - q
        for (n, p), q in zip(
            a.state_dict().items(), found.module.state_dict().values(), strict=True
        )
        if "num_batches" not in n
    ]
    total = torch.sqrt(sum((g**2).sum() for g in gaps)).item()
    assert found.distance == pytest.approx(total, rel=1e-12)
    top = max(g.abs().max().item() for g in gaps)
    assert found.max_distance == pytest.approx(top, rel=1e-12)


def test_one_hidden_layer_is_solved_exactly():
    """With one hidden layer the assignment is the global optimum: brute force."""

    def shallow(seed):
        net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)).double()
        return init_(net, seed, bias_scale=1.0).eval()

    a, b = shallow(0), shallow(1)
    rows = [
        torch.cat([n[0].weight, n[0].bias[:, None], n[2].weight.T], 1).detach()
        for n in (a, b)
    ]
    rest = ((a[2].bias - b[2].bias) ** 2).sum().item()
    best = min(
        ((rows[0] - rows[1][list(p)]) ** 2).sum().item() for p in permutations(range(5))
    )
    assert align(a, b).distance == pytest.approx((best + rest) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_single_layer_can_be_improved(seed):
    """The end is optimal in each layer given the others: all 24 orders are tried."""

    def deep(seed):
        widths = (2, 4, 4, 4, 2)
        layers = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return init_(nn.Sequential(*layers[:-1]).double(), seed, bias_scale=1.0).eval()

    def distance(x, y):
        pairs = zip(x.parameters(), y.parameters(), strict=True)
        return sum(((p - q) ** 2).sum().item() for p, q in pairs) ** 0.5

    a, b = deep(seed), deep(seed + 50)
    found = align(a, b)
    assert found.converged
    assert found.distance == pytest.approx(distance(a, found.module), rel=1e-12)
    for n in range(3):
        for order in permutations(range(4)):
            other = deepcopy(found.module)
            orders = [np.arange(4)] * 3
            orders[n] = np.array(order)
            permute_channels(other, orders)
            assert distance(a, other) >= found.distance - 1e-12


L = nn.Linear
BAD = [
    (nn.Sequential(L(2, 2), nn.Tanh(), L(2, 1)), TypeError, "Tanh"),
    (nn.Sequential(L(2, 2), nn.LayerNorm(2), nn.ReLU(), L(2, 1)), TypeError, "LayerNo"),
    (nn.Sequential(L(2, 2), nn.LeakyReLU(), L(2, 1)), TypeError, "LeakyReLU"),
    (nn.Sequential(L(2, 2), L(2, 1)), ValueError, "no ReLU"),
    (nn.Sequential(L(2, 3), nn.ReLU(), L(2, 1)), ValueError, "does not follow"),
    (
        nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(2, 1, 1)),
        TypeError,
        "grouped",
    ),
    (
        nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), L(10, 1)),
        ValueError,
        "does not follow",
    ),
    (nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), L(3, 1)), TypeError, "follow"),
    (
        nn.Sequential(L(2, 2), nn.ReLU(), nn.BatchNorm1d(2), L(2, 1)),
        ValueError,
        "directly",
    ),
    (
        nn.Sequential(L(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.ReLU()),
        ValueError,
        "running",
    ),
    (nn.Sequential(L(2, 2), nn.ReLU(), nn.Flatten(0), L(2, 1)), TypeError, "axis"),
]


@pytest.mark.parametrize(
    ("module", "error", "match"), BAD, ids=[f"{i}-{b[2]}" for i, b in enumerate(BAD)]
)
def test_refused_by_name(module, error, match):
    with pytest.raises(error, match=match):
        canonicalize(module.eval())


def test_training_mode_shared_layers_and_nan_are_refused():
    net = network()
    with pytest.raises(ValueError, match="training mode"):
        align(net.train(), net)
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weights of another"):
        read_stages(nn.Sequential(layer, nn.ReLU(), layer).eval())
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = one.weight
    with pytest.raises(ValueError, match="weights of another"):
        read_stages(nn.Sequential(one, nn.ReLU(), two).eval())
    broken = network()
    broken[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight holds NaN"):
        align(broken, network())


def test_different_architectures_are_refused():
    wide = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    deep = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)
    ).eval()
    other = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    with pytest.raises(ValueError, match="module_b: expected the architecture"):
        align(wide, other)
    with pytest.raises(ValueError, match="module_b: expected the arch"):
        align(wide, deep)


class Optional(nn.Module):
    """Layers of one kind, with a skip connection or without."""

    def __init__(self, skip):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.skip = skip

    def forward(self, x):
        h = torch.relu(self.a(x))
        new = torch.relu(self.b(h))
        return self.c(h + new if self.skip else new)


def test_networks_of_other_connections_are_refused():
    with pytest.raises(ValueError, match="module_b: expected the connections"):
        align(Optional(True).eval(), Optional(False).eval())


@pytest.mark.parametrize("seed", [67, 73, 82])
def test_where_both_searches_end_further_away_nothing_is_moved(seed):
    """Two networks that have much in common: every swap that pays at first leads away."""
    a, b = mlp([1, 3, 3, 3, 1], seed=seed), mlp([1, 3, 3, 3, 1], seed=seed + 1000)
    with torch.no_grad():
        for p, q in zip(b.parameters(), a.parameters(), strict=True):
            p.mul_(0.7).add_(q, alpha=0.6)
    found = align(a, b)
    assert found.distance == found.before
    assert all((order == np.arange(3)).all() for order in found.permutations)


class Stream(nn.Module):
    """Square layers whose rows and columns are the channels of one stream."""

    def __init__(self):
        super().__init__()
        self.a, self.r = nn.Linear(2, 4), nn.Linear(4, 1)
        self.mix = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        h = self.a(x)
        for layer in self.mix:
            h = h + torch.tanh(layer(h))
        return self.r(h)


@pytest.mark.parametrize("seed", [1, 3, 6, 7])
def test_an_order_of_rows_and_columns_at_once_is_taken_only_where_it_pays(seed):
    """The gain of such an order is linearised; believed, the search goes in circles."""
    a, b = (
        init_(Stream().double(), s, bias_scale=0.3).eval() for s in (seed, seed + 500)
    )
    found = align(a, b)
    assert found.converged
    assert found.distance < found.before
