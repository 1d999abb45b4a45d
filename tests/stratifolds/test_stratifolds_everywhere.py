"""Symmetries at all weights: they and the strata are all that the Jacobian loses."""

import copy

import pytest
import torch
from torch import nn

from geolib.core import Realization, init_, normal
from geolib.stratifolds import find_strata


class Block(nn.Module):
    """A block of a transformer on a stream of six, between two linear maps."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.one, self.two, self.last = (nn.LayerNorm(6) for _ in range(3))
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.act, self.down = nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6)

    def forward(self, x):
        x = self.embed(x)
        h = self.one(x)
        x = x + self.attend(h, h, h, need_weights=False)[0]
        x = x + self.down(self.act(self.up(self.two(x))))
        return self.head(self.last(x)[:, 0])


def chain(*between, out=2, bias=True):
    middle = (nn.Linear(3, 5, bias=bias), *between, nn.Linear(5, out, bias=bias))
    return nn.Sequential(*middle)


SCALE, SHIFT = "scale of a unit", "shift of a unit"
BEFORE, SOFT = "scale before a norm", "shift of all units"
CASES = {
    "tanh": (lambda: chain(nn.Tanh()), (3,), {}),
    "relu": (lambda: chain(nn.ReLU()), (3,), {SCALE: 5}),
    "relu, no bias": (lambda: chain(nn.ReLU(), bias=False), (3,), {SCALE: 5}),
    "leaky": (lambda: chain(nn.LeakyReLU(0.1)), (3,), {SCALE: 5}),
    "gelu": (lambda: chain(nn.GELU()), (3,), {}),
    "softmax": (lambda: nn.Sequential(*chain(nn.Tanh(), out=3), nn.Softmax(1)),
                (3,), {SOFT: 6}),
    "linear": (lambda: chain(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)),
               (3,), {"basis": 25 + 25, SHIFT: 5 + 5}),
    "batch": (lambda: chain(nn.BatchNorm1d(5), nn.ReLU()),
              (3,), {SCALE: 5, BEFORE: 5, "shift before": 5}),
    "batch, no bias": (lambda: chain(nn.BatchNorm1d(5), nn.GELU(), bias=False),
                       (3,), {BEFORE: 5}),
    "layer": (lambda: chain(nn.LayerNorm(5), nn.GELU()), (3,), {BEFORE: 1, SOFT: 4}),
    "rms": (lambda: chain(nn.RMSNorm(5, eps=1e-6), nn.Tanh()), (3,), {BEFORE: 1}),
    "instance": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.GELU(),
            nn.Flatten(), nn.Linear(36, 2)),
        (2, 4, 4), {BEFORE: 4, "dead": 4}),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1),
            nn.SiLU(), nn.Flatten(), nn.Linear(3, 2)),
        (2, 4, 4), {SCALE: 4}),
}  # fmt: skip


def randomized(net, seed):
    """Weights, statistics and norms at random; no eps in a norm of the sample."""
    net = init_(net.double(), seed, bias_scale=0.5).eval()
    with torch.no_grad():
        for k, m in enumerate(net.modules()):
            if isinstance(m, (nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm2d)):
                m.eps = 0.0
            if getattr(m, "running_var", None) is not None:
                m.running_mean.copy_(0.3 * normal(m.running_mean.shape, 9 + k))
                m.running_var.copy_(1 + normal(m.running_var.shape, 90 + k).abs())
            if "Norm" in type(m).__name__:
                m.weight.add_(0.3 * normal(m.weight.shape, 50 + k))
    return net


def deficit(net, x):
    """That of the whole Jacobian, by its dense form."""
    R = Realization(net)
    J = R.linearize(R.theta0, x).jacobian().reshape(-1, R.p)
    size = J.norm(dim=0)  # of a dead direction it is rounding
    s = torch.linalg.svdvals(J / size.clamp_min(1e-6 * float(size.max())))
    return int((s < 1e-10 * s[0]).sum())


def said(found):
    """The dimensions of each kind of symmetry, by the beginning of its name."""
    kinds = (SCALE, SHIFT, BEFORE, SOFT, "shift before", "basis", "sum", "dead")
    sums = {k: sum(s.dimension for s in found.everywhere if s.name.startswith(k))
            for k in kinds}  # fmt: skip
    return {k: v for k, v in sums.items() if v}


@pytest.mark.slow_for("batch*", "layer*", "instance", "softmax", "leaky", "rms")
@pytest.mark.parametrize("case", CASES)
def test_symmetries_and_strata_are_all_that_the_jacobian_loses(case):
    make, shape, known = CASES[case]
    net, x = randomized(make(), 11), 3 * normal((400, *shape), 3)
    found = find_strata(net, x, near=1e-6, probes=40)
    assert said(found) == known
    # in narrow linear chains two of the families have directions in common
    total = sum(s.dimension for s in found.everywhere)
    off = sum(s.deficit for s in found)  # dormant ReLU units
    full = deficit(net, x)
    assert full == total + off if "basis" not in known else off < full <= total + off


@pytest.mark.slow
def test_attention_and_norms_of_a_transformer():
    net, x = randomized(Block(), 3), normal((400, 3, 6), 4)
    found = find_strata(net, x, near=1e-6)
    by_layer = {(s.name.split(",")[0], s.layers): s.dimension for s in found.everywhere}
    assert by_layer["basis of queries and keys", ("attend",)] == 2 * 3 * 3
    assert by_layer["basis of values and their reader", ("attend",)] == 2 * 3 * 3
    assert by_layer["shift of values", ("attend",)] == 6
    assert by_layer["dead directions", ("attend.in_proj_bias",)] == 6  # the keys'
    assert by_layer["scale of a unit", ("one", "attend")] == 6
    assert by_layer["scale of a unit", ("two", "up")] == 6
    assert by_layer["sum of a norm's outputs", ("one", "attend")] == 18
    stream = ("embed", "attend.out_proj", "down")
    assert by_layer["scale before a norm", stream] == 1
    for layer, inputs in zip(stream, (6, 6, 5), strict=True):
        assert by_layer["shift of all units", (layer,)] == inputs + 1
    total = sum(s.dimension for s in found.everywhere)
    full = deficit(net, x)
    # not named: rotations of the stream that leave (1, ..., 1) as it is, O(5)
    assert full == total + 5 * 4 // 2


def test_what_is_dead_for_the_data_and_what_is_so_here_only():
    net, x = randomized(chain(nn.ReLU()), 2), normal((200, 3), 1)
    x[:, 1] = 0
    net[0].bias.detach()[2] = -100.0  # off here, and no symmetry
    (dead,) = [s for s in find_strata(net, x).everywhere if s.name == "dead directions"]
    assert (dead.layers, dead.dimension) == (("0.weight",), 5)
    assert str(dead) == "dead directions: 0.weight (5 dimensions)"


def test_a_pair_of_relu_units_of_unlike_length_is_an_overlap():
    net, x = randomized(chain(nn.ReLU()), 2), normal((200, 3), 1)
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 7 * net[0].weight[1], 7 * net[0].bias[1]
    (s,) = [s for s in find_strata(net, x, near=1e-6) if s.kind == "overlap"]
    assert (s.units, s.verified) == ((1, 3), True)
    other = copy.deepcopy(net)
    other[1] = nn.SiLU()  # cannot be scaled
    assert [s for s in find_strata(other, x, near=1e-6) if s.kind == "overlap"] == []
