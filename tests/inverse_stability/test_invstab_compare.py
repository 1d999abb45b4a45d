"""Networks compared modulo gauge, with skip connections, between bounds of each kind."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geolib.core import init_
from geolib.inverse_stability import canonicalize, compare, path_metric, random_gauge
from geolib.inverse_stability.compare import _assigned, _at_least
from geolib.networks import align, channel_groups
from geolib.networks.weight_matching import Matching


class Block(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.first = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(o)
        self.second = nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(o)
        self.skip = nn.Identity()
        if stride > 1 or i != o:
            self.skip = nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x):
        h = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(h)) + self.skip(x))


class ResNet8(nn.Module):
    def __init__(self, widths=(4, 6, 8)):
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        self.norm = nn.BatchNorm2d(widths[0])
        before = (widths[0], *widths)
        pairs = zip(before, widths, strict=False)
        self.blocks = nn.Sequential(*(Block(i, o, 1 + (i != o)) for i, o in pairs))
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x):
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Loop(nn.Module):
    """A layer that leads from a group of channels to itself."""

    def __init__(self):
        super().__init__()
        self.first, self.turn = nn.Linear(3, 5), nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(h + torch.relu(self.turn(h))))


def vgg():
    layers = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    layers += [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 3)
    )


INPUT = {ResNet8: (1, 8, 8), vgg: (1, 8, 8), Loop: (3,)}


@torch.no_grad()
def prepared(make, seed):
    net = init_(make().double(), seed, "he", bias_scale=0.3)
    rng = np.random.default_rng(seed + 100)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            n = layer.num_features
            layer.running_mean.copy_(torch.as_tensor(rng.normal(size=n)))
            layer.running_var.copy_(torch.as_tensor(rng.uniform(0.3, 2, n)))
            layer.weight.copy_(torch.as_tensor(rng.normal(size=n)))
            layer.bias.copy_(torch.as_tensor(rng.normal(size=n)))
    return net.eval()


def samples(make, n=6, seed=9):
    shape = (n, *INPUT[make])
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.slow_for("ResNet8")
@pytest.mark.parametrize("make", [ResNet8, vgg, Loop])
@torch.no_grad()
def test_a_gauge_keeps_the_function_and_is_recognized(make):
    net, x = prepared(make, 0), samples(make)
    want = net(x)
    for seed in range(3):
        other = random_gauge(net, seed)
        torch.testing.assert_close(other(x), want, rtol=1e-10, atol=1e-10)
        found = compare(net, other, x)
        assert found.same
        assert found.converged
        assert found.distance_at_least <= found.distance < 1e-10
        assert found.outputs_at_least <= found.outputs_at_most


@pytest.mark.slow_for("ResNet8")
@pytest.mark.parametrize("make", [ResNet8, Loop])
@torch.no_grad()
def test_the_form_of_a_residual_network_forgets_the_gauge(make):
    net, x = prepared(make, 1), samples(make)
    form = canonicalize(net)
    assert form.converged
    assert form.energy[1] < form.energy[0]
    assert form.folded == (9 if make is ResNet8 else 0)
    torch.testing.assert_close(form.module(x), net(x), rtol=1e-11, atol=1e-11)
    again = canonicalize(random_gauge(net, 5)).module
    for p, q in zip(form.module.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


def test_the_balance_of_a_loop_is_minimal_against_a_general_optimizer():
    from scipy.optimize import minimize

    net = prepared(Loop, 3)
    first, turn, last = (
        m.weight.detach().numpy() for m in (net.first, net.turn, net.last)
    )
    biases = [m.bias.detach().numpy() for m in (net.first, net.turn)]

    def energy(u):
        s = np.exp(u)
        parts = [s[:, None] * first, s[:, None] * turn / s, last / s]
        return sum((p**2).sum() for p in [*parts, *(s * b for b in biases)])

    form = canonicalize(net)
    assert form.converged
    best = minimize(energy, np.zeros(5), tol=1e-13).fun
    assert form.energy[1] == pytest.approx(best, rel=1e-9)


@torch.no_grad()
def test_the_balance_of_a_two_cycle_does_not_swing():
    """Each of two channels feeds the other: full steps would overshoot for ever."""
    from scipy.optimize import minimize

    net = Loop().double().eval()
    for layer in (net.first, net.turn, net.last):
        layer.weight.zero_()
        layer.bias.zero_()
    net.first.weight[:2], net.last.weight[:, :2] = 0.05, 0.05
    net.turn.weight[0, 1], net.turn.weight[1, 0] = 4.0, 0.25
    least = minimize(
        lambda u: (
            (16 * np.exp(2 * (u[0] - u[1])) + np.exp(2 * (u[1] - u[0])) / 16)
            + (0.0075 * np.exp(2 * u) + 0.005 * np.exp(-2 * u)).sum()
        ),
        np.zeros(2),
        tol=1e-14,
    ).fun
    energies = [canonicalize(net, max_sweeps=n).energy[1] for n in (5, 10, 20, 60)]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] == pytest.approx(least, rel=1e-2)


@torch.no_grad()
def test_bounds_of_the_gauge_distance_against_all_orders():
    """Two hidden layers of four and three channels: 144 orders, tried one by one."""
    for seed in range(4):
        a, b = (
            init_(
                nn.Sequential(
                    nn.Linear(2, 4),
                    nn.ReLU(),
                    nn.Linear(4, 3),
                    nn.ReLU(),
                    nn.Linear(3, 2),
                ).double(),
                10 * seed + k,
                bias_scale=0.5,
            ).eval()
            for k in (1, 2)
        )
        x, y = (canonicalize(m, reduce=False, sort=False).module for m in (a, b))
        t, u = ([p.numpy() for p in m.parameters()] for m in (x, y))
        best = np.inf
        for p in map(list, permutations(range(4))):
            for q in map(list, permutations(range(3))):
                moved = [u[0][p], u[1][p], u[2][q][:, p], u[3][q], u[4][:, q], u[5]]
                gap = sum(((v - w) ** 2).sum() for v, w in zip(t, moved, strict=True))
                best = min(best, gap**0.5)
        found = compare(a, b)
        assert not found.same
        assert 0.3 * best < found.distance_at_least <= best * (1 + 1e-12)
        assert best * (1 - 1e-12) <= found.distance < 1.5 * best


@torch.no_grad()
def test_the_lower_bound_does_not_need_the_best_order():
    """A network and a noisy copy in another order, which the bound is not told."""
    for seed in range(5):
        net = init_(
            nn.Sequential(
                nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
            ).double(),
            seed,
            bias_scale=0.5,
        ).eval()
        rng, other, square = np.random.default_rng(seed), random_gauge(net, 9, 0.0), 0.0
        for p in other.parameters():
            noise = 0.02 * torch.as_tensor(rng.normal(size=p.shape))
            p += noise
            square += float((noise**2).sum())
        assert 0 < _at_least(net, other) <= square**0.5


def pairs(count, widths=(3, 8, 6, 2)):
    """Balanced networks of two seeds, as their matching."""
    for seed in range(count):
        nets = []
        for k in (0, 1):
            layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
            chain = [m for layer in layers for m in (layer, nn.ReLU())][:-1]
            net = init_(nn.Sequential(*chain).double(), 2 * seed + k, bias_scale=0.5)
            nets.append(canonicalize(net.eval(), reduce=False, sort=False).module)
        yield nets, Matching(*nets, channel_groups(nets[0]))


def test_the_lower_bound_takes_the_better_of_both_ways_to_share_tensors():
    found = []
    for nets, match in pairs(12):
        ways = [_assigned(match, last) for last in (False, True)]
        assert _at_least(*nets) ** 2 == pytest.approx(max(ways), rel=1e-12)
        found.append(ways[0] > ways[1])
    assert 0 < sum(found) < len(found)


def test_a_quick_alignment_starts_from_the_nearer_order():
    elsewhere = 0
    for nets, match in pairs(12):
        near, far = sorted(match.starts(), key=match.distance)
        ends = [match.distance(match.descend(s, 100, 1e-3)[0]) for s in (near, far)]
        found = align(*nets, tol=1e-3).distance
        assert found == pytest.approx(min(ends[0], align(*nets).before), rel=1e-12)
        elsewhere += ends[0] != pytest.approx(ends[1], rel=1e-6)
    assert elsewhere >= 3


def test_a_quick_alignment_stops_at_the_first_pass_that_gains_little():
    counts = set()
    for nets, match in pairs(12, (3, 24, 16, 2)):
        start = min(match.starts(), key=match.distance)
        passes = [start] + [match.descend(start, n, 1e-300)[0] for n in range(1, 9)]
        squares = [match.distance(order) ** 2 for order in passes]
        for tol in (0.3, 0.03, 1e-3):
            gains = [a - b <= tol * b for a, b in pairwise(squares)]
            found = align(*nets, tol=tol)
            assert found.converged
            assert found.sweeps == 1 + gains.index(True)
            counts.add(found.sweeps)
    assert len(counts) >= 3


@pytest.mark.slow_for("ResNet8")
@pytest.mark.parametrize("make", [ResNet8, vgg])
@torch.no_grad()
def test_bounds_are_ordered_on_networks_of_one_seed_and_of_two(make):
    """Noise of every size between a gauge and another network."""
    net, x = prepared(make, 7), samples(make, seed=3)
    for k, size in enumerate((1e-6, 1e-3, 0.1, 3.0)):
        rng, other = np.random.default_rng(k), random_gauge(net, k)
        for p in other.parameters():
            p *= 1 + size * torch.as_tensor(rng.normal(size=p.shape))
        found = compare(net, other, x)
        assert not found.same
        assert 0 <= found.distance_at_least <= found.distance
        assert 0 < found.outputs_at_least <= found.outputs_at_most


@pytest.mark.data
@pytest.mark.parametrize("make", [ResNet8, vgg])
@torch.no_grad()
def test_a_hundred_of_a_hundred_random_gauges_are_recognized(make):
    """Other networks and gauges than above, in the precision in which files are kept."""
    for seed in range(1000, 1100):
        net = prepared(make, seed).float() if seed % 2 else prepared(make, seed)
        found = compare(net, random_gauge(net, seed))
        assert found.same
        assert found.distance_at_least <= found.distance


@pytest.mark.slow_for("ResNet8")
@pytest.mark.parametrize("make", [ResNet8, vgg, Loop])
@torch.no_grad()
def test_two_networks_are_told_apart_between_ordered_bounds(make):
    x = samples(make)
    for k in range(3):
        found = compare(prepared(make, k), prepared(make, k + 50), x)
        assert not found.same
        assert 0 < found.distance_at_least <= found.distance
        assert 0 < found.outputs_at_least <= found.outputs_at_most < np.inf


class Chain(nn.Module):
    """Dense blocks, some with a skip connection over one layer and some over two."""

    def __init__(self, rng):
        super().__init__()
        width = int(rng.integers(2, 9))
        self.first = nn.Linear(3, width)
        self.kinds = rng.integers(0, 3, size=int(rng.integers(1, 5))).tolist()
        middle = [int(rng.integers(2, 9)) for _ in self.kinds]
        self.into = nn.ModuleList(
            nn.Linear(width, width if k == 1 else m)
            for k, m in zip(self.kinds, middle, strict=True)
        )
        self.back = nn.ModuleList(
            nn.Identity() if k == 1 else nn.Linear(m, width)
            for k, m in zip(self.kinds, middle, strict=True)
        )
        self.last = nn.Linear(width, 2)

    def forward(self, x):
        h = F.relu(self.first(x))
        for kind, into, back in zip(self.kinds, self.into, self.back, strict=True):
            if kind == 1:
                h = F.relu(h + into(h))
            else:
                step = F.relu(back(F.relu(into(h))))
                h = h + step if kind == 2 else step
        return self.last(h)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_random_residual_chains_are_recognized_and_bracketed(seed):
    """Architectures that no page has: the order of both bounds, at every distance."""
    rng = np.random.default_rng(seed)
    net = init_(Chain(rng).double(), seed, "he", bias_scale=0.3).eval()
    x = torch.as_tensor(rng.uniform(-1, 1, (50, 3)))
    assert compare(net, random_gauge(net, seed), x).same
    for size in (1e-5, 1e-2, 1.0):
        other = random_gauge(net, seed + 1)
        for p in other.parameters():
            p *= 1 + size * torch.as_tensor(rng.normal(size=p.shape))
        found = compare(net, other, x)
        assert not found.same
        assert 0 <= found.distance_at_least <= found.distance
        assert 0 <= found.outputs_at_least <= found.outputs_at_most < np.inf


@torch.no_grad()
def test_a_small_change_is_no_gauge():
    net = prepared(ResNet8, 2)
    other = random_gauge(net, 0)
    other.blocks[1].second.weight[0, 0, 1, 1] += 1e-4
    found = compare(net, other, samples(ResNet8))
    assert not found.same
    assert 0 < found.relative < 1e-2


def test_the_path_metric_is_a_sum_over_paths():
    a, b = (
        init_(
            nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)
            ).double(),
            k,
            bias_scale=0.5,
        ).eval()
        for k in (0, 1)
    )

    def total(tensors):
        W1, b1, W2, b2, W3, b3 = (np.abs(t) for t in tensors)
        paths = [
            W3[0, k] * W2[k, j] * W1[j, i]
            for i in range(3)
            for j in range(4)
            for k in range(3)
        ]
        paths += [W3[0, k] * W2[k, j] * b1[j] for j in range(4) for k in range(3)]
        return sum(paths) + sum(W3[0] * b2) + b3[0]

    t, u = ([p.detach().numpy() for p in m.parameters()] for m in (a, b))
    least = [
        np.minimum(abs(p), abs(q)) * (p * q > 0) for p, q in zip(t, u, strict=True)
    ]
    want = total(t) + total(u) - 2 * total(least)
    assert path_metric(a, b, torch.ones(3)) == pytest.approx(want, rel=1e-12)


@pytest.mark.slow_for("ResNet8")
@pytest.mark.parametrize("make", [ResNet8, vgg, Loop])
@torch.no_grad()
def test_the_path_metric_is_never_beaten_by_an_ascent(make):
    """Inputs climb the difference inside the box; weights are close, signs differ."""
    rng = np.random.default_rng(0)
    net, other = prepared(make, 0), prepared(make, 0)
    for p in other.parameters():
        p += 0.05 * torch.as_tensor(rng.normal(size=p.shape)) * p.abs().mean()
    shape = INPUT[make]
    limit = path_metric(net, other, torch.ones(shape))
    x = torch.as_tensor(rng.uniform(-1, 1, size=(20, *shape)))
    for _ in range(40):
        with torch.enable_grad():
            x.requires_grad_()
            (slope,) = torch.autograd.grad((net(x) - other(x)).abs().amax(1).sum(), x)
        x = (x.detach() + 0.2 * slope.sign()).clamp(-1, 1)
    assert 0 < (net(x) - other(x)).abs().max() <= limit


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (
            lambda: compare(prepared(vgg, 0), prepared(vgg, 0), torch.ones(0, 1, 8, 8)),
            ValueError,
            "inputs",
        ),
        (
            lambda: compare(prepared(vgg, 0), prepared(vgg, 0), [1.0]),
            TypeError,
            "inputs",
        ),
        (
            lambda: compare(prepared(vgg, 0), prepared(ResNet8, 0)),
            ValueError,
            "architect",
        ),
        (
            lambda: path_metric(prepared(Loop, 0), prepared(Loop, 0), -torch.ones(3)),
            ValueError,
            "reach",
        ),
        (
            lambda: compare(
                *[nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))] * 2
            ),
            TypeError,
            "Tanh at 1",
        ),
        (
            lambda: canonicalize(
                nn.Sequential(
                    nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), nn.Conv2d(2, 1, 3)
                )
            ),
            TypeError,
            "grouped",
        ),
        (
            lambda: canonicalize(
                nn.Sequential(
                    nn.Linear(1, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.Linear(2, 1)
                ).eval()
            ),
            ValueError,
            "follow",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(call, error, word):
    with pytest.raises(error, match=word):
        call()
