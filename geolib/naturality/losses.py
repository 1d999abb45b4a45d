r"""Losses on outputs, each with its Fisher metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from geolib.core import Categorical, Euclidean, OutputMetric
from geolib.core.validation import check_labels, class_labels, expect


@dataclass(frozen=True)
class Loss:
    r"""A loss on outputs together with its Fisher metric: :math:`(\ell, W)`.

    Attributes:
        value: from outputs (n, c) to a scalar.
        output_metric: the metric n W on outputs, with its connection.

    Source: :eq:`drv-naturality-problem` (derivations).
    """

    value: Callable[[Tensor], Tensor]
    output_metric: OutputMetric

    def __call__(self, z: Tensor) -> Tensor:
        return self.value(z)


def mse(y: Annotated[Tensor, "real n outputs"]) -> Loss:
    r"""Return the loss :math:`\frac{1}{2n}\sum_i |z_i - y_i|^2`, with :math:`W = I/n`.

    Args:
        y: targets, (n, c).

    Source: :eq:`drv-naturality-problem` (derivations).

    Raises:
        ValueError: targets that are no matrix, or not as the outputs are.

    Examples:
        >>> float(mse(torch.zeros(2, 1))(torch.ones(2, 1)))
        0.5
    """

    def value(z: Tensor) -> Tensor:
        wanted = f"the outputs' shape {tuple(z.shape)}"
        expect(z.shape == y.shape, "y", wanted, tuple(y.shape))
        _same_device(y, z)
        return 0.5 * ((z - y) ** 2).sum() / len(y)

    return Loss(value, Euclidean())


def cross_entropy(y: Annotated[Tensor, "n"], reference: bool = False) -> Loss:
    r"""Return the mean cross entropy of classes y, with the categorical Fisher metric.

    Args:
        y: (n,) integer classes.
        reference: outputs are c - 1 free logits; the last class has logit 0. Without
            it every sample adds a null direction to the metric.

    Raises:
        ValueError: classes of another shape or type, or beyond the outputs.

    Source: :eq:`drv-naturality-problem` (derivations).

    Examples:
        >>> loss = cross_entropy(torch.tensor([0, 1]))
        >>> round(float(loss(torch.zeros(2, 4)).exp()), 6)  # uniform over four classes
        4.0
    """
    y = class_labels(y, len(y))

    def value(z: Tensor) -> Tensor:
        z = pad(z, (0, 1)) if reference else z
        _same_device(y, z)
        return torch.nn.functional.cross_entropy(z, check_labels(z.shape[1], y, len(z)))

    return Loss(value, Categorical(reference=reference))


def _same_device(y: Tensor, z: Tensor) -> None:
    expect(y.device == z.device, "y", f"{z.device}, where the outputs are", y.device)
