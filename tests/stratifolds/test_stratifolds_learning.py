"""Learning coefficients: closed forms, the exact grid, the sampler, a peer."""

import math

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from torch import nn

from geolib.core import Realization, init_, normal
from geolib.stratifolds import (
    ChartLoss,
    MixtureKL,
    MixtureModuli,
    learning_coefficient,
    mixture_a,
)
from geolib.stratifolds.learning_coefficient import (
    LearningCoefficient,
    TemperedPosterior,
    grid_mean_loss,
    mala,
)

F64 = torch.float64
evidence = chapter_module("stratifolds", "evidence")
log_axis, evidence_curve = evidence.log_axis, evidence.evidence_curve
divergence_from_null = evidence.divergence_from_null


def curve_a(low=4, high=12, count=240):
    w, lw = log_axis(1.0, count)
    m, lm = log_axis(3.0, count)
    theta = torch.cartesian_prod(w, m)
    zero = torch.zeros(len(theta), dtype=F64)
    atoms = torch.stack([1 - theta[:, 0], theta[:, 0], zero, theta[:, 1]], 1)
    n = torch.logspace(low, high, 17, dtype=F64)
    mass = (lw[:, None] + lm).flatten()
    return evidence_curve(divergence_from_null(atoms), mass, n)


def test_mixture_a_has_coefficient_one_half_and_multiplicity_two():
    curve = curve_a()
    assert abs(curve.fit(multiplicity=2)[0] - 0.5) < 0.01
    lam, m = curve.fit()
    assert abs(lam - 0.5) < 0.02
    assert 1.5 < m < 2.2
    assert curve.fit(multiplicity=1)[0] < 0.46  # forgetting the multiplicity shows
    # the local slope climbs towards 1/2 as 1/2 - (m - 1)/log n
    assert (curve.local.diff() > 0).all()
    correction = (0.5 - curve.local) * torch.log(curve.n)
    assert ((correction > 0.7) & (correction < 1.1)).all()


def test_local_slope_is_the_derivative_of_the_log_evidence():
    curve = curve_a(4, 5, 80)
    log_n = torch.log(curve.n)
    numeric = -(curve.log_z[2:] - curve.log_z[:-2]) / (log_n[2:] - log_n[:-2])
    assert (numeric - curve.local[1:-1]).abs().max() < 1e-3


@pytest.mark.parametrize(
    "parts", [(40, 60, 16), pytest.param((56, 84, 24), marks=pytest.mark.slow)]
)
def test_prior_moves_mixture_b_from_three_quarters_to_one(parts):
    nb, nd, nw = parts
    n = torch.logspace(4, 7, 13, dtype=F64)
    b, lb = log_axis(3.0, nb, 1e-6)
    b, lb = torch.cat([-b, b]), torch.cat([lb, lb])
    d, ld = log_axis(6.0, nd, 1e-5)
    w = (torch.arange(nw, dtype=F64) + 0.5) / nw
    g = torch.cartesian_prod(b, d, w)
    atoms = torch.stack(
        [
            1 - g[:, 2],
            g[:, 2],
            g[:, 0] - g[:, 2] * g[:, 1],
            g[:, 0] + (1 - g[:, 2]) * g[:, 1],
        ],
        1,
    )
    mass = (lb[:, None, None] + ld[None, :, None] + 0 * w).flatten()
    flat = evidence_curve(divergence_from_null(atoms), mass, n)
    assert abs(flat.fit(multiplicity=1)[0] - 0.75) < 0.01
    v, lv = log_axis(2.0, nd, 1e-7)
    s = torch.linspace(-2, 2, nw, dtype=F64)
    eta = torch.cartesian_prod(b, v, s)
    mass = (lb[:, None, None] + lv[None, :, None] + 0 * s).flatten()
    K = divergence_from_null(MixtureModuli().embed(eta))
    moduli = evidence_curve(K, mass, n)
    assert abs(moduli.fit(multiplicity=1)[0] - 1.0) < 0.02


def test_regular_truth_has_half_the_dimension():
    # around a regular truth K = half a quadratic form in two parameters
    kl = MixtureKL(torch.tensor([0.7, 0.3, 0.0, 2.0], dtype=F64))
    t = torch.linspace(-0.02, 0.02, 201, dtype=F64)
    theta = torch.cartesian_prod(0.3 + t, 2.0 + t)
    K = kl.value(mixture_a().chart.embed(theta)).clamp_min(0)
    n = torch.logspace(5.5, 6.5, 5, dtype=F64)
    curve = evidence_curve(K, torch.zeros(len(K), dtype=F64), n)
    assert abs(curve.fit(multiplicity=1)[0] - 1.0) < 0.01


