"""Random changes of gauge: other weights, the same function."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from geolib.inverse_stability.shallow_relu import expect
from geolib.networks.sequential import read_stages
from geolib.networks.weight_matching import permute_channels


@torch.no_grad()
def random_gauge(
    module: nn.Module, seed: int = 0, decades: float = 2.0
) -> nn.Sequential:
    r"""Permute and positively rescale all hidden channels at random.

    .. math:: W_l \mapsto S_l P_l W_l P_{l-1}^T S_{l-1}^{-1}, \qquad
        \log_{10} s \sim U(-\text{decades}, \text{decades})

    Where a batch normalization follows, its gain and shift are rescaled instead.

    Args:
        module: as for `canonicalize`; it is not changed.
        seed: of the NumPy generator.
        decades: spread of the scales, at least 0; 0 permutes only.

    Raises:
        TypeError: as `canonicalize`.
        ValueError: as `canonicalize`; batch norm without affine weights; a negative
            spread.

    Source: :eq:`drv-inverse_stability-gauge` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
        >>> x = torch.ones(1, 2).double()
        >>> torch.allclose(net(x), random_gauge(net.eval())(x))
        True
    """
    expect(0 <= decades < np.inf, "decades", "a number >= 0", decades)
    module = deepcopy(module)
    _, stages = read_stages(module)
    rng = np.random.default_rng(seed)
    hidden = stages[:-1]
    permute_channels(stages, [rng.permutation(s.width) for s in hidden])
    for stage, after in zip(hidden, stages[1:], strict=True):
        weight = stage.linear.weight
        draws = 10 ** rng.uniform(-decades, decades, stage.width)
        s = torch.as_tensor(draws).to(weight.device, weight.dtype)
        own = [weight, stage.linear.bias]
        if stage.norm is not None:
            own = [stage.norm.weight, stage.norm.bias]
            expect(stage.norm.affine, "module", "batch norm with gain", stage.name)
        for tensor in own:
            if tensor is not None:
                tensor *= s.view(-1, *[1] * (tensor.ndim - 1))
        columns = after.linear.weight
        blocks = columns.reshape(columns.shape[0], stage.width, -1)
        columns.copy_((blocks / s[None, :, None]).reshape(columns.shape))
    return module  # type: ignore[return-value]
