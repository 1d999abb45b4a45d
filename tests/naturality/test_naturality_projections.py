"""Projections, embeddings, towers and the width law."""

import math

import numpy as np
import pytest
import torch
from naturality_chapter import CONTROLS, PROBLEMS, TOWERS, WIDTHS
from torch.func import jacrev

from geolib.naturality import OptimizerSpec

HS = [0.5 / 64, 0.5 / 128]


def sgd(rate):
    return OptimizerSpec(
        f"gd x {rate}", lambda p, h, run: torch.optim.SGD(p, lr=rate * h)
    )


ADAM0 = OptimizerSpec("adam", lambda p, h, run: torch.optim.Adam(p, lr=h, eps=0.0))


@pytest.mark.parametrize("scaling", ["standard", "mean-field", "ntk"])
def test_duplication_keeps_the_function_and_the_tangent_space(scaling):
    wide, narrow, iota = TOWERS.twin_problem(3, 4, scaling)
    assert torch.allclose(wide.outputs(wide.theta0), narrow.outputs(narrow.theta0))
    assert torch.allclose(iota(narrow.theta0), wide.theta0)
    D = jacrev(iota.forward)(narrow.theta0)
    J, Jw = narrow.point(narrow.theta0).J, wide.point(wide.theta0).J
    assert torch.allclose(Jw @ D, J, atol=1e-12)  # f' o iota = f
    assert int(torch.linalg.matrix_rank(Jw, rtol=1e-9)) == int(
        torch.linalg.matrix_rank(J, rtol=1e-9)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "scaling", "letter"),
    [
        ("ngd", "standard", "E"),
        ("ngd", "mean-field", "E"),
        ("gd", "standard", "U"),
        ("gd", "mean-field", "U"),
        (ADAM0, "standard", "U"),
        (ADAM0, "mean-field", "E"),
        ("adam-eps-1e-2", "mean-field", "U"),
        (CONTROLS.TABLE["muon-polar"], "mean-field", "U"),
    ],
)
def test_the_twin_tower(optimizer, scaling, letter):
    wide, narrow, iota = TOWERS.twin_problem(18, 4, scaling)
    d = TOWERS.projection_defect(optimizer, wide, narrow, iota, HS, horizon=0.5)
    assert d.letter == letter


@pytest.mark.slow
def test_gradient_descent_in_mean_field_needs_its_rate_times_the_width():
    for scaling, letter in (("mean-field", "E"), ("standard", "U")):
        wide, narrow, iota = TOWERS.twin_problem(18, 4, scaling)
        d = TOWERS.projection_defect(
            "gd", wide, narrow, iota, HS, horizon=0.5, wide_optimizer=sgd(4)
        )
        assert d.letter == letter
    d = TOWERS.projection_defect(
        "ngd", wide, narrow, iota, HS, horizon=0.5, space="parameters"
    )
    assert d.letter == "E"


def linear(c=2, d=4, seed=0):
    rng = np.random.default_rng(seed)
    X = torch.tensor(rng.standard_normal((30, d)))
    return PROBLEMS.linear_model(
        X, torch.tensor(rng.standard_normal((30, c))), torch.zeros(c, d).double()
    )


def test_deep_linear_networks_project_to_linear_ones():
    narrow = linear()
    pi, shapes = TOWERS.deep_linear(4, 2, 8)
    x = 0.5 * torch.tensor(np.random.default_rng(1).standard_normal(48))
    wide = pi.pull(narrow, shapes, x)
    assert torch.allclose(wide.outputs(x), narrow.outputs(pi(x)))
    q, n = wide.point(x), narrow.point(pi(x))
    upstairs = torch.linalg.pinv(q.F, hermitian=True, rtol=1e-10)
    assert TOWERS.submersion_defect(pi, x, upstairs, torch.linalg.inv(n.F)) < 1e-9
    assert TOWERS.submersion_defect(pi, x, torch.eye(48).double(), torch.eye(8)) > 0.1
    for name, letter in (("ngd", "N"), ("gd", "U")):
        d = TOWERS.projection_defect(name, wide, narrow, pi, HS, horizon=0.5)
        assert d.letter == letter


def test_weight_normalisation_and_horizontal_lifts():
    pi, shapes = TOWERS.weight_norm(2, 3)
    x = torch.tensor(np.random.default_rng(2).standard_normal(8))
    v = torch.tensor(np.random.default_rng(3).standard_normal(6))
    assert shapes == [(2,), (2, 3)]
    D = jacrev(pi.forward)(x)
    for M in (None, torch.diag(torch.arange(1.0, 9.0).double())):
        lift = TOWERS.horizontal_lift(pi, x, v, M)
        assert torch.allclose(D @ lift, v)
        vertical = torch.linalg.svd(D).Vh[6:]
        along = lift if M is None else M @ lift
        assert float((vertical @ along).abs().max()) < 1e-10
    with pytest.raises(ValueError, match="submersion"):
        TOWERS.horizontal_lift(TOWERS.Projection(lambda t: t[:2] * 0), x, v[:2])


