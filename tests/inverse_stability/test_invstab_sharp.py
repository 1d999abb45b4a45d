"""The complete sharp theory: two inputs, norms that see angles, boxes, samples."""

import math
from fractions import Fraction

import numpy as np
import pytest
from invstab_chapter import EXPERIMENTS, EXTREMAL

from geolib.inverse_stability import (
    BiasedReLU,
    ShallowReLU,
    angle_constant,
    certify,
    in_restricted,
    planar_norms,
    sampled_bound,
    sharp_constant,
)
from geolib.inverse_stability.w1inf_seminorm import disc_or_ball


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("delta", [1e-6, 1.0, 1e4])
def test_pairs_in_the_quadrant_attain_its_constants(m, delta):
    f, g = EXTREMAL.quadrant_pair(m, delta)
    assert f.d == 2
    assert in_restricted(f)
    assert in_restricted(g)
    found = certify(f, g)
    wanted = 2 / np.sqrt(1.01) if m == 1 else sharp_constant(m - 1)
    assert found.ratio == pytest.approx(wanted, abs=1e-9)
    assert found.delta.value == pytest.approx(delta, rel=1e-12)
    assert found.holds
    assert found.bound <= sharp_constant(m, quadrant=True) * np.sqrt(delta) * (1 + 1e-9)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_quadrant_pairs_in_exact_arithmetic(m):
    """Partial sums of the jumps, with rational slopes, never leave [-1, 1]."""
    jumps, lonely = EXTREMAL.IN_QUADRANT[m]
    eps = Fraction(1, 100)
    rows = [(Fraction(j), j * eps * (k + 1)) for k, j in enumerate(jumps)]
    sums = [
        tuple(map(sum, zip(*rows[:k], strict=True))) for k in range(1, len(rows) + 1)
    ]
    for s in [(Fraction(0), Fraction(0)), *sums]:
        for entry, total in zip(s, sums[-1], strict=True):
            assert -1 <= entry <= 1
            assert -1 <= total - entry <= 1
    assert max(abs(s[0]) for s in sums) == 1
    assert len(jumps) == m + 1
    sizes = [jumps[k] for k in lonely]
    # (t + s)^2 - t^2 - s^2 = 2 t s, whose square is rational
    assert 4 * sizes[0] * sizes[1] == {2: 4, 3: 8, 4: 16}[m]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_search_stays_below_in_the_quadrant(m):
    for D in (1, 2):
        found = EXPERIMENTS.search_extremal(m, 20, 150, m, quadrant=True, D=D)
        limit = sharp_constant(m, quadrant=True)
        assert 0.7 * limit < found.best <= limit + 1e-9
        again = certify(found.f, found.g)
        assert again.applies
        assert again.ratio == pytest.approx(found.best, rel=1e-9)
        assert (found.f.A > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "D"),
    [("w1inf", 1), ("w1inf", 2), ("w1inf", 3), ("h1", 1), ("l2", 1), ("interval", 1)],
)
def test_a_hundred_thousand_trials_break_no_constant(norm, D):
    """An evolution strategy with seeds that no page uses, for each width."""
    for m in (1, 2, 3):
        for quadrant in {norm == "w1inf", False}:
            found = EXPERIMENTS.search_extremal(
                m, 100, 1000, 100 + m, norm, quadrant=quadrant, D=D
            )
            limit = sharp_constant(m, quadrant) if norm == "w1inf" else 1.0
            assert 0.3 * limit < found.best <= limit + 1e-9


@pytest.mark.parametrize("norm", ["h1", "l2"])
def test_the_search_stays_below_in_space(norm):
    for m in (1, 2, 3):
        found = EXPERIMENTS.search_in_space(m, norm, 20, 100, m)
        assert 0.2 < found.best <= 1
        assert found.best > found.start.max()
        again = certify(found.f, found.g)
        assert again.applies
        ratio = again.distance / again.bounds[norm]
        assert 0.7 * found.best < ratio <= 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["h1", "l2"])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_hundred_thousand_trials_in_space_break_no_constant(norm, m):
    found = EXPERIMENTS.search_in_space(m, norm, 100, 1000, 100 + m)
    assert 0.3 < found.best <= 1


