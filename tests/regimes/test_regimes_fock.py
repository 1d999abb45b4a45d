"""The Fock space, edges and vertices against the planar expansion and simulation."""

from functools import partial
from math import factorial

import numpy as np
import pytest
from chapter_experiments import chapter_module

from geolib.regimes import (
    Setup,
    SpectralMeasure,
    draw_covariance,
    draw_weights,
    fock_curves,
    fock_space,
    gradient_flow,
    large_data,
    marchenko_pastur,
    mean_field,
    planar_loss,
    simulate,
)
from geolib.regimes.fock import chain
from geolib.regimes.trace_words import _planar_ring, face_test, value

EDGE_CURVES = chapter_module("regimes", "edges")
EDGES, VERTICES = EDGE_CURVES.EDGES, EDGE_CURVES.VERTICES
cell_curves = EDGE_CURVES.cell_curves
KINDS = ("train", "population")


def covariance(space):
    """S of a Fock space as a dense matrix."""
    size = space.W.shape[1]
    dense = np.zeros((size, size))
    for column, entry in zip(space.columns, space.entries, strict=True):
        np.add.at(dense, (np.arange(size), column), entry)
    return dense


POINTS = [(1.0, 1.0, 1.0), (2.0, 0.7, 0.4), (0.3, 1.1, 0.5), (0.8, 1.1, 2.5)]
WORDS = ("A", "AS", "AASS", "ASAS", "AASAS", "SASA", "ASSAASA")


def planar_trace(word, point):
    table = _planar_ring()(word)
    terms = {(k + j, k, m): int(f) for (k, j, m), f in table.items()}
    return value(terms, *point)


def element(space, word):
    """The matrix element of a word at the root."""
    letters = {"A": space.W.T @ space.W, "S": covariance(space)}
    root = np.eye(space.W.shape[1])[0]
    out = root
    for letter in reversed(word):
        out = letters[letter] @ out
    return float(root @ out)


@pytest.mark.parametrize("point", POINTS)
def test_matrix_elements_at_the_root_are_planar_traces(point):
    space = fock_space(*point, 7)
    for word in WORDS:
        expected = planar_trace(word, point)
        assert element(space, word) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("point", POINTS[2:])
def test_roots_split_the_trace(point):
    """Over the inputs a trace is the sum of those over row space and kernel, over the
    data's span and the rest; from a sample it is the trace with one more S."""
    rho, kappa, c = point
    root = {}
    for name in ("row space", "kernel", "sample", "data span", "unseen")[
        : 3 + 2 * (c > 1)
    ]:
        space = fock_space(*point, 8, root=name)
        root[name] = partial(element, space)
    rank, seen = rho / kappa, min(1.0, 1 / c)
    for word in ("S", "SAS", "SASAS"):
        both = rank * root["row space"](word) + (1 - rank) * root["kernel"](word)
        assert both == pytest.approx(planar_trace(word, point), rel=1e-9)
    for word in ("A", "ASA", "AASSA"):
        assert root["sample"](word) == pytest.approx(planar_trace(word + "S", point))
        if c > 1:
            both = seen * root["data span"](word) + (1 - seen) * root["unseen"](word)
            assert both == pytest.approx(planar_trace(word, point), rel=1e-9)
    assert root["kernel"]("A") == 0


@pytest.mark.parametrize("point", [*POINTS, (0.5, 1.0, 8.0)])
@pytest.mark.parametrize("target", [True, False])
def test_taylor_series_is_the_planar_one(point, target):
    """With atoms a level buys half an order: one step may climb two levels."""
    plain = point[0] >= point[1] and point[2] <= 1
    depth, order = (5, 4) if plain else (6, 2)
    rate = max(1, *point[:2]) * max(1, point[2])
    t = np.linspace(0, (0.02 if plain else 0.002) / rate, 5)
    curves = fock_curves(t, *point, depth=depth, target=target, rtol=1e-13)
    for kind, curve in zip(KINDS, curves, strict=True):
        numbers = [
            value({k: f for k, f in p.items() if target or k[0] == s + 2}, *point)
            for s, p in enumerate(planar_loss(kind, order + 1))
        ]
        series = sum(numbers[s] * t**s / factorial(s) for s in range(order + 1))
        left_out = abs(numbers[-1]) * t[-1] ** (order + 1) / factorial(order + 1)
        assert np.abs(curve - series).max() < 1.5 * left_out + 1e-12
        assert abs(numbers[order]) * t[-1] ** order > 20 * left_out


