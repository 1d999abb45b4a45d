"""The ensemble and `predict` against training runs and against other arrangements."""

from time import process_time

import matplotlib
import numpy as np
import pytest
from chapter_experiments import chapter_module

from geolib.regimes import (
    Rule,
    Setup,
    SpectralMeasure,
    draw_weights,
    ensemble,
    gradient_flow,
    large_data_next,
    marchenko_pastur,
    mean_field_next,
    narrow,
    predict,
    prepare,
    simulate,
    small_data,
)
from geolib.regimes.ensemble import LEVELS, _Copies, neighbours, smaller
from geolib.regimes.spectral_measures import equal_shares

matplotlib.use("Agg")
TRIAL = chapter_module("regimes", "experiments_trial")


def test_a_small_setup_is_averaged_as_it_is():
    setup = Setup(24, 8, 30, 0.5 / 24)
    t = setup.times(9)
    found = ensemble(setup, t)
    assert found.share == 1.0
    assert 128 <= found.copies <= 512
    run = simulate(setup, t, seeds=200)
    for ours, theirs, scatter in zip(
        found.mean, (run.train / 24, run.population / 24), found.scatter, strict=True
    ):
        sd = theirs.std(0, ddof=1)
        noise = sd * (1 / 48 + 1 / 200) ** 0.5
        assert (np.abs(ours - theirs.mean(0)) < 4 * noise + 1e-4 * ours[0]).all()
        seen = sd > 1e-3 * ours[0]
        assert scatter[seen] == pytest.approx(sd[seen], rel=0.5)


POWER = SpectralMeasure.of_eigenvalues(np.arange(1, 31.0) ** -1.5)
STARTS = {
    "gaussian": (Setup(30, 50, 45, 0.05), {}, 1.0),
    "unseen inputs": (Setup(60, 9, 4, 0.05), {}, 1.0),
    "few levels": (Setup(60, 50, 3, 0.05), {}, 1.0),
    "free": (Setup(30, 20, 45, 0.05), {"target": False}, 1.0),
    "a law": (Setup(30, 20, 45, 0.05), {"law": POWER}, 1.0),
    "a population": (
        Setup(30, 20, 45, 0.05),
        {"law": POWER, "population": np.diag(np.arange(30.0))},
        1.0,
    ),
    "smaller copies of a law": (Setup(30, 40, 45, 0.05), {"law": POWER}, 0.7),
}


@pytest.mark.parametrize("name", STARTS)
def test_the_expected_first_losses_are_those_of_the_copies(name):
    """Plain means of 512 copies, of the loss and of its square with any data."""
    setup, options, share = STARTS[name]
    options = {"law": None, "population": None, "target": True, **options}
    found = _Copies(setup, np.zeros(1), **options).run(share, 1e12)
    error = found.scatter[:, 0] / len(found.losses) ** 0.5
    off = np.abs(found.losses.mean(0)[:, 0] - found.first)
    assert (off < 4 * error + 1e-12).all()


@pytest.mark.parametrize(
    ("d", "h", "n", "small", "samples"),
    [(308, 72, 985, 171, True), (100, 64, 257, 86, True), (90, 60, 45, 30, True),
     (50, 3, 2, 11, True), (50, 33, 70, 20, False), (40, 1, 1, 10, True)],
)  # fmt: skip
def test_smaller_copies_keep_the_ratios_on_average(d, h, n, small, samples):
    found = neighbours(Setup(d, h, n, 1.0), small, samples)
    assert sum(w for w, _ in found) == pytest.approx(1, abs=1e-8)
    assert all(s.d == small and s.kappa == pytest.approx(d) for _, s in found)
    wide = sum(w * s.h for w, s in found)
    assert wide == pytest.approx(max(1, h * small / d), abs=1e-6)
    if samples:
        assert sum(w * s.n for w, s in found) == pytest.approx(max(1, n * small / d))
    assert len(found) <= 3


@pytest.mark.parametrize(("h", "n"), [(34, 130), (21, 97)])
def test_the_plateau_of_smaller_copies_is_exact(h, n):
    """Few latents end with a loss of (1 - h / d) / 2, in every draw."""
    setup = Setup(53, h, n, 0.2 / 53)
    found = ensemble(setup, [0.0, 6.0], budget=1e8)
    assert found.share < 0.9
    assert found.mean.population[1] == pytest.approx((1 - h / 53) / 2, abs=2e-6)


