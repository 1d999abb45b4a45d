"""Sparse paths, their baselines, and the removal of whole units."""

import copy
import functools

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from geodesics_cases import PRUNERS as BASELINES
from geodesics_cases import PRUNING as PRUNERS
from geodesics_cases import YARDSTICKS, digits, smooth, trained, vector
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from geolib.core import Realization
from geolib.geodesics import (
    FunctionSpace,
    magnitude_mask,
    matrices,
    sparse_path,
    sparsify,
)
from geolib.geodesics.magnitude_masks import cubic_sparsity
from geolib.geodesics.sparse_path import (
    adaptive_mask,
    label_loss,
    metric_diagonal,
    next_damping,
    trained_path,
    tried_step,
)
from geolib.geodesics.structured import (
    removable_units,
    shrink,
    unit_mask,
    unit_scores,
)
from geolib.networks import (
    Table,
    accuracy,
    lenet,
    mlp,
    recalibrate,
    train_module,
    with_batch_statistics,
)

prune_and_finetune = BASELINES.prune_and_finetune
vgg = chapter_module("geodesics", "vgg").vgg


def net_of(seed=0):
    R, w = trained(seed)
    module = copy.deepcopy(R.module)
    Realization(module).load(w)
    return module


def test_mask_is_that_of_torch_prune():
    from torch.nn.utils import prune

    module = net_of()
    R = Realization(module)
    keep = R.unflatten(magnitude_mask(R.theta0, matrices(R), 0.83).double())
    pruned = copy.deepcopy(module)
    targets = [(m, "weight") for m in pruned if isinstance(m, nn.Linear)]
    prune.global_unstructured(targets, prune.L1Unstructured, amount=0.83)
    for name, mask in pruned.named_buffers():
        ours = keep[name.removesuffix("_mask")]
        assert torch.equal(ours, mask), name


@pytest.mark.parametrize("method", sorted(PRUNERS))
def test_every_method_returns_exact_sparsity_and_its_compute(method):
    R, w = trained(0)
    fast = {} if method in ("one-shot", "surgeon") else {"steps": 4, "batch": 32}
    if method == "metric path, then labels":
        fast["path"] = {"steps": 2, "batch": 32, "metric_mask": True}
    found = PRUNERS[method](R, w, digits(), 0.9, **fast)
    mine = matrices(R)
    assert int((~found.mask[mine]).sum()) == round(0.9 * int(mine.sum()))
    assert bool((found.weights[~found.mask] == 0).all())
    assert bool(found.mask[~mine].all())
    expected = {
        "one-shot": 0,
        "surgeon": 102 * 1000,
        "invariant path": 4 * 12 * 32,
        "labels in the metric": 4 * 12 * 32,
        "metric mask": 4 * 13 * 32,
        "metric path, then labels": (2 * 13 + 4) * 32,
        "gradual + labels, metric mask": (4 + 1) * 32,  # one mask, at the end
        "gradual Kronecker OBS + labels": (4 + 1) * 32,  # factors of the first step
    }
    assert found.gradient_evaluations == expected.get(method, 4 * 32)


def test_invariant_path_beats_one_shot_and_the_surgeon():
    R, w = trained(0)
    data = digits()
    score = {
        name: accuracy(R, PRUNERS[name](R, w, data, 0.9).weights, data.x, data.y)
        for name in ("one-shot", "surgeon", "invariant path")
    }
    assert score["invariant path"] > 0.85
    assert score["invariant path"] > 0.3 + max(score["one-shot"], score["surgeon"])


def test_repair_is_the_dense_constrained_solution():
    R, w, x = smooth()
    S = FunctionSpace(R, x)
    free = magnitude_mask(w, matrices(R), 0.5)
    start, target, mu = w * free, S.embed(R(w, x)), 1e-2
    J = torch.func.jacrev(S.at_point)(start)
    r = S.at_point(start) - target.reshape(-1) / len(x) ** 0.5
    JF = J[:, free]
    dense = torch.linalg.solve(JF.T @ JF + mu * torch.eye(JF.shape[1]), JF.T @ r)
    taken = tried_step(S, start, free, torch.arange(len(x)), target, mu, 400)
    assert taken.tries == 1
    assert torch.allclose(taken.weights[free], start[free] - dense, atol=1e-5)
    assert bool((taken.weights[~free] == 0).all())
    # what the step was promised: the fall of the linearised, undamped drift
    fall = (r.square().sum() - (r - JF @ dense).square().sum()) / 2
    won = (r.square().sum().item() - taken.drift**2) / 2
    assert taken.ratio == pytest.approx(won / fall.item(), rel=1e-4)