def test_away_from_the_corner_the_multiplicity_is_one():
    half, log_half = log_axis(0.3, 200)
    for fixed, swap in ((torch.linspace(0.4, 0.6, 11), False), (half, True)):
        w = half if swap else fixed.double()
        mu = torch.linspace(0.8, 1.2, 11, dtype=F64) if swap else half
        theta = torch.cartesian_prod(w, mu)
        zero = torch.zeros(len(theta), dtype=F64)
        K = divergence_from_null(
            torch.stack([1 - theta[:, 0], theta[:, 0], zero, theta[:, 1]], 1)
        )
        mass = log_half[:, None] + 0 * mu if swap else log_half + 0 * w[:, None]
        curve = evidence_curve(K, mass.flatten(), torch.tensor([1e6], dtype=F64))
        assert abs(curve.local[0] - 0.5) < 0.01


def posterior_a(n, seed):
    x = torch.tensor(np.random.default_rng(seed).standard_normal(n))
    kl = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64), data=x)
    return ChartLoss(kl, mixture_a().chart)


BOX = torch.tensor([0.0, -3.0], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64)


def starts(chains):
    rng = np.random.default_rng(5)
    mu = 0.1 * rng.standard_normal(chains)
    return torch.tensor(np.stack([rng.random(chains), mu], 1))


@pytest.mark.slow
def test_sampler_agrees_with_the_exact_grid():
    n = 500
    loss = posterior_a(n, 0)
    exact = learning_coefficient(loss, n, *BOX, base=0.0, points=[120, 240])
    drawn = learning_coefficient(
        loss, n, *BOX, base=0.0, sampler="mala", theta0=starts(64), steps=1500, step=0.8
    )
    assert abs(exact.value - drawn.value) < 4 * drawn.error
    assert drawn.error < 0.02
    assert 0.3 < drawn.acceptance < 0.95
    assert exact.error == 0
    assert exact.value < 0.5  # far below the asymptotic value, at this n


def test_grid_is_converged():
    loss = posterior_a(300, 1)
    posterior = TemperedPosterior(loss, 300, *BOX)
    coarse, _ = grid_mean_loss(posterior, [100, 200])
    fine, _ = grid_mean_loss(posterior, [200, 400])
    assert abs(coarse - fine) * posterior.weight < 1e-3


@pytest.mark.slow
def test_mala_on_a_gaussian_has_the_right_moments():
    n, P = 1000, 3
    scale = torch.tensor([1.0, 4.0, 0.25], dtype=F64)
    wide = 50 * torch.ones(P, dtype=F64)
    posterior = TemperedPosterior(
        lambda t: (scale * t * t).sum(1) / n, n, -wide, wide, beta=0.5
    )
    out = mala(posterior, torch.zeros(200, P, dtype=F64), steps=1500, step=2.0, seed=1)
    # each coordinate of a quadratic energy contributes 1/2
    assert abs(posterior.weight * out.mean - P / 2) < 5 * posterior.weight * out.error
    assert posterior.weight * out.error < 0.02


@pytest.mark.slow
def test_the_coefficient_of_a_regular_network():
    net = init_(nn.Linear(2, 1).double(), 0)
    x = normal((400, 2), 1)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=F64) + 0.1 * normal((400, 1), 2)
    R = Realization(net)

    def loss(theta):
        return torch.stack([50 * ((R(row, x) - y) ** 2).mean() for row in theta])

    X = torch.cat([x, torch.ones(400, 1, dtype=F64)], 1)
    best = torch.linalg.lstsq(X, y).solution[:, 0]
    floor = loss(best[None]).item()
    wide = torch.ones(3, dtype=F64)
    out = learning_coefficient(
        loss,
        400,
        best - wide,
        best + wide,
        base=floor,
        sampler="mala",
        theta0=best.expand(8, 3).clone(),
        steps=400,
        step=0.05,
    )
    assert abs(out.value - 1.5) < 5 * out.error  # p/2 for a regular model
    assert out.error < 0.15


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "sgld"}, "sampler"),
        ({"sampler": "mala"}, "theta0"),
        ({"points": [10]}, "points"),
        ({"n": 1}, "n >= 2"),
        ({"sampler": "mala", "theta0": 9 * torch.ones(2, 2, dtype=F64)}, "inside"),
    ],
)
def test_bad_settings(kwargs, message):
    settings = {"n": 50, "base": 0.0, "points": [5, 5]} | kwargs
    n = settings.pop("n")
    with pytest.raises(ValueError, match=message):
        learning_coefficient(lambda t: t.sum(1), n, *BOX, **settings)


