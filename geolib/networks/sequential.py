"""The one reader of `nn.Sequential`: its layers and its ReLU stages.

Two views: `named_layers` opens nested containers, and `read_stages` cuts a chain of
ReLU layers, which can also lose channels. All else is read by `channel_groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core.validation import expect

LINEAR = (nn.Linear, nn.Conv2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
SILENT = (nn.Dropout, nn.Dropout2d, nn.Identity)
SUPPORTED = "nn.Sequential of Linear, Conv2d, BatchNorm (eval), ReLU, pooling, Flatten"


def named_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers in the order in which they run, nested containers opened.

    A layer that is used twice comes twice. The names are those of `named_modules`, so
    that `module.get_submodule(name)` and `f"{name}.weight"` find the layer again.

    Args:
        module: an `nn.Sequential`, or a subclass that keeps its `forward`.

    Raises:
        TypeError: anything else, by name.
        ValueError: a layer that a hook gives its weight (see `check_weights`).

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Flatten())
        >>> [name for name, _ in named_layers(net)]
        ['0.0', '0.1', '1']
    """
    expect(_is_sequential(module), "module", SUPPORTED, type(module))
    for name, layer in module.named_modules():
        check_hooks(name, layer)
    return list(_flat(module))


def check_hooks(name: str, layer: nn.Module) -> None:
    """Refuse a layer that does more than its class says: by hooks, or another forward.

    Raises:
        ValueError: it has hooks on its forward pass, or computes its weights anew.

    Source: ours.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> handle = net.register_forward_hook(lambda *call: None)
        >>> check_hooks("0", net)
        Traceback (most recent call last):
        ...
        ValueError: module: layer 0 (Linear) has a hook on its forward pass; ...
    """
    kind = type(layer).__name__
    if hasattr(layer, "_orig_mod"):
        raise ValueError(f"module: {kind} is compiled; expected its `_orig_mod`")
    check_weights(name, layer)
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        what = f"layer {name or '(root)'} ({kind}) has a hook on its forward pass"
        why = "what it does to the channels is not known, remove it first"
        raise ValueError(f"module: {what}; {why}")


def check_weights(name: str, layer: nn.Module) -> None:
    """Refuse a layer that computes its weights from others before each call.

    What lies there between two calls may be old, and a write to it is lost.

    Raises:
        ValueError: it does, by a parametrization or by a hook.

    Source: ours.

    Examples:
        >>> from torch.nn.utils import prune
        >>> check_weights("0", prune.l1_unstructured(nn.Linear(2, 2), "weight", 1))
        Traceback (most recent call last):
        ...
        ValueError: module: layer 0 (Linear) computes its 'weight' from other tensors ...
    """
    held = [k for k, t in vars(layer).items() if isinstance(t, Tensor)]
    computed = held if layer._forward_pre_hooks else []
    if torch.nn.utils.parametrize.is_parametrized(layer):
        computed = list(layer.parametrizations)  # type: ignore[arg-type]
    if computed:
        kind = torch.nn.utils.parametrize.type_before_parametrizations(layer).__name__
        raise ValueError(
            f"module: layer {name or '(root)'} ({kind}) computes its {computed[0]!r} from "
            "other tensors before each call (weight_norm, spectral_norm, pruning); make "
            "it a parameter first, by the hook's `remove` or by "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


@dataclass
class Stage:
    """One linear layer with what follows it, up to the next linear layer.

    Attributes:
        name: position of the linear layer in the network, as `named_modules` says.
        linear: `nn.Linear` or `nn.Conv2d`.
        tail: the modules after it: ReLU, pooling, Flatten.
    """

    name: str
    linear: nn.Linear | nn.Conv2d
    tail: list[nn.Module] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Number of output channels."""
        return self.linear.weight.shape[0]

    def has(self, kind: type[nn.Module]) -> bool:
        """Whether the tail holds a module of this type."""
        return any(type(layer) is kind for layer in self.tail)


def read_stages(module: nn.Module) -> tuple[list[nn.Module], list[Stage]] | None:
    """Split a chain of layers into those before its first linear layer, and stages.

    Nested `nn.Sequential` are opened; Dropout and Identity, which do nothing in eval
    mode, are left out. Every stage but the last holds a ReLU, so that its channels can
    be permuted and positively rescaled and nothing more. None for what is no such
    chain: a skip connection, a layer of another kind, a grouped convolution.

    Raises:
        ValueError: two layers with one weight, a hidden layer with no ReLU.

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> [stage.name for stage in read_stages(net.eval())[1]]
        ['0', '2']
    """
    head: list[nn.Module] = []
    stages: list[Stage] = []
    for name, layer in named_layers(module) if _is_sequential(module) else ():
        if type(layer) in LINEAR and getattr(layer, "groups", 1) == 1:
            if any(layer.weight is stage.linear.weight for stage in stages):
                raise ValueError(f"module: layer {name} has the weights of another")
            if stages and not stages[-1].has(nn.ReLU):
                pair = f"{stages[-1].name} and {name}"
                raise ValueError(f"module: no ReLU between the linear layers {pair}")
            stages.append(Stage(name, layer))  # type: ignore[arg-type]
        elif type(layer) in (nn.ReLU, nn.Flatten, *POOLS):
            (stages[-1].tail if stages else head).append(layer)
        elif type(layer) not in SILENT:
            return None
    return (head, stages) if stages else None


def weight_blocks(stages: list[Stage]) -> list[np.ndarray]:
    """Weights as float64 arrays (out, in channels, entries a channel) for each stage.

    After Flatten the columns of a Linear layer are grouped by the channel they read.

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> [block.shape for block in weight_blocks(read_stages(net)[1])]
        [(3, 2, 1), (1, 3, 1)]
    """
    blocks = []
    for n, stage in enumerate(stages):
        weight = to_numpy(stage.linear.weight)
        channels = stages[n - 1].width if n else weight.shape[1]
        blocks.append(weight.reshape(weight.shape[0], channels, -1))
    return blocks


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A float64 NumPy copy on the CPU."""
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def _is_sequential(module: nn.Module) -> bool:
    forward = nn.Sequential.forward
    return isinstance(module, nn.Sequential) and type(module).forward is forward


def _flat(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # Not named_children(), which leaves out the second use of one and the same module.
    for name, child in module._modules.items():
        assert child is not None
        if _is_sequential(child):
            yield from _flat(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
