"""The W^{1,inf} semi-norm, exact or bracketed; other norms in the plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, gamma, pi, sqrt
from typing import Annotated

import numpy as np

from geolib.core.validation import expect

from .arrangement import RAY_TOLERANCE, enumerate_cells, essential, generic_cell_count
from .collinear import TOLERANCE, unit_rows
from .kinks import ROUNDING, Kinks, collect, kinks
from .shallow_relu import BiasedReLU, ShallowReLU

MAX_WORK = 300_000_000  # signs written while enumerating: seconds, and 0.3 GB
METHODS = ("auto", "cells", "bounds")


@dataclass(frozen=True)
class Seminorm:
    """A semi-norm, or a certified bracket of it, and how it was found.

    Attributes:
        lower, upper: equal when the value is exact (up to rounding).
        method: `cells`, `separable` or `bounds`.
        cells: number of cells enumerated, None where none were.
        tolerance: the angle below which directions count as one and cells are not seen.
            Directions that agree up to rounding leave the value exact; where others
            were treated as one, `lower` and `upper` hold for the network as it stands.
    """

    lower: float
    upper: float
    method: str
    cells: int | None = None
    tolerance: float = TOLERANCE

    @property
    def exact(self) -> bool:
        """Whether both bounds agree to 1e-9 relative."""
        return self.upper - self.lower <= 1e-9 * self.upper

    @property
    def value(self) -> float:
        """The semi-norm; a `ValueError` where only a bracket is known."""
        if not self.exact:
            raise ValueError(
                f"only a bracket is known: [{self.lower:.6g}, {self.upper:.6g}] "
                f"by method {self.method!r} with tolerance {self.tolerance:.0e}"
            )
        return self.lower


def w1inf_seminorm(
    net: ShallowReLU,
    method: Annotated[str, METHODS] = "auto",
    *,
    tol: float = TOLERANCE,
    samples: int = 4096,
    seed: int = 0,
) -> Seminorm:
    r"""The largest partial derivative of a realization; for a distance give `f - g`.

    .. math:: |f|_{W^{1,\infty}} = \operatorname*{ess\,sup}_x\
        \max_{o,j} |\partial_j f_o(x)|

    The realization is 1-homogeneous, so that the value is the same on every
    neighbourhood of the origin, and it is a norm on realizations.

    Args:
        net: the network.
        method: `cells` enumerates the linear regions and is exact; `bounds` brackets in
            any dimension;
            `auto` takes the first of these that is affordable.
        tol: directions closer than this count as one, see `Seminorm.tolerance`.
        samples, seed: directions drawn for the lower bound of `bounds`.

    Raises:
        ValueError: an unknown method, a tolerance outside [0, 1), no samples, or
            `cells` where the enumeration is too large.

    Cost: `cells` binom(h, r-1) rays for h hyperplanes of rank r; `bounds`
    O(samples m (1 + d D)).

    Source: Elbraechter, Berner and Grohs 2019, section 1 (the norm); the algorithm and
    the bracket beyond the tolerance: :eq:`drv-inverse_stability-tolerance`
    (derivations).

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0], [0.0, 1.0]], [[2.0, -3.0]])
        >>> w1inf_seminorm(f).value
        3.0
        >>> close = ShallowReLU([[1.0, 0.0], [1.0, 1e-13]], [[5.0, -5.0]])
        >>> found = w1inf_seminorm(close)  # five on the sliver between the two kinks
        >>> found.exact, found.lower <= 5 <= found.upper
        (False, True)
    """
    k = kinks(net, tol)
    if not len(k.normals):
        return Seminorm(0.0, 0.0, "cells", 1, tol)
    found = _measure(k, method, tol, samples, seed)
    if not k.blur.any():
        return found
    lower = kinks(net, min(tol, ROUNDING)).half_jump
    upper = found.upper + float(k.blur.max())
    return Seminorm(lower, upper, found.method, found.cells, found.tolerance)


def _measure(k: Kinks, method: str, tol: float, samples: int, seed: int) -> Seminorm:
    """The semi-norm as if directions within `tol` were one."""
    h = len(k.on)
    rank = essential(k.normals).shape[1]
    top = _entrywise(k)
    if method == "auto":
        if rank == h:  # every sign vector occurs, so each entry is maximal on its own
            return Seminorm(top, top, "separable", None, tol)
        method = "cells" if enumerable(h, rank) else "bounds"
    if method == "bounds":
        return Seminorm(_sampled(k, samples, seed), top, "bounds", None, tol)
    if not enumerable(h, rank):
        raise ValueError(
            f"method: d too large for exact enumeration: {h} hyperplanes of rank "
            f"{rank} have up to {generic_cell_count(h, rank)} cells; use 'bounds'"
        )
    signs, narrow = enumerate_cells(k.normals)
    value = k.largest(signs)
    tol = max(tol, RAY_TOLERANCE) if rank > 2 else tol
    upper = top if narrow else value
    return Seminorm(value, upper, "cells", len(signs), tol)


def enumerable(h: int, rank: int) -> bool:
    """Whether the cells of h hyperplanes of this rank can be listed in seconds."""
    rays = comb(h, rank - 1) * 2**rank if rank > 2 else 2 * h
    return rays * h <= MAX_WORK


def _entrywise(k: Kinks) -> float:
    """The largest value that any sign vector, cell or not, could give an entry."""
    high = np.maximum(k.on, k.off).sum(axis=0)
    low = np.minimum(k.on, k.off).sum(axis=0)
    return float(np.abs([high, low]).max())


def _sampled(k: Kinks, samples: int, seed: int) -> float:
    """The largest derivative at sampled cells and their nearest neighbours."""
    rng = np.random.default_rng(seed)
    lower = k.half_jump
    for start in range(0, samples, 512):
        x = rng.normal(size=(min(512, samples - start), k.normals.shape[1]))
        z = x @ k.normals.T
        signs = np.where(z > 0, 1, -1).astype(np.int8)
        across = signs.copy()
        # The ball around x up to its nearest hyperplane meets no other one.
        nearest = np.abs(z).argmin(axis=1)
        across[np.arange(len(x)), nearest] *= -1
        both = np.concatenate([signs, across, -signs, -across])
        lower = max(lower, k.largest(both))
    return lower


@dataclass(frozen=True)
class PlanarNorms:
    """Four norms of one function of the plane.

    Attributes:
        uniform: sup of |f| over the square (-1, 1)^2.
        w1inf: the W^{1,inf} semi-norm.
        h1: 2-norm of the gradient over the unit disc.
        l2: 2-norm of the function over the unit disc.
    """

    uniform: float
    w1inf: float
    h1: float
    l2: float


def planar_norms(net: ShallowReLU) -> PlanarNorms:
    r"""Integrate over the sectors of the plane on which the network is linear.

    A 1-homogeneous function with gradient G on the sector of angles (s, t) has

    .. math:: \int \|\nabla f\|^2 = \tfrac12 (t - s)\,\|G\|_F^2, \qquad
        \int \|f\|^2 = \tfrac14 \operatorname{tr} G M G^T, \quad
        M = \int_s^t e_\phi e_\phi^T\,d\phi

    over the unit disc; the uniform norm is attained at a corner of the square or where
    a kink leaves it.

    Args:
        net: a network of two inputs.

    Returns:
        the `PlanarNorms`: uniform on the square, W^{1,inf}, H^1 and L^2 on the disc.

    Raises:
        ValueError: the input dimension is not two.

    Cost: O(m^2 D).

    Source: :eq:`drv-inverse_stability-planar` (derivations).

    Examples:
        >>> n = planar_norms(ShallowReLU([[1.0, 0.0]], [[1.0]]))
        >>> n.uniform, n.w1inf, round(n.h1**2 / np.pi, 6), round(n.l2**2 / np.pi, 6)
        (1.0, 1.0, 0.5, 0.125)
    """
    expect(net.d == 2, "net", "input dimension 2", net.d)
    k = kinks(net)
    if not len(k.normals):
        return PlanarNorms(0.0, 0.0, 0.0, 0.0)
    # Directions of the kink lines: both rays of each, sorted by angle.
    along = np.column_stack([-k.normals[:, 1], k.normals[:, 0]])
    rays = np.concatenate([along, -along])
    angle = np.sort(np.arctan2(rays[:, 1], rays[:, 0]))
    width = np.diff(np.append(angle, angle[0] + 2 * np.pi))
    middle = angle + width / 2
    inside = np.column_stack([np.cos(middle), np.sin(middle)])
    signs = np.where(inside @ k.normals.T > 0, 1, -1)
    G = k.gradients(signs)
    energy = (G**2).sum(axis=(1, 2))
    # M in the frame of the bisector: diag(w + sin w, w - sin w) / 2.
    across = np.column_stack([-inside[:, 1], inside[:, 0]])
    u = (np.einsum("kod,kd->ko", G, inside) ** 2).sum(axis=1)
    v = (np.einsum("kod,kd->ko", G, across) ** 2).sum(axis=1)
    sin = np.sin(width)
    mass = (u * (width + sin) + v * (width - sin)) / 2
    corners = np.array([[s, t] for s in (-1.0, 1.0) for t in (-1.0, 1.0)])
    ends = rays / np.abs(rays).max(axis=1, keepdims=True)
    uniform = float(np.abs(net(np.concatenate([corners, ends]))).max())
    h1, l2 = (float(np.sqrt(q)) for q in ((width * energy).sum() / 2, mass.sum() / 4))
    return PlanarNorms(uniform, float(np.abs(G).max()), h1, l2)


def disc_or_ball(net: ShallowReLU) -> tuple[float, float]:
    """2-norms of gradient and function over the unit ball; in the plane by sectors.

    Beyond it, from the mean of products of two neurons over the sphere
    (:eq:`drv-inverse_stability-ball`), rounded up.
    """
    if net.d == 2:
        norms = planar_norms(net)
        return norms.h1, norms.l2
    u, size, d = unit_rows(net.A), np.linalg.norm(net.A, axis=1), net.d
    gaps = [np.linalg.norm(u[:, None] + s * u, axis=2) for s in (-1, 1)]
    turn = 2 * np.arctan2(*gaps)
    scale = pi ** (d / 2 - 1) / (2 * gamma(d / 2 + 1))
    weights = scale * (net.C * size).T @ (net.C * size)
    both = (pi - turn) * np.cos(turn)
    terms = weights * both, weights * (both + np.sin(turn)) / (d + 2)
    h1, l2 = (float(t.sum()) + ROUNDING * float(np.abs(t).sum()) for t in terms)
    return sqrt(max(h1, 0.0)), sqrt(max(l2, 0.0))


def seminorm_on_box(
    net: BiasedReLU, low: float | Sequence[float], high: float | Sequence[float]
) -> Seminorm:
    r"""The largest partial derivative over a box, biases included; exact.

    .. math:: |f|_{W^{1,\infty}(U)} = \operatorname*{ess\,sup}_{x \in U}\
        \max_{o,j} |\partial_j f_o(x)|, \qquad U = \prod_j (l_j, u_j)

    The affine arrangement is made central in (x, t), t > 0; the facets of the box join
    it as hyperplanes, and only cells on the inner side of all of them count. Where
    hyperplanes closer than the tolerance were treated as one, the value is only an
    upper bound and `lower` is zero.

    Args:
        net: the network with biases.
        low, high: corners of the box, scalars or length d, low < high.

    Raises:
        ValueError: an empty or unbounded box, or too many cells to enumerate.

    Cost: as `w1inf_seminorm` for d + 1 dimensions and 2 d + 1 more hyperplanes.

    Source: :eq:`drv-inverse_stability-box` (derivations).

    Examples:
        >>> hat = BiasedReLU([[1.0], [1.0]], [0.0, -1.0], [[1.0, -3.0]])
        >>> seminorm_on_box(hat, -1.0, 1.0).value, seminorm_on_box(hat, -1.0, 2.0).value
        (1.0, 2.0)
    """
    d = net.W.shape[1]
    fits = all(np.shape(c) in ((), (1,), (d,)) for c in (low, high))
    expect(fits, "low, high", f"numbers, or corners of {d} numbers", (low, high))
    below = np.broadcast_to(np.asarray(low, dtype=np.float64), (d,))
    above = np.broadcast_to(np.asarray(high, dtype=np.float64), (d,))
    good = np.isfinite([below, above]).all() and (below < above).all()
    expect(good, "low, high", "finite corners with low < high", (low, high))
    live = np.flatnonzero(net.W.any(axis=1) & net.C.any(axis=0))
    sides = [
        np.column_stack([s * np.eye(d), -s * c]) for s, c in ((1, below), (-1, above))
    ]
    facets = np.vstack([*sides, np.eye(d + 1)[-1]])
    n = len(facets)
    k = collect(
        np.vstack([facets, np.column_stack([net.W[live], net.b[live]])]),
        np.pad(net.C[:, live], ((0, 0), (n, 0))),
        np.pad(net.W[live], ((n, 0), (0, 0))),
        TOLERANCE,
    )
    h = len(k.normals)
    if not enumerable(h, d + 1):
        raise ValueError(
            f"net: {h} hyperplanes in {d + 1} dimensions have up to "
            f"{generic_cell_count(h, d + 1)} cells, too many to enumerate"
        )
    found, narrow = enumerate_cells(k.normals)
    # The facets are distinct and come first: hyperplane i is facet i, positive inside.
    found = found[(found[:, :n] > 0).all(axis=1)]
    top = k.largest(found)
    blur = float(k.blur.max())
    lower = 0.0 if blur or narrow else top
    if narrow:
        top = float(np.maximum(np.abs(k.on), np.abs(k.off)).sum(axis=0).max())
    return Seminorm(lower, top + blur, "cells", len(found), RAY_TOLERANCE)