def test_bad_curves_and_axes():
    with pytest.raises(ValueError, match="divergences"):
        evidence_curve(-torch.ones(3), torch.zeros(3), torch.ones(1))
    with pytest.raises(ValueError, match="shape"):
        evidence_curve(torch.ones(3), torch.zeros(2), torch.ones(1))
    with pytest.raises(ValueError, match="low"):
        log_axis(1.0, 10, low=2.0)


# it says so whenever the gradient is that of all data, a seed is given, or nbeta is set
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(You are (taking more s|using)|If you're s)")
@pytest.mark.peer
def test_devinterp_agrees_on_a_regular_network():
    pytest.importorskip("devinterp", reason="optional peer, not installed")
    from devinterp.optim import SGMCMC
    from devinterp.slt.sampler import LLCEstimator, sample
    from torch.utils.data import DataLoader, TensorDataset

    net = init_(nn.Linear(2, 1).double(), 0)
    x = normal((400, 2), 1)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=F64) + 0.1 * normal((400, 1), 2)
    X = torch.cat([x, torch.ones(400, 1, dtype=F64)], 1)
    best = torch.linalg.lstsq(X, y).solution[:, 0]
    with torch.no_grad():
        net.weight.copy_(best[None, :2])
        net.bias.copy_(best[2:])

    def loss(net, batch):  # the batch is a blank: the gradient is that of all data
        return 50 * ((net(x) - y) ** 2).mean()

    nbeta, lr, chains, draws = 400 / math.log(400), 2e-4, 4, 200
    base = loss(net, None).detach()
    estimator = LLCEstimator(chains, draws, init_loss=base, nbeta=nbeta)
    sample(
        net,
        DataLoader(TensorDataset(torch.zeros(2)), batch_size=2),
        callbacks=[estimator],
        num_chains=chains,
        num_draws=draws,
        num_burnin_steps=draws,
        init_loss=base,
        seed=0,
        evaluate=loss,
        sampling_method=SGMCMC.sgld,
        optimizer_kwargs={"lr": lr, "nbeta": nbeta},
        verbose=False,
    )
    # p/2 = 3/2 for small steps. On a quadratic with curvatures k the unadjusted chain
    # is an autoregression: each coordinate gives f/2 with f = 1/(1 - lr k/4)
    k = nbeta * 100 * torch.linalg.eigvalsh(X.T @ X / 400)
    f, rho = 1 / (1 - lr * k / 4), 1 - lr * k / 2
    exact = float(f.sum() / 2)
    variance = (f**2 / 2 * (1 + rho**2) / (1 - rho**2)).sum() / (chains * draws)
    error = float(variance.sqrt())
    assert 2.0 < exact < 2.5
    assert error < 0.15
    assert abs(estimator.get_results()["llc/mean"] - exact) < 3 * error


@pytest.mark.parametrize("points", [(200, 200), (203, 203), (201, 100)])
@pytest.mark.parametrize("n", [10**7, 10**8])
def test_a_grid_that_does_not_resolve_the_posterior_is_refused(n, points):
    box = torch.tensor([-1.0, -1.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)

    def regular(t):
        return (t**2).sum(1)

    with pytest.raises(ValueError, match="points: expected a grid that resolves"):
        learning_coefficient(regular, n, *box, base=0.0, points=points)
    small = tuple(side * 30 / math.sqrt(n) for side in box)
    found = learning_coefficient(regular, n, *small, base=0.0, points=points)
    assert abs(found.value - 1.0) < 1e-6  # two regular directions: 1/2 each


def test_the_interval_is_students():
    found = LearningCoefficient(0.3, 0.01, "mala", 0.5, chains=4)
    low, high = found.interval()
    assert abs((high - low) / 2 / 0.01 - 3.182446305) < 1e-8  # three degrees of freedom
    assert abs((low + high) / 2 - 0.3) < 1e-12
    exact = LearningCoefficient(0.3, 0.0, "grid", 1.0)
    assert exact.interval() == (0.3, 0.3)
