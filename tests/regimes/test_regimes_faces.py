"""The four solved faces: exact on degenerate finite instances, and against each other.

Each face theory is exact, at machine precision, on one finite instance that the
simulator can run; neither side knows the other's formulas.
"""

import numpy as np
import pytest
from chapter_experiments import chapter_module, experiments
from scipy.optimize import brentq

from geolib.regimes import (
    Setup,
    SpectralMeasure,
    draw_covariance,
    draw_weights,
    gradient_flow,
    large_data,
    large_data_next,
    marchenko_pastur,
    mean_field,
    mean_field_next,
    narrow,
    simulate,
    small_data,
    theory_curves,
)
from geolib.regimes.small_data import bidiagonal

EXPERIMENTS = experiments("regimes")
large_data_two_stage = chapter_module("regimes", "two_stage").large_data_two_stage

TIGHT = {"rtol": 1e-12, "atol": 1e-14}
T = np.linspace(0.0, 2.0, 9)


def covariance(d, n, seed=0):
    X = np.random.default_rng(seed).standard_normal((d, n))
    return X @ X.T / n


@pytest.mark.slow_for("9")
@pytest.mark.parametrize("h", [4, 9])
def test_large_data_is_exact_for_identity_covariance(h):
    d = 7
    W0 = np.random.default_rng(1).standard_normal((h, d)) / 3
    run = gradient_flow(W0, np.eye(d), T, covariance=True, **TIGHT)
    law = SpectralMeasure.of_eigenvalues(np.linalg.eigvalsh(W0.T @ W0))
    theory = large_data(T, 1.0, 1.0, law=law).train
    assert np.abs(run.train[0] / d - theory).max() < 1e-10
    assert np.abs(run.population[0] / d - theory).max() < 1e-10


@pytest.mark.slow_for("*-0.3", "20-*")
@pytest.mark.parametrize("rho", [0.3, 2.0])
@pytest.mark.parametrize("n", [4, 20])
def test_mean_field_is_exact_for_orthogonal_weights(rho, n):
    d, h = 6, 8
    Q = np.linalg.qr(np.random.default_rng(2).standard_normal((h, d)))[0]
    S = covariance(d, n)
    P = np.diag(np.arange(1.0, d + 1))
    run = gradient_flow(np.sqrt(rho) * Q, S, T, covariance=True, population=P, **TIGHT)
    values, vectors = np.linalg.eigh(S)
    overlap = np.einsum("ij,ij->j", vectors, P @ vectors)
    theory = mean_field(
        T, rho, law=SpectralMeasure.of_eigenvalues(values), overlap=overlap
    )
    assert np.abs(run.train[0] / d - theory.train).max() < 1e-10
    assert np.abs(run.population[0] / d - theory.population).max() < 1e-10


@pytest.mark.slow_for("0.5", "6.0")
@pytest.mark.parametrize("kappa", [0.5, 1.7, 6.0])
def test_narrow_is_exact_for_one_latent(kappa):
    d = 7
    w = np.random.default_rng(3).standard_normal(d)
    w *= np.sqrt(kappa) / np.linalg.norm(w)
    S = covariance(d, 5)
    P = np.diag(np.arange(1.0, d + 1))
    values, vectors = np.linalg.eigh(S)
    law = SpectralMeasure(np.clip(values, 0, None), (vectors.T @ w) ** 2 / kappa)
    run = gradient_flow(w[None], S, T, covariance=True, **TIGHT)
    theory = narrow(T, kappa, law=law, rtol=1e-12)
    assert np.abs(run.train[0] - np.trace(S) / 2 - theory.train).max() < 1e-10
    assert np.abs(run.population[0] - d / 2 - theory.population).max() < 1e-10
    # With a covariance diagonal in the basis of S the population is exact as well.
    tilted = vectors @ P @ vectors.T
    run = gradient_flow(w[None], S, T, covariance=True, population=tilted, **TIGHT)
    theory = narrow(T, kappa, law=law, overlap=np.diag(P), rtol=1e-12)
    moved = run.population[0] - np.trace(P) / 2
    assert np.abs(moved - theory.population).max() < 1e-10


def golub_kahan(W, e):
    """Upper bidiagonal B with W = U B V^T and V's first column e, by Lanczos."""
    h, d = W.shape
    rows = min(h, d - 1)
    B, V, U = np.zeros((rows, rows + 1)), [e], []
    for j in range(rows):
        u = W @ V[j]
        for q in U:
            u = u - (q @ u) * q
        B[j, j] = np.linalg.norm(u)
        U.append(u / B[j, j])
        v = W.T @ U[j]
        for _ in range(2):
            for q in V:
                v = v - (q @ v) * q
        B[j, j + 1] = np.linalg.norm(v)
        V.append(v / B[j, j + 1])
    return B


