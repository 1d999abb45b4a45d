"""Nothing in the library mixes devices: shown without a GPU, by tensors with a tag."""

import copy

import pytest
import torch
from chapter_experiments import chapter_module
from fake_device import CPU, GPU, Elsewhere, FakeDevice
from torch import nn

from geolib import geodesics as geo
from geolib import inverse_stability as stab
from geolib import naturality as nat
from geolib import regimes
from geolib import stratifolds as st
from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    integrate,
    normal,
)
from geolib.core.solve_cost import GPU_CALL
from geolib.geodesics import LEARNERS
from geolib.networks import Table, Task, align, lenet, mlp, recalibrate

BASELINES = chapter_module("geodesics", "pruners")
VARIANTS = chapter_module("geodesics", "variants")
RIVALS = chapter_module("geodesics", "rivals").RIVALS
WALK = chapter_module("geodesics", "walk")
LOGIT = chapter_module("stratifolds", "logit").Logit
CERTIFICATE = chapter_module("geodesics", "certificate")
LENGTHS = chapter_module("geodesics", "path_lengths")
CONTROLS = chapter_module("naturality", "controls").CONTROLS
NATURAL_RULES = chapter_module("naturality", "natural_rules")
PRUNERS = BASELINES.METHODS | VARIANTS.PRUNING_VARIANTS
KNOWN = LEARNERS | RIVALS | VARIANTS.LEARNER_VARIANTS


@pytest.fixture(autouse=True)
def device():
    with FakeDevice() as mode:
        yield mode


def there(shape, seed, dtype=torch.float64):
    return normal(shape, seed, dtype=dtype).to("cuda")


def classes(n, c=3):
    return torch.arange(n, device="cuda") % c


def net(widths=(5, 6, 3), activation=nn.Tanh):
    return mlp(widths, activation=activation).to("cuda")


# ---- the check itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, y: x + y,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x @ y.mT,
        lambda x, y: y.numpy(),
        lambda x, y: x[y[:, 0] > 0],
        lambda x, y: y.__setitem__([0, 1, 2, 3], x),
        lambda x, y: x * y[0, 0],
        lambda x, y: x[0, 0].add_(y[0, 0]),
        lambda x, y: setattr(y, "grad", x),
        lambda x, y: y.normal_(generator=torch.Generator()),
        lambda x, y: nn.Linear(3, 2, dtype=x.dtype)(y),
        lambda x, y: torch.func.vmap(lambda r: r @ x.mT)(y),
    ],
)
def test_two_devices_are_refused(mixed):
    x, y = normal((4, 3), 0), there((4, 3), 1)
    with pytest.raises(Elsewhere):
        mixed(x, y)


def test_what_a_gpu_allows():
    x, y = normal((4, 3), 0), there((4, 3), 1)
    x[:] = y  # slices copy, an index on the CPU is good everywhere
    allowed = [y[torch.tensor([0, 1])], y * x[0, 0], x.type_as(y), y.new_tensor([1])]
    assert all(t.device == GPU for t in allowed)
    assert x.device == x[0 * y.argmax()].device == CPU
    torch.cuda.synchronize()


def test_what_was_patched_is_put_back():
    def patched():
        return [nn.Parameter.__new__, torch.cuda.mem_get_info, torch.cuda.synchronize]

    before = patched()
    with FakeDevice():
        assert not any(a is b for a, b in zip(patched(), before, strict=True))
    with pytest.raises(Elsewhere), FakeDevice():
        there(3, 0).numpy()
    assert all(a is b for a, b in zip(patched(), before, strict=True))


def test_the_tag_is_kept():
    module = net()
    x = there((4, 5), 1)
    z, dz = torch.func.jvp(module, (x,), (x,))
    (g,) = torch.func.vjp(module, x)[1](z)
    kept = [*module.parameters(), *copy.deepcopy(module).parameters(), z, dz, g]
    kept += [x.new_zeros(2), torch.zeros(2, device="cuda"), x[[0, 1]], x.to(torch.int)]
    kept.append(torch.func.vmap(lambda r: 2 * r)(x))
    assert all(t.device == GPU for t in kept)
    assert x.cpu().device == torch.zeros(2).device == CPU


