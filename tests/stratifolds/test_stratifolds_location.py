"""Bumps, quadrature, divergences: against closed forms and a second implementation."""

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from scipy.integrate import quad

from geolib.stratifolds import (
    Grid,
    MixtureKL,
    mixture_a,
    mixture_b,
    mixture_density,
    smooth_modulus,
)
from geolib.stratifolds.charts import _step, smooth_step

F64 = torch.float64
divergence_from_null = chapter_module("stratifolds", "evidence").divergence_from_null


def numpy_kl(atoms, teacher, h=0.25, reach=11.0):
    """A second implementation, in NumPy, that accepts complex atoms."""
    x = np.arange(-reach, reach + h / 2, h)

    def p_of(a):
        K = len(a) // 2
        bell = np.exp(-((x - a[K:, None]) ** 2) / 2) / np.sqrt(2 * np.pi)
        return (a[:K, None] * bell).sum(0)

    p, q = p_of(atoms), p_of(teacher)
    return (h * q * (np.log(q) - np.log(p))).sum()


def complex_step(atoms, teacher):
    grad = []
    for i in range(len(atoms)):
        shifted = atoms.astype(complex)
        shifted[i] += 1e-30j
        grad.append(numpy_kl(shifted, teacher).imag / 1e-30)
    return np.array(grad)


def numpy_fisher(atoms):
    x = np.arange(-11, 11.125, 0.25)
    K = len(atoms) // 2

    def p_of(a):
        return (
            a[:K, None] * np.exp(-((x - a[K:, None]) ** 2) / 2) / np.sqrt(2 * np.pi)
        ).sum(0)

    p = p_of(atoms)
    D = []
    for i in range(2 * K):
        shifted = atoms.astype(complex)
        shifted[i] += 1e-30j
        D.append(p_of(shifted).imag / 1e-30)
    D = np.array(D)
    return 0.25 * (D / p) @ D.T


ATOMS = np.array([[0.6, 0.4, -0.5, 1.5], [0.2, 0.8, 2.0, -1.0], [0.5, 0.5, 0.3, 0.3]])
TEACHER = np.array([0.7, 0.3, 0.0, 2.0])


def test_two_implementations_agree_on_loss_gradient_and_fisher():
    kl = MixtureKL(torch.tensor(TEACHER))
    loss, grad, fisher = kl.evaluate(torch.tensor(ATOMS), fisher=True)
    for i, row in enumerate(ATOMS):
        assert abs(loss[i].item() - numpy_kl(row, TEACHER)) < 2e-15
        np.testing.assert_allclose(grad[i], complex_step(row, TEACHER), atol=1e-14)
        np.testing.assert_allclose(fisher[i], numpy_fisher(row), atol=1e-14)
    torch.testing.assert_close(kl.value(torch.tensor(ATOMS)), loss, rtol=0, atol=1e-15)


def test_kl_matches_adaptive_quadrature():
    from scipy.stats import norm

    kl = MixtureKL(torch.tensor(TEACHER))

    def integrand(x):
        q = 0.7 * norm.pdf(x) + 0.3 * norm.pdf(x - 2)
        p = 0.6 * norm.pdf(x + 0.5) + 0.4 * norm.pdf(x - 1.5)
        return q * np.log(q / p)

    exact = quad(integrand, -10, 12, epsabs=1e-13)[0]
    assert abs(kl.value(torch.tensor(ATOMS[:1])).item() - exact) < 1e-12


def test_grid_is_spectrally_accurate_and_a_coarse_one_is_not():
    atoms = torch.tensor(ATOMS)
    fine = MixtureKL(torch.tensor(TEACHER), Grid(step=0.0625)).value(atoms)
    book = MixtureKL(torch.tensor(TEACHER)).value(atoms)
    coarse = MixtureKL(torch.tensor(TEACHER), Grid(step=2.2)).value(atoms)
    assert (book - fine).abs().max() < 1e-13
    assert (coarse - fine).abs().max() > 1e-4


