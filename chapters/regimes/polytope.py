"""The prism: the hull of the leading monomials of the loss, and the regime of each face.

Hulls of lattice points are found and not assumed: Qhull proposes facets, each is
turned into an integer inequality and checked on every point.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import lcm

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect
from geolib.regimes import planar_loss

# The limit that leads to each, as a direction of (log kappa, log rho, log c).
RAYS = {
    "large-data": (0, 0, -1),
    "small-data": (0, 0, 1),
    "mean-field": (-1, 0, 0),
    "narrow": (0, -1, 0),
    "free": (1, 1, 0),
}


def prism(kind: str, order: int) -> Polytope:
    r"""The hull of the leading monomials of the s-th derivative is a triangular prism.

    The monomial :math:`\rho^k \kappa^{l-k} c^m` is the lattice point (l, k, m), and

    .. math:: 1 \le k \le l \le s + 2, \qquad 0 \le m \le s

    (for the population loss :math:`m \le s - 1`). This is computed, not assumed.

    Args:
        kind: `train` or `population`.
        order: the derivative s.

    Returns:
        `Polytope`, with its `vertices`, `facets`, `f_vector` and
        `is_triangular_prism`.

    Raises:
        ValueError: an unknown kind or a negative order.

    Source: Golikov, Gusev and Yarotsky 2026; :eq:`drv-regimes-support` (derivations).

    Examples:
        >>> prism("train", 2).f_vector
        (6, 9, 5)
    """
    return hull(planar_loss(kind, order)[order])


def regime_of_facet(facet: Facet) -> str:
    r"""A facet of the prism stands for a regime, read off its outward normal.

    A limit makes the monomials largest along its ray lead. In terms of (l, k, m) the
    ray is a linear form:

    .. math:: (\log\kappa, \log\rho, \log c) = (x, y, z) \mapsto (x,\, y - x,\, z)

    Args:
        facet: of a `prism`.

    Returns:
        A name of `geolib.regimes.REGIMES`.

    Raises:
        ValueError: a normal that belongs to no regime.

    Source: :eq:`drv-regimes-rays` (derivations).

    Examples:
        >>> sorted(map(regime_of_facet, prism("train", 1).facets)) == sorted(RAYS)
        True
    """
    for name, (x, y, z) in RAYS.items():
        if facet.normal == (x, y - x, z):
            return name
    raise ValueError(f"facet: normal {facet.normal} belongs to no regime")


# ---- convex hulls of lattice points --------------------------------------------------

Point = tuple[int, ...]


@dataclass(frozen=True)
class Facet:
    """A facet: normal . x <= offset holds on the whole polytope, with equality here.

    Attributes:
        normal: primitive integer outward normal.
        offset: right-hand side.
        vertices: indices into the polytope's list.
    """

    normal: tuple[int, ...]
    offset: int
    vertices: frozenset[int]


@dataclass(frozen=True)
class Polytope:
    """The convex hull of a finite set of lattice points.

    Attributes:
        dimension: that of the affine hull.
        vertices: the corners, sorted.
        facets: faces of one dimension less.
    """

    dimension: int
    vertices: tuple[Point, ...]
    facets: tuple[Facet, ...]

    def faces(self, dimension: int) -> list[frozenset[int]]:
        """All faces of that dimension, as sets of vertex indices.

        Every proper face is an intersection of facets; its dimension is the rank of
        its vertices.
        """
        known = {f.vertices for f in self.facets}
        fresh = set(known)
        while fresh:
            fresh = {a & f.vertices for a in fresh for f in self.facets} - known
            known |= fresh
        at = {f: [self.vertices[i] for i in f] for f in known if f}
        return sorted((f for f in at if _rank(at[f]) == dimension), key=sorted)

    @property
    def f_vector(self) -> tuple[int, ...]:
        """Numbers of vertices, edges, ..., facets."""
        return tuple(len(self.faces(k)) for k in range(self.dimension))

    @property
    def is_triangular_prism(self) -> bool:
        """Of the polyhedra with five faces only the prism has six vertices."""
        return self.f_vector == (6, 9, 5)


def hull(points: Collection[Point]) -> Polytope:
    """The convex hull of lattice points has facets that are integer inequalities.

    Qhull proposes the facets in floating point; each is recomputed as an integer
    inequality from its lattice points and checked against every point.

    Args:
        points: lattice points of one length; repetitions are ignored.

    Returns:
        `Polytope`.

    Raises:
        ValueError: no point.
        ArithmeticError: an inequality that Qhull proposed fails on some point.

    Source: Barber, Dobkin and Huhdanpaa 1996 (Qhull).

    Examples:
        >>> cube = hull([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
        >>> cube.f_vector
        (8, 12, 6)
    """
    expect(points, "points", "one or more", points)
    cloud = np.array(sorted(set(points)))
    dimension = _rank(cloud)
    # Coordinates on which the affine hull projects without loss.
    projections = combinations(range(cloud.shape[1]), dimension)
    shadow = next(x for a in projections if _rank(x := cloud[:, a]) == dimension)
    sides = np.array([[-1.0], [1.0]][: 2 * dimension])
    if dimension > 1:
        from scipy.spatial import ConvexHull

        sides = ConvexHull(shadow).equations[:, :-1]
    on: dict[tuple[tuple[int, ...], int], frozenset[int]] = {}
    for side in sides:
        normal = _primitive(side)
        height, near = shadow @ np.array(normal), shadow @ side
        there = height == height.max()
        if not np.array_equal(there, near > near.max() - 1e-7):
            raise ArithmeticError(f"facet {side} is no integer inequality")
        on[normal, int(height.max())] = frozenset(np.flatnonzero(there).tolist())
    # A vertex is a point whose facets meet in it alone.
    through = [[side for side in on.values() if i in side] for i in range(len(cloud))]
    corners = [
        i for i, x in enumerate(through) if x and len(frozenset.intersection(*x)) == 1
    ] or [0]
    facets = tuple(
        Facet(*key, frozenset(j for j, i in enumerate(corners) if i in on[key]))
        for key in sorted(on)
    )
    return Polytope(dimension, tuple(map(tuple, cloud[corners].tolist())), facets)


def _rank(points: ArrayLike) -> int:
    P = np.array(points)
    return int(np.linalg.matrix_rank(P[1:] - P[0])) if len(P) > 1 else 0


def _primitive(normal: np.ndarray) -> tuple[int, ...]:
    """Qhull's normal as the least whole numbers."""
    top = float(np.abs(normal).max())
    exact = [Fraction(float(v) / top).limit_denominator(10_000) for v in normal]
    common = lcm(*(v.denominator for v in exact))
    return tuple(int(v * common) for v in exact)
