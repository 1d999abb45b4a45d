"""Groups of channels: the function stays under every order that a group allows."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geolib.geodesics import sparsify
from geolib.inverse_stability import canonicalize
from geolib.networks import align, channel_groups, permute_channels


class Block(nn.Module):
    """A residual block; with another width its skip is a convolution."""

    def __init__(self, c, d, stride=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, d, 3, stride, 1), nn.Conv2d(d, d, 3, 1, 1)
        self.na, self.nb = nn.BatchNorm2d(d), nn.BatchNorm2d(d)
        self.skip = nn.Conv2d(c, d, 1, stride) if c != d else nn.Identity()

    def forward(self, x):
        h = self.nb(self.b(F.relu(self.na(self.a(x)))))
        return F.relu(h + self.skip(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6, 2), Block(6, 6))
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        h = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.read(h.mean((2, 3)))


class Attending(nn.Module):
    """Pre-norm attention and an MLP, with two skips."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.n1, self.n2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.read = (
            nn.Linear(8, 7),
            nn.Linear(7, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        h = self.embed(x)
        n = self.n1(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        h = h + self.down(F.gelu(self.up(self.n2(h))))
        return self.read(h.mean(1))


def flattened():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(36, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2),
    )  # fmt: skip


IMAGE, SEQUENCE = (3, 1, 8, 8), (3, 5, 3)
NETS = {"resnet": (ResNet, IMAGE), "attention": (Attending, SEQUENCE),
        "flattened": (flattened, IMAGE)}  # fmt: skip


def drawn(name, seed):
    """A network with drawn weights and statistics, and inputs."""
    make, shape = NETS[name]
    rng = np.random.default_rng(seed)
    net = make().double().eval()
    with torch.no_grad():
        for key, t in net.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.tensor(rng.normal(size=t.shape) * 0.5))
                if "var" in key:
                    t.abs_().add_(0.3)
    return net, torch.tensor(rng.normal(size=shape)), rng


def orders(net, rng):
    """An order for each group, whole blocks moved where a norm asks for it."""
    for g in channel_groups(net):
        size = g.width // g.blocks
        blocks = rng.permutation(g.blocks)
        yield np.concatenate([b * size + rng.permutation(size) for b in blocks])


@pytest.mark.parametrize("name", NETS)
def test_every_order_keeps_the_function_and_moves_the_weights(name):
    net, x, rng = drawn(name, 0)
    for _ in range(5):
        other = deepcopy(net)
        permute_channels(other, list(orders(net, rng)))
        assert (other(x) - net(x)).abs().max() < 1e-12
        moved = [not torch.equal(a, b)
                 for a, b in zip(net.parameters(), other.parameters(), strict=True)]  # fmt: skip
        assert sum(moved) > len(moved) / 2


@pytest.mark.slow_for("resnet-[1-9]*", "attention-[1-9]*", "flattened-[1-9]*")
@pytest.mark.parametrize("seed", range(34))
@pytest.mark.parametrize("name", NETS)
def test_a_network_in_another_order_is_found_to_be_the_same(name, seed):
    """102 pairs, each of one network and itself with its channels reordered."""
    net, x, rng = drawn(name, 100 + seed)
    other = deepcopy(net)
    permute_channels(other, list(orders(net, rng)))
    found = align(net, other)
    assert found.distance < 1e-12
    assert found.before > 0.5
    assert (found.module(x) - net(x)).abs().max() < 1e-12


def test_a_skip_makes_one_group_of_all_that_it_adds():
    trunk, inner, *_ = channel_groups(ResNet().eval())
    assert set(trunk.named("write")) == {"stem", "blocks.0.b"}
    assert set(trunk.named("read")) == {"blocks.0.a", "blocks.1.a", "blocks.1.skip"}
    assert inner.named("write") == ["blocks.0.a"]


def test_whole_units_are_removed_across_a_skip():
    net, x, _ = drawn("resnet", 3)
    small = sparsify(net, x, 0.25, structured=True, steps=3).module
    widths = [g.width for g in channel_groups(small)]
    assert sum(widths) == round(0.75 * sum(g.width for g in channel_groups(net)))
    assert small(x).shape == net(x).shape
    assert small.stem.out_channels == small.blocks[0].b.out_channels


def layer(f):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(f(torch.relu(self.a(x))))

    return Own().double()


@pytest.mark.parametrize(
    "f",
    [
        lambda h: torch.roll(h, 1, 1),
        lambda h: h.flip(1),
        lambda h: h.cumsum(1),
        lambda h: h + torch.arange(4),
        lambda h: h[:, [1, 0, 2, 3]],
        lambda h: torch.cat([h[:, 2:], h[:, :2]], 1),
        lambda h: h.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4),
        lambda h: h + torch.arange(h.size(1)),
    ],
)
def test_what_tells_channels_apart_is_refused_by_name(f):
    with pytest.raises(TypeError, match="cannot follow channels through"):
        channel_groups(layer(f))


