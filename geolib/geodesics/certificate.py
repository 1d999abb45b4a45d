"""How far the function can have moved anywhere on a path, also between samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.geodesics.checks import check_positive
from geolib.geodesics.path import Path
from geolib.geodesics.space import FunctionSpace

# Lipschitz constants of activations; GELU's is max |Phi(x) + x phi(x)|
LIPSCHITZ: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
    nn.LeakyReLU: 1.0,
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Dropout: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.GELU: 1.1290,
}
# of the embeddings in the logits: diag(p) - p p^T has no eigenvalue above 1/2
OUTPUT_LIPSCHITZ = {"raw": 1.0, "logit": 1.0, "prob": 0.5, "sphere": math.sqrt(0.5)}


@dataclass(frozen=True)
class Certificate:
    """The largest change of the function along a path.

    Attributes:
        sampled: largest distance from the start among the sampled times.
        bound: no time on the path is farther than this from the start.
        rigorous: True if `bound` is proved; False if it rests on the speeds that were
            sampled, times a safety factor.
        grid: how many times were sampled in the end.
    """

    sampled: float
    bound: float
    rigorous: bool
    grid: int


@torch.no_grad()
def certify(
    space: FunctionSpace,
    path: Path,
    *,
    slack: float = 0.1,
    grid: int = 65,
    limit: int = 4097,
) -> Certificate:
    r"""Bound the change of the function on the whole path.

    .. math:: \max_t |\Phi(W(t)) - \Phi(W(0))| \le
              \max_i \tfrac12 \Big(|\Phi_i - \Phi_0| + |\Phi_{i+1} - \Phi_0|
              + \Delta\, \sup_{[t_i, t_{i+1}]} |\tfrac{d}{dt}\Phi|\Big)

    For a `Sequential` of linear layers and activations the supremum is *proved* by
    pushing norm bounds on layer outputs and on their rates through the network. The
    grid is doubled until the bound is within `slack` of the sampled value or `limit`
    is reached. Other modules get an estimate: twice the largest sampled speed.

    Args:
        slack: how far above the sampled value the bound may lie, in units of Phi.

    Raises:
        ValueError: a slack that is not positive, or fewer than two times.

    Cost: `grid` forward passes over all inputs.

    Source: own derivation.

    Examples:
        >>> from geolib.geodesics import mlp, function_space
        >>> net = mlp([2, 4, 3])
        >>> S = function_space(net, torch.eye(2).double())
        >>> w = S.realization.theta0
        >>> c = certify(S, Path(w, 1.1 * w))
        >>> c.rigorous, c.sampled <= c.bound <= c.sampled + 0.1
        (True, True)
    """
    check_positive(slack=slack)
    if grid < 2:
        raise ValueError(f"grid: expected at least 2 times, got {grid}")
    layers = _provable(space)
    while True:
        t = path.times(grid)
        phi = torch.cat([space(path(s)) for s in t.split(1)])
        gone = (phi - phi[0]).norm(dim=1)
        delta = 1 / (grid - 1)
        if layers is None:
            speed = phi.diff(dim=0).norm(dim=1) / delta
            rate = 2 * speed  # an estimate: a curve can be faster between samples
        else:
            rate = _rates(space, path, t, layers)
        # two cones of that slope, one from each end, meet at their common height
        reach = (gone[1:] + gone[:-1] + rate * delta) / 2
        bound, sampled = reach.max().item(), gone.max().item()
        if layers is None or bound - sampled <= slack or 2 * grid - 1 > limit:
            return Certificate(sampled, bound, layers is not None, grid)
        grid = 2 * grid - 1


def _provable(space: FunctionSpace) -> list[nn.Module] | None:
    """The layers, if norm bounds can be pushed through every one of them."""
    module = space.realization.module
    if not isinstance(module, nn.Sequential):
        return None
    layers = list(module)
    known = (*LIPSCHITZ, nn.Linear)
    frozen = [p for p in module.parameters() if not p.requires_grad]
    if frozen or any(type(m) not in known for m in layers):
        return None
    return layers


def _rates(space, path: Path, t: Tensor, layers: list[nn.Module]) -> Tensor:
    r"""Bound on :math:`|d\Phi/dt|` on each interval, root mean square over inputs.

    On an interval of half width r around its middle, with W(t) = W_m + O(r):
    |h| <= |h_m| + r D and D' <= Lip (|W'| H + |W| D + |b'|), layer by layer.
    """
    R = space.realization
    mid, r = (t[1:] + t[:-1]) / 2, 1 / (2 * (len(t) - 1))
    result = []
    for s in mid.split(1):  # one network at a time
        w, rate = path(s)[0], _velocity_bound(path, s, r)[0]
        params, speeds = list(R.unflatten(w).values()), list(R.unflatten(rate).values())
        h = space.x.flatten(1)
        H, D = h.norm(dim=1), torch.zeros(len(h)).to(h)
        k = 0
        for layer in layers:
            if not isinstance(layer, nn.Linear):
                h, D = layer(h.flatten(1)), LIPSCHITZ[type(layer)] * D
                H = h.norm(dim=1) + r * D
                continue
            W, V = params[k], speeds[k]
            top = torch.linalg.matrix_norm(W, 2) + r * V.norm()
            D = V.norm() * H + top * D
            h = h @ W.T
            k += 1
            if layer.bias is not None:
                h, D = h + params[k], D + speeds[k].norm()
                k += 1
            H = h.norm(dim=1) + r * D
        result.append(D.square().mean().sqrt())
    return OUTPUT_LIPSCHITZ[space.space] * torch.stack(result)


def _velocity_bound(path: Path, mid: Tensor, r: float) -> Tensor:
    """Entrywise bound on |W'(t)| within r of each middle time, shape (k, p)."""
    if path.basis is None or path.control is None:
        return (path.b - path.a).abs().expand(len(mid), -1)
    spread = path.basis.slope_change(mid, r)
    return path.velocity(mid).abs() + spread @ path.control.abs()
