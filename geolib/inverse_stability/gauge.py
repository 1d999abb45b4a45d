"""Positive rescalings of hidden channels, with the skip connections that tie them."""

from collections import Counter
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from geolib.core.validation import expect
from geolib.networks.channel_graph import (
    DROPOUTS,
    LINEAR,
    NORMS,
    POOLED,
    POOLS,
    Slot,
    all_tensors,
)
from geolib.networks.channel_groups import channel_groups, permute_channels, trace
from geolib.networks.sequential import check_hooks

LAYERS = (*LINEAR, *NORMS, *POOLS, *DROPOUTS, nn.ReLU, nn.Identity, nn.Flatten)
FUNCTIONS = {"relu", "relu_", "add", "iadd", "add_", "flatten", "view", "reshape"}
FUNCTIONS |= {"mean", "size", "getattr", "dropout", "clone", "contiguous"} | POOLED
SUPPORTED = (
    "linear layers, BatchNorm (eval) after them, ReLU, pooling, Flatten and sums"
)


def linear_norms(module: nn.Module) -> dict[str, str]:
    """Which BatchNorm follows which linear layer, by name, in a network of ReLU.

    Raises:
        TypeError: a layer or function that positive scales do not pass through.
        ValueError: a BatchNorm that is not alone behind one linear layer.
    """
    root, graph = trace(module)
    names = {id(m): n for n, m in module.named_modules()}
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    found = {}
    for node in graph.nodes:
        layer = _positive(node, root, names)
        if type(layer) not in NORMS:
            continue
        name, source = names[id(layer)], node.args[0]
        before = _module(source, root)
        alone = type(before) in LINEAR and len(source.users) == 1
        if not alone or calls[str(source.target)] * calls[str(node.target)] > 1:
            kind = type(layer).__name__
            raise ValueError(
                f"module: {kind} {name} must follow one Linear or Conv directly"
            )
        if getattr(layer, "running_mean", None) is None:
            raise ValueError(f"module: {name} has no running statistics")
        found[names[id(before)]] = name
    return found


def _module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return root.get_submodule(str(node.target)) if called else None


def _positive(
    node: fx.Node, root: nn.Module, names: dict[int, str]
) -> nn.Module | None:
    """The layer of a node that commutes with positive scales, or None; else an error."""
    if node.op in ("placeholder", "output"):
        return None
    layer = _module(node, root)
    if layer is not None:
        kind = type(layer)
        if kind in LAYERS and getattr(layer, "groups", 1) == 1:
            return layer
        grouped = "grouped " if kind in LAYERS else ""
        what = f"{grouped}{kind.__name__} at {names.get(id(layer), node.target)}"
    else:
        what = getattr(node.target, "__name__", str(node.target))
        if what in FUNCTIONS and node.op != "get_attr":
            return None
    raise TypeError(f"module: cannot treat {what}; expected {SUPPORTED}")


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> tuple[nn.Module, int]:
    """A copy with every BatchNorm (eval) absorbed into its linear layer, and how many."""
    for name, layer in module.named_modules():
        check_hooks(name, layer)
    module = deepcopy(module)
    pairs = linear_norms(module)
    for name, norm_name in pairs.items():
        lin: Any = module.get_submodule(name)
        n: Any = module.get_submodule(norm_name)
        stats = n.running_mean, n.running_var, n.eps, n.weight, n.bias
        lin.weight, lin.bias = fuse_conv_bn_weights(lin.weight, lin.bias, *stats)
        module.set_submodule(norm_name, nn.Identity())
    return module, len(pairs)


