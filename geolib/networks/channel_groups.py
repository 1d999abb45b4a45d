"""Which tensors of a network share one order of channels, read from its traced graph.

A hidden channel is a row of the layers that write it, a column of the layers that read
it, and an entry of each norm and bias on the way; a skip connection makes the channels
of all that it adds one group. The groups are read from the graph that `torch.fx`
traces, whatever the type of the containers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from geolib.core.validation import expect

from .channel_graph import DROPOUTS, NORMS, ChannelGroup, GraphReader, Slot, all_tensors
from .sequential import check_hooks


def channel_groups(module: nn.Module) -> list[ChannelGroup]:
    """Return the groups of hidden channels in the order in which they are made.

    Inputs and outputs keep their order, and so do attention heads and what is inside
    them; everything that a skip connection ties to those is no group.

    Args:
        module: any network that `torch.fx` can trace: linear and convolution layers,
            norms, activations, pools, attention, embeddings, sums and products, nested
            and skipped as you like. Tied weights are one tensor with one order. A
            BatchNorm1d after a Linear is read as one of rows (n, c), unless the rest of
            the module shows sequences (n, t, c); without inputs no more can be known.

    Raises:
        TypeError: a module that cannot be traced, or a layer or function that the
            channels cannot be followed through, by name.
        ValueError: BatchNorm or dropout in training mode, weights that are computed
            from others (weight norm), a hook on a forward pass, shapes that do not fit.

    Cost: one symbolic trace; no network is run.

    Source: Ainsworth et al. 2023, section 4; :eq:`drv-geodesics-groups` (derivations).

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> [(g.width, g.named("write"), g.named("read")) for g in channel_groups(net)]
        [(3, ['0'], ['2'])]
    """
    root, graph = trace(module)
    return GraphReader(module, root).read(graph)


@torch.no_grad()
def check_orders(module: nn.Module, x: Tensor) -> None:
    """Refuse a module whose outputs change when its channels are reordered as read.

    Raises:
        ValueError: they do: a BatchNorm1d of sequences as long as they are wide, say.

    Cost: two forward passes of two samples.

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> nn.init.normal_(net[1].running_mean).shape
        torch.Size([4])
        >>> check_orders(net.eval(), torch.ones(2, 3))
        >>> check_orders(net.eval(), torch.ones(2, 4, 3))
        Traceback (most recent call last):
        ...
        ValueError: module: its outputs change with the order of its channels, ...
    """
    other = copy.deepcopy(module)
    groups = channel_groups(module)
    permute_channels(other, [np.arange(g.width)[::-1] for g in groups])
    z, moved = module(x[:2]), other(x[:2])
    slack = torch.finfo(z.dtype).eps ** 0.5 * (1 + float(z.abs().max()))
    if float((z - moved).abs().max()) > slack:
        norms = [n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm1d)]
        where = f" (does {norms[0]} norm an axis of time?)" if norms else ""
        what = "its outputs change with the order of its channels, so that they are not"
        raise ValueError(f"module: {what} read rightly{where}; use structured=False")


def trace(module: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """The graph of a module in eval mode, and the root to which its names refer."""
    _check_layers(module)
    own = type(module).__module__.startswith("torch.nn")
    bare = own and type(module) is not nn.Sequential
    root = nn.Sequential(module) if bare else module
    try:
        graph = fx.Tracer().trace(root)
    except Exception as error:  # whatever the traced code raises on a proxy
        raise TypeError(
            f"module: torch.fx cannot trace {type(module).__name__} ({error}), so that "
            "the layers its channels run through are not known; write its forward "
            "without choices that depend on the values"
        ) from error
    return root, graph


@torch.no_grad()
def permute_channels(module: nn.Module, order: Sequence[np.ndarray]) -> None:
    """Reorder the channels of each group in place; the function stays the same.

    Args:
        module: as for `channel_groups`; its tensors are written to.
        order: for each group, which channel comes first, second, ...

    Raises:
        ValueError: another number of groups, or no permutation that a group allows.
        TypeError: as `channel_groups`.

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> x = torch.ones(1, 1)
        >>> before = net(x)
        >>> permute_channels(net, [np.array([1, 0])])
        >>> torch.allclose(net(x), before)
        True
    """
    groups, tensors = channel_groups(module), all_tensors(module)
    wanted = f"one for each of {len(groups)} groups of the module"
    expect(len(order) == len(groups), "order", wanted, len(order))
    for group, given in zip(groups, order, strict=True):
        index, every = np.asarray(given), np.arange(group.width)
        fits = np.array_equal(np.sort(index), every)
        expect(fits, "order", f"a permutation of {group.width} channels", index)
        blocks = index.reshape(group.blocks, -1) // (group.width // group.blocks)
        wanted = f"the {group.blocks} blocks of a GroupNorm together"
        expect((blocks == blocks[:, :1]).all(), "order", wanted, index)
        for slot in group.slots:
            t = tensors[slot.tensor]
            chosen = torch.as_tensor(index.copy(), device=t.device)
            t.copy_(take_channels(t, slot, chosen))


def take_channels(t: Tensor, slot: Slot, index: Tensor) -> Tensor:
    """The tensor with these channels along the slot, in this order."""
    opened = t.reshape(slot.opened(t.shape)).index_select(slot.axis + 1, index)
    return opened.flatten(slot.axis, slot.axis + 2)


def _check_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        check_hooks(name, layer)
        if isinstance(layer, (*NORMS, *DROPOUTS)) and layer.training:
            what = f"{kind} {name} is in training mode"
            raise ValueError(f"module: {what}; call module.eval()")
    for name, t in all_tensors(module).items():
        if t.is_floating_point() and not bool(torch.isfinite(t.detach()).all()):
            raise ValueError(f"module: {name} holds NaN or infinite values")