def test_a_step_that_loses_is_halved_and_damped():
    # tanh(w) at w = 2 is to become 0: the plain step goes to -11.6, half of it to -4.8,
    # both farther from 0 than the start, and a quarter of it to -1.4
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    line = FunctionSpace(net, torch.ones(1, 1).double(), "raw")
    start, rows = torch.tensor([2.0]).double(), torch.tensor([0])
    goal, free = torch.zeros(1, 1).double(), torch.tensor([True])
    taken = tried_step(line, start, free, rows, goal, 1e-12, 5)
    full = start.tanh() / (1 - start.tanh() ** 2)
    assert taken.tries == 3
    assert taken.weights.item() == pytest.approx((start - full / 4).item(), rel=1e-6)
    assert taken.drift == pytest.approx(taken.weights.tanh().abs().item())
    promised, before = start.tanh().item() ** 2 / 2, start.tanh().item() ** 2 / 2
    won = before - (start - full).tanh().item() ** 2 / 2
    assert taken.ratio == pytest.approx(won / promised, rel=1e-4)
    assert next_damping(1e-3, 1e-3, taken.ratio) == 4e-3
    R, w, x = smooth()
    S = FunctionSpace(R, x)
    plain = sparse_path(S, w, 0.5, steps=6, batch=7, damping=1e-9)
    drift = (S.embed(R(plain.weights, x)) - S.embed(R(w, x))).square().sum(1).mean()
    assert plain.drifts[-1] == pytest.approx(drift.sqrt().item())


@pytest.mark.slow
def test_metric_diagonal_against_the_dense_diagonal():
    R, w, x = smooth()
    exact = FunctionSpace(R, x).metric(w).dense().diagonal()
    found = metric_diagonal(FunctionSpace(R, x), w, torch.arange(len(x)), 3000, 0)
    assert torch.allclose(found, exact, rtol=0.2, atol=0.02 * exact.max().item())


def test_masks_are_chosen_on_the_way():
    R, w = trained(0)
    found = sparse_path(FunctionSpace(R, digits().x), w, 0.95, steps=20, batch=128)
    fixed = magnitude_mask(w, matrices(R), 0.95)
    assert int((found.mask != fixed).sum()) > 20
    assert len(found.points) == 21
    assert torch.equal(found.points[0], w)
    assert torch.equal(found.points[-1], found.weights)
    space = FunctionSpace(R, digits().x)
    lean = sparse_path(space, w, 0.95, steps=2, batch=16, trace=False)
    assert len(lean.points) == 1


