r"""Losses on outputs, each with core's metric on outputs and that metric's connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from geolib.core import Bernoulli, Categorical, Euclidean, OutputMetric

Christoffel = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OutputGeometry:
    r"""A metric on outputs, averaged over the samples, with its Levi-Civita connection.

    .. math:: \langle a, b\rangle_z = \tfrac1n \sum_i a_i^T M_i(z) b_i .

    Attributes:
        name: for tables.
        metric: core's rule that gives outputs z (n, c) their matrices M.
        christoffel: (z, a, b) to the Christoffel symbol of the first kind of M,
            contracted with a and b, (n, c). None: M is constant.
            Metrics that are Hessians of a potential (all exponential families in
            natural parameters) have it totally symmetric, which is assumed.
    """

    name: str
    metric: OutputMetric
    christoffel: Christoffel | None = None

    def blocks(self, z: Tensor) -> Tensor:
        r"""The matrices :math:`W_i = M_i / n`, (n, c, c)."""
        return self.metric.at(z, slice(0, len(z))).dense(z.shape[1]) / len(z)


def _softmax_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # Half the third cumulant of the one-hot label, contracted with a and b.
    pi = torch.softmax(z, dim=1)
    a = a - (pi * a).sum(1, keepdim=True)
    b = b - (pi * b).sum(1, keepdim=True)
    ab = a * b
    return 0.5 * pi * (ab - (pi * ab).sum(1, keepdim=True))


def _reference_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # The last class has logit 0, and no component of a tangent.
    z, a, b = (pad(t, (0, 1)) for t in (z, a, b))
    return _softmax_third(z, a, b)[:, :-1]


def _bernoulli_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return 0.5 * s * (1 - s) * (1 - 2 * s) * a * b


METRICS = {
    g.name: g
    for g in (
        OutputGeometry("mse", Euclidean()),
        OutputGeometry("softmax", Categorical(), _softmax_third),
        OutputGeometry("softmax-ref", Categorical(reference=True), _reference_third),
        OutputGeometry("bernoulli", Bernoulli(), _bernoulli_third),
    )
}


def output_geometry(metric: str | OutputGeometry) -> OutputGeometry:
    """The geometry by name, or the one given.

    Raises:
        ValueError: an unknown name, or something else.
    """
    if isinstance(metric, OutputGeometry):
        return metric
    if metric not in METRICS:
        raise ValueError(
            f"metric: expected one of {sorted(METRICS)} or an OutputGeometry, got "
            f"{metric!r}"
        )
    return METRICS[metric]


@dataclass(frozen=True)
class Loss:
    r"""A loss on outputs together with its Fisher metric: :math:`(\ell, W)`.

    Attributes:
        value: from outputs (n, c) to a scalar.
        geometry: the metric W on outputs, and its connection.

    Source: :eq:`drv-naturality-problem` (derivations).
    """

    value: Callable[[Tensor], Tensor]
    geometry: OutputGeometry

    def __call__(self, z: Tensor) -> Tensor:
        return self.value(z)


def mse(y: Tensor) -> Loss:
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
    if y.ndim != 2:
        raise ValueError(f"y: expected shape (n, outputs), got {tuple(y.shape)}")

    def value(z: Tensor) -> Tensor:
        if z.shape != y.shape:
            raise ValueError(
                f"y: expected the outputs' shape {tuple(z.shape)}, got {tuple(y.shape)}"
            )
        _same_device(y, z)
        return 0.5 * ((z - y) ** 2).sum() / len(y)

    return Loss(value, METRICS["mse"])


def cross_entropy(y: Tensor, reference: bool = False) -> Loss:
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
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"y: expected (n,) integer classes, got {tuple(y.shape)} of {y.dtype}"
        )
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, -1)

    def value(z: Tensor) -> Tensor:
        z = pad(z, (0, 1)) if reference else z
        if len(z) != len(y):
            raise ValueError(f"y: expected {len(z)} classes, got {len(y)}")
        _same_device(y, z)
        if low < 0 or high >= z.shape[1]:
            raise ValueError(
                f"y: expected classes 0 to {z.shape[1] - 1}, got {low} to {high}"
            )
        return torch.nn.functional.cross_entropy(z, y)

    return Loss(value, METRICS["softmax-ref" if reference else "softmax"])


def _same_device(y: Tensor, z: Tensor) -> None:
    if y.device != z.device:
        raise ValueError(f"y: on {y.device}, but the outputs are on {z.device}")
