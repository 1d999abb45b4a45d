r"""Losses on outputs, and the metric each of them puts on output space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputGeometry:
    r"""A Riemannian (possibly degenerate) metric on outputs, sample by sample.

    .. math:: \langle a, b\rangle_z = \sum_i a_i^T W_i(z) b_i .

    Attributes:
        blocks: z (n, c) to the matrices :math:`W_i`, (n, c, c).
        christoffel: (z, a, b) to :math:`[ab, k]`, the Christoffel symbol of the first
            kind contracted with a and b, (n, c). None: W is constant.
            Metrics that are Hessians of a potential (all exponential families in
            natural parameters) have it totally symmetric, which is assumed.
    """

    name: str
    blocks: Callable[[Tensor], Tensor]
    christoffel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


def _euclidean(z: Tensor) -> Tensor:
    n, c = z.shape
    return torch.eye(c, dtype=z.dtype, device=z.device).expand(n, c, c) / n


def _pad(z: Tensor) -> Tensor:
    """A reference class with logit (or tangent component) 0 appended."""
    return torch.cat([z, z.new_zeros(z.shape[0], 1)], dim=1)


def _softmax_blocks(z: Tensor) -> Tensor:
    pi = torch.softmax(z, dim=1)
    return (torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]) / len(z)


def _softmax_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # Half the third cumulant of the one-hot label, contracted with a and b.
    pi = torch.softmax(z, dim=1)
    a = a - (pi * a).sum(1, keepdim=True)
    b = b - (pi * b).sum(1, keepdim=True)
    ab = a * b
    return 0.5 * pi * (ab - (pi * ab).sum(1, keepdim=True)) / len(z)


def _reference_blocks(z: Tensor) -> Tensor:
    return _softmax_blocks(_pad(z))[:, :-1, :-1]


def _reference_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _softmax_third(_pad(z), _pad(a), _pad(b))[:, :-1]


def _bernoulli_blocks(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return torch.diag_embed(s * (1 - s)) / len(z)


def _bernoulli_third(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return 0.5 * s * (1 - s) * (1 - 2 * s) * a * b / len(z)


METRICS = {
    "mse": OutputGeometry("mse", _euclidean),
    "softmax": OutputGeometry("softmax", _softmax_blocks, _softmax_third),
    "softmax-ref": OutputGeometry("softmax-ref", _reference_blocks, _reference_third),
    "bernoulli": OutputGeometry("bernoulli", _bernoulli_blocks, _bernoulli_third),
}


def output_geometry(metric: str | OutputGeometry) -> OutputGeometry:
    """The geometry by name, or the one given.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(metric, OutputGeometry):
        return metric
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {sorted(METRICS)}, got {metric!r}")
    return METRICS[metric]


@dataclass(frozen=True)
class Loss:
    r"""A loss on outputs together with its Fisher metric: :math:`(\ell, W)`."""

    value: Callable[[Tensor], Tensor]
    geometry: OutputGeometry

    def __call__(self, z: Tensor) -> Tensor:
        return self.value(z)


def mse(y: Tensor) -> Loss:
    r"""The loss :math:`\frac{1}{2n}\sum_i |z_i - y_i|^2`, with :math:`W = I/n`.

    Examples:
        >>> float(mse(torch.zeros(2, 1))(torch.ones(2, 1)))
        0.5
    """
    if y.ndim != 2:
        raise ValueError(f"y: expected shape (n, outputs), got {tuple(y.shape)}")
    return Loss(lambda z: 0.5 * ((z - y) ** 2).sum() / len(y), METRICS["mse"])


def cross_entropy(y: Tensor, reference: bool = False) -> Loss:
    r"""Mean cross entropy of classes y, with the categorical Fisher metric.

    Args:
        y: (n,) integer classes.
        reference: outputs are c - 1 free logits; the last class has logit 0. Without
            it every sample adds a null direction to the metric.
    """
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"y: expected (n,) integer classes, got {tuple(y.shape)} of {y.dtype}"
        )

    def value(z: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(_pad(z) if reference else z, y)

    return Loss(value, METRICS["softmax-ref" if reference else "softmax"])
