"""Charts: Jacobians by finite differences, and what each resolution promises."""

import math

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from scipy.optimize import minimize

from geolib.stratifolds import (
    Chart,
    MixtureCap,
    MixtureKL,
    MixtureModuli,
    MixtureTube,
    descend,
    mixture_a,
    mixture_b,
    mixture_density,
    moduli_of,
    resolve,
)

units, bent = (chapter_module("stratifolds", name) for name in ("two_units", "cone"))
CentralUnits, PronyUnits = units.CentralUnits, units.PronyUnits
Cone, ConeWaist, cone = bent.Cone, bent.ConeWaist, bent.cone
mixture_k = chapter_module("stratifolds", "mixture_k")
PairModuli, SoftmaxMixture = mixture_k.PairModuli, mixture_k.SoftmaxMixture
Logit = chapter_module("stratifolds", "logit").Logit
RelativeMixture = chapter_module("stratifolds", "relative").RelativeMixture

F64 = torch.float64
X = torch.arange(-11, 11.01, 0.25, dtype=F64)


def draw(seed, *shape, low=-1.0, high=1.0):
    return torch.tensor(np.random.default_rng(seed).uniform(low, high, shape))


CASES = [
    (mixture_a().chart, draw(0, 6, 2, low=0.1)),
    (Logit(mixture_a().chart), draw(1, 6, 2)),
    (
        MixtureTube(0.5),
        draw(2, 6, 2) * torch.tensor([0.6, 0.1]) + torch.tensor([0, 1.0]),
    ),
    (mixture_b().chart, draw(3, 6, 3, low=0.1)),
    (Logit(mixture_b().chart), draw(4, 6, 3)),
    (RelativeMixture(0.1), draw(5, 6, 3, low=0.2)),
    (MixtureModuli(), draw(6, 6, 3, low=0.2)),
    (MixtureCap(eps=0.4), draw(7, 6, 3) * 0.1 + torch.tensor([0.0, 0.3, 0.0])),
    (PairModuli(4, (1, 3)), draw(8, 6, 7, low=0.2)),
    (SoftmaxMixture(3), draw(9, 6, 5)),
    (CentralUnits(1), draw(10, 6, 4)),
    (CentralUnits(2), draw(11, 6, 6)),
    (PronyUnits(), draw(12, 6, 4)),
    (Cone(2.0), draw(13, 6, 2)),
    (ConeWaist(2.0, eps=0.8), draw(14, 6, 2)),
]


@pytest.mark.parametrize(("chart", "eta"), CASES, ids=lambda c: type(c).__name__)
def test_jacobian_against_finite_differences(chart, eta):
    J, h = chart.jacobian(eta), 1e-6
    assert J.shape == (*chart.embed(eta).shape, len(chart.names))
    for i in range(eta.shape[1]):
        e = torch.zeros_like(eta)
        e[:, i] = h
        numeric = (chart.embed(eta + e) - chart.embed(eta - e)) / (2 * h)
        assert (numeric - J[:, :, i]).abs().max() < 5e-8


@pytest.mark.parametrize(
    "chart",
    [
        MixtureTube(0.4),
        mixture_b().chart,
        Logit(mixture_a().chart),
    ],
)
def test_hand_jacobian_equals_autograd(chart):
    eta = draw(20, 5, len(chart.names)) + torch.tensor(
        [0.0, 1.5] if len(chart.names) == 2 else [0.5, 0.1, 0.2]
    )
    torch.testing.assert_close(chart.jacobian(eta), Chart.jacobian(chart, eta))


def test_tube_is_the_model_outside_its_collar_and_a_density_inside():
    chart = MixtureTube(0.1)
    theta = torch.stack([draw(30, 400, low=0, high=1), 3 * draw(31, 400)], 1)
    eta = chart.to_chart(theta)
    outside = theta.prod(1).abs() >= chart.eps
    assert 100 < outside.sum() < 390
    assert (chart.inside_collar(eta) == ~outside).all()
    gap = mixture_density(chart.embed(eta), X) - mixture_density(
        mixture_a().chart.embed(theta), X
    )
    assert gap[outside].abs().max() < 2e-16
    assert gap[~outside].abs().max() > 1e-3  # inside, the model was changed
    p = mixture_density(chart.embed(eta), X)
    assert (p >= 0).all()
    assert (chart.embed(eta)[:, :3] >= -1e-15).all()
    assert (0.25 * p.sum(1) - 1).abs().max() < 1e-14
    assert (0.25 * (p * X).sum(1) - eta[:, 0]).abs().max() < 1e-14  # t is the mean
    torch.testing.assert_close(chart.from_chart(eta)[outside], theta[outside])


WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.4)


def test_smallest_fisher_eigenvalue_on_the_waist_grows_as_eps_squared():
    ratios = []
    for eps in WIDTHS:
        chart = MixtureTube(eps)
        eta = torch.tensor([[0.0, 1 + eps / 2]], dtype=F64)
        J = chart.jacobian(eta)[0]
        F = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64)).fisher(chart.embed(eta))[0]
        ratios.append(torch.linalg.eigvalsh(J.T @ F @ J)[0].item() / eps**2)
    # the prototype's figures, one unit above the least nu; the raw model has 0 there
    np.testing.assert_allclose(ratios, [0.211, 0.192, 0.169, 0.138, 0.102], atol=6e-4)


def test_distance_of_the_waist_from_the_best_mixture_grows_as_eps_squared():
    ratios = []
    for eps in WIDTHS:
        eta = torch.tensor([[0.0, 1 + eps / 2]], dtype=F64)
        own = MixtureKL(MixtureTube(eps).embed(eta)[0])

        def gap(v, own=own):
            return own.value(torch.tensor([[1 - v[0], v[0], 0.0, v[1]]], dtype=F64))[0]

        fits = [
            minimize(gap, start, bounds=[(0, 1), (-6, 6)], options={"ftol": 1e-16})
            for start in ([eps, 0.5], [eps / 10, 2.0])
        ]
        ratios.append(min(fit.fun for fit in fits) / eps**2)
    prototype = [0.0408, 0.0411, 0.0418, 0.0433, 0.0463]
    np.testing.assert_allclose(ratios, prototype, atol=1e-4)


def test_rank_in_the_moduli_falls_to_two_at_the_wall():
    chart, kl = MixtureModuli(), MixtureKL(torch.tensor([1.0, 0.0], dtype=F64))
    eta = torch.tensor([[0.3, v, 0.5] for v in (1e-7, 1e-2)], dtype=F64)
    J = chart.jacobian(eta)
    F = torch.einsum("bap,bac,bcq->bpq", J, kl.fisher(chart.embed(eta)), J)
    lam = torch.linalg.eigvalsh(F)
    # e_s is blind there: F_ss = v^2/6; b and v keep the information 1 and 1/2 of the
    # Hermite functions that they move
    assert abs(lam[0, 0]) < 1e-13
    assert lam[0, 1] > 0.4
    assert lam[1, 0] > 1e-6


def test_truth_on_the_stratum_leaves_a_floor_of_eps_to_the_fourth():
    for eps in (0.1, 0.2):
        chart = MixtureTube(eps)
        nu = torch.linspace(eps / 2, 4, 4000, dtype=F64)
        eta = torch.stack([0 * nu, nu], 1)
        kl = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64))
        floor = kl.value(chart.embed(eta)).min().item()
        assert abs(floor / (eps**4 / 64) - 1) < 0.02


def test_label_swap_leaves_the_moduli_fixed_and_the_inverse_is_exact():
    theta = torch.stack([draw(40, 50, low=0.05, high=0.95), *draw(41, 2, 50)], 1)
    swapped = torch.stack([1 - theta[:, 0], theta[:, 2], theta[:, 1]], 1)
    torch.testing.assert_close(moduli_of(theta), moduli_of(swapped))
    chart = MixtureModuli()
    back = mixture_density(chart.embed(chart.to_chart(theta)), X)
    torch.testing.assert_close(
        back, mixture_density(mixture_b().chart.embed(theta), X), rtol=0, atol=1e-9
    )


