"""The optimizers, against closed forms, each other and torch."""

import copy
import math

import numpy as np
import pytest
import torch
from naturality_chapter import EXPERIMENTS
from torch import nn

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    init_,
)
from geolib.naturality import (
    KFAC,
    OPTIMIZERS,
    FirstOrderRule,
    FunctionalLift,
    FunctionMomentum,
    GeodesicNaturalGradient,
    LocalGeometry,
    Loss,
    NaturalAdaGrad,
    NaturalAdam,
    NaturalGradient,
    NaturalMomentum,
    OptimizerSpec,
    Problem,
    ProximalNatural,
    RetractedNaturalGradient,
    affine_mlp,
    cross_entropy,
    linear_model,
    mse,
    regression_problem,
    run_optimizer,
    softmax_problem,
    standard_suite,
)
from geolib.naturality.affine_layers import AffineLayer, in_chart
from geolib.naturality.kfac import KFACDampedNatural, kronecker
from geolib.naturality.local_geometry import flatten
from geolib.naturality.momentum import HeavyBall, NaturalCovectorMomentum
from geolib.naturality.newton import BFGS
from geolib.naturality.tensorwise import Lion, PolarMuon, Shampoo, SignSGD

OURS = {
    "natural": lambda p: NaturalGradient(p, 0.1),
    "damped": lambda p: NaturalGradient(p, 0.1, damping=0.1),
    "midpoint": lambda p: NaturalGradient(p, 0.1, integrator="midpoint"),
    "geodesic": lambda p: GeodesicNaturalGradient(p, 0.1),
    "covariant-newton": lambda p: FirstOrderRule(p, 0.1, rule="covariant-newton"),
    "bfgs": lambda p: BFGS(p, 0.1),
    "momentum": lambda p: NaturalMomentum(p, 0.1),
    "covector": lambda p: NaturalCovectorMomentum(p, 0.1),
    "function": lambda p: FunctionMomentum(p, 0.1),
    "adam": lambda p: NaturalAdam(p, 0.1),
    "adagrad": lambda p: NaturalAdaGrad(p, 0.1),
    "proximal": lambda p: ProximalNatural(p, 0.1),
    "retraction": lambda p: RetractedNaturalGradient(p, 0.1),
    "lift": lambda p: FunctionalLift(p, rule=lambda z: torch.optim.Adam(z, 0.1)),
    "unconnected": lambda p: NaturalMomentum(p, 0.1, connection=False),
    "rk4": lambda p: NaturalGradient(p, 0.1, integrator="rk4"),
    "newton": lambda p: FirstOrderRule(p, 0.1, rule="newton"),
    "heavy-ball": lambda p: HeavyBall(p, 0.1),
    "minibatch": lambda p: EXPERIMENTS.MinibatchNatural(p, 0.1, batch=8),
}


def setting(seed=12):
    P = regression_problem(seed)
    leaves = P.leaves()

    def closure():
        z = P.outputs(flatten(leaves))
        return z, P.loss(z)

    return P, leaves, closure


@pytest.mark.slow_for("proximal")
@pytest.mark.parametrize("name", OURS)
def test_every_optimizer_learns_and_resumes_from_its_state(name):
    _, leaves, closure = setting()
    opt = OURS[name](leaves)
    first = float(opt.step(closure))
    for _ in range(4):
        opt.step(closure)
    state = copy.deepcopy(opt.state_dict())
    middle = [t.detach().clone() for t in leaves]
    for _ in range(5):
        last = float(opt.step(closure))
    assert last < 0.8 * first
    end = flatten([t.detach() for t in leaves])
    fresh = OURS[name](leaves)
    fresh.load_state_dict(state)
    with torch.no_grad():
        for t, m in zip(leaves, middle, strict=True):
            t.copy_(m)
    for _ in range(5):
        fresh.step(closure)
    assert torch.equal(flatten([t.detach() for t in leaves]), end)


def network(seed=0):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return init_(module, seed=seed)


DATA = [torch.tensor(np.random.default_rng(5).standard_normal((40, k))) for k in (3, 2)]
FROM_MODULE = {
    **{k: f for k, f in OURS.items() if k not in ("newton", "covariant-newton")},
    "kfac": lambda m: KFAC(m, 0.1, damping=0.1),
    "kfac-damped": lambda m: KFACDampedNatural(m, 0.1),
}


def fit(module, opt, steps, n=40):
    x, y = (t[:n] for t in DATA)

    def closure():
        z = module(x)
        return z, mse(y)(z)

    for _ in range(steps):
        opt.step(closure)
    return torch.cat([t.detach().reshape(-1) for t in module.parameters()])