def test_a_network_outside_the_quadrant_keeps_the_larger_constant():
    f, g = EXTREMAL.extremal_pair(2)
    flat = [ShallowReLU(n.A[:, :2], n.C) for n in (f, g)]
    found = certify(*flat)
    assert found.ratio == pytest.approx(1 + np.sqrt(2), abs=1e-9)
    assert found.holds


@pytest.mark.parametrize("theta", [0.3, 0.02, 1e-4])
def test_hats_have_the_norms_of_the_derivation(theta):
    f, g = EXTREMAL.angle_pair(theta)
    assert in_restricted(f)
    assert in_restricted(g)
    norm, found = planar_norms(f - g), certify(f, g)
    assert found.angle == pytest.approx(theta, rel=1e-9)
    assert norm.h1**2 == pytest.approx(4 * theta, rel=1e-9)
    assert norm.l2**2 == pytest.approx(theta - np.sin(2 * theta) / 2, rel=1e-4)
    assert found.distance <= angle_constant(found.angle) * np.sqrt(norm.h1)
    assert found.distance <= angle_constant(found.angle, "l2") * np.sqrt(norm.l2)


def test_angle_constants_bound_every_jump_of_random_functions():
    """The inequalities behind the constants, on kinks that nobody chose."""
    rng = np.random.default_rng(0)
    worst = {"h1": 0.0, "l2": 0.0}
    for n in range(200):
        m, D = 1 + n % 4, 1 + n % 2
        f, g = EXPERIMENTS.random_pair(rng, m, 2, D, shared=True)
        found, norm = certify(f, g), planar_norms(f - g)
        jump = np.sqrt(2 * found.half_jump)
        for name in worst:
            k = angle_constant(found.angle, name) / 2
            worst[name] = max(worst[name], jump / (k * getattr(norm, name) ** 0.5))
    assert all(0.5 < w <= 1 for w in worst.values()), worst


def test_angle_constants_of_the_plane_have_their_closed_forms():
    for theta in (1e-6, 0.02, 0.1, 1.0, np.pi / 2):
        h1 = 2 * (2 / theta) ** 0.25
        assert angle_constant(theta) == pytest.approx(h1, rel=1e-12)
    for theta in (0.3, 1.0, np.pi / 2):
        least = theta**2 - np.sin(theta) ** 2
        least /= 2 * theta + np.sin(2 * theta)
        wanted = 2 * np.sqrt(2) * least**-0.25
        assert angle_constant(theta, "l2") == pytest.approx(wanted, rel=1e-10)
    limit = 2 * np.sqrt(2) * 12**0.25
    assert angle_constant(1e-6, "l2") * 1e-6**0.75 == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("d", [3, 5])
@pytest.mark.parametrize("theta", [0.7, 1.0, np.pi / 2])
def test_no_kink_in_a_double_cone_has_less_energy_than_the_constants_say(d, theta):
    """Least squares over samples of the cone, one linear function beside the kink."""
    rng = np.random.default_rng(d)
    x = rng.normal(size=(400_000, d))
    x *= (rng.random((len(x), 1)) ** (1 / d)) / np.linalg.norm(x, axis=1, keepdims=True)
    share = np.abs(x[:, 0]) > np.cos(theta) * np.linalg.norm(x, axis=1)
    cone, ball = x[share], np.pi ** (d / 2) / math.gamma(d / 2 + 1)
    volume = ball * share.mean()
    h1 = (2 / angle_constant(theta, "h1", d)) ** 4
    assert h1 == pytest.approx(volume / 4, rel=0.03)
    one = cone[cone[:, 0] > 0]  # the two cones may use different linear functions
    fit = 2 * np.linalg.lstsq(one, np.maximum(one[:, 1], 0), rcond=None)[1][0]
    l2 = (2 / angle_constant(theta, "l2", d)) ** 4
    assert l2 == pytest.approx(ball * fit / len(x), rel=0.05)