def test_pixels_that_become_samples_are_refused_and_flattened_images_are_not():
    class Viewed(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.a, self.b, self.rows = nn.Conv2d(1, 2, 1), nn.Linear(8, 2), rows

        def forward(self, x):
            h = self.a(x)
            return self.b(h.view(-1, 8) if self.rows else h.view(h.size(0), -1))

    with pytest.raises(TypeError, match="cannot follow channels through view"):
        channel_groups(Viewed(True))
    net = Viewed(False).double()
    x = torch.linspace(-1, 1, 12).double().view(3, 1, 2, 2)
    before = net(x)
    permute_channels(net, [np.array([1, 0])])
    assert (net(x) - before).abs().max() < 1e-12


def test_units_under_a_mean_over_channels_written_by_hand_stay():
    net, x = layer(lambda h: h - h.mean(1, keepdim=True)), torch.ones(5, 3).double()
    before = net(x)
    permute_channels(net, [np.array([2, 0, 1, 3])])
    assert (net(x) - before).abs().max() < 1e-12
    with pytest.raises(ValueError, match="no hidden unit can be removed"):
        sparsify(net, x, 0.5, structured=True)


def test_an_order_that_a_group_does_not_allow_is_refused():
    net = flattened().eval()
    with pytest.raises(
        ValueError, match="expected one for each of 2 groups of the module, got 1"
    ):
        permute_channels(net, [np.arange(4)])
    with pytest.raises(ValueError, match="2 blocks of a GroupNorm together"):
        permute_channels(net, [np.array([0, 2, 1, 3]), np.arange(5)])
    with pytest.raises(ValueError, match="a permutation of 4 channels"):
        permute_channels(net, [np.array([0, 0, 1, 3]), np.arange(5)])
    with pytest.raises(TypeError, match=r"torch\.fx cannot trace"):
        channel_groups(layer(lambda h: h if h.sum() > 0 else -h))


class Normed(nn.Module):
    """BatchNorm1d between two linear layers; `then` shows of what it is, or not."""

    def __init__(self, then):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.then = then
        self.n.running_mean.copy_(torch.arange(4.0))

    def forward(self, x):
        return self.b(self.then(self.n(self.a(x))))


@pytest.mark.parametrize(
    "then",
    [
        lambda h: h.mean(1),
        lambda h: h[:, -1],
        lambda h: h[:, 0, :],
        lambda h: h.cumsum(-2),
        lambda h: h.transpose(1, 2).max(2)[0],
    ],
)
def test_a_norm_over_time_is_not_taken_for_one_over_channels(then):
    with pytest.raises(TypeError, match="sequences elsewhere"):
        channel_groups(Normed(then).eval())


def test_a_recurrent_layer_is_refused_by_name():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r = nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            return self.r(self.a(x))[0]

    with pytest.raises(TypeError, match="cannot follow channels through LSTM at r"):
        channel_groups(Recurrent())


def test_where_only_the_inputs_show_sequences_whole_units_are_refused():
    net, torch_x = Normed(lambda h: h).double().eval(), torch.ones(6, 4, 3).double()
    assert [g.width for g in channel_groups(net)] == [4]
    with pytest.raises(ValueError, match=r"does n norm an axis of time\?"):
        sparsify(net, torch_x, 0.25, structured=True, space="raw")
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    small = sparsify(net, rows, 0.25, structured=True, space="raw", steps=3).module
    assert small.n.num_features == 3


def test_one_token_of_a_sequence_may_be_read():
    net = layer(lambda h: h[:, 0])
    x = torch.linspace(-1, 1, 30).double().view(2, 5, 3)
    before = net(x)
    permute_channels(net, [np.array([2, 0, 1, 3])])
    assert (net(x) - before).abs().max() < 1e-12


@pytest.mark.parametrize(
    "view", [lambda h: h.view(-1, 4), lambda h: h.reshape(h.size(0), 4)]
)
def test_units_whose_number_is_written_out_stay(view):
    net, x = layer(view), torch.ones(5, 3).double()
    assert channel_groups(net)[0].width == 4
    with pytest.raises(ValueError, match=r"counted by .*(view|reshape) to 4 features"):
        sparsify(net, x, 0.5, structured=True)


def test_a_hook_on_a_forward_pass_is_refused_by_name():
    x = torch.ones(5, 3).double()
    for add in ("register_forward_hook", "register_forward_pre_hook"):
        net = layer(lambda h: h)
        getattr(net.a, add)(lambda *call: None)
        with pytest.raises(ValueError, match=r"layer a \(Linear\) has a hook"):
            align(net, net)
        with pytest.raises(ValueError, match=r"layer a \(Linear\) has a hook"):
            sparsify(net, x, 0.5, structured=True)
    chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    chain[1].forward = torch.tanh
    with pytest.raises(ValueError, match=r"layer 1 \(ReLU\) has a hook"):
        canonicalize(chain)


def test_what_has_no_canonical_form_here_is_refused_by_name():
    with pytest.raises(TypeError, match="cannot treat LSTM at 0"):
        canonicalize(nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2)).eval())
