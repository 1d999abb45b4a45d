"""The semi-norm against sampling, MILP, rational arithmetic and quadrature."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invstab_chapter import PATHOLOGIES
from invstab_milp import milp_bracket
from scipy.optimize import linprog

from geolib.inverse_stability import (
    BiasedReLU,
    ShallowReLU,
    kinks,
    planar_norms,
    seminorm_on_box,
    w1inf_seminorm,
)
from geolib.inverse_stability.arrangement import enumerate_cells
from geolib.inverse_stability.kinks import ROUNDING

Pathology = PATHOLOGIES.Pathology


def draw(seed, m, d, D=1):
    rng = np.random.default_rng(seed)
    return ShallowReLU(rng.normal(size=(m, d)), rng.normal(size=(D, m)))


@pytest.mark.slow_for("3-10-*", "4-*")
@pytest.mark.parametrize(("d", "m", "D"), [(2, 8, 1), (3, 8, 1), (3, 10, 2), (4, 8, 2)])
def test_exact_equals_sampling_and_milp(d, m, D):
    net = draw(m, m, d, D)
    exact = w1inf_seminorm(net, "cells")
    x = np.random.default_rng(0).normal(size=(100_000, d))
    sampled = np.abs(net.jacobian(x)).max()
    assert sampled <= exact.value + 1e-12
    seen = len(np.unique((x @ net.A.T > 0) @ 2 ** np.arange(m)))
    assert seen <= exact.cells
    if seen == exact.cells:  # every cell was hit: then the maximum was, too
        assert sampled == pytest.approx(exact.value, rel=1e-13)
    lower, upper = milp_bracket(kinks(net))
    assert lower == pytest.approx(exact.value, rel=1e-12)
    assert upper == pytest.approx(exact.value, rel=1e-6)
    rough = w1inf_seminorm(net, "bounds", samples=64)
    assert rough.lower <= exact.value * (1 + 1e-12)
    assert rough.upper >= exact.value * (1 - 1e-12)


def test_gradients_on_cells_equal_autograd():
    net = draw(3, 6, 3, 2)
    k = kinks(net)
    x = np.random.default_rng(1).normal(size=(200, 3))
    ours = k.gradients(np.where(x @ k.normals.T > 0, 1, -1))
    A, C = torch.tensor(net.A), torch.tensor(net.C)
    theirs = torch.func.vmap(torch.func.jacrev(lambda z: C @ torch.relu(A @ z)))(
        torch.tensor(x)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-14)


def exact_seminorm(A, C):
    """Rational arithmetic over every sign vector that an exact LP-free test admits."""
    from test_invstab_arrangement import exact_topes

    D, m = len(C), len(A)
    best = Fraction(0)
    for sigma in exact_topes(A):
        for o, j in product(range(D), range(len(A[0]))):
            entry = sum(
                (Fraction(C[o][i]) * A[i][j] for i in range(m) if sigma[i] > 0),
                Fraction(0),
            )
            best = max(best, abs(entry))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_equals_rational_arithmetic(seed):
    """Integer weights with pairwise distinct lines, three inputs, two outputs."""
    rng = np.random.default_rng(seed)
    A = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, -1, 0], [0, 1, -1]]
    A = [[int(v) for v in row] for row in rng.permutation(np.array(A))]
    C = rng.integers(-5, 6, size=(2, 6)).tolist()
    C = [[int(v) or 1 for v in row] for row in C]
    got = w1inf_seminorm(ShallowReLU(A, C), "cells").value
    assert got == pytest.approx(float(exact_seminorm(A, C)), rel=1e-14)


def test_cells_are_the_feasible_linear_programs():
    """Another route: a sign vector is a cell when an LP finds a point with margin."""
    normals = draw(5, 5, 3).A / np.linalg.norm(draw(5, 5, 3).A, axis=1)[:, None]
    feasible = set()
    for sigma in product((-1, 1), repeat=5):
        rows = -np.array(sigma)[:, None] * normals
        lp = linprog(np.zeros(3), A_ub=rows, b_ub=-np.ones(5), bounds=(None, None))
        if lp.status == 0:
            feasible.add(sigma)
    assert {tuple(map(int, s)) for s in enumerate_cells(normals)[0]} == feasible


def test_auto_picks_an_affordable_method():
    assert w1inf_seminorm(draw(0, 6, 3)).method == "cells"
    assert w1inf_seminorm(draw(0, 5, 8)).method == "separable"
    wide = w1inf_seminorm(draw(0, 60, 20))
    assert wide.method == "bounds"
    assert wide.lower < wide.upper
    with pytest.raises(ValueError, match="only a bracket"):
        _ = wide.value


def test_separable_equals_cells():
    net = draw(2, 5, 8, 2)
    assert w1inf_seminorm(net).value == pytest.approx(
        w1inf_seminorm(net, "cells").value
    )


def test_zero_network_and_cancelling_neurons():
    assert w1inf_seminorm(ShallowReLU.zeros(3, 2)).value == 0.0
    assert w1inf_seminorm(draw(1, 4, 3) - draw(1, 4, 3)).value == 0.0


def test_sliver_that_sampling_cannot_see():
    net = Pathology.exploding_gradient([1024.0]).sequence[0]
    assert w1inf_seminorm(net).value == 1024.0**2
    x = np.random.default_rng(0).normal(size=(10000, 2))
    assert np.abs(net.jacobian(x)).max() < 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 7), st.integers(1, 2))
def test_properties_of_a_norm(seed, d, m, D):
    f, g = draw(seed, m, d, D), draw(seed + 1, m, d, D)
    a, b, sum_ = (
        w1inf_seminorm(f).value,
        w1inf_seminorm(g).value,
        w1inf_seminorm(f - g).value,
    )
    assert sum_ <= (a + b) * (1 + 1e-12)
    assert abs(a - b) <= sum_ * (1 + 1e-12) + 1e-12
    assert kinks(f).half_jump <= a * (1 + 1e-12)
    doubled = ShallowReLU(2 * f.A, 3 * f.C)
    assert w1inf_seminorm(doubled).value == pytest.approx(6 * a, rel=1e-12)
    order = np.random.default_rng(seed).permutation(m)
    assert w1inf_seminorm(
        ShallowReLU(f.A[order], f.C[:, order])
    ).value == pytest.approx(a)


@pytest.mark.parametrize("d", [1, 2])
def test_box_against_sampling(d):
    """Biases on a box: never below a dense sample, and equal to it in one dimension."""
    for seed in range(20):
        rng = np.random.default_rng([seed, d])
        W, b = rng.normal(size=(4, d)), rng.normal(size=4)
        C = rng.normal(size=(1, 4))
        low, high = -np.ones(d), 1 + rng.random(d)
        x = rng.uniform(low, high, size=(20000, d))
        on = (x @ W.T + b > 0).astype(float)
        sampled = np.abs(np.einsum("nm,om,md->nod", on, C, W)).max()
        exact = seminorm_on_box(BiasedReLU(W, b, C), low, high).value
        assert sampled <= exact + 1e-12
        assert d == 2 or sampled == pytest.approx(exact, rel=1e-12)


def test_box_ignores_kinks_outside():
    net = BiasedReLU([[1.0, 0.0]], [-5.0], [[7.0]])
    assert seminorm_on_box(net, -1.0, 1.0).value == 0.0
    assert seminorm_on_box(net, -1.0, 6.0).value == 7.0


def test_box_of_a_large_central_cube_is_the_homogeneous_case():
    net = draw(9, 5, 2)
    biased = BiasedReLU(net.A, np.zeros(5), net.C)
    assert seminorm_on_box(biased, -1.0, 1.0).value == pytest.approx(
        w1inf_seminorm(net).value, rel=1e-14
    )


@pytest.mark.parametrize("seed", range(4))
def test_planar_norms_against_quadrature(seed):
    net = draw(seed, 5, 2, 2)
    phi = (np.arange(200000) + 0.5) * 2 * np.pi / 200000
    e = np.column_stack([np.cos(phi), np.sin(phi)])
    norms = planar_norms(net)
    value, grad = net(e), net.jacobian(e)
    assert norms.l2 == pytest.approx(np.sqrt((value**2).sum(1).mean() * np.pi / 2))
    h1 = np.sqrt((grad**2).sum((1, 2)).mean() * np.pi)
    assert norms.h1 == pytest.approx(h1, rel=1e-4)
    assert norms.w1inf == pytest.approx(w1inf_seminorm(net).value, rel=1e-14)
    edge = e / np.abs(e).max(1, keepdims=True)
    assert norms.uniform >= np.abs(net(edge)).max() - 1e-12
    assert norms.uniform == pytest.approx(np.abs(net(edge)).max(), rel=1e-4)


def test_beyond_the_tolerance_there_is_a_bracket():
    """Kinks 1e-12 apart: the truth is 1e8 and must lie inside, not be called 1e-4."""
    net = Pathology.exploding_gradient([1e4]).sequence[0]
    found = w1inf_seminorm(net)
    assert found.tolerance == 1e-12
    assert not found.exact
    assert 0 < found.lower <= 1e8 <= found.upper <= 1.01e8
    with pytest.raises(ValueError, match="with tolerance 1e-12"):
        _ = found.value
    assert w1inf_seminorm(net, tol=1e-15).value == 1e8
    assert found.lower == kinks(net, 1e-15).half_jump


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(-13.0, -3.0))
@example(263, 2, -13.0)  # the pair differs by rounding only and counts as one
def test_every_bracket_holds_the_truth(seed, d, exponent):
    """Pairs of close directions under a coarse tolerance, against that of rounding."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(5, d))
    A[3] = 2 * A[0] + 10.0**exponent * rng.normal(size=d)
    net = ShallowReLU(A, rng.normal(size=(2, 5)))
    truth = w1inf_seminorm(net, tol=ROUNDING)
    found = w1inf_seminorm(net, tol=1e-2)
    assert found.lower <= truth.upper * (1 + 1e-12)
    assert found.upper >= truth.lower * (1 - 1e-12)


