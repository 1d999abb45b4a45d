"""Descent, escape, training on the restricted set, and the one-dimensional test bed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from invstab_chapter import DESCENT, PATHOLOGIES, STAIRCASE, TRAINING

from geolib.inverse_stability import (
    ShallowReLU,
    in_restricted,
    lift_inputs,
)

Pathology = PATHOLOGIES.Pathology

Staircase = STAIRCASE.Staircase
escape_degenerate = DESCENT.escape_degenerate
gradient_descent = DESCENT.gradient_descent
mean_square = DESCENT.mean_square
mean_square_gradient = DESCENT.mean_square_gradient
train_shallow = TRAINING.train_shallow
initial_network = TRAINING.initial_network
MODES = TRAINING.MODES


def draw(seed, m, d, D):
    rng = np.random.default_rng(seed)
    return ShallowReLU(rng.normal(size=(m, d)), rng.normal(size=(D, m)))


def test_gradient_equals_autograd():
    net = draw(0, 5, 3, 2)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    loss, gA, gC = mean_square_gradient(net, x, y)
    A = torch.tensor(net.A, requires_grad=True)
    C = torch.tensor(net.C, requires_grad=True)
    out = torch.relu(torch.tensor(x) @ A.T) @ C.T
    value = ((out - torch.tensor(y)) ** 2).mean()
    value.backward()
    assert loss == pytest.approx(value.item(), rel=1e-13)
    np.testing.assert_allclose(gA, A.grad.numpy(), atol=1e-13)
    np.testing.assert_allclose(gC, C.grad.numpy(), atol=1e-13)


@pytest.mark.slow
def test_descent_lowers_the_loss_and_stays_in_the_ball():
    net, centre = draw(0, 4, 2, 1), draw(0, 4, 2, 1)
    x = np.random.default_rng(1).normal(size=(50, 2))
    y = draw(5, 4, 2, 1)(x)
    free = gradient_descent(net, x, y, 300, 0.02)
    assert free.losses[-1] < 0.5 * free.losses[0]
    assert len(free.losses) == 301
    tied = gradient_descent(net, x, y, 300, 0.02, ball=(centre, 0.05)).net
    assert np.abs(tied.A - centre.A).max() <= 0.05 + 1e-15
    assert np.abs(tied.A - centre.A).max() == pytest.approx(0.05)
    with pytest.raises(ValueError, match="diverges"):
        gradient_descent(net, x, y, 3000, 1e3)


def grid():
    t = (np.arange(12) + 0.5) / 6 - 1
    x = np.stack(np.meshgrid(t, t), -1).reshape(-1, 2)
    y = 2 * np.maximum(x[:, :1], 0) - np.maximum(-x[:, :1], 0)
    return x, y


@pytest.mark.slow
def test_degenerate_minimum_and_its_escape():
    """E3 in small: nothing in the ball of radius one is better, the escape is."""
    x, y = grid()
    base = Pathology.redundant([1.0]).base
    start = mean_square(base, x, y)
    rng = np.random.default_rng(0)
    for _ in range(200):
        near = ShallowReLU(
            base.A + rng.uniform(-1, 1, (2, 2)), base.C + rng.uniform(-1, 1, (1, 2))
        )
        assert mean_square(near, x, y) >= start
    moved = escape_degenerate(base, x, base(x) - y)
    assert mean_square(moved, x, y) < start
    assert gradient_descent(moved, x, y, 3000, 0.3).losses[-1] < 1e-9
    ball = (base, 1.0)
    assert gradient_descent(base, x, y, 200, 0.1, ball).losses[-1] == start


def test_escape_direction_is_the_best_of_a_fine_grid():
    x, y = grid()
    base = Pathology.redundant([1.0]).base
    moved = escape_degenerate(base, x, base(x) - y, candidates=4000)
    phi = np.linspace(0, 2 * np.pi, 4001)[:, None]
    u = np.hstack([np.cos(phi), np.sin(phi)])
    u /= np.abs(u).max(1, keepdims=True)
    pull = np.abs(np.maximum(u @ x.T, 0) @ (base(x) - y)).max()
    new = moved.A[1] / np.abs(moved.A[1]).max()
    got = np.abs(np.maximum(new @ x.T, 0) @ (base(x) - y)).max()
    assert got == pytest.approx(pull, rel=5e-3)
    assert moved.C[0, 1] == pytest.approx(-0.01)


def test_escape_leaves_a_fitted_network_alone():
    x, _ = grid()
    base = Pathology.redundant([1.0]).base
    moved = escape_degenerate(base, x, 0 * base(x))
    np.testing.assert_allclose(moved(x), base(x), atol=1e-14)
    assert not moved.A[1].any()


@pytest.mark.parametrize("mode", MODES)
def test_training_starts_from_one_function_and_stays_restricted(mode):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = np.abs(x[:, :1]) - x[:, 1:2]
    (run,) = train_shallow(x, y, 8, mode, steps=150, lr=0.02, seeds=[3])
    start = initial_network(3, 8, 1, 3)
    assert run.losses[0] == pytest.approx(((start(x) - y) ** 2).mean(), rel=1e-12)
    assert run.losses[-1] == pytest.approx(((run.predict(x) - y) ** 2).mean())
    assert run.losses[-1] < 0.3 * run.losses[0]
    lifted = run.restricted()
    assert in_restricted(lifted)
    np.testing.assert_allclose(lifted(lift_inputs(x)), run.predict(x), atol=1e-12)


def test_classification():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    (run,) = train_shallow(
        x, y, 12, "projected", loss="cross_entropy", steps=200, lr=0.05
    )
    assert (run.predict(x).argmax(1) == y).mean() > 0.9


def test_same_seed_same_run():
    x = np.random.default_rng(0).normal(size=(20, 2))
    runs = [
        train_shallow(x, x[:, :1] ** 2, 4, steps=20, seeds=[5])[0].losses
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("mode", MODES)
def test_seeds_trained_side_by_side_do_not_see_each_other(mode):
    x = np.random.default_rng(0).normal(size=(20, 2))
    y = np.abs(x[:, :1])
    both = train_shallow(x, y, 4, mode, steps=30, seeds=[5, 6])
    for seed, run in zip((5, 6), both, strict=True):
        (alone,) = train_shallow(x, y, 4, mode, steps=30, seeds=[seed])
        np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-12)
        np.testing.assert_allclose(run.predict(x), alone.predict(x), rtol=1e-10)


def brute(f, pieces):
    """All ways to cut the slopes into at most pieces + 1 runs."""
    from itertools import combinations

    s, best = f.slopes, np.inf
    for n in range(min(pieces, len(s) - 1) + 1):
        for cut in combinations(range(1, len(s)), n):
            runs = np.split(s, cut)
            best = min(best, max((r.max() - r.min()) / 2 for r in runs))
    return best


def variation(f):
    return np.abs(np.diff(f.slopes)).sum()


def staircase(rng, n):
    return Staircase(np.sort(rng.random(n)), rng.normal(size=n + 1))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 4))
def test_best_approximation_is_optimal(seed, n, pieces):
    f = staircase(np.random.default_rng(seed), n)
    h, distance = f.best_approximation(pieces)
    assert len(h.breaks) <= pieces
    assert distance == pytest.approx(brute(f, pieces), abs=1e-14)
    assert f.distance(h) == pytest.approx(distance, abs=1e-14)
    assert variation(h) <= variation(f) + 1e-12


@pytest.mark.parametrize("m", [2, 5, 10])
def test_approximation_error_of_the_ramp(m):
    """f' rising by V in n equal steps: the error tends to V / (2 (m + 1))."""
    n = 600
    f = Staircase(np.arange(1, n) / n, np.linspace(0, 4, n))
    error = f.best_approximation(m)[1]
    assert error <= 4 / (2 * (m + 1))
    assert error == pytest.approx(4 / (2 * (m + 1)), rel=0.02)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_the_proofs_inequality(seed):
    """L(h) <= (1 - w) L(g*) + w L(g) + c eta, and h stays within r'/2 + eta of g*."""
    rng = np.random.default_rng(seed)
    m, radius = 4, rng.uniform(0.1, 3)
    star, g, goal = (staircase(rng, m) for _ in range(3))
    weight = min(1.0, radius / (2 * star.distance(g)))
    mixed = star.combine(g, weight)
    h = star.realization_move(g, radius, m)
    eta = mixed.best_approximation(m)[1]
    assert h.distance(star) <= radius / 2 + eta + 1e-12
    bound = (1 - weight) * goal.distance(star) + weight * goal.distance(g) + eta
    assert goal.distance(h) <= bound + 1e-12
