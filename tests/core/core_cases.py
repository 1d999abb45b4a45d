"""The table of modules and data that every test of `geolib.core` runs over."""

import torch
import torch.nn.functional as F
from torch import nn

from geolib.core import OutputMetric, init_, normal, rng
from geolib.core.output_metrics import RootMetric


class Given(OutputMetric):
    """Roots by a function of the outputs, of all samples: M = S S^T."""

    def __init__(self, roots):
        self.roots = roots

    def at(self, z, samples):
        return RootMetric(z, self.roots(z, samples))


def residuals(loss, targets):
    """The empirical Fisher metric: outer products of the loss's own gradients."""

    def roots(z, samples):
        z = z.detach().requires_grad_()
        (r,) = torch.autograd.grad(loss(z, targets[samples]), z)
        return r[..., None]

    return Given(roots)


class Shared(nn.Module):
    """One linear layer used twice, and its weight once more by the functional call."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.c = nn.Linear(3, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))))


class Sneaky(nn.Module):
    """A weight used by a layer and, behind its back, transposed."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.scale * F.linear(h, self.a.weight.t()) + self.a.weight.sum()


class TwoInputs(nn.Module):
    """Two named inputs, one of integers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(5, 2)

    def forward(self, word, feature):
        return self.mix(torch.cat([self.embed(word), feature], dim=-1))


class Sequence(nn.Module):
    """A linear layer applied at each of four positions, then attention and a norm."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(2, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.read = nn.Linear(4, 2)

    def forward(self, x):
        h = self.lift(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.read(h).mean(1)


def _mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), normal((7, 3), 1)


def _wide():
    """More parameters than outputs, one output."""
    net = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 1))
    return net, normal((6, 3), 1)


def _deep_nobias():
    net = nn.Sequential(
        nn.Linear(2, 4, bias=False), nn.GELU(), nn.Linear(4, 3, bias=False)
    )
    return net, normal((12, 2), 1)


def _conv():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, groups=1, dilation=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 2 * 1, 2),
    )
    return net, normal((4, 2, 5, 4), 1)


def _grouped_conv():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="zeros"),
        nn.Tanh(),
        nn.Conv1d(3, 2, 3) if False else nn.Flatten(2),
        nn.Conv1d(4, 2, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(10, 2),
    )
    return net, normal((3, 4, 3, 3), 1)


def _batchnorm():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    net[1].running_mean.copy_(normal(4, 5))
    net[1].running_var.copy_(1 + normal(4, 6) ** 2)
    return net.eval(), normal((5, 3), 1)


def _dict():
    x = {
        "word": torch.as_tensor(rng(3).integers(0, 5, 6)),
        "feature": normal((6, 2), 1),
    }
    return TwoInputs(), x


def _tuple():
    net, x = _dict()
    return net, (x["word"], x["feature"])


CASES = {
    "mlp": _mlp,
    "wide": _wide,
    "nobias": _deep_nobias,
    "conv": _conv,
    "grouped_conv": _grouped_conv,
    "batchnorm": _batchnorm,
    "shared": lambda: (Shared(), normal((5, 3), 1)),
    "sneaky": lambda: (Sneaky(), normal((5, 3), 1)),
    "dict": _dict,
    "tuple": _tuple,
    "sequence": lambda: (Sequence(), normal((4, 4, 2), 1)),
}


def make(name, seed=0):
    """The module of a case, in float64 with seeded weights, and its inputs."""
    module, x = CASES[name]()
    module = module.double()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    init_(module, seed, bias_scale=0.3)
    for m in norms:
        with torch.no_grad():
            m.weight.copy_(1 + 0.2 * normal(m.weight.shape, seed))
    return module, x
