"""Strata: ranks, retractions, normal cones; resolve, its warnings, annealing."""

import math
import warnings

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

from geolib.stratifolds import (
    CollarWarning,
    mixture_a,
    mixture_b,
    resolve,
)

F64 = torch.float64
cone = chapter_module("stratifolds", "cone").cone
units = chapter_module("stratifolds", "two_units")
PairSurgery, two_unit_network = units.PairSurgery, units.two_unit_network
anneal = chapter_module("stratifolds", "annealing").anneal
mixture_k = chapter_module("stratifolds", "mixture_k").mixture_k
MODELS = [
    mixture_a(),
    mixture_b(),
    cone(2.0),
    cone(0.5),
    two_unit_network("rbf"),
    two_unit_network("erf"),
    two_unit_network("erf", n=2),
]


def values(*rows):
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("S", MODELS, ids=lambda S: S.name)
def test_every_stratum_has_the_rank_it_states(S):
    for stratum in S.strata:
        draw = stratum.draw(np.random.default_rng(3), 12)
        theta = torch.as_tensor(draw)
        assert (S.rank(theta, rtol=1e-13) == stratum.rank).all()
        assert (stratum.distance(theta) < 1e-12).all()
        torch.testing.assert_close(stratum.retract(theta), theta)
    top = S.sample_stratum(S.dim, 200, seed=4)
    height = torch.stack([s.distance(top) for s in S.strata]).amin(0)
    top = top[height > 0.3][:20]  # near a stratum the rank is lost to rounding
    assert len(top) >= 4
    assert (S.rank(top, rtol=1e-13) == S.dim).all()
    assert (S.stratum_of(top) == -1).all()


def test_a_coordinate_with_hardly_any_information_is_blind():
    # at weight w the location carries information of order w^2
    near = values([1e-6, 2.0], [1e-3, 2.0])
    assert mixture_a().rank(near).tolist() == [1, 2]
    assert mixture_a().rank(near, rtol=1e-14).tolist() == [2, 2]


@pytest.mark.parametrize("S", MODELS, ids=lambda S: S.name)
def test_retraction_lands_on_the_stratum_and_keeps_the_loss_to_order_h(S):
    theta = S.sample_stratum(S.dim, 100, seed=5)
    theta = theta[theta.abs().amax(1) < 1.5]
    loss = S.objective(S.sample_stratum(S.dim, 1, seed=6)[0])
    for stratum in S.strata:
        onto = stratum.retract(theta)
        assert (stratum.distance(onto) < 1e-12).all()
        # along the segment to the stratum the change of the loss is O(h)
        change = [
            (
                loss.value(S.chart.embed(onto + t * (theta - onto)))
                - loss.value(S.chart.embed(onto))
            ).abs()
            for t in (1e-5, 1e-6)
        ]
        assert (change[1] <= 0.3 * change[0] + 1e-12).all()


def test_skeleta_grow_and_sampling_hits_the_rank():
    S = mixture_a()
    assert [s.name for s in S.skeleton(0)] == ["origin"]
    assert len(S.skeleton(1)) == 3
    for i in (0, 1, 2):
        theta = S.sample_stratum(i, 11, seed=2)
        assert theta.shape == (11, 2)
        assert (S.rank(theta) == i).all()
    assert S.stratum_of(values([0, 0], [0, 1], [0.5, 0], [0.5, 1])).tolist() == [
        0,
        1,
        2,
        -1,
    ]
    with pytest.raises(ValueError, match=r"ranks \[0, 1, 2\], not 3"):
        S.sample_stratum(3, 4)
    with pytest.raises(ValueError, match="n >= 1"):
        S.sample_stratum(1, 0)


def test_rank_of_a_mixture_of_k():
    S = mixture_k(3, pair=(0, 2))
    assert (S.rank(S.sample_stratum(5, 5, seed=1), rtol=1e-13) == 5).all()
    assert (S.rank(S.sample_stratum(3, 5, seed=1), rtol=1e-12) == 3).all()
    theta = S.sample_stratum(5, 5, seed=2)
    R = resolve(S, kind="moduli")
    torch.testing.assert_close(
        R.chart.embed(R.to_chart(theta)).sort(1).values,
        S.chart.embed(theta).sort(1).values,
        atol=1e-6,
        rtol=0,
    )


def test_wall_of_mixture_a_attracts_wrong_starts_only():
    S = mixture_a()
    w, mu = 0.3, 2.0
    kl = S.objective(torch.tensor([w, mu], dtype=F64))
    theta = values([0.01, 1.5], [0.01, -1.5])
    cone_ = S.strata[1].normal_expansion(theta, lambda t: kl.value(S.chart.embed(t)))
    exact = [-w * (math.exp(m * mu) - 1) for m in (1.5, -1.5)]
    np.testing.assert_allclose(cone_.slope[:, 0], exact, rtol=1e-13)
    assert cone_.attracts().tolist() == [False, True]


