"""Training in realization space against dense grids, random moves and its own dual."""

from dataclasses import replace

import numpy as np
import pytest
from chapter_experiments import chapter_module, experiments
from scipy.optimize import minimize

from geolib.inverse_stability import ShallowReLU, w1inf_seminorm

EXPERIMENTS = experiments("inverse_stability")
REALIZATIONS = chapter_module("inverse_stability", "experiments_realizations")
engine = chapter_module("inverse_stability", "realization_training")
train_realization = engine.train_realization
PENALTY = 3e-3


def data(loss, n=40, seed=0):
    x, y = REALIZATIONS.wave(n, seed)
    return x, (y > 0).astype(float) if loss == "cross_entropy" else y


def objective(net, x, y, loss, penalty=PENALTY):
    f = net(x)[:, 0]
    if loss == "mse":
        value = ((f - y) ** 2).mean() / 2
    else:
        value = -(y * np.log(1 / (1 + np.exp(-f)))).mean()
        value -= ((1 - y) * np.log(1 / (1 + np.exp(f)))).mean()
    sizes = np.abs(net.A).max(1) * np.abs(net.C).max(0)
    return value + penalty * sizes.sum()


def circle(count):
    """Directions of max-norm one, all around."""
    t = 2 * np.pi * np.arange(count) / count
    u = np.column_stack([np.cos(t), np.sin(t)])
    return u / np.abs(u).max(1, keepdims=True)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_optimum_of_the_plane_is_bracketed_by_a_dual_point_of_a_dense_grid(loss):
    x, y = data(loss)
    fit = train_realization(x, y, 100, loss=loss, penalty=PENALTY, seed=None)
    assert fit.exact
    assert fit.local_minimum
    assert 0 <= fit.gap + 1e-12 <= 1e-9
    assert objective(fit.net, x, y, loss) == pytest.approx(fit.objective, rel=1e-12)
    f = fit.net(x)[:, 0]
    g = (f - y if loss == "mse" else 1 / (1 + np.exp(-f)) - y) / len(y)
    slopes = np.abs(np.maximum(x @ circle(20001).T, 0).T @ g)
    assert slopes.max() <= PENALTY * (1 + 1e-9)  # dual feasible: no neuron would help
    assert slopes.max() >= PENALTY * (1 - 1e-3)


def test_the_optimum_against_another_solver_on_a_grid_of_directions():
    x, y = data("mse")
    features = np.maximum(x @ circle(400).T, 0)
    features = np.concatenate([features, -features], axis=1)

    def value(w):
        gap = features @ w - y
        slope = features.T @ gap / len(y) + PENALTY
        return (gap**2).mean() / 2 + PENALTY * w.sum(), slope

    bounds = [(0, None)] * features.shape[1]
    options = {"maxiter": 2000, "maxfun": 4000}
    start = np.zeros(features.shape[1])
    other = minimize(value, start, jac=True, bounds=bounds, options=options).fun
    fit = train_realization(x, y, 100, penalty=PENALTY, seed=None)
    assert fit.objective <= other <= 1.02 * fit.objective


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("width", [2, 4, 30])
def test_no_small_move_of_the_weights_improves_a_certified_local_minimum(loss, width):
    x, y = data(loss)
    rng = np.random.default_rng(1)
    for seed in range(3):
        fit = train_realization(x, y, width, loss=loss, penalty=PENALTY, seed=seed)
        assert fit.local_minimum
        for scale in 10.0 ** rng.uniform(-7, -4, size=100):
            A = fit.net.A + scale * rng.normal(size=fit.net.A.shape)
            C = fit.net.C + scale * rng.normal(size=fit.net.C.shape)
            moved = objective(ShallowReLU(A, C), x, y, loss)
            assert moved >= fit.objective - 1e-13


@pytest.mark.parametrize("stopped", ["_slide", "_grow"])
def test_what_stopped_early_is_no_local_minimum_and_says_so(stopped, monkeypatch):
    monkeypatch.setattr(engine._Edges, stopped, lambda self, rates: False)
    x, y = data("mse")
    start = 0 if stopped == "_slide" else None
    fit = train_realization(x, y, 4, penalty=PENALTY, seed=start)
    assert not fit.local_minimum
    assert fit.steepest > 1e-3


def test_beyond_the_plane_nothing_is_certified():
    x = np.random.default_rng(0).normal(size=(20, 3))
    fit = train_realization(x, x[:, 0], 3, penalty=0.01)
    assert not fit.exact
    assert not replace(fit, steepest=0.0).local_minimum


def test_spare_neurons_make_every_local_minimum_global_and_few_do_not():
    x, y = data("mse")
    best = train_realization(x, y, 200, penalty=PENALTY, seed=None).objective
    few = [train_realization(x, y, 2, penalty=PENALTY, seed=s) for s in range(5)]
    wide = [train_realization(x, y, 30, penalty=PENALTY, seed=s) for s in range(5)]
    assert min(f.objective for f in few) > 1.1 * best
    for fit in wide:
        assert len(fit.net.live) < 30
        assert fit.objective == pytest.approx(best, rel=1e-9)
        assert fit.gap <= 1e-9


