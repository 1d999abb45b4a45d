"""Kreck's axioms, links, gluings and certified metrics, model by model.

A model is a manifold N with boundary, collapsed onto a singular set Sigma by g. What is
asked of it is polynomial, or polynomial in a formal activation, and is decided by exact
algebra: that the density depends on g alone on the boundary, that points off Sigma are told
apart, and that the density moves there in all directions. Links and what fills them are
complexes, and their boundaries are counted modulo two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import kreck
import numpy as np
import sympy as sp
from mpmath import iv
from sympy import Expr, Matrix, Symbol, symbols

Complex = Sequence[tuple]  # its cells of the highest dimension, by their vertices

INTERVAL: Complex = [("a", "b")]
TWO_INTERVALS: Complex = [("a", "b"), ("c", "d")]
STRIP: Complex = [("a", "b", "c"), ("b", "c", "d")]
HALF_DISK: Complex = [("a", "b", "o")]
CIRCLE: Complex = [("a", "b"), ("b", "c"), ("a", "c")]
DISK: Complex = [(*edge, "o") for edge in CIRCLE]
TWO_CIRCLES: Complex = [*CIRCLE, *(tuple(v.upper() for v in e) for e in CIRCLE)]
CYLINDER: Complex = [
    face for a, b in CIRCLE for face in ((a, b, a.upper()), (b, a.upper(), b.upper()))
]
PLANE: Complex = [(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5), (0, 1, 5),
                  (1, 2, 4), (2, 3, 5), (1, 3, 4), (2, 4, 5), (1, 3, 5)]  # fmt: skip


def cells(K: Complex, size: int) -> set[frozenset]:
    """The cells with so many vertices."""
    return {frozenset(c) for top in K for c in combinations(top, size)}


def boundary(K: Complex) -> set[frozenset]:
    """The boundary modulo two: faces of an odd number of cells."""
    size = len(K[0])
    faces = cells(K, size - 1)
    return {f for f in faces if sum(f < set(top) for top in K) % 2}


def euler(K: Complex) -> int:
    """The Euler characteristic."""
    return sum((-1) ** (k - 1) * len(cells(K, k)) for k in range(1, len(K[0]) + 1))


def bounds(K: Complex) -> bool | None:
    """Whether a link is a boundary; None where it has one itself.

    Every closed curve is one. A closed surface is one if and only if its Euler
    characteristic is even, since that is the only Stiefel-Whitney number.
    """
    if boundary(K) and len(K[0]) > 1:
        return None
    return len(K[0]) <= 2 or euler(K) % 2 == 0


def fills(W: Complex, K: Complex) -> bool:
    """Whether K lies in the boundary of W, and is all of it if K is closed."""
    link, edge = cells(K, len(K[0])), boundary(W)
    return link <= edge if boundary(K) else link == edge


@dataclass(frozen=True)
class Model:
    """A model as a p-stratifold, and what became of its resolution.

    Attributes:
        name: of the model.
        sigma: its singular set; g, on which alone C depends near it, in `base`.
        coordinates: of N.
        density: numbers that determine the density.
        wall: equations of the boundary of N, one set a piece.
        base: g in coordinates; empty where Sigma is a point.
        off: are all zero on Sigma only.
        told: functions of the density d0, d1, ..., and what they are in coordinates.
        link, filling: complexes; no filling where there is none.
        glued: what the filling is made of, in words.
        floor: certifies a lower bound of the metric in the collar, or None.
        extent: where that holds, or why there is none.
    """

    name: str
    sigma: str
    coordinates: Sequence[Symbol]
    density: Sequence[Expr]
    wall: Sequence[dict[Symbol, Expr | int]]
    base: Sequence[Expr]
    off: Sequence[Expr]
    told: Sequence[tuple[Expr, Expr]]
    link: Complex
    filling: Complex | None
    glued: str
    floor: Callable[[], float] | None
    extent: str

    def collapses(self) -> bool:
        """On the boundary the density depends on g alone: their slopes have one rank."""
        for piece in self.wall:
            free = [x for x in self.coordinates if x not in piece]
            if not free:  # a point in these coordinates: one density
                continue
            f, g = (Matrix([sp.simplify(e.subs(piece)) for e in part] or [0]).jacobian(free)
                    for part in (self.density, self.base))  # fmt: skip
            if sp.simplify(g.col_join(f)).rank() > sp.simplify(g).rank():
                return False
        return True

    def separates(self) -> bool:
        """Off Sigma the density tells the coordinates."""
        d = symbols(f"d:{len(self.density)}")
        given = dict(zip(d, self.density, strict=True))
        return all(sp.simplify(f.subs(given) - x) == 0 for f, x in self.told)

    def regular(self) -> bool:
        """Each of `off` is a minor of the density's derivative: N moves in all directions."""
        J, k = Matrix(self.density).jacobian(self.coordinates), len(self.coordinates)
        rows = combinations(range(len(self.density)), k)
        minors = [J.extract(list(r), list(range(k))).det() for r in rows]
        return all(
            any(m != 0 and sp.simplify(m / part).is_number for m in minors)
            for part in self.off
        )

    def smooth(self) -> str:
        """Where g is smooth on Sigma: everywhere, or where a denominator is not zero."""
        bars = {sp.denom(sp.together(e)) for e in self.base} - {sp.Integer(1)}
        return " and ".join(f"where {b} != 0" for b in bars) or "yes"


