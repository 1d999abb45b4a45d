"""Small networks and data that the tests of reported rows share."""

import torch
import torch.nn.functional as F
from torch import nn

from geolib.core import init_, normal

X, Y = normal((12, 3), 1), torch.arange(12) % 3


def chain(*middle, widths=(3, 4, 3)):
    """Linear layers with something between them."""
    net = nn.Sequential(
        nn.Linear(*widths[:2]), *middle, nn.Linear(widths[1], widths[2])
    )
    return init_(net, 0, bias_scale=0.3).double().eval()


class Idle(nn.Module):
    """A chain beside a layer that no output uses."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = chain(nn.Tanh()), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.used(x)


def one_step(opt, net, x=X, y=Y):
    def closure():
        z = net(x)
        return z, F.cross_entropy(z, y)

    before = [p.detach().clone() for p in net.parameters()]
    opt.step(closure)
    pairs = zip(before, net.parameters(), strict=True)
    return [(b - p).detach() for b, p in pairs]
