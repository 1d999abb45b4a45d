"""EM and the natural gradient for full mixtures, against scikit-learn and by theory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

from geolib.stratifolds import (
    GaussianMixture,
    MixtureKL,
    em_fit,
    fit_mixture,
    kmeans_start,
    natural_fit,
)
from geolib.stratifolds.gmm import score_and_information, whitened_step

location_em = chapter_module("stratifolds", "location_em")
em, em_step = location_em.em, location_em.em_step
F64 = torch.float64


def problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    truth = GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=F64),
        torch.tensor([[0.0, 0.0], [3.0, 0.5], [-1.0, 3.0]], dtype=F64),
        torch.tensor([[[1.0, 0.3], [0.3, 0.7]]] * 3, dtype=F64),
    )
    start = GaussianMixture(
        torch.full((3,), 1 / 3, dtype=F64),
        truth.means + torch.tensor(rng.normal(size=(3, 2)) * 0.6),
        torch.eye(2, dtype=F64).expand(3, 2, 2).clone(),
    )
    return truth.sample(n, seed), start


@pytest.mark.parametrize("reg_covar", [0.0, 0.05])
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_em_equals_scikit_learn_step_by_step(covariance, reg_covar):
    mixture = pytest.importorskip("sklearn.mixture")
    x, start = problem()
    settings = {"covariance_type": covariance, "reg_covar": reg_covar, "max_iter": 25}
    ours = em_fit(x, start, tol=-np.inf, **settings)
    unit = {"full": np.stack([np.eye(2)] * 3), "tied": np.eye(2),
            "diag": np.ones((3, 2)), "spherical": np.ones(3)}  # fmt: skip
    sk = mixture.GaussianMixture(
        3,
        tol=0.0,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=unit[covariance],
        **settings,
    )
    from sklearn.exceptions import ConvergenceWarning

    with pytest.warns(ConvergenceWarning):
        sk.fit(x.numpy())
    np.testing.assert_allclose(ours.mixture.weights, sk.weights_, atol=1e-13)
    np.testing.assert_allclose(ours.mixture.means, sk.means_, atol=1e-12)
    full = {
        "full": lambda c: c,
        "tied": lambda c: np.stack([c] * 3),
        "diag": lambda c: np.stack([np.diag(v) for v in c]),
        "spherical": lambda c: np.stack([v * np.eye(2) for v in c]),
    }[covariance]
    np.testing.assert_allclose(
        ours.mixture.covariances, full(sk.covariances_), atol=1e-12
    )
    assert abs(ours.log_likelihood[-1] - sk.score(x.numpy())) < 1e-13


def test_k_means_draws_by_squared_distance():
    """Of 0, 1 and 10 the centres are 0 and 1 once in 135 draws; uniformly, once in 3."""
    x = torch.tensor([[0.0], [1.0], [10.0]], dtype=F64)
    split = [kmeans_start(x, 2, seed=s).means.max().item() for s in range(600)]
    assert {round(v, 9) for v in split} <= {5.5, 10.0}
    assert 0 < sum(v < 6 for v in split) <= 15  # 4.5 expected; by plain distance 38


def test_a_number_of_components_starts_a_fit_and_reg_covar_keeps_it_from_collapse():
    x, start = problem(2000)
    best = fit_mixture(x, start, tol=1e-12).log_likelihood[-1]
    found = max(fit_mixture(x, 3, seed=s).log_likelihood[-1] for s in range(5))
    assert found == pytest.approx(best, abs=1e-6)
    again = kmeans_start(x, 3, seed=1)
    assert torch.equal(again.means, kmeans_start(x, 3, seed=1).means)
    assert float(again.weights.sum()) == pytest.approx(1)
    doubled = torch.cat([x[:60], x[:1].expand(20, 2)])
    thin = replace(
        start,
        means=torch.stack([*start.means[:2], x[0]]),
        covariances=torch.stack(
            [*start.covariances[:2], 1e-11 * torch.eye(2).double()]
        ),
    )
    assert fit_mixture(doubled, thin).collapsed == (2,)
    kept = fit_mixture(doubled, thin, reg_covar=1e-2)
    assert kept.collapsed == ()
    assert kept.converged
    assert torch.linalg.eigvalsh(kept.mixture.covariances).min() >= 1e-2 * (1 - 1e-9)
    assert em_fit(doubled, thin, reg_covar=1e-2, tol=1e-9).mixture.weights.allclose(
        kept.mixture.weights
    )


def test_with_reg_covar_the_hybrid_is_em_alone():
    x, start = problem()
    plan = {"reg_covar": 1e-2, "max_iter": 40, "tol": 0.0}
    hybrid, em_alone = fit_mixture(x, start, **plan), em_fit(x, start, **plan)
    assert hybrid.log_likelihood == em_alone.log_likelihood
    assert hybrid.iterations == 40


def test_bad_starts_by_number():
    x = problem(50)[0]
    with pytest.raises(ValueError, match="n_components: expected 1 to 50"):
        em_fit(x, 51)
    with pytest.raises(ValueError, match="n_components"):
        fit_mixture(x, 0)
    with pytest.raises(ValueError, match="span all 2 dimensions"):
        kmeans_start(x * torch.tensor([1.0, 0.0], dtype=F64), 3)
    with pytest.raises(ValueError, match="reg_covar: expected a finite number >= 0"):
        em_fit(x, 3, reg_covar=-1.0)


def test_location_em_is_full_em_with_fixed_covariance():
    rng = np.random.default_rng(3)
    x = torch.tensor(np.concatenate([rng.normal(size=80), rng.normal(size=40) + 2]))
    teacher = torch.tensor([1.0, 0.0], dtype=F64)
    atoms = torch.tensor([[0.4, 0.6, -0.5, 1.0]], dtype=F64)
    objective = MixtureKL(teacher, data=x)
    for _ in range(7):
        atoms = em_step(objective, atoms)[1]
    start = GaussianMixture(
        torch.tensor([0.4, 0.6], dtype=F64),
        torch.tensor([[-0.5], [1.0]], dtype=F64),
        torch.ones(2, 1, 1, dtype=F64),
    )
    full = em_fit(x[:, None], start, covariance_type="fixed", max_iter=7, tol=-np.inf)
    np.testing.assert_allclose(atoms[0, :2], full.mixture.weights, atol=1e-13)
    np.testing.assert_allclose(atoms[0, 2:], full.mixture.means[:, 0], atol=1e-13)


def test_em_never_raises_the_loss_and_keeps_the_fixed_component():
    kl = MixtureKL(torch.tensor([0.7, 0.3, 0.0, 2.0], dtype=F64))
    atoms = torch.tensor([[0.5, 0.5, 0.0, -2.0], [0.9, 0.1, 0.0, 0.3]], dtype=F64)
    for _ in range(30):
        new = em_step(kl, atoms, fixed=[0])[1]
        assert (kl.value(new) <= kl.value(atoms) + 1e-15).all()
        atoms = new
    assert (atoms[:, 2] == 0).all()
    run = em(kl, atoms, fixed=[0], plateau=0.05)
    assert run.success.all()
    assert (run.escaped_at <= run.hitting_time).all()


def test_both_fits_reach_the_same_likelihood_and_natural_needs_fewer_passes():
    x, start = problem(n=3000)
    slow = em_fit(x, start, max_iter=3000, tol=1e-13)
    fast = natural_fit(x, start, tol=1e-13)
    assert abs(slow.log_likelihood[-1] - fast.log_likelihood[-1]) < 1e-8
    assert fast.converged
    assert fast.iterations < slow.iterations / 3
    rises = np.diff(fast.log_likelihood)
    assert (rises >= 0).all()
    assert abs(fast.log_likelihood[-1] - fast.mixture.log_likelihood(x)) < 1e-12


def test_score_is_the_derivative_of_the_likelihood():
    x, start = problem()
    y, log_f = start.whiten(x)
    g, F, _ = score_and_information(start, y, torch.softmax(log_f, 0))
    h = 1e-6
    for i in range(len(g)):
        e = torch.zeros_like(g)
        e[i] = h
        up, down = (whitened_step(start, s * e).log_likelihood(x) for s in (1, -1))
        assert abs((up - down) / (2 * h) - g[i]) < 1e-8
    assert torch.linalg.eigvalsh(F)[0] > 0


def test_observed_information_is_minus_the_hessian():
    x, start = problem(120)
    y, log_f = start.whiten(x)
    _, _, H = score_and_information(start, y, torch.softmax(log_f, 0))
    P, h = len(H), 1e-4
    E = h * torch.eye(P, dtype=F64)

    def at(step):
        return whitened_step(start, step).log_likelihood(x)

    for i in range(0, P, 2):
        for j in range(i, P, 3):  # every kind of block, at a third of the cost
            numeric = sum(
                a * b * at(a * E[i] + b * E[j]) for a in (1, -1) for b in (1, -1)
            )
            assert abs(H[i, j] + numeric / (4 * h * h)) < 1e-6
    torch.testing.assert_close(H, H.T, rtol=0, atol=1e-14)


def test_labels_known_leave_nothing_missing():
    # one component: every label is known and the observed information is EM's alone
    x = torch.tensor(np.random.default_rng(2).normal(size=(500, 2)))
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    at_best = GaussianMixture(torch.ones(1, dtype=F64), mean[None], cov[None])
    y, log_f = at_best.whiten(x)
    g, _, H = score_and_information(at_best, y, torch.ones_like(log_f))
    assert g.abs().max() < 1e-12
    exact = torch.diag(torch.tensor([1.0, 1.0, 0.5, 1.0, 0.5], dtype=F64))
    torch.testing.assert_close(H, exact, rtol=0, atol=1e-12)


def overlapping(n=4000):
    rng = np.random.default_rng(5)
    means = torch.tensor([[0.0, 0.0], [0.8, 0.0], [6.0, 0.0], [0.0, 6.0]], dtype=F64)
    eye = torch.eye(2, dtype=F64).repeat(4, 1, 1)
    truth = GaussianMixture(torch.full((4,), 0.25, dtype=F64), means, eye)
    off = torch.tensor(rng.normal(size=(4, 2))) * 0.3
    return truth.sample(n, seed=6), replace(truth, means=means + off)


def test_near_overlap_the_hybrid_ends_by_newton_steps():
    x, start = overlapping()
    fit = fit_mixture(x, start, tol=1e-13)
    assert fit.converged
    slow = em_fit(x, fit.mixture, max_iter=300, tol=-np.inf)
    # a stationary point: EM finds nothing above it
    assert abs(slow.log_likelihood[-1] - fit.log_likelihood[-1]) < 1e-10
    gaps = fit.log_likelihood[-1] - np.array(fit.log_likelihood[:-1])
    # each step squares the gap: a handful from 1e-6 to rounding; the Fisher matrix,
    # which differs from the Hessian on a sample, takes more than a hundred
    assert ((gaps < 1e-6) & (gaps > 0)).sum() <= 4
    alone = em_fit(
        x, start, max_iter=300, tol=0.0, target=fit.log_likelihood[-1] - 1e-6
    )
    assert not alone.converged
    assert fit.iterations < 150


def test_the_hybrid_is_em_where_em_is_fast():
    x, start = problem()
    apart = replace(start, means=4 * start.means)
    x = GaussianMixture(apart.weights, apart.means, apart.covariances).sample(2000, 1)
    one, two = em_fit(x, apart, tol=1e-8), fit_mixture(x, apart, tol=1e-8)
    assert one.log_likelihood == two.log_likelihood
    stopped = em_fit(*overlapping(), rate=0.5, tol=0.0)
    assert stopped.iterations < 30
    gains = np.diff(stopped.log_likelihood)
    assert gains[-1] > 0.5 * gains[-2]
    assert (gains[1:-1] <= 0.5 * gains[:-2]).all()


def test_targets_and_budgets_stop_the_fits():
    x, start = problem()
    best = em_fit(x, start, max_iter=500, tol=1e-12).log_likelihood[-1]
    for fit in (em_fit, natural_fit, fit_mixture):
        run = fit(x, start, target=best - 1e-3, max_iter=400, tol=0.0)
        assert run.converged
        assert run.log_likelihood[-1] >= best - 1e-3
        assert not fit(x, start, max_iter=2, tol=0.0).converged


@pytest.mark.parametrize("fit", [em_fit, natural_fit, fit_mixture])
def test_bad_data(fit):
    x, start = problem(50)
    for bad, message in (
        (x[:1], "one point has no maximum-likelihood mixture"),
        (x[:0], "shape|n >= 2"),
        (x[:, :1], "1 dimensions"),
        (torch.full_like(x, float("nan")), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(bad, start)


def test_bad_mixtures():
    one = torch.ones(1, dtype=F64)
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture(2 * one, one[None], one[None, None])
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture(one, one[None], -one[None, None])
    with pytest.raises(ValueError, match="shapes"):
        GaussianMixture(one, one, one[None, None])
    x, start = problem(50)
    with pytest.raises(ValueError, match="covariance"):
        em_fit(x, start, covariance_type="banded")
    with pytest.raises(ValueError, match="information"):
        natural_fit(x, start, information="newton")
    with pytest.raises(ValueError, match="positive weights"):
        natural_fit(
            x,
            GaussianMixture(
                torch.tensor([1.0, 0.0, 0.0], dtype=F64), start.means, start.covariances
            ),
        )


@pytest.mark.parametrize("name", ["weights", "means", "covariances"])
def test_a_mixture_that_is_not_finite_is_refused_by_name(name):
    mixture = problem()[1]
    bad = getattr(mixture, name).clone()
    bad.view(-1)[1] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: expected finite"):
        replace(mixture, **{name: bad})


@pytest.mark.parametrize("fit", [em_fit, natural_fit])
def test_a_component_that_falls_onto_a_point_is_named(fit):
    x, start = problem(60)
    x = torch.cat([x, x[:1].expand(8, 2)])  # the same point nine times
    means = start.means.clone()
    means[2] = x[0]
    thin = start.covariances.clone()
    thin[2] *= 1e-11
    found = fit(x, replace(start, means=means, covariances=thin), max_iter=60)
    assert found.collapsed == (2,)
    assert not found.converged
    assert fit(*problem(), max_iter=60).collapsed == ()