def models(eps: float = 0.1) -> list[Model]:
    """The chapter's models; the certificates are for collars of this width."""
    w, mu, b, v, s, xi, om = symbols("w mu b v s xi omega", real=True)
    v1, v2, w1, w2, *delta = symbols("v1 v2 w1 w2 delta1:4", real=True)
    d = symbols("d:6")
    moments = [v1 * w1**k + v2 * w2**k for k in range(4)]
    central = [sp.Integer(1), sp.Integer(0)]
    for _ in range(9):
        central.append(sp.expand(s * central[-1] + v * central[-2]))
    even = d[0] * d[2] - d[1] ** 2
    pair = [((d[0] * d[3] - d[1] * d[2]) / even, w1 + w2),
            ((d[1] * d[3] - d[2] ** 2) / even, w1 * w2)]  # fmt: skip

    def square(n: int) -> dict:
        here = delta[:n]
        rows = [here[i] * here[j] for i in range(n) for j in range(i, n)]
        corner = dict.fromkeys(here, 0)
        return {"sigma": "one density", "coordinates": here, "density": rows,
                "wall": [corner], "base": [], "off": [x**n for x in here],
                "told": [(d[k], e) for k, e in enumerate(rows)]}  # fmt: skip

    no_bound = "no collar in real weights: complex pairs"
    return [
        Model("mixture A", "one density", (w, mu), [w * mu**k for k in range(1, 12)],
              [{w: 0}, {mu: 0}], [], [w * mu**2], [(d[0] ** 2 / d[1], w), (d[1] / d[0], mu)],
              TWO_INTERVALS, STRIP, "the tube", lambda: kreck.tube_floor(eps) * eps**2,
              "|t| <= eps, nu <= 3"),
        Model("mixture B", "the line N(b, 1)", (b, v, s), [b, *central[2:]], [{v: 0}], [b],
              [v], [(d[0], b), (d[1], v), (d[2] / d[1], s)], INTERVAL, HALF_DISK, "the cap",
              lambda: kreck.cap_floor(eps, goal=0.06), "v <= eps/2"),
        Model("cone, slope 2", "the apex", (xi, om),
              [xi, 2 * xi * sp.cos(om), 2 * xi * sp.sin(om)], [{xi: 0}], [], [xi],
              [(d[0], xi), (d[1] / d[0] / 2, sp.cos(om)), (d[2] / d[0] / 2, sp.sin(om))],
              TWO_CIRCLES, CYLINDER, "the waist", lambda: cone_floor(2.0, eps) * eps**2,
              "|xi| <= eps"),
        Model("two units, overlap", "(V, b)", (v1, v2, w1, w2), moments, [{w2: w1}],
              [v1 + v2, (v1 * w1 + v2 * w2) / (v1 + v2)], [v1 * v2 * (w1 - w2) ** 4], pair,
              TWO_INTERVALS, STRIP, "complex pairs: the central chart", None, no_bound),
        Model("two units, one silent", "(v2, w2)", (v1, v2, w1, w2), moments, [{v1: 0}],
              [v2, w2], [v1 * v2 * (w1 - w2) ** 4], pair, TWO_INTERVALS, STRIP,
              "not made", None, "no resolution is made; link bounded for bounded w1"),
        Model("+-delta in the plane", **square(2), link=CIRCLE, filling=DISK,
              glued="the disk of squares", floor=square_floor, extent="|z| <= 1"),
        Model("+-delta in space", **square(3), link=PLANE, filling=None, glued="nothing",
              floor=None, extent="no resolution: the link is no boundary"),
    ]  # fmt: skip


def table(eps: float = 0.1) -> list[dict]:
    """What the page shows: a row a model, all of it computed."""
    rows = []
    for m in models(eps):
        fits = None if m.filling is None else fills(m.filling, m.link)
        closed = "closed" if not boundary(m.link) else "with boundary"
        parts = {0: "points", 1: "curves", 2: "surface"}[len(m.link[0]) - 1]
        rows.append({
            "model": m.name, "singular set": m.sigma,
            "C near it": "functions of g" if m.base else "constants",
            "density depends on g": m.collapses(), "told apart off it": m.separates(),
            "regular off it": m.regular(), "g smooth": m.smooth(),
            "link": f"{closed} {parts}, chi {euler(m.link)}",
            "bounds": {True: "yes", False: "no", None: "relative to its ends"}[bounds(m.link)],
            "glued in": m.glued, "the filling's boundary holds the link": fits,
            "certified metric": m.floor and m.floor(), "where": m.extent,
        })  # fmt: skip
    return rows


def cone_floor(c: float, eps: float, count: int = 16) -> float:
    """The least Fisher eigenvalue over eps^2 in the collar of the cone's waist.

    The metric is diagonal, (1 + c^2 r'^2, c^2 r^2)/(1 + c^2) for the radius r = |xi|_eps.
    """
    least = float("inf")
    for a, b in pairwise(np.linspace(0, eps, count + 1).tolist()):
        r, slope = kreck.modulus(iv.mpf([a, b]), eps)
        C = iv.mpf(c) ** 2
        for entry in ((1 + C * slope**2) / (1 + C), C * r**2 / (1 + C)):
            least = min(least, kreck.ends(entry / iv.mpf(eps) ** 2)[0])
    return least


def square_floor(most: float = 1.0) -> float:
    """A lower bound of the metric in the square z of +-delta in the plane, |z| <= most.

    T = (x1^2 - x2^2, 2 x1 x2) has mean z, so that F >= Cov(T)^-1 >= 1/tr Cov(T), and the
    trace is E|x|^4 - |z|^2 = 8 + 8|z|.
    """
    z = iv.mpf([0, most])
    return kreck.ends(1 / (8 + 8 * z))[0]