def test_kl_is_constant_along_the_singular_sets():
    kl = MixtureKL(torch.tensor(TEACHER))
    t = torch.linspace(0, 1, 31, dtype=F64)
    wall = torch.stack([0 * t, 6 * t - 3], 1)
    line = torch.stack([t, 0 * t], 1)
    values = kl.value(mixture_a().chart.embed(torch.cat([wall, line])))
    assert values.max() - values.min() < 4e-16
    same = torch.stack([t, 0 * t + 0.7, 0 * t + 0.7], 1)
    values = kl.value(mixture_b().chart.embed(same))
    assert values.max() - values.min() < 4e-16


def test_data_objective_is_the_mean_negative_log_likelihood():
    x = torch.tensor([-1.0, 0.2, 3.0], dtype=F64)
    nll = MixtureKL(torch.tensor(TEACHER), data=x)
    atoms = torch.tensor(ATOMS)
    expected = torch.log(
        mixture_density(torch.tensor(TEACHER)[None], x)
    ).mean() - torch.log(mixture_density(atoms, x)).mean(1)
    torch.testing.assert_close(nll.value(atoms), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(nll.evaluate(atoms)[0], expected, rtol=0, atol=1e-14)
    leaf = atoms.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(nll.value(leaf).sum(), leaf)
    torch.testing.assert_close(nll.evaluate(atoms)[1], g, rtol=0, atol=1e-13)


def test_null_divergence_keeps_its_digits_where_logarithms_lose_them():
    v = torch.tensor([1e-3, 1e-6, 1e-9], dtype=F64)
    d = torch.sqrt(v)
    atoms = torch.stack([0 * v + 0.5, 0 * v + 0.5, -d, d], 1)
    exact = divergence_from_null(atoms)
    torch.testing.assert_close(exact, v**2 / 4, rtol=5e-3, atol=0)
    far = torch.tensor([[0.0, 1.0, 0.0, 3.0], [0.3, 0.7, 0.0, 1.0]], dtype=F64)
    null = MixtureKL(torch.tensor([1.0, 0.0], dtype=F64)).value(far)
    torch.testing.assert_close(divergence_from_null(far), null, rtol=1e-12, atol=0)


def test_smooth_step_and_modulus():
    r = torch.linspace(-0.5, 1.5, 401, dtype=F64)
    s = smooth_step(r)
    assert (s[r <= 0] == 0).all()
    assert (s[r >= 1] == 1).all()
    assert (s[1:] - s[:-1] >= 0).all()
    torch.testing.assert_close(s + smooth_step(1 - r), torch.ones_like(s))
    eps = 0.3
    t = torch.linspace(-0.5, 0.5, 1001, dtype=F64)
    m, slope = smooth_modulus(t, eps)
    outside = t.abs() >= eps
    assert (m[outside] == t.abs()[outside]).all()
    assert (m >= t.abs()).all()
    assert (m >= eps / 2).all()
    half = t.abs() < eps / 2
    torch.testing.assert_close(m[half], torch.sqrt(t[half] ** 2 + eps**2 / 4))
    h = 1e-6
    numeric = (smooth_modulus(t + h, eps)[0] - smooth_modulus(t - h, eps)[0]) / (2 * h)
    torch.testing.assert_close(slope, numeric, rtol=0, atol=1e-7)
    inner = (r > 0.02) & (r < 0.98)
    numeric = (smooth_step(r + h) - smooth_step(r - h)) / (2 * h)
    torch.testing.assert_close(_step(r)[1][inner], numeric[inner], atol=1e-7, rtol=0)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_modulus_refuses_a_width_that_is_none(eps):
    with pytest.raises(ValueError, match="eps: expected a (positive )?finite"):
        smooth_modulus(torch.zeros(1), eps)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "at least 2 observations, got 0"),
        ([1.0], "at least 2 observations, got 1"),
        ([1.0, float("nan")], "finite"),
    ],
)
def test_bad_data_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        MixtureKL(torch.tensor(TEACHER), data=torch.tensor(points, dtype=F64))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([1.2, -0.2, 0.0, 1.0], "sum to 1"),
        ([0.5, 0.4, 0.0, 1.0], "sum to 1"),
        ([0.5, 0.5, 0.0], "K weights then K locations"),
        ([0.5, 0.5, 0.0, float("inf")], "finite"),
    ],
)
def test_bad_teachers_are_refused(teacher, message):
    with pytest.raises(ValueError, match=message):
        MixtureKL(torch.tensor(teacher, dtype=F64))
