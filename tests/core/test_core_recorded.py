"""Modules that are right where gradients are recorded, whatever the caller switched off."""

import copy

import torch
from central_differences import jacobian, relative
from torch import nn

from geolib.core import PullbackMetric, Realization, init_, normal


def test_a_force_that_needs_gradients_switched_on_is_right_where_they_are():
    """As nets of energies are written, which torch itself runs with gradients only."""

    class Force(nn.Linear):
        def forward(self, x):
            q = x.detach().requires_grad_()
            energy = torch.tanh(super().forward(q)).square().sum()
            return torch.autograd.grad(energy, q, create_graph=True)[0]

    net, x = init_(Force(3, 4).double(), 0, bias_scale=0.3), normal((6, 3), 9)
    R, moved = Realization(net), copy.deepcopy(net)

    def outputs():
        with torch.enable_grad():
            return moved(x).detach()

    J, v = jacobian(moved, outputs), normal(R.p, 1)
    with torch.no_grad():
        G = PullbackMetric(R, x).at(R.theta0)
        assert relative(R.linearize(R.theta0, x).jvp(v), J @ v) < 1e-8
        assert relative(G.dense(), torch.einsum("iap,iaq->pq", J, J) / 6) < 1e-8


def test_an_encoder_with_a_mask_is_right_where_gradients_are_recorded():
    """Sums over all places, those that are padded too."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            options = {"dropout": 0.0, "batch_first": True}
            self.lift = nn.Linear(2, 4)
            layer = nn.TransformerEncoderLayer(4, 2, 3, **options)
            self.body = nn.TransformerEncoder(layer, 2)

        def forward(self, x, padded):
            h = self.body(self.lift(x), src_key_padding_mask=padded)
            return h.sum(2)  # of the padded places too

    net = init_(Encoder().double(), 0, bias_scale=0.3).eval()
    with torch.no_grad():  # else the sums would be constants
        for name, p in net.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * normal(p.shape, len(name)))
    x = (
        normal((4, 3, 2), 1),
        torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0]]) > 0,
    )
    R, moved = Realization(net), copy.deepcopy(net)

    def outputs():
        with torch.enable_grad():
            return moved(*x).detach()

    J, v, u = jacobian(moved, outputs), normal(R.p, 1), normal((4, 3), 2)
    L, G = R.linearize(R.theta0, x), PullbackMetric(R, x).at(R.theta0)
    torch.testing.assert_close(R(R.theta0, x), outputs())
    assert relative(L.jvp(v), J @ v) < 1e-7
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-7
    assert relative(G.dense(), torch.einsum("iap,iaq->pq", J, J) / 4) < 1e-7
