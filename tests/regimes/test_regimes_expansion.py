"""The expansion against arithmetic that knows no words and no traces."""

from collections import Counter
from fractions import Fraction
from itertools import product
from math import factorial

import numpy as np
import pytest
from chapter_experiments import chapter_module

from geolib.regimes import (
    REGIMES,
    Setup,
    SpectralMeasure,
    evaluate,
    exact_loss,
    face,
    loss_words,
    planar_loss,
)
from geolib.regimes.ensemble import _Copies
from geolib.regimes.trace_words import _mean, canonical, derive, face_test, value

TAYLOR = chapter_module("regimes", "taylor")
POLYTOPE = chapter_module("regimes", "polytope")
pareto = chapter_module("regimes", "experiments").pareto
SOLVED, theory_taylor = TAYLOR.SOLVED, TAYLOR.theory_taylor

KINDS = ("train", "population")
SMALL = 5


def gaussian_mean(poly, variances):
    """E of a sympy polynomial in independent centred Gaussians, term by term."""
    total = Fraction(0)
    for powers, factor in poly.terms():
        term = Fraction(int(factor.p), int(factor.q))
        for power, variance in zip(powers, variances, strict=True):
            if power % 2:
                term = Fraction(0)
                break
            half = power // 2
            term *= variance**half * Fraction(
                factorial(power), 2**half * factorial(half)
            )
        total += term
    return total