def test_schedule():
    levels = [cubic_sparsity(0.9, s, 10) for s in range(11)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[7:] == [0.9] * 4
    assert cubic_sparsity(0.8, 35, 100) == pytest.approx(0.8 * (1 - 0.5**3))


def test_sparsify_unstructured():
    module, data = net_of(), digits()
    before = copy.deepcopy(module.state_dict())
    found = sparsify(module, data.x, 0.8)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    R = Realization(found.module)
    assert found.sparsity == pytest.approx(0.8, abs=1e-3)
    zeros = (R.theta0[matrices(R)] == 0).double().mean().item()
    assert zeros >= 0.8 - 1e-3
    assert accuracy(R, R.theta0, data.x_test, data.y_test) > 0.9
    assert found.converged
    shares = YARDSTICKS.density(R, found.mask)
    assert set(shares) == {"1.weight", "3.weight"}


@pytest.mark.parametrize("kind", ["mlp", "conv", "conv-bn", "vgg"])
def test_units_are_really_removed_and_the_function_kept(kind):
    x = torch.from_numpy(digits().x[:20].numpy().copy())
    if kind == "mlp":
        net = mlp([64, 12, 9, 10], 3)
    elif kind == "vgg":
        net = vgg("vgg11", 0, True, width=1 / 32, dtype=torch.float64)
        x = x[:4].view(4, 1, 8, 8).repeat(1, 3, 4, 4)
    else:
        net = lenet(1, side=8, batch_norm=kind == "conv-bn", widths=(4, 6, 12))
        x = x.view(20, 1, 8, 8)
    R = Realization(net)
    scores = unit_scores(net, x)
    assert all(float(s.sum()) == pytest.approx(1) for s in scores)
    kept = [s >= s.median() for s in scores]
    masked = copy.deepcopy(net)
    Realization(masked).load(R.theta0 * unit_mask(R, kept))
    small = shrink(masked, kept)
    with torch.no_grad():
        assert torch.allclose(small(x), masked(x), atol=1e-12)
    fewer = sum(p.numel() for p in small.parameters())
    assert fewer < 0.6 * R.p
    assert len(removable_units(small)) == len(kept)


def test_sparsify_structured_returns_a_smaller_module():
    module, data = net_of(), digits()
    found = sparsify(module, data.x, 0.5, structured=True)
    assert found.module[1].weight.shape == (8, 64)
    R = Realization(found.module)
    assert accuracy(R, R.theta0, data.x_test, data.y_test) > 0.85
    assert found.sparsity == 0.5


def test_unit_scores_see_what_a_unit_does_to_the_next_layer():
    net = mlp([4, 3, 2], 0)
    x = torch.eye(4, dtype=torch.float64)
    h = torch.relu(net[1](x))
    full = h @ net[3].weight.T
    exact = []
    for j in range(3):
        cut = h.clone()
        cut[:, j] = 0
        gap = full - cut @ net[3].weight.T
        exact.append(gap.square().sum(1).mean())
    exact = torch.stack(exact)
    assert torch.allclose(unit_scores(net, x)[0], exact / exact.sum())


@pytest.mark.parametrize("level", [1.0, -0.1, 1.5, float("nan"), True])
def test_bad_levels(level):
    with pytest.raises(ValueError, match=r"sparsity: expected a share of zeros"):
        sparsify(mlp([2, 3, 2]), torch.ones(4, 2).double(), level)


def test_other_faults():
    x = torch.ones(4, 2).double()
    net = mlp([2, 3, 2])
    with pytest.raises(ValueError, match="data: expected finite"):
        sparsify(net, x * float("nan"), 0.5)
    with pytest.raises(ValueError, match="data: expected a tensor of at least one"):
        sparsify(net, x[:0], 0.5)
    broken = mlp([2, 3, 2])
    broken[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        sparsify(broken, x, 0.5)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    own = Own().double()
    assert sparsify(own, x, 0.5, steps=3).sparsity == pytest.approx(0.5)
    small = sparsify(own, x, 0.5, structured=True, steps=3).module
    assert (small.a.out_features, small.b.in_features) == (2, 2)
    with pytest.raises(ValueError, match="eval"):
        sparsify(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double(), x, 0.5)


def test_ideas_change_the_path():
    R, w = trained(0)
    plan = {"steps": 6, "batch": 64}
    plain = PRUNERS["invariant path"](R, w, digits(), 0.9, **plan)
    scored = PRUNERS["metric mask"](R, w, digits(), 0.9, **plan)
    pulled = PRUNERS["labels in the metric"](R, w, digits(), 0.9, labels=0.3, **plan)
    assert int((plain.mask != scored.mask).sum()) > 20
    assert not torch.allclose(plain.weights, pulled.weights)
    assert 6 * 13 * 64 <= scored.gradient_evaluations <= 6 * 17 * 64


def test_training_after_a_walk_keeps_its_mask():
    R, w = trained(0)
    plan = {"steps": 5, "batch": 64}
    walked = PRUNERS["metric mask"](R, w, digits(), 0.9, **plan)
    plan["metric_mask"] = True
    then = PRUNERS["metric path, then labels"]
    found = then(R, w, digits(), 0.9, path=plan, steps=3, batch=64)
    assert torch.equal(found.mask, walked.mask)
    assert not torch.equal(found.weights, walked.weights)


def test_gradual_pruning_by_the_metric_drops_other_weights():
    R, w = trained(0)
    plan = {"steps": 20, "batch": 64}
    plain = prune_and_finetune(R, w, digits(), 0.9, gradual=True, **plan)
    by_metric = PRUNERS["gradual + labels, metric mask"]
    scored = by_metric(R, w, digits(), 0.9, **plan)
    assert int((plain.mask != scored.mask).sum()) > 20
    # masks at step 10, and at 14 and 15, where all is gone that is to go
    assert scored.gradient_evaluations == plain.gradient_evaluations + 3 * 64


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_what_is_not_understood_is_refused():
    x = torch.linspace(-1, 1, 80, dtype=torch.float64).view(20, 4).sin()

    class Skip(nn.Sequential):
        """A container whose forward adds what its layers do not show."""

        def forward(self, x):
            return super().forward(x) + x[:, :3]

    skip = Skip(*mlp([4, 6, 3])).double()

    class Roll(nn.Module):
        def forward(self, x):
            return torch.roll(x, 1, 1)

    rolled = nn.Sequential(*mlp([4, 6, 3])[:2], Roll(), *mlp([4, 6, 3])[2:]).double()
    with pytest.raises(ValueError, match=r"through roll.*use structured=False"):
        sparsify(rolled, x, 0.5, structured=True)
    assert sparsify(skip, x, 0.5, steps=3).sparsity == pytest.approx(0.5)
    shared = nn.Linear(4, 4).double()
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="a layer that is used twice"):
        sparsify(twice, x, 0.5, structured=True)
    for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        net = mlp([4, 6, 3])
        norm(net[1])
        with pytest.raises(ValueError, match="computes its 'weight' from other"):
            sparsify(net, x, 0.5)


def test_options_of_the_path_are_reached_from_sparsify():
    R, w = trained(0)
    data, plan = digits(), {"steps": 6, "batch": 64}
    module = net_of()
    few = {"iterations": 3, "damping": 1e-2}
    used = torch.from_numpy(np.random.default_rng(0).permutation(len(data.x)))[100:]
    part = Table(data.x[used], data.y[used], *[data.x, data.y] * 2)
    taught = {"labels": data.y, "lr": 3e-3}
    for ours, method, theirs in (
        ({}, "metric mask", {}),
        (taught, "adaptive metric + labels", {"steps": 78, "lr": 3e-3}),
        (few, "metric mask", few),
    ):
        found = sparsify(module, data.x, 0.9, **plan, **ours)
        expected = PRUNERS[method](R, w, part, 0.9, **{**plan, **theirs})
        assert torch.allclose(Realization(found.module).theta0, expected.weights)
        assert found.gradient_evaluations == expected.gradient_evaluations
    with pytest.raises(ValueError, match="labels: expected one label per input"):
        sparsify(module, data.x, 0.9, labels=data.y[:5], **plan)


def test_of_weights_that_cost_nothing_those_that_are_gone_go_first():
    w = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 5.0])
    for level in (0.25, 0.375, 0.5, 0.625, 0.75):
        keep = magnitude_mask(w, w > -1, level, torch.zeros(8))
        assert int(keep.sum()) == round(8 * (1 - level))
        gone = set((~keep).nonzero()[:, 0].tolist())
        assert gone <= {1, 3, 5} or gone >= {1, 3, 5}


