"""Which rows of a matrix point the same way, up to a stated tolerance."""

import numpy as np

from geolib.core.validation import expect

TOLERANCE = 1e-12  # "same direction" is a discontinuous predicate: report this number
FEW = 64  # rows of which all pairs are compared faster than a tree is built


def unit_rows(V: np.ndarray) -> np.ndarray:
    """Non-zero rows scaled to 2-norm one, without overflow; zero rows stay zero."""
    top = np.abs(V).max(axis=1, keepdims=True)
    V = V / np.where(top > 0, top, 1.0)
    norm = np.linalg.norm(V, axis=1, keepdims=True)
    return V / np.where(norm > 0, norm, 1.0)


def parallel_classes(
    unit: np.ndarray, tol: float = TOLERANCE, opposite: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    r"""Group unit rows that are equal (or, with `opposite`, equal up to sign).

    .. math:: i \sim j \iff \|n_i - s\,n_j\|_\infty \le \text{tol}, \quad s = 1
        \text{ (or } s = \pm 1)

    Args:
        unit: rows of 2-norm one, shape (m, d).
        tol: largest entrywise difference of two equal directions, in [0, 1).
        opposite: whether n and -n belong together, as normals of one hyperplane do.

    Returns:
        labels (m,) numbered by first appearance, and signs (m,) relative to the first
        row of each class.

    Raises:
        ValueError: a tolerance outside [0, 1).

    Cost: all pairs of a few rows; of more, those that a k-d tree on at most four
    random projections proposes: about m log m when few rows coincide.

    Examples:
        >>> parallel_classes(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
        ...                  opposite=True)
        (array([0, 1, 0]), array([ 1,  1, -1]))
    """
    expect(0 <= tol < 1, "tol", "a number in [0, 1)", tol)
    m, d = unit.shape
    i, j = _candidates(unit, tol, opposite)
    near = np.zeros(i.size, dtype=bool)
    for part in np.array_split(np.arange(i.size), 1 + i.size * d // 5_000_000):
        left, right = unit[i[part]], unit[j[part]]
        if opposite:
            right = right * _sign(left, right)[:, None]
        near[part] = np.abs(left - right).max(axis=1, initial=0.0) <= tol
    if not near.any():
        return np.arange(m), np.ones(m, dtype=int)
    i, j = i[near], j[near]
    labels, before = np.arange(m), np.empty(0, dtype=int)
    while not np.array_equal(labels, before):  # the first row of a class spreads
        before = labels.copy()
        np.minimum.at(labels, i, before[j])
        np.minimum.at(labels, j, before[i])
    signs = _sign(unit, unit[labels])
    return np.unique(labels, return_inverse=True)[1], signs


def _sign(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.where(np.einsum("md,md->m", left, right) < 0, -1, 1)


def _candidates(
    unit: np.ndarray, tol: float, opposite: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows, among them all that are near."""
    m, d = unit.shape
    if m <= FEW:
        return np.triu_indices(m, 1)
    from scipy.spatial import cKDTree  # slow to import

    points, radius = unit, tol
    if d > 4:  # projections shorten differences by at most sqrt(d): no pair is lost
        probe = np.random.default_rng(0).normal(size=(d, 4))
        points = unit @ (probe / np.linalg.norm(probe, axis=0))
        radius = tol * d**0.5 + 1e-15 * d
    if opposite:
        points = np.concatenate([points, -points])
    found = cKDTree(points).query_pairs(radius, p=np.inf, output_type="ndarray")
    return found[:, 0] % m, found[:, 1] % m
