"""Geodesics between networks, their measures and their certificates."""

import dataclasses
import itertools
import math

import pytest
import torch
from chapter_experiments import chapter_module
from geodesics_cases import (
    CERTIFICATE,
    POLYGONS,
    YARDSTICKS,
    difference_energy,
    digits,
    smooth,
    trained,
    vector,
)

from geolib.core import Realization
from geolib.geodesics import (
    FunctionSpace,
    SineBasis,
    WeightPath,
    bvp,
    geodesic,
    geodesics,
    profile,
    trained_curve,
    trained_curves,
)
from geolib.geodesics.measures import Profile
from geolib.geodesics.path import BezierBasis
from geolib.networks import mlp

certify_path = CERTIFICATE.certify_path
lengths = chapter_module("geodesics", "path_lengths").lengths
LinearSplineBasis = POLYGONS.LinearSplineBasis


def pair():
    (R, a), (_, b) = trained(0), trained(1)
    return R, a, b, FunctionSpace(R, digits().x)


def barrier(path, R):
    data = digits()
    return profile(path, lambda w: R(w, data.x), data.y, 33).barrier


@pytest.mark.slow
def test_geodesic_removes_the_barrier_and_shortens_the_path():
    R, a, b, S = pair()
    found = geodesic(S, a, b, steps=500, batch=64, tol=0.05)
    assert found.gradient_evaluations == 500 * 3 * 64 + 2 * len(S.x)  # the ends, once
    assert found.converged
    assert found.stationarity < 0.05
    line = barrier(WeightPath(a, b), R)
    assert line > 0.2
    assert barrier(found.path, R) < 0.05 * line
    before, after = lengths(S, WeightPath(a, b)), lengths(S, found.path)
    assert after.output < 0.5 * before.output
    assert after.arc == pytest.approx(before.arc)
    assert after.arc < after.output
    assert after.energy >= after.total**2 / 2
    assert after.unevenness < before.unevenness


@pytest.mark.slow
def test_a_short_search_says_that_it_did_not_converge():
    _R, a, b, S = pair()
    found = geodesic(S, a, b, steps=3, batch=32)
    assert not found.converged
    assert found.path.linestyle == "--"
    assert "above" in found.message


def test_divergence_is_reported_and_not_returned():
    _R, a, b, S = pair()
    found = geodesic(S, a, b, steps=3, batch=32, lr=1e300)
    assert not found.converged
    assert bool(torch.isfinite(found.path.control).all())


