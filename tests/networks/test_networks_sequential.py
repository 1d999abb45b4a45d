"""The one reader of `nn.Sequential`: order, names, pairs of layers, refusals."""

import pytest
import torch
from torch import nn

from geolib.networks import channel_groups
from geolib.networks.sequential import named_layers


def nested():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(),
        nn.Sequential(nn.Sequential(nn.Linear(36, 5)), nn.Tanh()),
        nn.Linear(5, 2),
    ).eval()


def test_layers_come_in_the_order_in_which_they_run():
    net = nested()
    h = torch.randn(3, 1, 5, 5)
    expected = net(h)
    for name, layer in named_layers(net):
        assert net.get_submodule(name) is layer
        h = layer(h)
    assert torch.equal(h, expected)


def test_channels_are_paired_across_nested_containers():
    first, second = channel_groups(nested())
    assert (first.named("write"), first.named("read")) == (["0.0"], ["2.0.0"])
    assert first.named("vector") == ["0.0", "0.1"]
    assert [s.inner for s in first.slots if s.role == "read"] == [9]
    assert (first.width, second.width) == (4, 5)
    assert (second.named("write"), second.named("read")) == (["2.0.0"], ["3"])


def test_a_layer_used_twice_comes_twice():
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    assert [layer is act for _, layer in named_layers(net)].count(True) == 2


def test_what_runs_otherwise_than_in_order_is_refused_or_kept_whole():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(TypeError, match="Residual"):
        named_layers(Residual(nn.Linear(2, 2)))
    inside = nn.Sequential(nn.Linear(2, 2), Residual(nn.Linear(2, 2)))
    assert [type(m).__name__ for _, m in named_layers(inside)] == ["Linear", "Residual"]


def test_layers_that_do_not_follow_each_other_are_named():
    with pytest.raises(ValueError, match="layer 1 reads 4 inputs"):
        channel_groups(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)))
