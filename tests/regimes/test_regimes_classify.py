import numpy as np
import pytest
from chapter_experiments import experiments

from geolib.regimes import (
    RegimeWarning,
    Setup,
    classify_regime,
    ensemble,
    gradient_flow,
    loss_words,
    marchenko_pastur,
    planar_loss,
    predict,
    prepare,
    simulate,
    theory_curves,
)
from geolib.regimes.loss_curves import Curves
from geolib.regimes.predict import NEXT, THEORIES, curve_errors
from geolib.regimes.setup import first_loss
from geolib.regimes.trace_words import spectral_table, value

EXPERIMENTS = experiments("regimes")


@pytest.mark.parametrize(
    ("sizes", "name", "error"),
    [
        ((256, 256, 16384, 1 / 256), "large-data", 0.0152),
        ((256, 16384, 256, 0.2 / 16384), "mean-field", 0.0135),
        ((1600, 11, 800, 0.5 / 1600), "narrow", 0.0166),
        ((800, 800, 11, 1 / 800), "small-data", 0.0989),
        ((256, 256, 256, 100 / 256), "free", 0.0101),
    ],
)
def test_clear_faces(sizes, name, error):
    regime = classify_regime(*sizes)
    assert regime.name == regime.best == name
    assert regime.active == (name,)
    assert regime.errors[name] == pytest.approx(error, abs=5e-4)


def test_interior_edge_and_vertex():
    assert classify_regime(256, 256, 256, 1 / 256).name == "interior"
    edge = classify_regime(256, 16384, 16384, 0.2 / 16384)
    assert edge.active == ("large-data", "mean-field")
    vertex = classify_regime(1000, 10, 100000, 0.05)
    assert vertex.name == "large-data x narrow x free"


def test_one_face_is_approached_as_its_limit_is():
    for name, sizes in {
        "large-data": lambda k: (100, 100, 100 * k, 0.01),
        "small-data": lambda k: (100 * k, 100 * k, 100, 0.01 / k),
        "mean-field": lambda k: (100, 100 * k, 100, 0.003 / k),
        "narrow": lambda k: (100 * k, 100, 100 * k, 0.005 / k),
        "free": lambda k: (100, 100, 100, k),
    }.items():
        errors = [classify_regime(*sizes(k)).errors[name] for k in (10, 100, 1000)]
        assert errors[1] < errors[0] / 4
        assert errors[2] == pytest.approx(errors[1] / 10, rel=0.1)


def test_spectral_table_is_the_planar_expansion():
    rho, kappa, c = 0.6, 1.3, 0.7
    law = marchenko_pastur(1.0, c)
    moments = tuple(law.moment(j) for j in range(1, 6))
    for kind in ("train", "population"):
        exact = [value(terms, rho, kappa, c) for terms in planar_loss(kind, 3)]
        for s in range(4):
            table = spectral_table(kind, s, moments)
            got = sum(f * rho**k * kappa ** (l - k) for (l, k), f in table.items())
            assert got == pytest.approx(exact[s], rel=1e-10)


def test_spectral_table_is_right_for_a_spectrum_that_is_not_marchenko_pastur():
    d, h = 180, 90
    values = np.where(np.arange(d) < 60, 2.2, 0.4)
    rng = np.random.default_rng(0)
    totals = np.zeros(2)
    for _ in range(4):
        W = rng.standard_normal((h, d)) / np.sqrt(d)
        A, S = W.T @ W, np.diag(values)
        for s in (1, 2):
            for word, k in loss_words("train", s)[s].items():
                product = np.eye(d)
                for letter in word:
                    product = product @ (A if letter == "A" else S)
                totals[s - 1] += k * np.trace(product) / (2 * d) / 4
    moments = tuple(float(np.mean(values**j)) for j in range(1, 5))
    for s in (1, 2):
        table = spectral_table("train", s, moments)
        expected = sum(f * 0.5**k for (_, k), f in table.items())  # kappa = 1
        assert totals[s - 1] == pytest.approx(expected, rel=0.03)


def test_classify_data_agrees_with_the_sizes_on_gaussian_data():
    rng = np.random.default_rng(1)
    for d, h, n, sigma2 in ((64, 64, 4096, 1 / 64), (64, 4096, 64, 0.2 / 4096)):
        data = prepare(rng.standard_normal((d, n)), centre=False)
        ours = classify_regime(data, h, sigma2=sigma2)
        sizes = classify_regime(d, h, n, sigma2)
        assert ours.name == sizes.name
        best = sizes.best
        assert ours.errors[best] == pytest.approx(sizes.errors[best], rel=0.25)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((4, 4, 4), "all four"),
        ((4, 4, 4, -1.0), r"^sigma2: "),
        ((4.5, 4, 4, 1.0), r"^problem: "),
    ],
)
def test_classify_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        classify_regime(*arguments)