@pytest.mark.slow_for("5")
@pytest.mark.parametrize("h", [3, 5])
def test_small_data_is_exact_for_one_sample(h):
    d = 6
    rng = np.random.default_rng(4)
    W0, x = rng.standard_normal((h, d)) / 2, rng.standard_normal(d)
    size = x @ x
    run = gradient_flow(W0, x[:, None], T / size, **TIGHT)
    B = golub_kahan(W0, x / np.sqrt(size))
    theory = small_data(T, W0=B, rtol=1e-12)
    assert np.abs(run.train[0] / size - theory.train).max() < 1e-10
    moved = run.population[0] - run.population[0, 0]
    assert np.abs(moved - theory.population).max() < 1e-10


@pytest.mark.parametrize(("rho", "kappa"), [(1, 1), (0.5, 1), (2, 1), (0.1, 3), (8, 4)])
def test_large_data_closed_form_is_the_quadrature(rho, kappa):
    t = np.linspace(0, 1.0, 30)
    closed = large_data(t, rho, kappa).train
    law = marchenko_pastur(rho, kappa, 4000)
    assert np.abs(closed - large_data(t, rho, kappa, law=law).train).max() < 1e-9


@pytest.mark.parametrize("t", [40.0, 200.0, 1e4])
def test_large_data_settles_at_the_missing_share(t):
    assert large_data([t], 0.3, 1.0).train[0] == pytest.approx(0.35, abs=1e-9)
    assert abs(large_data([t], 2.0, 1.0).train[0]) < 1e-9
    assert abs(large_data([t], 1.0, 1.0).train[0]) < 1e-9


PANELS = 400  # eight Gauss points each leave 1e-12 on the curves


def _log_v(s: np.ndarray, kappa: float, mu: SpectralMeasure) -> np.ndarray:
    """log v on the root v = (F + sqrt(F^2 + 4 (1 - kappa))) / 2 of the first integral.

    F and v are taken in units of their largest exponential, which may overflow.
    """
    largest = 2 * s * mu.nodes.max()
    F = kappa * np.exp(2 * np.multiply.outer(s, mu.nodes) - largest[..., None])
    F = F @ mu.weights
    root = np.sqrt(np.maximum(F**2 + 4 * (1 - kappa) * np.exp(-2 * largest), 0.0))
    return largest + np.log((F + root) / 2)


def _dt_ds(s: np.ndarray, kappa: float, mu: SpectralMeasure) -> np.ndarray:
    """The integrand 1 / (2 - F / v) of t(s)."""
    log_v = _log_v(s, kappa, mu)
    e = np.exp(2 * np.multiply.outer(s, mu.nodes) - log_v[..., None])
    return 1 / (2 - kappa * (e @ mu.weights))


