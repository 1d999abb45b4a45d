"""How fast a neuron of any direction can lower a loss, at most: branch and bound."""

from __future__ import annotations

import numpy as np

BOXES, CHUNK, CLOSE = (
    20_000,
    512,
    1e-3,
)  # in all, at once; relative width that is enough


def largest_slope(x: np.ndarray, g: np.ndarray, enough: float = 0.0) -> float:
    r"""An upper bound of the slope in all directions of the cube.

    .. math:: \max_{\|u\|_\infty \le 1} \Bigl|\sum_i g_i\,\varrho(\langle u, x_i\rangle)\Bigr|

    Boxes of directions are cut in two until none of them exceeds `enough` or the best
    value seen by more than a thousandth, or there are too many.

    Args:
        x: inputs, shape (n, d).
        g: derivatives of the loss by the outputs, shape (n,).
        enough: a slope below which no distinction is needed.

    Cost: at most 20,000 boxes for each sign, O(n d) each.

    Source: :eq:`drv-inverse_stability-dual-bound` (derivations).
    """
    return max(_covered(x, g, enough), _covered(x, -g, enough))


def _covered(x: np.ndarray, g: np.ndarray, enough: float) -> float:
    """For one sign; the slope grows with the length of u, so that faces are enough."""
    centre = np.concatenate([np.eye(x.shape[1]), -np.eye(x.shape[1])])
    radius = 1 - np.abs(centre)
    bound, value, spread = _bounds(x, g, centre, radius)
    best, seen = max(enough, value), len(bound)
    while True:
        part = np.argsort(-bound)[:CHUNK]
        part = part[bound[part] > best * (1 + CLOSE)]
        if not len(part) or seen >= BOXES:
            return max(float(bound.max()), 0.0)
        half = np.zeros((len(part), x.shape[1]))
        widest = spread[part].argmax(axis=1)[:, None]
        np.put_along_axis(
            half, widest, np.take_along_axis(radius[part], widest, 1) / 2, 1
        )
        new = np.concatenate([centre[part] + half, centre[part] - half])
        size = np.tile(radius[part] - half, (2, 1))
        found = _bounds(x, g, new, size)
        best, seen = max(best, found[1]), seen + len(new)
        bound[part] = -np.inf  # their halves count instead
        keep = np.isfinite(bound)
        centre, radius = np.vstack([centre[keep], new]), np.vstack([radius[keep], size])
        bound = np.concatenate([bound[keep], found[0]])
        spread = np.vstack([spread[keep], found[2]])


def _bounds(
    x: np.ndarray, g: np.ndarray, centre: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Upper bounds on boxes, the best value at a centre, and what each side hides."""
    z, width = centre @ x.T, radius @ np.abs(x).T
    low, high = z - width, z + width
    bends = (low < 0) & (high > 0)
    # Between low and high, s z <= rho(z) <= s (z - low) for this slope s.
    s = np.where(bends, high / np.where(bends, high - low, 1.0), low >= 0)
    v = (s * g) @ x
    rest = (bends * np.maximum(g, 0) * s * -low).sum(axis=1)
    bound = (v * centre).sum(axis=1) + (np.abs(v) * radius).sum(axis=1) + rest
    value = float((np.maximum(z, 0) @ g).max())
    return bound, value, (bends * np.abs(g)) @ np.abs(x) * radius