class Gauge:
    """The scales of all channel groups of a folded network, as logarithms u.

    Each tensor enters with its squares, summed over all but the axes of its groups;
    rows and biases of a group carry the factor e^{2u}, columns e^{-2u}.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.groups = channel_groups(module)
        self.tensors = all_tensors(module)
        self.slots: dict[str, list[tuple[int, Slot]]] = {}
        for k, group in enumerate(self.groups):
            for slot in group.slots:
                self.slots.setdefault(slot.tensor, []).append((k, slot))
        self.u = [np.zeros(g.width) for g in self.groups]
        # of each group: (squares with its axis first, its sign, the other axis or None)
        self.terms: list[list[tuple[np.ndarray, int, tuple[int, int] | None]]]
        self.terms = [[] for _ in self.groups]
        for name, on in self.slots.items():
            square = _squares(self.tensors[name], on)
            axes = [(k, sign(slot)) for k, slot in on]
            for n, (k, s) in enumerate(axes):
                other = axes[1 - n] if len(axes) == 2 else None
                self.terms[k].append((square if n == 0 else square.T, s, other))
        self.twice = [
            any(o and o[0] == k for _, _, o in t) for k, t in enumerate(self.terms)
        ]

    def flows(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared incoming (with bias) and outgoing norms of the channels of a group."""
        total = {1: np.zeros_like(self.u[k]), -1: np.zeros_like(self.u[k])}
        for square, s, other in self.terms[k]:
            if other is not None:
                square = square @ np.exp(2 * other[1] * self.u[other[0]])
            total[s] += np.exp(2 * s * self.u[k]) * square
        return total[1], total[-1]

    def energy(self) -> float:
        """Sum of the squares of all tensors with a hidden channel."""
        hidden = (self.tensors[name].detach().double() for name in self.slots)
        return sum(float((t**2).sum()) for t in hidden)

    def balance(self, max_sweeps: int) -> tuple[int, bool]:
        """Cyclic descent of the energy: exact in each group, but for a layer that leads
        from a group to itself, where half a step descends a bound of the energy."""
        sweep, change = 0, np.inf
        while sweep < max_sweeps and change > 1e-14:
            sweep, change = sweep + 1, 0.0
            for k, twice in enumerate(self.twice):
                inner, outer = self.flows(k)
                live = (inner > 0) & (outer > 0)
                ratio = np.where(live, outer, 1.0) / np.where(live, inner, 1.0)
                step = np.log(ratio) / (8 if twice else 4)
                self.u[k] = self.u[k] + step
                change = max(change, float(np.abs(step).max(initial=0.0)))
        for name, on in self.slots.items():
            for k, slot in on:
                scale_channels(self.tensors[name], slot, np.exp(sign(slot) * self.u[k]))
        return sweep, change <= 1e-14

    def sort(self) -> None:
        """Order the channels by incoming norm, which the balance made the same for all."""
        sizes = [self.flows(k)[0] for k in range(len(self.groups))]
        permute_channels(self.module, [np.argsort(-v, kind="stable") for v in sizes])


def sign(slot: Slot) -> int:
    """Whether the entries grow (1) or shrink (-1) with the scale of their channel."""
    return -1 if slot.role == "read" else 1


def _squares(t: Tensor, on: list[tuple[int, Slot]]) -> np.ndarray:
    """Squares summed over all axes but those of the slots, these in the given order."""
    square = t.detach().to("cpu", torch.float64).numpy() ** 2
    for _, slot in on:
        square = square.reshape(slot.opened(square.shape)).sum(axis=slot.axis + 2)
        square = square.sum(axis=slot.axis)
    axes = [slot.axis for _, slot in on]
    rest = tuple(n for n in range(square.ndim) if n not in axes)
    square = square.sum(axis=rest)
    return square.T if axes != sorted(axes) else square


@torch.no_grad()
def scale_channels(t: Tensor, slot: Slot, scale: np.ndarray) -> None:
    """Multiply each channel's entries by its scale, in place."""
    opened = t.reshape(slot.opened(t.shape)).double()
    shape = [1] * opened.ndim
    shape[slot.axis + 1] = -1
    factor = torch.as_tensor(scale).to(t.device).view(shape)
    t.copy_((opened * factor).reshape(t.shape))


@torch.no_grad()
def random_gauge(module: nn.Module, seed: int = 0, decades: float = 2.0) -> nn.Module:
    r"""Permute and positively rescale all hidden channels at random.

    .. math:: W_l \mapsto S_l P_l W_l P_{l-1}^T S_{l-1}^{-1}, \qquad
        \log_{10} s \sim U(-\text{decades}, \text{decades})

    Where a batch normalization follows, its gain and shift are rescaled instead; what
    a skip connection adds shares its order and its scales.

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
    module = deepcopy(module)
    norms = linear_norms(module)
    for name in norms.values():
        affine = module.get_submodule(name).affine
        expect(affine, "module", "batch norm with gain", name)
    rng = np.random.default_rng(seed)
    groups, tensors = channel_groups(module), all_tensors(module)
    permute_channels(module, [rng.permutation(g.width) for g in groups])
    for group in groups:
        scale = 10 ** rng.uniform(-decades, decades, group.width)
        for slot in group.slots:
            normed = slot.role != "read" and slot.layer in norms
            if not normed and not slot.tensor.rpartition(".")[2].startswith("running_"):
                scale_channels(tensors[slot.tensor], slot, scale ** sign(slot))
    return module