def test_ordering_the_means_keeps_the_density():
    theta = torch.stack([draw(42, 50, low=0.05, high=0.95), *draw(43, 2, 50)], 1)
    chart = RelativeMixture(0.0)
    eta = chart.to_chart(theta)
    assert (eta[:, 1] >= 0).all()
    assert (theta[:, 2] < theta[:, 1]).sum() > 10
    torch.testing.assert_close(
        mixture_density(chart.embed(eta), X),
        mixture_density(mixture_b().chart.embed(theta), X),
    )


def test_moduli_recurrence_of_central_moments():
    theta = torch.tensor([[0.3, -0.7, 1.1]], dtype=F64)
    b, v, s = moduli_of(theta)[0]
    w, m1, m2 = theta[0]
    m = [1.0, 0.0]
    for k in range(1, 9):
        m.append(s * m[k] + v * m[k - 1])
    for k, value in enumerate(m):
        direct = (1 - w) * (m1 - b) ** k + w * (m2 - b) ** k
        assert abs(direct - value) < 1e-13


def test_jacobian_determinant_of_the_blow_down_is_minus_d_squared():
    w = torch.tensor(0.3, dtype=F64, requires_grad=True)
    d = torch.tensor(1.7, dtype=F64, requires_grad=True)
    v, s = w * (1 - w) * d * d, (1 - 2 * w) * d
    rows = [
        torch.stack(torch.autograd.grad(f, (d, w), retain_graph=True)) for f in (v, s)
    ]
    assert torch.allclose(torch.det(torch.stack(rows)), -(d**2))


def test_density_keeps_a_slope_in_v_on_the_wall():
    kl = mixture_b().objective(torch.tensor([0.5, -1.0, 1.0], dtype=F64))
    chart = MixtureModuli()
    eta = torch.tensor([[0.0, 0.0, 0.0]], dtype=F64)
    _, g, _ = kl.evaluate(chart.embed(eta))
    slope = torch.einsum("bap,ba->bp", chart.jacobian(eta), g)[0, 1]
    assert abs(slope + 0.5) < 1e-4  # dL/dv = -v*/2 at v = 0, with v* = 1
    raw = torch.einsum(
        "bap,ba->bp",
        mixture_b().chart.jacobian(eta),
        kl.evaluate(
            mixture_b().chart.embed(torch.tensor([[0.5, 0.0, 0.0]], dtype=F64))
        )[1],
    )
    assert raw[0].abs().max() < 1e-14


def test_projections_stop_at_their_walls_and_only_there():
    out = torch.tensor([[0.1, -0.5, 0.2], [0.1, 0.5, 0.2]], dtype=F64)
    wall = out.clamp_min(0)
    assert torch.equal(MixtureModuli().project(out), wall)
    capped = torch.tensor([[0.1, 0.0, 0.0], [0.1, 0.5, 0.2]], dtype=F64)
    assert torch.equal(MixtureCap(eps=0.1).project(out), capped)
    assert torch.equal(PairModuli(2).project(out), wall)
    weights = torch.tensor([[-0.2, 3.0], [0.5, -1.0], [1.5, 0.0]], dtype=F64)
    clipped = torch.cat([weights[:, :1].clamp(0, 1), weights[:, 1:]], 1)
    assert torch.equal(mixture_a().chart.project(weights), clipped)
    # overshooting the wall of B in one long step leaves a finite density
    kl = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64))
    start = torch.tensor([[0.0, 0.3, 0.0]], dtype=F64)
    run = descend(kl, MixtureModuli(), start, lr=10.0, steps=3, tol=0.0)
    assert run.eta[0, 1] == 0