def test_overlap_of_mixture_b_repels_at_the_rate_of_the_escape_law():
    S = mixture_b()
    kl = S.objective(torch.tensor([0.5, -1.0, 1.0], dtype=F64))
    w = 0.3
    theta = values([w, -0.01 * w, 0.01 * (1 - w)])  # centred at the teacher's mean
    out = S.strata[0].normal_expansion(theta, lambda t: kl.value(S.chart.embed(t)))
    # L = L0 - v v*/2 and v = w(1-w)d^2, so the curvature along d is -w(1-w)v*
    assert abs(out.curvature[0, 0] + w * (1 - w)) < 1e-5
    assert out.slope.abs().max() < 1e-12
    assert not out.attracts().any()


def test_sign_rule_of_milnor_attractors():
    S = two_unit_network("rbf")
    loss = S.objective(torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=F64))
    inside, outside = [0.6, 0.9, -0.01, 0.01], [1.8, -0.3, 0.0, 0.02]
    theta = values(inside, outside)
    out = S.strata[0].normal_expansion(theta, loss.value)
    v = theta[:, :2]
    z = v[:, 1] / v.sum(1)
    A = PairSurgery(loss).matrix(theta)[:, 0, 0]
    torch.testing.assert_close(out.curvature[:, 0], z * (1 - z) * A, rtol=1e-10, atol=0)
    assert (A < 0).all()  # the teacher's units pull the merged unit apart ...
    assert out.curvature[0, 0] < 0  # ... which frees a pair of equal signs
    assert out.curvature[1, 0] > 0  # ... and binds a pair of opposite signs
    assert out.attracts().tolist() == [False, True]


@pytest.mark.parametrize("S", MODELS, ids=lambda S: S.name)
def test_fibres_retract_to_their_base(S):
    theta = S.sample_stratum(S.dim, 6, seed=8)
    for stratum in S.strata:
        base = stratum.retract(theta)
        N = stratum.fibre(base)
        moved = base + 1e-3 * N.sum(2)
        gap = stratum.retract(moved) - base
        assert gap.abs().max() < 1e-12
        assert (stratum.distance(moved) > 1e-5).all()


def test_resolve_lists_what_is_possible():
    with pytest.raises(ValueError, match=r"mixture A can be resolved by \['t"):
        resolve(mixture_a(), kind="moduli")
    with pytest.raises(ValueError, match="eps"):
        resolve(mixture_a(), eps=0.0)
    with pytest.raises(ValueError, match="kind, n"):
        two_unit_network("relu")
    with pytest.raises(ValueError, match="pair"):
        mixture_k(3, pair=(0, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("S", "kind", "teacher"),
    [
        (mixture_a(), "tube", [0.3, 2.0]),
        (mixture_b(), "moduli", [0.3, -1.0, 1.0]),
        (mixture_b(), "cap", [0.3, -1.0, 1.0]),
        (cone(2.0), "tube", [1.0, 0.0]),
        (two_unit_network("rbf"), "moduli", [1.0, 1.0, -1.0, 1.0]),
    ],
    ids=lambda p: getattr(p, "name", p if isinstance(p, str) else ""),
)
def test_every_kind_of_resolution_fits_its_teacher(S, kind, teacher):
    R = resolve(S, kind=kind)
    truth = torch.tensor(teacher, dtype=F64)
    theta = S.sample_stratum(S.dim, 10, seed=3)
    run = R.descend(truth, theta, lr=0.5, clip=0.5, steps=1500)
    assert run.rate() >= 0.9
    G = R.metric(run.eta)
    assert G.shape == (10, S.dim, S.dim)
    assert torch.isfinite(G).all()
    if kind == "tube":
        ok = run.success & R.exact(run.eta)
        atoms = S.chart.embed(R.pi(run.eta))
        loss = S.objective(truth).value(atoms)
        assert (loss[ok] < 2e-6).all()


def test_collar_wider_than_the_teachers_distance_is_a_warning_with_the_numbers():
    S = mixture_a()
    near = torch.tensor([0.05, 1.0], dtype=F64)
    theta = S.sample_stratum(2, 4, seed=1)
    with pytest.warns(CollarWarning, match=r"eps = 0.2 exceeds .* 0.05 .*smaller"):
        run = resolve(S, 0.2).descend(near, theta, steps=300)
    assert run.rate() == 0
    assert abs(run.loss.min() / 1.2e-4 - 1) < 0.5  # the floor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(S, 0.02).descend(near, theta, steps=3)


@pytest.mark.slow
def test_annealing_removes_the_floor_and_certifies():
    S = mixture_a()
    theta = S.sample_stratum(2, 3, seed=1)
    on = anneal(S, torch.tensor([0.0, 2.0], dtype=F64), theta, steps=200)
    assert on.loss[-1].max() < 1e-9
    assert not on.exact.any()  # the truth is on the stratum: never outside the collar
    assert abs(on.eps[-1] - 0.4 * 2**-9) < 1e-15
    truth = torch.tensor([0.05, 1.0], dtype=F64)
    near = anneal(S, truth, theta, stages=7)
    assert near.loss[-1].max() < 1e-6
    assert near.exact.all()