@pytest.mark.slow_for("0.8-*", "0.9-*")
@pytest.mark.parametrize(("eta", "c"), [(0.5, 1.0), (0.8, 1.0), (0.5, 8.0), (0.9, 0.5)])
def test_losses_are_squares_also_for_few_latents_and_long_times(eta, c):
    """The form rooted at a latent was -.02 to -.68 here, where the loss is .004 to .06."""
    t = np.linspace(0, 10 / c, 6)
    curves = fock_curves(t, eta, 1.0, c, depth=3, rtol=1e-5)
    assert curves.train.min() >= 0
    assert curves.population.min() >= max(0, 1 - eta) / 2
    assert (np.diff(curves.train) < 1e-3).all()


def test_s_is_stored_whole():
    space = fock_space(0.5, 1.0, 2.0, 4)
    S = covariance(space)
    assert np.allclose(S, S.T)
    assert np.count_nonzero(S) == np.count_nonzero(space.entries)
    assert space.W.shape[1] == 31


def test_atoms_are_kept_at_every_cut():
    whole = chain(marchenko_pastur(0.3, 1.0), 8)
    for levels in (2, 3, 6, 8):
        values, vectors = np.linalg.eigh(whole[:levels] @ whole[:levels].T)
        assert abs(values[0]) < 1e-12 < 0.1 < values[1]
        assert vectors[0, 0] ** 2 == pytest.approx(0.7)


def test_limits_are_the_faces():
    t = np.linspace(0, 1, 6)
    wide = fock_curves(t, 0.3, 1e-3, 0.5, depth=6)
    assert np.allclose(wide.train, mean_field(t, 0.3, 0.5).train, atol=2e-3)
    ample = fock_curves(t, 1.5, 1.0, 1e-4, depth=6)
    assert np.allclose(ample.train, large_data(t, 1.5, 1.0).train, atol=2e-3)


def test_a_law_stands_in_for_c():
    t = np.linspace(0, 1, 4)
    by_law = fock_curves(t, 1, 1, law=marchenko_pastur(1.0, 2.0), depth=5)
    by_ratio = fock_curves(t, 1, 1, 2.0, depth=5)
    assert np.allclose(by_law.train, by_ratio.train, atol=1e-7)
    assert np.allclose(by_law.population, by_ratio.population, atol=1e-7)