def test_inputs_that_nothing_sees_leave_both_losses_their_law():
    """Of 60 inputs 4 are seen; 9 latents turn the others to 9, at all times."""
    setup = Setup(60, 9, 4, 0.3 / 60)
    t = setup.times(7)
    found = ensemble(setup, t)
    assert _Copies(setup, t, None, None, True).shape(setup) == (9, 13)
    run = simulate(setup, t, seeds=300)
    for ours, theirs in zip(found.mean, (run.train, run.population), strict=True):
        noise = theirs.std(0, ddof=1) / 60 * (1 / 300 + 1 / found.copies) ** 0.5
        assert (np.abs(ours - theirs.mean(0) / 60) < 4 * noise + 1e-4 * ours[0]).all()


@pytest.mark.slow
def test_first_losses_make_the_mean_surer():
    """At a large start, against 2,000 runs."""
    setup = Setup(30, 12, 60, 6 / 30)
    t = setup.times(5)
    found = _Copies(setup, t, None, None, True).run(1.0, 1e8)
    assert len(found.losses) < 60
    run = simulate(setup, t, seeds=2000, rtol=1e-4)
    for ours, error, plain, theirs in zip(
        *found.expected,
        found.scatter * len(found.losses) ** -0.5,
        (run.train / 30, run.population / 30),
        strict=True,
    ):
        noise = theirs.std(0) / 2000**0.5
        assert error[0] < 1e-9
        assert (error < plain).all()
        assert (np.abs(ours - theirs.mean(0)) < 4 * error + 4 * noise).all()


def test_the_scatter_of_one_run_is_read_off_smaller_copies():
    """At a third of the size: lambda times a copy's for Gaussian data."""
    setup, t = Setup(96, 32, 144, 0.5 / 96), np.linspace(0, 2, 9)
    whole = ensemble(setup, t, budget=2e10)
    small = ensemble(setup, t, budget=2e8)
    assert whole.share == 1.0
    assert small.share < 0.5
    for ours, theirs in zip(small.scatter, whole.scatter, strict=True):
        assert 0.7 < ours.max() / theirs.max() < 1.4


def test_one_direction_scatters_as_the_root_of_its_weights():
    """It decides alone and has h weights: the root of lambda times a copy's scatter."""
    setup = Setup(64, 384, 64, 0.02 / 64)
    law = SpectralMeasure.of_eigenvalues([*np.linspace(0.1, 0.3, 63), 40.0])
    t = np.linspace(0, 0.06, 9)
    whole = ensemble(setup, t, law, budget=2e10)
    small = ensemble(setup, t, law, budget=2e8)
    assert whole.share == 1.0
    assert small.share < 0.45
    assert 0.7 < small.scatter.train.max() / whole.scatter.train.max() < 1.4


@pytest.mark.slow
@pytest.mark.parametrize(("h", "n"), [(200, 200), (100, 200), (200, 60)])
def test_smaller_copies_are_right_within_their_doubt(h, n):
    setup = Setup(200, h, n, 0.3 / 200)
    t = setup.times(9)
    small = ensemble(setup, t, budget=1e9)
    assert small.share < 0.7
    run = simulate(setup, t, seeds=4)
    for ours, doubt, theirs in zip(
        small.mean, small.doubt, (run.train / 200, run.population / 200), strict=True
    ):
        noise = theirs.std(0, ddof=1) / 2
        assert (np.abs(ours - theirs.mean(0)) < 2 * doubt + 4 * noise).all()


def test_few_samples_see_few_levels_of_the_weights():
    """The banded draw has the moments x^T (W^T W)^k x of the whole matrix."""
    setup, n = Setup(120, 90, 3, 1 / 120), 3
    copies = _Copies(setup, np.zeros(1), None, None, True)
    assert copies.shape(setup) == (LEVELS * n, (LEVELS + 1) * n)
    rng, moments = np.random.default_rng(0), np.zeros((2, 4))
    for _ in range(300):
        banded = copies.weights(setup, rng)[:, ::-1] * setup.sigma2**0.5
        whole = rng.standard_normal((90, 120)) * setup.sigma2**0.5
        for row, W in zip(moments, (banded, whole), strict=True):
            v = np.eye(W.shape[1])[:, :n]
            for k in range(4):
                v = W.T @ (W @ v)
                row[k] += np.trace(v[:n]) / n / 300
    assert moments[0] == pytest.approx(moments[1], rel=0.05)


@pytest.mark.slow
def test_a_law_that_is_given_is_kept():
    setup = Setup(40, 20, 80, 0.5 / 40)
    values = np.linspace(0.2, 1.8, 40)
    rng = np.random.default_rng(3)
    data = prepare(np.sqrt(values)[:, None] * rng.standard_normal((40, 90)))
    t = np.linspace(0, 1, 5)
    found = ensemble(setup, t, data.law)
    runs = [
        gradient_flow(draw_weights(setup, s), data.X, t).train[0] for s in range(48)
    ]
    sd = found.scatter.train
    off = np.abs(found.mean.train - np.mean(runs, 0) / 40)
    assert (off < 4 * sd * (2 / 48) ** 0.5 + 1e-4).all()


