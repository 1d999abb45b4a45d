"""Whole neurons and filters: which to drop, and the smaller network without them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.networks.batch_norm import NORMS
from geolib.networks.sequential import (
    LINEAR,
    HiddenUnits,
    hidden_units,
    named_layers,
)

NEUTRAL = (
    *(nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.ELU),
    *(nn.SiLU, nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d),
    nn.AdaptiveAvgPool2d,
)


def removable_units(module: nn.Module) -> list[HiddenUnits]:
    """The hidden units of a `Sequential` that can be removed.

    Raises:
        ValueError: another kind of module or layer, for which removing a unit has no
            general meaning here; unstructured sparsity works on any module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [(h.maker, h.user, h.units) for h in removable_units(net)]
        [('0', '2', 3)]
    """
    try:
        layers = named_layers(module)
    except TypeError as error:
        raise ValueError(
            "module: removing units needs an nn.Sequential with its own forward, got "
            f"{type(module).__name__}; use structured=False"
        ) from error
    held = [id(layer) for _, layer in layers if isinstance(layer, (*LINEAR, *NORMS))]
    if len(set(held)) < len(held):
        raise ValueError("module: a layer is used twice; use structured=False")
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ValueError(f"module: layer {name} is a grouped convolution")
        if not isinstance(layer, (*LINEAR, *NORMS, *NEUTRAL)):
            raise ValueError(
                f"module: cannot remove units around layer {name}, a "
                f"{type(layer).__name__}; use structured=False"
            )
    found = hidden_units(module)
    if not found:
        raise ValueError("module: expected at least two weighted layers")
    return found


def norms_of(unit: HiddenUnits) -> list[str]:
    """Names of the BatchNorm layers between two weighted ones."""
    return [name for name, m in unit.between.items() if isinstance(m, NORMS)]


def unit_scores(module: nn.Module, x: Tensor) -> list[Tensor]:
    r"""What dropping each unit changes in the layer that reads it, one tensor a hidden layer.

    .. math:: s_j = \frac{\mathbb{E}\,h_j^2\,|W_{:j}|^2}
                         {\sum_k \mathbb{E}\,h_k^2\,|W_{:k}|^2}

    the pullback metric of the next layer's input, per layer, so that layers compare.

    Cost: one forward pass.

    Source: :eq:`drv-geodesics-units` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[0].bias.data.zero_()
        >>> _ = net[2].weight.data.copy_(torch.tensor([[3.0, 0.0]]))
        >>> unit_scores(net, torch.ones(1, 2))[0].tolist()
        [1.0, 0.0]
    """
    caught: dict[str, Tensor] = {}
    with torch.no_grad():
        h = x
        for name, layer in named_layers(module):
            if isinstance(layer, LINEAR):
                caught[name] = h.square().mean(0)
            h = layer(h)
    scores = []
    for joint in removable_units(module):
        weight = module.get_submodule(joint.user).weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        power = caught[joint.user]
        size2 = weight.square().view(*weight.shape[:2], -1).sum(2)
        if power.ndim > 1:  # average over the places of an image
            power = power.flatten(1).mean(1)
        column = power * size2.sum(0)
        unit = column.view(joint.units, joint.spread).sum(1)
        scores.append(unit / unit.sum().clamp_min(1e-30))
    return scores


def choose_units(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """Keep flags per hidden layer: drop `round(sparsity * units)` of all, never a whole layer.

    Scores are shares of their layer; times the layer's width they compare.

    Examples:
        >>> scores = [torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])]
        >>> [k.tolist() for k in choose_units(scores, 0.25)]
        [[True, False], [True, True]]
    """
    flat = torch.cat([s * len(s) for s in scores])
    for k, s in enumerate(scores):  # the best unit of each layer stays
        start = sum(len(t) for t in scores[:k])
        flat[start + int(s.argmax())] = float("inf")
    count = min(round(sparsity * len(flat)), len(flat) - len(scores))
    keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    if count:
        keep[torch.topk(flat, count, largest=False).indices] = False
    return list(keep.split([len(s) for s in scores]))


def unit_mask(R: Realization, kept: list[Tensor]) -> Tensor:
    """The weights that touch only kept units, shape (p,).

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> unit_mask(Realization(net), [torch.tensor([True, False])]).tolist()
        [True, False, True, False, True, False, True]
    """
    layout = zip(R.names, R.shapes, strict=True)
    flags = {n: torch.ones(s, dtype=torch.bool) for n, s in layout}
    for joint, keep in zip(removable_units(R.module), kept, strict=True):
        keep = keep.cpu()
        for k in (joint.maker, *norms_of(joint)):
            for part in ("weight", "bias"):
                if f"{k}.{part}" in flags:
                    flags[f"{k}.{part}"][~keep] = False
        columns = keep.repeat_interleave(joint.spread)
        flags[f"{joint.user}.weight"][:, ~columns] = False
    return R.flatten(flags).to(R.theta0.device)


def shrink(module: nn.Module, kept: list[Tensor]) -> nn.Module:
    """The network without the dropped units: smaller matrices, the same function.

    The dropped units' outgoing weights must be zero already; see `unit_mask`.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> small = shrink(net, [torch.tensor([True, False])])
        >>> small[0].weight.shape, small[2].weight.shape
        (torch.Size([1, 1]), torch.Size([1, 1]))
    """
    small = copy.deepcopy(module)
    for joint, keep in zip(removable_units(module), kept, strict=True):
        columns = keep.repeat_interleave(joint.spread)
        for k in (joint.maker, *norms_of(joint)):
            _slice(small.get_submodule(k), keep, 0)
        _slice(small.get_submodule(joint.user), columns, 1)
    return small


def _slice(layer: nn.Module, keep: Tensor, axis: int) -> None:
    """Keep some outputs (axis 0) or inputs (axis 1) of a layer, in place."""
    names = ["weight", "bias"] if axis == 0 else ["weight"]
    for name in names:
        p = getattr(layer, name, None)
        if p is not None:
            rows = p.detach()[keep] if axis == 0 else p.detach()[:, keep]
            setattr(layer, name, nn.Parameter(rows.clone(), p.requires_grad))
    for name in ("running_mean", "running_var"):
        buffer = getattr(layer, name, None)
        if axis == 0 and buffer is not None:
            setattr(layer, name, buffer[keep].clone())
    count = int(keep.sum())
    sizes = {
        (nn.Linear, 0): "out_features",
        (nn.Linear, 1): "in_features",
        (nn.Conv2d, 0): "out_channels",
        (nn.Conv2d, 1): "in_channels",
    }
    for (kind, side), attribute in sizes.items():
        if isinstance(layer, kind) and side == axis:
            setattr(layer, attribute, count)
    if isinstance(layer, NORMS):
        layer.num_features = count
