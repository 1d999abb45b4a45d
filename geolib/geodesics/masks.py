"""Which weights a sparse network keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.core import Realization


def check_level(level: float) -> None:
    """Refuse a share of zeros outside [0, 1).

    Examples:
        >>> check_level(1.0)
        Traceback (most recent call last):
        ...
        ValueError: level: expected a share of zeros in [0, 1), got 1.0
    """
    number = isinstance(level, (int, float)) and not isinstance(level, bool)
    if not number or not 0 <= level < 1:
        raise ValueError(f"level: expected a share of zeros in [0, 1), got {level!r}")


def matrices(R: Realization) -> Tensor:
    """Which entries of the weight vector belong to matrices and filters, shape (p,).

    Biases and BatchNorm's scales are never pruned and not counted.

    Examples:
        >>> matrices(Realization(torch.nn.Linear(2, 1))).tolist()
        [True, True, False]
    """
    layout = zip(R.sizes, R.shapes, strict=True)
    flags = [torch.full((n,), len(s) >= 2) for n, s in layout]
    return torch.cat(flags).to(R.theta0.device)


def magnitude_mask(
    w: Tensor, prunable: Tensor, level: float, score: Tensor | None = None
) -> Tensor:
    r"""Keep the largest weights: drop the `round(level * n)` smallest of all layers.

    Args:
        w: weights, shape (p,).
        prunable: which of them may be dropped, shape (p,).
        level: share of the prunable weights to drop.
        score: what counts as small; the absolute value by default.

    Returns:
        True where a weight is kept, shape (p,).

    Raises:
        ValueError: a level outside [0, 1).

    Source: Han et al. 2015, section 3 (magnitude pruning).

    Examples:
        >>> w = torch.tensor([3.0, -1.0, 2.0, 0.5])
        >>> magnitude_mask(w, torch.tensor([True, True, True, False]), 0.34).tolist()
        [True, False, True, True]
    """
    check_level(level)
    where = torch.nonzero(prunable)[:, 0]
    count = round(level * len(where))
    keep = torch.ones_like(prunable)
    if count:
        size = (w.abs() if score is None else score)[where]
        keep[where[torch.topk(size, count, largest=False).indices]] = False
    return keep


def cubic_level(level: float, step: int, steps: int, warm: float = 0.7) -> float:
    r"""Level at a step: :math:`p\,(1 - (1 - \min(1, t/(wT)))^3)`, full at wT.

    Source: Zhu and Gupta 2017, equation 1.

    Examples:
        >>> cubic_level(0.9, 7, 10)
        0.9
    """
    return level * (1 - (1 - min(1.0, step / (warm * steps))) ** 3)


def density(R: Realization, keep: Tensor) -> dict[str, float]:
    """Share of weights kept in each matrix, by name.

    Examples:
        >>> R = Realization(torch.nn.Linear(2, 1))
        >>> density(R, torch.tensor([True, False, True]))
        {'weight': 0.5}
    """
    parts = keep.to(torch.float64).split(R.sizes)
    return {
        name: part.mean().item()
        for name, part, shape in zip(R.names, parts, R.shapes, strict=True)
        if len(shape) >= 2
    }
