"""What users of other libraries reported, tried here: optimizers and their states.

The rows that have no test beside the code that they are about. Each stands with two more
of its kind, and every value is compared with one from another way.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from central_differences import relative
from chapter_experiments import chapter_module
from reported_cases import Idle, X, Y, chain, one_step
from torch import nn
from trust_modules import differences

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    Linearization,
    init_,
    normal,
)
from geolib.geodesics import (
    sparsify,
)
from geolib.naturality import (
    KFAC,
    NaturalGradient,
    Problem,
    local_geometry,
    mse,
)

# ---- optimizers ----------------------------------------------------------------------

PROJECTIONS = chapter_module("naturality", "projections")


def fisher_step(net, damping):
    """(F + damping)^-1 g over what is trained, dense and by central differences."""
    z, J = differences(net, X)
    G = sum(
        j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
        for j, p in zip(J, z.softmax(1), strict=True)
    ) / len(z)
    u = (z.softmax(1) - F.one_hot(Y, 3)) / len(z)
    g = torch.einsum("nop,no->p", J, u)
    return torch.linalg.solve(G + damping * torch.eye(len(g)), g)


@pytest.mark.parametrize("frozen", [(0,), (0, 1), (3,)])
@pytest.mark.parametrize(
    "given", [lambda net: net, lambda net: net.parameters(), lambda net: [
        {"params": list(net.parameters())}
    ]]
)  # fmt: skip
def test_frozen_parameters_stay_and_the_rest_takes_the_dense_step(given, frozen):
    net = chain(nn.Tanh())
    for k, p in enumerate(net.parameters()):
        p.requires_grad_(k not in frozen)
    slow = fisher_step(net, 0.1)
    moved = one_step(NaturalGradient(given(net), 1.0, damping=0.1), net)
    assert all(not moved[k].any() for k in frozen)
    free = torch.cat([t.flatten() for k, t in enumerate(moved) if k not in frozen])
    assert relative(free, slow) < 1e-6


class Shared(nn.Module):
    """Two layers of one width that share what they are told to."""

    def __init__(self, *names):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        for name in names:
            setattr(self.b, name, getattr(self.a, name))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("names", [("bias",), ("weight",), ("weight", "bias")])
def test_steps_of_layers_that_share_are_dense_steps(names):
    slow = fisher_step(init_(Shared(*names), 0, bias_scale=0.3).double(), 0.1)
    for given in (lambda net: net, lambda net: net.parameters()):
        net = init_(Shared(*names), 0, bias_scale=0.3).double()
        moved = one_step(NaturalGradient(given(net), 1.0, damping=0.1), net)
        assert relative(torch.cat([t.flatten() for t in moved]), slow) < 1e-6


class Skipping(nn.Sequential):
    """Layers in a row by their type, with a skip in their forward pass."""

    def forward(self, x):
        return self[2](x + torch.tanh(self[0](x)))


@pytest.mark.parametrize("structured", [True, False])
def test_a_skip_that_the_type_hides_is_seen(structured):
    net = Skipping(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net = init_(net, 0, bias_scale=0.3).double().eval()
    if structured:  # the only channels are the inputs' own
        with pytest.raises(ValueError, match="module: no hidden unit can be removed"):
            sparsify(net, X, 0.3, steps=3, structured=True, space="raw")
        return
    found = sparsify(net, X, 0.3, steps=3, space="raw")
    with torch.no_grad():
        change = (found.module(X) - net(X)).square().sum(1).mean().sqrt()
    assert found.drift == pytest.approx(float(change), rel=1e-6)


ONE_HOT = F.one_hot(Y, 3).double()
SOFT = 0.7 * ONE_HOT + 0.1
TOLD = {  # a loss, and the metric that it has: softmax, sigmoid or squared loss
    "labels": (lambda z: F.cross_entropy(z, Y), "softmax"),
    "smoothed labels": (lambda z: F.cross_entropy(z, Y, label_smoothing=0.2), "softmax"),
    "probabilities": (lambda z: F.cross_entropy(z, SOFT), "softmax"),
    "by hand": (lambda z: (z.logsumexp(1) - (z * ONE_HOT).sum(1)).mean(), "softmax"),
    "nll_loss": (lambda z: F.nll_loss(z.log_softmax(1), Y), "softmax"),
    "divergence": (lambda z: F.kl_div(z.log_softmax(1), SOFT, reduction="batchmean"), "softmax"),
    "weights of classes": (
        lambda z: F.cross_entropy(z, Y, weight=torch.tensor([1.0, 2.0, 5.0]).double()),
        "softmax",
    ),
    "labels left out": (lambda z: F.cross_entropy(z, Y - 2 * (Y == 1), ignore_index=-1), "softmax"),
    "bits": (lambda z: F.binary_cross_entropy_with_logits(z, ONE_HOT), "sigmoid"),
    "bits by hand": (lambda z: F.softplus(z * (1 - 2 * ONE_HOT)).sum(), "sigmoid"),
    "bits of a sigmoid": (lambda z: F.binary_cross_entropy(z.sigmoid(), ONE_HOT), "sigmoid"),
    "squares": (lambda z: F.mse_loss(z, ONE_HOT), "squares"),
    "weighed squares": (
        lambda z: ((z - ONE_HOT).square().sum(1) * torch.arange(12)).sum(), "squares"
    ),
}  # fmt: skip
MATRIX = {
    "softmax": lambda z: torch.diag(z.softmax(0)) - torch.outer(z.softmax(0), z.softmax(0)),
    "sigmoid": lambda z: torch.diag(z.sigmoid() * (1 - z.sigmoid())),
    "squares": lambda z: torch.eye(len(z)).double(),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_the_metric_is_that_of_the_loss_however_it_is_written(name):
    value, kind = TOLD[name]
    net = chain(nn.Tanh())
    z, J = differences(net, X)
    G = sum(j.T @ MATRIX[kind](zi) @ j for zi, j in zip(z, J, strict=True)) / len(z)
    z.requires_grad_()
    g = torch.einsum("nop,no->p", J, torch.autograd.grad(value(z), z)[0])
    slow = torch.linalg.solve(G + 0.1 * torch.eye(len(G)), g)
    before, opt = (
        [p.detach().clone() for p in net.parameters()],
        NaturalGradient(net, 1.0, damping=0.1),
    )

    def closure():
        out = net(X)
        return out, value(out)

    opt.step(closure)
    moved = [(b - p).flatten() for b, p in zip(before, net.parameters(), strict=True)]
    assert relative(torch.cat(moved).detach(), slow) < 1e-6


NOT_TOLD = {
    "temperature": lambda z: F.cross_entropy(2 * z, Y),
    "huber": lambda z: F.huber_loss(z, ONE_HOT, delta=0.1),
    "absolute": lambda z: F.l1_loss(z, ONE_HOT),
    "poisson": lambda z: F.poisson_nll_loss(z, ONE_HOT),
    "margin": lambda z: F.multi_margin_loss(z, Y),
    "a penalty on the outputs": lambda z: F.cross_entropy(z, Y) + z.square().mean(),
    "one output": lambda z: z[:, 0].square().mean(),
}


@pytest.mark.parametrize("name", NOT_TOLD)
@pytest.mark.parametrize("of", [lambda net: net, lambda net: net.parameters()])
def test_a_metric_that_a_loss_does_not_tell_must_be_given(name, of):
    net = chain(nn.Tanh())

    def closure():
        z = net(X)
        return z, NOT_TOLD[name](z)

    with pytest.raises(ValueError, match="output_metric: expected one"):
        NaturalGradient(of(net), 0.1, damping=0.1).step(closure)
    NaturalGradient(of(net), 0.1, damping=0.1, output_metric=Euclidean()).step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 30.0, 100.0, 1e4])
def test_a_classifier_that_is_sure_keeps_its_metric(dtype, scale):
    """The Hessian of a sure softmax is rounding; it is still a softmax's."""
    for shift in (0, 1):  # right, and wrong
        z = scale * (ONE_HOT.roll(shift, 1) + 0.1 * normal((12, 3), 3))
        z = z.to(dtype).requires_grad_() * 1.0
        found = local_geometry.metric_of_loss(F.cross_entropy(z, Y), z)
        assert isinstance(found, Categorical)
        loss = F.binary_cross_entropy_with_logits(z, ONE_HOT.to(dtype))
        assert isinstance(local_geometry.metric_of_loss(loss, z), Bernoulli)


