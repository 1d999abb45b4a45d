"""Convex hulls of lattice points: vertices, edges, facets, found and not assumed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import gcd, lcm

import numpy as np

Point = tuple[int, ...]


@dataclass(frozen=True)
class Facet:
    """A facet: normal . x <= offset holds on the whole polytope, with equality here.

    `vertices` are indices into the polytope's list.
    """

    normal: tuple[int, ...]
    offset: int
    vertices: frozenset[int]


@dataclass(frozen=True)
class Polytope:
    """The convex hull of a finite set of lattice points.

    `dimension` is that of its affine hull; facets are listed only when the polytope
    is full-dimensional in `axes` of its coordinates.
    """

    dimension: int
    vertices: tuple[Point, ...]
    facets: tuple[Facet, ...]

    @property
    def edges(self) -> tuple[frozenset[int], ...]:
        """Pairs of vertex indices joined by an edge."""
        return tuple(f for f in self.faces(1))

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
        return sorted(
            (
                f
                for f in known
                if f and _rank([self.vertices[i] for i in f]) == dimension
            ),
            key=sorted,
        )

    @property
    def f_vector(self) -> tuple[int, ...]:
        """Numbers of vertices, edges, ..., facets."""
        return tuple(len(self.faces(k)) for k in range(self.dimension))

    @property
    def is_triangular_prism(self) -> bool:
        """Three-dimensional with two disjoint triangles and three quadrilaterals.

        Of the polyhedra with five faces only the prism has six vertices.
        """
        if self.dimension != 3 or len(self.vertices) != 6:
            return False
        sizes = sorted(len(f.vertices) for f in self.facets)
        triangles = [f.vertices for f in self.facets if len(f.vertices) == 3]
        return sizes == [3, 3, 4, 4, 4] and not triangles[0] & triangles[1]


def hull(points: Iterable[Point]) -> Polytope:
    """The convex hull of lattice points, by Qhull, with exact integer facets.

    Qhull proposes the facets in floating point; each is recomputed as an integer
    inequality from its lattice points and checked against every point.

    Raises:
        ValueError: no point.
        ArithmeticError: an inequality that Qhull proposed fails on some point.

    Examples:
        >>> cube = hull([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
        >>> cube.f_vector
        (8, 12, 6)
    """
    cloud = sorted(set(points))
    if not cloud:
        raise ValueError("points: expected at least one, got none")
    dimension = _rank(cloud)
    axes = _independent_axes(cloud, dimension)
    if dimension < 2:
        ends = (cloud[0], cloud[-1]) if dimension else (cloud[0],)
        sides = (frozenset({0}), frozenset({1})) if dimension else ()
        facets = tuple(Facet((), 0, side) for side in sides)
        return Polytope(dimension, ends, facets)
    from scipy.spatial import ConvexHull

    shadow = np.array([[p[a] for a in axes] for p in cloud])
    facets_raw = _integer_facets(shadow, ConvexHull(shadow).equations)
    on = {
        key: frozenset(map(int, np.flatnonzero(shadow @ key[0] == key[1])))
        for key in facets_raw
    }
    # A vertex is a point whose facets meet in it alone.
    corner: list[int] = []
    for i in range(len(cloud)):
        through = [on[key] for key in on if i in on[key]]
        if through and frozenset.intersection(*through) == {i}:
            corner.append(i)
    place: dict[int, int] = {i: j for j, i in enumerate(corner)}
    facets = tuple(
        Facet(
            tuple(map(int, key[0])),
            int(key[1]),
            frozenset(place[i] for i in on[key] if i in place),
        )
        for key in sorted(on, key=lambda k: (tuple(k[0]), k[1]))
    )
    return Polytope(dimension, tuple(cloud[i] for i in corner), facets)


def pareto(monomials: Iterable[tuple[int, int, int, int]]) -> set[tuple[int, ...]]:
    r"""The monomials :math:`d^q h^k \sigma^{2l} n^{-m}` that no other one dominates.

    One dominates another when it has the same l and is at least as large in each of
    d, h and n: q and k no smaller, m no larger.

    Examples:
        >>> sorted(pareto([(1, 1, 2, 0), (0, 1, 2, 0), (2, 0, 2, 0)]))
        [(1, 1, 2, 0), (2, 0, 2, 0)]
    """
    pool = list(monomials)
    return {
        (q, k, l, m)
        for q, k, l, m in pool
        if not any(
            L == l and Q >= q and K >= k and M <= m and (Q, K, M) != (q, k, m)
            for Q, K, L, M in pool
        )
    }


def _rank(points: list[Point]) -> int:
    P = np.array(points)
    return int(np.linalg.matrix_rank(P[1:] - P[0])) if len(P) > 1 else 0


def _independent_axes(points: list[Point], dimension: int) -> tuple[int, ...]:
    """Coordinates on which the affine hull projects without loss."""
    for axes in combinations(range(len(points[0])), dimension):
        if _rank([tuple(p[a] for a in axes) for p in points]) == dimension:
            return axes
    raise AssertionError("a set of rank r has r independent coordinates")


def _integer_facets(
    points: np.ndarray, equations: np.ndarray
) -> set[tuple[tuple[int, ...], int]]:
    """Qhull's facets as primitive integer inequalities normal . x <= offset."""
    out = set()
    for row in equations:
        scale = 1 / np.abs(row[:-1]).max()
        exact = [Fraction(float(v * scale)).limit_denominator(10_000) for v in row[:-1]]
        common = lcm(*(v.denominator for v in exact))
        whole = [int(v * common) for v in exact]
        divisor = gcd(*whole)
        normal = tuple(v // divisor for v in whole)
        values = points @ np.array(normal)
        on = int(values.max())
        near = points @ row[:-1] + row[-1]
        if not np.array_equal(values == on, np.abs(near) < 1e-7):
            raise ArithmeticError(f"facet {row} is no integer inequality of the points")
        out.add((normal, on))
    return out