def test_cap_is_mixture_b_outside_its_collar_and_a_density_inside():
    chart = MixtureCap(0.1)
    theta = torch.cat([draw(32, 400, 1, low=0.05, high=0.95), draw(33, 400, 2)], 1)
    eta = chart.to_chart(theta)
    gap = mixture_density(chart.embed(eta), X) - mixture_density(
        mixture_b().chart.embed(theta), X
    )
    inside = chart.inside_collar(eta)
    assert 50 < inside.sum() < 350
    assert gap[~inside].abs().max() < 1e-14
    assert gap[inside].abs().max() > 1e-6
    v = draw(34, 300, low=0, high=0.1)
    eta = torch.stack([draw(35, 300), v, 2 * v * draw(36, 300)], 1)
    p = mixture_density(chart.embed(eta), X)
    assert (chart.embed(eta)[:, :5] >= 0).all()
    assert (0.25 * p.sum(1) - 1).abs().max() < 1e-14
    assert (0.25 * (p * X).sum(1) - eta[:, 0]).abs().max() < 1e-9  # b is the mean
    # the Fisher matrix neither degenerates nor blows up, and is known at the tip
    lam = torch.linalg.eigvalsh(resolve(mixture_b(), 0.1, "cap").metric(eta))
    assert lam.min() > 0.05
    assert lam.max() < 10
    tip = resolve(mixture_b(), 0.1, "cap").metric(torch.zeros(1, 3, dtype=F64))[0]
    known = [1, (math.cosh(4) - 1) / 16, math.sinh(4) / 64 - 1 / 16]
    torch.testing.assert_close(tip, torch.diag(torch.tensor(known, dtype=F64)))


def test_fisher_of_s_near_the_wall_is_v_squared_over_six():
    chart, v = MixtureModuli(), 1e-3
    eta = torch.tensor([[0.0, v, 0.0]], dtype=F64)
    J = chart.jacobian(eta)
    F = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64)).fisher(chart.embed(eta))
    F_ss = torch.einsum("bap,bac,bcq->bpq", J, F, J)[0, 2, 2]
    assert abs(F_ss / v**2 - 1 / 6) < 2e-3


def test_cone_and_its_resolution_agree_outside_the_waist():
    theta = torch.stack([2 * draw(50, 200), np.pi * draw(51, 200)], 1)
    raw, tube = Cone(2.0), ConeWaist(2.0, eps=0.3)
    eta = tube.to_chart(theta)
    far = theta[:, 0].abs() >= 0.3
    torch.testing.assert_close(tube.embed(eta)[far], raw.embed(theta)[far])
    torch.testing.assert_close(tube.from_chart(eta), theta)
    assert tube.inside_collar(eta).sum() == (~far).sum()


def test_prony_and_central_charts_return_the_same_units():
    theta = torch.cat([draw(60, 20, 2, low=0.2), draw(61, 20, 2)], 1)
    for chart in (PronyUnits(), CentralUnits(1)):
        back = chart.from_chart(chart.to_chart(theta))
        v, w = back[:, :2], back[:, 2:]
        for k in range(4):  # all power sums agree, whatever the order of the units
            direct = (theta[:, :2] * theta[:, 2:] ** k).sum(1)
            torch.testing.assert_close((v * w**k).sum(1), direct, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "chart", [mixture_a().chart, Logit(mixture_a().chart), MixtureTube(0.1)]
)
@pytest.mark.parametrize("w", [-0.1, 1.2])
def test_weights_outside_the_unit_interval_are_refused(chart, w):
    with pytest.raises(ValueError, match=r"a weight w \(column 0\) in \[0, 1\]"):
        chart.to_chart(torch.tensor([[0.5, 1.0], [w, 1.0]], dtype=F64))


def test_other_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="finite"):
        mixture_b().chart.to_chart(torch.tensor([[0.5, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match=r"expected shape \(batch, 3\)"):
        MixtureModuli().to_chart(torch.zeros(2))
    with pytest.raises(ValueError, match="gap"):
        RelativeMixture(-0.1)
    with pytest.raises(ValueError, match="pair"):
        PairModuli(3, (1, 1))
    with pytest.raises(ValueError, match="c: expected a finite number above zero"):
        cone(0.0)
    with pytest.raises(ValueError, match="v1 \\+ v2 != 0"):
        CentralUnits(1).to_chart(torch.tensor([[1.0, -1.0, 0.0, 1.0]]))
    with pytest.raises(ValueError, match="1 <= n <= 2"):
        CentralUnits(3)
    with pytest.raises(ValueError, match="sum to 1"):
        SoftmaxMixture(2).coordinates(torch.tensor([[0.4, 0.4, 0.0, 1.0]]))