@pytest.mark.slow
def test_any_spectrum_agrees_with_simulation():
    d = h = 150
    setup = Setup(d, h, d, 0.6 / h)
    values = np.concatenate((np.full(d // 2, 1.7), np.full(d // 2, 0.3)))
    W = draw_weights(setup, 0)
    t = np.linspace(0, 1.0, 9)
    run = gradient_flow(W, np.diag(values), t, covariance=True)
    theory = fock_curves(
        t, setup.rho, setup.kappa, law=SpectralMeasure.of_eigenvalues(values), depth=6
    )
    assert np.abs(run.train[0] / d - theory.train).max() < 0.02 * theory.train[0]
    wrong = fock_curves(t, setup.rho, setup.kappa, 1.0, depth=6)
    assert np.abs(run.train[0] / d - wrong.train).max() > 0.04 * theory.train[0]


@pytest.mark.slow_for("0.25-*", "1.0-*", "0.5-*")
@pytest.mark.parametrize(
    ("eta", "c"), [(2.0, 0.5), (1.0, 2.0), (0.25, 1.0), (0.5, 1.0), (0.5, 8.0)]
)
def test_interior_agrees_with_simulation(eta, c):
    setup = Setup.from_ratios(128, eta=eta, c=c, kappa=0.5)
    t = setup.times(13)
    run = simulate(setup, t, seeds=3)
    theory = fock_curves(t, *setup.ratios, depth=6)
    for got, curve in zip((run.train, run.population), theory, strict=True):
        assert np.abs(got.mean(0) / 128 - curve).max() < 0.03 * curve[0]


def test_free_flow_collapses_and_matches():
    d, kappa = 128, 256.0
    setup = Setup(d, 2 * d, 2 * d, kappa / d)
    t = setup.times(13)
    full = simulate(setup, t, seeds=2)
    free = simulate(setup, t, seeds=2, target=False)
    gap = np.abs(full.train - free.train).max() / free.train[:, 0].mean()
    assert gap < 0.01
    theory = fock_curves(t, *setup.ratios, depth=6, target=False)
    shape = free.train.mean(0) / free.train[:, 0].mean()
    assert np.abs(shape - theory.train / theory.train[0]).max() < 0.01


def test_fock_refuses_nonsense():
    with pytest.raises(ValueError, match=r"^depth: "):
        fock_space(1, 1, 1, 12)
    with pytest.raises(ValueError, match=r"^rho: "):
        fock_space(0.0, 1, 1, 3)
    with pytest.raises(ValueError, match=r"^root: "):
        fock_space(1, 1, 1, 3, root="latent")
    with pytest.raises(ValueError, match="is an empty space"):
        fock_space(1, 1, 1, 3, root="unseen")
    with pytest.raises(ValueError, match="exactly one"):
        fock_curves([0.0], 1, 1)


POINT = (0.3, 0.7, 1.3)
CELLS = {**EDGES, **VERTICES}


def monomials(faces, kind, s):
    tests = [face_test(name, kind, s) for name in faces]
    table = planar_loss(kind, s)[s]
    return value({k: f for k, f in table.items() if all(t(k) for t in tests)}, *POINT)


def test_there_are_nine_edges_and_six_vertices():
    assert len(EDGES) == 9
    assert len(VERTICES) == 6


@pytest.mark.parametrize("faces", CELLS, ids=lambda f: "-".join(sorted(f)))
def test_every_cell_has_the_monomials_of_its_faces(faces):
    """Taylor coefficients by Cauchy's integral where a formula takes complex times."""
    formula = CELLS[faces]
    if faces in ({"free", "narrow"}, {"free", "small-data"}):
        t = np.linspace(0, 0.004, 5)
        for kind, curve in zip(KINDS, formula(t, *POINT), strict=True):
            series = sum(
                monomials(faces, kind, s) * t**s / factorial(s) for s in range(1, 6)
            )
            moved = curve - curve[0]
            assert np.abs(moved - series).max() < 1e-7 * np.abs(moved).max()
        return
    radius, count = 0.01, 32
    circle = radius * np.exp(2j * np.pi * np.arange(count) / count)
    for kind, curve in zip(KINDS, formula(circle, *POINT), strict=True):
        taylor = np.fft.fft(curve) / count / radius ** np.arange(count)
        for s in range(1, 6):
            exact = monomials(faces, kind, s)
            assert taylor[s].real * factorial(s) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("faces", CELLS, ids=lambda f: "-".join(sorted(f)))
def test_cells_start_where_the_expansion_does(faces):
    start = cell_curves(tuple(faces), [0.0], *POINT)
    free = "free" in faces
    for kind, curve in zip(KINDS, start, strict=True):
        table = planar_loss(kind, 0)[0]
        keep = {
            key: f
            for key, f in table.items()
            if (key[0] == 2 if free else True)
            and ("narrow" not in faces or key[1] <= 1)
            and ("mean-field" not in faces or key[0] == key[1])
        }
        assert curve[0] == pytest.approx(value(keep, *POINT), rel=1e-12)


@pytest.mark.parametrize("kappa", [2.0, 2.0 + 1e-9])
def test_small_narrow_edge_is_continuous_at_kappa_two(kappa):
    a = cell_curves(("small-data", "narrow"), [0.5], 0.1, kappa, 3.0)
    b = cell_curves(("small-data", "narrow"), [0.5], 0.1, 2.0 - 1e-6, 3.0)
    assert a.population[0] == pytest.approx(b.population[0], rel=1e-4)


@pytest.mark.parametrize(
    "faces",
    [
        ("large-data",),
        ("large-data", "small-data"),
        ("free", "free", "narrow"),
        ("x", "y"),
    ],
)
def test_faces_that_do_not_meet(faces):
    with pytest.raises(ValueError, match=r"^faces: "):
        cell_curves(faces, [0.0], 1, 1, 1)


def test_gaussian_covariance_is_used_by_the_draw():
    setup = Setup(40, 40, 4000, 0.01)
    assert abs(np.trace(draw_covariance(setup, 0)) / 40 - 1) < 0.02
