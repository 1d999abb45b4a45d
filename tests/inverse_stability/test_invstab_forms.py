"""Gauges that keep the function: balance, merge, normal form, the restricted set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invstab_chapter import NORMAL_FORM

from geolib.inverse_stability import (
    BiasedReLU,
    ShallowReLU,
    in_restricted,
    kinks,
    lift_inputs,
    lift_to_restricted,
)
from geolib.inverse_stability.restricted import restricted_defects

absolute_value_form = NORMAL_FORM.absolute_value_form


def draw(seed, m, d, D):
    rng = np.random.default_rng(seed)
    return ShallowReLU(rng.normal(size=(m, d)), rng.normal(size=(D, m)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.integers(1, 3))
def test_gauges_keep_the_function(seed, m, d, D):
    rng = np.random.default_rng(seed)
    f = draw(seed, m, d, D)
    A = f.A.copy()
    A[-1] = rng.choice([2.0, -3.0]) * A[0]
    f = ShallowReLU(A * 10.0 ** rng.uniform(-3, 3, size=(m, 1)), f.C)
    x = rng.normal(size=(30, d))
    scale = np.abs(f(x)).max()
    for form in (f.balance(), f.merge_parallel(), absolute_value_form(f)):
        np.testing.assert_allclose(form(x), f(x), atol=1e-12 * scale)
    even = f.balance()
    np.testing.assert_allclose(np.abs(even.A).max(1), np.abs(even.C).max(0))


def test_merge_frees_slots_at_the_end():
    f = ShallowReLU(
        [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]
    )
    g = f.merge_parallel()
    assert g.m == 4
    assert np.flatnonzero(g.A.any(axis=1)).tolist() == [0, 1, 2]


def test_merge_of_cancelling_neurons_leaves_zero():
    f = ShallowReLU([[1.0, 0.0], [2.0, 0.0]], [[2.0, -1.0]])
    assert not f.merge_parallel().A.any()


def test_normal_form_has_the_jumps():
    f = draw(0, 5, 3, 2)
    form, k = absolute_value_form(f), kinks(f)
    outer = np.einsum("oh,hd->hod", form.C, form.A)
    np.testing.assert_allclose(outer, k.jumps, atol=1e-14)
    np.testing.assert_allclose(np.abs(form.A).max(1), np.abs(form.C).max(0))
    x = np.random.default_rng(0).normal(size=(1, 3))
    mean = (f.jacobian(x) + f.jacobian(-x))[0] / 2
    np.testing.assert_allclose(form.B, mean, atol=1e-14)


def test_normal_form_of_a_linear_function():
    form = absolute_value_form(ShallowReLU([[1.0, 2.0], [-1.0, -2.0]], [[3.0, -3.0]]))
    assert form.A.shape == (0, 2)
    np.testing.assert_array_equal(form.B, [[3.0, 6.0]])
    np.testing.assert_allclose(form(np.array([[1.0, 1.0]])), [[9.0]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 2))
def test_lift_round_trip(seed, m, d, D):
    rng = np.random.default_rng(seed)
    net = BiasedReLU(
        rng.normal(size=(m, d)), rng.normal(size=m), rng.normal(size=(D, m))
    )
    lifted = lift_to_restricted(net)
    assert in_restricted(lifted)
    x = rng.normal(size=(25, d))
    np.testing.assert_allclose(lifted(lift_inputs(x)), net(x), atol=1e-12)


def test_lift_merges_before_it_lifts():
    """Two neurons equal on the slice must not become two directions of the lift."""
    net = BiasedReLU([[1.0], [2.0]], [-1.0, -2.0], [[1.0, 1.0]])
    lifted = lift_to_restricted(net)
    assert np.count_nonzero(lifted.A.any(axis=1)) == 1


@pytest.mark.parametrize(
    ("A", "C", "found"),
    [
        ([[0.5, 1.0, 1.0]], [[2.0]], ["N1"]),
        ([[2.0, -1.0, 1.0]], [[2.0]], ["N2"]),
        ([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], [[1.0, 2.0]], ["N3"]),
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 0.0]], []),
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 1.0]], ["N1", "N2"]),
    ],
)
def test_restricted_defects(A, C, found):
    assert [d[:2] for d in restricted_defects(ShallowReLU(A, C))] == found
