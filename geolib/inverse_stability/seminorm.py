"""The W^{1,inf} semi-norm of a shallow ReLU network: exact, by MILP, or bracketed."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from geolib.inverse_stability.arrangement import (
    cells,
    essential,
    generic_cell_count,
)
from geolib.inverse_stability.kinks import Kinks, kinks
from geolib.inverse_stability.milp import milp_bracket
from geolib.inverse_stability.net import ShallowReLU
from geolib.inverse_stability.parallel import TOLERANCE

MAX_WORK = 300_000_000  # signs written while enumerating: seconds, and 0.3 GB
MILP_HYPERPLANES, MILP_ENTRIES = 40, 64
METHODS = ("auto", "cells", "milp", "bounds")


@dataclass(frozen=True)
class Seminorm:
    """A semi-norm, or a certified bracket of it, and how it was found.

    Attributes:
        lower, upper: equal when the value is exact (up to rounding).
        method: `cells`, `separable`, `milp` or `bounds`.
        hyperplanes: number of distinct break hyperplanes.
        cells: number of cells enumerated, None where none were.
    """

    lower: float
    upper: float
    method: str
    hyperplanes: int
    cells: int | None = None

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
                f"by method {self.method!r}"
            )
        return self.lower

    def __float__(self) -> float:
        return self.value


def seminorm(
    net: ShallowReLU,
    method: str = "auto",
    *,
    tol: float = TOLERANCE,
    samples: int = 4096,
    seed: int = 0,
) -> Seminorm:
    r"""The largest partial derivative of a realization.

    .. math:: |f|_{W^{1,\infty}} = \operatorname*{ess\,sup}_x\
        \max_{o,j} |\partial_j f_o(x)|

    The realization is 1-homogeneous, so that the value is the same on every
    neighbourhood of the origin, and it is a norm on realizations.

    Args:
        net: the network.
        method: `cells` enumerates the linear regions and is exact; `milp` solves
            one mixed-integer program an entry; `bounds` brackets in any dimension;
            `auto` takes the first of these that is affordable.
        tol: directions closer than this count as one (stated in the certificate).
        samples, seed: directions drawn for the lower bound of `bounds`.

    Raises:
        ValueError: an unknown method, or `cells` where the enumeration is too large.

    Cost: `cells` binom(h, r-1) rays for h hyperplanes of rank r; `milp` 2 d D programs
    with h binaries; `bounds` O(samples m (1 + d D)).

    Source: Elbraechter, Berner and Grohs 2019, section 1 (the norm); the algorithm is
    this book's.

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0], [0.0, 1.0]], [[2.0, -3.0]])
        >>> seminorm(f).value
        3.0
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    k = kinks(net, tol)
    h = len(k.normals)
    if h == 0:
        return Seminorm(0.0, 0.0, "cells", 0, 1)
    if method == "auto":
        rank = essential(k.normals).shape[1]
        if rank == h:  # every sign vector occurs, so each entry is maximal on its own
            top = float(np.abs(_entrywise(k)).max())
            return Seminorm(top, top, "separable", h)
        if enumerable(h, rank):
            method = "cells"
        else:
            small = h <= MILP_HYPERPLANES and net.D * net.d <= MILP_ENTRIES
            method = "milp" if small else "bounds"
    if method == "cells":
        return _by_cells(k)
    if method == "milp":
        lower, upper = milp_bracket(k)
        return Seminorm(max(lower, _half_jump(k)), upper, "milp", h)
    lower, upper = _bracket(k, samples, seed)
    return Seminorm(lower, upper, "bounds", h)


def seminorm_difference(
    f: ShallowReLU, g: ShallowReLU, method: str = "auto", **options: float
) -> Seminorm:
    r"""The distance of two realizations, :math:`|R(f) - R(g)|_{W^{1,\infty}}`.

    Arguments, errors and cost as `seminorm`, for the network of width m_f + m_g.

    Raises:
        ValueError: the input or output dimensions differ.

    Examples:
        >>> f = ShallowReLU([[1.0, 0.0]], [[1.0]])
        >>> g = ShallowReLU([[0.0, 1.0]], [[1.0]])
        >>> seminorm_difference(f, g).value
        1.0
    """
    return seminorm(f - g, method, **options)  # type: ignore[arg-type]


def enumerable(h: int, rank: int) -> bool:
    """Whether the cells of h hyperplanes of this rank can be listed in seconds."""
    rays = comb(h, rank - 1) * 2**rank if rank > 2 else 2 * h
    return rays * h <= MAX_WORK


def _by_cells(k: Kinks) -> Seminorm:
    h = len(k.normals)
    rank = essential(k.normals).shape[1]
    if not enumerable(h, rank):
        raise ValueError(
            f"method: d too large for exact enumeration: {h} hyperplanes of rank "
            f"{rank} have up to {generic_cell_count(h, rank)} cells; use 'milp' or "
            "'bounds'"
        )
    signs = cells(k.normals)
    block = max(1, 20_000_000 // h)
    top = max(
        float(np.abs(k.gradients(signs[i : i + block])).max())
        for i in range(0, len(signs), block)
    )
    return Seminorm(top, top, "cells", h, len(signs))


def _half_jump(k: Kinks) -> float:
    return float(np.abs(k.jumps).max() / 2)


def _entrywise(k: Kinks) -> np.ndarray:
    """Largest and smallest conceivable value of each partial derivative."""
    high = np.maximum(k.on, k.off).sum(axis=0)
    low = np.minimum(k.on, k.off).sum(axis=0)
    return np.stack([high, low])


def _bracket(k: Kinks, samples: int, seed: int) -> tuple[float, float]:
    """Sampled cells and their nearest neighbours from below, entrywise from above."""
    rng = np.random.default_rng(seed)
    lower = _half_jump(k)
    for start in range(0, samples, 512):
        x = rng.normal(size=(min(512, samples - start), k.normals.shape[1]))
        z = x @ k.normals.T
        signs = np.where(z > 0, 1, -1).astype(np.int8)
        across = signs.copy()
        # The ball around x up to its nearest hyperplane meets no other one.
        nearest = np.abs(z).argmin(axis=1)
        across[np.arange(len(x)), nearest] *= -1
        both = np.concatenate([signs, across, -signs, -across])
        lower = max(lower, float(np.abs(k.gradients(both)).max()))
    return lower, float(np.abs(_entrywise(k)).max())