@pytest.mark.parametrize(
    "basis", [SineBasis(2), LinearSplineBasis(3)], ids=["sine", "hat"]
)
def test_checkpoint_takes_the_same_steps(basis):
    _R, a, b, S = pair()
    options = {"basis": basis, "steps": 5, "batch": 16, "segments": 4}
    plain = geodesic(S, a, b, **options)
    lean = geodesic(S, a, b, checkpoint=True, **options)
    assert torch.allclose(plain.path.control, lean.path.control, atol=1e-12)
    assert plain.energies == pytest.approx(lean.energies, rel=1e-12)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "basis", [SineBasis(3), LinearSplineBasis(3)], ids=["sine", "hat"]
)
def test_search_gradient_is_that_of_the_energy(basis, checkpoint):
    # the damping enters the search in closed form and never as weights of all points
    _R, a, b, S = pair()
    S = FunctionSpace(S.realization, S.x[:40], damping=0.3)
    control = 0.1 * vector((3, len(a)), 5)
    start = WeightPath(a, b, basis, control)
    search = bvp._Search(S, [start], 4, True, 40, [0], checkpoint)
    t, rows = search.draw()
    leaf = start.control.clone().requires_grad_(True)
    path = dataclasses.replace(start, control=leaf)
    value, grad = search.gradient(leaf[None], t, rows)
    energy = difference_energy(S, path(t[0]), t[0])
    (expected,) = torch.autograd.grad(energy, leaf)
    assert value.item() == pytest.approx(energy.item(), rel=1e-12)
    assert torch.allclose(grad[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("batch", [8, 60], ids=["rows", "all"])
def test_paths_searched_side_by_side_are_those_searched_alone(checkpoint, batch):
    _R, a, b, S = pair()
    S = S.on(S.x[:60])
    options = {"steps": 6, "batch": batch, "checkpoint": checkpoint, "lr": 0.02}
    ends = torch.stack([a, b, a]), torch.stack([b, a, 0.5 * b])
    together = geodesics(S, *ends, seeds=[3, 4, 5], **options)
    for found, start, end, seed in zip(together, *ends, [3, 4, 5], strict=True):
        alone = geodesic(S, start, end, seed=seed, **options)
        assert torch.allclose(found.path.control, alone.path.control, atol=1e-12)
        assert found.energies == pytest.approx(alone.energies, rel=1e-10)
        assert found.stationarity == pytest.approx(alone.stationarity, rel=1e-8)
        assert found.gradient_evaluations == alone.gradient_evaluations
    with pytest.raises(ValueError, match="seeds: .* with pairs = 3 as in a"):
        geodesics(S, *ends, seeds=[0])


def test_curves_trained_side_by_side_are_those_trained_alone():
    R, a, b, S = pair()
    y = torch.arange(60) % 10
    options = {"steps": 8, "batch": 16, "lr": 0.02}
    ends = torch.stack([a, b]), torch.stack([b, 0.5 * a])
    together = trained_curves(R, *ends, S.x[:60], y, seeds=[3, 4], **options)
    for found, start, end, seed in zip(together, *ends, [3, 4], strict=True):
        alone = trained_curve(R, start, end, S.x[:60], y, seed=seed, **options)
        assert torch.allclose(found.path.control, alone.path.control, atol=1e-12)
        assert found.energies == pytest.approx(alone.energies, rel=1e-10)
    with pytest.raises(ValueError, match="seeds: .* with pairs = 2 as in a"):
        trained_curves(R, *ends, S.x[:60], y, seeds=[0])


def test_checkpoint_keeps_one_network_at_a_time():
    # numbers that wait for a backward pass, at their peak
    R, a, b = (Realization(mlp([64, 128, 10], s)) for s in (0, 0, 1))
    S, a, b = FunctionSpace(R, digits().x[:4]), a.theta0, b.theta0

    def peak(segments, checkpoint):
        live, highest = {}, 0

        class Kept:
            def __init__(self, t):
                self.t, live[id(self)] = t, t.numel()

            def __del__(self):
                live.pop(id(self), None)

        def pack(t):
            nonlocal highest
            kept = Kept(t.detach())
            highest = max(highest, sum(live.values()))
            return kept

        path = WeightPath(a, b, SineBasis(1), torch.zeros(1, len(a)).double())
        search = bvp._Search(S, [path], segments, True, 4, [0], checkpoint)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: k.t):
            leaf = path.control[None].clone().requires_grad_(True)
            search.gradient(leaf, *search.draw())
        return highest

    assert peak(16, True) <= 1.05 * peak(4, True)
    assert peak(16, False) > 3 * peak(4, True)


def test_times_are_drawn_anew_and_keep_their_order():
    _R, a, b, S = pair()
    path = WeightPath(a, b, SineBasis(1), torch.zeros(1, len(a)).double())
    for jitter in (True, False):
        search = bvp._Search(S, [path], 4, jitter, 8, [0], False)
        draws = torch.cat([search.draw()[0] for _ in range(200)])
        even = torch.linspace(0, 1, 5, dtype=torch.float64)
        assert bool((draws.diff(dim=1) > 0).all())
        assert torch.equal(draws[:, [0, 4]], even[[0, 4]].expand(200, 2))
        gap = (draws - even)[:, 1:-1].abs()
        assert gap.max() <= 0.125
        assert (gap.max() > 0.12) == jitter


@pytest.mark.slow
def test_knot_cheating_does_not_count_as_converged():
    # at its 16 fixed knots the polygon is nearly at rest; between them it is not
    _R, a, b, S = pair()
    S = S.on(S.x[:60])
    options = {"basis": LinearSplineBasis(3), "segments": 4, "jitter": False}
    found = geodesic(S, a, b, steps=400, batch=60, tol=0.02, **options)
    search = bvp._Search(S, [found.path], 4, False, 60, [0], False)
    knots = found.path.times(5)[None]
    line = WeightPath(a, b, LinearSplineBasis(3), torch.zeros(3, len(a)).double())
    at_knots = [
        search.gradient(p.control[None].clone().requires_grad_(True), knots, None)[
            1
        ].norm()
        for p in (line, found.path)
    ]
    assert at_knots[1] < 0.01 * at_knots[0]
    assert found.stationarity > 0.02
    assert not found.converged


@pytest.mark.slow
def test_distances_of_three_optima():
    (_, a), (_, b), (_, c) = (trained(s) for s in (0, 1, 2))
    S = pair()[3]

    def far(p, q):
        return lengths(S, geodesic(S, p, q, steps=150, batch=64).path).total

    ab, bc, ac = far(a, b), far(b, c), far(a, c)
    assert far(b, a) == pytest.approx(ab, rel=0.05)
    assert ac < ab + bc
    assert ab < ac + bc
    assert bc < ab + ac


def test_more_inputs_never_shorten_a_path():
    # sums over inputs: n times the squared speed grows with every input
    _R, a, b, S = pair()
    path = WeightPath(a, b)
    sizes = [10, 50, 200]
    scaled = [n**0.5 * lengths(S.on(S.x[:n]), path, 33).speed for n in sizes]
    for fewer, more in itertools.pairwise(scaled):
        assert bool((fewer <= more * (1 + 1e-12)).all())


def test_energy_gradient():
    R, w, x = smooth()
    S = FunctionSpace(R, x, damping=0.1)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    points = torch.stack([w, w + 0.1 * vector(len(w), 1), -w]).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda p: difference_energy(S, p, t), points, fast_mode=True
    )


