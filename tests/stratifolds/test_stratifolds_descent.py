"""Descent: one run at a time against the batch, and the chapter's acceptance lines."""

import itertools
import math

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

from geolib.stratifolds import (
    MixtureCap,
    MixtureKL,
    MixtureModuli,
    MixtureTube,
    descend,
    mixture_a,
    mixture_b,
    natural_step,
    resolve,
)
from geolib.stratifolds.charts import AffineChart
from geolib.stratifolds.descent import SingularMetricError

cone = chapter_module("stratifolds", "cone").cone
Logit = chapter_module("stratifolds", "logit").Logit
RelativeMixture = chapter_module("stratifolds", "relative").RelativeMixture

em = chapter_module("stratifolds", "location_em").em
F64 = torch.float64
TEACHERS = [(0.3, 2.0), (0.5, 1.0), (0.1, 3.0)]
A, B = mixture_a(), mixture_b()


def teacher(*values):
    return torch.tensor(values, dtype=F64)


def loop_with_autograd(kl, chart, start, lr, steps, tol):
    """The slow reference: one start, autograd through the chart, plain Python."""
    eta = chart.project(start[None].clone())
    for it in range(steps + 1):
        leaf = eta.clone().requires_grad_(True)
        loss = kl.value(chart.embed(leaf)).sum()
        if loss.item() < tol:
            return it, eta[0]
        if it == steps:
            break
        (g,) = torch.autograd.grad(loss, leaf)
        step = lr * g
        step = step * min(1.0, 1.0 / max(step.norm().item(), 1e-300))
        eta = chart.project(eta - step)
    return -1, eta[0]


@pytest.mark.slow_for("chart1")
@pytest.mark.parametrize("chart", [mixture_a().chart, MixtureTube(0.1)])
def test_batch_equals_a_python_loop_over_starts(chart):
    kl = A.objective(teacher(0.3, 2.0))
    theta = A.sample_stratum(2, 12, seed=1)
    eta0 = chart.to_chart(theta)
    run = descend(kl, chart, eta0, lr=0.3, steps=120, stall=0.0)
    for i in range(len(theta)):
        hit, eta = loop_with_autograd(kl, chart, eta0[i], 0.3, 120, 1e-6)
        assert hit == run.hitting_time[i]
        assert (eta - run.eta[i]).abs().max() < 1e-10


def numpy_tube(eta, eps):
    """The tube's atoms in NumPy, for complex steps: |t| enters with its real sign."""
    t, nu = eta
    size = t if t.real >= 0 else -t
    a = 2 * size / eps - 1
    if a.real >= 1:
        m = size
    else:
        s = 0 * a
        if a.real > 0:
            s = np.exp(-1 / a) / (np.exp(-1 / a) + np.exp(-1 / (1 - a)))
        m = s * size + (1 - s) * np.sqrt(t * t + eps * eps / 4)
    weights = [1 - m / nu, (m + t) / (2 * nu), (m - t) / (2 * nu)]
    return weights, [0, nu, -nu], m


def test_hit_counts_equal_a_numpy_descent_with_complex_steps():
    x, eps, lr = np.arange(-11, 11.125, 0.25), 0.1, 1.0

    def p_of(weights, means):
        bells = (np.exp(-((x - c) ** 2) / 2) for c in means)
        return sum(a * b for a, b in zip(weights, bells, strict=True)) / np.sqrt(
            2 * np.pi
        )

    q = p_of([0.7, 0.3], [0.0, 2.0])

    def loss(eta):
        p = p_of(*numpy_tube(eta, eps)[:2])
        return 0.25 * (q * (np.log(q) - np.log(p))).sum()

    chart = MixtureTube(eps)
    eta0 = chart.to_chart(A.sample_stratum(2, 20, seed=1))
    run = descend(A.objective(teacher(0.3, 2.0)), chart, eta0, lr=lr, steps=60)
    hits = []
    for start in eta0.numpy():
        eta, hit = start.astype(complex), -1
        for it in range(61):
            if loss(eta).real < 1e-6:
                hit = it
                break
            g = [loss(eta + 1e-30j * e).imag / 1e-30 for e in np.eye(2)]
            step = lr * np.array(g)
            eta = eta - step * min(1.0, 1.0 / np.linalg.norm(step))
            eta[1] = max(eta[1].real, numpy_tube(eta, eps)[2].real)
        hits.append(hit)
    assert run.hitting_time.tolist() == hits
    assert run.rate() > 0.5


@pytest.mark.slow_for("*-truth[12]", "0.1-*")
@pytest.mark.parametrize("truth", TEACHERS)
@pytest.mark.parametrize("eps", [0.05, 0.1])
def test_e1_resolution_never_misses(truth, eps):
    kl, chart = A.objective(teacher(*truth)), MixtureTube(eps)
    eta0 = chart.to_chart(A.sample_stratum(2, 200, seed=1))
    assert descend(kl, chart, eta0, lr=1.0).rate() >= 0.99
    natural = descend(kl, chart, eta0, method="ngd", lr=1.0, damping=1e-2)
    assert natural.rate() >= 0.99