# ---- the core ------------------------------------------------------------------------


@pytest.mark.parametrize("output", [Categorical(), Bernoulli(), Euclidean()])
def test_the_metric(output):
    x, R = there((40, 5), 1), Realization(net())
    v = there((R.p,), 2)
    G = PullbackMetric(R, x, output).at(R.theta0)
    assert (G @ v).device == G.dense().device == GPU
    assert R.linearize(R.theta0, x).jacobian().device == GPU
    assert G.spectrum(5).values.device == GPU
    assert 0 < G.rank() <= R.p
    assert G.problem_size.call == GPU_CALL


@pytest.mark.slow_for("12-nystrom", "12-cg")
@pytest.mark.parametrize("method", ["cholesky", "woodbury", "nystrom", "cg", "auto"])
@pytest.mark.parametrize("batch", [None, 12])
def test_a_solve(method, batch):
    x, R = there((24, 5), 1), Realization(net())
    G = PullbackMetric(R, x, Categorical(), batch_size=batch).at(R.theta0)
    found = G.solve(there((R.p,), 2), damping=1e-3, method=method)
    assert found.x.device == GPU


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_flow(method):
    plan = {"step": 0.1} if method == "rk4" else {}
    found = integrate(
        lambda t, y: -y * t, there((3,), 1), [0.0, 1.0], method=method, **plan
    )
    assert found.states.device == GPU


@pytest.mark.slow_for("cg")
@pytest.mark.parametrize("method", ["woodbury", "nystrom", "cg"])
def test_a_solve_with_convolutions(method):
    R = Realization(lenet(side=8, widths=(2, 3, 4)).to("cuda"))
    G = PullbackMetric(R, there((20, 1, 8, 8), 1), Categorical()).at(R.theta0)
    assert G.solve(there((R.p,), 2), damping=1e-3, method=method).x.device == GPU


# ---- geodesics -----------------------------------------------------------------------


def rows(shape, dtype=torch.float64):
    x, y = there(shape, 3, dtype), classes(shape[0])
    return Table(x, y, x, y, x, y)


@pytest.mark.parametrize("method", ["line", "curve", "geodesic"])
def test_paths(method):
    a, b = net(), mlp((5, 6, 3), 1, nn.Tanh).to("cuda")
    data = rows((30, 5))
    plan = {"curve": {"labels": data.y, "steps": 3}, "geodesic": {"steps": 3}}
    found = geo.connect(a, b, data.x, method=method, **plan.get(method, {}))
    assert found.path.a.device == GPU
    assert next(found.module(0.5).parameters()).device == GPU
    found.profile(data.x_val, data.y_val, 3)


SHORT = {
    "one-shot": {},
    "surgeon": {},
    "metric path, then labels": {"steps": 20, "path": {"steps": 3}},
}


@pytest.mark.parametrize("name", PRUNERS)
def test_sparse_networks(name):
    R = Realization(net())
    plan = SHORT.get(name, {"steps": 6})
    found = PRUNERS[name](R, R.theta0, rows((60, 5)), 0.5, **plan)
    assert found.weights.device == GPU


@pytest.mark.slow_for("class-*")
@pytest.mark.parametrize("method", KNOWN)
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_sequences(method, scenario):
    x, y = there((40, 5), 1), classes(40, 2)
    tasks = [Task(x, y + k, x, y + k, (k, k + 1)) for k in (0, 2)]
    found = geo.learn_sequence(
        net((5, 6, 4)),
        tasks,
        KNOWN[method],
        scenario=scenario,
        memory=4,
        gradient_evaluations=640,
    )
    assert found.weights.device == GPU


@pytest.mark.slow
def test_the_study_of_vgg(tmp_path):
    experiments = chapter_module("geodesics", "experiments")
    plan = {"width": 1 / 32, "steps": 2, "batch": 8, "bends": 1, "walk": 4, "grid": 3}
    data = rows((24, 3, 32, 32), torch.float32)
    found = experiments.vgg_study(
        data, tmp_path, sparsities=(0.5,), device="cuda", **plan
    )
    assert len(found["paths"]) == 4