def test_weights_go_by_adams_own_metric_layer_by_layer():
    R, w, _x = smooth()
    v = vector(len(w), 4).square()
    mask = adaptive_mask(R)(w, 0.6, None, 1, v)
    scores = {}
    for name, part, moment in zip(
        R.names, w.split(R.sizes), v.split(R.sizes), strict=True
    ):
        cost = [
            a * a * b**0.5 for a, b in zip(part.tolist(), moment.tolist(), strict=True)
        ]
        if R.shapes[R.names.index(name)][1:]:  # a matrix
            for i, c in enumerate(cost):
                scores[name, i] = c / sum(d for d in cost if d >= c)
    gone = sorted(scores, key=scores.get)[: round(0.6 * len(scores))]
    kept = {n: k > 0 for n, k in R.unflatten(mask.double()).items()}
    assert {
        (n, i) for n in kept for i in torch.nonzero(~kept[n].flatten())[:, 0].tolist()
    } == set(gone)
    # the moments that it is given are those of the gradients so far
    data, seen = digits(), []
    net, start = trained(0)

    def choose(u, _level, rows, _step, moments):
        leaf = u.clone().requires_grad_(True)
        loss = F.cross_entropy(net(leaf, data.x[rows]), data.y[rows])
        kept = None if moments is None else moments.clone()
        seen.append((torch.autograd.grad(loss, leaf)[0], kept))
        return torch.ones_like(u, dtype=torch.bool)

    trained_path(net, data.x, start, 0.0, choose, label_loss(data.y), steps=5, batch=16)
    (first, none), (second, after), (_, later) = seen[:3]
    assert none is None
    assert torch.allclose(after, 1e-3 * first.square())
    assert torch.allclose(later, 0.999 * after + 1e-3 * second.square())


