"""Pairs of networks that attain the constant, and draws from the restricted set."""

from __future__ import annotations

from math import sqrt

import numpy as np

from geolib.inverse_stability.net import ShallowReLU
from geolib.inverse_stability.normal_form import balance


def extremal_pair(
    m: int = 3, delta: float = 1.0, eps: float = 1e-3
) -> tuple[ShallowReLU, ShallowReLU]:
    r"""Two networks of N*_{(3,m,1)} at the largest distance that delta allows.

    .. math:: \operatorname{dist}(\Gamma, \Theta) = s(m)\,\sqrt{\delta}, \qquad
        |R(\Gamma) - R(\Theta)|_{W^{1,\infty}} = \delta

    Around the origin the derivative of the difference takes the values 0, ±δ only:
    two small neurons of opposite sign, which no permutation pairs well, jump by ±2δ,
    and large neurons shared by both networks absorb the jumps. For m > 3 identical
    larger neurons are appended to both.

    Args:
        m: width, at least 1.
        delta: W^{1,inf} distance of the two functions.
        eps: ratio of the last two inner weights to the first; small and positive.

    Raises:
        ValueError: non-positive arguments, or eps above 0.1.

    Source: own derivation (spec, Theorem A, for m = 1 and m >= 3; m = 2 is new here).

    Examples:
        >>> f, g = extremal_pair(1)
        >>> f.A[:, 0], g.A[:, 0], f.C, g.C
        (array([1.]), array([-1.]), array([[1.]]), array([[-1.]]))
    """
    if m < 1 or not delta > 0 or not 0 < eps <= 0.1:
        raise ValueError(
            f"m, delta, eps: expected m >= 1, delta > 0 and eps in (0, 0.1], got "
            f"{(m, delta, eps)}"
        )
    two, five = sqrt(2.0), sqrt(5.0)
    # One row a neuron: size, sign of its first weight, slope over eps, sign of c.
    shapes: dict[int, tuple[list[tuple], list[tuple]]] = {
        1: ([(1, 1, 1, 1)], [(1, -1, 1, -1)]),
        2: (
            [(two, -1, 2, 1), (2, -1, 1, 1)],
            [(1, 1, 1, -1), (five, -1, 1, 1)],
        ),
        3: (
            [(two, 1, 2, 1), (2, -1, 1, 1), (2, 1, 1, 1)],
            [(two, -1, 2, -1), (five, -1, 1, 1), (five, 1, 1, 1)],
        ),
    }
    left, right = shapes[min(m, 3)]
    # Distinct from all slopes above, and 3 apart from every size and each other.
    extra: list[tuple] = [(3.0 * (i + 2), 1, 3 + i, 1) for i in range(m - 3)]
    root = sqrt(delta)
    return _build(left + extra, eps, root), _build(right + extra, eps, root)


def _build(rows: list[tuple], eps: float, root: float) -> ShallowReLU:
    t, sign, slope, outer = np.array(rows, dtype=np.float64).T
    A = np.column_stack([sign, eps * slope, eps * slope]) * t[:, None]
    return ShallowReLU(root * A, root * (t * outer)[None, :])


def random_pair(
    rng: np.random.Generator, m: int, d: int = 2, D: int = 1, shared: bool = False
) -> tuple[ShallowReLU, ShallowReLU]:
    """Two random networks of the half-space class, balanced and without parallels.

    Neuron sizes are log-uniform in [0.1, 10], directions have a positive last entry.
    With `shared` about half of the directions of the second net are copied from the
    first; without that the matched branch of the theorem is never exercised.

    Args:
        rng: source of randomness.
        m, d, D: architecture.
        shared: whether to copy directions.

    Examples:
        >>> f, g = random_pair(np.random.default_rng(0), 3)
        >>> f.A.shape, bool((f.A[:, -1] > 0).all())
        ((3, 2), True)
    """
    first = rng.normal(size=(m, d))
    second = rng.normal(size=(m, d))
    if shared:
        copy = rng.random(m) < 0.5
        second[copy] = first[copy]
    return tuple(_draw(rng, rows, D) for rows in (first, second))  # type: ignore[return-value]


def _draw(rng: np.random.Generator, rows: np.ndarray, D: int) -> ShallowReLU:
    A = rows.copy()
    A[:, -1] = np.abs(A[:, -1])
    t = 10.0 ** rng.uniform(-1, 1, size=(len(A), 1))
    C = rng.normal(size=(D, len(A)))
    A *= t / np.abs(A).max(axis=1, keepdims=True)
    return balance(ShallowReLU(A, C / np.abs(C).max(axis=0) * t.T))


def perturb(rng: np.random.Generator, net: ShallowReLU, amount: float) -> ShallowReLU:
    """The same directions, with neuron sizes and outer weights changed by `amount`.

    Sizes are multiplied by 1 + amount N(0, 1), outer weights entry by entry likewise,
    and every neuron is balanced again. Close functions with matched kinks arise so.

    Examples:
        >>> f = ShallowReLU([[1.0, 1.0]], [[1.0]])
        >>> g = perturb(np.random.default_rng(0), f, 0.01)
        >>> bool(abs(g.A - f.A).max() < 0.05)
        True
    """
    A = net.A * (1 + amount * rng.normal(size=(net.m, 1)))
    C = net.C * (1 + amount * rng.normal(size=net.C.shape))
    return balance(ShallowReLU(A, C))
