"""The theorems: the sharp constant, the Lipschitz regime, certificates, the search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invstab_chapter import EXPERIMENTS, EXTREMAL

from geolib.inverse_stability import (
    ShallowReLU,
    certify,
    in_restricted,
    parameter_distance,
    sharp_constant,
    w1inf_seminorm,
)

extremal_pair = EXTREMAL.extremal_pair
lipschitz_pair = EXTREMAL.lipschitz_pair

random_pair = EXPERIMENTS.random_pair


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("delta", [1e-6, 1.0, 1e4])
def test_extremal_pairs_attain_the_constant(m, delta):
    f, g = extremal_pair(m, delta)
    assert in_restricted(f)
    assert in_restricted(g)
    found = certify(f, g)
    assert found.applies
    assert found.holds
    assert found.delta.value == pytest.approx(delta, rel=1e-12)
    assert found.ratio == pytest.approx(sharp_constant(m), abs=1e-9)


def test_a_spare_neuron_lowers_the_ratio():
    f, g = extremal_pair(3)
    assert certify(f.pad(4), g.pad(4)).ratio == pytest.approx(np.sqrt(2), abs=1e-9)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(2, 3),
    st.integers(1, 2),
    st.booleans(),
)
def test_theorem_on_random_pairs(seed, m, d, D, shared):
    rng = np.random.default_rng(seed)
    f, g = random_pair(rng, m, d, D, shared)
    found = certify(f, g)
    assert found.applies, found.defects
    assert found.holds
    assert found.ratio <= sharp_constant(m) + 1e-9
    assert found.half_jump <= found.delta.value * (1 + 1e-12)
    assert found.delta_at_least <= found.delta.value * (1 + 1e-12)
    assert found.distance <= 2 * np.sqrt(2 * found.half_jump) * (1 + 1e-9)
    s = 10.0 ** rng.uniform(-2, 2)
    big = certify(ShallowReLU(s * f.A, s * f.C), ShallowReLU(s * g.A, s * g.C))
    assert big.distance == pytest.approx(s * found.distance, rel=1e-12)
    assert big.delta.value == pytest.approx(s * s * found.delta.value, rel=1e-9)


@pytest.mark.slow_for("[23]-*")
@pytest.mark.parametrize(("D", "bound"), [(1, 1.0), (2, 3.0), (3, 3.0)])
def test_lipschitz_regime(D, bound):
    """When both nets are larger than the jump, distance is linear in delta."""
    rng = np.random.default_rng(D)
    worst, used = 0.0, 0
    for _ in range(400):
        f, _ = random_pair(rng, 3, 2, D)
        A = f.A * (1 + 0.03 * rng.normal(size=(3, 1)))
        C = f.C * (1 + 0.03 * rng.normal(size=f.C.shape))
        scale = np.sqrt(np.abs(C).max(0) / np.abs(A).max(1))
        g = ShallowReLU(A * scale[:, None], C / scale)
        delta = w1inf_seminorm(f - g).value
        mu = min(np.abs(n.A).max(1).min() for n in (f, g))
        if delta < mu**2 / 2:
            used += 1
            worst = max(worst, parameter_distance(f, g) * mu / delta)
    assert used > 30
    assert 0.1 < worst <= bound + 1e-9


def test_counterexample_with_two_outputs():
    """Unbalanced nets with D = 2: the recalled form fails, balancing rescues."""
    ratios = []
    for M in (1.0, 10.0, 100.0, 1000.0):
        f = ShallowReLU([[4e-3 / M, 2e-3 / M]], [[M], [0.0]])
        g = ShallowReLU([[1.0, 0.5]], [[4e-3], [1e-3]])
        delta = w1inf_seminorm(f - g).value
        distance = parameter_distance(f, g, "scale")
        assert np.abs(f.A).max() * np.abs(f.C).max() > 2 * delta
        ratios.append(distance / np.sqrt(delta))
        fixed = parameter_distance(f.balance(), g.balance())
        assert fixed / np.sqrt(delta) < 1
    assert ratios[-1] > 1000
    assert np.all(np.diff(ratios) > 0)


def test_certificate_checks_its_hypotheses():
    f = ShallowReLU([[1.0, 1.0]], [[1.0]])
    cases = {
        "is unbalanced": ShallowReLU([[1.0, 1.0]], [[3.0]]),
        "parallel": ShallowReLU([[1.0, 1.0], [2.0, 2.0]], [[1.0, 2.0]]),
        "half-space": ShallowReLU([[-1.0, -1.0]], [[1.0]]),
    }
    for word, g in cases.items():
        found = certify(f, g)
        assert not found.applies
        assert any(word in d for d in found.defects)
        assert found.bound == np.inf
        assert found.delta_at_least == 0.0


def test_half_space_is_found_when_it_is_tilted():
    """All rows on one side of a hyperplane that no coordinate shows."""
    rng = np.random.default_rng(0)
    v = np.array([1.0, -2.0, 0.5])
    A = rng.normal(size=(6, 3))
    A *= np.sign(A @ v)[:, None]
    C = np.abs(A).max(1)[None, :]
    assert certify(ShallowReLU(A[:3], C[:, :3]), ShallowReLU(A[3:], C[:, 3:])).applies


def test_counts_of_matched_directions():
    f, g = extremal_pair(3)
    found = certify(f, g)
    assert (found.matched, found.unmatched) == (2, 2)


@pytest.mark.slow_for("[23]")
@pytest.mark.parametrize("m", [1, 2, 3])
def test_search_never_beats_the_constant_and_is_confirmed(m):
    found = EXPERIMENTS.search_extremal(m, restarts=60, steps=400, seed=1)
    assert found.best <= sharp_constant(m) + 1e-9
    assert found.best > 1.6
    assert (found.ratios >= found.start).all()
    again = certify(found.f, found.g)
    assert again.applies
    assert again.ratio == pytest.approx(found.best, rel=1e-9)


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("delta", [0.1, 1e-2, 1e-3, 1e-4])
def test_three_is_sharp_for_two_outputs(delta, eps):
    """In N*, all kinks matched, mu = 1, and distance / delta = 3 - 7/2 delta + ..."""
    f, g = lipschitz_pair(delta, eps)
    assert in_restricted(f)
    assert in_restricted(g)
    found = certify(f, g)
    assert (found.matched, found.unmatched) == (3, 0)
    assert found.applies
    assert found.smallest == pytest.approx(1, rel=1e-15)
    assert found.delta.value == pytest.approx(delta, rel=1e-11)
    assert found.bound == pytest.approx(3 * found.half_jump, rel=1e-9)
    assert found.holds
    want = (1 - (1 - 2 * delta) / np.sqrt(1 + 2 * delta)) / delta
    assert found.distance / found.delta.value == pytest.approx(want, rel=1e-9)
    assert 3 - 3.5 * delta <= want < 3


@pytest.mark.parametrize(("D", "bound"), [(1, 1.0), (2, 3.0), (3, 3.0)])
def test_search_never_beats_the_lipschitz_constant(D, bound):
    found = EXPERIMENTS.search_lipschitz(D, restarts=40, steps=300, seed=1)
    assert (0.9 if D == 1 else 2.95) < found.best <= bound + 1e-9
    assert (found.ratios >= found.start).all()
    again = certify(found.f, found.g)
    assert again.applies
    assert again.delta.value < again.smallest**2 / 2
    ratio = again.distance * again.smallest / again.delta.value
    assert ratio == pytest.approx(found.best, rel=1e-8)


@pytest.mark.slow_for("3")
@pytest.mark.parametrize("d", [1, 3])
def test_a_single_kink_needs_no_exception(d):
    """Both networks on one hyperplane: the ratio is at most s(1) = 2."""
    rng = np.random.default_rng(d)
    worst = 0.0
    for _ in range(300):
        t, s = 10.0 ** rng.uniform(-1, 1, size=2)
        signs = rng.choice([-1.0, 1.0], size=2)
        u = np.abs(rng.normal(size=(1, d))) + 0.1
        u /= u.max()
        found = certify(
            ShallowReLU(t * u, [[t * signs[0]]]), ShallowReLU(s * u, [[s * signs[1]]])
        )
        assert found.applies
        assert found.holds
        assert found.bound <= 2 * np.sqrt(found.delta.upper) * (1 + 1e-12)
        worst = max(worst, found.ratio)
    assert 1.2 < worst <= 2
