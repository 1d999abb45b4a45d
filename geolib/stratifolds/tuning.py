"""Choosing step sizes on tuning starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from geolib.stratifolds.descent import Descent


def tune(
    run: Callable[..., Descent], grid: dict[str, Sequence[Any]]
) -> tuple[dict[str, Any], Descent]:
    """Choose settings on tuning starts: most hits, then fewest steps, then least loss.

    The last key matters: where nothing converges the first two tie, and a tuner
    without it would return the first entry of the grid.

    Args:
        run: settings as keywords -> `Descent` on the tuning starts.
        grid: values to try for each keyword.

    Returns:
        the best settings and their `Descent`.

    Raises:
        ValueError: an empty grid, or every setting diverged.

    Source: spec 2 and pitfall 5. Cost: one run for each point of the grid.
    """
    best: tuple[tuple[float, float, float], dict[str, Any], Descent] | None = None
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        try:
            d = run(**setting)
        except ValueError:
            continue  # diverged, or singular without damping: not a candidate
        steps = torch.where(d.success, d.hits, d.iterations).double().mean()
        key = (-d.rate(), float(steps), float(d.loss.mean()))
        if best is None or key < best[0]:
            best = key, setting, d
    if best is None:
        raise ValueError(f"grid: expected one setting that does not diverge: {grid}")
    return best[1], best[2]
