"""The path lifting: products of weights along all paths of a small network."""

from __future__ import annotations

from math import prod

import numpy as np
from torch import nn

from geolib.core.validation import expect
from geolib.networks.sequential import read_stages, to_numpy, weight_blocks

MAX_PATHS = 5_000_000


def path_lifting(module: nn.Module) -> np.ndarray:
    r"""All products of weights along paths from an input or a bias to an output.

    .. math:: \Phi(\theta)_p = \prod_{e \in p} \theta_e

    Permutations of hidden channels permute its entries, positive rescalings leave it
    as it is. For a shallow network without biases it is the vector of c_i a_i^T.

    Args:
        module: `nn.Sequential` of Linear and ReLU, beginning and ending with Linear.

    Raises:
        TypeError: a layer of another kind.
        ValueError: more than five million paths.

    Cost: the number of paths, exponential in depth: a reference for small networks.

    Source: Gonon et al. 2024; :eq:`drv-inverse_stability-path` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> for p, value in zip(net.parameters(), (2.0, 5.0, -3.0, 7.0)):
        ...     _ = p.data.fill_(value)
        >>> path_lifting(net)  # from the input, the hidden bias, the output bias
        array([ -6., -15.,   7.])
    """
    head, stages = read_stages(module)
    layers = [*head, *(t for s in stages for t in (s.linear, s.norm, *s.tail))]
    odd = {type(t).__name__ for t in layers} - {"Linear", "ReLU", "NoneType"}
    if odd:
        raise TypeError(f"module: expected Linear and ReLU only, got {min(odd)}")
    if head or stages[-1].tail:
        raise TypeError("module: expected Linear first and last, got ReLU")
    W = [w[:, :, 0] for w in weight_blocks(stages)]
    count = prod([W[0].shape[1] + 1, *(len(w) for w in W)])
    if count > MAX_PATHS:
        raise ValueError(f"module: {count} paths are more than {MAX_PATHS}")
    # tails[j]: products along all paths from unit j of the present layer to an output.
    tails = np.ones((len(W[-1]), 1))
    found: list[np.ndarray] = []
    for w, stage in zip(reversed(W), reversed(stages), strict=True):
        if stage.linear.bias is not None:
            found.append(to_numpy(stage.linear.bias)[:, None] * tails)
        tails = (w.T[:, :, None] * tails[None]).reshape(w.shape[1], -1)
    return np.concatenate([t.ravel() for t in (tails, *reversed(found))])


def path_metric(module_a: nn.Module, module_b: nn.Module) -> float:
    r"""The l1 distance of the path liftings.

    .. math:: \|\Phi(\theta) - \Phi(\theta')\|_1 \ \ge\
        \sup_{\|x\|_\infty \le 1} \|R(\theta)(x) - R(\theta')(x)\|_\infty

    for two networks of one architecture whose weights have equal signs.

    Args:
        module_a: the first network, as for `path_lifting`.
        module_b: the second, of the same architecture.

    Raises:
        TypeError: as `path_lifting`.
        ValueError: different architectures; otherwise as `path_lifting`.

    Cost: as `path_lifting`.

    Source: Gonon et al. 2024; :eq:`drv-inverse_stability-path-bound` (derivations).

    Examples:
        >>> nets = [nn.Sequential(nn.Linear(1, 1, bias=False)) for _ in range(2)]
        >>> for net, w in zip(nets, (2.0, 5.0)):
        ...     _ = net[0].weight.data.fill_(w)
        >>> path_metric(*nets)
        3.0
    """
    a, b = path_lifting(module_a), path_lifting(module_b)
    expect(a.size == b.size, "module_a, module_b", "as many paths", (a.size, b.size))
    return float(np.abs(a - b).sum())