def test_labels_come_with_the_data_or_beside_it_and_teach():
    module, data, seen = net_of(), digits(), []
    pairs = TensorDataset(data.x, data.y)
    plan = {"steps": 10, "batch": 64}
    arrays = data.x.numpy(), data.y.numpy()
    beside = sparsify(module, arrays[0], 0.5, labels=arrays[1], **plan)
    with_it = sparsify(
        module, DataLoader(pairs, batch_size=7), 0.5, labels=True, **plan,
        callback=lambda step, loss: seen.append((step, loss)),
    )  # fmt: skip
    assert torch.equal(
        Realization(with_it.module).theta0, Realization(beside.module).theta0
    )
    assert [step for step, _ in seen] == list(range(1, 131))
    alone = sparsify(module, data.x, 0.5, **plan)

    def loss(found):
        with torch.no_grad():
            return F.cross_entropy(found.module(data.x), data.y).item()

    assert loss(beside) < loss(alone)
    assert beside.gradient_evaluations == alone.gradient_evaluations
    units = sparsify(module, data.x, 0.5, labels=data.y, structured=True, **plan)
    assert units.module[1].weight.shape == (8, 64)
    assert loss(units) < 0.5


def test_converged_is_about_the_function_on_inputs_that_no_step_saw():
    module, data = net_of(), digits()
    kept = sparsify(module, data.x, 0.5, steps=10)
    ruined = sparsify(module, data.x, 0.995, steps=10)
    held = np.random.default_rng(0).permutation(len(data.x))[:100]
    x = data.x[held]
    for found in (kept, ruined):
        with torch.no_grad():
            old, new = (2 * m(x).softmax(1).sqrt() for m in (module, found.module))
        drift = (new - old).square().sum(1).mean().sqrt().item()
        spread = (old - old.mean(0)).square().sum(1).mean().sqrt().item()
        assert found.drift == pytest.approx(drift)
        assert found.spread == pytest.approx(spread)
        assert found.converged == (drift <= 0.5 * spread)
    assert kept.converged
    assert not ruined.converged
    assert "was not kept" in ruined.message


@functools.cache
def convnet():
    """A small network with BatchNorm, trained on digits, and its data as images."""
    flat = digits()
    parts = (flat.x, flat.y, flat.x_val, flat.y_val, flat.x_test, flat.y_test)
    image = [t.view(-1, 1, 8, 8) if t.ndim == 2 else t for t in parts]
    data = Table(*image)
    net = lenet(0, side=8, batch_norm=True, widths=(4, 8, 16))
    return train_module(net, data, steps=150, batch=64, lr=1e-2), data