@pytest.mark.slow_for("proximal", "retraction")
@pytest.mark.parametrize("name", FROM_MODULE)
def test_optimizers_made_from_a_module_resume_and_copy(name):
    module = network()
    opt = FROM_MODULE[name](module)
    fit(module, opt, 2)
    twin, twin_opt = copy.deepcopy((module, opt))
    other = copy.deepcopy(module)
    fresh = FROM_MODULE[name](other)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    end = fit(module, opt, 2)
    assert torch.equal(fit(twin, twin_opt, 2), end)
    assert torch.equal(fit(other, fresh, 2), end)
    assert not torch.equal(end, fit(network(), FROM_MODULE[name](network()), 0))


SAME = [(k, 0.01, 9) for k in OURS if "newton" not in k and k != "bfgs"]
SAME += [(k, 0.0, 40) for k in OURS if k not in ("newton", "proximal", "retraction")]


@pytest.mark.slow_for("retraction-0.01-*", "proximal-0.01-*")
@pytest.mark.parametrize(("name", "damping", "n"), SAME)
def test_a_module_and_its_parameters_give_the_same_steps(name, damping, n):
    # core's solve (in parameters or functions) against the dense eigendecomposition
    ends = []
    for from_module in (True, False):
        module = network()
        opt = OURS[name](module if from_module else module.parameters())
        opt.options["damping"] = damping
        ends.append(fit(module, opt, 3, n))
        used = opt.solution is not None
        dense = ("covariant-newton", "minibatch", "heavy-ball", "bfgs")
        assert used == (from_module and name not in dense)
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-7)


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

    rates = {NaturalGradient: 0.1, GeodesicNaturalGradient: 0.1, NaturalMomentum: 0.1}
    for cls, lr in {**rates, NaturalAdam: 1e-3}.items():
        opt = cls(module, lr, damping=0.01)
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
        NaturalGradient(module).step(lambda: closure("other"))
    with pytest.raises(ValueError, match="one call of the module"):
        NaturalGradient(module).step(lambda: closure("scaled"))
    NaturalGradient(module).step(lambda: closure("part"))  # a batch is no trouble
    with pytest.raises(ValueError, match="no trainable parameters"):
        NaturalGradient(nn.ReLU())
    with pytest.raises(ValueError, match="Dropout"):
        NaturalGradient(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not module._forward_hooks


def test_learning_rate_schedules_and_groups():
    module = network()
    opt = NaturalGradient(module, 0.4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    ends = [fit(module, opt, 0)]
    for _ in range(2):
        ends.append(fit(module, opt, 1))
        schedule.step()
    assert float((ends[2] - ends[1]).norm()) < 0.6 * float((ends[1] - ends[0]).norm())
    with pytest.raises(ValueError, match="one group"):
        opt.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    sign = SignSGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}])
    (a + b).sum().backward()
    sign.step()
    assert (a.item(), b.item()) == (0.0, 0.5)


def test_gradients_that_are_sparse_or_not_finite_are_refused():
    table = nn.Embedding(5, 2, sparse=True).double()
    index = torch.tensor([0, 1, 1])

    def closure():
        z = table(index)
        return z, 0.5 * (z**2).sum() / 3

    with pytest.raises(ValueError, match="sparse gradient"):
        NaturalGradient(table.parameters()).step(closure)
    closure()[1].backward()
    for cls in (SignSGD, Lion, PolarMuon, Shampoo):
        with pytest.raises(ValueError, match="expected a dense tensor"):
            cls(table.parameters(), 0.1).step()
    w = torch.ones(2, 2, requires_grad=True)
    w.grad = torch.full((2, 2), torch.inf)
    with pytest.raises(ValueError, match="finite"):
        SignSGD([w], 0.1).step()
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="theta"):
        fit(module, NaturalGradient(module), 1)
    with pytest.raises(ValueError, match="finite scalar loss"):
        fit(module, NaturalGradient(module.parameters()), 1)


def linear(seed=0):
    rng = np.random.default_rng(seed)
    X = torch.tensor(rng.standard_normal((20, 4)))
    y = torch.tensor(rng.standard_normal((20, 1)))
    P = linear_model(X, y, torch.tensor(rng.standard_normal((1, 4))))
    best = torch.linalg.lstsq(X, y).solution[:, 0]
    return P, best


