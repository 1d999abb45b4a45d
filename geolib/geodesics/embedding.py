"""Output spaces: where the outputs of a network are compared."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from geolib.core import Categorical, Euclidean, OutputMetric
from geolib.core.output_metrics import LocalMetric, RootMetric
from geolib.core.validation import expect

SPACES = ("raw", "logit", "prob", "sphere")


def embed(
    outputs: Annotated[Tensor, "... c"], space: Annotated[str, SPACES] = "sphere"
) -> Tensor:
    r"""Map network outputs to the space whose Euclidean distance is the metric.

    .. math:: \Phi(z) = z, \quad z - \bar z, \quad \mathrm{softmax}(z), \quad
              2\,e^{\frac12 \log\mathrm{softmax}(z)}

    for `raw`, `logit`, `prob` and `sphere`. The last lies on a sphere of radius 2 and
    pulls back to the Fisher information; `logit` forgets what softmax ignores.

    Args:
        outputs: shape (..., c).
        space: one of `SPACES`.

    Raises:
        ValueError: an unknown space, or classes asked for where there is one output.

    Source: Amari and Nagaoka 2000, section 2.5; :eq:`drv-geodesics-sphere`
        (derivations).

    Examples:
        >>> z = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        >>> round(embed(z, "sphere").norm().item(), 12)
        2.0
    """
    several = space not in SPACES[1:] or outputs.shape[-1] > 1
    expect(several, "space", "'raw' where outputs are one number, no classes", space)
    if space == "sphere":
        return Categorical(dim=-1).embedding(outputs)
    if space == "logit":
        return outputs - outputs.mean(-1, keepdim=True)
    if space == "prob":
        return torch.softmax(outputs, -1)
    return outputs


class EmbeddedOutputs(OutputMetric):
    r"""The metric that any map of the outputs pulls back from a Euclidean space.

    .. math:: M_i = D\phi_i(z_i)^T D\phi_i(z_i)

    Args:
        phi: maps one output (c,) and the extras of its sample to a vector (k,).
        extras: further arguments of `phi`, a row for each sample.

    Source: :eq:`drv-geodesics-pullback` (derivations).

    Examples:
        >>> M = EmbeddedOutputs(lambda z: 2 * z).at(torch.zeros(1, 2), slice(0, 1))
        >>> M.dense(2)[0].tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """

    def __init__(self, phi: Callable[..., Tensor], *extras: Tensor) -> None:
        self.phi, self.extras = phi, extras

    def embedding(self, z: Tensor) -> Tensor:
        """The points of all outputs, shape (n, k)."""
        return torch.vmap(self.phi)(z, *self.extras)

    def at(self, z: Tensor, samples: slice) -> LocalMetric:
        """The roots of M_i are the transposed slopes of phi."""
        extras = [e[samples] for e in self.extras]
        return RootMetric(z, torch.vmap(torch.func.jacrev(self.phi))(z, *extras).mT)


def output_metric(space: str) -> OutputMetric:
    """The metric of an output space: core's own where it has one.

    Examples:
        >>> output_metric("sphere"), output_metric("raw")
        (Categorical(), Euclidean())
    """
    own = {"sphere": Categorical(), "raw": Euclidean()}
    return own.get(space, EmbeddedOutputs(lambda z: embed(z, space)))


def drift_gradient(
    phi: Callable[[Tensor], Tensor], z: Tensor, target: Tensor
) -> Tensor:
    r"""The covector :math:`D\phi^T(\phi(z) - \text{target})` on the outputs, (n, c).

    Examples:
        >>> z = torch.ones(1, 2)
        >>> drift_gradient(lambda z: 2 * z, z, torch.zeros(1, 2)).tolist()
        [[4.0, 4.0]]
    """
    z = z.detach().requires_grad_(True)
    with torch.enable_grad():
        half = (phi(z) - target).square().sum() / 2
        return torch.autograd.grad(half, z)[0]
