"""The self-tuning natural gradient: its model, its charts and its ways of use."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geolib.core import Categorical, Euclidean, PullbackMetric, normal
from geolib.naturality import (
    NaturalGradient,
    averaged_curvature,
    cross_entropy,
    mse,
    natural_gradient,
)
from geolib.naturality.averaged_curvature import AveragedCurvature
from geolib.naturality.local_geometry import flatten
from geolib.networks import mlp

RNG = np.random.default_rng(5)
X = torch.tensor(RNG.standard_normal((40, 3)))
Y = torch.tensor(RNG.standard_normal((40, 2)))


def network(seed=0):
    return mlp([3, 5, 2], seed, nn.Tanh)


def closure_of(net, x=X, y=Y):
    def closure():
        z = net(x)
        return z, mse(y)(z)

    return closure


def weights(net):
    return flatten([p.detach() for p in net.parameters()]).clone()


def fit(net, steps=30, x=X, **options):
    optimizer, losses = NaturalGradient(net, **options), []
    for _ in range(steps):
        losses.append(float(optimizer.step(closure_of(net, x))))
    return optimizer, losses


def test_a_solve_is_that_of_the_dense_sum():
    net = network()
    rows = PullbackMetric(net, X).at(weights(net)).rows()
    v = torch.linspace(-1, 1, rows.p).double()
    for exact in (True, False):
        C = AveragedCurvature(exact)
        C.add(rows)
        C.add(rows)  # an average of equals
        C.factorise(0.3)
        M = torch.stack([C.metric(e) for e in torch.eye(rows.p).double()])
        F = rows.dense().T @ rows.dense() if exact else M
        assert torch.allclose(C.metric(v), M @ v, rtol=1e-10)
        assert torch.allclose(C.product(v), F @ v, rtol=1e-10)
        expected = torch.linalg.solve(F + 0.3 * M, v)
        assert torch.allclose(C.solve(v), expected, rtol=1e-6, atol=1e-9)


def test_the_first_step_is_damped_and_stays_in_the_region():
    net = nn.Linear(3, 2).double()
    start, z = weights(net), net(X).detach()
    optimizer = NaturalGradient(net)
    optimizer.tuning.damping = 1e-4  # so little that the region binds
    loss = float(optimizer.step(closure_of(net)))
    moved, C = weights(net) - start, optimizer.tuning.curvature
    length = 0.5 * float((net(X) - z).square().sum(1).mean().detach())
    assert length == pytest.approx(0.05 * loss, rel=1e-9)
    assert float(moved @ C.product(moved)) == pytest.approx(2 * length, rel=1e-9)
    _, losses = fit(nn.Linear(3, 2).double(), 60)
    A = torch.cat([X, torch.ones(40, 1)], 1).double()
    best = Y - A @ torch.linalg.lstsq(A, Y).solution
    assert losses[-1] == pytest.approx(0.5 * float(best.square().sum() / 40), rel=1e-6)


def test_the_ratio_is_one_where_the_model_is_exact():
    net = nn.Linear(3, 2).double()
    optimizer, _ = fit(net, 2)
    assert optimizer.tuning.ratio == pytest.approx(1.0, abs=1e-9)
    bent, _ = fit(network(), 2)
    assert bent.tuning.ratio != pytest.approx(1.0, abs=1e-4)


def in_chart(net, A, b):
    """The network that does on `X @ A.T + b` what `net` does on X."""
    other = copy.deepcopy(net)
    W = net[1].weight.detach() @ torch.linalg.inv(A)
    with torch.no_grad():
        other[1].weight.copy_(W)
        other[1].bias.copy_(net[1].bias - W @ b)
    return other


@pytest.mark.parametrize("exact", [True, False])
def test_a_chart_of_the_inputs_changes_no_curve(exact, monkeypatch):
    monkeypatch.setattr(natural_gradient, "EXACT", 512 if exact else 0)
    scales = torch.tensor([1e3, 1.0, 1e-2]).double()
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0]]).double()
    A = torch.diag(scales) @ (mixing if exact else torch.eye(3).double())
    b = torch.tensor([10.0, -3.0, 0.01]).double() * (1.0 if exact else 0.0)
    net = network()
    other = in_chart(net, A, b)
    _, here = fit(net, 40)
    _, there = fit(other, 40, X @ A.T + b)
    assert here[-1] < 0.8 * here[0]
    assert np.allclose(here, there, rtol=1e-2)
    curves = []
    for chart in (False, True):
        net = network()
        net, x = (in_chart(net, A, b), X @ A.T + b) if chart else (net, X)
        adam, curve = torch.optim.Adam(net.parameters(), 0.03), []
        for _ in range(40):
            adam.zero_grad()
            loss = mse(Y)(net(x))
            loss.backward()
            adam.step()
            curve.append(float(loss.detach()))
        curves.append(np.array(curve))
    assert np.abs(curves[1] / curves[0] - 1).max() > 0.1  # what the bar tells apart


def test_a_step_costs_one_forward_pass():
    net, calls = network(), []
    net.register_forward_pre_hook(lambda *_: calls.append(len(X)))
    optimizer = NaturalGradient(net)
    optimizer.step(closure_of(net))  # the first use checks what is assumed
    calls.clear()
    for _ in range(6):
        optimizer.step(closure_of(net))
    assert len(calls) == 6


def test_a_step_along_which_the_loss_is_lost_is_taken_back():
    net = network()
    optimizer, _ = fit(net, 3)
    before = weights(net)
    optimizer.param_groups[0]["lr"] = 1e3
    optimizer.step(closure_of(net))
    optimizer.param_groups[0]["lr"] = 1.0
    damping = optimizer.tuning.damping
    assert not torch.allclose(weights(net), before, rtol=1.0)
    optimizer.step(closure_of(net))
    assert torch.allclose(weights(net), before, rtol=1e-9)
    assert optimizer.tuning.damping == pytest.approx(3 * damping)
    optimizer.step(closure_of(net))
    start, last = weights(net), optimizer.tuning.last
    optimizer.step(closure_of(net, X, 1e3 * Y))  # which the last is not to blame for
    assert not torch.allclose(weights(net), start)
    assert not torch.allclose(weights(net), start - last)


def test_a_row_that_the_average_does_not_know_is_given_its_length():
    net = nn.Linear(3, 2).double()
    optimizer, _ = fit(net, 12)
    assert not optimizer.tuning.due  # the next batch's own curvature is not asked for
    big = torch.cat([X[:-1], 1e4 * X[-1:]])
    loss = closure_of(net, big)()[1]
    g = flatten(torch.autograd.grad(loss, list(net.parameters())))
    start = weights(net)
    optimizer.step(closure_of(net, big))
    d, loss = weights(net) - start, float(loss.detach())
    known = float(optimizer.tuning.curvature.product(d) @ d)
    least = float(g @ d) ** 2 / (2 * loss)  # of d^T F d, by Cauchy and Schwarz
    assert known < 0.01 * least
    assert least == pytest.approx(2 * 0.05 * loss, rel=1e-9)


@pytest.mark.parametrize("metric", [Euclidean(), Categorical()])
def test_plain_backward_takes_the_step_of_the_closure(metric, monkeypatch):
    monkeypatch.setattr(natural_gradient, "EXACT", 0)
    y = Y if isinstance(metric, Euclidean) else Y.argmax(1)
    loss_of = mse(y) if isinstance(metric, Euclidean) else cross_entropy(y)
    one, two = network(), network()
    closed = NaturalGradient(one, output_metric=metric)
    plain = NaturalGradient(two, output_metric=metric)
    for _ in range(5):
        closed.step(lambda: (z := one(X), loss_of(z)))
        plain.zero_grad()
        loss_of(two(X)).backward()
        plain.step()
    assert torch.allclose(weights(one), weights(two), rtol=1e-9, atol=1e-12)
    assert not {**two._forward_hooks, **two._forward_pre_hooks}
    for lacking, optimizer in {
        "a module": NaturalGradient(list(network().parameters())),
        "an output_metric": NaturalGradient(network()),
        "zero_grad": NaturalGradient(network(), output_metric=metric),
    }.items():
        with pytest.raises(ValueError, match=f"closure: expected one; .* {lacking}"):
            optimizer.step()


def test_batch_norm_in_training_mode_is_trained():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    net = net.double().train()
    start = weights(net)
    _, losses = fit(net, 40)
    assert losses[-1] < 0.8 * losses[0]
    assert int(net[1].num_batches_tracked) == 40
    assert bool((weights(net) != start).all())  # its own parameters too


def test_groups_schedules_and_decay():
    net = network()
    still = net[1].weight.detach().clone()
    groups = [
        {"params": [net[1].weight], "lr": 1e-12},
        {"params": [net[1].bias, *net[3].parameters()], "weight_decay": 0.5},
    ]
    optimizer = NaturalGradient(groups, module=net)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    free = network()
    NaturalGradient(free).step(closure_of(free))
    w = net[3].weight.detach().clone()
    optimizer.step(closure_of(net))
    schedule.step()
    assert torch.allclose(net[1].weight, still, atol=1e-9)
    assert torch.allclose(net[3].weight, free[3].weight - 0.5 * w, rtol=1e-9)
    assert [g["lr"] for g in optimizer.param_groups] == [5e-13, 0.5]
    with pytest.raises(ValueError, match="all the module's trainable parameters"):
        NaturalGradient(groups[:1], module=net)


@pytest.mark.parametrize("steps", [4, 7])  # of the second no curvature is due
@pytest.mark.parametrize("exact", [True, False])
def test_a_restored_optimizer_goes_on_as_the_other(exact, steps, monkeypatch):
    monkeypatch.setattr(natural_gradient, "EXACT", 512 if exact else 0)
    net = network()
    optimizer, _ = fit(net, steps)
    assert steps == 4 or not optimizer.tuning.due
    twin = network()
    twin.load_state_dict(net.state_dict())
    other = NaturalGradient(twin)
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    for _ in range(4):
        optimizer.step(closure_of(net))
        other.step(closure_of(twin))
        assert torch.equal(weights(net), weights(twin))


def test_the_damping_follows_the_slope_that_a_step_leaves(monkeypatch):
    """K-FAC's: noise makes steps short, its absence makes them long."""
    monkeypatch.setattr(natural_gradient, "EXACT", 0)
    net, rng, ends = network(), np.random.default_rng(0), []
    for noise in (0.0, 10.0):
        net = network()
        optimizer = NaturalGradient(net)
        assert optimizer.tuning.damping == 30.0
        for k in range(60):
            optimizer.step(
                closure_of(
                    net, X, Y + noise * torch.tensor(rng.standard_normal((40, 2)))
                )
            )
            assert k or optimizer.tuning.damping == pytest.approx(100.0)
        ends.append(optimizer.tuning.damping)
    assert ends[0] < 60.0 < ends[1]
    assert ends[1] < 100.0 * (1 + 60 / 10) ** 0.5  # the root of time, and no faster


