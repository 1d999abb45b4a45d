"""Sequences of networks on which inverse stability fails, one for each obstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolib.inverse_stability.net import ShallowReLU


@dataclass(frozen=True, eq=False)
class Pathology:
    """Parameters Γ and functions g_k -> R(Γ) that no parameters near Γ realize.

    Attributes:
        label: P0, P1, P2, P3a or P3b.
        title: its name.
        base: Γ.
        sequence: one parametrization of g_k for each k, of the same width.
        ks: the values of k.
        repair: what removes the obstruction.
    """

    label: str
    title: str
    base: ShallowReLU
    sequence: tuple[ShallowReLU, ...]
    ks: tuple[float, ...]
    repair: str

    def __iter__(self):  # type: ignore[no-untyped-def]
        """Pairs (k, g_k)."""
        return zip(self.ks, self.sequence, strict=True)


def exploding_gradient(ks: Sequence[float]) -> Pathology:
    r"""P0: small in the uniform norm, steep, and far from zero in parameter space.

    .. math:: g_k = k\bigl[\rho(k x_1) - \rho(k x_1 - x_2 / k^2)\bigr], \quad \Gamma = 0

    Uniform norm 1/k on (-1, 1)^2, W^{1,inf} semi-norm k^2 (the first neuron's slope
    k^2 shows on the sliver where it is on alone), distance to the fibre k.

    Source: the paper's example for the uniform norm, as recalled.

    Examples:
        >>> exploding_gradient([2.0]).sequence[0].A
        array([[ 2.  ,  0.  ], [ 2.  , -0.25]])
    """
    ks = _checked(ks)
    nets = tuple(ShallowReLU([[k, 0.0], [k, -1 / k**2]], [[k, -k]]) for k in ks)
    zero = ShallowReLU.zeros(2, 2)
    return Pathology("P0", "exploding gradient", zero, nets, ks, "Sobolev norm")


def unbalanced(ks: Sequence[float], r: float = 1.0) -> Pathology:
    r"""P1: a neuron that is switched off by its outer weight alone.

    .. math:: \Gamma: a = (r, 0),\ c = 0; \qquad g_k = \tfrac1k \rho(x_2)

    Semi-norm 1/k, distance to the fibre r for all large k.

    Source: complete unbalancedness in the paper, as recalled.

    Examples:
        >>> unbalanced([4.0]).sequence[0].C
        array([[0.25]])
    """
    ks = _checked(ks)
    if not (np.isfinite(r) and r > 0):
        raise ValueError(f"r: expected a positive number, got {r!r}")
    nets = tuple(ShallowReLU([[0.0, 1.0]], [[1 / k]]) for k in ks)
    base = ShallowReLU([[r, 0.0]], [[0.0]])
    return Pathology("P1", "unbalanced neuron", base, nets, ks, "balance")


def redundant(ks: Sequence[float]) -> Pathology:
    r"""P2: two neurons where one would do.

    .. math:: \Gamma: a_1 = a_2 = (1, 0),\ c = (1, 1); \qquad
        g_k = 2\rho(x_1) + \tfrac1k \rho(x_2)

    Semi-norm of the difference 1/k, distance to the fibre 1.

    Source: redundant directions in the paper, as recalled.

    Examples:
        >>> redundant([4.0]).base.A
        array([[1., 0.], [1., 0.]])
    """
    ks = _checked(ks)
    nets = tuple(ShallowReLU(np.eye(2), [[2.0, 1 / k]]) for k in ks)
    base = ShallowReLU([[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0]])
    return Pathology("P2", "redundant directions", base, nets, ks, "merge")


def opposite_within(ks: Sequence[float], angle: float = 0.4) -> Pathology:
    r"""P3a: opposite neurons whose linear parts cancel, so that Γ realizes zero.

    .. math:: \Gamma = \{\pm a_i,\ c = \pm 1\}, \quad \sum_i a_i = 0; \qquad
        g_k = \tfrac1k \rho(\langle v, x\rangle)

    with three a_i at 120 degrees and v at `angle`. Semi-norm 1/k; one neuron of every
    parametrization of g_k lies on the line of v, so that the distance to the fibre is
    at least the smallest max-norm distance of an a_i to that line.

    Source: opposite vectors in the paper, as recalled.

    Examples:
        >>> f = opposite_within([1.0]).base
        >>> bool(abs(f([[0.3, -0.7]])).max() < 1e-15)
        True
    """
    ks = _checked(ks)
    A = triangle()
    v = np.array([[np.cos(angle), np.sin(angle)]])
    base = ShallowReLU(np.vstack([A, -A]), np.repeat([[1.0, -1.0]], 3, axis=1))
    nets = tuple(ShallowReLU(v, [[1 / k]]).pad(6) for k in ks)
    return Pathology("P3a", "opposite vectors within", base, nets, ks, "normal form")


def opposite_between(ks: Sequence[float]) -> Pathology:
    r"""P3b: all kinks agree but their signs do not.

    .. math:: \Gamma = \{a_i,\ c = 1\}, \quad g_k = \sum_i \bigl(1 + [i = 1]/k\bigr)\,
        \rho(-\langle a_i, x\rangle), \quad \sum_i a_i = 0

    Both sums are equal at k = infinity because :math:`\rho(z) - \rho(-z) = z`. For
    finite k the signs are determined by the function, and the distance stays positive.

    Source: opposite vectors in the paper, as recalled; this sequence: own derivation.

    Examples:
        >>> g = opposite_between([10.0]).sequence[0]
        >>> g.C
        array([[1.1, 1. , 1. ]])
    """
    ks = _checked(ks)
    A = triangle()
    nets = tuple(ShallowReLU(-A, [[1 + 1 / k, 1.0, 1.0]]) for k in ks)
    base = ShallowReLU(A, np.ones((1, 3)))
    return Pathology("P3b", "opposite vectors between", base, nets, ks, "normal form")


def triangle() -> np.ndarray:
    """Three unit vectors of the plane with sum zero, shape (3, 2)."""
    turn = 2 * np.pi * np.arange(3) / 3
    A = np.column_stack([np.cos(turn), np.sin(turn)])
    A[2] = -A[0] - A[1]  # exactly zero sum in floating point
    return A


def distance_to_line(points: np.ndarray, v: np.ndarray) -> np.ndarray:
    r"""Max-norm distances of points to the line of v, signs included.

    .. math:: \min_{\lambda \in \mathbb{R}} \|a - \lambda v\|_\infty

    In the plane the minimum is |det(a, v)| / ‖v‖_1. Shapes (n, 2) and (2,).

    Examples:
        >>> distance_to_line(np.array([[1.0, 0.0]]), np.array([1.0, 1.0]))
        array([0.5])
    """
    det = points[:, 0] * v[1] - points[:, 1] * v[0]
    return np.abs(det) / np.abs(v).sum()


def _checked(ks: Sequence[float]) -> tuple[float, ...]:
    values = np.asarray(ks, dtype=np.float64)
    if (
        values.ndim != 1
        or not len(values)
        or not ((values > 0) & np.isfinite(values)).all()
    ):
        raise ValueError(f"ks: expected a list of positive numbers, got {ks!r}")
    return tuple(values.tolist())
