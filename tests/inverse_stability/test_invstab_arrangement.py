"""Cells against closed counts, exact rational topes, and known arrangements."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from geolib.inverse_stability import generic_cell_count
from geolib.inverse_stability.arrangement import enumerate_cells
from geolib.inverse_stability.collinear import parallel_classes, unit_rows


def cells(normals):
    return enumerate_cells(normals)[0]


def exact_topes(rows):
    """Sign vectors of the cells, by orthogonality with all signed circuits.

    Integer arithmetic throughout; shares nothing with the enumeration by rays. By
    Gordan's theorem a sign vector is realizable exactly when no positive combination of
    the signed normals vanishes, and minimal such combinations are circuits.
    """
    h, d = len(rows), len(rows[0])
    circuits = []
    for size in range(2, d + 2):
        for subset in combinations(range(h), size):
            kernel = null_vector([rows[i] for i in subset])
            if kernel is not None and all(kernel):
                circuits.append((subset, [1 if k > 0 else -1 for k in kernel]))
    found = set()
    for sigma in product((-1, 1), repeat=h):
        agree = (
            {sigma[i] * s for i, s in zip(subset, signs, strict=True)}
            for subset, signs in circuits
        )
        if all(len(a) == 2 for a in agree):
            found.add(sigma)
    return found


def null_vector(rows):
    """The linear dependency of `rows` over the rationals if it is unique, else None."""
    columns = [[Fraction(v) for v in row] for row in rows]
    n, d = len(columns), len(columns[0])
    matrix = [[columns[j][i] for j in range(n)] for i in range(d)]
    pivots, r = [], 0
    for j in range(n):
        k = next((i for i in range(r, d) if matrix[i][j] != 0), None)
        if k is None:
            continue
        matrix[r], matrix[k] = matrix[k], matrix[r]
        matrix[r] = [v / matrix[r][j] for v in matrix[r]]
        for i in range(d):
            if i != r and matrix[i][j] != 0:
                matrix[i] = [
                    a - matrix[i][j] * b
                    for a, b in zip(matrix[i], matrix[r], strict=True)
                ]
        pivots.append(j)
        r += 1
    free = [j for j in range(n) if j not in pivots]
    if len(free) != 1:
        return None
    out = [Fraction(0)] * n
    out[free[0]] = Fraction(1)
    for i, j in enumerate(pivots):
        out[j] = -matrix[i][free[0]]
    return out


@pytest.mark.parametrize(
    ("d", "h", "count"),
    [
        (2, 7, 14),
        (3, 8, 58),
        (3, 14, 184),
        (4, 8, 128),
        (5, 7, 114),
        (3, 20, 382),
        (3, 40, 1562),
        (4, 12, 464),
    ],
)
def test_generic_count(d, h, count):
    normals = unit_rows(np.random.default_rng(h).normal(size=(h, d)))
    found = cells(normals)
    assert len(found) == count == generic_cell_count(h, d)
    assert len(np.unique(found, axis=0)) == count


def braid(n):
    return [
        [int(k == i) - int(k == j) for k in range(n)]
        for i, j in combinations(range(n), 2)
    ]


def type_b(n):
    eye = np.eye(n, dtype=int)
    rows = [eye[i] for i in range(n)]
    rows += [eye[i] + s * eye[j] for i, j in combinations(range(n), 2) for s in (1, -1)]
    return np.array(rows).tolist()


@pytest.mark.parametrize(
    ("rows", "count"),
    [(braid(4), 24), (braid(5), 120), (type_b(3), 48), (type_b(4), 384)],
    ids=["braid A3", "braid A4", "type B3", "type B4"],
)
def test_reflection_arrangements(rows, count):
    """Far from simple, and rank deficient: cells are the Weyl group's elements."""
    assert len(cells(unit_rows(np.array(rows, dtype=float)))) == count


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("d", [2, 3, 4])
def test_cells_equal_exact_topes(seed, d):
    """Small integer normals meet in non-simple ways more often than not."""
    rng = np.random.default_rng([seed, d])
    rows = rng.integers(-1, 2, size=(7, d))
    rows = rows[rows.any(axis=1)]
    labels, _ = parallel_classes(unit_rows(rows.astype(float)), opposite=True)
    rows = rows[np.unique(labels, return_index=True)[1]]
    found = {tuple(map(int, s)) for s in cells(unit_rows(rows.astype(float)))}
    assert found == exact_topes(rows.tolist())


def test_rank_deficient_normals():
    """Five planes through one line of R^3 cut it into ten wedges."""
    angle = np.linspace(0.1, 3.0, 5)
    normals = np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
    assert len(cells(normals)) == 10


def test_lines_very_close_stay_distinct():
    """Tolerances: 1e-9 apart is two lines, with a sliver between them."""
    angle = np.array([0.0, 1e-9, 1.0])
    normals = np.column_stack([np.cos(angle), np.sin(angle)])
    assert len(cells(normals)) == 6


@pytest.mark.parametrize("d", [3, 6, 50])
def test_parallel_classes_brute_force(d):
    rng = np.random.default_rng(d)
    unit = unit_rows(rng.normal(size=(12, d)))
    unit[[4, 7]] = unit[2]
    unit[[5, 9]] = -unit[2]
    unit[11] = -unit[0]
    labels, signs = parallel_classes(unit, opposite=True)
    for i, j in combinations(range(12), 2):
        same = min(np.abs(unit[i] - unit[j]).max(), np.abs(unit[i] + unit[j]).max())
        assert (labels[i] == labels[j]) == (same <= 1e-12)
        if same <= 1e-12:
            assert signs[i] * signs[j] == np.sign(unit[i] @ unit[j])
    alone, _ = parallel_classes(unit)
    assert alone.max() + 1 == 12 - 2 - 1


def test_unit_rows_neither_overflow_nor_divide_by_zero():
    rows = unit_rows(np.array([[3e200, 4e200], [0.0, 0.0], [3e-300, 4e-300]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-15)