def test_factors_are_taken_of_so_many_samples(monkeypatch):
    monkeypatch.setattr(averaged_curvature, "SAMPLES", 20)
    net = network()
    rows = PullbackMetric(net, X).at(weights(net)).rows()
    C, D = AveragedCurvature(False), AveragedCurvature(False)
    C.add(rows)
    D.add(PullbackMetric(net, X[::2]).at(weights(net)).rows())
    for one, two in zip(C.averages, D.averages, strict=True):
        assert torch.allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize("squared", [True, False])
def test_it_goes_on_where_a_curvature_is_due_and_gives_the_loss_of_the_closure(squared):
    def closure():
        z = net(x)
        return z, F.mse_loss(z, y) if squared else F.cross_entropy(z, y.argmax(1))

    x, y = normal((30, 4), 3), normal((30, 3), 4)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    ).double()
    optimizer = NaturalGradient(net)
    for _ in range(5):  # the sixth step takes a curvature
        with torch.no_grad():
            before = closure()[1]
        assert torch.allclose(optimizer.step(closure), before, rtol=1e-12)
    held = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(closure)
    went = [t.detach().clone() for t in net.parameters()]
    net.load_state_dict(held[0])
    other = NaturalGradient(net)
    other.load_state_dict(held[1])
    assert other._told
    assert type(other.output_metric) is type(optimizer.output_metric)
    for _ in range(3):
        other.step(closure)
    assert all(map(torch.equal, went, net.parameters()))


