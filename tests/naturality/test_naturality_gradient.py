"""The natural gradient and its steps, against closed forms and dense solves."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from naturality_cases import (
    DATA,
    bent,
    linear,
    network,
    setting,
)
from naturality_chapter import PROBLEMS, RULES
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    init_,
)
from geolib.naturality import (
    KFAC,
    OPTIMIZERS,
    LocalGeometry,
    NaturalGradient,
    NaturalMomentum,
    cross_entropy,
    mse,
    run_optimizer,
)
from geolib.naturality.local_geometry import flatten


def test_convolutions_and_classes_through_core():
    module = init_(
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), 0
    ).double()
    x = torch.tensor(np.random.default_rng(0).standard_normal((6, 1, 3, 3)))
    y = torch.arange(6) % 3

    def closure():
        z = module(x)
        return z, cross_entropy(y)(z)

    start = copy.deepcopy(module.state_dict())
    ends = []
    for params in (module, module.parameters()):
        module.load_state_dict(start)
        opt = NaturalGradient(params, 0.3, output_metric=Categorical(), damping=1e-3)
        for _ in range(3):
            opt.step(closure)
        ends.append(flatten([t.detach() for t in module.parameters()]))
    assert torch.allclose(*ends, rtol=1e-8, atol=1e-9)


def test_a_step_at_scale_forms_no_jacobian(monkeypatch):
    module = init_(nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 1)), 0)
    x = torch.ones(16, 20).cumsum(1).sin() * torch.arange(1, 17)[:, None]
    y = x[:, :1].cos()
    monkeypatch.setattr(
        LocalGeometry, "J", property(lambda q: pytest.fail("J was formed"))
    )

    def closure():
        z = module(x)
        return z, mse(y)(z)

    plain = partial(NaturalGradient, lr=0.1)
    geodesic = partial(plain, integrator="geodesic")
    momentum, adam = (
        partial(NaturalMomentum, lr=0.1),
        partial(RULES.NaturalAdam, lr=1e-3),
    )
    for make in (plain, geodesic, momentum, adam):
        opt = make(module, damping=0.01)
        before = float(closure()[1].detach())
        for _ in range(3):
            opt.step(closure)
        assert opt.solution.method == "woodbury"
        assert float(closure()[1].detach()) < before


def test_a_closure_that_does_not_fit_its_module_is_refused():
    module, (x, y) = network(), DATA

    def closure(kind):
        z = module(x) if kind != "other" else x @ x.T[:, :2] + module[0].weight.sum()
        z = module(x[:4]) if kind == "part" else 2 * z if kind == "scaled" else z
        return z, mse(y[: len(z)])(z)

    with pytest.raises(ValueError, match="did not call the module"):
        NaturalGradient(module, 0.01, damping=0.0).step(lambda: closure("other"))
    with pytest.raises(ValueError, match="one call of the module"):
        NaturalGradient(module, 0.01, damping=0.0).step(lambda: closure("scaled"))
    # a batch is no trouble
    NaturalGradient(module, 0.01, damping=0.0).step(lambda: closure("part"))
    with pytest.raises(ValueError, match="requires gradients"):
        NaturalGradient(nn.ReLU())
    with pytest.raises(ValueError, match="Dropout"):
        NaturalGradient(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not module._forward_hooks


@pytest.mark.slow_for("ngd-rk4-*", "ngd-geodesic-*")
@pytest.mark.parametrize(
    ("name", "order"),
    [("ngd", 1), ("ngd-midpoint", 2), ("ngd-rk4", 4), ("ngd-geodesic", 1)],
)
def test_order_of_accuracy_against_the_exact_flow(name, order):
    P, best = linear()
    exact = best + math.exp(-1) * (P.theta0 - best)
    errors = [
        float((run_optimizer(OPTIMIZERS[name], P, 1 / k, k, bent(P)) - exact).norm())
        for k in (16, 32)
    ]
    slope = math.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.12


def test_lifted_sgd_is_natural_gradient():
    P, leaves, closure = setting()
    opt = RULES.FunctionalLift(leaves, rule=lambda z: torch.optim.SGD(z, 0.05))
    for _ in range(16):
        opt.step(closure)
    lifted = flatten([t.detach() for t in leaves])
    ngd = run_optimizer(OPTIMIZERS["ngd"], P, 0.05, 16)
    assert torch.allclose(lifted, ngd, atol=1e-12)


def test_one_step_solves_a_linear_model():
    P, best = linear()
    assert torch.allclose(run_optimizer(OPTIMIZERS["ngd"], P, 1.0, 1), best, atol=1e-12)
    assert torch.allclose(
        run_optimizer(OPTIMIZERS["newton"], P, 1.0, 1), best, atol=1e-12
    )


@pytest.mark.parametrize(
    "make", [PROBLEMS.regression_problem, PROBLEMS.softmax_problem]
)
def test_finite_steps_reach_what_they_define(make):
    P = make()  # for classes W varies, and the distance is measured at the start
    q = P.point(P.theta0)
    for cls in (RULES.ProximalNatural, RULES.RetractedNaturalGradient):
        leaves = P.leaves()

        def closure(leaves=leaves):
            z = P.outputs(flatten(leaves))
            return z, P.loss(z)

        opt = cls(leaves, 0.2, output_metric=P.loss.output_metric)
        opt.step(closure)
        assert opt.converged
        new = P.point(flatten([t.detach() for t in leaves]))
        if cls is RULES.ProximalNatural:
            rest = new.vjp(0.2 * new.dl + q.lower(new.z - q.z))
        else:
            target = q.z - 0.2 * q.jvp(q.solve(q.g))
            rest = new.vjp(q.lower(new.z - target))
        assert float(rest.norm()) < 1e-12 * float(q.g.norm())


# ---- every part of the loss, every option, the loss's own metric ---------------------

SMALL = {
    "x": torch.tensor(np.random.default_rng(1).standard_normal((6, 3))),
    "y": torch.tensor(np.random.default_rng(2).standard_normal((6, 2))),
}


def regression(loss=None, penalty=None):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    init_(net, 0, bias_scale=0.3)

    def closure():
        z = net(SMALL["x"])
        value = 0.5 * (z - SMALL["y"]).square().sum() / 6 if loss is None else loss(z)
        return z, value if penalty is None else value + penalty(net)

    return net, closure


def displacement(net, closure, build):
    start = flatten([p.detach() for p in net.parameters()]).clone()
    build(net).step(closure)
    return flatten([p.detach() for p in net.parameters()]) - start, start


@pytest.mark.parametrize(
    ("penalty", "gradient"),
    [
        (lambda net: 0.3 * sum(p.square().sum() for p in net.parameters()), 0.6),
        (lambda net: 0.3 * net[0].weight.square().sum(), 0.6),
        (lambda net: net[2].bias.sum(), None),
    ],
)
@pytest.mark.parametrize("of", [lambda net: net, lambda net: list(net.parameters())])
def test_a_penalty_on_the_weights_enters_the_step(of, penalty, gradient):
    net, closure = regression()
    plain, w = displacement(
        net, closure, lambda n: NaturalGradient(of(n), 0.1, damping=0.2)
    )
    net, closure = regression(penalty=penalty)
    both, _ = displacement(
        net, closure, lambda n: NaturalGradient(of(n), 0.1, damping=0.2)
    )
    net, _ = regression()
    g = torch.autograd.grad(
        penalty(net), list(net.parameters()), materialize_grads=True
    )
    F = PullbackMetric(net, SMALL["x"]).at(w).dense()
    step = torch.linalg.solve(F + 0.2 * torch.eye(len(w), dtype=F.dtype), flatten(g))
    assert torch.allclose(both - plain, -0.1 * step, rtol=1e-9, atol=1e-12)
    assert float(step.norm()) > 0.01


@pytest.mark.parametrize(
    "build", [NaturalMomentum, RULES.FunctionMomentum, RULES.ProximalNatural]
)
def test_an_optimizer_driven_by_outputs_alone_refuses_a_penalty(build):
    net, closure = regression(penalty=lambda net: net[0].weight.square().sum())
    with pytest.raises(ValueError, match="does not pass through the outputs"):
        build(net, 0.1).step(closure)


@pytest.mark.parametrize(
    ("build", "options", "named"),
    [
        (NaturalGradient, {"nesterov": True}, "nesterov"),
        (NaturalGradient, {"dampng": 0.1}, "dampng"),
        (NaturalGradient, {"friction": 0.1}, "friction"),
        (NaturalMomentum, {"betas": (0.9, 0.99)}, "betas"),
        (KFAC, {"kl_clip": 1e-3}, "kl_clip"),
    ],
)
def test_an_option_that_it_does_not_have_is_refused(build, options, named):
    with pytest.raises(TypeError, match=f"unknown options .*{named}"):
        build(regression()[0], 0.1, **options)


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (lambda z: nn.functional.cross_entropy(z, torch.arange(6) % 2), Categorical()),
        (
            lambda z: nn.functional.nll_loss(z.log_softmax(1), torch.arange(6) % 2),
            Categorical(),
        ),
        (
            lambda z: nn.functional.binary_cross_entropy_with_logits(
                z, SMALL["y"].sigmoid()
            ),
            Bernoulli(),
        ),
        (lambda z: nn.functional.mse_loss(z, SMALL["y"]), Euclidean()),
    ],
)
def test_the_metric_follows_from_the_loss(loss, metric):
    steps = []
    for given in (None, metric):
        net, closure = regression(loss)
        steps.append(
            displacement(
                net,
                closure,
                lambda n, g=given: NaturalGradient(
                    n, 0.1, damping=0.1, output_metric=g
                ),
            )[0]
        )
    assert torch.equal(*steps)
