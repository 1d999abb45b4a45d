"""Distances against brute force, dense grids and closed forms."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invstab_chapter import EXPERIMENTS, NORMAL_FORM, PATHOLOGIES

from geolib.inverse_stability import (
    ShallowReLU,
    closest_parametrization,
    parameter_distance,
    w1inf_seminorm,
)
from geolib.inverse_stability.distance import bottleneck_assignment, scale_costs

Pathology, triangle = PATHOLOGIES.Pathology, PATHOLOGIES.triangle
pathology_rates = PATHOLOGIES.pathology_rates
distance_to_line = PATHOLOGIES.distance_to_line
random_pair = EXPERIMENTS.random_pair
absolute_value_form = NORMAL_FORM.absolute_value_form

KS = [1.0, 3.0, 30.0, 1000.0]


def draw(seed, m, d=2, D=1):
    rng = np.random.default_rng(seed)
    return ShallowReLU(rng.normal(size=(m, d)), rng.normal(size=(D, m)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_bottleneck_equals_brute_force(seed, m):
    cost = np.random.default_rng(seed).integers(0, 6, size=(m, m)).astype(float)
    value, columns = bottleneck_assignment(cost)
    assert sorted(columns) == list(range(m))
    assert cost[np.arange(m), columns].max() == value
    assert value == min(
        cost[np.arange(m), list(p)].max() for p in permutations(range(m))
    )


def test_bottleneck_differs_from_the_sum_assignment():
    cost = np.array([[0.0, 3.0], [3.0, 5.0]])  # sums 5 and 6, maxima 5 and 3
    assert bottleneck_assignment(cost)[0] == 3.0


def test_scale_cost_against_a_grid():
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    u, w = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    u[0, 0] = 0.0
    cost, scale = scale_costs(a, c, u, w)
    grid = np.exp(np.linspace(-10, 10, 40001))[:, None]
    for i in range(6):
        for j in range(5):
            inner = np.abs(a[i] - grid * u[j]).max(1)
            outer = np.abs(c[i] - w[j] / grid).max(1)
            best = np.maximum(inner, outer).min()
            assert cost[i, j] <= best + 1e-12
            assert cost[i, j] >= best - 2e-3 * (1 + best)
            s = scale[i, j]
            got = max(np.abs(a[i] - s * u[j]).max(), np.abs(c[i] - w[j] / s).max())
            assert got == pytest.approx(cost[i, j], rel=1e-12, abs=1e-15)


def test_dead_neuron_is_matched_by_its_whole_fibre():
    f = ShallowReLU([[3.0, 0.0]], [[2.0]])
    g = ShallowReLU([[5.0, 5.0]], [[0.0]])
    found = closest_parametrization(f, g, "scale")
    assert found.distance == 2.0  # keep a, set c to zero
    np.testing.assert_array_equal(found.net.A, f.A)
    assert not found.net.C.any()


def test_p0_distance_is_k():
    for k, g in Pathology.exploding_gradient(KS):
        assert parameter_distance(ShallowReLU.zeros(2, 2), g, "sign") == pytest.approx(
            k, rel=1e-12
        )
        assert max(np.abs(g.A).max(), np.abs(g.C).max()) >= k


@pytest.mark.parametrize("r", [0.5, 1.0, 4.0])
def test_p1_distance_is_r(r):
    case = Pathology.unbalanced([16.0, 1e3], r)
    for _, g in case:
        assert parameter_distance(case.base, g, "sign") == pytest.approx(r, rel=1e-12)


def test_p2_distance_is_one():
    case = Pathology.redundant(KS)
    for k, g in case:
        assert parameter_distance(case.base, g, "sign") == pytest.approx(1, rel=1e-12)
        assert w1inf_seminorm(g - case.base).value == pytest.approx(1 / k)


def test_p3_distances():
    case = Pathology.opposite_between(KS)
    for k, g in case:
        assert parameter_distance(case.base, g, "sign") == pytest.approx(
            np.sqrt(0.75), rel=1e-12
        )
        assert w1inf_seminorm(g - case.base).value == pytest.approx(1 / k)
    within = Pathology.opposite_within(KS)
    bound = distance_to_line(within.base.A, within.sequence[0].A[0]).min()
    assert bound == pytest.approx(np.sin(0.4) / (np.sin(0.4) + np.cos(0.4)), rel=1e-14)


def test_p3b_in_the_limit_both_signs_are_the_same_function():
    A = triangle()
    f, g = ShallowReLU(A, np.ones((1, 3))), ShallowReLU(-A, np.ones((1, 3)))
    assert w1inf_seminorm(f - g).value < 1e-15
    assert parameter_distance(f, g, "scale") > 0.8
    found = closest_parametrization(f, g, "sign")
    assert found.distance < 1e-12
    np.testing.assert_allclose(found.net.A, A, atol=1e-12)


def test_distance_to_line_against_a_grid():
    points = np.random.default_rng(0).normal(size=(8, 2))
    v = np.array([0.3, -1.1])
    grid = np.linspace(-8, 8, 200001)[:, None]
    for p, d in zip(points, distance_to_line(points, v), strict=True):
        assert d == pytest.approx(np.abs(p - grid * v).max(1).min(), abs=1e-4)


@pytest.mark.slow_for("redundant-*", "unbalanced-*", "exploding*")
@pytest.mark.parametrize(
    ("make", "slopes"),
    [
        (Pathology.exploding_gradient, (-1, 2, 1, None)),
        (Pathology.unbalanced, (-1, -1, 0, -0.5)),
        (Pathology.redundant, (-1, -1, 0, -0.5)),
        (Pathology.opposite_within, (-1, -1, 0, -0.5)),
        (Pathology.opposite_between, (-1, -1, 0, -1)),
    ],
)
def test_rates(make, slopes):
    found = pathology_rates(make([2.0**k for k in range(11)])).slopes()
    want = dict(zip(("uniform", "w1inf", "distance", "repaired"), slopes, strict=True))
    assert found == pytest.approx(
        {name: v for name, v in want.items() if v is not None}, abs=1e-9
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 2))
def test_permutation_distance(seed, m, D):
    f, g = draw(seed, m, 2, D), draw(seed + 1, m, 2, D)
    distance = parameter_distance(f, g)
    assert distance == parameter_distance(g, f)
    brute = min(
        max(np.abs(f.A - g.A[list(p)]).max(), np.abs(f.C - g.C[:, list(p)]).max())
        for p in permutations(range(m))
    )
    assert distance == brute
    order = np.random.default_rng(seed).permutation(m)
    assert parameter_distance(f, ShallowReLU(g.A[order], g.C[:, order])) == distance


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_gauges_contain_one_another(seed, m):
    f, g = draw(seed, m), draw(seed + 1, m)
    by = [parameter_distance(f, g, k) for k in ("permutation", "scale", "sign")]
    assert by[0] >= by[1] - 1e-12 >= by[2] - 2e-12
    x = np.random.default_rng(seed).normal(size=(20, 2))
    for gauge in ("permutation", "scale", "sign"):
        found = closest_parametrization(f, g, gauge)
        np.testing.assert_allclose(found.net(x), g(x), atol=1e-9)
        gap = max(np.abs(found.net.A - f.A).max(), np.abs(found.net.C - f.C).max())
        assert gap == pytest.approx(found.distance, rel=1e-9, abs=1e-12)


def test_scale_gauge_undoes_any_rescaling():
    f = draw(0, 6, 3, 2)
    s = 10 ** np.random.default_rng(1).uniform(-2, 2, size=6)
    g = ShallowReLU(f.A * s[:, None], f.C / s)
    assert parameter_distance(f, g) > 1
    assert parameter_distance(f, g, "scale") < 1e-12


@pytest.mark.slow
def test_normal_forms_are_close():
    """Theorem C on unrestricted pairs, opposite and shared directions included."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for n in range(150):
        d, D = 2 + n % 2, 1 + n % 2
        A = rng.normal(size=(4, d))
        B = np.where(rng.random((4, 1)) < 0.5, -1.0, 1.0) * A
        B[3] = rng.normal(size=d)
        f = ShallowReLU(A, rng.normal(size=(D, 4)))
        g = ShallowReLU(B, rng.normal(size=(D, 4)))
        terms, linear = absolute_value_form(f).distance(absolute_value_form(g))
        delta = w1inf_seminorm(f - g).value
        assert linear <= delta * (1 + 1e-9)
        worst = max(worst, terms / np.sqrt(delta))
    assert 0.5 < worst <= 2 * np.sqrt(2)


def test_random_pairs_share_directions_when_asked():
    f, g = random_pair(np.random.default_rng(0), 6, shared=True)
    unit = [n.A / np.abs(n.A).max(1, keepdims=True) for n in (f, g)]
    same = np.abs(unit[0] - unit[1]).max(1) < 1e-12
    assert 0 < same.sum() < 6
