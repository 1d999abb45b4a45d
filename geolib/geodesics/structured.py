"""Whole neurons and filters: which to drop, and the smaller network without them."""

import copy

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.networks.channel_graph import ChannelGroup, Slot, all_tensors
from geolib.networks.channel_groups import channel_groups, take_channels

# of each kind of layer: the attributes that name the sizes of its weight's axes
SIZES = {
    nn.Linear: ("out_features", "in_features"),
    nn.Conv1d: ("out_channels", "in_channels"),
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.Conv3d: ("out_channels", "in_channels"),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.BatchNorm3d: ("num_features",),
    nn.PReLU: ("num_parameters",),
}


def removable_units(module: nn.Module) -> list[ChannelGroup]:
    """The groups of hidden channels that can be removed.

    A skip connection makes the channels of all that it adds one unit. Channels that a
    LayerNorm or GroupNorm runs over stay: without one of them the others change.

    Raises:
        ValueError: a layer that the channels cannot be followed through, or nothing
            that can be removed; unstructured sparsity works on any module.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [(g.named("write"), g.named("read"), g.width) for g in removable_units(net)]
        [(['0'], ['2'], 3)]
    """
    try:
        groups = channel_groups(module)
    except TypeError as error:
        raise ValueError(f"{error}; use structured=False") from error
    layers = dict(module.named_modules())
    found = [
        g
        for g in groups
        if not g.mixed
        and all(type(layers[s.layer]) in SIZES for s in g.slots)
        and all(getattr(layers[s.layer], "groups", 1) == 1 for s in g.slots)
        and g.named("read")
    ]
    if not found:
        held = ", ".join(dict.fromkeys(name for g in groups for name in g.mixed))
        raise ValueError(
            "module: no hidden unit can be removed: all are inputs or outputs, tied to "
            "those by a skip connection or a layer that is used twice, or counted by "
            f"what runs over them ({held or 'nothing here'}); use structured=False"
        )
    return found


def unit_scores(module: nn.Module, x: Tensor) -> list[Tensor]:
    r"""What dropping each unit changes in the layers that read it, one tensor a group.

    .. math:: s_j = \frac{\mathbb{E}\,h_j^2\,|W_{:j}|^2}
                         {\sum_k \mathbb{E}\,h_k^2\,|W_{:k}|^2}

    the pullback metric of the next layer's input, per layer, so that layers compare;
    where several layers read the units, the mean over them.

    Cost: one forward pass.

    Source: :eq:`drv-geodesics-units` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[0].bias.data.zero_()
        >>> _ = net[2].weight.data.copy_(torch.tensor([[3.0, 0.0]]))
        >>> unit_scores(net, torch.ones(1, 2))[0].tolist()
        [1.0, 0.0]
    """
    groups = removable_units(module)
    power: dict[str, list[Tensor]] = {}

    def catch(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h = inputs[0].square()
            h = h.mean(0) if isinstance(layer, nn.Linear) else h.flatten(2).mean((0, 2))
            power.setdefault(name, []).append(h.reshape(-1, h.shape[-1]).mean(0))

        return hook

    readers = {name for g in groups for name in g.named("read")}
    hooks = [
        module.get_submodule(n).register_forward_pre_hook(catch(n)) for n in readers
    ]
    fast = torch.backends.mha.get_fastpath_enabled()  # it runs none of the layers
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            module(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in hooks:
            handle.remove()
    return [_group_scores(module, g, power) for g in groups]


def _group_scores(
    module: nn.Module, group: ChannelGroup, power: dict[str, list[Tensor]]
) -> Tensor:
    tensors, shares = all_tensors(module), []
    for slot in group.slots:
        if slot.role != "read":
            continue
        weight = tensors[slot.tensor].detach()
        size2 = weight.square().view(*weight.shape[:2], -1).sum(2).sum(0)
        column = torch.stack(power[slot.layer]).mean(0) * size2
        unit = column.view(slot.outer, group.width, slot.inner).sum((0, 2))
        shares.append(unit / unit.sum().clamp_min(1e-30))
    return torch.stack(shares).mean(0)


def choose_units(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """Keep flags per group: drop `round(sparsity * units)` of all, never a whole group.

    Scores are shares of their layer; times the layer's width they compare.

    Examples:
        >>> scores = [torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])]
        >>> [k.tolist() for k in choose_units(scores, 0.25)]
        [[True, False], [True, True]]
    """
    # the best unit of each layer stays
    kept = [(s * len(s)).index_fill(0, s.argmax(), torch.inf) for s in scores]
    flat = torch.cat(kept)
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
    for group, keep in zip(removable_units(R.module), kept, strict=True):
        for slot in group.slots:
            if slot.tensor in flags:
                own = flags[slot.tensor]
                gone = torch.nonzero(~keep.cpu())[:, 0]
                opened = own.view(slot.opened(own.shape))
                opened.index_fill_(slot.axis + 1, gone, False)
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
    for group, keep in zip(removable_units(module), kept, strict=True):
        index = torch.nonzero(keep)[:, 0]
        for slot in group.slots:
            _slice(small.get_submodule(slot.layer), slot, index)
    return small


def _slice(layer: nn.Module, slot: Slot, index: Tensor) -> None:
    """Keep some entries along one axis of a layer's tensor, in place."""
    name = slot.tensor.rpartition(".")[2]
    old = getattr(layer, name)
    new = take_channels(old.detach(), slot, index.to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, old.requires_grad)
    setattr(layer, name, new)
    if name == "weight":
        sizes = zip(SIZES[type(layer)], new.shape, strict=False)
        for attribute, size in sizes:
            setattr(layer, attribute, size)
