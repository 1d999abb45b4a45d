"""Products and solves of random small modules, against finite differences."""

import pytest
import torch
from central_differences import nudged
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from geolib.core import PullbackMetric, Realization, init_, normal

WIDTH = 3
KINK = 1e-3  # gap of one-sided differences, relative: 1e3 times what curvature makes
METHODS = ("cholesky", "woodbury", "cg", "nystrom", "kfac")
DRAWN = settings(max_examples=100, deadline=None, derandomize=True)
MANY = settings(DRAWN, max_examples=2000)


class Convolution(nn.Module):
    """A convolution along the features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2, padding=1)

    def forward(self, h):
        return self.conv(h[:, None]).mean(1)[:, :WIDTH]


class Attention(nn.Module):
    """Attention over the features of each sample."""

    def __init__(self):
        super().__init__()
        self.lift, self.read = nn.Linear(1, 2), nn.Linear(2, 1)
        self.attend = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, h):
        t = self.lift(h[..., None])
        return self.read(self.attend(t, t, t, need_weights=False)[0])[..., 0]


class Recurrence(nn.Module):
    """A recurrent layer along the features of each sample."""

    def __init__(self, kind):
        super().__init__()
        self.recur, self.read = kind(1, 2, batch_first=True), nn.Linear(2, 1)

    def forward(self, h):
        return self.read(self.recur(h[..., None])[0])[..., 0]


class Pooling(nn.Module):
    """Pooling along the features."""

    def __init__(self, kind):
        super().__init__()
        self.pool = kind(3, stride=1, padding=1)

    def forward(self, h):
        return self.pool(h[:, None])[:, 0]


class Unused(nn.Module):
    """A layer that is called in vain, and its weight that is used outside it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, h):
        self.layer(h)
        return h @ self.layer.weight.T


class Signs(nn.Module):
    """Each feature times a number that is looked up by the feature's sign."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(2, 1)

    def forward(self, h):
        return h * self.embed((h > 0).long())[..., 0]


def norm():
    layer = nn.BatchNorm1d(WIDTH)
    layer.running_mean.copy_(normal(WIDTH, 5))
    layer.running_var.copy_(1 + normal(WIDTH, 6) ** 2)
    return layer


LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "conv": Convolution,
    "attention": Attention,
    "layer norm": lambda: nn.LayerNorm(WIDTH, eps=0.1),
    "batch norm": norm,
    "group norm": lambda: nn.GroupNorm(1, WIDTH, eps=0.1),
    "lstm": lambda: Recurrence(nn.LSTM),
    "gru": lambda: Recurrence(nn.GRU),
    "maximum": lambda: Pooling(nn.MaxPool1d),
    "average": lambda: Pooling(nn.AvgPool1d),
    "embedding": Signs,
    "unused": Unused,
    "relu": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "dropout": lambda: nn.Dropout(0.5),
}


class Grown(nn.Module):
    """Layers one after the other, some with a skip, some used again."""

    def __init__(self, plan):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.steps, layers = [], []
        for kind, skip, again in plan:
            if again is None or not layers:
                layers.append(LAYERS[kind]())
                again = len(layers) - 1
            self.steps.append((again % len(layers), skip))
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        h, kept = self.first(x), False  # does a derivative need h as it is?
        for k, skip in self.steps:
            layer = self.layers[k]
            new = layer(h.clone() if skip or kept else h)
            h = h + new if skip else new
            if not isinstance(layer, nn.Dropout):
                kept = not skip and isinstance(layer, nn.ReLU | nn.Tanh)
        return self.last(h)


@st.composite
def modules(draw):
    """A module with shared and frozen parts, in evaluation mode, and inputs."""
    step = st.tuples(
        st.sampled_from(sorted(LAYERS)),
        st.booleans(),
        st.none() | st.integers(0, 3),
    )
    net = Grown(draw(st.lists(step, min_size=1, max_size=6))).double()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    init_(net, draw(st.integers(0, 10**6)), bias_scale=0.5)
    for m in norms:
        nn.init.constant_(m.weight, 0.8)
    # A norm of three equal maxima is its bias: equal biases would be a tie at the next
    # maximum, where there is no derivative.
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            m.bias.data += torch.linspace(-0.3, 0.3, WIDTH, dtype=m.bias.dtype)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    for name in draw(st.lists(st.sampled_from(["weight", "bias"]), max_size=2)):
        a, b = (linear[draw(st.integers(0, len(linear) - 1))] for _ in "ab")
        p, q = getattr(a, name), getattr(b, name)
        if p is not None and q is not None and p.shape == q.shape:
            setattr(b, name, p)
    for p in list(net.parameters())[1:]:
        p.requires_grad_(draw(st.integers(0, 3)) > 0)
    return net.eval(), normal((draw(st.integers(1, 5)), WIDTH), 1)


@torch.no_grad()
def difference_jacobian(net, x, eps=1e-6):
    """Central differences of the module itself, one parameter at a time.

    A draw is rejected where the differences to the left and to the right disagree: a
    tie of a maximum, say, has no derivative that anything could be compared with.
    """
    columns, z = [], net(x)
    for up, down in nudged(net, lambda: net(x), eps):
        right, left = (up - z) / eps, (z - down) / eps
        size = 1 + right.norm() + left.norm()
        assume(float((right - left).norm()) < KINK * float(size))
        columns.append((right + left) / 2)
    return torch.stack(columns, -1)


def compare(problem, method):
    net, x = problem
    before = {n: t.clone() for n, t in net.state_dict().items()}
    J = difference_jacobian(net, x)
    D = torch.einsum("iap,iaq->pq", J, J) / len(x)
    R = Realization(net)
    L, G = R.linearize(R.theta0, x), PullbackMetric(R, x).at(R.theta0)
    v, u = normal(R.p, 1), normal(tuple(L.outputs.shape), 2)
    pairs = {
        "outputs": (R(R.theta0, x), net(x).detach()),
        "jvp": (L.jvp(v), J @ v),
        "vjp": (L.vjp(u), torch.einsum("nop,no->p", J, u)),
        "product": (G @ v, D @ v),
        "dense": (G.dense(), D),
    }
    damped = D + 0.1 * torch.eye(R.p, dtype=D.dtype)
    found = G.solve(v, 0.1, method, tol=1e-11)
    if found.converged or method != "kfac":
        pairs[method] = damped @ found.x, v
    else:  # a poor preconditioner: then the answer says how far off it is
        gap = float((damped @ found.x - v).norm() / v.norm())
        assert found.residual == pytest.approx(gap, rel=1e-2)
    for name, (ours, slow) in pairs.items():
        size = float(slow.norm()) + float(J.norm()) * (name != "outputs") + 1e-3
        assert float((ours - slow).norm()) < 1e-6 * size, name
    for n, t in net.state_dict().items():
        assert torch.equal(t, before[n]), n


@given(modules(), st.sampled_from(METHODS))
@DRAWN
def test_a_hundred_random_modules(problem, method):
    compare(problem, method)


@pytest.mark.data
@pytest.mark.timeout(1800)
@given(modules(), st.sampled_from(METHODS))
@MANY
def test_two_thousand_random_modules(problem, method):
    compare(problem, method)