@pytest.mark.slow
def test_e1_wrong_starts_are_trapped_in_raw_coordinates():
    kl = A.objective(teacher(0.3, 2.0))
    theta = A.sample_stratum(2, 100, seed=1)
    wrong = theta[:, 1] < 0
    raw = descend(kl, mixture_a().chart, theta, method="ngd", lr=0.02, damping=1e-8)
    assert raw.rate(wrong) <= 0.02
    assert raw.stuck[wrong].double().mean() > 0.98
    assert not (raw.stuck & raw.success).any()
    chart = MixtureTube(0.1)
    tube = descend(
        kl, chart, chart.to_chart(theta), method="ngd", lr=0.02, damping=1e-8
    )
    assert tube.rate() == 1
    assert not tube.stuck.any()
    assert tube.entered[wrong].all()
    assert 0.95 <= tube.median(~wrong) / raw.median(~wrong) <= 1.05
    free = em(kl, mixture_a().chart.embed(theta), fixed=[0])
    assert free.rate() == 1  # EM is never trapped here


def test_e1_width_of_the_collar_hardly_matters():
    kl = A.objective(teacher(0.3, 2.0))
    theta = A.sample_stratum(2, 200, seed=1)
    medians = []
    for eps in (1e-8, 1e-3, 0.05, 0.2):
        run = descend(kl, MixtureTube(eps), MixtureTube(eps).to_chart(theta), lr=1.0)
        assert run.rate() == 1
        medians.append(run.median())
    assert max(medians) / min(medians) < 1.05


@pytest.mark.slow_for("0.25")
@pytest.mark.parametrize("v", [1.0, 0.25])
def test_e2_escape_law(v):
    half, lr = math.sqrt(v), 0.1
    kl = B.objective(teacher(0.5, -half, half))
    d0 = torch.tensor([0.1, 0.03, 0.01, 0.003, 0.001], dtype=F64)
    theta = torch.stack([0 * d0 + 0.5, -d0 / 2, d0 / 2], 1)
    raw = descend(kl, mixture_b().chart, theta, lr=lr, tol=1e-4).hitting_time.double()
    slope = np.polyfit(-np.log(d0.numpy()), raw.numpy(), 1)[0]
    assert abs(slope * math.log1p(lr * v / 2) - 1) < 0.02
    flat = descend(
        kl, MixtureModuli(), MixtureModuli().to_chart(theta), lr=lr, tol=1e-4
    ).hitting_time
    assert flat.max() - flat.min() <= 3


@pytest.mark.slow
def test_e3_moduli_beat_logit_near_overlap_and_gap_beats_no_gap():
    kl = B.objective(teacher(0.3, -1.0, 1.0))
    rng = np.random.default_rng(1)
    n = 100
    w, b = rng.uniform(0.05, 0.95, n), rng.uniform(-2, 2, n)
    near = torch.tensor(np.stack([w, b - 0.01 * w, b + 0.01 * (1 - w)], 1))
    moduli = descend(
        kl, MixtureModuli(), MixtureModuli().to_chart(near), lr=1.0, steps=4000
    )
    logit = descend(
        kl,
        Logit(mixture_b().chart),
        Logit(mixture_b().chart).to_chart(near),
        lr=1.0,
        steps=4000,
    )
    assert moduli.rate() == logit.rate() == 1
    assert moduli.median() < logit.median()
    ajar, shut = RelativeMixture(0.05), RelativeMixture(0.0)
    with_gap = descend(kl, ajar, ajar.to_chart(near), lr=0.3, steps=4000).rate()
    without = descend(kl, shut, shut.to_chart(near), lr=0.3, steps=4000).rate()
    assert with_gap >= 0.99 > without


def test_e5_cone():
    S = cone(2.0)
    theta = S.sample_stratum(2, 200, seed=1)
    goal = S.objective(teacher(1.0, 0.0))
    raw = descend(goal, S.chart, theta, lr=0.1, tol=1e-8)
    assert raw.rate() <= 0.85
    # the false minimum on the other nappe, in closed form
    trapped = raw.eta[~raw.success][:, 0]
    assert (trapped + 3 / 5).abs().max() < 1e-3
    for eps in (0.05, 0.1, 0.2, 0.5):
        R = resolve(S, eps)
        run = R.descend(teacher(1.0, 0.0), theta, lr=1.0, tol=1e-8)
        assert run.rate() >= 0.99


@pytest.mark.slow
def test_natural_flow_does_not_see_the_chart_and_gradient_flow_does():
    kl = B.objective(teacher(0.3, -1.0, 1.0))
    theta = torch.tensor([[0.4, -0.6, 0.9]], dtype=F64)
    ends = {}
    for method in ("gd", "ngd"):
        for chart in (mixture_b().chart, MixtureModuli()):
            run = descend(
                kl,
                chart,
                chart.to_chart(theta),
                method=method,
                lr=0.005,
                damping=1e-12,
                steps=200,
                tol=0.0,
            )
            ends[method, type(chart)] = chart.from_chart(run.eta)
    natural = (ends["ngd", AffineChart] - ends["ngd", MixtureModuli]).abs().max()
    plain = (ends["gd", AffineChart] - ends["gd", MixtureModuli]).abs().max()
    assert natural < 1e-3
    assert plain > 0.1


