"""The chapter's experiments: searches that attack the constants.

`search_extremal`, `search_lipschitz` and `search_in_space` look for pairs that break the
constants of the second and the fourth notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np

from geolib.files import expect
from geolib.inverse_stability import ShallowReLU

Rng = np.random.Generator
SMALLEST_GAP = 1e-4  # delta over mu^2 below which rounding would blur the ratio


def random_pair(
    rng: np.random.Generator, m: int, d: int = 2, D: int = 1, shared: bool = False
) -> tuple[ShallowReLU, ShallowReLU]:
    """Two random networks of the half-space class, balanced and without parallels.

    Neuron sizes are log-uniform in [0.1, 10], directions have a positive last entry.
    With `shared` about half of the directions of the second net are copied from the
    first; without that the matched branch of the theorem is never exercised.

    Args:
        rng: source of randomness.
        m, d, D: architecture, all at least 1.
        shared: whether to copy directions.

    Raises:
        ValueError: an architecture with no neurons, inputs or outputs.

    Source: :eq:`drv-inverse_stability-restricted` (derivations); the draw is
        this book's.

    Examples:
        >>> f, g = random_pair(np.random.default_rng(0), 3)
        >>> f.A.shape, bool((f.A[:, -1] > 0).all())
        ((3, 2), True)
    """
    expect(min(m, d, D) >= 1, "m, d, D", "positive numbers", (m, d, D))
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
    return ShallowReLU(A, C / np.abs(C).max(axis=0) * t.T).balance()


def perturbed(net: ShallowReLU, rng: Rng, amount: float) -> ShallowReLU:
    """The same directions, sizes and outer weights times 1 + amount N(0, 1), balanced."""
    A = net.A * (1 + amount * rng.normal(size=(net.m, 1)))
    return ShallowReLU(A, net.C * (1 + amount * rng.normal(size=net.C.shape))).balance()


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Ratios of all restarts after the search, and the pair that won.

    Attributes:
        ratios: final ratio of each restart, shape (restarts,).
        start: ratio of each restart before the search.
        f, g: the pair with the largest ratio.
    """

    ratios: np.ndarray
    start: np.ndarray
    f: ShallowReLU
    g: ShallowReLU

    @property
    def best(self) -> float:
        """The largest ratio found."""
        return float(self.ratios.max())


@dataclass(frozen=True, eq=False)
class _Pairs:
    """A batch of n pairs of balanced planar networks of width m with D outputs.

    Neuron i of network k of a pair has the inner weights t (±1, e^slope) / max(1,
    e^slope) and the outer ones t w with largest entry |w| = 1. Axes: pair, network,
    neuron.

    Attributes:
        size: log t, shape (n, 2, m).
        slope: log of the second inner weight over the first, shape (n, 2, m).
        first: sign of the first inner weight, shape (n, 2, m).
        outer: w, shape (n, 2, m, D).
    """

    size: np.ndarray
    slope: np.ndarray
    first: np.ndarray
    outer: np.ndarray

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Inner weights (2, m, 2, n) and outer weights (2, m, D, n).

        The pairs come last: reductions over neurons then run along whole batches.
        """
        steep, t = np.exp(self.slope), np.exp(self.size)
        rows = np.stack([self.first, steep], axis=-1)
        inner = rows * (t / np.maximum(1.0, steep))[..., None]
        both = np.moveaxis(inner, 0, -1), np.moveaxis(self.outer * t[..., None], 0, -1)
        return np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1])

    def replaced(self, better: np.ndarray, trial: _Pairs) -> _Pairs:
        """The trial's pairs where they are better."""
        both = zip(vars(trial).values(), vars(self).values(), strict=True)
        return _Pairs(
            *(np.where(better.reshape(-1, *[1] * (t.ndim - 1)), t, s) for t, s in both)
        )

    def share(self, shared: int) -> _Pairs:
        """Copy the directions of the first neurons to the second network."""
        slope, first = self.slope.copy(), self.first.copy()
        slope[:, 1, :shared] = slope[:, 0, :shared]
        first[:, 1, :shared] = first[:, 0, :shared]
        return _Pairs(self.size, slope, first, self.outer)

    def networks(self, n: int) -> tuple[ShallowReLU, ShallowReLU]:
        """The two networks of pair n."""
        A, C = self.weights()
        f, g = (ShallowReLU(a[..., n], c[..., n].T) for a, c in zip(A, C, strict=True))
        return f, g