def test_closures_and_parameters_that_do_not_fit_are_refused_by_name():
    net = chain(nn.Tanh())

    def used_up():
        z = net(X)
        loss = F.cross_entropy(z, Y)
        loss.backward()
        return z, loss

    def detached():
        z = net(X)
        return z.detach(), F.cross_entropy(z, Y)

    def many():
        z = net(X)
        return z, F.cross_entropy(z, Y, reduction="none")

    for closure in (used_up, detached, many):
        with pytest.raises(ValueError, match=r"^(closure|outputs, loss)"):
            NaturalGradient(net, 0.1, damping=0.1).step(closure)
    twice = [*net.parameters(), net[0].weight]
    with pytest.raises(ValueError, match="params: expected each once"):
        NaturalGradient(twice, 0.1)


def test_parameters_none_of_which_is_trained_are_refused_by_name():
    net = chain(nn.Tanh()).requires_grad_(False)
    for given in (net, net.parameters(), [{"params": list(net.parameters())}]):
        with pytest.raises(ValueError, match="params: "):
            NaturalGradient(given, 0.1)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("kind", [KFAC, NaturalGradient])
def test_a_layer_without_use_stays_and_changes_nothing(kind, damping):
    x, y = normal((60, 3), 1), torch.arange(60) % 3
    net, twin = Idle(), chain(nn.Tanh())
    with_idle = one_step(kind(net, 1e-3, damping=damping), net, x, y)
    alone = one_step(kind(twin, 1e-3, damping=damping), twin, x, y)
    for a, b in zip(with_idle, alone, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
    assert max(float(t.abs().max()) for t in with_idle[4:]) < 1e-9


@pytest.mark.parametrize("inplace", [nn.ReLU(True), nn.Hardtanh(inplace=True)])
def test_kfac_and_natural_steps_behind_layers_in_place(inplace):
    apart = copy.deepcopy(inplace)
    apart.inplace = False
    for kind in (KFAC, NaturalGradient):
        steps = []
        for act in (inplace, apart):
            net = chain(copy.deepcopy(act))
            steps.append(one_step(kind(net, 0.1, damping=0.1), net))
        for a, b in zip(*steps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_long_jacobian_is_not_factorised(monkeypatch):
    """From parameters alone a step was an SVD of the whole Jacobian."""
    monkeypatch.setattr(local_geometry, "LARGE", 10)
    net = chain(nn.Tanh())
    slow = fisher_step(net, 0.1)
    monkeypatch.setattr(Linearization, "jacobian", None)
    moved = one_step(NaturalGradient(net.parameters(), 1.0, damping=0.1), net)
    assert relative(torch.cat([t.flatten() for t in moved]), slow) < 1e-6


# ---- a velocity at the start ---------------------------------------------------------


def test_a_velocity_at_the_start_is_pushed_along_the_map():
    """Flow of natural momentum down a product and down its quotient, and a wrong push."""
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    narrow = Problem.of(nn.Linear(1, 1, bias=False).double(), x, mse(3 * x))
    hs = [1 / 32, 1 / 64, 1 / 128]
    for pi, start in (
        (
            PROJECTIONS.Projection(lambda w: (w[0] * w[1]).reshape(1), "product"),
            [1.0, 2.0],
        ),
        (
            PROJECTIONS.Projection(lambda w: (w[0] + 3 * w[1]).reshape(1), "sum"),
            [0.5, 1.0],
        ),
        (
            PROJECTIONS.Projection(lambda w: (w[0] * w[1]).reshape(1), "elsewhere"),
            [2.0, 0.7],
        ),
    ):
        wide = pi.pull(narrow, [(2,)], torch.tensor(start).double())
        found = PROJECTIONS.projection_defect(
            "natural-momentum", wide, narrow, pi, hs, horizon=0.25
        )
        assert found.letter in "EN", (pi.name, found)
        down = torch.func.jacrev(pi.forward)(wide.theta0)
        v = 0.5 * torch.as_tensor(np.random.default_rng(1234).standard_normal(2))
        drawn = 0.5 * np.random.default_rng(1234).standard_normal(1)
        assert float((down @ v - torch.as_tensor(drawn)).abs()) > 0.05  # not that draw