def bent(P):
    """The linear model in coupling coordinates: the flow is known, not straight."""
    phi = standard_suite(affine_mlp([3, 1]), P.theta0)["coupling"]
    return phi


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["natural-momentum", "natural-momentum-covector", "function-momentum"]
)
def test_momentum_is_the_damped_oscillator(name):
    # x'' + x' + (x - best) = 0 for each coordinate of the linear model
    P, best = linear()
    s = OPTIMIZERS[name]
    w = math.sqrt(0.75)

    def exact(v0, t=1.0):
        u0 = P.theta0 - best
        c = (v0 + 0.5 * u0) / w
        return best + math.exp(-0.5 * t) * (u0 * math.cos(w * t) + c * math.sin(w * t))

    v0 = s.velocity(P, None)
    v0 = torch.zeros_like(best) if v0 is None else v0
    if name.endswith("covector"):
        v0 = torch.linalg.solve(P.point(P.theta0).F, v0)
    ends = [
        float((run_optimizer(s, P, 1 / k, k, bent(P)) - exact(v0)).norm())
        for k in (64, 128)
    ]
    assert 0.85 < math.log2(ends[0] / ends[1]) < 1.15
    assert ends[1] < 0.05


@pytest.mark.slow
def test_a_free_particle_moves_straight_and_without_connection_does_not():
    P, _ = linear()
    no_force = Loss(lambda z: 0.0 * z.sum(), Euclidean())
    free = Problem(P.outputs, no_force, P.theta0, P.shapes)
    gaps = {}
    for connection in (True, False):
        s = OptimizerSpec(
            "free",
            lambda p, h, run, c=connection: NaturalMomentum(
                p, h, friction=0.0, initial=run.initial, connection=c
            ),
            "vector",
        )
        straight = P.theta0 + s.velocity(free, None)
        gaps[connection] = [
            float((run_optimizer(s, free, 1 / k, k, bent(P)) - straight).norm())
            for k in (32, 64)
        ]
    assert 0.9 < math.log2(gaps[True][0] / gaps[True][1]) < 1.1
    assert gaps[False][1] > 10 * gaps[True][1]
    assert abs(math.log2(gaps[False][0] / gaps[False][1])) < 0.3


def test_lifted_sgd_is_natural_gradient():
    P, leaves, closure = setting()
    opt = FunctionalLift(leaves, rule=lambda z: torch.optim.SGD(z, 0.05))
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


@pytest.mark.parametrize("make", [regression_problem, softmax_problem])
def test_finite_steps_reach_what_they_define(make):
    P = make()  # for classes W varies, and the distance is measured at the start
    q = P.point(P.theta0)
    for cls in (ProximalNatural, RetractedNaturalGradient):
        leaves = P.leaves()

        def closure(leaves=leaves):
            z = P.outputs(flatten(leaves))
            return z, P.loss(z)

        opt = cls(leaves, 0.2, output_metric=P.loss.output_metric)
        opt.step(closure)
        assert opt.converged
        new = P.point(flatten([t.detach() for t in leaves]))
        if cls is ProximalNatural:
            rest = new.vjp(0.2 * new.dl + q.lower(new.z - q.z))
        else:
            target = q.z - 0.2 * q.jvp(q.solve(q.g))
            rest = new.vjp(q.lower(new.z - target))
        assert float(rest.norm()) < 1e-12 * float(q.g.norm())


def test_natural_adagrad_and_adam_first_steps_by_hand():
    P, _, _ = setting()
    q = P.point(P.theta0)
    n = q.solve(q.g)
    unit = n / torch.dot(q.g, n).sqrt()
    for cls, options in ((NaturalAdaGrad, {"eps": 0.0}), (NaturalAdam, {"eps": 0.0})):
        leaves = P.leaves()

        def closure(leaves=leaves):
            z = P.outputs(flatten(leaves))
            return z, P.loss(z)

        cls(leaves, 0.1, **options).step(closure)
        step = flatten([t.detach() for t in leaves]) - P.theta0
        assert torch.allclose(step, -0.1 * unit, atol=1e-12)