def search_extremal(
    m: int,
    restarts: int = 400,
    steps: int = 2000,
    seed: int = 0,
    norm: str = "w1inf",
    quadrant: bool = False,
    D: int = 1,
) -> SearchResult:
    r"""A (1+1) evolution strategy for the constant of inverse stability in the plane.

    .. math:: \max\ \operatorname{dist}(\Gamma, \Theta) \Big/
        \sqrt{|R(\Gamma) - R(\Theta)|_{W^{1,\infty}}}

    over balanced pairs of width m with inner weights in the upper half-plane, or in the
    open quadrant. Other norms than W^{1,inf} count with their constants, so that the
    ratio is at most one: `h1` and `l2` with that of the smallest angle, and `interval`
    for networks with biases on (-1, 1) and the constant of the sharp theorem.
    Restart r shares r mod (m + 1) directions between both networks, since
    shared kinks have probability zero otherwise. Sizes, slopes and signs mutate; step
    lengths follow the one-fifth rule; all restarts advance together.

    Args:
        m: width, 1 to 4 (all m! matchings are tried).
        restarts: number of independent searches, at least 1.
        steps: mutations of each.
        seed: of the NumPy generator.
        norm: `w1inf`, `h1`, `l2` or `interval`; in `h1` and `l2` over the unit disc.
        quadrant: whether all inner weights are positive.
        D: outputs, at least 1.

    Returns:
        a `SearchResult`: ratios before and after, and the best pair.

    Raises:
        ValueError: a width above 4, no restarts or outputs, or another norm.

    Cost: O(restarts steps m! m). The semi-norm is exact: partial sums of the jumps in
    the order of the kinks' angles.

    Source: :eq:`drv-inverse_stability-sharp` (derivations) is what it attacks; the
    semi-norm in the plane: :eq:`drv-inverse_stability-partial-sums`.

    Examples:
        >>> search_extremal(1, restarts=20, steps=200).best <= 2 + 1e-12
        True
    """
    expect(1 <= m <= 4, "m", "a width from 1 to 4", m)
    expect(restarts >= 1, "restarts", "a positive number", restarts)
    expect(norm in RATIOS, "norm", f"one of {tuple(RATIOS)}", norm)
    expect(D >= 1, "D", "a positive number of outputs", D)
    rng = np.random.default_rng(seed)
    parts = []
    for shared in range(m + 1):
        n = len(range(shared, restarts, m + 1))
        if n:
            ratio = partial(RATIOS[norm], shared)
            start = _random_start(rng, n, m, shared, D, quadrant)
            mutate = _with_flips(shared, quadrant)
            parts.append(_climb(rng, start, mutate, ratio, steps))
    return _best_of(parts)


def search_lipschitz(
    D: int = 2, restarts: int = 100, steps: int = 1000, seed: int = 0
) -> SearchResult:
    r"""A (1+1) evolution strategy for the Lipschitz constant away from zero.

    .. math:: \max\ \frac{\mu\, \operatorname{dist}(\Gamma, \Theta)}{\delta}, \qquad
        10^{-4} \mu^2 \le \delta = |R(\Gamma) - R(\Theta)|_{W^{1,\infty}} < \mu^2 / 2

    over balanced planar pairs of three neurons each, all kinks matched. Half of the
    restarts begin at random, the other half near the pair that attains 3 in the limit.

    Args:
        D: outputs, at least 1.
        restarts: number of independent searches, at least 1.
        steps: mutations of each.
        seed: of the NumPy generator.

    Returns:
        a `SearchResult`: ratios before and after, and the best pair.

    Raises:
        ValueError: no outputs or no restarts.

    Cost: O(restarts steps D).

    Source: :eq:`drv-inverse_stability-lipschitz` (derivations) is what it attacks.

    Examples:
        >>> search_lipschitz(1, restarts=20, steps=200).best <= 1 + 1e-9
        True
    """
    expect(D >= 1, "D", "a positive number of outputs", D)
    expect(restarts >= 1, "restarts", "a positive number", restarts)
    rng = np.random.default_rng(seed)
    start = _matched_start(rng, restarts, D)
    return _best_of([_climb(rng, start, _matched_step, _ratio_to_gap, steps)])


