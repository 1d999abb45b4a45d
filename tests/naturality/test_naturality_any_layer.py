"""K-FAC is audited on linear layers, convolutions and whatever else holds parameters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from geolib.core import init_
from geolib.naturality import KFAC, audit, mse, standard_suite
from geolib.naturality.affine_layers import InChart, blocks


class Block(nn.Module):
    """Attention with a skip, a layer norm and a linear read-out."""

    def __init__(self):
        super().__init__()
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.read = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.read(self.norm(x + self.mix(x, x, x)[0]).mean(1))


class ReadsItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return x @ self.layer.weight.T


def frozen():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    return layer


def conv(**options):
    return nn.Sequential(
        nn.Conv2d(1, 2, (3, 2), **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)
    )


NETWORKS = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "without bias": (
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)),
        (3,),
    ),
    "tokens": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten()), (4, 3)),
    "conv": (lambda: conv(), (1, 5, 6)),
    "strided": (lambda: conv(stride=2, padding=(1, 2), dilation=(2, 1)), (1, 6, 5)),
    "dilated": (lambda: conv(stride=(1, 2), dilation=(2, 1)), (1, 6, 5)),
    "attention": (Block, (3, 4)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.PReLU()), (3,)),
}


def case(name):
    make, shape = NETWORKS[name]
    x = torch.randn(60, *shape, generator=torch.Generator().manual_seed(8)).double()
    module = make().double()
    module(x)
    return init_(module, 4), x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_in_a_chart_is_the_same_function(name):
    module, x = case(name)
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()
    before = flat.clone()
    phi = standard_suite(module, flat)["layer-affine"]
    there = InChart(module, phi.layers)
    assert torch.allclose(there(x), module(x), atol=1e-12)
    found = torch.cat([M.detach().reshape(-1) for M in there.matrices])
    order = torch.cat([i.reshape(-1) for i in blocks(module)])
    assert torch.allclose(found, phi(flat)[order], atol=1e-12)
    assert len(list(p for p in there.parameters() if p.requires_grad)) == len(
        blocks(module)
    )
    assert torch.equal(
        nn.utils.parameters_to_vector(module.parameters()).detach(), before
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_at_home_its_step_of_kfac_is_that_of_the_network(name):
    """The layers' own inputs, of convolutions too: core reads both networks by itself."""
    module, x = case(name)
    home = InChart(module)
    target = torch.zeros_like(module(x)).detach()
    loss, moved = mse(target), []
    for net in (module, home):
        opt = KFAC(net, 0.1, damping=0.1, output_metric=loss.output_metric)

        def closure(net=net):
            z = net(x)
            return z, loss(z)

        opt.step(closure)
    order = torch.cat([i.reshape(-1) for i in blocks(module)])
    moved = nn.utils.parameters_to_vector(module.parameters()).detach()[order]
    found = torch.cat([M.detach().reshape(-1) for M in home.matrices])
    assert torch.allclose(found, moved, atol=1e-12)


@pytest.mark.parametrize("name", ["without bias", "conv", "dilated"])
def test_kfac_is_exact_under_maps_of_layers_and_damping_gives_that_up(name):
    module, x = case(name)
    y = torch.randn(60, 2, generator=torch.Generator().manual_seed(9)).double()
    families = ["permutation", "uniform", "layer-orthogonal", "layer-affine", "affine"]
    assert audit("kfac", module, (x, y), families=families).letters == "EEEE-"
    assert audit("kfac-damped", module, (x, y), families=families).letters == "EUEU-"


@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        (nn.Sequential(*[nn.Linear(3, 3)] * 2), (3,), "layers that share no parameter"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Flatten()),
            (2, 3, 3),
            "one group",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten()),
            (1, 3, 3),
            "one group",
        ),
        (nn.Sequential(nn.Linear(3, 2), frozen()), (3,), "none frozen"),
        (ReadsItsWeight(), (3,), "only their layers read"),
    ],
)
def test_what_it_cannot_write_in_a_chart_is_refused_by_name(module, shape, says):
    module = module.double()
    x = torch.randn(9, *shape).double()
    with pytest.raises((TypeError, ValueError), match=f"module: .*{says}"):
        audit("kfac", module, (x, F.relu(module(x)).detach()), families=["uniform"])