def test_smaller_copies_keep_the_leading_eigenvalues():
    """Two spikes: means over equal shares would move the first one by a tenth."""
    setup = Setup(64, 384, 64, 0.02 / 64)
    law = SpectralMeasure.of_eigenvalues([*np.linspace(0.1, 0.3, 62), 12.0, 30.0])
    t = np.linspace(0, 0.08, 9)
    whole = ensemble(setup, t, law, budget=8e9)
    small = ensemble(setup, t, law, budget=1.2e9)
    assert whole.share == 1.0
    assert 0.5 < small.share < 0.8
    for a, b in zip(whole.mean, small.mean, strict=True):
        assert np.abs(a - b).max() < 0.02 * a[0]
    # With a population of its own the training loss is that of S all the same.
    P = np.diag(law.nodes)
    same = ensemble(setup, t, law, P, budget=3e8).mean
    assert same.population == pytest.approx(same.train, rel=1e-9)


def test_the_free_flow_has_no_target():
    setup = Setup(32, 32, 64, 200 / 32)
    t = setup.times(5)
    free = ensemble(setup, t, target=False).mean.train
    run = simulate(setup, t, seeds=40, target=False).train / 32
    assert free == pytest.approx(run.mean(0), rel=0.1)


def test_equal_shares_keep_the_mean():
    law = marchenko_pastur(1.0, 2.0)
    shares = equal_shares(law, law.nodes, 37)
    assert shares.mean() == pytest.approx(1.0)
    assert np.count_nonzero(shares) in (18, 19)  # half of the mass is an atom at zero


def test_a_smaller_setup_keeps_the_ratios():
    setup = Setup(391, 57, 118, 0.01)
    small = smaller(setup, 0.3)
    assert small.d <= 0.3 * 391 + 1
    assert small.kappa == pytest.approx(setup.kappa)
    assert (small.eta, small.c) == pytest.approx((setup.eta, setup.c), rel=0.02)


def test_no_prediction_is_negative_where_the_graph_was():
    """Setups of the kind whose losses over a latent root fell below zero."""
    rng = np.random.default_rng(11)
    for d, h, n in (
        (160, 80, 20),
        (60, 20, 12),
        (60, 30, 60),
        (60, 6, 90),
        (60, 48, 6),
    ):
        answer = predict(Setup(d, h, n, rng.uniform(0.2, 2) / d), budget=1e9)
        assert answer.train.min() >= 0
        assert answer.population.min() >= 0


def test_low_effective_rank_is_seen():
    """Two latents on a power law: the narrow face, exact at time 0, is not named."""
    rng = np.random.default_rng(0)
    X = np.arange(1, 61)[:, None] ** -0.75 * rng.standard_normal((60, 300))
    answer = predict(prepare(X), h=2, sigma2=0.3 / 60, budget=1e9)
    assert "narrow" not in answer.regime.active
    assert answer.regime.errors["narrow"] > 0.2
    found = answer.check(6)
    assert max(found.error) < 0.05
    assert found.inside >= 0.8
    with pytest.warns(UserWarning, match="narrow theory used outside"):
        wrong = predict(prepare(X), h=2, sigma2=0.3 / 60, theory="narrow", budget=1e9)
    # Its curves are off, and its bar says so.
    assert np.abs(wrong.train - answer.train).max() > 0.05 * answer.train[0]
    assert (np.abs(wrong.train - answer.train) <= wrong.train_bar).all()


def test_own_units_come_back():
    rng = np.random.default_rng(5)
    raw = 3.0 * np.linspace(0.5, 1.5, 12)[:, None] * rng.standard_normal((12, 50)) + 7
    answer = predict(raw, h=6, sigma2=0.05, budget=1e9)
    own = answer.in_data_units()
    centred = raw - raw.mean(1, keepdims=True)
    assert answer.data.mean == pytest.approx(raw.mean(1))
    run = gradient_flow(draw_weights(answer.setup, 0), centred, own.times)
    same = gradient_flow(draw_weights(answer.setup, 0), answer.data.X, answer.times)
    assert run.train[0] == pytest.approx(same.train[0] * answer.data.scale**2, rel=1e-4)
    assert (np.abs(run.train[0] - own.train) <= own.train_bar).all()


def test_plot_and_check():
    answer = predict(Setup(20, 10, 40, 0.02), budget=1e9)
    axes = answer.plot()
    assert [line.get_label() for line in axes.lines] == ["train", "population"]
    assert axes.lines[0].get_ydata() == pytest.approx(answer.train)
    found = answer.check(4)
    assert found.runs.train.shape == (4, 41)
    run = simulate(Setup(20, 10, 40, 0.02), answer.times, seeds=4)
    assert found.runs.train == pytest.approx(run.train / 20, rel=1e-4)


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan, np.inf])
def test_a_bad_budget_is_refused(budget):
    with pytest.raises(ValueError, match="^budget: "):
        predict(Setup(8, 4, 8, 0.1), budget=budget)