_Part = tuple[np.ndarray, np.ndarray, _Pairs]


def _best_of(parts: list[_Part]) -> SearchResult:
    top = max(parts, key=lambda p: p[0].max())
    pair = top[2].networks(int(top[0].argmax()))
    ratios, start = (np.concatenate([p[k] for p in parts]) for k in (0, 1))
    return SearchResult(ratios, start, *pair)


def _climb(
    rng: Rng,
    now: _Pairs,
    mutate: Callable[[Rng, _Pairs, np.ndarray], _Pairs],
    ratio: Callable[[_Pairs], np.ndarray],
    steps: int,
) -> _Part:
    """Keep a mutant where its ratio is not smaller; lengthen steps that succeed."""
    value = start = ratio(now)
    sigma = np.full((len(value), 1, 1), 0.5)
    for _ in range(steps):
        trial = mutate(rng, now, sigma)
        score = ratio(trial)
        better = score >= value
        value = np.where(better, score, value)
        now = now.replaced(better, trial)
        sigma = np.clip(sigma * np.where(better[:, None, None], 1.5, 0.9), 1e-7, 1.0)
    return value, start, now


def _random_start(
    rng: Rng, n: int, m: int, shared: int, D: int, quadrant: bool
) -> _Pairs:
    shape = (n, 2, m)
    size, slope = rng.normal(size=shape), 2 * rng.normal(size=shape)
    first, outer = (rng.choice([-1.0, 1.0], size=shape) for _ in "ab")
    # Shared neurons start large and nearly equal, so that their jumps are moderate.
    size[:, 0, :shared] += 1.0
    size[:, 1, :shared] = size[:, 0, :shared] + 0.1 * rng.normal(size=(n, shared))
    outer = outer[..., None]
    if D > 1:
        outer = outer * rng.uniform(-1, 1, size=(*shape, D))
    outer[:, 1, :shared] = outer[:, 0, :shared]
    first = np.ones(shape) if quadrant else first
    return _normalized(_Pairs(size, slope, first, outer)).share(shared)


def _with_flips(
    shared: int, quadrant: bool
) -> Callable[[Rng, _Pairs, np.ndarray], _Pairs]:
    def mutate(rng: Rng, now: _Pairs, sigma: np.ndarray) -> _Pairs:
        shape, D = now.size.shape, now.outer.shape[3]
        flip = np.where(rng.random((2, *shape)) < 0.15 / shape[2], -1.0, 1.0)
        mask = rng.random(shape) < 0.5
        size, slope = rng.normal(size=(2, *shape))
        outer = now.outer * flip[1][..., None]
        if D > 1:
            some = rng.random(outer.shape) < 0.3
            outer = outer + sigma[..., None] * some * rng.normal(size=outer.shape)
        moved = _Pairs(
            now.size + sigma * size * mask,
            np.clip(now.slope + 2 * sigma * slope * mask, -9, 9),
            now.first if quadrant else now.first * flip[0],
            outer,
        )
        return _normalized(moved).share(shared)

    return mutate


def _matched_start(rng: Rng, n: int, D: int) -> _Pairs:
    """Random nearly equal pairs; every second one near the pair of the derivation."""
    m, near = 3, np.arange(n) % 2 == 1
    size, slope = (np.repeat(rng.normal(size=(n, 1, m)), 2, axis=1) for _ in "ab")
    first = np.repeat(rng.choice([-1.0, 1.0], size=(n, 1, m)), 2, axis=1)
    outer = np.repeat(rng.normal(size=(n, 1, m, D)), 2, axis=1)
    size[:, 1] += 0.02 * rng.normal(size=(n, m))
    outer[:, 1] += 0.02 * rng.normal(size=(n, m, D))
    d = 10.0 ** rng.uniform(-3, -0.5, size=near.sum())
    big, middle = np.log([4 - d, 1 + 2 * d]) / 2
    size[near] = np.log([2.0, 1.0, 2.0])
    size[near, 1] = np.stack([big, middle, big], axis=1)
    slope[near], first[near] = np.log([0.49, 0.5, 0.51]), 1.0
    outer[near] = 1.0
    outer[near, 0, 1, 1:] = -1.0
    outer[near, 1, 1, 1:] = ((2 * d - 1) / (1 + 2 * d))[:, None]
    return _normalized(_Pairs(size, slope, first, outer))


