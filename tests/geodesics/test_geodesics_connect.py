"""Connecting modules, BatchNorm, walks, checkpoints and resuming."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from geodesics_cases import WALK, digits, trained, vector
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from geolib.core import Realization, init_
from geolib.geodesics import FunctionSpace, SineBasis, connect, embed, trained_curve
from geolib.geodesics.curves import arc
from geolib.networks import (
    Table,
    lenet,
    mlp,
    recalibrate,
    train_module,
    training,
    with_batch_statistics,
)
from geolib.sweep import Store, registry

invariant_walk = WALK.invariant_walk
vgg = chapter_module("geodesics", "vgg").vgg
CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "geodesics"


@pytest.fixture
def experiments():
    """The comparisons of the chapter, which are no part of the package."""
    return chapter_module("geodesics", "experiments")


def module(seed):
    R, w = trained(seed)
    net = copy.deepcopy(R.module)
    Realization(net).load(w)
    return net


def images(count=60, classes=3, side=8, seed=0):
    """Tiny images whose class is a bright corner."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=count)
    x = rng.standard_normal((count, 1, side, side)) * 0.3
    for i, c in enumerate(y):
        x[i, 0, 2 * c : 2 * c + 2, 2 * c : 2 * c + 2] += 2
    return torch.from_numpy(x), torch.from_numpy(y)


def test_connect_line_curve_geodesic():
    a, b, data = module(0), module(1), digits()
    line = connect(a, b, data.x, method="line", align=False)
    curve = connect(a, b, data.x, data.y, method="curve", steps=200, batch=64)
    path = connect(a, b, data.x, method="geodesic", steps=200, batch=64)
    arc = connect(a, b, data.x, steps=200, batch=64)
    worst = [c.profile(data.x, data.y, 17).barrier for c in (line, curve, path, arc)]
    assert worst[0] > 0.2
    assert max(worst[1:]) < 0.3 * worst[0]
    assert path.statistics == "none"
    assert arc.aligned
    assert arc.gradient_evaluations == 200 * 64 + 2 * len(data.x)
    assert torch.allclose(arc.module(1.0)(data.x), b(data.x))


@pytest.mark.parametrize("method", ["arc", "geodesic", "curve"])
def test_progress_and_picture_of_a_path(method):
    a, b, data, seen = module(0), module(1), digits(), []
    pairs = DataLoader(TensorDataset(data.x, data.y), batch_size=7)
    found = connect(
        a, b, pairs, True if method == "curve" else None, method=method, steps=5,
        batch=16, callback=lambda step, value: seen.append((step, value)),
    )  # fmt: skip
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert all(isinstance(value, float) for _, value in seen)
    if method == "curve":  # labels with the data and beside it are the same
        other = connect(a, b, data.x, data.y, method="curve", steps=5, batch=16)
        assert torch.equal(found.path.control, other.path.control)
    axes = found.plot(data.x_test[:50], data.y_test[:50], grid=5)
    loss = found.profile(data.x_test[:50], data.y_test[:50], 5).loss
    assert axes.lines[0].get_ydata().tolist() == loss.tolist()


def test_a_curve_follows_the_arc_between_two_functions():
    # a family that holds the arc: the logits themselves are the weights
    net = nn.Linear(1, 3, bias=False).double()
    R, x = Realization(net), torch.ones(1, 1).double()
    a, b = (
        torch.tensor([3.0, 0.0, 0.0]).double(),
        torch.tensor([0.0, 2.5, 0.5]).double(),
    )
    found = trained_curve(R, a, b, x, basis=SineBasis(3), steps=1500, lr=0.05)
    times = torch.linspace(0, 1, 9).double()
    ours = embed(torch.stack([R(w, x)[0] for w in found.path(times)]))
    p, q = embed(a), embed(b)
    angle = torch.arccos(p @ q / 4)
    slerp = torch.sin((1 - times) * angle)[:, None] * p
    slerp = (slerp + torch.sin(times * angle)[:, None] * q) / torch.sin(angle)
    assert torch.allclose(arc(p, q, times[:, None], True), slerp)
    assert (ours - slerp).abs().max() < 0.02
    line = embed(a + times[:, None] * (b - a))
    assert (line - slerp).abs().max() > 0.1
    near = p + 1e-9 * vector(3, 0)
    assert torch.allclose(arc(p, near, times[:, None], True).norm(dim=1), p.norm())


