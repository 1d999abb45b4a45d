"""Linearizations of graphs that exist already, and of calls with gradients off."""

import pytest
import torch
from central_differences import relative
from core_cases import CASES, make
from dense_reference import dense_jacobian
from torch import nn

from geolib.core import (
    Bernoulli,
    Linearization,
    Metric,
    PullbackMetric,
    Realization,
    init_,
    normal,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")


def call(module, x):
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


@pytest.mark.slow_for("sequence", "grouped_conv")
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_graph_serves_as_a_run_of_ones_own(case):
    module, x = make(case)
    R = Realization(module)
    with R.recording() as record:
        z = call(module, x)
        (z**2).sum()
    L, own = record.linearization(), R.linearize(R.theta0, x)
    assert torch.equal(L.outputs, z.detach().reshape(len(z), -1))
    v, u = normal(R.p, 1), normal(tuple(L.outputs.shape), 2)
    J = dense_jacobian(R, R.theta0, x)
    assert relative(L.jvp(v), J @ v) < 1e-13
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-13
    assert {c.weight for c in L.linear_calls()} == {
        c.weight for c in own.linear_calls()
    }
    G = Metric.from_linearization(L, Bernoulli())
    H = PullbackMetric(R, x, Bernoulli()).at(R.theta0)
    assert relative(G.rows().dense(), H.rows().dense()) < 1e-13
    for method in ("cholesky", "woodbury", "cg", "nystrom"):
        a, b = (M.solve(u, 0.1, method, tol=1e-12).x for M in (G, H))
        assert relative(a, b) < 1e-8


@pytest.mark.parametrize("case", ["mlp", "conv", "sneaky"])
def test_a_bare_graph_knows_nothing_of_layers_and_is_right_all_the_same(case):
    module, x = make(case)
    R = Realization(module)
    L = Linearization(call(module, x), dict(module.named_parameters()))
    G = Metric.from_linearization(L)
    J = dense_jacobian(R, R.theta0, x)
    expected = torch.einsum("iap,iaq->pq", J, J) / len(J)
    assert relative(G.dense(), expected) < 1e-13
    assert relative(G @ normal(R.p, 1), expected @ normal(R.p, 1)) < 1e-13


def test_of_several_calls_the_last_one_counts():
    module, x = make("mlp")
    R = Realization(module)
    with R.recording() as record:
        module(2 * x)
        z = module(x)
    L = record.linearization()
    assert torch.equal(L.outputs, z.detach())
    assert {c.weight for c in L.linear_calls()} == {"0.weight", "2.weight"}


def test_a_graph_keeps_the_buffers_that_made_it():
    module, x = make("batchnorm")
    R = Realization(module)
    with torch.no_grad():
        module[1].running_mean.add_(0.7)  # after R took its copies
    with R.recording() as record:
        module(x)
    A = Metric.from_linearization(record.linearization()).rows().dense()
    fresh = Realization(module)
    B = PullbackMetric(fresh, x).at(fresh.theta0).rows().dense()
    assert relative(A, B) < 1e-14


def test_a_closure_that_did_not_call_the_module_is_named():
    R = Realization(make("mlp")[0])
    with R.recording() as record:
        pass
    with pytest.raises(ValueError, match="did not call the module"):
        record.linearization()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("case", ["mlp", "conv", "sequence", "dict"])
def test_gradients_switched_off_by_the_caller_change_nothing(off, case):
    module, x = make(case)
    R = Realization(module)
    G = PullbackMetric(R, x).at(R.theta0)
    v = normal(R.p, 1)
    expected, rows, step = G @ v, G.rows().dense(), G.solve(v, 0.1).x
    with off():
        G = PullbackMetric(R, x).at(R.theta0)
        w = normal(R.p, 1)
        assert relative(G @ w, expected) < 1e-14
        assert relative(G.rows().dense(), rows) < 1e-14
        assert relative(G.solve(w, 0.1).x, step) < 1e-12
        again = PullbackMetric(R, x).at(R.theta0 + 0)  # a point made in that mode
        assert relative(again @ w, expected) < 1e-14


def test_a_bias_that_two_weights_share_gets_both_their_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    R, x = Realization(init_(Tied().double(), 0, bias_scale=1.0)), normal((5, 3), 1)
    L, J = R.linearize(R.theta0, x), dense_jacobian(R, R.theta0, x)
    u, v = normal((5, 3), 2), normal(R.p, 3)
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-14
    assert relative(L.jvp(v), J @ v) < 1e-14
    us = normal((2, 5, 3), 2)
    assert relative(L.vjp(us), torch.einsum("nop,kno->kp", J, us)) < 1e-14
    G = PullbackMetric(R, x).at(R.theta0)
    expected = torch.einsum("iap,iaq->pq", J, J) / 5
    assert relative(G.dense(), expected) < 1e-14
    assert relative(G.rows().dense().mT @ G.rows().dense(), expected) < 1e-14


class InVain(nn.Module):
    """A layer that is called in vain beside another use of its weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        self.a(x)
        return self.b(torch.tanh(x @ self.a.weight.T))


class Stopped(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


class InVainToo(InVain):
    """A layer whose gradient stops behind it."""

    def forward(self, x):
        return self.b(x) + Stopped.apply(self.a(x))[:, :1]


@pytest.mark.parametrize("kind", [InVain, InVainToo])
def test_a_call_that_the_outputs_do_not_depend_on_adds_nothing(kind):
    net = init_(kind(), 0, bias_scale=0.5).double()
    R, x = Realization(net, check=kind is InVain), normal((4, 2), 1)
    L, u, v = R.linearize(R.theta0, x), normal((4, 1), 2), normal(R.p, 3)
    z = net(x)
    grads = torch.autograd.grad(z, list(net.parameters()), u, materialize_grads=True)
    slow = torch.cat([g.reshape(-1) for g in grads])
    assert torch.allclose(L.vjp(u), slow)
    assert float((u * L.jvp(v)).sum()) == pytest.approx(float(slow @ v))
    J = L.jacobian()
    assert torch.allclose(torch.einsum("nop,no->p", J, u), slow)
    G = PullbackMetric(R, x).at(R.theta0)
    D = torch.einsum("nop,noq->pq", J, J) / 4
    assert torch.allclose(G.dense(), D)
    assert torch.allclose(
        G @ G.solve(v, 0.1, "woodbury").x, v - 0.1 * G.solve(v, 0.1).x
    )


def test_a_layer_whose_gradient_stops_is_refused_by_name():
    R = Realization(init_(InVainToo(), 0).double())
    with pytest.raises(ValueError, match="the autograd.Function behind Stopped"):
        R.linearize(R.theta0, normal((4, 2), 1))
