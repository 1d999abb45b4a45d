import numpy as np
import pytest
from chapter_experiments import chapter_module

from geolib.regimes import SpectralMeasure, marchenko_pastur
from geolib.regimes.spectral_measures import coarser, jacobi

narayana = chapter_module("regimes", "taylor").narayana


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.3, 2.0), (2.0, 0.3), (1, 7)])
def test_moments_are_narayana_polynomials(alpha, beta):
    law = marchenko_pastur(alpha, beta)
    for order in range(1, 9):
        exact = sum(
            n * alpha**k * beta ** (order - k) for k, n in enumerate(narayana(order), 1)
        )
        assert law.moment(order) == pytest.approx(exact, rel=1e-12)


def test_narayana_sums_to_catalan():
    assert [sum(narayana(n)) for n in range(1, 8)] == [1, 2, 5, 14, 42, 132, 429]


def test_law_matches_a_large_sample_spectrum():
    rng = np.random.default_rng(0)
    d, n = 400, 200
    X = rng.standard_normal((d, n))
    sample = SpectralMeasure.of_eigenvalues(np.linalg.eigvalsh(X @ X.T / n))
    law = marchenko_pastur(1.0, d / n)
    for f in (np.sqrt, lambda x: np.exp(-x), lambda x: x / (1 + x)):
        expected = f(law.nodes) @ law.weights
        assert f(sample.nodes) @ sample.weights == pytest.approx(expected, abs=4e-3)
    assert sample.weights[sample.nodes == 0].sum() >= 0.49  # the atom 1 - n/d


def test_jacobi_reproduces_moments_and_the_known_chain():
    law = marchenko_pastur(0.7, 1.9)
    a, b = jacobi(law, 6)
    assert np.allclose(a, [0.7] + [2.6] * 5)
    assert np.allclose(b, np.sqrt(0.7 * 1.9))
    J = np.diag(a) + np.diag(b, 1) + np.diag(b, -1)
    for k in range(12):
        power = np.linalg.matrix_power(J, k)[0, 0]
        assert power == pytest.approx(law.moment(k) if k else 1.0, rel=1e-10)


def test_jacobi_of_a_short_law_ends_in_zeros():
    law = SpectralMeasure(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
    a, b = jacobi(law, 5)
    assert np.allclose(a[:2], 2.0)
    assert b[0] == pytest.approx(1.0)
    assert not b[1:].any()


def test_coarse_keeps_mean_and_weight():
    law = marchenko_pastur(1.0, 2.0)
    small, score = coarser(law, law.nodes**2, 20)
    assert small.nodes.size <= 20
    assert small.weights.sum() == pytest.approx(1.0)
    assert small.moment(1) == pytest.approx(law.moment(1), rel=1e-10)
    assert score @ small.weights == pytest.approx(law.moment(2), rel=1e-10)
    assert small.moment(2) == pytest.approx(law.moment(2), rel=0.03)


@pytest.mark.parametrize(
    ("nodes", "weights", "said"),
    [
        ([1.0, -1.0], [0.5, 0.5], "nodes >= 0"),
        ([1.0, 2.0], [0.5, 0.6], "sum to 1"),
        ([1.0, np.nan], [0.5, 0.5], "finite"),
        ([1.0], [0.5, 0.5], "equal vectors"),
    ],
)
def test_bad_laws_are_refused(nodes, weights, said):
    with pytest.raises(ValueError, match=said):
        SpectralMeasure(np.array(nodes), np.array(weights))


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^beta: "):
        marchenko_pastur(1.0, -1.0)
    with pytest.raises(ValueError, match="finite"):
        SpectralMeasure.of_eigenvalues([1.0, np.inf])