def test_energy_by_hand():
    R, w, x = smooth()
    S = FunctionSpace(R, x, "raw", damping=0.5)
    v = w + 0.2
    step = (R(v, x) - R(w, x)).square().sum() / len(x) + 0.5 * (v - w).square().sum()
    t = torch.tensor([0.0, 0.25], dtype=torch.float64)
    energy = difference_energy(S, torch.stack([w, v]), t)
    assert energy.item() == pytest.approx((step / 0.25 / 2).item(), rel=1e-12)


def test_polygons_grow_to_the_curve():
    _R, a, b, S = pair()
    path = WeightPath(a, b, BezierBasis(1), 0.3 * vector((1, len(a)), 2))
    values = [lengths(S, path, n).output for n in (9, 17, 33, 65)]
    assert values == sorted(values)
    gaps = [q - p for p, q in itertools.pairwise(values)]
    assert gaps[-1] < 0.4 * gaps[0]


def test_reversal_and_symmetry():
    _R, a, b, S = pair()
    control = 0.1 * vector((2, len(a)), 2)
    path = WeightPath(a, b, SineBasis(2), control)
    reverse = WeightPath(b, a, SineBasis(2), torch.stack([control[0], -control[1]]))
    there, back = lengths(S, path, 33), lengths(S, reverse, 33)
    assert there.output == pytest.approx(back.output, rel=1e-12)
    assert torch.allclose(there.speed.flip(0), back.speed)