STIFF = {
    "large_data_next": lambda: large_data_next([0, 1e6], 1.0, 1.0),
    "large_data_next-rho": lambda: large_data_next([0, 1.0], 1e12, 1.0),
    "mean_field_next": lambda: mean_field_next([0, 1e6], 0.5, 1.0),
    "mean_field_next-rho": lambda: mean_field_next([0, 1.0], 1e12, 1.0),
    "narrow": lambda: narrow([0, 1e6], 0.5, 1.0),
    "small_data": lambda: small_data([0, 1e6], 0.5, 1.0),
    "small_data-rho": lambda: small_data([0, 1.0], 1e12, 1.0),
    "ensemble": lambda: ensemble(Setup(20, 10, 40, 0.05), [0, 1e6]),
    "predict": lambda: predict(Setup(256, 256, 65536, 1 / 256), [0, 1e6]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STIFF)
def test_what_is_too_stiff_is_refused_in_time(name):
    before = process_time()
    with pytest.raises(ValueError, match="^times: .*expected an e"):
        STIFF[name]()
    assert process_time() - before < 20


@pytest.mark.slow
def test_a_theory_that_is_too_stiff_leaves_the_others():
    """From weights of 1e6 the equations of small data do not reach the end."""
    setup, t = Setup(8, 8, 64, 1e12), [0.0, 1.0]
    assert "small-data" not in predict(setup, t, budget=1e8).regime.errors
    with pytest.raises(ValueError, match="too stiff"):
        predict(setup, t, theory="small-data", budget=1e8)


def test_long_times_that_can_be_followed_are_answered():
    """A wide network is trained to the end long before."""
    found = ensemble(Setup(16, 32, 64, 0.5 / 16), [0.0, 300.0], budget=1e9)
    assert found.mean.population[1] < 1e-6
    one = SpectralMeasure.of_eigenvalues([1.0])
    r = 1 / (1 - (1 - 1e-12) * np.exp(-4))  # r' = 4 r (1 - r)
    assert narrow([0.0, 1.0], 1e12, law=one).train[1] == pytest.approx(-r * (1 - r / 2))


def test_bad_times_seeds_and_tolerance_are_refused():
    setup = Setup(8, 4, 8, 0.1)
    for times in ([], [np.nan], [1.0, 0.5], [-1.0]):
        with pytest.raises(ValueError, match="^times: "):
            ensemble(setup, times)
    with pytest.raises(ValueError, match="^tol: "):
        predict(setup, tol=np.nan)
    with pytest.raises(ValueError, match="^seeds: "):
        predict(setup, budget=1e8).check(0)


def test_gradient_descent_by_name():
    setup = Setup(20, 10, 40, 0.02)
    named = predict(setup, rule="gd", lr=0.1, budget=1e8)
    ruled = predict(setup, rule=Rule(0.1), budget=1e8)
    assert np.array_equal(named.train, ruled.train)
    assert named.rule == Rule(0.1)
    for options, message in (
        ({"rule": "gd"}, "^lr: "),
        ({"lr": 0.1}, "^lr: "),
        ({"rule": Rule(0.1), "lr": 0.1}, "^lr: "),
        ({"rule": "adam"}, "^rule: expected 'gd'"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(setup, budget=1e8, **options)


def test_check_says_no():
    """A prediction that is wrong is outside, and its error is that wrong."""
    from dataclasses import replace

    answer = predict(Setup(20, 10, 40, 0.02), budget=1e9)
    off = replace(answer, train=answer.train + 2 * answer.train_bar)
    found = off.check(4)
    assert found.inside == 0.0
    assert found.error.train > answer.train_bar.max() / answer.train[0]


@pytest.mark.slow
def test_the_trial_scores_a_wrong_answer_as_wrong():
    spec = TRIAL.Trial(6)
    row = TRIAL.trial(spec)
    assert row["error"] == pytest.approx(row["error"])
    assert row["least"] == 0.0
    assert row["named"] <= row["best"] + 0.03
    setup = TRIAL.random_setup(6)
    assert (setup.d, setup.h) == (row["d"], row["h"])
    answer = predict(setup, budget=1e9)
    runs = np.stack([np.stack([answer.train, answer.population])] * 3) * 2.0
    scored = TRIAL.score(answer, runs)
    assert scored["error"] == pytest.approx([0.5, 0.5], rel=1e-6)
    assert scored["runs_inside"] == 0.0