def test_three_inputs_of_which_one_is_zero_are_the_plane():
    x, y = data("mse", n=30)
    best = train_realization(x, y, 60, penalty=PENALTY, seed=None).objective
    flat = np.column_stack([x, np.zeros(len(x))])
    fit = train_realization(flat, y, 60, penalty=PENALTY, seed=None)
    assert fit.lower <= best <= fit.objective + 1e-12
    assert fit.objective <= 1.05 * best


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_of_all_slopes_bounds_sampled_ones(seed):
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=(12, 4)), rng.normal(size=12)
    u = rng.uniform(-1, 1, size=(20_000, 4))
    u[:16] = np.stack(np.meshgrid(*[[-1, 1]] * 4), -1).reshape(-1, 4)
    sampled = np.abs(np.maximum(x @ u.T, 0).T @ g).max()
    coarse, fine = (engine._largest_slope(x, g, 0.0, n) for n in (32, 20_000))
    assert sampled <= fine <= 1.1 * sampled
    assert fine < coarse <= 8 * sampled
    assert engine._largest_slope(x, g, 2 * sampled, 32) <= 2.0001 * sampled
    assert engine._largest_slope(x, g, 0.6 * sampled, 20_000) >= sampled


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_boxes_find_the_slope_that_the_arrangement_of_the_plane_has(loss):
    """Branch and bound knows nothing of vertices; in the plane these are exact."""
    x, y = data(loss)
    for seed in range(3):
        fit = train_realization(x, y, 4, loss=loss, penalty=PENALTY, seed=seed)
        g, _ = engine._Problem(x, y, loss, PENALTY).slopes(fit.net(x)[:, 0])
        corners = engine._Edges(engine._Problem(x, y, loss, PENALTY), 1, None).phi
        exact = np.abs(corners.T @ g).max()
        found = engine._largest_slope(x, g, exact * (1 + 1e-6), 10**5)
        assert exact <= found <= exact * (1 + 1e-5)


def test_a_relaxed_box_bounds_every_direction_in_it():
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=(15, 3)), rng.normal(size=15)
    for _ in range(50):
        middle, half = rng.uniform(-1, 1, 3), rng.uniform(0, 1, 3)
        box = np.concatenate([middle, half, [1.0]])[None]
        u = middle + half * rng.uniform(-1, 1, (4000, 3))
        u[:8] = middle + half * np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
        inside = (np.maximum(x @ u.T, 0).T @ g).max()
        assert inside <= engine._relaxed(x, g, box)[0][0] + 1e-12


@pytest.mark.slow
def test_more_boxes_close_the_gap_beyond_the_plane():
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = np.maximum(x[:, 0], 0) - np.abs(x[:, 1])
    few, many = (
        train_realization(x, y, 80, penalty=0.03, seed=None, boxes=n)
        for n in (12, 200_000)
    )
    assert few.objective == many.objective
    assert few.lower < many.lower <= many.objective
    assert many.gap < 0.01 * many.objective < 0.1 * few.gap


@pytest.mark.parametrize("seed", range(4))
def test_one_coordinate_is_maximized_as_on_a_dense_grid(seed):
    rng = np.random.default_rng(seed)
    z, column, pull = rng.normal(size=(3, 15))
    grid = np.linspace(-1, 1, 4001)
    value = np.maximum(z[:, None] + column[:, None] * grid, 0).T @ pull
    v = engine._best_on_line(z, column, pull)
    found = np.maximum(z + v * column, 0) @ pull
    assert value.max() - 1e-12 <= found <= value.max() + 0.05


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_lipschitz_constants_are_not_broken_by_random_pairs(loss):
    x, y = data(loss)
    rng, largest = np.random.default_rng(0), 0.0
    value = engine._Problem(x, y, loss, 1.0).value
    for _ in range(300):
        pair = [ShallowReLU(rng.normal(size=(3, 2)), rng.normal(size=(1, 3)))]
        pair.append(EXPERIMENTS.perturbed(pair[0], rng, 10 ** rng.uniform(-3, 0)))
        radius = max((np.abs(n.A).max(1) * np.abs(n.C[0])).sum() for n in pair)
        gap = abs(np.subtract(*[value(n(x)[:, 0]) for n in pair]))
        delta = w1inf_seminorm(pair[0] - pair[1]).upper
        bound = REALIZATIONS.lipschitz(x, y, loss, radius) * delta
        assert gap <= bound
        largest = max(largest, gap / bound)
    assert largest >= 0.02  # the bound is of the right order


def test_the_certified_radius_is_always_below_what_the_theorem_asks_for():
    rows = REALIZATIONS.local_minima(data("mse"), (2, 4, 30), 3, "mse", PENALTY)
    assert len(rows) == 9
    full = [r for r in rows if r["neurons"] == r["width"]]
    assert len(full) >= 6
    for row in full:
        assert 2 * row["eta"] > row["patch"]
        assert row["loss_excess"] <= row["lipschitz"]
    assert all(r["relative"] <= 1e-9 for r in rows if r["neurons"] < r["width"])


def test_the_fan_is_as_far_from_few_neurons_as_the_bound_says():
    for m in (4, 16):
        assert 1 <= REALIZATIONS.fan_gap(m) * 2 * (m + 1) <= 1.5


X, Y = np.ones((3, 2)), np.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y, 0), {}, "width: expected"),
        ((X, Y, float("nan")), {}, "width: expected"),
        ((X, Y, "4"), {}, "width: expected"),
        ((X, Y[:2], 4), {}, "y: .* with n = 3 as in x"),
        ((X * np.nan, Y, 4), {}, "x: expected finite"),
        ((X, Y + np.inf, 4), {}, "y: expected finite"),
        ((X[:0], Y[:0], 4), {}, "x: .* shape"),
        ((X[0], Y, 4), {}, "x: .* shape"),
        ((X, Y[:, None], 4), {}, "y: .* shape"),
        ((X.astype(complex), Y, 4), {}, "x: expected finite real numbers"),
        ((X, Y, 4), {"penalty": 0.0}, "penalty: expected"),
        ((X, Y, 4), {"penalty": float("nan")}, "penalty: expected"),
        ((X, Y, 4), {"loss": "hinge"}, "loss: expected"),
        ((X, Y + 2, 4), {"loss": "cross_entropy"}, "y: expected zeros and ones"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train_realization(*arguments, **options)