def test_batch_norm_is_normalised_by_its_batch_on_the_way():
    net, data = convnet()
    before = copy.deepcopy(net.state_dict())
    found = sparsify(net, data.x, 0.6, steps=12, batch=128)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())

    def score(module):
        with torch.no_grad():
            hit = module(data.x_test).argmax(1) == data.y_test
        return hit.double().mean().item()

    assert score(net) > 0.85
    assert score(found.module) > score(net) - 0.1
    assert found.converged
    # the running statistics of the result are its own
    twin = recalibrate(copy.deepcopy(found.module), data.x)
    for name, value in twin.state_dict().items():
        assert torch.allclose(value.double(), found.module.state_dict()[name].double())
    half = sparsify(net, data.x, 0.4, structured=True, steps=8, batch=128)
    assert half.module[0].weight.shape[0] < 4 or half.module[4].weight.shape[0] < 8
    assert score(half.module) > 0.6


def test_a_step_with_batch_statistics_is_the_dense_one():
    net, data = convnet()
    R = Realization(with_batch_statistics(net), check=False)
    S, rows = FunctionSpace(R, data.x[:6]), torch.arange(6)
    free = magnitude_mask(R.theta0, matrices(R), 0.5)
    w = R.theta0 * free
    J = torch.func.jacrev(S.at_point)(w)[:, free]
    target = S.embed(R(R.theta0, data.x[:6])).detach()
    r = S.at_point(w) - target.reshape(-1) / 6**0.5
    mu = 1e-2
    dense = torch.linalg.solve(J.T @ J + mu * torch.eye(J.shape[1]), J.T @ r)
    G = S.metric(w, rows)
    slope = G.pull(S.drift_covector(G, target))
    plan = {"tol": 1e-10, "max_iterations": 600, "free": free}
    theta = G.solve(slope, mu, "cg", **plan).x
    assert torch.allclose(theta[free], dense, atol=1e-6)
    assert not theta[~free].any()
    taken = tried_step(S, w, free, rows, target, mu, 600)
    assert taken.drift <= r.norm()


def test_data_in_whatever_form_it_comes():
    module, data = net_of(), digits()
    plan = {"steps": 4, "batch": 64}
    byte = data.x.clone().sub(data.x.min()).mul(20).round().to(torch.uint8)

    def number(x):
        return x.double() / 20 + data.x.min()

    want = Realization(sparsify(module, number(byte), 0.8, **plan).module).theta0
    pairs = TensorDataset(number(byte), data.y)
    forms = {
        "array": (number(byte).numpy(), {}),
        "bytes": (byte, {"transform": number}),
        "array of bytes": (byte.numpy(), {"transform": number}),
        "data set": (pairs, {}),
        "loader": (DataLoader(pairs, batch_size=7, shuffle=True), {}),
    }
    for name, (x, more) in forms.items():
        found = Realization(sparsify(module, x, 0.8, **plan, **more).module).theta0
        assert torch.allclose(found, want), name
    single = copy.deepcopy(module).float()
    assert sparsify(single, data.x, 0.8, **plan).sparsity == pytest.approx(
        0.8, abs=1e-3
    )
    with pytest.raises(ValueError, match="transform: data are bytes"):
        sparsify(module, byte, 0.8, **plan)
    with pytest.raises(ValueError, match="data: expected a tensor, an array"):
        sparsify(module, iter(data.x), 0.8, **plan)


def test_the_callback_sees_every_step_and_masks_go_to_torch():
    from torch.nn.utils import prune

    module, data = net_of(), digits()
    seen = []
    found = sparsify(
        module, data.x, 0.8, steps=5, callback=lambda k, drift: seen.append((k, drift))
    )
    assert [k for k, _ in seen] == [1, 2, 3, 4, 5]
    assert all(0 < drift < 1 for _, drift in seen)
    masked = found.prune(copy.deepcopy(module))
    with torch.no_grad():
        assert torch.equal(masked(data.x), found.module(data.x))
    zeros = (masked[1].weight_mask == 0).sum() + (masked[3].weight_mask == 0).sum()
    assert int(zeros) == int((~found.mask).sum())
    prune.remove(masked[1], "weight")
    assert torch.equal(masked[1].weight, found.module[1].weight)
