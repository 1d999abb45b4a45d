"""How far the function can have moved anywhere on a path, also between samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.geodesics.function_space import FunctionSpace
from geolib.geodesics.path import (
    Basis,
    BezierBasis,
    LegendreBasis,
    SineBasis,
    WeightPath,
)
from geolib.networks.sequential import named_layers

# Lipschitz constants of activations; GELU's is max |Phi(x) + x phi(x)|
LIPSCHITZ: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
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
class PathCertificate:
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
def certify_path(
    space: FunctionSpace,
    path: WeightPath,
    *,
    slack: float = 0.1,
    grid: int = 65,
    limit: int = 4097,
) -> PathCertificate:
    r"""Bound the change of the function on the whole path.

    .. math:: \max_t |\Phi(W(t)) - \Phi(W(0))| \le
              \max_i \tfrac12 \Big(|\Phi_i - \Phi_0| + |\Phi_{i+1} - \Phi_0|
              + \Delta\, \sup_{[t_i, t_{i+1}]} |\tfrac{d}{dt}\Phi|\Big)

    For a `Sequential` of linear layers and activations the supremum is *proved* by
    pushing norm bounds on layer outputs and on their rates through the network. The
    grid is doubled until the bound is within `slack` of the sampled value or `limit`
    is reached. Other modules get an estimate: twice the largest sampled speed.

    Args:
        space: where the change is measured.
        path: the curve of weights.
        slack: how far above the sampled value the bound may lie, in units of Phi.
        grid, limit: times that are sampled at first, and at most.

    Raises:
        ValueError: a slack that is not positive, or fewer than two times.

    Cost: `grid` forward passes over all inputs.

    Source: :eq:`drv-geodesics-cones` and :eq:`drv-geodesics-rate` (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> S = FunctionSpace(mlp([2, 4, 3]), torch.eye(2).double())
        >>> w = S.realization.theta0
        >>> c = certify_path(S, WeightPath(w, 1.1 * w))
        >>> c.rigorous, c.sampled <= c.bound <= c.sampled + 0.1
        (True, True)
    """
    if not slack > 0:
        raise ValueError(f"slack: expected more than 0, got {slack}")
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
            return PathCertificate(sampled, bound, layers is not None, grid)
        grid = 2 * grid - 1


def _lipschitz(layer: nn.Module) -> float | None:
    """The Lipschitz constant of an activation; None where none is known."""
    if type(layer) is nn.LeakyReLU:
        return max(1.0, abs(layer.negative_slope))
    if type(layer) is nn.GELU and layer.approximate != "none":
        return None
    return LIPSCHITZ.get(type(layer))


def _provable(space: FunctionSpace) -> list[tuple[str, nn.Module]] | None:
    """The layers by name, if norm bounds can be pushed through every one of them."""
    module = space.realization.module
    try:
        layers = named_layers(module)
    except TypeError:
        return None
    frozen = [p for p in module.parameters() if not p.requires_grad]
    linear = [type(m) is nn.Linear for _, m in layers]
    known = [_lipschitz(m) is not None for _, m in layers]
    if frozen or not all(a or b for a, b in zip(linear, known, strict=True)):
        return None
    return layers


def _rates(space, path: WeightPath, t: Tensor, layers) -> Tensor:
    r"""Bound on :math:`|d\Phi/dt|` on each interval, root mean square over inputs.

    :eq:`drv-geodesics-rate`, layer by layer.
    """
    mid, r = (t[1:] + t[:-1]) / 2, 1 / (2 * (len(t) - 1))
    result = []
    for s in mid.split(1):  # one network at a time
        w, rate = path(s)[0], _velocity_bound(path, s, r)[0]
        result.append(_rate_at(space, w, rate, r, layers))
    return OUTPUT_LIPSCHITZ[space.space] * torch.stack(result)


def _rate_at(space, w: Tensor, velocity: Tensor, r: float, layers) -> Tensor:
    """The bound within r of one time: `size` bounds |h| there, `rate` bounds |h'|."""
    weights = space.realization.unflatten(w)
    speeds = space.realization.unflatten(velocity)
    middle = space.x.flatten(1)
    size, rate = middle.norm(dim=1), torch.zeros(len(middle)).to(middle)
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            W, V = weights[f"{name}.weight"], speeds[f"{name}.weight"]
            largest = torch.linalg.matrix_norm(W, 2) + r * V.norm()
            rate = V.norm() * size + largest * rate
            middle = middle @ W.T
            if layer.bias is not None:
                middle = middle + weights[f"{name}.bias"]
                rate = rate + speeds[f"{name}.bias"].norm()
        else:
            constant = _lipschitz(layer)
            assert constant is not None  # as `_provable` saw
            middle, rate = layer(middle.flatten(1)), constant * rate
        size = middle.norm(dim=1) + r * rate
    return rate.square().mean().sqrt()


def _velocity_bound(path: WeightPath, mid: Tensor, r: float) -> Tensor:
    """Entrywise bound on |W'(t)| within r of each middle time, shape (k, p)."""
    if path.basis is None or path.control is None:
        return (path.b - path.a).abs().expand(len(mid), -1)
    spread = slope_change(path.basis, mid, r)
    return path.velocity(mid).abs() + spread @ path.control.abs()


def slope_change(basis: Basis, mid: Tensor, r: float) -> Tensor:
    """Bound on how far each slope of a basis moves within r of `mid`, shape (k, m)."""
    k = torch.arange(1, basis.size + 1).to(mid)
    if isinstance(basis, SineBasis):
        return (math.pi**2 * r * k).expand(len(mid), -1)
    if isinstance(basis, BezierBasis):
        n = basis.size + 1
        # B'' = n (n - 1) (B_{k-2} - 2 B_{k-1} + B_k), each B in [0, 1]
        return torch.full((len(mid), basis.size), 2.0 * n * (n - 1) * r).to(mid)
    if isinstance(basis, LegendreBasis):
        # |P_k'| is largest at the ends, k (k + 1) / 2; s = 2t - 1 doubles it
        return (r * (2 * k + 1).sqrt() * k * (k + 1)).expand(len(mid), -1)
    if 2 * r * (basis.size + 1) > 1 + 1e-9:
        raise ValueError("grid: expected at least one time per knot")
    here = basis.slopes(mid)
    sides = [basis.slopes(mid + s * r * (1 - 1e-9)) - here for s in (-1, 1)]
    return torch.maximum(sides[0].abs(), sides[1].abs())
