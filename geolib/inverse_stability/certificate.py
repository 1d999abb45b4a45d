"""How far apart two networks are in both spaces, and what one implies of the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect

from .collinear import TOLERANCE, parallel_classes, unit_rows
from .distance import closest_parametrization
from .kinks import ROUNDING, Kinks, kinks
from .restricted import parallel, unbalanced
from .shallow_relu import (
    BiasedReLU,
    ShallowReLU,
    as_points,
    finite_array,
    same_architecture,
)
from .w1inf_seminorm import Seminorm, disc_or_ball, seminorm_on_box, w1inf_seminorm

SHARP = 2 * sqrt(2.0)
PROBES = 512  # directions tried in each kink, for the angle
Box = tuple[float | Sequence[float], float | Sequence[float]]


def sharp_constant(m: Annotated[int, "m >= 1"], quadrant: bool = False) -> float:
    r"""The best constant of inverse stability for width m.

    .. math:: s(1) = 2, \quad s(2) = 1 + \sqrt2, \quad s(m) = 2\sqrt2 \ (m \ge 3)

    for inner weights in one open half-space. In one open quadrant of the plane, where
    the restricted set of two inputs lies, it is s(m - 1) for m >= 2: one more neuron is
    needed to do the same harm.

    Args:
        m: width, at least 1.
        quadrant: whether there are two inputs and inner weights of one sign in each
            coordinate.

    Raises:
        ValueError: a width below 1.

    Source: :eq:`drv-inverse_stability-sharp` and :eq:`drv-inverse_stability-quadrant`
    (derivations); the constant of Elbraechter, Berner and Grohs 2019 is 4.

    Examples:
        >>> [round(sharp_constant(m), 4) for m in (1, 2, 3, 4)]
        [2.0, 2.4142, 2.8284, 2.8284]
        >>> [round(sharp_constant(m, quadrant=True), 4) for m in (1, 2, 3, 4)]
        [2.0, 2.0, 2.4142, 2.8284]
    """
    least = max(m - 1, 1) if quadrant else m
    return (2.0, 1 + sqrt(2.0), SHARP)[min(least, 3) - 1]


def angle_constant(
    theta: Annotated[float, "0 < theta <= 1.5707963267948966"],
    norm: Annotated[str, ("h1", "l2")] = "h1",
    d: Annotated[int, "2 <= d <= 100"] = 2,
) -> float:
    r"""A constant of inverse stability for a norm that training sees.

    .. math:: \operatorname{dist}(f, g) \le k_d(\theta)\,\|f - g\|^{1/2}, \qquad
        k_{H^1} \sim \theta^{-(d - 1)/4}, \quad k_{L^2} \sim \theta^{-(d + 1)/4}

    over the unit ball, under the hypotheses of `certify`, when every kink of f - g
    contains a direction at an angle of theta or more to all others. In the plane
    :math:`k_{H^1} = 2\,(2/\theta)^{1/4}`, and both exponents are the best possible.

    Args:
        theta: the angle in radians, in (0, pi/2].
        norm: `h1` (2-norm of the gradient) or `l2`.
        d: number of inputs.

    Raises:
        ValueError: an angle or a dimension outside its interval, or another norm.

    Source: :eq:`drv-inverse_stability-cone` (derivations).

    Examples:
        >>> round(angle_constant(0.02), 4), round(angle_constant(0.02, "l2"), 2)
        (6.3246, 98.98)
        >>> round(angle_constant(np.pi / 2, "h1", 3), 4)  # two half-balls
        1.9771
    """
    from scipy.special import beta, betainc, gamma  # slow to import

    def sines(k: int) -> float:
        """The integral of sin^k from 0 to theta."""
        half = (k + 1) / 2
        return float(betainc(half, 0.5, np.sin(theta) ** 2) * beta(half, 0.5) / 2)

    area = 2 * np.pi ** ((d - 1) / 2) / gamma((d - 1) / 2)  # of a sphere in d - 1
    if norm == "h1":
        least = area * sines(d - 2) / (2 * d)
    else:
        mean = gamma((d - 1) / 2) / gamma(d / 2) / sqrt(np.pi)
        mixed, along = mean * np.sin(theta) ** d / d, sines(d - 2) - sines(d)
        rest = sines(d) / (d - 1) - (mixed**2 / along if along else 0.0)
        least = area * rest / (2 * (d + 2))
    return float(2 * least**-0.25) if least > 0 else float("inf")


def sampled_bound(
    df: np.ndarray, dg: np.ndarray, m: int, cell: Annotated[float, "0 < cell <= 1"]
) -> tuple[float, float]:
    r"""The bound from derivatives at random points alone, and its confidence.

    .. math:: \hat\delta = \max_{i \le n} \|Df(x_i) - Dg(x_i)\|, \qquad
        P\bigl(\operatorname{dist}(f, g) \le s(m)\,\hat\delta^{1/2}\bigr) \ge
        1 - (1 - p)^n

    The sample sees too little only if it misses all cells in which the derivative is
    largest. In the plane, for directions drawn uniformly and kinks of f - g at an angle
    of theta or more, p = theta / (2 pi). Nothing follows without such a p: a cell that
    is narrow enough escapes every sample.

    Args:
        df, dg: derivatives at the same n independent points, shape (n, D, d).
        m: width of both networks, which obey the hypotheses of `certify`.
        cell: p, a lower bound of the probability of every cell of f - g, in (0, 1].

    Returns:
        the bound of the distance of the parameters, and the confidence.

    Raises:
        ValueError: other shapes, NaN, or a probability outside (0, 1].

    Source: :eq:`drv-inverse_stability-samples` (derivations).

    Examples:
        >>> f, g = ShallowReLU([[1.0, 1.0]], [[1.0]]), ShallowReLU.zeros(1, 2)
        >>> x = np.random.default_rng(0).normal(size=(20, 2))
        >>> sampled_bound(f.jacobian(x), g.jacobian(x), 1, 0.5)
        (2.0, 0.9999990463256836)
    """
    df, dg = finite_array("df", df, 3), finite_array("dg", dg, 3)
    expect(df.shape == dg.shape, "df, dg", "equal shapes", (df.shape, dg.shape))
    seen = float(np.abs(df - dg).max())
    return sharp_constant(m) * sqrt(seen), float(1 - (1 - cell) ** len(df))


@dataclass(frozen=True)
class Certificate:
    """What is known about a pair of networks.

    Attributes:
        delta: W^{1,inf} distance of the functions, exact or bracketed.
        half_jump: half the largest jump of the difference, a lower bound of delta.
        distance: max-norm distance of the parameters up to permutation.
        ratio: distance over the square root of the best lower bound of delta.
        matched: hyperplane directions that both networks have.
        unmatched: directions of only one of them.
        smallest: mu, the smallest ‖a_i‖ of a non-zero neuron of either.
        defects: hypotheses of the theorem that fail (empty when it applies).
        bounds: what each theorem allows the distance to be: `jump`, `w1inf`; with all
            kinks matched `lipschitz`; without biases and with 2 to 100 inputs `h1` and
            `l2`; `samples`, which holds with probability `confidence`. Empty when
            hypotheses fail.
        confidence: of the bound from samples; None without them.
        delta_at_least: distance^2 / 8, what the theorem says of the functions.
        angle: every kink of f - g has a direction at this angle or more to all
            others (in the plane: the smallest angle between two kinks), pi/2 at most;
            None for one input and on a box.
        tolerance: directions closer than this were treated as equal.
    """

    delta: Seminorm
    half_jump: float
    distance: float
    ratio: float
    matched: int
    unmatched: int
    smallest: float
    defects: tuple[str, ...]
    bounds: dict[str, float]
    confidence: float | None
    delta_at_least: float
    angle: float | None
    tolerance: float

    @property
    def bound(self) -> float:
        """The smallest bound that holds for certain; infinite when none applies."""
        sure = [b for name, b in self.bounds.items() if name != "samples"]
        return min(sure, default=float("inf"))

    @property
    def applies(self) -> bool:
        """Whether the hypotheses of the theorem hold for this pair."""
        return not self.defects

    @property
    def holds(self) -> bool:
        """Whether the distance obeys the bound (up to rounding)."""
        return self.distance <= self.bound * (1 + 1e-9) + 1e-12


def certify(
    f: ShallowReLU | BiasedReLU,
    g: ShallowReLU | BiasedReLU,
    method: str = "auto",
    *,
    box: Box | None = None,
    samples: Annotated[ArrayLike | None, "n d"] = None,
    tol: float = TOLERANCE,
) -> Certificate:
    r"""Measure a pair in both spaces and apply every theorem of inverse stability.

    .. math:: \operatorname{dist}(f, g) \le \min\bigl(2\sqrt2\,\sqrt{\delta_J},\
        s(m)\,\sqrt{\delta},\ \kappa\,\delta_J / \mu,\
        k_{H^1}\|\nabla(f - g)\|^{1/2},\ k_{L^2}\|f - g\|^{1/2}\bigr), \qquad
        \delta \ge \operatorname{dist}(f, g)^2 / 8

    with :math:`\kappa = 1` for one output and 3 for several, the third only if
    :math:`\delta_J < \mu^2 / 2`, and :math:`k` of `angle_constant`. The hypotheses are
    checked, not assumed: both networks
    balanced, no parallel neurons, all inner weights of both in one open half-space.
    Networks with biases are compared on a box that each of their kinks must meet;
    differences of biases then count in units of the largest
    :math:`|b_i| / \|w_i\|`.

    Args:
        f, g: the networks; the narrower one is padded with zero neurons.
        method: how to compute delta without biases, see `w1inf_seminorm`.
        box: lower and upper corner, as for `seminorm_on_box`; for `BiasedReLU` only.
        samples: independent points whose directions are uniform, shape (n, d), for a
            bound that reads the functions there only; not with biases.
        tol: directions closer than this are equal, in [0, 1).

    Raises:
        TypeError: one network with biases and one without.
        ValueError: unequal dimensions, biases without a box or a box without biases,
            samples of another shape or with biases, or as `w1inf_seminorm` and
            `seminorm_on_box`.

    Cost: that of the semi-norm and one bottleneck assignment.

    Source: :eq:`drv-inverse_stability-sharp` (derivations), which sharpens the
    (4, 1/2) inverse stability of Elbraechter, Berner and Grohs 2019; on a box
    :eq:`drv-inverse_stability-box-bound`, from samples
    :eq:`drv-inverse_stability-sides`.

    Examples:
        >>> f = ShallowReLU([[1.0, 1.0, 1.0]], [[1.0]])
        >>> c = certify(f, ShallowReLU([[2.0, 2.0, 2.0]], [[2.0]]))
        >>> c.applies, c.distance, c.delta.value, c.half_jump, round(c.bound, 4)
        (True, 1.0, 3.0, 1.5, 3.4641)
        >>> {name: round(b, 2) for name, b in c.bounds.items()}
        {'jump': 3.46, 'w1inf': 3.46, 'h1': 5.42, 'l2': 6.17}
        >>> hat = BiasedReLU([[1.0], [2.0]], [0.5, -1.0], [[1.0, -2.0]])
        >>> moved = BiasedReLU([[1.0], [2.0]], [0.5, -0.5], [[1.0, -2.0]])
        >>> c = certify(hat, moved, box=(-1.0, 1.0))
        >>> c.applies, c.distance, round(c.bound, 4)
        (True, 1.0, 4.0)
    """
    confidence = angle = None
    if isinstance(f, BiasedReLU) and isinstance(g, BiasedReLU):
        if box is None:
            raise ValueError("box: expected two corners for networks with biases")
        expect(samples is None, "samples", "no samples with biases", "samples")
        f, g, delta, defects = _on_box(f, g, box)
        constant, bounds = SHARP, {}
    elif isinstance(f, BiasedReLU) or isinstance(g, BiasedReLU):
        raise TypeError("f, g: expected both with biases or both without")
    else:
        expect(box is None, "box", "no box without biases", box)
        same_architecture(f, g)
        delta, defects = (
            w1inf_seminorm(f - g, method, tol=tol),
            _half_space_defect(f, g),
        )
        constant = sharp_constant(max(f.m, g.m), f.d == 2 and _quadrant(f, g))
        k = kinks(f - g, tol)
        angle = _clearance(k) if f.d > 1 else None
        bounds = _by_norms(f - g, angle) if angle is not None and f.d <= 100 else {}
        if samples is not None:
            bounds["samples"], confidence = _by_samples(f, g, samples, len(k.on), angle)
    # Only directions that agree up to rounding give a jump that the function has.
    half_jump = kinks(f - g, min(tol, ROUNDING)).half_jump
    distance = closest_parametrization(f, g).distance
    matched, unmatched = _count_matches(f, g, tol)
    for name, net in (("f", f), ("g", g)):
        found = unbalanced(net, 1e-9) + parallel(net, tol)
        defects += [f"{name}: {defect}" for defect in found]
    low = max(delta.lower, half_jump)
    sure = {"jump": SHARP * sqrt(half_jump), "w1inf": constant * sqrt(delta.upper)}
    sizes = np.concatenate([np.abs(n.A).max(axis=1) for n in (f, g)])
    mu = float(sizes[sizes > 0].min(initial=np.inf))
    if half_jump < mu**2 / 2:  # every kink is matched
        sure["lipschitz"] = (1 if f.D == 1 else 3) * half_jump / mu
    return Certificate(
        delta=delta,
        half_jump=half_jump,
        distance=distance,
        ratio=distance / sqrt(low) if low > 0 else (np.inf if distance > 0 else 0.0),
        matched=matched,
        unmatched=unmatched,
        smallest=mu,
        defects=tuple(defects),
        bounds={} if defects else sure | bounds,
        confidence=confidence,
        delta_at_least=0.0 if defects else distance**2 / 8,
        angle=angle,
        tolerance=tol,
    )


Boxed = tuple[ShallowReLU, ShallowReLU, Seminorm, list[str]]


def _on_box(f: BiasedReLU, g: BiasedReLU, box: Box) -> Boxed:
    """As without biases, on (x, unit), with kinks that meet the box and other cells."""
    a, b = f.homogeneous(), g.homogeneous()
    same_architecture(a, b)
    both = np.vstack([f.W, g.W]), np.concatenate([f.b, g.b]), np.hstack([f.C, -g.C])
    found = _misses("f", f, box) + _misses("g", g, box)
    found += _half_space_defect(ShallowReLU(f.W, f.C), ShallowReLU(g.W, g.C))
    w, bias = np.abs(both[0]).max(axis=1), np.abs(both[1])
    # with this unit the bias is never the largest weight of its neuron
    unit = np.append(np.ones(f.W.shape[1]), (bias[w > 0] / w[w > 0]).max() or 1.0)
    a, b = ShallowReLU(a.A / unit, a.C), ShallowReLU(b.A / unit, b.C)
    return a, b, seminorm_on_box(BiasedReLU(*both), *box), found


def _by_norms(h: ShallowReLU, angle: float) -> dict[str, float]:
    norms = dict(zip(("h1", "l2"), disc_or_ball(h), strict=True))
    return {n: angle_constant(angle, n, h.d) * sqrt(v) for n, v in norms.items()}


def _by_samples(
    f: ShallowReLU, g: ShallowReLU, x: ArrayLike, kinks: int, angle: float | None
) -> tuple[float, float]:
    """A bound, and the probability that samples fall on both sides of each kink, in a
    half of the cone around a direction that is away from all others."""
    from scipy.special import betainc  # slow to import

    x = as_points(x, f.d)
    half_cone = 0.5
    if angle is not None:
        half_cone = betainc((f.d - 1) / 2, 0.5, np.sin(angle) ** 2) / 4
    seen = float(np.abs(f.jacobian(x) - g.jacobian(x)).max())
    sure = 1 - 2 * kinks * (1 - half_cone) ** len(x)
    return SHARP * sqrt(seen), float(max(0.0, sure))


def _misses(name: str, net: BiasedReLU, box: Box) -> list[str]:
    """Whether some neuron does not switch inside the box."""
    d = net.W.shape[1]
    below, above = (np.broadcast_to(np.asarray(c, float), (d,)) for c in box)
    middle = net.W @ ((below + above) / 2) + net.b
    reach = np.abs(net.W) @ ((above - below) / 2)
    live = net.W.any(axis=1) | (net.b != 0) | net.C.any(axis=0)
    outside = live & (np.abs(middle) >= reach)
    return [f"{name} has a kink that misses the box"] if outside.any() else []


def _quadrant(f: ShallowReLU, g: ShallowReLU) -> bool:
    rows = np.vstack([n.A[n.A.any(axis=1)] for n in (f, g)])
    return bool(((rows > 0).all(axis=0) | (rows < 0).all(axis=0)).all())


def _clearance(k: Kinks) -> float:
    """The smallest, over the kinks, of the largest angle found between a direction in
    one of them and all the others; pi/2 for a single kink. Exact in the plane."""
    normals = k.normals[k.jumps.any(axis=(1, 2))]
    x = np.random.default_rng(0).normal(size=(PROBES, k.normals.shape[1]))
    sine = 1.0
    for n, normal in enumerate(normals):
        y = unit_rows(x - (x @ normal)[:, None] * normal)
        away = np.abs(y @ np.delete(normals, n, axis=0).T)
        sine = min(sine, float(away.min(axis=1, initial=1.0).max()))
    return float(np.arcsin(sine))


def _count_matches(f: ShallowReLU, g: ShallowReLU, tol: float) -> tuple[int, int]:
    rows = [n.A[n.live] for n in (f, g)]
    labels, _ = parallel_classes(unit_rows(np.vstack(rows)), tol, opposite=True)
    mine, theirs = set(labels[: len(rows[0])]), set(labels[len(rows[0]) :])
    return len(mine & theirs), len(mine ^ theirs)


def _half_space_defect(f: ShallowReLU, g: ShallowReLU) -> list[str]:
    """Whether some v has <a_i, v> > 0 for all non-zero inner weights of both."""
    rows = unit_rows(np.vstack([f.A, g.A]))
    rows = rows[rows.any(axis=1)]
    if not len(rows) or (rows[:, -1] > 0).all():
        return []
    from scipy.optimize import nnls  # slow to import

    # There is none if and only if a convex combination of the rows is zero.
    hull = np.vstack([rows.T, np.ones(len(rows))])
    apart = nnls(hull, np.append(np.zeros(f.d), 1.0))[1] > 1e-9
    return [] if apart else ["f and g do not lie in one open half-space"]