@pytest.mark.parametrize("d", [2, 3, 6])
def test_norms_over_the_ball_agree_with_samples(d):
    rng = np.random.default_rng(d)
    f = ShallowReLU(rng.normal(size=(4, d)), rng.normal(size=(2, 4)))
    x = rng.normal(size=(200_000, d))
    x *= (rng.random((len(x), 1)) ** (1 / d)) / np.linalg.norm(x, axis=1, keepdims=True)
    ball = np.pi ** (d / 2) / math.gamma(d / 2 + 1)
    h1, l2 = disc_or_ball(f)
    assert h1**2 == pytest.approx(
        ball * (f.jacobian(x) ** 2).sum((1, 2)).mean(), rel=0.02
    )
    assert l2**2 == pytest.approx(ball * (f(x) ** 2).sum(1).mean(), rel=0.02)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_one_certificate_has_the_bounds_of_all_theorems(d):
    rng = np.random.default_rng(d)
    for n in range(40):
        f, g = EXPERIMENTS.random_pair(
            rng, 1 + n % 4 if d > 1 else 1, d, 1 + n % 2, n % 3 > 0
        )
        found = certify(f, g, samples=rng.normal(size=(20_000, d)))
        sure = {k: v for k, v in found.bounds.items() if k != "samples"}
        assert ("h1" in sure) == ("l2" in sure) == (found.angle is not None) == (d > 1)
        assert all(found.distance <= b * (1 + 1e-9) for b in sure.values()), found
        assert found.bound == min(sure.values())
        assert 0 <= found.confidence <= 1
        if found.confidence > 0.999:
            assert found.distance <= found.bounds["samples"] * (1 + 1e-9)


def test_the_angle_of_a_certificate_is_one_that_each_kink_has():
    f = ShallowReLU(np.eye(3), [[1.0, 1.0, 1.0]])
    g = ShallowReLU.zeros(3, 3)
    # in a plane with two lines at right angles a direction is 45 degrees from both
    assert 0.95 * np.pi / 4 < certify(f, g).angle <= np.pi / 4
    lone = ShallowReLU([[1.0, 1.0, 1.0]], [[1.0]])
    assert certify(lone, ShallowReLU.zeros(1, 3)).angle == np.pi / 2


def test_beyond_the_plane_samples_miss_no_more_often_than_promised():
    """The sliver between two neurons is what a sample misses."""
    f = ShallowReLU([[1.0, 0.2, 1.0], [1.0, -0.2, 1.0]], [[1.0, -1.0]])
    g, rng = ShallowReLU.zeros(2, 3), np.random.default_rng(0)
    wrong, promised = 0, []
    for n in np.repeat([20, 60, 180, 500], 100):
        found = certify(f, g, samples=rng.normal(size=(n, 3)))
        wrong += found.bounds["samples"] < found.distance
        promised.append(1 - found.confidence)
    assert min(promised) < 0.05
    assert wrong <= sum(promised)


def test_a_pair_outside_the_theorems_has_no_bound_at_all():
    f = ShallowReLU([[1.0, 1.0, 2.0]], [[1.0]])
    found = certify(f, f, samples=np.ones((1, 3)))
    assert found.bounds == {}
    assert found.bound == np.inf
    assert not found.applies
    b = BiasedReLU([[1.0]], [0.0], [[1.0]])
    with pytest.raises(ValueError, match="samples"):
        certify(b, b, box=(-1.0, 1.0), samples=np.ones((1, 1)))
    with pytest.raises(ValueError, match="x: "):
        certify(f, f, samples=np.ones((4, 2)))


