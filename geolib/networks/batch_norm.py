"""BatchNorm on a path: whose running statistics hold between two networks?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from geolib.core.validation import check_inputs, expect
from geolib.networks.rows import Rows

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BatchStatistics(nn.Module):
    r"""Normalise by the mean and variance of the inputs at hand, with no memory.

    .. math:: y = \gamma\,\frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
              + \beta

    What BatchNorm does in training, as a pure function of weights and inputs: running
    statistics belong to the networks at the ends of a path and to none between them.

    Source: Ioffe and Szegedy 2015, algorithm 1.

    Examples:
        >>> norm = BatchStatistics(nn.BatchNorm1d(2).double())
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).double()
        >>> bool(norm(x).mean(0).abs().max() < 1e-12)
        True
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        var, mean = torch.var_mean(x, axes, correction=0)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is None:
            return (x - mean.view(shape)) * scale.view(shape)
        scale = scale * self.weight  # two passes over x, not four
        return torch.addcmul(
            (self.bias - mean * scale).view(shape), x, scale.view(shape)
        )


def has_batch_norm(module: nn.Module) -> bool:
    """Whether some layer keeps running statistics.

    Examples:
        >>> has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        True
    """
    return any(isinstance(m, NORMS) for m in module.modules())


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy, also where a hook keeps a computed weight with its graph.

    Examples:
        >>> net = torch.nn.utils.spectral_norm(nn.Linear(2, 2))
        >>> copy_module(net).weight.requires_grad
        False
    """
    held = [t for m in module.modules() for t in vars(m).values()]
    graphs = [t for t in held if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(module, {id(t): t.detach().clone() for t in graphs})


def with_batch_statistics(module: nn.Module) -> nn.Module:
    """Return a copy whose BatchNorm layers use the statistics of the inputs at hand.

    Its parameters have the same names, shapes and order.

    Source: Ioffe and Szegedy 2015, algorithm 1.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        >>> [type(m).__name__ for m in with_batch_statistics(net)]
        ['Linear', 'BatchStatistics']
    """
    twin = copy_module(module)
    if isinstance(twin, NORMS):
        return BatchStatistics(twin)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NORMS):
                setattr(parent, name, BatchStatistics(child))
    return twin


@torch.no_grad()
def recalibrate(module: nn.Module, x: Tensor | Rows, batch: int = 512) -> nn.Module:
    """Re-estimate all running statistics on the inputs `x`, in place.

    Layer by layer: a batch normalised by its own statistics feeds the next layer, and
    each layer's statistics are the mean over the batches. Other layers stay in
    evaluation mode. Returns the module.

    Args:
        module: changed in place.
        x: inputs, shape (n, ...), or `Rows` of them.
        batch: inputs that are normalised together.

    Raises:
        ValueError: fewer than two inputs, or non-finite ones.

    Cost: one forward pass over `x`.

    Source: Izmailov et al. 2018, section 3.2 (statistics of averaged weights).

    Examples:
        >>> net = nn.BatchNorm1d(1).eval()
        >>> _ = recalibrate(net, torch.tensor([[1.0], [3.0]]))
        >>> net.running_mean.item()
        2.0
    """
    if isinstance(x, Tensor):
        check_inputs(x)
    expect(len(x) >= 2, "x", "at least two inputs", len(x))
    norms = [m for m in module.modules() if isinstance(m, NORMS)]
    momenta = [m.momentum for m in norms]
    was_training = module.training
    module.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain average over the batches
        m.train()
    for rows in torch.arange(len(x)).tensor_split(max(1, len(x) // batch)):
        module(x[rows[0] : rows[-1] + 1])
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.eval()
    module.train(was_training)
    return module
