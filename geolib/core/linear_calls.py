r"""Which linear maps the forward pass applied, to what, and where in the graph.

The gradient of one sample in the weight of a linear layer is a sum of outer products
(output gradient) x (input). Keeping the two factors is far cheaper than keeping the
gradients. A weight whose every use was seen can be treated so; all others cannot, and
are reported as such: nothing is guessed from the type of a module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

FRESH = ("zeros_like", "ones_like", "empty_like", "full_like", "new_", "__get__")
DEFAULTS: dict[str, Any] = dict(bias=None, stride=1, padding=0, dilation=1, groups=1)
WATCHED = {F.linear: "linear", F.conv1d: "conv1d", F.conv2d: "conv2d"}


@dataclass(frozen=True)
class LinearCall:
    """One application of a linear layer: y = W x + b at each position of a sample.

    Attributes:
        weight, bias: names of the parameters (bias may be None).
        kind: linear, conv1d or conv2d.
        x: what the layer was given; its leading axis is the samples.
        version: of `x`, to notice a later change in place.
        edge: the layer's output as a place in the autograd graph.
        options: stride, padding, dilation and groups of a convolution.
        sizes: groups, positions, fan-in and fan-out of a group.
    """

    weight: str
    bias: str | None
    kind: str
    x: Tensor
    version: int
    edge: GradientEdge
    kernel: tuple[int, ...]
    options: tuple[Any, ...]
    sizes: tuple[int, int, int, int]

    def inputs(self) -> Tensor:
        """What the weight multiplies, shape (groups, n, positions, fan-in)."""
        if self.kind == "linear":
            return self.x.reshape(1, self.x.shape[0], -1, self.x.shape[-1])
        x, kernel, (stride, padding, dilation, groups) = self._as_conv2d()
        if padding == "same":
            extra = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            (top, left) = (e // 2 for e in extra)
            x = F.pad(x, (left, extra[1] - left, top, extra[0] - top))
            padding = (0, 0)
        patches = F.unfold(x, kernel, dilation, padding, stride)
        patches = patches.reshape(len(x), groups, -1, patches.shape[-1])
        return patches.permute(1, 0, 3, 2)

    def cotangents(self, dy: Tensor) -> Tensor:
        """Output gradients (..., n, *) as (..., n, groups, positions, fan-out)."""
        if self.kind == "linear":
            lead = dy.ndim - self.x.ndim
            return dy.reshape(*dy.shape[: lead + 1], 1, -1, dy.shape[-1])
        spatial = len(self.kernel)
        groups = self.options[3]
        lead_shape = dy.shape[: dy.ndim - spatial - 1]
        dy = dy.reshape(*lead_shape, groups, dy.shape[-spatial - 1] // groups, -1)
        return dy.transpose(-1, -2)

    def push(self, W: Tensor, b: Tensor | None) -> Tensor:
        """Change of a linear layer's output with its weight and bias, (*k, *, a).

        For W of shape (*k, a, d) and b of shape (*k, a), k being at most one axis.
        """
        x = self.x.reshape(-1, self.x.shape[-1])
        if b is None:
            y = x @ W.mT
        elif W.ndim == 2:
            y = torch.addmm(b, x, W.mT)
        else:
            y = torch.baddbmm(b[:, None], x.expand(len(W), -1, -1), W.mT)
        return y.reshape(*W.shape[:-2], *self.x.shape[:-1], W.shape[-2])

    def pull(
        self, dy: Tensor, out: Tensor, bias: Tensor | None, add: bool, add_bias: bool
    ) -> None:
        """Gradients in weight, (*k, a, d), and bias, written or added; dy as above."""
        x = self.x.reshape(-1, self.x.shape[-1])
        dy = dy.reshape(*out.shape[:-2], -1, out.shape[-2])
        if out.ndim == 2:
            torch.addmm(out, dy.mT, x, beta=float(add), out=out)
        else:
            out.copy_(dy.mT @ x + out if add else dy.mT @ x)
        if bias is not None:
            bias.copy_(dy.sum(-2) + bias if add_bias else dy.sum(-2))

    def _as_conv2d(self) -> tuple[Tensor, tuple[int, ...], tuple[Any, ...]]:
        """Inputs, kernel and options, of a sequence as of an image one pixel high."""
        stride, pad, dilation, groups = self.options
        axes = len(self.kernel)
        ones, zeros = (1,) * (2 - axes), (0,) * (2 - axes)
        if not isinstance(pad, str):
            pad = (*zeros, *_tuple(pad, axes))
        pad = (0, 0) if pad == "valid" else pad
        steps = (*ones, *_tuple(stride, axes)), pad, (*ones, *_tuple(dilation, axes))
        x = self.x if axes == 2 else self.x.unsqueeze(-2)
        return x, (*ones, *self.kernel), (*steps, groups)


class CallRecorder(TorchFunctionMode):
    """While active, notes each linear or convolution call on the given leaves."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {id(t): n for n, t in leaves.items()}
        self.calls: list[LinearCall] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func in WATCHED:
            self._note(WATCHED[func], y, *args, **kwargs)
        return y

    def _note(
        self, kind: str, y: Tensor, input: Tensor, weight: Tensor, *a: Any, **k: Any
    ) -> None:
        given = DEFAULTS | dict(zip(DEFAULTS, a, strict=False)) | k
        bias, *options = given.values()
        name = self.names.get(id(weight))
        spatial = weight.ndim - 2
        if name is None or not y.requires_grad or input.ndim < 2:
            return
        if not input.dtype == weight.dtype == y.dtype:
            return  # autocast runs it in another precision
        if kind != "linear" and input.ndim != spatial + 2:
            return  # an unbatched convolution
        bias_name = None if bias is None else self.names.get(id(bias))
        x, fan_out = input.detach(), weight.shape[0]
        positions = y.numel() // max(1, y.shape[0] * fan_out)
        place = x, x._version, get_gradient_edge(y), tuple(weight.shape[2:])
        sizes = options[3], positions, weight[0].numel(), fan_out // options[3]
        call = LinearCall(name, bias_name, kind, *place, tuple(options), sizes)
        self.calls.append(call)


