"""Which weights a sparse network keeps."""

from typing import Annotated

import torch
from torch import Tensor

from geolib.core import Realization

WARM = 0.7  # share of the steps after which no more weights are dropped


def matrices(R: Realization) -> Tensor:
    """Which entries of the weight vector belong to matrices and filters, shape (p,).

    Biases and BatchNorm's scales are never pruned and not counted.

    Source: a definition; the tables of the chapter count sparsity over these entries.

    Examples:
        >>> matrices(Realization(torch.nn.Linear(2, 1))).tolist()
        [True, True, False]
    """
    layout = zip(R.sizes, R.shapes, strict=True)
    flags = [torch.full((n,), len(s) >= 2) for n, s in layout]
    return torch.cat(flags).to(R.theta0.device)


def magnitude_mask(
    w: Annotated[Tensor, "p"],
    prunable: Annotated[Tensor, "p"],
    sparsity: float,
    score: Annotated[Tensor | None, "p"] = None,
) -> Tensor:
    r"""Keep the largest weights: drop the `round(sparsity * n)` smallest of all layers.

    Args:
        w: weights, shape (p,).
        prunable: which of them may be dropped, shape (p,).
        sparsity: share of the prunable weights to drop.
        score: what counts as small; the absolute value by default.

    Returns:
        True where a weight is kept, shape (p,).

    Raises:
        ValueError: a sparsity outside [0, 1).

    Source: Han et al. 2015, section 3 (magnitude pruning).

    Examples:
        >>> w = torch.tensor([3.0, -1.0, 2.0, 0.5])
        >>> magnitude_mask(w, torch.tensor([True, True, True, False]), 0.34).tolist()
        [True, False, True, True]
    """
    where = torch.nonzero(prunable)[:, 0]
    count = round(sparsity * len(where))
    size = (w.abs() if score is None else score)[where]
    size = size.masked_fill(w[where] == 0, -torch.inf)  # what is gone goes first
    few = 2 * count < len(where)  # look for the fewer of those that go and that stay
    found = torch.topk(size, count if few else len(where) - count, largest=not few)
    keep = torch.ones_like(prunable)
    keep[where] = few
    keep[where[found.indices]] = not few
    return keep


def layer_adaptive(R: Realization, score: Tensor) -> Tensor:
    r"""Scores that compare between layers: each over all that are not smaller in its own.

    .. math:: s_i \mapsto s_i \Big/ \sum_{s_j \ge s_i} s_j

    Cost: one sort of each matrix.

    Source: Lee et al. 2021, equation 4 (there of squared weights).

    Examples:
        >>> R = Realization(torch.nn.Linear(3, 1, bias=False))
        >>> layer_adaptive(R, torch.tensor([1.0, 4.0, 3.0])).tolist()
        [0.125, 1.0, 0.4285...]
    """
    parts = []
    for part in score.split(R.sizes):
        alive = part.nonzero()[:, 0]  # what is zero stays zero
        values, order = part[alive].sort(descending=True)
        share = values / values.cumsum(0).clamp_min(1e-30)
        parts.append(torch.zeros_like(part).scatter_(0, alive[order], share))
    return torch.cat(parts)


def cubic_sparsity(sparsity: float, step: int, steps: int) -> float:
    r"""Sparsity at a step: :math:`p\,(1 - (1 - \min(1, t/(wT)))^3)`, full at wT, w = 0.7.

    Source: Zhu and Gupta 2017, equation 1.

    Examples:
        >>> cubic_sparsity(0.9, 7, 10)
        0.9
    """
    return sparsity * (1 - (1 - min(1.0, step / (WARM * steps))) ** 3)
