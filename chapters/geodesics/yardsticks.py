"""What the pages of this chapter measure beside paths: calibration, noise, densities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geolib.core import Realization
from geolib.core.validation import check_inputs, check_labels, expect


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    r"""Return the expected calibration error: mean gap of confidence and accuracy.

    .. math:: \sum_b \frac{n_b}{n}\,\big|\,\overline{\max_c p_c} - \text{accuracy}\,\big|_b

    over bins b of equal width of the confidence :math:`\max_c p_c`.

    Args:
        logits: shape (n, c).
        labels: classes, shape (n,).
        bins: how many.

    Raises:
        ValueError: logits that are not finite, labels that do not fit them.

    Source: Guo et al. 2017, equation 3.

    Examples:
        >>> sure = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
        >>> round(calibration_error(sure, torch.tensor([0, 1])), 3)
        0.5
    """
    check_inputs(logits, "logits")
    expect(bins >= 1, "bins", "at least one", bins)
    labels = check_labels(logits.shape[1], labels, len(logits))
    confidence, guess = torch.softmax(logits, -1).max(-1)
    which = (confidence * bins).long().clamp_max(bins - 1)
    # n_b times the gap of a bin is a sum over its inputs
    gaps = confidence - (guess == labels).to(confidence)
    sums = confidence.new_zeros(bins).index_add_(0, which, gaps)
    return (sums.abs().sum() / len(labels)).item()


def noise_like(x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Draw Gaussian inputs with the mean and scale of each coordinate of `x`.

    The metric needs inputs but no labels; where no data may be kept, noise will do.

    Args:
        x: inputs, shape (n, ...).
        count: how many to draw.
        seed: of the draw.

    Raises:
        ValueError: fewer than one sample asked for, or non-finite inputs.

    Source: definition, a normal law with independent coordinates.

    Examples:
        >>> noise_like(torch.zeros(5, 2), 3).shape
        torch.Size([3, 2])
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    check_inputs(x)
    draw = np.random.default_rng(seed).standard_normal((count, *x.shape[1:]))
    noise = torch.from_numpy(draw).to(x)
    return x.mean(0) + x.std(0, correction=0) * noise


def density(R: Realization, mask: Tensor) -> dict[str, float]:
    """Return the share of weights kept in each matrix, by name.

    Args:
        R: the network as a function of its weights.
        mask: which weights are kept, shape (p,).

    Source: definition, the mean of the mask over each matrix.

    Examples:
        >>> R = Realization(torch.nn.Linear(2, 1))
        >>> density(R, torch.tensor([True, False, True]))
        {'weight': 0.5}
    """
    parts = mask.to(torch.float64).split(R.sizes)
    return {
        name: part.mean().item()
        for name, part, shape in zip(R.names, parts, R.shapes, strict=True)
        if len(shape) >= 2
    }