def test_length_does_not_see_relu_rescaling_or_permutation():
    R, a, b, S = pair()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 2.0, 16, dtype=torch.float64)

    def moved(w):
        p = R.unflatten(w)
        p["1.weight"] = (p["1.weight"] * scale[:, None])[order]
        p["1.bias"] = (p["1.bias"] * scale)[order]
        p["3.weight"] = (p["3.weight"] / scale)[:, order]
        return R.flatten(p)

    path = WeightPath(a, b, SineBasis(1), 0.1 * vector((1, len(a)), 2))
    control = moved(path.control[0])[None]
    twin = WeightPath(moved(a), moved(b), path.basis, control)
    ours, theirs = lengths(S, path, 33), lengths(S, twin, 33)
    assert ours.output == pytest.approx(theirs.output, rel=1e-10)
    assert ours.weight != pytest.approx(theirs.weight, rel=1e-2)


def test_curve_with_labels_is_trained():
    R, a, b, _S = pair()
    data = digits()
    found = trained_curve(R, a, b, data.x, data.y, steps=300, batch=64)
    assert barrier(found.path, R) < 0.1 * barrier(WeightPath(a, b), R)
    assert found.gradient_evaluations == 300 * 64
    with pytest.raises(ValueError, match="y: expected classes 0 to 9"):
        trained_curve(R, a, b, data.x, data.y + 5, steps=1)


def test_curve_with_labels_is_trained_along_its_whole_length():
    R, a, b, _S = pair()
    data, seen = digits(), []

    class Watched(BezierBasis):
        def values(self, t):
            seen.extend(t.tolist())
            return super().values(t)

    trained_curve(R, a, b, data.x, data.y, basis=Watched(), steps=200, batch=8)
    quarters = torch.histc(torch.tensor(seen[:200]), 4, 0, 1)
    assert float(quarters.min()) > 30  # 50 expected in each


@pytest.mark.parametrize("moved", ["weights", "bias", "both", "first of two"])
def test_certificate_is_tight_where_norms_multiply(moved):
    # one input along the move of the weights: |dPhi/dt| = |V| |x| + |b'|, times the
    # weight of the layer behind
    x = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    module = torch.nn.Sequential(torch.nn.Linear(3, 1)).double()
    if moved == "first of two":
        module.append(torch.nn.Linear(1, 1, bias=False)).double()
    R = Realization(module)
    a = torch.zeros(R.p, dtype=torch.float64)
    a[4:] = 0.5  # the layer behind, if any
    b = a.clone()
    b[:3] += 0.0 if moved == "bias" else 0.1 * x[0]
    b[3] += 0.0 if moved == "weights" else 0.3
    found = certify_path(FunctionSpace(R, x, "raw"), WeightPath(a, b), grid=2)
    assert found.rigorous
    assert found.grid == 2
    truth = float((R(b, x) - R(a, x)).abs())
    assert found.sampled == pytest.approx(truth, rel=1e-12)
    if moved != "first of two":  # there the bound grows with half the step
        assert found.bound == pytest.approx(truth, rel=1e-12)
    else:
        assert truth <= found.bound <= 1.05 * truth


def test_certificate_holds_between_samples():
    R, a, b, S = pair()
    small = FunctionSpace(R, S.x[:20])
    # a bend so narrow that nine samples miss its height
    path = WeightPath(a, 0.99 * a, SineBasis(8), torch.zeros(8, len(a), dtype=a.dtype))
    control = path.control.clone()
    control[7] = 0.5 * vector(len(a), 3)
    path = dataclasses.replace(path, control=control)
    found = certify_path(small, path, slack=1e9, grid=9)
    assert found.rigorous
    t = path.times(2001)
    phi = small(path(t))
    truth = (phi - phi[0]).norm(dim=1).max().item()
    assert found.sampled < 0.9 * truth < truth <= found.bound
    line = certify_path(small, WeightPath(a, b), slack=0.5, limit=129)
    fine = small(WeightPath(a, b)(t))
    assert (fine - fine[0]).norm(dim=1).max().item() <= line.bound