def relu():
    return mlp((5, 6, 6, 3)).to("cuda").eval()


CHANGED = {
    "align": lambda: align(relu(), relu()).module,
    "canonicalize": lambda: stab.canonicalize(relu()).module,
    "random_gauge": lambda: stab.random_gauge(relu()),
    "sparsify": lambda: (
        geo.sparsify(relu(), there((20, 5), 1), 0.5, structured=True, steps=3).module
    ),
    "recalibrate": lambda: recalibrate(
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double().to("cuda").eval(),
        there((20, 5), 1),
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_modules(name):
    found = CHANGED[name]()
    assert all(t.device == GPU for t in found.state_dict().values())


@pytest.mark.parametrize("space", ["sphere", "logit"])
def test_walks_and_shots(space):
    S = geo.FunctionSpace(net(), there((20, 5), 1), space=space)
    w = S.realization.theta0
    found = geo.geodesic(
        S, w, 1.1 * w, basis=geo.SineBasis(3), optimizer="lbfgs", steps=2
    )
    shot = geo.exponential_map(S, w, 0.01 * w, steps=2, tol=10.0)
    walk = WALK.invariant_walk(S, w, torch.ones_like(w), "corrected", steps=2)
    for moved in (found.path.control, shot.end, walk.points):
        assert moved.device == GPU
    assert LENGTHS.lengths(S, found.path, grid=5).speed.device == GPU
    CERTIFICATE.certify_path(S, geo.WeightPath(w, 1.1 * w), grid=5)


# ---- stratifolds ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "chart",
    [
        st.mixture_a().chart,
        chapter_module("stratifolds", "logit").Logit(st.mixture_a().chart),
        st.MixtureTube(0.1),
    ],
)
@pytest.mark.parametrize("method", ["gd", "ngd"])
def test_descents(chart, method):
    A = st.mixture_a()
    goal = A.objective(torch.tensor([0.3, 2.0], dtype=torch.float64, device="cuda"))
    theta = A.sample_stratum(2, 6, seed=1).to("cuda")
    found = st.descend(
        goal, chart, chart.to_chart(theta), method=method, lr=0.1, damping=1e-2, steps=5
    )
    assert found.hitting_time.device == GPU
    chapter_module("stratifolds", "location_em").em(
        goal, A.chart.embed(theta), fixed=[0], steps=3
    )


def test_normal_cones():
    A = st.mixture_a()
    goal = A.objective(torch.tensor([0.3, 2.0], dtype=torch.float64, device="cuda"))
    theta = A.sample_stratum(1, 6, seed=1).to("cuda")
    for stratum in A.strata:
        cone = stratum.normal_expansion(theta, lambda t: goal.value(A.chart.embed(t)))
        assert cone.curvature.device == GPU


@pytest.mark.parametrize("chart", ["raw", "central", "prony"])
@pytest.mark.parametrize("kernel", ["rbf", "erf"])
def test_two_units(chart, kernel):
    units = chapter_module("stratifolds", "two_units")
    S = units.two_unit_network(kernel)
    goal = S.objective(there((4,), 1))
    chart = S.chart if chart == "raw" else st.resolve(S, kind=chart).chart
    for method in ("gd", "ngd"):
        start, plan = chart.to_chart(there((5, 4), 3)), {"lr": 1e-2, "damping": 1e-2}
        if chart is S.chart:
            plan |= {"surgery": units.PairSurgery(goal), "surgery_every": 1}
        found = st.descend(goal, chart, start, method=method, steps=2, **plan)
        assert found.hitting_time.device == GPU


@pytest.mark.parametrize("fit", [st.em_fit, st.fit_mixture, st.natural_fit])
def test_mixtures(fit):
    unit = torch.eye(2, dtype=torch.float64, device="cuda")
    start = st.GaussianMixture(
        unit[0] / 2 + 0.25, there((2, 2), 1), unit.repeat(2, 1, 1)
    )
    points = start.sample(40)
    assert points.device == GPU
    assert fit(points, start, max_iter=3).mixture.covariances.device == GPU


@pytest.mark.parametrize("way", ["grid", "mala"])
def test_learning_coefficients(way):
    to = {"dtype": torch.float64, "device": "cuda"}
    low, high = torch.tensor([[0.0, -3.0], [1.0, 3.0]], **to)
    goal = st.MixtureKL(torch.tensor([1.0, 0.0], **to), data=there((50,), 1))
    plan = {
        "grid": {"points": [24, 24]},
        "mala": {
            "sampler": "mala",
            "theta0": torch.tensor([[0.5, 0.1], [0.4, 0.0]], **to),
            "steps": 20,
        },
    }[way]
    loss = st.ChartLoss(goal, st.mixture_a().chart)
    st.learning_coefficient(loss, 50, low, high, base=0.0, **plan)


def test_strata_and_surgery_of_a_network():
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    module = module.double().to("cuda")
    with torch.no_grad():
        module[0].weight[1] = module[0].weight[0] * 1.001
        module[0].bias[1] = module[0].bias[0]
    x, t = there((40, 5), 1), there((40, 3), 2)
    assert st.find_strata(module, x)
    surgery = st.CollarSurgery(
        module, nn.functional.mse_loss, x, t, every=1, patience=float("inf")
    )
    assert surgery.step()
    assert all(p.device == GPU for p in module.parameters())


# ---- naturality, inverse stability, regimes ------------------------------------------

DAMPED = """FunctionMomentum NaturalAdaGrad NaturalAdam NaturalGradient
NaturalMomentum ProximalNatural RetractedNaturalGradient""".split()


@pytest.mark.slow_for("Retracted*", "Proximal*")
@pytest.mark.parametrize("name", [*DAMPED, "FunctionalLift", "KFAC"])
def test_natural_optimizers(name):
    module, x, t = net(), there((20, 5), 1), there((20, 3), 2)
    if name == "FunctionalLift":
        opt = NATURAL_RULES.FunctionalLift(
            module.parameters(), rule=lambda p: torch.optim.Adam(p, lr=1e-2)
        )
    elif name == "KFAC":
        opt = nat.KFAC(module, 1e-2)
    else:
        opt = getattr(nat, name, getattr(NATURAL_RULES, name, None))(
            module.parameters(), 1e-2, damping=1e-3
        )

    def closure():
        z = module(x)
        return z, 0.5 * (z - t).square().sum() / len(x)

    for _ in range(2):
        opt.step(closure)
    assert all(p.device == GPU for p in module.parameters())


@pytest.mark.slow_for(
    "natural-momentum-covector",
    "covariant-newton",
    "bfgs-natural",
    "muon-polar",
    "shampoo*",
    "sign",
)
@pytest.mark.parametrize(
    "optimizer",
    [
        "adam",
        "kfac",
        "ngd-home-damped",
        "ngd-kfac-damped",
        "bfgs-natural",
        "lion",
        "covariant-newton",
        "heavy-ball-vector",
        "natural-momentum-covector",
        "muon-polar",
        "shampoo-1/4",
        "sign",
    ],
)
def test_defects(optimizer):
    module, x = nat.affine_mlp((2, 3, 2)).to("cuda"), there((12, 2), 1)
    problem = nat.Problem.of(module, x, nat.mse(x.sin()))
    rule = nat.OPTIMIZERS.get(optimizer) or CONTROLS[optimizer]
    for phi in nat.standard_suite(module, problem.theta0).values():
        nat.naturality_defect(
            rule, phi, problem, step_sizes=[0.25, 0.125], horizon=0.25
        )


@pytest.mark.parametrize("mode", ["unrestricted", "projected", "reparametrised"])
def test_restricted_training(mode):
    x = normal((30, 2), 1).numpy()
    (found,) = chapter_module("inverse_stability", "shallow_training").train_shallow(
        x, x[:, :1], 4, mode, steps=5, lr=0.02, seeds=[0], device="cuda"
    )
    assert found.predict(x).shape == (30, 1)


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("sizes", [(6, 6, 40), (6, 40, 6)])
def test_simulated_losses(sizes, target):
    setup = regimes.Setup(*sizes, 1 / 6)
    run = regimes.simulate(
        setup, setup.times(4), seeds=[0], target=target, device="cuda"
    )
    assert run.train.shape == (1, 4)
