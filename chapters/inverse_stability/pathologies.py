"""Sequences on which inverse stability fails, and how fast they do so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from normal_form import absolute_value_form

from geolib.inverse_stability import (
    ShallowReLU,
    parameter_distance,
    planar_norms,
    w1inf_seminorm,
)


def expect(holds: object, name: str, wanted: str, got: object) -> None:
    """Refuse an argument by name; a comparison with NaN does not hold."""
    if not holds:
        raise ValueError(f"{name}: expected {wanted}, got {got!r}")


@dataclass(frozen=True, eq=False)
class Pathology:
    r"""Parameters Γ and functions g_k -> R(Γ) that no parameters near Γ realize.

    The five class methods are the five obstructions.

    Attributes:
        label: P0, P1, P2, P3a or P3b.
        title: its name.
        base: Γ.
        sequence: one parametrization of g_k for each k, of the same width.
        ks: the values of k.
        repair: what removes the obstruction.

    Source: Elbraechter, Berner and Grohs 2019; proofs in the chapter's first notebook.
    """

    label: str
    title: str
    base: ShallowReLU
    sequence: tuple[ShallowReLU, ...]
    ks: tuple[float, ...]
    repair: str

    def __iter__(self) -> Iterator[tuple[float, ShallowReLU]]:
        """Pairs (k, g_k)."""
        return zip(self.ks, self.sequence, strict=True)

    @classmethod
    def exploding_gradient(cls, ks: Sequence[float]) -> Pathology:
        r"""P0: small in the uniform norm, steep, and far from zero in parameter space.

        .. math:: g_k = k\bigl[\rho(k x_1) - \rho(k x_1 - x_2 / k^2)\bigr],
            \quad \Gamma = 0

        Uniform norm 1/k on (-1, 1)^2, W^{1,inf} semi-norm k^2 (the first neuron's slope
        k^2 shows on the sliver where it is on alone), distance to the fibre k.

        Examples:
            >>> Pathology.exploding_gradient([2.0]).sequence[0].A
            array([[ 2.  ,  0.  ], [ 2.  , -0.25]])
        """
        ks = _checked(ks)
        nets = tuple(ShallowReLU([[k, 0.0], [k, -1 / k**2]], [[k, -k]]) for k in ks)
        zero = ShallowReLU.zeros(2, 2)
        return cls("P0", "exploding gradient", zero, nets, ks, "Sobolev norm")

    @classmethod
    def unbalanced(cls, ks: Sequence[float], r: float = 1.0) -> Pathology:
        r"""P1: a neuron that is switched off by its outer weight alone.

        .. math:: \Gamma: a = (r, 0),\ c = 0; \qquad g_k = \tfrac1k \rho(x_2)

        Semi-norm 1/k, distance to the fibre r for all large k.

        Examples:
            >>> Pathology.unbalanced([4.0]).sequence[0].C
            array([[0.25]])
        """
        ks = _checked(ks)
        expect(0 < r < np.inf, "r", "a positive number", r)
        nets = tuple(ShallowReLU([[0.0, 1.0]], [[1 / k]]) for k in ks)
        base = ShallowReLU([[r, 0.0]], [[0.0]])
        return cls("P1", "unbalanced neuron", base, nets, ks, "balance")

    @classmethod
    def redundant(cls, ks: Sequence[float]) -> Pathology:
        r"""P2: two neurons where one would do.

        .. math:: \Gamma: a_1 = a_2 = (1, 0),\ c = (1, 1); \qquad
            g_k = 2\rho(x_1) + \tfrac1k \rho(x_2)

        Semi-norm of the difference 1/k, distance to the fibre 1.

        Examples:
            >>> Pathology.redundant([4.0]).base.A
            array([[1., 0.], [1., 0.]])
        """
        ks = _checked(ks)
        nets = tuple(ShallowReLU(np.eye(2), [[2.0, 1 / k]]) for k in ks)
        base = ShallowReLU([[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0]])
        return cls("P2", "redundant directions", base, nets, ks, "merge")

    @classmethod
    def opposite_within(cls, ks: Sequence[float], angle: float = 0.4) -> Pathology:
        r"""P3a: opposite neurons whose linear parts cancel, so that Γ realizes zero.

        .. math:: \Gamma = \{\pm a_i,\ c = \pm 1\}, \quad \sum_i a_i = 0; \qquad
            g_k = \tfrac1k \rho(\langle v, x\rangle)

        with three a_i at 120 degrees and v at `angle`. Semi-norm 1/k; one neuron of
        every parametrization of g_k lies on the line of v, so that the distance to the
        fibre is at least the smallest max-norm distance of an a_i to that line.

        Examples:
            >>> f = Pathology.opposite_within([1.0]).base
            >>> bool(abs(f([[0.3, -0.7]])).max() < 1e-15)
            True
        """
        ks, A = _checked(ks), triangle()
        v = np.array([[np.cos(angle), np.sin(angle)]])
        base = ShallowReLU(np.vstack([A, -A]), np.repeat([[1.0, -1.0]], 3, axis=1))
        nets = tuple(ShallowReLU(v, [[1 / k]]).pad(6) for k in ks)
        return cls("P3a", "opposite vectors within", base, nets, ks, "normal form")

    @classmethod
    def opposite_between(cls, ks: Sequence[float]) -> Pathology:
        r"""P3b: all kinks agree but their signs do not.

        .. math:: \Gamma = \{a_i,\ c = 1\}, \quad
            g_k = \sum_i \bigl(1 + [i = 1]/k\bigr)\,\rho(-\langle a_i, x\rangle),
            \quad \sum_i a_i = 0

        Both sums are equal at k = infinity because :math:`\rho(z) - \rho(-z) = z`. For
        finite k the signs are determined by the function, and the distance stays
        positive. The sequence is this book's.

        Examples:
            >>> g = Pathology.opposite_between([10.0]).sequence[0]
            >>> g.C
            array([[1.1, 1. , 1. ]])
        """
        ks, A = _checked(ks), triangle()
        nets = tuple(ShallowReLU(-A, [[1 + 1 / k, 1.0, 1.0]]) for k in ks)
        base = ShallowReLU(A, np.ones((1, 3)))
        return cls("P3b", "opposite vectors between", base, nets, ks, "normal form")


def triangle() -> np.ndarray:
    """Three unit vectors of the plane with sum zero, shape (3, 2)."""
    turn = 2 * np.pi * np.arange(3) / 3
    A = np.column_stack([np.cos(turn), np.sin(turn)])
    A[2] = -A[0] - A[1]  # exactly zero sum in floating point
    return A


def _checked(ks: Sequence[float]) -> tuple[float, ...]:
    values = np.asarray(ks, dtype=np.float64)
    good = values.ndim == 1 and len(values) and ((values > 0) & (values < np.inf)).all()
    expect(good, "ks", "a list of positive numbers", ks)
    return tuple(values.tolist())


@dataclass(frozen=True, eq=False)
class PathologyRates:
    """Four quantities along a sequence g_k, each of shape (number of k,).

    Attributes:
        label: of the pathology.
        ks: the values of k.
        uniform: sup |g_k - R(Γ)| on the square.
        w1inf: the W^{1,inf} semi-norm of g_k - R(Γ).
        distance: from Γ to the weights that realize g_k (P3a: a lower bound of it).
        repaired: the same after the repair; None where no gauge repairs (P0).
    """

    label: str
    ks: np.ndarray
    uniform: np.ndarray
    w1inf: np.ndarray
    distance: np.ndarray
    repaired: np.ndarray | None

    def slopes(self) -> dict[str, float]:
        """Least-squares slope of log value against log k, for each quantity."""
        names = ("uniform", "w1inf", "distance", "repaired")
        values = {n: v for n in names if (v := getattr(self, n)) is not None}
        x = np.log(self.ks)
        return {n: float(np.polyfit(x, np.log(v), 1)[0]) for n, v in values.items()}


def pathology_rates(case: Pathology) -> PathologyRates:
    """Measure a pathology of the plane exactly; nothing is sampled.

    Args:
        case: one of the five sequences.

    Returns:
        the `PathologyRates`: norms and distances for each k, and their log-log slopes.

    Cost: O(len(ks) m^2), and 2^m flip sets for each distance.

    Source: the chapter's first notebook, propositions P1 to P3b;
    :eq:`drv-inverse_stability-line` (derivations) for P3a.

    Examples:
        >>> r = pathology_rates(Pathology.unbalanced([1.0, 10.0, 100.0]))
        >>> {name: round(slope, 6) + 0.0 for name, slope in r.slopes().items()}
        {'uniform': -1.0, 'w1inf': -1.0, 'distance': 0.0, 'repaired': -0.5}
    """
    gaps = [g - case.base for g in case.sequence]
    repaired = None
    if case.label != "P0":
        repaired = np.array([_repaired(case, g) for g in case.sequence])
    return PathologyRates(
        case.label,
        np.array(case.ks),
        np.array([planar_norms(f).uniform for f in gaps]),
        np.array([w1inf_seminorm(f).value for f in gaps]),
        np.array([_fibre_distance(case, g) for g in case.sequence]),
        repaired,
    )


def distance_to_line(points: np.ndarray, v: np.ndarray) -> np.ndarray:
    r"""Max-norm distances of points to the line of v, signs included.

    .. math:: \min_{\lambda \in \mathbb{R}} \|a - \lambda v\|_\infty
        = \frac{|\det(a, v)|}{\|v\|_1}

    Shapes (n, 2) and (2,).

    Examples:
        >>> distance_to_line(np.array([[1.0, 0.0]]), np.array([1.0, 1.0]))
        array([0.5])
    """
    det = points[:, 0] * v[1] - points[:, 1] * v[0]
    return np.abs(det) / np.abs(v).sum()


def _fibre_distance(case: Pathology, g: ShallowReLU) -> float:
    if case.label == "P3a":  # g has one kink: some neuron must lie on its line
        return float(distance_to_line(case.base.A, g.A[0]).min())
    return parameter_distance(case.base, g, "sign")


def _repaired(case: Pathology, g: ShallowReLU) -> float:
    if case.repair == "normal form":
        return max(absolute_value_form(case.base).distance(absolute_value_form(g)))
    merge = case.repair == "merge"
    base = case.base.merge_parallel() if merge else case.base.balance()
    return parameter_distance(base, g.balance())
