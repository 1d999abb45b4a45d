"""Two-unit networks: kernels by quadrature, gradients by differences, attractors."""

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from scipy.special import erf

from geolib.networks import ErfKernel
from geolib.stratifolds import descend

units = chapter_module("stratifolds", "two_units")
CentralUnits, PairSurgery, PronyUnits = (
    units.CentralUnits, units.PairSurgery, units.PronyUnits)  # fmt: skip
RawUnits, RBFKernel, UnitLoss = units.RawUnits, units.RBFKernel, units.UnitLoss
on_plateau, overlap_coordinates = units.on_plateau, units.overlap_coordinates

F64 = torch.float64
KERNELS = [(RBFKernel(), 1), (ErfKernel(), 1), (ErfKernel(), 2)]


def draw(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def hermite(n):
    x, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    if n == 1:
        return x[:, None], w
    grid = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    return grid, np.outer(w, w).ravel()


def feature(kind, w, x):
    if kind == "rbf":
        return np.exp(-((x[:, 0] - w[0]) ** 2) / 2)
    return erf(x @ w / np.sqrt(2))


@pytest.mark.parametrize(("kernel", "n"), KERNELS)
def test_kernel_is_the_inner_product_of_features(kernel, n):
    a, b = draw(0, n).numpy(), draw(1, n).numpy()
    if isinstance(kernel, RBFKernel):
        x = np.arange(-12, 12, 0.05)[:, None]
        exact = 0.05 * (feature("rbf", a, x) * feature("rbf", b, x)).sum() / np.pi**0.5
        tol = 1e-13
    else:
        x, w = hermite(n)
        exact = (w * feature("erf", a, x) * feature("erf", b, x)).sum()
        tol = 1e-6
    assert abs(kernel(torch.tensor(a), torch.tensor(b)).item() - exact) < tol


@pytest.mark.parametrize(("kernel", "n"), KERNELS)
def test_kernel_derivatives_equal_autograd(kernel, n):
    a, b = draw(2, n), draw(3, n)
    jac = torch.func.jacrev
    for exact, hand in (
        (jac(kernel, 0)(a, b), kernel.d1(a, b)),
        (jac(kernel.d1, 1)(a, b), kernel.d12(a, b)),
        (jac(kernel.d1, 0)(a, b), kernel.d11(a, b)),
    ):
        torch.testing.assert_close(hand, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kernel", "n"), KERNELS)
def test_loss_gradient_and_gauss_newton(kernel, n):
    loss = UnitLoss(kernel, draw(4, 2), draw(5, 2, n))
    theta = draw(6, 5, 2 + 2 * n)
    value, g, G = loss.evaluate(theta, fisher=True)
    h = 1e-6
    for i in range(theta.shape[1]):
        e = torch.zeros_like(theta)
        e[:, i] = h
        numeric = (loss.value(theta + e) - loss.value(theta - e)) / (2 * h)
        assert (numeric - g[:, i]).abs().max() < 4e-9
    # Gauss-Newton = half the Hessian of |f - f*|^2 where the residual vanishes
    own = UnitLoss(kernel, theta[0, :2], theta[0, 2:].reshape(2, n))
    H = torch.autograd.functional.hessian(lambda t: own.value(t[None])[0], theta[0])
    torch.testing.assert_close(G[0], H, rtol=0, atol=1e-13)
    assert (value > 0).all()


def test_loss_by_quadrature():
    v, w = draw(7, 2), draw(8, 2, 1)
    tv, tw = draw(9, 2), draw(10, 2, 1)
    theta = torch.cat([v, w.flatten()])[None]
    x = np.arange(-14, 14, 0.05)[:, None]
    f = sum(v[i].item() * feature("rbf", w[i].numpy(), x) for i in range(2))
    f -= sum(tv[i].item() * feature("rbf", tw[i].numpy(), x) for i in range(2))
    exact = 0.5 * 0.05 * (f**2).sum() / np.pi**0.5
    assert abs(UnitLoss(RBFKernel(), tv, tw).value(theta).item() - exact) < 1e-14


def test_complex_conjugate_units_make_a_real_network():
    loss = UnitLoss(RBFKernel(), torch.ones(2, dtype=F64), draw(11, 2, 1))
    eta = torch.tensor([[1.5, 0.3, 0.2, 0.4]], dtype=F64)  # S^2 < 4P
    chart = PronyUnits()
    atoms = chart.embed(eta)
    assert atoms.imag.abs().max() > 0.1
    value, g, _ = loss.evaluate(atoms)
    c, w = loss._all(atoms)
    K = loss.kernel(w[:, :, None], w[:, None])
    full = 0.5 * torch.einsum("bi,bij,bj->b", c, K, c)
    assert abs(full.imag.item()) < 1e-15
    assert abs(value.item() - full.real.item()) < 1e-15
    J = chart.jacobian(eta)
    slope = torch.einsum("bap,ba->bp", J, g)
    assert slope.imag.abs().max() < 1e-13
    h = 1e-6
    for i in range(4):
        e = torch.zeros_like(eta)
        e[:, i] = h
        up, down = (loss.value(chart.embed(eta + s * e)) for s in (1, -1))
        assert abs((up - down) / (2 * h) - slope[0, i].real).item() < 1e-9
    assert torch.isnan(chart.from_chart(eta)).all()


def starts(kind, n, count, seed):
    rng = np.random.default_rng(seed)
    if kind == "random":
        v = rng.normal(size=(count, 2))
        return torch.tensor(np.concatenate([v, rng.uniform(-2, 2, (count, 2 * n))], 1))
    b = rng.normal(size=(count, n))
    e = rng.normal(size=(count, n))
    e *= 0.3 / np.linalg.norm(e, axis=1, keepdims=True)
    low, high = rng.uniform(-1, -0.1, count), rng.uniform(1.1, 2, count)
    z = np.where(rng.random(count) < 0.5, low, high)[:, None]
    V = rng.uniform(0.5, 2, (count, 1))
    parts = [(1 - z) * V, z * V, b - z * e, b + (1 - z) * e]
    return torch.tensor(np.concatenate(parts, 1))


def rbf_loss():
    w = torch.tensor([[-1.0], [1.0]], dtype=F64)
    return UnitLoss(RBFKernel(), torch.ones(2, dtype=F64), w)


@pytest.mark.slow
def test_e4_attractor_charts_and_surgery():
    loss, theta = rbf_loss(), starts("out", 1, 100, seed=1)
    raw = descend(loss, RawUnits(), theta, lr=1.0, clip=0.5, steps=3000)
    caught = on_plateau(raw.eta) & ~raw.success
    assert caught.double().mean() >= 0.4
    central = CentralUnits(1)
    run = descend(loss, central, central.to_chart(theta), lr=1.0, clip=0.5, steps=3000)
    assert run.rate() >= 0.99
    cut = descend(
        loss, RawUnits(), theta, lr=1.0, clip=0.5, steps=3000, surgery=PairSurgery(loss)
    )
    assert cut.rate() >= 0.99
    assert cut.surgeries.max() <= 2
    assert (cut.surgeries[caught] > 0).all()


def test_e4_surgery_rescues_random_starts():
    loss, theta = rbf_loss(), starts("random", 1, 100, seed=1)
    cut = descend(
        loss, RawUnits(), theta, lr=1.0, clip=0.5, steps=3000, surgery=PairSurgery(loss)
    )
    assert cut.rate() >= 0.99


def test_surgery_never_raises_the_loss_and_leaves_distant_pairs_alone():
    loss = rbf_loss()
    theta = torch.cat([starts("out", 1, 30, 2), starts("random", 1, 30, 3)])
    before = loss.value(theta)
    after = PairSurgery(loss, eps=0.2)(theta, before)
    assert (loss.value(after) <= before + 1e-15).all()
    u = overlap_coordinates(theta)[4]
    moved = (after != theta).any(1)
    assert moved.any()
    assert not moved[u.abs() >= 0.2].any()


@pytest.mark.parametrize(
    ("v", "w", "message"),
    [
        (torch.ones(2), torch.ones(3, 1), "one row for each of 2"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2, 1), "finite"),
    ],
)
def test_bad_teachers(v, w, message):
    with pytest.raises(ValueError, match=message):
        UnitLoss(RBFKernel(), v, w)