def test_classify_refuses_a_bad_tolerance():
    with pytest.raises(ValueError, match=r"^tol: "):
        classify_regime(4, 4, 4, 1.0, tol=0.0)


def test_prepare_scales_whitens_and_drops():
    rng = np.random.default_rng(2)
    raw = rng.standard_normal((5, 40)) * np.array([[9.0], [3], [1], [0.5], [0.0]]) + 4
    data = prepare(raw, drop_constant=True)
    assert (data.d, data.n, data.dropped) == (4, 40, 1)
    assert np.trace(data.S) == pytest.approx(4.0)
    assert np.abs(data.X.mean(1)).max() < 1e-12
    assert np.allclose(data.S @ data.vectors, data.vectors * data.values)
    total, squares = data.values.sum(), (data.values**2).sum()
    assert data.effective_rank == pytest.approx(total**2 / squares)
    white = prepare(raw, drop_constant=True, whiten=True)
    assert np.allclose(white.S, np.eye(4), atol=1e-10)
    part = white.take(slice(0, 20))
    assert part.n == 20
    assert np.allclose(part.X, white.X[:, :20])
    plain = prepare(raw[:4], centre=False, scale=False)
    assert np.array_equal(plain.X, raw[:4])
    P = np.diag([1.0, 2.0, 3.0, 4.0])
    expected = np.diag(plain.vectors.T @ P @ plain.vectors)
    assert np.allclose(plain.overlap(P), expected)
    with pytest.raises(ValueError, match=r"^covariance: "):
        plain.overlap(np.eye(3))


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (np.array([[1, np.nan], [0, 1]]), r"1 of 4 .* finite, the first at \[0, 1\]"),
        ([[1.0, 1.0], [0.0, 1.0]], "1 of 2 coordinates are constant"),
        ([[1.0, 1.0]], "constant"),
        ([1.0, 2.0], r"shape \(d, n\)"),
        ([[1.0]], "two or more samples"),
    ],
)
def test_prepare_refuses(X, said):
    with pytest.raises(ValueError, match=said):
        prepare(X)


def test_all_constant_is_refused_even_when_dropping():
    with pytest.raises(ValueError, match="2 of 2 coordinates are constant"):
        prepare(np.ones((2, 5)), drop_constant=True)


SETUPS = {
    "large-data": Setup(96, 96, 1536, 1 / 96),
    "mean-field": Setup(96, 3072, 96, 0.2 / 3072),
    "narrow": Setup(192, 3, 192, 0.5 / 192),
    "free": Setup(96, 96, 96, 0.6),
    "interior": Setup(96, 96, 96, 0.5 / 96),
}


@pytest.mark.parametrize("name", SETUPS)
def test_predict_picks_the_face_and_its_bar_covers_the_simulation(name):
    setup = SETUPS[name]
    answer = predict(setup, tol=0.1, budget=3e9)
    wanted = "ensemble" if name == "interior" else name
    assert answer.theory.removesuffix(" + next") == wanted
    assert name in answer.regime.name
    run = simulate(setup, answer.times, seeds=3)
    d = setup.d
    off = np.abs(run.train.mean(0) / d - answer.train)
    assert (off <= answer.train_bar).all()
    off = np.abs(run.population.mean(0) / d - answer.population)
    assert (off <= answer.population_bar).all()
    assert answer.train_bar.max() < 0.3 * answer.train[0]
    assert np.isfinite(answer.train).all()


def test_small_data_is_predicted_too():
    setup = Setup(800, 800, 11, 1 / 800)
    assert predict(setup, tol=0.1, budget=3e9).theory == "small-data"


def test_a_theory_outside_its_regime_warns_with_regime_and_error():
    setup = SETUPS["mean-field"]
    with pytest.warns(RegimeWarning, match=r"narrow theory .*'mean-field'.* error is"):
        predict(setup, theory="narrow", budget=1e9)
    predict(
        setup, theory="mean-field + next", budget=1e9
    )  # no warning: they are errors


@pytest.mark.slow
def test_free_is_not_looked_at_where_its_start_is_known_to_be_off():
    """The losses at time 0 are known; from 200 they are those without the target."""
    near, far = Setup(20, 20, 40, 200 / 20), Setup(20, 10, 40, 8 / 20)
    assert "free" in predict(near, budget=1e8).theories
    answer = predict(far, budget=1e8)
    assert "free" not in answer.theories
    with pytest.warns(RegimeWarning, match="free theory used outside"):
        asked = predict(far, theory="free", budget=1e8)
    assert np.array_equal(
        asked.theories["ensemble"].train, answer.theories["ensemble"].train
    )
    off = abs(first_loss(far, 0.0) / first_loss(far) - 1)
    assert asked.regime.errors["free"] >= 0.9 * off > 0.03