@pytest.mark.slow
def test_certificate_tightens_to_its_slack():
    R, w, x = smooth()
    S = FunctionSpace(R, x)
    path = WeightPath(w, 1.2 * w, SineBasis(2), 0.1 * vector((2, len(w)), 2))
    found = certify_path(S, path, slack=0.01)
    assert found.sampled <= found.bound <= found.sampled + 0.01
    assert found.rigorous
    with pytest.raises(ValueError, match="slack"):
        certify_path(S, path, slack=0.0)


def test_total_length_counts_the_damping():
    R, w, x = smooth()
    found = lengths(FunctionSpace(R, x, damping=4.0), WeightPath(w, -w))
    assert found.output < found.total
    assert found.total >= 2 * found.weight


def test_barrier_by_hand():
    # over the line between the end losses, not over the start; never below zero
    t = torch.linspace(0, 1, 5)
    up = Profile(t, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]), torch.ones(5))
    assert up.barrier == pytest.approx(0.0, abs=1e-6)
    hump = dataclasses.replace(up, loss=torch.tensor([1.0, 1.5, 2.7, 2.5, 3.0]))
    assert hump.barrier == pytest.approx(0.7, abs=1e-6)
    valley = dataclasses.replace(up, loss=torch.tensor([1.0, 0.5, 0.2, 0.5, 3.0]))
    assert valley.barrier == 0.0


def test_calibration_error_by_hand():
    z = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).log()
    error = YARDSTICKS.calibration_error(z, torch.tensor([0, 1]))
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.9, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"segments": 1}, "segments"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"optimizer": "magic"}, "optimizer"),
    ],
)
def test_bad_options(change, text):
    _R, a, b, S = pair()
    with pytest.raises(ValueError, match=text):
        geodesic(S, a, b, **change)


def test_bad_ends_and_grids():
    R, a, b, S = pair()
    with pytest.raises(ValueError, match="the ends are equal"):
        geodesic(S, a, a.clone())
    with pytest.raises(ValueError, match="b: .* with p = 1210 as in a"):
        geodesic(S, a, b[:-1])
    bad = b.clone()
    bad[0] = math.nan
    with pytest.raises(ValueError, match="b: expected finite numbers, 1 of"):
        geodesic(S, a, bad)
    with pytest.raises(ValueError, match="grid"):
        profile(WeightPath(a, b), lambda w: R(w, S.x), digits().y, 64)
    with pytest.raises(ValueError, match="grid"):
        lengths(S, WeightPath(a, b), 1)


@pytest.mark.parametrize("slope", [0.1, 1.0, 3.0, -4.0])
def test_certificate_knows_how_steep_a_leaky_relu_is(slope):
    # on the leaky side the outputs move |slope| times as fast as the weights
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.LeakyReLU(slope))
    R, x = Realization(module.double()), torch.ones(1, 1, dtype=torch.float64)
    a = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    found = certify_path(FunctionSpace(R, x, "raw"), WeightPath(a, a - 0.5), grid=2)
    truth = float((R(a - 0.5, x) - R(a, x)).abs())
    assert found.rigorous
    assert truth == pytest.approx(abs(slope))
    assert found.bound >= truth * (1 - 1e-12)
    assert found.bound <= max(1, abs(slope)) * (1 + 1e-12)


def test_certificate_is_no_proof_for_what_it_does_not_know():
    class Skip(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x

    x = torch.eye(3, dtype=torch.float64)
    for module in (
        Skip(torch.nn.Linear(3, 3)),
        torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU("tanh")),
        torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Softmax(1)),
    ):
        R = Realization(module.double())
        line = WeightPath(R.theta0, 2 * R.theta0)
        assert not certify_path(FunctionSpace(R, x, "raw"), line).rigorous
    nested = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 3))).double()
    R = Realization(nested)
    line = WeightPath(R.theta0, 2 * R.theta0)
    assert certify_path(FunctionSpace(R, x, "raw"), line).rigorous