def test_the_scale_of_a_squared_loss_is_read_from_it():
    ends = []
    for factor in (1.0, 7.0):
        net = network()
        optimizer = NaturalGradient(net)
        for _ in range(6):
            optimizer.step(lambda n=net, f=factor: (z := n(X), f * mse(Y)(z)))
        ends.append(weights(net))
    assert torch.allclose(*ends, rtol=1e-9)


def test_a_loss_tells_its_metric_once(monkeypatch):
    """In single precision the Hessian of a sure output is round-off."""
    net, told = network(), []
    tell = natural_gradient.metric_of_loss
    monkeypatch.setattr(
        natural_gradient, "metric_of_loss", lambda *a: told.append(1) or tell(*a)
    )
    loss_of = cross_entropy(Y.argmax(1))
    optimizer = NaturalGradient(net)
    for _ in range(5):
        optimizer.step(lambda: (z := net(X), loss_of(z)))
    assert len(told) == 1
    assert isinstance(optimizer.output_metric, Categorical)
    other = NaturalGradient(net)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.step(lambda: (z := net(X), loss_of(z)))
    assert isinstance(other.output_metric, Categorical)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"trust": 0.0}, ValueError, "trust"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"interval": 0}, ValueError, "interval"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"nesterov": True}, TypeError, "nesterov"),
        ({"damping": 0.1, "momentum": 0.5}, ValueError, "damping"),
        ({"integrator": "rk4"}, ValueError, "integrator"),
    ],
)
def test_what_it_refuses(options, error, named):
    with pytest.raises(error, match=named):
        NaturalGradient(network(), **options)