class Call(NamedTuple):
    """One call in one pass: who made it, with copies of what went in and out."""

    where: str
    is_layer: bool
    inputs: list[Tensor]
    outputs: list[Tensor]


def named_calls(
    run: Callable[[], Any], label: Callable[[nn.Module], str]
) -> list[Call]:
    """Return the calls of layers and of torch's functions in one run, as they end."""
    calls: list[Call] = []
    running: list[tuple[str, list[Tensor]]] = []

    class Noting(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            inputs, name = _copies((args, kwargs)), getattr(func, "__name__", "")
            outputs = func(*args, **(kwargs or {}))
            if running and not name.startswith(FRESH):
                where = f"{running[-1][0]} in its call of {name!r}"
                calls.append(Call(where, False, inputs, _copies(outputs)))
            return outputs

    def start(layer: nn.Module, args: Any) -> None:
        running.append((label(layer), _copies(args)))

    def end(layer: nn.Module, args: Any, outputs: Any) -> None:
        where, inputs = running.pop()
        calls.append(Call(where, True, inputs, _copies(outputs)))

    before = hooks.register_module_forward_pre_hook(start)
    with before, hooks.register_module_forward_hook(end), Noting():
        run()
    return calls


def _copies(values: Any) -> list[Tensor]:
    found = [t for t in tree_leaves(values) if isinstance(t, Tensor)]
    with torch._C.DisableTorchFunction():  # these calls are not the model's
        return [t.detach().clone().requires_grad_(t.requires_grad) for t in found]


def exact_calls(
    calls: list[LinearCall], leaves: Mapping[str, Tensor], z: Tensor
) -> list[LinearCall]:
    """The calls of those weights that the graph of z uses in no other way.

    A call whose output z does not use is none. A use is also dropped when its input
    does not lead with the samples of z or was changed in place since. Biases seen
    elsewhere are cut off (name None).
    """
    edges, nodes = count_edges(z, leaves), set(graph_nodes(z))
    good = [
        u
        for u in calls
        if u.x.shape[0] == z.shape[0]
        and u.x._version == u.version
        and u.edge.node in nodes
    ]
    weights = Counter(u.weight for u in good)
    good = [u for u in good if weights[u.weight] == edges[u.weight]]
    biases = Counter(u.bias for u in good)
    return [
        u if u.bias is None or biases[u.bias] == edges[u.bias] else unbiased(u)
        for u in good
    ]


def gradients(
    z: Tensor, places: Sequence[Tensor | GradientEdge], u: Tensor, **options: bool
) -> list[Tensor]:
    """Gradients of <u, z> in tensors and edges; zeros where z does not depend on one.

    A batch of u where `is_grads_batched` says so. The graph is kept.
    """
    given: Any = list(places)
    options |= {"retain_graph": True, "allow_unused": True}
    found = torch.autograd.grad(z, given, u, **options)
    batch = u.shape[: u.ndim - z.ndim]
    return [
        u.new_zeros(*batch, *_shape(at)) if g is None else g
        for g, at in zip(found, places, strict=True)
    ]


def _shape(at: Tensor | GradientEdge) -> torch.Size:
    if isinstance(at, Tensor):
        return at.shape
    return at.node._input_metadata[at.output_nr].shape  # type: ignore[attr-defined]


def graph_nodes(z: Tensor, end: Node | None = None) -> Iterator[Node]:
    """The nodes of the autograd graph of z, each once, down to the node `end`."""
    stack, seen = [z.grad_fn], {z.grad_fn, end, None}
    while stack:
        node = stack.pop()
        if node is not None:
            yield node
            new = dict.fromkeys(child for child, _ in node.next_functions)
            stack += [child for child in new if child not in seen]
            seen |= new.keys()


def count_edges(z: Tensor, leaves: Mapping[str, Tensor]) -> Counter[str]:
    """How often the autograd graph of z refers to each leaf, or to its transpose."""
    names = {id(t): n for n, t in leaves.items()}
    edges: Counter[str] = Counter()
    nodes = list(graph_nodes(z))
    uses = Counter(child for node in nodes for child, _ in node.next_functions)
    for node in nodes:
        for child, _ in node.next_functions:
            leaf = getattr(child, "variable", None)
            if leaf is not None:
                alone = len(node.next_functions) == 1
                edges[names.get(id(leaf), "")] += max(1, uses[node]) if alone else 1
    return edges


def leave_out(calls: list[LinearCall], weights: set[str]) -> list[LinearCall]:
    """The calls of all other weights; a bias they share with a lost use is cut off."""
    lost = {u.bias for u in calls if u.weight in weights}
    kept = [u for u in calls if u.weight not in weights]
    return [unbiased(u) if u.bias in lost else u for u in kept]


def unbiased(use: LinearCall) -> LinearCall:
    return replace(use, bias=None)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    return (value,) * length if isinstance(value, int) else tuple(value)