def _by_quadrature(
    t: np.ndarray, kappa: float, mu: SpectralMeasure
) -> tuple[np.ndarray, np.ndarray]:
    r"""Invert t(s) by Gauss-Legendre panels of ds / (2 - F / v) and Newton steps."""
    node, weight = np.polynomial.legendre.leggauss(8)

    def integral(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        half = (right - left) / 2
        at = left[:, None] + half[:, None] * (1 + node)
        return _dt_ds(at, kappa, mu) @ weight * half

    # r tends to one from either side, so s' lies between its start and one.
    longest = t[-1] * max(1.0, 2 - kappa) + 1e-12
    # Panels shrink towards 0, where the rate is steep when kappa is near 2.
    edges = longest * np.linspace(0.0, 1.0, PANELS + 1) ** 2
    clock = np.append(0.0, np.cumsum(integral(edges[:-1], edges[1:])))
    s = np.interp(t, clock, edges)
    for _ in range(4):
        panel = np.clip(np.searchsorted(edges, s, "right") - 1, 0, PANELS - 1)
        here = clock[panel] + integral(edges[panel], s)
        s = np.clip(s - (here - t) / _dt_ds(s, kappa, mu), 0.0, longest)
    return s, _log_v(s, kappa, mu)


@pytest.mark.parametrize("c", [0.5, 3.0])
@pytest.mark.parametrize("kappa", [0.3, 1.0, 1.9])
def test_narrow_by_quadrature_is_narrow_by_ode(kappa, c):
    t = np.linspace(0, 3 / max(1, c), 20)
    a = narrow(t, kappa, c, rtol=1e-12)
    law = marchenko_pastur(1.0, c)
    s, log_v = _by_quadrature(t, kappa, law)
    e = kappa * np.exp(2 * np.multiply.outer(s, law.nodes) - log_v[:, None])
    r, q = e @ law.weights, e @ (law.weights * law.nodes)
    assert np.abs(a.train + q * (1 - r / 2)).max() < 1e-8
    assert np.abs(a.population + r * (1 - r / 2)).max() < 1e-8


def test_narrow_keeps_its_first_integral():
    """v (v - F) stays 1 - kappa: with it the population loss alone gives the train loss."""
    kappa, law = 0.5, marchenko_pastur(1.0, 2.0)
    a = narrow(np.linspace(0, 0.3, 12), kappa, 2.0, rtol=1e-12)
    r = 1 - np.sqrt(1 + 2 * a.population)
    v = np.sqrt((1 - kappa) / (1 - r))

    def over(s, target):
        return kappa * np.exp(2 * s * law.nodes) @ law.weights - target

    s = np.array([brentq(over, -1.0, 9.0, (x,), xtol=1e-14) for x in r * v])
    e = kappa * np.exp(2 * np.multiply.outer(s, law.nodes)) / v[:, None]
    assert np.abs(a.train + e @ (law.weights * law.nodes) * (1 - r / 2)).max() < 1e-8


def test_narrow_at_kappa_one_leaves_the_population_loss():
    theory = narrow(np.linspace(0, 3, 10), 1.0, 1.0)
    assert np.abs(theory.population + 0.5).max() < 1e-9
    assert np.ptp(theory.train) > 0.1


def test_small_data_converges_exponentially_in_its_size():
    tau = np.linspace(0, 4, 41)
    exact = small_data(tau, 1, 1, size=24, rtol=1e-12)
    for size, bound in ((3, 5e-3), (5, 1e-4), (7, 2e-6), (10, 5e-9)):
        got = small_data(tau, 1, 1, size=size, rtol=1e-12)
        assert np.abs(got.train - exact.train).max() < bound
    assert np.abs(got.population - exact.population).max() < 1e-7


@pytest.mark.parametrize(
    ("rho", "kappa", "plateau"),
    [
        (1, 1, -1.128375),
        (0.5, 1, -0.488039),
        (1, 0.5, -0.531481),
        (2, 2, -5.864148),
        (0.1, 0.1, -0.343430),
        (0.01, 0.01, -0.480590),
    ],
)
def test_small_data_plateaus(rho, kappa, plateau):
    got = small_data([0.0, 20.0], rho, kappa, rtol=1e-12)
    assert got.population[1] == pytest.approx(plateau, abs=2e-6)
    assert got.train[1] < 1e-6


@pytest.mark.slow_for("16")
@pytest.mark.parametrize("order", [3, 4, 6, 8, 12, 16])
def test_the_cut_hierarchy_fails_at_every_order(order):
    tau = np.linspace(0, 4, 41)
    exact, cut = (
        small_data(tau, 1, 1).train,
        EXPERIMENTS.small_data_cut(tau, 1, 1, order),
    )
    assert np.abs(cut[0] - exact).max() > 1.2 * exact[0]
    # At short times it is the Taylor series and agrees.
    early = EXPERIMENTS.small_data_cut([0.0, 0.01], 1, 1, 8)[0][1]
    assert early == pytest.approx(small_data([0.0, 0.01], 1, 1).train[1], rel=1e-5)


def test_bidiagonal_has_the_moments_of_the_initial_map():
    B = bidiagonal(0.7, 1.3, 12)
    law = marchenko_pastur(0.7, 1.3)
    A = B.T @ B
    for k in range(1, 9):
        moment = np.linalg.matrix_power(A, k)[0, 0]
        assert moment == pytest.approx(law.moment(k), rel=1e-12)


HEADLINE = {
    "large-data": (Setup(64, 64, 2048, 1 / 64), 0.08),
    "mean-field": (Setup(64, 1024, 64, 0.2 / 1024), 0.06),
    "narrow": (Setup(256, 3, 256, 0.5 / 256), 0.12),
    "small-data": (Setup(128, 128, 4, 0.5 / 128), 0.16),
}


@pytest.mark.parametrize("name", HEADLINE)
def test_simulation_agrees_with_its_face_and_with_no_other(name):
    setup, bound = HEADLINE[name]
    t = np.linspace(0, 2.0 if name != "small-data" else 4 / setup.c, 21)
    run = simulate(setup, t, seeds=3)
    error = max(EXPERIMENTS.headline_error(run, theory_curves(name, t, setup), name))
    assert error < bound
    moved = {
        other: EXPERIMENTS.excess_error(run, theory_curves(other, t, setup))
        for other in HEADLINE
    }
    right = max(moved.pop(name))
    assert all(max(wrong) > 2 * right for wrong in moved.values())


def test_next_order_beats_leading_order_in_large_data():
    d = 128
    W0 = draw_weights(Setup(d, d, d, 1 / d), 0)
    law = SpectralMeasure.of_eigenvalues(np.linalg.svd(W0, compute_uv=False) ** 2)
    t = np.linspace(0, 2, 21)
    for share, gain in ((8, 3.0), (32, 3.0)):
        setup = Setup(d, d, share * d, 1 / d)
        S = draw_covariance(setup, 0)
        run = gradient_flow(W0, S, t, covariance=True)
        lead = large_data(t, 1, 1, law=law)
        add = large_data_next(t, 1, 1, law=law)
        error = np.abs(run.population[0] / d - lead.population).max()
        better = lead.population + add.population / share
        assert np.abs(run.population[0] / d - better).max() < error / gain


@pytest.mark.slow
def test_generalisation_gap_has_the_predicted_size_and_shape():
    setup = Setup(128, 256, 8 * 128, 1 / 256)
    t = setup.times(21, 2.0)
    run = simulate(setup, t, seeds=6)
    gap = (run.population - run.train).mean(0) / setup.d
    step = large_data_next(t, setup.rho, setup.kappa)
    predicted = (step.population - step.train) * setup.c
    size = predicted.max()
    assert size > 2e-3
    assert np.abs(gap - predicted).max() < 0.35 * size
    assert np.corrcoef(gap[1:], predicted[1:])[0, 1] > 0.95


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_an_atom_keeps_a_node_of_its_own_in_the_next_orders(ratio):
    # merged with the edge of the bulk it was off by .43 of itself at ratio .2
    t = np.linspace(0, 3, 13)
    for step in (
        lambda nodes: large_data_next(t, ratio, 1.0, nodes=nodes),
        lambda nodes: mean_field_next(t, 1.0, 1 / ratio, nodes=nodes),
    ):
        usual, fine = step(64), step(160)
        for name in ("train", "population"):
            true = getattr(fine, name)
            assert np.abs(getattr(usual, name) - true).max() < 1e-4 * np.abs(true).max()


def test_next_order_beats_leading_order_in_mean_field():
    d, h = 128, 512
    setup = Setup(d, h, d, 0.2 / h)
    t = setup.times(21, 2.0)
    S = draw_covariance(setup, 0)
    run = gradient_flow(draw_weights(setup, 0), S, t, covariance=True)
    law = SpectralMeasure.of_eigenvalues(np.linalg.eigvalsh(S))
    lead, add = mean_field(t, 0.2, law=law), mean_field_next(t, 0.2, law=law)
    for got, low, step in zip(
        (run.train[0], run.population[0]), lead, add, strict=True
    ):
        first = np.abs(got / d - low).max() / low[0]
        second = np.abs(got / d - low - step * d / h).max() / low[0]
        assert second < 0.015
        assert second < first / 3


def test_next_order_curves_add_the_correction_once():
    setup = Setup(64, 256, 64, 0.3 / 256)
    t = setup.times(5)
    two = theory_curves("mean-field + next", t, setup)
    lead, step = mean_field(t, 0.3, 1.0), mean_field_next(t, 0.3, 1.0)
    assert np.allclose(two.train, lead.train + step.train / 4)
    with pytest.raises(ValueError, match="^name: "):
        theory_curves("narrow + next", t, setup)


def test_two_stage_follows_the_slow_drift():
    setup = Setup(96, 24, 96 * 16, 1 / 96)
    W0, S = draw_weights(setup, 0), draw_covariance(setup, 0)
    t = np.linspace(0, 40, 21)
    run = gradient_flow(W0, S, t, covariance=True)
    two = large_data_two_stage(t, W0, S)
    lead = large_data(t, setup.rho, setup.kappa)
    scale = run.train[0, 0]
    drift = np.abs(run.train[0] - lead.train * 96).max() / scale
    error = np.abs(run.train[0] - two.train * 96).max() / scale
    assert drift > 0.05
    assert error < 0.012
    best = np.sort(np.linalg.eigvalsh(S))[: 96 - 24].sum() / 2
    assert two.train[-1] * 96 == pytest.approx(best, rel=0.02)
    with pytest.raises(ValueError, match="h < d"):
        large_data_two_stage(t, np.eye(3), np.eye(3))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: large_data(T, -1, 1), "^rho: "),
        (lambda: mean_field(T, 0.5), "exactly one"),
        (lambda: mean_field(T, 0.5, 1.0, law=marchenko_pastur(1, 1)), "exactly one"),
        (lambda: mean_field(T, 0.5, 1.0, overlap=[1.0]), "^overlap: "),
        (lambda: mean_field_next(T, 0.5, -1.0), "^c: "),
        (lambda: narrow(T, -0.5, 1.0), "^kappa: "),
        (lambda: narrow(T[::-1], 0.5, 1.0), "^times: "),
        (lambda: small_data(T), "^rho, kappa: "),
        (lambda: small_data(T, 1, 1, size=0), "^size: "),
        (lambda: small_data(T, W0=[[np.nan]]), "^W0: "),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_cut_below_the_third_moment_is_refused():
    with pytest.raises(ValueError, match="^order: "):
        EXPERIMENTS.small_data_cut(T, 1, 1, 2)