def by_sympy(kind, order, d, h, n, sigma2, variances=None):
    """d^s L / dt^s at 0 from the gradient itself, entry by entry, then averaged."""
    import sympy as sp

    w = sp.symbols(f"w:{h * d}")
    x = sp.symbols(f"x:{d * n}")
    W, X = sp.Matrix(h, d, w), sp.Matrix(d, n, x)
    residual = X - W.T * (W * X)
    train = sum(e**2 for e in residual) / (2 * n)
    lack = sp.eye(d) - W.T * W
    of = variances or [Fraction(1)] * d
    seen = [sp.Rational(v.numerator, v.denominator) for v in of]
    held = sum(seen[i] * lack[i, j] ** 2 for i in range(d) for j in range(d)) / 2
    loss = train if kind == "train" else held
    slope = [sp.expand(sp.diff(train, v)) for v in w]
    loss = sp.expand(loss)
    for _ in range(order):
        loss = sp.expand(
            -sum(sp.diff(loss, v) * g for v, g in zip(w, slope, strict=True))
        )
    poly = sp.Poly(loss, *w, *x)
    return gaussian_mean(poly, [sigma2] * len(w) + [v for v in of for _ in range(n)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", range(6))
def test_scalar_case_equals_gaussian_moments(kind, order):
    sigma2 = Fraction(2, 3)
    ours = evaluate(exact_loss(kind, order), 1, 1, 1, sigma2)
    assert ours == by_sympy(kind, order, 1, 1, 1, sigma2)


@pytest.mark.parametrize(
    ("traces", "sizes"),
    [
        (("AS", "AS"), (2, 1, 2)),
        (("S", "AAS"), (2, 2, 1)),
        (("A", "AS", "S"), (2, 1, 2)),
        (("ASAS",), (2, 2, 1)),
        (("AP", "AS"), (2, 1, 2)),
        (("AP", "SPS"), (2, 1, 2)),
    ],
)
def test_products_of_traces_equal_gaussian_moments(traces, sizes):
    """Letters meet in their own trace and in others, straight and reversed."""
    import sympy as sp

    (d, h, n), sigma2 = sizes, Fraction(1, 3)
    of = (
        [Fraction(3, 2), Fraction(1, 5)]
        if "P" in "".join(traces)
        else [Fraction(1)] * 2
    )
    w, x = sp.symbols(f"w:{h * d}"), sp.symbols(f"x:{d * n}")
    W, X = sp.Matrix(h, d, w), sp.Matrix(d, n, x)
    letters = {
        "A": W.T * W,
        "S": X * X.T / n,
        "P": sp.diag(*map(sp.Rational, map(str, of))),
    }
    poly = sp.Poly(1, *w, *x)
    for word in traces:
        whole = sp.prod([letters[y] for y in word], sp.eye(d)).trace()
        poly *= sp.Poly(sp.expand(whole), *w, *x)
    exact = gaussian_mean(poly, [sigma2] * len(w) + [v for v in of for _ in range(n)])
    top = 5 * ("P" in "".join(traces))
    ours = _mean(tuple(sorted(map(canonical, traces), key=lambda t: (len(t), t))), top)
    powers = [sum(v**j for v in of) for j in range(1, top + 1)]
    ours = {key: Fraction(int(f)) for key, f in ours.items()}
    assert evaluate(ours, d, h, n, sigma2, powers) == exact


def test_first_losses_are_exact_for_every_data_and_population():
    """E tr S (1 - A)^2 / 2, with whole numbers for S and unequal h and d."""
    import sympy as sp

    d, h, sigma2 = 3, 2, Fraction(1, 5)
    w = sp.symbols(f"w:{h * d}")
    W, S = sp.Matrix(h, d, w), sp.Matrix([[3, 1, 0], [1, 2, -1], [0, -1, 5]])
    lack = sp.eye(d) - W.T * W
    poly = sp.Poly(sp.expand((S * lack * lack).trace() / 2), *w)
    rho, kappa = sigma2 * h, sigma2 * d
    told = Fraction(10, 2) * (1 - 2 * rho + rho**2 + rho * kappa + sigma2 * rho)
    assert gaussian_mean(poly, [sigma2] * len(w)) == told
    law = SpectralMeasure.of_eigenvalues(np.linalg.eigvalsh(np.array(S, float)))
    copies = _Copies(Setup(d, h, 9, float(sigma2)), np.zeros(1), law, None, True)
    assert copies.first(copies.setup)[0] * d == pytest.approx(float(told), rel=1e-12)


@pytest.mark.slow_for("1-*", "2-sizes4-*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("order", "sizes"),
    [(0, (2, 2, 2)), (1, (2, 1, 2)), (1, (1, 2, 2)), (1, (2, 2, 1)), (2, (2, 1, 1))],
)
def test_small_matrices_equal_gaussian_moments(kind, order, sizes):
    sigma2 = Fraction(1, 3)
    ours = evaluate(exact_loss(kind, order), *sizes, sigma2)
    assert ours == by_sympy(kind, order, *sizes, sigma2)


@pytest.mark.slow_for("2-*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("order", "sizes"), [(0, (2, 1, 2)), (1, (2, 1, 2)), (1, (2, 2, 1)), (2, (2, 1, 1))]
)
def test_covariance_of_small_matrices_equals_gaussian_moments(kind, order, sizes):
    sigma2, variances = Fraction(1, 3), [Fraction(3, 2), Fraction(1, 5)]
    poly = exact_loss(kind, order, covariance=True)
    traces = [sum(v**j for v in variances) for j in range(1, order + 2)]
    ours = evaluate(poly, *sizes, sigma2, traces)
    assert ours == by_sympy(kind, order, *sizes, sigma2, variances)


@pytest.mark.slow_for("4-*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", range(5))
def test_covariance_keeps_the_prism(kind, order):
    exact = exact_loss(kind, order, covariance=True)
    planar = planar_loss(kind, order, covariance=True)[order]
    one = Counter()  # with every moment 1 the isotropic prism is left
    for (l, k, m, *e), f in planar.items():
        one[l, k, m] += f
        assert sum(j * x for j, x in enumerate(e, 1)) == order + 1
    assert dict(one) == planar_loss(kind, order)[order]
    leading = {
        (l, k, m, *e): f
        for (q, k, l, m, *e), f in exact.items()
        if q + sum(e) + k - m == l + 1
    }
    assert leading == planar
    assert all(q + sum(e) + k - m <= l + 1 for q, k, l, m, *e in exact)


@pytest.mark.parametrize("name", ["mean-field", "narrow", "small-data"])
@pytest.mark.parametrize("kind", KINDS)
def test_faces_with_a_covariance_are_the_taylor_coefficients_of_theories(name, kind):
    theory = theory_taylor(name, kind, 4, covariance=True)
    for s in range(5):
        assert theory[s] == face(name, kind, s, covariance=True)


@pytest.mark.parametrize("order", range(1, 5))
def test_large_data_with_any_population_is_as_hard_as_the_interior(order):
    """With a Marchenko-Pastur population its face has every monomial of the prism."""
    found = Counter()
    for (l, k, m, *e), f in face("large-data", "train", order, covariance=True).items():
        poly = Counter({m: f})
        for j, times in enumerate(e, 1):
            moment = {j - i: n for i, n in enumerate(TAYLOR.narayana(j), 1)}  # in c
            for _ in range(times):
                step = Counter()
                for (a, x), (b, y) in product(poly.items(), moment.items()):
                    step[a + b] += x * y
                poly = step
        for power, factor in poly.items():
            found[l, k, power] += factor
    assert dict(found) == planar_loss("train", order)[order]


REGRESSION = {
    "train": [1, -120, 53760, -55829760, 112306037760],
    "population": [1, -40, 10752, -7975680, 12478448640],
}


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_regression_values(kind):
    got = [evaluate(exact_loss(kind, s), 1, 1, 1, Fraction(1)) for s in range(5)]
    assert got == REGRESSION[kind]


def series_of_draw(W, X, orders):
    """Taylor coefficients of both losses by the power series of W itself."""
    d, n = X.shape
    S, eye = X @ X.T / n, np.eye(d)
    series = [W]
    for k in range(orders):
        A = [
            sum(series[i].T @ series[j - i] for i in range(j + 1)) for j in range(k + 1)
        ]
        B = [A[0] - eye, *A[1:]]
        C = [b @ S + S @ b for b in B]
        series.append(-sum(series[i] @ C[k - i] for i in range(k + 1)) / (k + 1))
    A = [
        sum(series[i].T @ series[j - i] for i in range(j + 1))
        for j in range(orders + 1)
    ]
    B = [A[0] - eye, *A[1:]]
    square = [sum(B[i] @ B[j - i] for i in range(j + 1)) for j in range(orders + 1)]
    return (
        [np.trace(S @ q) / 2 * factorial(j) for j, q in enumerate(square)],
        [np.trace(q) / 2 * factorial(j) for j, q in enumerate(square)],
    )


@pytest.mark.slow_for("sizes[01]")
@pytest.mark.parametrize("sizes", [(3, 2, 4, 0.2), (4, 6, 2, 0.1), (2, 1, 3, 0.5)])
def test_monte_carlo_of_the_matrix_flow(sizes):
    d, h, n, sigma2 = sizes
    rng = np.random.default_rng(5)
    draws = 3000
    samples = np.empty((draws, 2, 3))
    for i in range(draws):
        W = rng.standard_normal((h, d)) * np.sqrt(sigma2)
        samples[i] = series_of_draw(W, rng.standard_normal((d, n)), 2)
    mean, error = samples.mean(0), samples.std(0) / np.sqrt(draws)
    for row, kind in enumerate(KINDS):
        for s in range(3):
            exact = float(
                evaluate(
                    exact_loss(kind, s), d, h, n, Fraction(sigma2).limit_denominator()
                )
            )
            assert abs(mean[row, s] - exact) < 4 * error[row, s]
            assert error[row, s] < (0.1, 0.3, 0.5)[s] * abs(exact)


@pytest.mark.slow_for("5-train")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", range(SMALL + 1))
def test_planar_part_of_exact_is_planar_and_is_the_pareto_front(kind, order):
    exact, planar = exact_loss(kind, order), planar_loss(kind, order)[order]
    leading = {(l, k, m): f for (q, k, l, m), f in exact.items() if q + k - m == l + 1}
    assert leading == planar
    assert all(q + k - m <= l + 1 for q, k, l, m in exact)
    assert {(l, k, m) for _, k, l, m in pareto(exact)} == set(planar)


COUNTS = {
    "train": ([5, 26, 90, 230, 490, 924], [4, 12, 30, 60, 105, 168]),
    "population": ([5, 10, 50, 150, 350, 700], [4, 6, 20, 45, 84, 140]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_monomials(kind):
    exact, planar = COUNTS[kind]
    assert [len(exact_loss(kind, s)) for s in range(6)] == exact
    assert [len(p) for p in planar_loss(kind, 5)] == planar


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_support_is_every_lattice_point_of_the_prism_with_alternating_sign(kind):
    for s, table in enumerate(planar_loss(kind, 7)):
        if s < (1 if kind == "train" else 2):
            continue
        top = s if kind == "train" else s - 1
        points = {
            (l, k, m)
            for l, k, m in product(range(1, s + 3), range(1, s + 3), range(top + 1))
            if k <= l
        }
        assert set(table) == points
        assert all((f > 0) == (l % 2 == 0) for (l, _, _), f in table.items())


def test_first_derivative_by_hand():
    train = {
        (1, 1, 0): -4, (1, 1, 1): -4, (2, 1, 0): 8, (2, 1, 1): 4, (2, 2, 0): 8,
        (2, 2, 1): 8, (3, 1, 0): -4, (3, 1, 1): -1, (3, 2, 0): -12, (3, 2, 1): -6,
        (3, 3, 0): -4, (3, 3, 1): -4,
    }  # fmt: skip
    assert planar_loss("train", 1)[1] == train


def test_planar_limit_of_the_exact_value_at_large_size():
    size, s = 10**6, 3
    exact = evaluate(exact_loss("train", s), size, 2 * size, size, Fraction(1, size))
    limit = value(planar_loss("train", s)[s], 2.0, 1.0, 1.0)
    assert float(exact) / size == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", range(1, SMALL + 1))
def test_hull_is_a_triangular_prism_with_the_five_regimes(kind, order):
    body = POLYTOPE.prism(kind, order)
    if kind == "population" and order == 1:
        assert body.f_vector == (3, 3)  # flat: a triangle
        return
    assert body.f_vector == (6, 9, 5)
    assert body.is_triangular_prism
    assert sorted(POLYTOPE.regime_of_facet(f) for f in body.facets) == sorted(REGIMES)
    for facet in body.facets:
        name = POLYTOPE.regime_of_facet(facet)
        on = {body.vertices[i] for i in facet.vertices}
        assert on == {v for v in body.vertices if face_test(name, kind, order)(v)}
        assert len(on) == (3 if name in ("large-data", "small-data") else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_newton_polytope_is_no_prism(kind):
    body = POLYTOPE.hull(exact_loss(kind, 3))
    assert (body.dimension, len(body.vertices), len(body.facets)) == (4, 10, 7)


def test_hull_of_known_bodies():
    octahedron = POLYTOPE.hull(
        [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    )
    assert octahedron.f_vector == (6, 12, 8)
    assert not octahedron.is_triangular_prism
    assert POLYTOPE.hull([(0, 0), (1, 1), (2, 2)]).vertices == ((0, 0), (2, 2))
    assert POLYTOPE.hull([(3, 1)]).f_vector == ()
    tesseract = POLYTOPE.hull(product((0, 1), repeat=4))
    assert tesseract.f_vector == (16, 32, 24, 8)
    twisted = POLYTOPE.hull([*product((0, 1), (0, 1), (0, 1)), (2, 0, 0)])
    assert not twisted.is_triangular_prism
    with pytest.raises(ValueError, match=r"^points: "):
        POLYTOPE.hull([])


@pytest.mark.slow_for("train-large-data")
@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("kind", KINDS)
def test_face_monomials_are_the_taylor_coefficients_of_the_theory(name, kind):
    theory = theory_taylor(name, kind, 7)
    for s in range(8):
        assert theory[s] == face(name, kind, s)
        assert theory[s]


def test_words():
    assert canonical("SASAA") == canonical("AASAS"[::-1]) == "AASAS"
    # d/dt tr(AA) = tr of 2 A A' written out by hand.
    assert derive({"AA": 1}) == {"AAAS": -8, "AAS": 8}
    assert loss_words("train", 0)[0] == {"S": 1, "AS": -2, "AAS": 1}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exact_loss("test", 1), r"^kind: "),
        (lambda: planar_loss("train", -1), r"^order: "),
        (lambda: theory_taylor("free", "train", 2), r"^name: "),
        (lambda: theory_taylor("narrow", "test", 2), r"^kind: "),
        (lambda: face_test("wide", "train", 2), r"^name: "),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
