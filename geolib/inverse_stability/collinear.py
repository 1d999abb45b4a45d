"""Which rows of a matrix point the same way, up to a stated tolerance."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-12  # "same direction" is a discontinuous predicate: report this number


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

    Cost: a k-d tree on at most four random projections, then a check of each
    candidate pair in full: about m log m when few rows coincide.

    Examples:
        >>> parallel_classes(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
        ...                  opposite=True)
        (array([0, 1, 0]), array([ 1,  1, -1]))
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not 0 <= tol < 1:
        raise ValueError(f"tol: expected a number in [0, 1), got {tol!r}")
    m, d = unit.shape
    points, radius = unit, tol
    if d > 4:  # projections shorten differences by at most sqrt(d): no pair is lost
        probe = np.random.default_rng(0).normal(size=(d, 4))
        points = unit @ (probe / np.linalg.norm(probe, axis=0))
        radius = tol * d**0.5 + 1e-15 * d
    if opposite:
        points = np.concatenate([points, -points])
    found = cKDTree(points).query_pairs(radius, p=np.inf, output_type="ndarray")
    i, j = found.T % m
    s = np.where((found[:, 0] < m) == (found[:, 1] < m), 1, -1)
    near = np.zeros(i.size, dtype=bool)
    for part in np.array_split(np.arange(i.size), 1 + i.size * d // 5_000_000):
        gap = np.abs(unit[i[part]] - s[part, None] * unit[j[part]])
        near[part] = gap.max(axis=1, initial=0.0) <= tol
    pairs = (np.ones(near.sum(), dtype=np.int8), (i[near], j[near]))
    _, labels = connected_components(coo_array(pairs, shape=(m, m)), directed=False)
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    signs = np.where(np.einsum("md,md->m", unit, unit[first[labels]]) < 0, -1, 1)
    return rank[labels], signs