@pytest.mark.slow
def test_polynomials_commute_with_the_orthogonal_projection_only():
    wide, narrow, orthogonal, truncation = TOWERS.polynomial_tower(6, 3)
    for pi, name, letter in (
        (orthogonal, "ngd", "E"),
        (truncation, "ngd", "U"),
        (orthogonal, "gd", "U"),
    ):
        d = TOWERS.projection_defect(name, wide, narrow, pi, HS, horizon=0.5)
        assert d.letter == letter
    with pytest.raises(ValueError, match="low"):
        TOWERS.polynomial_tower(3, 3)


@pytest.mark.slow
def test_dead_units_can_be_dropped():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.uniform(0.1, 1.0, (20, 2)))
    y = torch.tensor(rng.standard_normal((20, 1)))
    w = torch.tensor([[1.0, 0.5], [-1.0, -2.0], [0.3, 2.0]]).double()
    a = torch.tensor([[1.0, -1.0, 0.5]]).double()
    live, pi, iota = TOWERS.prune_dead(x, w, a)
    assert live.tolist() == [True, False, True]
    wide = PROBLEMS.two_layer(x, y, w, a, activation="relu")
    narrow = PROBLEMS.two_layer(x, y, w[live], a[:, live], activation="relu")
    assert torch.allclose(pi(wide.theta0), narrow.theta0)
    assert torch.allclose(iota(narrow.theta0), wide.theta0)
    for name in ("gd", "adam", "ngd"):
        for link in (pi, iota):
            d = TOWERS.projection_defect(name, wide, narrow, link, HS, horizon=0.5)
            assert d.letter == "E", name
    # weight decay reaches the dead unit's weights, but not the function
    d = TOWERS.projection_defect("adamw", wide, narrow, pi, HS, horizon=0.5)
    assert d.letter == "E"


def test_erf_kernels_are_those_of_wide_networks():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((4, 3)))
    K, NTK = WIDTHS.erf_kernels(x, x)
    N = 200_000
    w = torch.tensor(rng.standard_normal((N, 3)))
    a = torch.tensor(rng.standard_normal(N))
    s = x @ w.T
    nngp = torch.erf(s) @ torch.erf(s).T / N
    slope = 2 / math.sqrt(math.pi) * torch.exp(-(s**2)) * a
    assert torch.allclose(K, nngp, atol=1e-2)
    assert torch.allclose(NTK, nngp + x @ x.T * (slope @ slope.T) / N, atol=3e-2)


@pytest.mark.slow
def test_the_natural_flow_obeys_the_same_law_at_every_width():
    runs = WIDTHS.width_runs
    assert max(r.train for N in (32, 512) for r in runs(N, [0])) < 1e-6
    assert runs(512, [0], optimizer="gd")[0].train > 1e-2
    wide = [np.mean([r.ntk for r in runs(N, range(4))]) for N in (32, 1024)]
    assert wide[1] < 0.5 * wide[0]
    standard = runs(1024, [0], "standard")[0]
    assert standard.nngp < standard.ntk


@pytest.mark.parametrize("scaling", ["ntk", "standard"])
def test_the_flow_of_many_networks_at_once_is_the_runge_kutta_optimizer(scaling):
    at_once = WIDTHS.width_runs(16, [0, 3], scaling, steps=4)
    trained = WIDTHS.width_runs(16, [0, 3], scaling, "ngd-rk4", steps=4)
    for a, b in zip(at_once, trained, strict=True):
        gap = np.subtract([a.train, a.ntk, a.nngp], [b.train, b.ntk, b.nngp])
        assert np.abs(gap).max() < 1e-11


def test_bad_arguments_are_named():
    x = torch.ones(3, 2).double()
    with pytest.raises(ValueError, match="scaling"):
        PROBLEMS.two_layer(x, x, torch.ones(2, 2), torch.ones(1, 2), "wide")
    with pytest.raises(ValueError, match="copies"):
        TOWERS.duplication(1, 1, 1, 0)
    wide, narrow, iota = TOWERS.twin_problem(0, 2, "standard")
    with pytest.raises(ValueError, match="step_sizes"):
        TOWERS.projection_defect("gd", wide, narrow, iota, [0.1], horizon=1.0)
    with pytest.raises(ValueError, match="theta0"):
        TOWERS.projection_defect(
            "gd", wide, narrow, TOWERS.Projection(lambda t: t[:3]), HS, horizon=1.0
        )