@pytest.mark.parametrize("whiten", [False, True])
def test_predict_on_a_users_own_matrix(whiten):
    rng = np.random.default_rng(3)
    scales = np.linspace(0.2, 2.0, 40)[:, None]
    data = prepare(scales * rng.standard_normal((40, 120)), whiten=whiten)
    h, sigma2 = 1600, 0.3 / 1600
    answer = predict(data, h=h, sigma2=sigma2, theory="mean-field", budget=1e9)
    W = rng.standard_normal((h, data.d)) * np.sqrt(sigma2)
    run = gradient_flow(W, data.X, answer.times)
    off = np.abs(run.train[0] / data.d - answer.train).max()
    assert off < 0.02 * answer.train[0]
    assert (np.abs(run.train[0] / data.d - answer.train) <= answer.train_bar).all()


def test_predict_with_a_population_covariance():
    rng = np.random.default_rng(4)
    scales = np.linspace(0.5, 1.5, 30)[:, None]
    data = prepare(scales * rng.standard_normal((30, 60)), centre=False)
    P = np.diag(scales[:, 0] ** 2)
    h, sigma2 = 2000, 0.3 / 2000
    answer = predict(data, h=h, sigma2=sigma2, population=P, budget=1e9)
    assert answer.theory == "mean-field + next"
    W = rng.standard_normal((h, 30)) * np.sqrt(sigma2)
    run = gradient_flow(W, data.X, answer.times, population=P)
    off = np.abs(run.population[0] / 30 - answer.population).max()
    assert off < 0.03 * answer.population[0]


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((np.eye(3),), {}, r"^d, h, n, sigma2: expected all four"),
        ((SETUPS["free"],), {"h": 3}, "has its own"),
        ((SETUPS["free"],), {"theory": "guess"}, r"^theory: "),
        ((SETUPS["free"],), {"population": np.eye(96)}, r"^population: only"),
        ((SETUPS["free"], [1.0, 0.5]), {}, r"^times: "),
        (
            (np.random.default_rng(0).standard_normal((3, 9)),),
            {"h": 2, "sigma2": 0.1, "population": np.eye(3), "theory": "free"},
            "knows only the identity",
        ),
        ((np.full((3, 9), np.nan),), {"h": 2, "sigma2": 0.1}, "finite"),
    ],
)
def test_predict_refuses(arguments, options, said):
    with pytest.raises(ValueError, match=said):
        predict(*arguments, **options)


def test_leading_curves_share_a_unit():
    setup = Setup(1000, 1000, 1000, 1e-3)
    for name in THEORIES:
        start = theory_curves(name, [0.0], setup, depth=3)
        if name == "ensemble":
            continue  # not a limit: it starts at the mean over draws
        expected = 1.0 if name == "free" else 0.5
        if name == "mean-field":
            expected = 0.0  # rho = 1: the leading term vanishes
        if name == "narrow":
            expected = 0.0  # kappa = 1, eta = 1
        assert start.train[0] == pytest.approx(expected, abs=1e-12)
        assert start.population[0] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"^name: "):
        theory_curves("wide", [0.0], setup)


def test_a_measured_cell_and_a_map():
    setup = Setup(48, 1536, 48, 0.3 / 1536)
    cell = EXPERIMENTS.measure_cell(setup, theories=["mean-field", *NEXT])
    assert cell.errors["mean-field"] < 0.1
    assert cell.named == "mean-field"
    assert cell.errors["mean-field + next"] < cell.errors["mean-field"]
    rows = EXPERIMENTS.phase_map(24, [-3, 5], [-2, 5], seeds=1)
    assert [len(row) for row in rows] == [2, 2]
    assert rows[1][0].best() == "mean-field"
    assert rows[0][0].setup == Setup(24, 3, 6, 0.3 / 27)


def test_a_theory_that_starts_elsewhere_is_off_by_that():
    mean = Curves(np.array([2.0, 1.0]), np.array([2.0, 1.0]))
    off = Curves(mean.train + 1, mean.population)
    assert curve_errors({"off": off}, mean) == {"off": 0.5}


@pytest.mark.parametrize(
    "P", [-np.eye(3), np.diag([1.0, 1.0, -1e-3]), np.triu(np.ones((3, 3))), np.eye(4)]
)
def test_what_is_no_covariance_of_a_population_is_refused(P):
    """A loss under it would be negative, or that of another matrix."""
    X, t = np.random.default_rng(0).standard_normal((3, 9)), [0.0, 0.1]
    W = np.random.default_rng(1).standard_normal((2, 3))
    for use in (
        lambda: predict(X, t, h=2, sigma2=0.1, population=P),
        lambda: gradient_flow(W, X, t, population=P),
        lambda: ensemble(Setup(3, 2, 9, 0.1), t, population=P),
    ):
        with pytest.raises(ValueError, match="^population: expected"):
            use()
