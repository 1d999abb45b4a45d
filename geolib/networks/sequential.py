"""The one reader of `nn.Sequential`: its layers and its ReLU stages.

Two views: `named_layers` opens nested containers, and `read_stages` accepts only ReLU
networks, whose channels may be permuted and positively rescaled. Networks of any other
form are read by `channel_groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
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
    if not _is_sequential(module):
        raise TypeError(f"module: expected {SUPPORTED}, got {type(module).__name__}")
    layers = list(_flat(module))
    for name, layer in module.named_modules():
        check_hooks(name, layer)
    return layers


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
    check_weights(name, layer)
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        raise ValueError(
            f"module: layer {name or '(root)'} ({type(layer).__name__}) has a hook on "
            "its forward pass; what it does to the channels is not known, remove it first"
        )


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
        norm: the batch normalization right after it, or None.
        tail: the modules after that: ReLU, pooling, Flatten.
    """

    name: str
    linear: nn.Linear | nn.Conv2d
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None
    tail: list[nn.Module] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Number of output channels."""
        return self.linear.weight.shape[0]

    def has(self, kind: type[nn.Module]) -> bool:
        """Whether the tail holds a module of this type."""
        return any(type(layer) is kind for layer in self.tail)


def read_stages(module: nn.Module) -> tuple[list[nn.Module], list[Stage]]:
    """Split a ReLU network into the modules before its first linear layer, and stages.

    Nested `nn.Sequential` are opened; Dropout and Identity, which do nothing in eval
    mode, are left out. Every stage but the last holds a ReLU, so that its channels can
    be permuted and positively rescaled and nothing more.

    Raises:
        TypeError: a module of another kind (tanh, LayerNorm, a residual block), by
            name; a module that is not `nn.Sequential`; mixed dtypes.
        ValueError: training mode, a layer used twice, a hidden layer with no ReLU,
            shapes that do not follow each other, NaN or infinite weights.

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> [stage.name for stage in read_stages(net.eval())[1]]
        ['0', '2']
    """
    head: list[nn.Module] = []
    stages: list[Stage] = []
    seen: set[int] = set()
    for name, layer in named_layers(module):
        if id(layer) in seen and any(True for _ in layer.parameters()):
            raise ValueError(f"module: layer {name} is used twice")
        seen.add(id(layer))
        _place(name, layer, head, stages)
    if not stages:
        raise ValueError("module: expected at least one Linear or Conv2d, got none")
    for stage, after in pairwise(stages):
        _check_link(stage, after)
    _check_tensors(module)
    return head, stages


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


def channel_vectors(stage: Stage) -> dict[str, Tensor]:
    """The tensors with one entry a channel: bias and batch normalization.

    Source: ours.

    Examples:
        >>> list(channel_vectors(Stage("0", nn.Linear(2, 3))))
        ['bias']
    """
    found = {"bias": stage.linear.bias}
    if stage.norm is not None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"norm.{name}"] = getattr(stage.norm, name)
    return {name: t for name, t in found.items() if t is not None}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A float64 NumPy copy on the CPU."""
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def _is_sequential(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
    )


def _flat(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # Not named_children(), which leaves out the second use of one and the same module.
    for name, child in module._modules.items():
        assert child is not None
        if _is_sequential(child):
            yield from _flat(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _place(
    name: str, layer: nn.Module, head: list[nn.Module], stages: list[Stage]
) -> None:
    kind = type(layer)
    if kind in (*NORMS, nn.Dropout, nn.Dropout2d) and layer.training:
        raise ValueError(
            f"module: {kind.__name__} {name} is in training mode; call module.eval()"
        )
    if kind in SILENT:
        return
    if kind in LINEAR:
        stages.append(Stage(name, _plain(name, layer)))  # type: ignore[arg-type]
    elif kind in NORMS:
        if not stages or stages[-1].tail or stages[-1].norm is not None:
            raise ValueError(
                f"module: {kind.__name__} {name} must follow Linear or Conv2d directly"
            )
        if layer.running_mean is None:
            raise ValueError(
                f"module: {kind.__name__} {name} has no running statistics"
            )
        stages[-1].norm = layer  # type: ignore[assignment]
    elif kind in (nn.ReLU, nn.Flatten, *POOLS):
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
            raise ValueError(f"module: Flatten {name} must keep only the batch axis")
        if getattr(layer, "return_indices", False):
            raise ValueError(f"module: {kind.__name__} {name} returns indices")
        (stages[-1].tail if stages else head).append(layer)
    else:
        raise TypeError(
            f"module: cannot treat {kind.__name__} at {name}; expected {SUPPORTED}"
        )


def _plain(name: str, layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise TypeError(f"module: cannot treat grouped Conv2d at {name}")
    if 0 in tuple(layer.weight.shape):  # type: ignore[arg-type]
        raise ValueError(f"module: layer {name} has zero width")
    return layer


def _check_link(stage: Stage, after: Stage) -> None:
    if not stage.has(nn.ReLU):
        raise ValueError(
            f"module: no ReLU between the linear layers {stage.name} and {after.name}"
        )
    reads = after.linear.weight.shape[1]
    flat, conv = stage.has(nn.Flatten), isinstance(stage.linear, nn.Conv2d)
    if isinstance(after.linear, nn.Conv2d):
        fits = conv and not flat and reads == stage.width
    else:
        fits = reads % stage.width == 0 if conv and flat else reads == stage.width
        fits = fits and (flat or not conv)
    if not fits:
        raise ValueError(
            f"module: layer {after.name} reads {reads} inputs, which does not follow "
            f"the {stage.width} channels of layer {stage.name}"
        )


def _check_tensors(module: nn.Module) -> None:
    tensors = [
        (n, t)
        for n, t in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        )
        if t.is_floating_point() or t.is_complex()
    ]
    kinds = sorted({str(t.dtype) for _, t in tensors})
    if len(kinds) > 1 or "complex" in kinds[0]:
        raise TypeError(f"module: expected one real dtype for all weights, got {kinds}")
    pointers = [t.data_ptr() for _, t in tensors]
    if len(set(pointers)) < len(pointers):
        raise ValueError("module: two layers share their weights")
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise ValueError(f"module: {name} holds NaN or infinite values")