def test_raw_natural_step_explodes_near_overlap_and_the_cap_tames_it():
    kl = B.objective(teacher(0.3, -1.0, 1.0))
    sizes, tame = [], []
    chart = MixtureCap(eps=0.1)
    for d in (0.3, 0.1, 0.03, 0.01):
        theta = torch.tensor([[0.4, 0.0, d]], dtype=F64)
        for c, out in ((mixture_b().chart, sizes), (chart, tame)):
            eta = c.to_chart(theta)
            J = c.jacobian(eta)
            _, g, F = kl.evaluate(c.embed(eta), fisher=True)
            G = torch.einsum("bap,bac,bcq->bpq", J, F, J)
            out.append(natural_step(G, torch.einsum("bap,ba->bp", J, g), 0.0).norm())
    assert sizes[-1] > 1e4 * sizes[0] / 100
    assert all(b > 5 * a for a, b in itertools.pairwise(sizes))
    assert max(tame) < 3


def test_plateau_path_and_finished_rows_are_recorded():
    kl = A.objective(teacher(0.3, 2.0))
    theta = torch.tensor([[0.5, 1.0], [0.31, 2.0]], dtype=F64)
    run = descend(
        kl, mixture_a().chart, theta, lr=0.3, plateau=1e-2, record=[0, 10, 400]
    )
    assert run.path.shape == (2, 3, 2)
    torch.testing.assert_close(run.path[:, 0], theta)
    torch.testing.assert_close(run.path[:, 2], run.eta)
    assert (run.escaped_at <= run.hitting_time).all()
    assert run.escaped_at[1] == 0
    slow = descend(kl, mixture_a().chart, theta[:1], lr=0.3, steps=10)
    torch.testing.assert_close(run.path[0, 1], slow.eta[0])
    assert slow.hitting_time[0] == -1
    assert slow.median() == 10


def test_step_length_never_exceeds_the_clip():
    kl = A.objective(teacher(0.3, 2.0))
    theta = torch.tensor([[0.5, 1.0]], dtype=F64)
    run = descend(kl, mixture_a().chart, theta, lr=100.0, clip=0.05, steps=1, tol=0.0)
    assert abs((run.eta - theta).norm() - 0.05) < 1e-12
    assert run.clipped[0] == 1


def test_singular_metric_without_damping_is_an_error():
    kl = B.objective(teacher(0.3, -1.0, 1.0))
    theta = torch.tensor([[0.4, 0.0, 0.0]], dtype=F64)
    with pytest.raises(SingularMetricError, match="damping"):
        descend(kl, mixture_b().chart, theta, method="ngd")
    run = descend(kl, mixture_b().chart, theta, method="ngd", damping=1e-4, steps=3)
    assert torch.isfinite(run.loss).all()
    with pytest.raises(ValueError, match="damping"):
        natural_step(torch.eye(2)[None], torch.ones(1, 2), -1.0)


def test_natural_step_solves_the_damped_system():
    rng = np.random.default_rng(0)
    M = torch.tensor(rng.normal(size=(5, 3, 3)))
    G, g = M @ M.transpose(1, 2), torch.tensor(rng.normal(size=(5, 3)))
    x = natural_step(G, g, 0.1)
    residual = torch.einsum("bij,bj->bi", G + 0.1 * torch.eye(3, dtype=F64), x) - g
    assert residual.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "adam"}, "method"),
        ({"eta0": torch.zeros(0, 2, dtype=F64)}, "eta0"),
        ({"eta0": torch.tensor([[float("nan"), 1.0]], dtype=F64)}, "eta0"),
    ],
)
def test_bad_settings(kwargs, message):
    kl = A.objective(teacher(0.3, 2.0))
    eta0 = kwargs.pop("eta0", torch.ones(1, 2, dtype=F64))
    with pytest.raises(ValueError, match=message):
        descend(kl, mixture_a().chart, eta0, **kwargs)


def test_a_diverging_run_says_so():
    kl = MixtureKL(teacher(0.5, 0.5, 0.0, 1.0))
    chart = MixtureModuli()
    eta0 = torch.tensor([[1e3, 1.0, 0.0]], dtype=F64)
    with pytest.raises(ValueError, match="not finite at iteration 0"):
        descend(kl, chart, eta0)


def test_float32_and_inputs_decide_the_dtype():
    kl = MixtureKL(torch.tensor([0.7, 0.3, 0.0, 2.0]))
    eta0 = torch.tensor([[0.5, 1.0]])
    run = descend(kl, mixture_a().chart, eta0, lr=0.3, tol=1e-4)
    assert run.eta.dtype == torch.float32
    assert run.success.all()