def _matched_step(rng: Rng, now: _Pairs, sigma: np.ndarray) -> _Pairs:
    """Move both networks alike, and the second by a hundredth of that on its own."""
    (n, _, m), D = now.size.shape, now.outer.shape[3]
    mask = rng.random((n, 2, m)) < 0.5
    scale = sigma * mask * np.array([1.0, 0.01])[:, None]
    size = np.cumsum(scale * rng.normal(size=(n, 2, m)), axis=1)
    outer = np.cumsum(scale[..., None] * rng.normal(size=(n, 2, m, D)), axis=1)
    turn = 2 * sigma * mask[:, :1] * rng.normal(size=(n, 1, m))
    slope = np.clip(now.slope + turn, -9, 9)
    return _normalized(_Pairs(now.size + size, slope, now.first, now.outer + outer))


def _normalized(p: _Pairs) -> _Pairs:
    outer = p.outer / np.abs(p.outer).max(axis=3, keepdims=True)
    return _Pairs(p.size, p.slope, p.first, outer)


def _ratio_to_root(shared: int, p: _Pairs) -> np.ndarray:
    A, C = p.weights()
    return _distance(A, C) / np.sqrt(_seminorm(A, C, shared))


def _ratio_to_angle(norm: str, shared: int, p: _Pairs) -> np.ndarray:
    """dist / (k(theta) norm^(1/2)); zero below an angle that rounding would blur."""
    A, C = p.weights()
    theta, square = _planar(A, C, shared, norm)
    seen = np.clip(theta, 1e-2, np.pi / 2)
    least = seen / 2
    if norm == "l2":
        least = (seen**2 - np.sin(seen) ** 2) / (2 * seen + np.sin(2 * seen)) / 4
    bound = 2 * (square / least) ** 0.25
    return np.where(theta >= 1e-2, _distance(A, C) / bound, 0.0)