def test_directions_equal_up_to_rounding_stay_exact():
    rng = np.random.default_rng(0)
    f = draw(3, 5, 3)
    g = ShallowReLU(f.A * (rng.random((5, 1)) + 0.3) / 3 * 7, f.C * 1.1)
    assert w1inf_seminorm(f - g).exact
    assert w1inf_seminorm(f - g).tolerance == 1e-11  # that of rays


def test_nearly_concurrent_planes_are_bracketed():
    """Three planes that miss a common line by 1e-12: a tiny cell may go unseen."""
    A = [[1.0, 0.2, 0.0], [0.2, 1.0, 0.0], [1.2, 1.2, 1e-12], [0.3, 0.4, 1.0]]
    net = ShallowReLU(A, [[-1.0, -1.0, 3.0, 0.5]])
    found = w1inf_seminorm(net, "cells")
    assert not found.exact
    assert found.lower == pytest.approx(3 * 1.2 - 0.2 + 0.2)  # of the second input
    assert found.upper == pytest.approx(3 * 1.2 + 0.2)  # first two off, the others on


def test_box_with_nearly_equal_hyperplanes_is_bracketed():
    net = BiasedReLU([[1.0], [1.0]], [0.0, -1e-13], [[5.0, -5.0]])
    found = seminorm_on_box(net, -1.0, 1.0)
    assert not found.exact
    assert found.lower <= 5 <= found.upper
