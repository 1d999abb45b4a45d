"""All cells of a central hyperplane arrangement, as sign vectors."""

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb
from typing import Annotated

import numpy as np

RANK_TOLERANCE = 1e-12
RAY_TOLERANCE = 1e-11
ROUNDING = 64 * float(np.finfo(float).eps)  # what counts as zero when it is computed
CHUNK = 8192


def generic_cell_count(
    h: Annotated[int, "0 <= h <= 10**6"], d: Annotated[int, "1 <= d <= 10**4"]
) -> int:
    r"""The number of cells of h hyperplanes through the origin in general position.

    .. math:: 2 \sum_{i=0}^{d-1} \binom{h-1}{i}

    Args:
        h: number of hyperplanes.
        d: dimension of the space.

    Raises:
        ValueError: a negative number of hyperplanes, or no dimension.

    Source: :eq:`drv-inverse_stability-cell-count` (derivations).

    Examples:
        >>> generic_cell_count(8, 3)
        58
    """
    return 2 * sum(comb(h - 1, i) for i in range(d)) if h else 1


def enumerate_cells(normals: np.ndarray) -> tuple[np.ndarray, bool]:
    r"""List the sign vectors of every full-dimensional cell of a central arrangement.

    .. math:: \{\operatorname{sign}(N x) : x \in \mathbb{R}^d,\ (N x)_h \neq 0
        \text{ for all } h\}

    Exact for simple and non-simple arrangements: every cell has an extreme ray, and the
    cells around a ray r are those of the hyperplanes through r (its localization), with
    the signs of N r elsewhere. No linear program and no interior point is needed.

    Args:
        normals: unit normals of pairwise distinct hyperplanes, shape (h, d).

    Returns:
        int8 array (k, h) of entries -1 and +1, rows distinct, and whether a tolerance
        decided: then narrow cells may be missing.

    Cost: binom(h, r-1) rays for rank r, each with the cells of its localization.
    Two hyperplanes closer than 1e-12, and a ray within 1e-11 of a hyperplane, count
    as coincident.

    Source: :eq:`drv-inverse_stability-cells` (derivations).

    Examples:
        >>> len(enumerate_cells(np.eye(3))[0])
        8
    """
    normals = np.asarray(normals, dtype=np.float64)
    h = len(normals)
    if h == 0:
        return np.ones((1, 0), dtype=np.int8), False
    normals = essential(normals)
    d = normals.shape[1]
    if d == h:  # independent normals: every sign vector occurs
        return all_signs(h), False
    if d == 2:
        return _planar_cells(normals), False
    return _cells_by_rays(normals)


def essential(normals: np.ndarray) -> np.ndarray:
    """Coordinates in the row space; two distinct lines of the plane always span it."""
    h, d = normals.shape
    if d == 2 and h >= 2:
        return normals
    _, s, vt = np.linalg.svd(normals, full_matrices=False)
    rank = max(int((s > RANK_TOLERANCE * s[0]).sum()), min(h, d, 2))
    return normals if rank == d else normals @ vt[:rank].T


def all_signs(h: int) -> np.ndarray:
    """All 2^h sign vectors, shape (2^h, h)."""
    bits = (np.arange(2**h)[:, None] >> np.arange(h)) & 1
    return (2 * bits - 1).astype(np.int8)


def _planar_cells(normals: np.ndarray) -> np.ndarray:
    """Walk once around the origin: crossing a line flips its sign and no other.

    Only the order of the lines is computed, so lines 1e-12 apart stay distinct.
    """
    h = len(normals)
    angle = np.arctan2(normals[:, 1], normals[:, 0])
    flip = np.where(angle < 0, -1, 1)  # turn every normal into the upper half-plane
    order = np.argsort(np.where(angle < 0, angle + np.pi, angle), kind="stable")
    # At x = (cos t, sin t), t from -pi/2 upwards, upper normals switch on in order.
    steps = np.arange(h)
    walk = np.where(steps[None, :] < steps[:, None], 1, -1).astype(np.int8)
    signs = np.empty((h, h), dtype=np.int8)
    signs[:, order] = walk
    signs *= flip.astype(np.int8)
    return np.concatenate([signs, -signs])


def _cells_by_rays(normals: np.ndarray) -> tuple[np.ndarray, bool]:
    h, d = normals.shape
    seen: set[bytes] = set()
    found: list[np.ndarray] = []
    narrow = False
    for subset in _chunks(combinations(range(h), d - 1)):
        rays, smallest = _kernels(normals[subset])
        values = rays @ normals.T
        local = np.abs(values) < RAY_TOLERANCE
        doubtful = local & (np.abs(values) * smallest[:, None] > ROUNDING)
        np.put_along_axis(local, subset, True, axis=1)
        np.put_along_axis(doubtful, subset, False, axis=1)
        independent = smallest > RANK_TOLERANCE
        narrow |= bool(doubtful[independent].any())
        narrow |= bool((smallest[~independent] > ROUNDING).any())
        for row in np.flatnonzero(independent):
            key = np.packbits(local[row]).tobytes()
            if key in seen:
                continue
            seen.add(key)
            block, doubt = _around_ray(normals, values[row], rays[row], local[row])
            found.append(block)
            narrow |= doubt
        found = [_distinct(np.concatenate(found))] if found else []
    return found[0], narrow


def _around_ray(
    normals: np.ndarray, values: np.ndarray, ray: np.ndarray, local: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Cells that touch the ray r or its opposite."""
    d = normals.shape[1]
    if local.sum() == d - 1:
        inner, narrow = all_signs(d - 1), False
    else:
        basis = np.linalg.svd(ray[None, :])[2][1:]
        inner, narrow = enumerate_cells(normals[local] @ basis.T)
    outer = np.where(values > 0, 1, -1).astype(np.int8)
    block = np.tile(np.concatenate([outer, -outer]), len(inner)).reshape(-1, len(outer))
    block[:, local] = np.repeat(inner, 2, axis=0)
    return block, narrow


def _kernels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel rays of a stack of (d-1, d) matrices, and their smallest singular values.

    For two rows of the space the sine of their angle stands for it.
    """
    if rows.shape[2] == 3:
        rays = np.cross(rows[:, 0], rows[:, 1])
        smallest = np.linalg.norm(rays, axis=1)
        rays = rays / np.where(smallest > 0, smallest, 1.0)[:, None]
    else:
        _, s, vt = np.linalg.svd(rows)
        rays, smallest = vt[:, -1], s[:, -1]
    return rays, smallest


def _distinct(signs: np.ndarray) -> np.ndarray:
    packed = np.packbits(signs > 0, axis=1)
    _, index = np.unique(packed, axis=0, return_index=True)
    return signs[np.sort(index)]


def _chunks(subsets: Iterator[tuple[int, ...]]) -> Iterator[np.ndarray]:
    while block := list(islice(subsets, CHUNK)):
        yield np.array(block)