def _planar(
    A: np.ndarray, C: np.ndarray, shared: int, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest angle of two kinks, and the squared norm of the difference, by sectors."""
    angle, on = _partial_sums(A, C, shared)
    width = np.diff(angle, axis=0, append=angle[:1] + np.pi)
    start = np.concatenate([angle, angle + np.pi]) - np.pi / 2
    w = np.concatenate([width, width])
    gradient = np.concatenate(
        [on, on[-1:] - on]
    )  # the last sector holds all, then none
    if norm == "h1":
        return width.min(axis=0), (w * (gradient**2).sum(axis=(1, 2))).sum(axis=0) / 2
    middle = start + w / 2
    along = np.stack([np.cos(middle), np.sin(middle)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    u, v = (
        ((gradient * e[:, None]).sum(axis=2) ** 2).sum(axis=1) for e in (along, across)
    )
    mass = (w + np.sin(w)) * u + (w - np.sin(w)) * v
    return width.min(axis=0), mass.sum(axis=0) / 8


def _ratio_on_interval(shared: int, p: _Pairs) -> np.ndarray:
    """Biases ±e^slope of neurons with w = t > 0, over the constant of the theorem."""
    place = p.first * np.exp(np.minimum(p.slope, -1e-6))
    t = np.exp(p.size)
    rows = np.ascontiguousarray(np.moveaxis(np.stack([t, t * place], -1), 0, -1))
    C = np.ascontiguousarray(np.moveaxis(p.outer * t[..., None], 0, -1))
    f, g = C[..., None, :] * rows[:, :, None, :1]
    jumps = np.concatenate([f[:shared] - g[:shared], f[shared:], -g[shared:]])
    at = np.moveaxis(-place, 0, -1)
    order = np.argsort(np.concatenate([at[0], at[1, shared:]]), axis=0)
    sums = np.cumsum(np.take_along_axis(jumps, order[:, None, None], axis=0), axis=0)
    rows[:, :, 1] /= np.abs(place).max(axis=(1, 2))
    return _distance(rows, C) / np.sqrt(8 * np.abs(sums).max(axis=(0, 1, 2)))


RATIOS: dict[str, Callable[[int, _Pairs], np.ndarray]] = {
    "w1inf": _ratio_to_root,
    "h1": partial(_ratio_to_angle, "h1"),
    "l2": partial(_ratio_to_angle, "l2"),
    "interval": _ratio_on_interval,
}


def _ratio_to_gap(p: _Pairs) -> np.ndarray:
    """dist mu / delta, and minus one outside the regime of the theorem."""
    A, C = p.weights()
    mu, delta = np.exp(p.size).min(axis=(1, 2)), _seminorm(A, C, p.size.shape[2])
    inside = (delta >= SMALLEST_GAP * mu**2) & (delta < mu**2 / 2)
    return np.where(inside, _distance(A, C) * mu / np.where(inside, delta, 1.0), -1.0)


def _seminorm(A: np.ndarray, C: np.ndarray, shared: int) -> np.ndarray:
    """W^{1,inf} distance: partial sums of the jumps in the order of their angles."""
    _, on = _partial_sums(A, C, shared)
    return np.maximum(np.abs(on), np.abs(on[-1] - on)).max(axis=(0, 1, 2))


def _partial_sums(
    A: np.ndarray, C: np.ndarray, shared: int
) -> tuple[np.ndarray, np.ndarray]:
    """Angles of all normals in order, and the sums of the jumps up to each."""
    f, g = C[:, :, :, None] * A[:, :, None]
    jumps = np.concatenate([f[:shared] - g[:shared], f[shared:], -g[shared:]])
    rows = np.concatenate([A[0], A[1, shared:]])
    angle = np.arctan2(rows[:, 1], rows[:, 0])
    order = np.argsort(angle, axis=0)
    on = np.cumsum(np.take_along_axis(jumps, order[:, None, None], axis=0), axis=0)
    return np.take_along_axis(angle, order, axis=0), on


def _distance(A: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Max-norm distance of the two networks of each pair over all permutations."""
    f, g = np.concatenate([A, C], axis=2)
    cost = np.abs(f[:, None] - g).max(axis=2)
    orders = np.array(list(permutations(range(len(f)))))
    return cost[np.arange(len(f)), orders].max(axis=1).min(axis=0)


def search_in_space(
    m: int, norm: str = "h1", restarts: int = 100, steps: int = 1000, seed: int = 0
) -> SearchResult:
    r"""The same strategy against the constants of `h1` and `l2` for three inputs.

    .. math:: \max\ \operatorname{dist}(\Gamma, \Theta) \Big/
        \bigl(k_3(\theta)\,\|R(\Gamma) - R(\Theta)\|^{1/2}\bigr)

    over pairs of width m with one output and inner weights in the upper half-space.
    Norms and constants are computed from closed forms of their own, and the angle on a
    grid of directions in each kink.

    Args:
        m: width, 1 to 4.
        norm: `h1` or `l2`, over the unit ball.
        restarts: number of independent searches, at least 1.
        steps: mutations of each.
        seed: of the NumPy generator.

    Raises:
        ValueError: a width above 4, no restarts, or another norm.

    Source: :eq:`drv-inverse_stability-cone` (derivations) is what it attacks.

    Examples:
        >>> search_in_space(1, restarts=10, steps=50).best <= 1
        True
    """
    expect(1 <= m <= 4, "m", "a width from 1 to 4", m)
    expect(restarts >= 1, "restarts", "a positive number", restarts)
    expect(norm in ("h1", "l2"), "norm", "h1 or l2", norm)
    rng, parts = np.random.default_rng(seed), []
    for shared in range(m + 1):
        n = len(range(shared, restarts, m + 1))
        if n:
            # log size, two inner weights, log of the third, and what gives c its sign
            now = rng.normal(size=(n, 2, m, 5))
            now[:, 1, :shared, 1:] = now[:, 0, :shared, 1:]
            parts.append(_climb_in_space(rng, now, shared, norm, steps))
    top = max(parts, key=lambda p: p[0].max())
    A, C = _in_space(top[2][top[0].argmax()][None])
    f, g = (ShallowReLU(a[..., 0], c[..., 0].T) for a, c in zip(A, C, strict=True))
    return SearchResult(*(np.concatenate([p[k] for p in parts]) for k in (0, 1)), f, g)


def _climb_in_space(
    rng: Rng, now: np.ndarray, shared: int, norm: str, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value = start = _ratio_in_space(now, shared, norm)
    sigma = np.full((len(now), 1, 1, 1), 0.5)
    for _ in range(steps):
        mask = rng.random(now.shape) < 0.4
        trial = now + sigma * mask * rng.normal(size=now.shape)
        trial[..., 4] *= np.where(
            rng.random(now.shape[:3]) < 0.15 / now.shape[2], -1, 1
        )
        trial[:, 1, :shared, 1:4] = trial[:, 0, :shared, 1:4]
        score = _ratio_in_space(trial, shared, norm)
        better = (score >= value)[:, None, None, None]
        now, value = np.where(better, trial, now), np.maximum(score, value)
        sigma = np.clip(sigma * np.where(better, 1.5, 0.9), 1e-7, 1.0)
    return value, start, now


def _in_space(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner weights (2, m, 3, n) and outer weights (2, m, 1, n)."""
    rows = np.concatenate([p[..., 1:3], np.exp(p[..., 3:4])], axis=-1)
    t = np.exp(p[..., :1])
    inner = rows * t / np.abs(rows).max(axis=-1, keepdims=True)
    both = inner, np.where(p[..., 4:] < 0, -t, t)
    return np.moveaxis(both[0], 0, -1), np.moveaxis(both[1], 0, -1)


def _ratio_in_space(p: np.ndarray, shared: int, norm: str) -> np.ndarray:
    """dist / (k(theta) norm^(1/2)); zero below an angle that rounding would blur."""
    A, C = _in_space(p)
    rows = np.moveaxis(np.concatenate([A[0], A[1]]), -1, 0)
    size = np.linalg.norm(rows, axis=2)
    u = rows / size[..., None]
    outer = np.concatenate([C[0, :, 0], -C[1, :, 0]]).T * size
    cosine = np.clip(np.einsum("nid,njd->nij", u, u), -1, 1)
    turn = np.arccos(cosine)
    both = (np.pi - turn) * cosine
    kernel = both if norm == "h1" else (both + np.sin(turn)) / 5
    square = np.einsum("ni,nij,nj->n", outer, kernel, outer) * 2 / 3
    # as many kinks as neurons, but for shared ones
    kinks = np.delete(u, np.arange(shared), axis=1) if shared else u
    aside = np.cross(kinks, kinks[:, :, [1, 2, 0]])
    aside /= np.linalg.norm(aside, axis=2, keepdims=True)
    turns = (np.arange(64) + 0.5) * np.pi / 64
    y = (
        np.cos(turns)[:, None] * aside[:, :, None]
        + np.sin(turns)[:, None] * np.cross(kinks, aside)[:, :, None]
    )
    away = np.abs(np.einsum("nktd,nld->nktl", y, kinks))
    away[:, np.arange(kinks.shape[1]), :, np.arange(kinks.shape[1])] = 1.0
    sine = away.min(axis=3).max(axis=2).min(axis=1)
    theta = np.arcsin(np.clip(sine, 1e-2, 1.0))
    c, first = np.cos(theta), 1 - np.cos(theta)
    third = 2 / 3 - c + c**3 / 3
    mixed = 4 / np.pi**2 * np.sin(theta) ** 6 / (9 * (first - third))
    least = first * np.pi / 3 if norm == "h1" else np.pi / 5 * (third / 2 - mixed)
    safe = (square > 1e-9 * (outer**2).sum(axis=1)) & (sine >= 1e-2)
    bound = 2 * (np.maximum(square, 1e-300) / least) ** 0.25
    return np.where(safe, _distance(A, C) / bound, 0.0)
