"""Evolutionary search for pairs of planar networks with a large stability ratio."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from geolib.inverse_stability.net import ShallowReLU


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
    """A batch of pairs: log sizes and slopes, inner and outer signs, (n, 2, m) each."""

    size: np.ndarray
    slope: np.ndarray
    first: np.ndarray
    outer: np.ndarray

    def inner(self) -> np.ndarray:
        """Inner weights (n, 2, m, 2); the last coordinate is positive."""
        steep = np.exp(self.slope)
        rows = np.stack([self.first, steep], axis=-1)
        t = np.exp(self.size) / np.maximum(1.0, steep)
        return rows * t[..., None]


def search_extremal(
    m: int, restarts: int = 400, steps: int = 2000, seed: int = 0
) -> SearchResult:
    r"""A (1+1) evolution strategy for the constant of inverse stability in the plane.

    .. math:: \max\ \operatorname{dist}(\Gamma, \Theta) \Big/
        \sqrt{|R(\Gamma) - R(\Theta)|_{W^{1,\infty}}}

    over balanced pairs of width m with inner weights in the upper half-plane and one
    output. Restart r shares r mod (m + 1) directions between both networks, since
    shared kinks have probability zero otherwise. Sizes, slopes and signs mutate; step
    lengths follow the one-fifth rule; all restarts advance together.

    Args:
        m: width, 1 to 4 (all m! matchings are tried).
        restarts: independent searches.
        steps: mutations of each.
        seed: of the NumPy generator.

    Cost: O(restarts steps m! m). The semi-norm is exact: partial sums of the jumps in
    the order of the kinks' angles.

    Source: own derivation (spec, E2).

    Examples:
        >>> search_extremal(1, restarts=20, steps=200).best <= 2 + 1e-12
        True
    """
    if not 1 <= m <= 4:
        raise ValueError(f"m: expected a width from 1 to 4, got {m}")
    rng = np.random.default_rng(seed)
    parts = []
    for shared in range(m + 1):
        n = len(range(shared, restarts, m + 1))
        if n:
            parts.append(_evolve(rng, m, shared, n, steps))
    ratios = np.concatenate([p[0] for p in parts])
    start = np.concatenate([p[1] for p in parts])
    top = max(parts, key=lambda p: p[0].max())
    best = int(top[0].argmax())
    A, C = top[2].inner()[best], (top[2].outer * np.exp(top[2].size))[best]
    f, g = (ShallowReLU(A[i], C[i][None, :]) for i in (0, 1))
    return SearchResult(ratios, start, f, g)


def _evolve(
    rng: np.random.Generator, m: int, shared: int, n: int, steps: int
) -> tuple[np.ndarray, np.ndarray, _Pairs]:
    shape = (n, 2, m)
    now = _Pairs(
        rng.normal(size=shape),
        2 * rng.normal(size=shape),
        rng.choice([-1.0, 1.0], size=shape),
        rng.choice([-1.0, 1.0], size=shape),
    )
    now = _share(now, shared)
    # Shared neurons start large and nearly equal, so that their jumps are moderate.
    now.size[:, 0, :shared] += 1.0
    now.size[:, 1, :shared] = now.size[:, 0, :shared] + 0.1 * rng.normal(
        size=(n, shared)
    )
    now.outer[:, 1, :shared] = now.outer[:, 0, :shared]
    value = _ratio(now, shared)
    start, sigma = value, np.full((n, 1, 1), 0.5)
    for _ in range(steps):
        flip = np.where(rng.random((2, *shape)) < 0.15 / m, -1.0, 1.0)
        mask = rng.random((n, 2, m)) < 0.5
        trial = _Pairs(
            now.size + sigma * rng.normal(size=shape) * mask,
            np.clip(now.slope + 2 * sigma * rng.normal(size=shape) * mask, -9, 9),
            now.first * flip[0],
            now.outer * flip[1],
        )
        trial = _share(trial, shared)
        score = _ratio(trial, shared)
        better = score >= value
        value = np.where(better, score, value)
        pick = better[:, None, None]
        now = _Pairs(
            *(
                np.where(pick, getattr(trial, k), getattr(now, k))
                for k in ("size", "slope", "first", "outer")
            )
        )
        sigma = np.clip(sigma * np.where(pick, 1.5, 0.9), 1e-7, 1.0)
    return value, start, now


def _share(p: _Pairs, shared: int) -> _Pairs:
    """Copy the directions of the first neurons to the second network."""
    slope, first = p.slope.copy(), p.first.copy()
    slope[:, 1, :shared] = slope[:, 0, :shared]
    first[:, 1, :shared] = first[:, 0, :shared]
    return _Pairs(p.size, slope, first, p.outer)


def _ratio(p: _Pairs, shared: int) -> np.ndarray:
    A, t = p.inner(), np.exp(p.size)
    C = p.outer * t
    J = C[..., None] * A
    J[:, 1] *= -1
    kinks = np.concatenate(
        [J[:, 0, :shared] + J[:, 1, :shared], J[:, 0, shared:], J[:, 1, shared:]],
        axis=1,
    )
    rows = np.concatenate([A[:, 0], A[:, 1, shared:]], axis=1)
    order = np.argsort(np.arctan2(rows[..., 1], rows[..., 0]), axis=1)
    on = np.cumsum(np.take_along_axis(kinks, order[..., None], axis=1), axis=1)
    delta = np.maximum(np.abs(on), np.abs(on[:, -1:] - on)).max(axis=(1, 2))
    cost = np.maximum(
        np.abs(A[:, 0, :, None] - A[:, 1, None, :]).max(axis=-1),
        np.abs(C[:, 0, :, None] - C[:, 1, None, :]),
    )
    m = A.shape[2]
    worst = [
        cost[:, np.arange(m), list(perm)].max(axis=1) for perm in permutations(range(m))
    ]
    return np.min(worst, axis=0) / np.sqrt(delta)