def test_data_of_two_ends_in_whatever_form_it_comes():
    a, b, data = module(0), module(1), digits()
    plan = {"steps": 3, "batch": 32}
    want = connect(a, b, data.x, **plan).path.control
    pairs = TensorDataset(data.x, data.y)
    for x in (data.x.numpy(), DataLoader(pairs, shuffle=True), pairs):
        found = connect(a, b, x, **plan)
        assert torch.allclose(found.path.control, want)
        assert found.profile(data.x, data.y, 3).worst > 0
    path = connect(a, b, pairs, method="geodesic", **plan).path
    assert torch.allclose(
        path.control, connect(a, b, data.x, method="geodesic", **plan).path.control
    )


def test_alignment_is_left_out_where_it_cannot_be():
    class Roll(nn.Module):
        def forward(self, x):
            return torch.roll(x, 1, 1)

    a, b = (
        nn.Sequential(nn.Linear(4, 6), Roll(), nn.Tanh(), nn.Linear(6, 3)).double()
        for _ in range(2)
    )
    init_(a, 0), init_(b, 1)
    x = vector((20, 4), 0)
    assert not connect(a, b, x, method="line").aligned
    with pytest.raises((TypeError, ValueError), match="roll"):
        connect(a, b, x, method="line", align=True)


def test_alignment_first():
    data = digits()
    a = module(0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    b = copy.deepcopy(a)
    b[1].weight.data, b[1].bias.data = a[1].weight[order].data, a[1].bias[order].data
    b[3].weight.data = a[3].weight[:, order].data.clone()
    b[3].bias.data = b[3].bias.data + 0.01
    line = connect(a, b, data.x, method="line", align=False)
    plain = line.profile(data.x, data.y, 9).barrier
    matched = connect(a, b, data.x, method="line")
    assert plain > 0.1
    assert matched.profile(data.x, data.y, 9).barrier < 1e-3
    assert matched.aligned


def test_batch_statistics_are_those_of_training_mode():
    net = lenet(0, side=8, batch_norm=True, widths=(3, 4, 8))
    x, _ = images()
    twin = with_batch_statistics(net)
    assert torch.equal(Realization(twin).theta0, Realization(net).theta0)
    with torch.no_grad():
        expected = copy.deepcopy(net).train()(x)
        assert torch.allclose(twin(x), expected, atol=1e-12)


def test_recalibration_is_the_mean_over_batches():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double().eval()
    x = vector((40, 2), 0)
    recalibrate(net, x, batch=20)
    h = net[0](x)
    assert torch.allclose(net[1].running_mean, h.mean(0))
    var = torch.stack([part.var(0) for part in h.split(20)]).mean(0)
    assert torch.allclose(net[1].running_var, var)
    assert net[1].momentum == 0.1
    assert not net.training
    with pytest.raises(ValueError, match="at least two"):
        recalibrate(net, x[:1])


@pytest.mark.slow
def test_connect_with_batch_norm_re_estimates_statistics():
    x, y = images()
    data = Table(x, y, x, y, x, y)
    options = {"steps": 150, "batch": 30, "lr": 1e-2}
    nets = []
    for seed in (0, 1):
        net = lenet(seed, side=8, classes=3, batch_norm=True, widths=(3, 4, 8))
        nets.append(train_module(net, data, seed=seed, **options))
    found = connect(*nets, x, method="geodesic", steps=15, batch=30, checkpoint=True)
    assert found.statistics == "re-estimated"
    middle = found.module(0.5)
    expected = middle[0](x).mean((0, 2, 3))
    assert torch.allclose(middle[1].running_mean, expected, atol=1e-10)
    assert found.profile(x, y, 5).accuracy[0] > 0.9


def normalised(seed, kind=nn.BatchNorm1d, frozen=None):
    """A network with running statistics of its own, and perhaps a frozen layer."""
    net = nn.Sequential(nn.Linear(3, 5), kind(5), nn.ReLU(), nn.Linear(5, 2)).double()
    if frozen is not None:
        init_(net, 9)
        net[frozen].requires_grad_(False)
    for k, layer in enumerate((net[0], net[3])):
        if frozen != 3 * k:
            init_(layer, 10 * seed + k, bias_scale=0.5)
    nn.init.ones_(net[1].weight)
    net[1].running_mean.copy_(vector(5, seed + 20))
    net[1].running_var.copy_(1 + vector(5, seed + 30) ** 2)
    return net.eval()


@pytest.mark.parametrize("method", ["line", "curve", "geodesic", "arc"])
@pytest.mark.parametrize(
    "build",
    [
        normalised,
        lambda seed: normalised(seed, nn.SyncBatchNorm),
        lambda seed: normalised(seed, frozen=3),
        lambda seed: torch.nn.utils.parametrizations.weight_norm(normalised(seed)[3]),
        lambda seed: nn.Sequential(
            torch.nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)
        ).double().eval(),
    ],
    ids=["batch norm", "sync", "frozen", "weight_norm", "spectral_norm"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_the_ends_are_the_given_networks(build, method):
    a, b = build(0), build(1)
    if isinstance(a, nn.Linear):
        x = vector((40, 5), 3)
    else:
        x = vector((40, 3), 3)
    if hasattr(a[0] if isinstance(a, nn.Sequential) else a, "weight_u"):
        b.load_state_dict({**b.state_dict(), **dict(a.named_buffers())})
    y = torch.arange(40) % 2
    plan = {"line": {}, "curve": {"steps": 3}, "geodesic": {"steps": 3, "batch": 20}}
    plan["arc"] = plan["curve"]
    found = connect(a, b, x, y, method=method, align=False, **plan[method])
    with torch.no_grad():
        ends = a(x), b(x)
        assert torch.equal(found.module(0)(x), ends[0])
        assert torch.equal(found.module(1)(x), ends[1])
        assert not torch.allclose(found.module(0.5)(x), ends[0])
    loss = found.profile(x, y, 3).loss
    for k, z in ((0, ends[0]), (-1, ends[1])):
        assert torch.allclose(loss[k], nn.functional.cross_entropy(z, y))
    found.module(0).requires_grad_(False).double()
    assert torch.equal(found.module(0)(x), ends[0])


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_vgg_layers(name, bn):
    net = vgg(name, 0, bn, width=1 / 32)
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    assert len(convs) == {"vgg11": 8, "vgg16": 13}[name]
    assert any(isinstance(m, nn.BatchNorm2d) for m in net) == bn
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg_has_the_published_size():
    net = vgg("vgg16", batch_norm=False)
    # convolutions of column D, and one 512 x 10 layer
    assert sum(p.numel() for p in net.parameters()) == 14_714_688 + 5_130


def cifar_like():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(3, size=48))
    x = torch.from_numpy(rng.standard_normal((48, 3, 32, 32))).float()
    x += y.view(-1, 1, 1, 1).float() - 1
    return Table(x[:32], y[:32], x[32:], y[32:], x[32:], y[32:])


@pytest.mark.slow
def test_vgg_study_runs_and_resumes(tmp_path, experiments):
    plan = {
        "width": 1 / 32,
        "steps": 4,
        "batch": 16,
        "bends": 2,
        "sparsities": (0.5,),
        "walk": 4,
        "grid": 3,
    }
    first = experiments.vgg_study(cifar_like(), tmp_path, **plan)
    assert set(first["paths"]) == {"line", "arc", "curve", "geodesic"}
    assert first["paths"]["geodesic"]["statistics"] == "re-estimated"
    (stored,) = Store(tmp_path).rows("vgg", ["vgg11-bn-line"])
    assert stored == first["paths"]["line"]
    assert experiments.vgg_study(cifar_like(), tmp_path, **plan) == first


def test_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    x, y = images()
    data = Table(x, y, x, y, x, y)
    file = tmp_path / "run.pt"
    plan = {"steps": 12, "batch": 8, "every": 4, "seed": 3}

    def fresh():
        return lenet(0, side=8, classes=3, batch_norm=True, widths=(2, 3, 4))

    whole = train_module(fresh(), data, **plan)
    draw, calls = training._draw, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(training, "_draw", killed)
    with pytest.raises(KeyboardInterrupt):
        train_module(fresh(), data, file=file, **plan)
    assert torch.load(file)["record"]["step"] == 8
    calls.clear()
    again = train_module(fresh(), data, file=file, **plan)
    assert len(calls) == 4
    for name, t in whole.state_dict().items():
        assert torch.equal(t, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="another run"):
        train_module(fresh(), data, file=file, **{**plan, "seed": 4})
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        train_module(fresh(), data, file=file, **plan)


def test_outputs_that_depend_on_the_batch_are_not_stored():
    net = lenet(0, side=8, batch_norm=True, widths=(2, 3, 4))
    x, _ = images(8)
    assert not FunctionSpace(Realization(with_batch_statistics(net)), x).cacheable
    assert FunctionSpace(Realization(net), x).cacheable


def test_a_kill_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    x, y = images(8)
    file, data = tmp_path / "a.pt", Table(x, y, x, y, x, y)
    net = lenet(0, side=8, classes=3, widths=(2, 3, 4))
    train_module(net, data, steps=1, batch=4, file=file)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("geolib.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        training._store(net, torch.optim.Adam(net.parameters()), file, {"step": 2})
    assert torch.load(file)["record"]["step"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["a.pt"]


def test_walks():
    R, w = trained(0)
    S = FunctionSpace(R, digits().x[:60], "logit")
    d = vector(len(w), 0)
    drift = {
        m: invariant_walk(S, w, d, m, steps=10, damping=1e-2).drift[-1].item()
        for m in ("straight", "once", "invariant", "corrected")
    }
    assert drift["straight"] > 2 * drift["invariant"]
    assert drift["invariant"] > drift["corrected"]
    walk = invariant_walk(S, w, d, "invariant", steps=4)
    steps = walk.points.diff(dim=0).norm(dim=1)
    assert torch.allclose(steps, torch.full_like(steps, 0.25))
    assert walk.gradient_evaluations == 4 * 31 * 60
    with pytest.raises(ValueError, match="mode"):
        invariant_walk(S, w, d, "sideways")
    with pytest.raises(ValueError, match="direction"):
        invariant_walk(S, w, torch.zeros_like(w))


def test_faults():
    data = digits().x
    a = mlp([64, 8, 10])
    with pytest.raises(ValueError, match=r"b: expected .*'1.weight' is \(9, 64\) here"):
        connect(a, mlp([64, 9, 10]), data)
    with pytest.raises(ValueError, match=r"'3.weight' is \(8, 8\) here"):
        connect(a, mlp([64, 8, 8, 10]), data)
    with pytest.raises(ValueError, match="the ends are equal"):
        connect(a, copy.deepcopy(a), data)
    with pytest.raises(ValueError, match="labels"):
        connect(a, mlp([64, 8, 10], 1), data, method="curve")
    with pytest.raises(ValueError, match="method"):
        connect(a, mlp([64, 8, 10], 1), data, method="magic")
    bad = mlp([64, 8, 10], 1)
    bad[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        connect(a, bad, data)
    normed = lenet(batch_norm=True).train()
    with pytest.raises(ValueError, match="eval"):
        connect(normed, lenet(1, batch_norm=True), torch.zeros(4, 1, 28, 28).double())
    with pytest.raises(ValueError, match="name: expected one of"):
        vgg("vgg13")


def test_missing_data_is_a_clear_error(tmp_path, monkeypatch):
    from geolib.data import DataError
    from geolib.networks import table

    monkeypatch.setenv("GEOLIB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="mnist"):
        table("mnist")
    with pytest.raises(ValueError, match="asked for"):
        table("digits", train=5000)


def test_study_grids_are_of_one_size(experiments):
    grids = [experiments.PRUNERS, experiments.LEARNERS]
    assert {len(g) for grid in grids for g in grid.values()} == {4}


def test_every_measured_entry_belongs_to_a_sweep(experiments):
    sweeps = ("TUNING", "PRUNING", "LEARNING", "PATHS", "VGG")
    known = {
        (spec.file, spec.key)
        for name in sweeps
        for spec in getattr(experiments, name).specs("full").values()
    } | {(s.file, s.key) for s in experiments.VGG.specs("cost").values()}
    contest = experiments.CONTEST
    rows = (dataclasses.asdict(s) for s in contest.specs("full").values())
    known |= {contest.kept_as("", row)[:2] for row in rows}
    files = [f.stem for f in (CHAPTER / "measured").glob("*.json")]
    for file in files:
        if file.endswith("-h200"):  # another machine, at full width
            continue
        entries = experiments.measured(file)
        assert entries, file
        assert {(file, key) for key in entries} <= known, file


def test_records_are_published_under_their_keys(tmp_path, monkeypatch, experiments):
    spec = experiments.Spec("paths-digits", "straight line | 0")
    source = f"{tmp_path / 'experiments.py'}:PATHS"
    monkeypatch.setattr(registry, "names", lambda: {"geodesics-paths": source})
    monkeypatch.setattr(registry, "find", lambda name: experiments.PATHS)
    monkeypatch.setattr(experiments, "HERE", tmp_path)
    store, sweep = Store(tmp_path / "store"), experiments.PATHS
    (key,) = [k for k, s in sweep.specs("small").items() if s == spec]
    entry = {"spec": {"file": spec.file, "key": spec.key}, "record": {"arc": 1 / 3}}
    store.put(sweep.name, key, {"status": "done", **entry})
    registry.publish("geodesics-paths", "small", store)
    found = experiments.measured("paths-digits")
    assert found == {"straight line | 0": {"arc": 0.33333}}


def test_a_worker_without_a_checkout_misses_no_setting_in_silence(
    tmp_path, monkeypatch, experiments
):
    monkeypatch.setattr(experiments, "HERE", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="this machine has no"):
        experiments.chosen("tuning-prune-digits", "surgeon")


def test_constants_that_differ_are_refused():
    # no path of trainable weights ends in b if a frozen layer of b is another one
    a, b = mlp([4, 6, 6, 3], 0), mlp([4, 6, 6, 3], 1)
    for net in (a, b):
        net[3].requires_grad_(False)
    x = vector((20, 4), 0)
    with pytest.raises(ValueError, match=r"the constant '3.weight' .* differs"):
        connect(a, b, x, method="line")
    b[3].load_state_dict(a[3].state_dict())
    end = connect(a, b, x, method="line").module(1.0)
    assert torch.allclose(end(x), b(x), rtol=1e-12)
    # SyncBatchNorm is a BatchNorm: its statistics are re-estimated
    pair = [nn.Sequential(nn.Linear(4, 6), nn.SyncBatchNorm(6)).double() for _ in "ab"]
    assert connect(*(m.eval() for m in pair), x, method="line").statistics != "none"
    # a buffer of the user's own
    for net, value in ((a, 0.0), (b, 1.0)):
        net[1].register_buffer("shift", torch.tensor(value))
    with pytest.raises(ValueError, match=r"the constant '1.shift'"):
        connect(a, b, x, method="line")