def test_kfac_factors_of_linear_and_homogeneous_layers_agree():
    rng = np.random.default_rng(0)
    h = affine_mlp([3, 4, 2], seed=1)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for k, layer in ((0, plain[0]), (2, plain[2])):
            layer.weight.copy_(h[k].weight[:, :-1])
            layer.bias.copy_(h[k].weight[:, -1])
    x = torch.tensor(rng.standard_normal((30, 3)))
    y = torch.tensor(rng.standard_normal((30, 2)))
    for cls in (KFAC, KFACDampedNatural):
        ends = []
        for m in (copy.deepcopy(h), copy.deepcopy(plain)):
            opt = cls(m, 0.1, damping=0.1)

            def closure(m=m):
                z = m(x)
                return z, mse(y)(z)

            for _ in range(3):
                opt.step(closure)
            ends.append(m(x).detach())
        assert torch.allclose(*ends, atol=1e-12)
    q, K = kfac_factors(plain, x, mse(y))
    pairs = zip(K.pairs, K.split(q.g), strict=True)
    solved = [
        torch.linalg.solve(B, torch.linalg.solve(A, G.T).T) for (B, A), G in pairs
    ]
    dense = K.dense()
    assert torch.allclose(torch.linalg.solve(dense, q.g), K.join(solved), rtol=1e-6)
    # a single sample: the Kronecker form is exact, layer by layer
    single, K = kfac_factors(plain, x[:1], mse(y[:1]))
    assert torch.allclose(K.dense()[:16, :16], single.F[:16, :16], atol=1e-12)


def kfac_factors(module, x, loss):
    """The geometry of a module's call, and core's factors of it."""
    with Realization(module).recording() as record:
        z = module(x)
    L = record.linearization()
    leaves = list(module.parameters())
    q = LocalGeometry(z, loss(z), leaves, loss.output_metric, linearization=L)
    return q, kronecker(q)


def factors_by_hooks(module, x, loss):
    """The factors by their definition: each layer's inputs and output gradients."""
    layers, seen = [m for m in module if list(m.parameters())], {}

    def note(m, args, out):
        seen[m] = (args[0].detach(), out)

    hooks = [m.register_forward_hook(note) for m in layers]
    z = module(x)
    for hook in hooks:
        hook.remove()
    W = loss.output_metric.at(z.detach(), slice(0, len(z))).dense(z.shape[1]) / len(z)
    sums = [seen[m][1] for m in layers]
    rows = [torch.autograd.grad(z[:, k].sum(), sums, retain_graph=True) for k in (0, 1)]
    pairs = []
    for k, m in enumerate(layers):
        a, G = seen[m][0], torch.stack([row[k] for row in rows], dim=1)
        if isinstance(m, AffineLayer):
            a, G = m.features(a), G if m.left is None else G @ m.left
        else:
            a = torch.cat([a, torch.ones(len(a), 1).double()], dim=1)
        B = torch.einsum("nia,nij,njb->ab", G, W, G)
        pairs.append((B, a.T @ a / len(a)))
    return pairs


def kfac_cases():
    x, y = DATA
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    init_(plain, 3)
    labels = (y[:, 0] > 0).long()
    P, S = regression_problem(), softmax_problem()
    there = standard_suite(P.module, P.theta0)["layer-affine"].layers
    return {
        "linear": (plain, x, mse(y)),
        "linear-softmax": (plain, x, cross_entropy(labels)),
        "affine": (in_chart(P.module, None), P.data, P.loss),
        "affine-chart": (in_chart(P.module, there), P.data, P.loss),
        "softmax-chart": (in_chart(S.module, there), S.data, S.loss),
    }


@pytest.mark.parametrize("case", list(kfac_cases()))
def test_core_factors_are_those_of_the_layers_and_steps_follow(case):
    module, x, loss = kfac_cases()[case]
    q, K = kfac_factors(module, x, loss)
    expected, root, steps = factors_by_hooks(module, x, loss), 0.1**0.5, []
    for (B, A), (b, a), G in zip(K.pairs, expected, K.split(q.g), strict=True):
        assert float((B - b).norm()) < 1e-13 * float(b.norm())
        assert float((A - a).norm()) < 1e-13 * float(a.norm())
        pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
        a = a + pi * root * torch.eye(len(a)).double()
        b = b + root / pi * torch.eye(len(b)).double()
        steps.append(torch.linalg.inv(b) @ G @ torch.linalg.inv(a))
    start = flatten(list(module.parameters())).detach()
    opt = KFAC(module, 0.1, damping=0.1, output_metric=loss.output_metric)

    def closure():
        z = module(x)
        return z, loss(z)

    opt.step(closure)
    moved = flatten(list(module.parameters())).detach() - start
    assert torch.allclose(moved, -0.1 * K.join(steps), atol=1e-13)