def test_box_pair_attains_the_constant_on_an_interval_and_in_space():
    f, g = EXTREMAL.interval_pair(0.5)
    found = certify(f, g, box=(-1.0, 1.0))
    assert found.applies
    assert found.holds
    assert found.ratio == pytest.approx(2 * np.sqrt(2), abs=1e-9)
    wide = [BiasedReLU(np.pad(n.W, ((0, 0), (0, 2))), n.b, n.C) for n in (f, g)]
    assert certify(*wide, box=(-1.0, 1.0)).ratio == pytest.approx(found.ratio, abs=1e-9)


def test_box_theorem_on_random_pairs():
    rng = np.random.default_rng(0)
    used = 0
    for n in range(120):
        d, D, m = 1 + n % 2, 1 + n % 3, 1 + n % 4
        nets = []
        kept = None
        for _ in "fg":
            W, b = rng.normal(size=(m, d)), rng.normal(size=m)
            W[:, -1] = np.abs(W[:, -1])
            if kept is not None and n % 2:
                W[0], b[0] = kept
            kept = W[0], b[0]
            C = rng.normal(size=(D, m))
            s = np.sqrt(np.abs(C).max(axis=0) / np.abs(W).max(axis=1))
            nets.append(BiasedReLU(W * s[:, None], b * s, C / s))
        found = certify(*nets, box=(-1.0, 1.0))
        if found.applies:
            used += 1
            assert found.holds
            assert found.half_jump <= found.delta.value * (1 + 1e-9)
        else:
            assert any("box" in d for d in found.defects)
    assert used > 20


def test_a_box_is_asked_for_where_it_is_needed():
    f = BiasedReLU([[1.0]], [0.0], [[1.0]])
    with pytest.raises(ValueError, match="box"):
        certify(f, f)
    with pytest.raises(ValueError, match="box"):
        certify(
            ShallowReLU([[1.0]], [[1.0]]), ShallowReLU([[1.0]], [[1.0]]), box=(0, 1)
        )
    with pytest.raises(TypeError, match="both"):
        certify(f, ShallowReLU([[1.0]], [[1.0]]), box=(-1.0, 1.0))
    far = BiasedReLU([[1.0]], [3.0], [[1.0]])
    assert any("misses the box" in d for d in certify(f, far, box=(-1, 1)).defects)


def test_opposite_inner_weights_are_a_defect_on_a_box_too():
    f = BiasedReLU([[1.0]], [0.5], [[1.0]])
    g = BiasedReLU([[-1.0]], [0.5], [[1.0]])
    found = certify(f, g, box=(-1.0, 1.0))
    assert found.defects == ("f and g do not lie in one open half-space",)
    assert found.bound == np.inf


def test_samples_miss_as_often_as_promised():
    theta, n = 0.2, 12
    f, g = EXTREMAL.angle_pair(theta)
    delta = certify(f, g).delta.value
    rng = np.random.default_rng(1)
    missed = []
    for _ in range(400):
        x = rng.normal(size=(n, 2))
        bound, sure = sampled_bound(
            f.jacobian(x), g.jacobian(x), 4, theta / (2 * np.pi)
        )
        missed.append(bound < 0.999 * sharp_constant(4) * np.sqrt(delta))
    share = (1 - theta / np.pi) ** n  # two cells have the largest derivative
    assert abs(np.mean(missed) - share) < 4 * np.sqrt(share * (1 - share) / 400)
    assert 1 - sure >= share


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: angle_constant(0.0), "theta"),
        (lambda: angle_constant(2.0), "theta"),
        (lambda: angle_constant(0.1, "h2"), "norm"),
        (
            lambda: sampled_bound(np.ones((1, 1, 2)), np.ones((2, 1, 2)), 1, 0.1),
            "df, dg",
        ),
        (lambda: sampled_bound(np.ones((1, 1, 2)), np.ones((1, 1, 2)), 1, 0.0), "cell"),
        (lambda: sampled_bound(np.ones((1, 1, 2)), np.ones((1, 1, 2)), 0, 0.1), "m:"),
    ],
)
def test_bad_arguments_of_the_constants_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