def test_euclidean_rules_by_hand():
    G = torch.tensor([[3.0, 0.0], [0.0, -2.0]], dtype=torch.float64)

    def stepped(cls, **options):
        x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        x.grad = G.clone()
        cls([x], lr=1.0, **options).step()
        return x.detach()

    assert torch.equal(stepped(SignSGD), -G.sign())
    assert torch.equal(stepped(Lion), -G.sign())
    assert torch.allclose(stepped(PolarMuon), -G.sign())
    expected = -G / (0.1 + G**2).sqrt()
    assert torch.allclose(
        stepped(Shampoo, accumulator=0.1), torch.diag(expected.diag()), atol=1e-12
    )


def test_clear_errors():
    _, leaves, closure = setting()
    integer = torch.zeros(2, dtype=torch.int64)
    cases = [
        (lambda: NaturalGradient([]), "at least one parameter"),
        (lambda: NaturalGradient([integer]), "floating-point"),
        (lambda: NaturalGradient([3.0]), "expected tensors"),
        (lambda: NaturalGradient([torch.ones(2).to_sparse()]), "dense"),
        (lambda: NaturalGradient([torch.ones(2), torch.ones(2).double()]), "dtypes"),
        (
            lambda: NaturalGradient([torch.ones(2), torch.ones(2, device="meta")]),
            "devices",
        ),
        (lambda: NaturalGradient([{"params": leaves}, {"params": leaves}]), "group"),
        (lambda: NaturalGradient(leaves, 0.0), "lr"),
        (lambda: NaturalGradient(leaves, damping=-1.0), "damping"),
        (lambda: NaturalGradient(leaves, output_metric="nope"), "metric"),
        (lambda: NaturalGradient(leaves, integrator="nope"), "integrator"),
        (lambda: FirstOrderRule(leaves, rule="nope"), "rule"),
        (lambda: BFGS(leaves, start="nope"), "start"),
        (lambda: NaturalAdam(leaves, betas=(1.0, 0.9)), "betas"),
        (lambda: NaturalMomentum(leaves, friction=-1.0), "friction"),
        (lambda: NaturalMomentum(leaves, initial=torch.ones(3)), "initial"),
        (lambda: ProximalNatural(leaves, iterations=0), "iterations"),
        (lambda: KFAC(leaves).step(closure), "needs the module"),
        (lambda: KFAC(nn.Sequential(nn.ReLU())), "no trainable"),
        (lambda: EXPERIMENTS.MinibatchNatural(leaves, batch=0), "batch"),
        (lambda: KFACDampedNatural(nn.Linear(1, 1), damping=0.0), "damping"),
        (lambda: NaturalGradient(leaves).step(), "closure"),
        (lambda: NaturalGradient(leaves).step(lambda: closure()[1]), "pair"),
        (lambda: SignSGD([], 0.1), "params"),
    ]
    for call, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_a_diverging_step_is_refused_and_leaves_the_parameters():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    opt = FirstOrderRule([x], 0.1, rule="diagonal")

    def closure():
        z = (x * torch.tensor([1.0, 0.0])).sum().view(1, 1) + 1.0
        return z, 0.5 * (z**2).sum()

    with pytest.raises(ValueError, match="not finite"):
        opt.step(closure)
    assert torch.equal(x.detach(), torch.zeros(2).double())


def test_state_indexed_by_samples_refuses_another_batch():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def closure(n):
        z = x.sum() * torch.ones(n, 1).double()
        return z, 0.5 * (z**2).mean()

    for opt in (
        FunctionMomentum([x]),
        FunctionalLift([x], rule=lambda z: torch.optim.SGD(z, 0.1)),
    ):
        opt.step(lambda: closure(3))
        with pytest.raises(ValueError, match="full batch"):
            opt.step(lambda: closure(2))


def test_optimizers_pickle_and_homogeneous_layers_see_charts():
    _, leaves, closure = setting()
    opt = NaturalMomentum(leaves, 0.1)
    opt.step(closure)
    twin = copy.deepcopy(opt)
    assert torch.equal(twin.memory["velocity"], opt.memory["velocity"])
    layer = AffineLayer(torch.ones(2, 3), torch.eye(2), torch.eye(3))
    assert torch.equal(layer(torch.ones(1, 2)), torch.full((1, 2), 3.0))


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


@pytest.mark.parametrize("build", [NaturalMomentum, FunctionMomentum, ProximalNatural])
def test_an_optimizer_driven_by_outputs_alone_refuses_a_penalty(build):
    net, closure = regression(penalty=lambda net: net[0].weight.square().sum())
    with pytest.raises(ValueError, match="does not pass through the outputs"):
        build(net, 0.1).step(closure)


@pytest.mark.parametrize(
    ("build", "options", "named"),
    [
        (NaturalGradient, {"weight_decay": 0.1, "momentum": 0.9}, "momentum"),
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
