"""Channels followed through the nodes of a traced graph: which axes share one order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from geolib.networks.batch_norm import NORMS

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    nn.Upsample,
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# entry by entry, so that an order of the channels passes through
ELEMENTWISE = (
    *(nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.ELU),
    *(nn.SiLU, nn.Identity, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Mish, nn.SELU),
)
POINTWISE = set(
    "relu relu_ relu6 gelu tanh sigmoid leaky_relu silu elu selu softplus mish hardtanh "
    "hardswish dropout dropout2d exp abs neg sqrt square pow clamp clone contiguous "
    "detach float double to type_as erf sin cos softsign".split()
)
SOFTMAX = {"softmax", "log_softmax"}
SUMS = {"add", "iadd", "sub", "isub", "add_", "sub_"}
PRODUCTS = {"mul", "imul", "truediv", "itruediv", "div", "mul_"}
SIZES = {"size", "getattr", "dim", "len"}
COUNTS = SUMS | PRODUCTS | {"getitem", "floordiv", "mod", "pow", "sqrt", "int", "float"}
POOLED = {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "interpolate"}
POOLED |= {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
FLAT = ("channels first", "channels last")


@dataclass(frozen=True)
class Slot:
    """One axis of one tensor that runs over the channels of a group.

    The axis has `outer` blocks of all channels, each channel with `inner` entries: one
    and the pixels of an image where an image was flattened, tokens and one where a
    sequence was.

    Attributes:
        tensor: its name, as in `state_dict`.
        axis: of the tensor.
        outer, inner: how the channels lie in the axis.
        role: `write` (rows of the layer that makes them), `vector` (bias, norm) or
            `read` (columns of a layer that takes them).
        layer: name of the module that holds the tensor.
    """

    tensor: str
    axis: int
    outer: int
    inner: int
    role: str
    layer: str

    def opened(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape with the axis split into blocks, channels and entries."""
        width = shape[self.axis] // (self.outer * self.inner)
        before, after = shape[: self.axis], shape[self.axis + 1 :]
        return *before, self.outer, width, self.inner, *after


@dataclass
class ChannelGroup:
    """Hidden channels with one order: of a layer, or of all that skips tie together.

    Attributes:
        width: number of channels.
        slots: every axis that runs over them.
        blocks: consecutive blocks that stay together (the groups of a GroupNorm).
        mixed: what norms over the channels, or has their number written out; an order
            passes through, but no channel can be taken away.
    """

    width: int
    slots: list[Slot] = field(default_factory=list)
    blocks: int = 1
    mixed: list[str] = field(default_factory=list)

    def named(self, role: str) -> list[str]:
        """Names of the layers with slots of a role, each once."""
        return list(dict.fromkeys(s.layer for s in self.slots if s.role == role))


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class _Value(NamedTuple):
    """What a node of the graph holds: a group of channels, and where they lie.

    `place` is `second` (images), `last` (rows and sequences), `any` (an input) or the
    two orders of a flattened axis, `channels first` and `channels last`. `axes` is a
    union as groups are, whose width is the number of axes where that is known.
    """

    group: int
    place: str
    axes: int


@dataclass
class _Union:
    """A group while it is read; groups that turn out to be one are joined."""

    width: int | None
    fixed: bool = False
    blocks: int = 1
    mixed: list[str] = field(default_factory=list)


class GraphReader:
    """Follows the channels through the nodes of a graph, in their order."""

    def __init__(self, module: nn.Module, root: nn.Module) -> None:
        self.root = root
        self.names = {id(t): n for n, t in all_tensors(module).items()}
        self.layers = {id(m): n for n, m in module.named_modules()}
        self.unions: list[_Union] = []
        self.parent: list[int] = []
        # (tensor, axis) -> (group, slot); a tied weight has its axes once
        self.slots: dict[tuple[str, int], tuple[int, Slot]] = {}
        self.values: dict[fx.Node, _Value] = {}

    def read(self, graph: fx.Graph) -> list[ChannelGroup]:
        for node in graph.nodes:
            if node.op != "get_attr":  # looked up by the node that uses it
                value = getattr(self, f"_{node.op}")(node)
                self.values |= {} if value is None else {node: value}
        groups: dict[int, ChannelGroup] = {}
        for k, union in enumerate(self.unions):
            if k == self._find(k) and not union.fixed and union.width is not None:
                groups[k] = ChannelGroup(union.width, [], union.blocks, union.mixed)
        for group, slot in self.slots.values():
            if (found := self._find(group)) in groups:
                groups[found].slots.append(slot)
        return [g for g in groups.values() if g.named("write")]

    # ---- nodes -----------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> _Value:
        return _Value(self._new(None, fixed=True), "any", self._new(None))

    def _output(self, node: fx.Node) -> None:
        for x in self._inputs(node):
            self._union(x).fixed = True

    def _call_module(self, node: fx.Node) -> _Value:
        """What a layer gives: with weights of channels, without, or of a transformer."""
        layer = self.root.get_submodule(str(node.target))
        for x in self._inputs(node)[:1]:
            for kind in (self._weighted, self._unweighted, self._transformer):
                if (found := kind(node, layer, x)) is not None:
                    return found
        raise self._unknown(node)

    def _inputs(self, node: fx.Node) -> list[_Value]:
        return [self.values[a] for a in node.all_input_nodes if a in self.values]

    def _call_method(self, node: fx.Node) -> _Value | None:
        return self._function(node, str(node.target))

    def _call_function(self, node: fx.Node) -> _Value | None:
        if isinstance(node.target, type):  # a container of outputs
            self._output(node)
            return None
        return self._function(node, getattr(node.target, "__name__", str(node.target)))

    # ---- layers ----------------------------------------------------------------------

    def _weighted(self, node: fx.Node, layer: Any, x: _Value) -> _Value | None:
        kind = type(layer)
        if kind in LINEAR:
            return self._linear(node, x, layer, layer.weight, layer.bias)
        if kind is nn.Embedding:
            fixed = self._new(layer.num_embeddings, fixed=True)
            whole = _Value(fixed, "last", 0)
            self._slot(layer.weight, 0, whole, "read", layer)
            made = _Value(self._new(layer.embedding_dim), "last", self._new(None))
            self._slot(layer.weight, 1, made, "write", layer)
            return made
        if kind in (*NORMS, *INSTANCE):
            if x.place == "last":
                if kind is not nn.BatchNorm1d:
                    raise self._unknown(node)
                self._count(x, 2, node)
            return self._vectors(node, x, layer)
        if kind in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm):
            return self._norm(node, x, layer)
        if kind is nn.PReLU:
            return x if layer.num_parameters == 1 else self._vectors(node, x, layer)
        return None

    def _unweighted(self, node: fx.Node, layer: Any, x: _Value) -> _Value | None:
        kind = type(layer)
        if kind in ELEMENTWISE or kind in DROPOUTS:
            return x
        if kind in (nn.Softmax, nn.LogSoftmax):
            return self._mix(x, node)
        if kind in POOLS and x.place != "last":
            return None if getattr(layer, "return_indices", False) else x
        if kind is nn.Flatten and layer.end_dim == -1:
            return self._flatten(node, x, layer.start_dim)
        return None

    def _transformer(self, node: fx.Node, layer: Any, x: _Value) -> _Value | None:
        kind = type(layer)
        if kind is nn.MultiheadAttention:
            given = [*node.args, *map(node.kwargs.get, ("query", "key", "value"))]
            known = [self.values[a] for a in given if a in self.values]  # type: ignore
            return self._attention(node, known[:3], layer)
        if kind is nn.TransformerEncoderLayer:
            return self._encoder(node, x, layer)
        if kind is nn.TransformerEncoder:
            for block in layer.layers:
                x = self._encoder(node, x, block)
            return x if layer.norm is None else self._norm(node, x, layer.norm)
        return None

    def _linear(
        self, node: fx.Node, x: _Value, layer: Any, weight: Tensor, bias: Tensor | None
    ) -> _Value:
        flat = weight.ndim == 2
        groups = 1 if flat else layer.groups
        if x.place == ("second" if flat else "last"):
            raise self._unknown(node, f"channels of the axis {x.place}")
        if groups > 1:
            if not groups == weight.shape[0] == self._width(x, groups):
                raise self._unknown(node, f"{groups} groups")
            filters = x._replace(place="last")  # one a channel
            self._slot(weight, 0, filters, "vector", layer)
            self._slot(bias, 0, filters, "vector", layer)
            return x
        self._slot(weight, 1, x, "read", layer, node)
        made = self._new(weight.shape[0])
        y = _Value(made, "last" if flat else "second", x.axes)
        self._slot(weight, 0, y, "write", layer)
        self._slot(bias, 0, y, "vector", layer)
        return y

    def _vectors(self, node: fx.Node, x: _Value, layer: nn.Module) -> _Value:
        """Per-channel vectors of a norm: an order of the channels is theirs too."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            held = getattr(layer, name, None)
            self._slot(held, 0, x, "vector", layer, node)
        return x

    def _norm(self, node: fx.Node, x: _Value, layer: Any) -> _Value:
        """LayerNorm, RMSNorm and GroupNorm, whose statistics run over channels."""
        union = self._union(x)
        if isinstance(layer, nn.GroupNorm):
            if x.place not in ("second", "any"):
                raise self._unknown(node)
            if union.blocks not in (1, layer.num_groups) and layer.num_groups > 1:
                raise self._unknown(node, "another number of groups than a norm before")
            union.blocks = max(union.blocks, layer.num_groups)
        else:
            over = layer.normalized_shape
            image = x.place == "second" and len(over) > 1 and over[0] == union.width
            if not image and (len(over) > 1 or x.place == "second"):
                raise self._unknown(node, f"statistics over {tuple(over)}")
        for held in (layer.weight, getattr(layer, "bias", None)):
            self._slot(held, 0, x, "vector", layer, node)
        return self._mix(x, node)

    def _attention(self, node: fx.Node, values: list[_Value], layer: Any) -> _Value:
        """Heads keep their order; what they read and write does not."""
        if any(v.place not in ("last", "any") for v in values):
            raise self._unknown(node)
        for k, part in enumerate(("q", "k", "v")):
            held = layer.in_proj_weight
            held = getattr(layer, f"{part}_proj_weight") if held is None else held
            x = values[min(k, len(values) - 1)]
            self._slot(held, 1, x, "read", layer, node)
        for v in values:
            self._count(v, 3, node)
        y = _Value(self._new(layer.embed_dim), "last", values[0].axes)
        self._slot(layer.out_proj.weight, 0, y, "write", layer.out_proj)
        self._slot(layer.out_proj.bias, 0, y, "vector", layer.out_proj)
        return y

    def _encoder(self, node: fx.Node, x: _Value, layer: Any) -> _Value:
        """A block of attention and two linear layers with their skips and norms."""
        act = layer.activation
        known = type(act) in ELEMENTWISE or getattr(act, "__name__", "") in POINTWISE
        if not known:
            raise self._unknown(node, f"activation {act}")
        heads = self._attention(node, [x], layer.self_attn)
        self._join(x.group, heads.group, node)
        h = x
        for part in (layer.linear1, layer.linear2):
            h = self._linear(node, h, part, part.weight, part.bias)
        self._join(x.group, h.group, node)
        for norm in (layer.norm1, layer.norm2):
            self._norm(node, h, norm)
        return h

    # ---- functions -------------------------------------------------------------------

    def _function(self, node: fx.Node, name: str) -> _Value | None:
        values = self._inputs(node)
        if name in SIZES or (not values and name in COUNTS):
            return None
        if not values:
            raise self._unknown(node, "a tensor made on the way")
        x = values[0]
        if name != "linear" and all(v.place == "any" for v in values):
            return x  # still an input: its order is never changed
        if name in POINTWISE and len(values) == 1:
            return x
        if name in SOFTMAX:
            return self._mix(x, node)
        if name in POOLED and x.place != "last":
            return x
        if name in SUMS | PRODUCTS:
            return self._combine(node, values)
        rule = RULES.get(name)
        if rule is None:
            raise self._unknown(node)
        return rule(self, node, x)

    def _combine(self, node: fx.Node, values: list[_Value]) -> _Value:
        """A sum or product makes the channels of both sides one group."""
        x = values[0]
        for v in values[1:]:
            x, v = (v, x) if x.place == "any" else (x, v)
            if v.place not in (x.place, "any"):
                raise self._unknown(node, f"channels of the axes {x.place}, {v.place}")
            self._join(x.group, v.group, node)
            if x.place == v.place and None in map(self._counted, (x, v)):
                self._join(x.axes, v.axes, node)
            widths = [self._union(u).width or 0 for u in (x, v)]
            x = v if widths[0] == 1 < widths[1] else x
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                self._added(node, x, self._attribute(source))
        return x

    def _added(self, node: fx.Node, x: _Value, t: Tensor) -> None:
        if t.numel() == 1 or x.place == "any":
            return
        if x.place == "last":
            axis = t.ndim - 1
        elif x.place == "second" and (t.ndim == 4 or (t.ndim == 3 and len(t) > 1)):
            axis = t.ndim - 3
        else:
            raise self._unknown(node, f"a tensor of shape {tuple(t.shape)}")
        if t.shape[axis] > 1:
            self._slot(t, axis, x, "vector", None, node)

    def _functional_linear(self, node: fx.Node, x: _Value) -> _Value:
        held = [*node.args[1:], *[node.kwargs.get(k) for k in ("weight", "bias")]]
        tensors = [self._attribute(a) for a in held if isinstance(a, fx.Node)]
        if not tensors or not isinstance(node.args[0], fx.Node):
            raise self._unknown(node)
        return self._linear(node, x, None, tensors[0], (*tensors, None)[1])

    def _flatten(self, node: fx.Node, x: _Value, start: Any) -> _Value:
        if x.place == "second" and start == 2:
            return x
        if start != 1:
            raise self._unknown(node, "flattening from another axis than 1")
        flat = {"second": FLAT[0], "last": FLAT[1]}
        return _Value(x.group, flat.get(x.place, x.place), self._new(2))

    def _view(self, node: fx.Node, x: _Value) -> _Value:
        """Only to rows: (samples, everything else)."""
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        # (-1, c) of an image makes samples of its pixels, and rows of other channels
        rows = len(sizes) == 2 and (isinstance(sizes[0], fx.Node) or x.place == "last")
        if not rows:
            raise self._unknown(node, "a view that is not (samples, features)")
        if isinstance(sizes[1], int) and sizes[1] != -1:
            self._mix(x, node, f"{node.target} to {sizes[1]} features")
        return self._flatten(node, x, 1)

    def _mean(self, node: fx.Node, x: _Value) -> _Value:
        given = _argument(node, 1, "dim", None)
        kept = bool(_argument(node, 2, "keepdim", False))
        axes = {given} if isinstance(given, int) else set(given or [0])
        # of an image, all pixels or none: what is left must be one number a channel
        if x.place == "second" and axes <= {2, 3, 4, -1, -2}:
            if kept or len(axes) > 1:
                return x if kept else _Value(x.group, FLAT[0], self._new(2))
        if x.place == "last" and axes == {1}:  # of rows, these would be their channels
            if not kept:
                self._count(x, 3, node)
            return self._mix(x if kept else x._replace(axes=self._new(2)), node)
        raise self._unknown(node, "a mean over channels or samples")

    def _cumulated(self, node: fx.Node, x: _Value) -> _Value:
        axis = _argument(node, 1, "dim", None)
        # axis 1 of a sequence is time, that of rows would be their channels
        if axis not in {"last": (-2,), "second": (2, 3, 4, -1, -2)}.get(x.place, ()):
            why = "along the channels, for all that is known; write -2"
            raise self._unknown(node, why)
        if x.place == "last":
            self._count(x, 3, node)
        return x

    def _transpose(self, node: fx.Node, x: _Value) -> _Value:
        axes = node.args[1:]
        if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
            axes = tuple(axes[0])
        moves = {
            (1, 2): {"second": "last", "last": "second"},
            (0, 2, 1): {"second": "last", "last": "second"},
            (0, 2, 3, 1): {"second": "last"},
            (0, 3, 1, 2): {"last": "second"},
        }
        order = tuple(sorted(axes)) if len(axes) == 2 else tuple(axes)
        place = moves.get(order, {}).get(x.place)
        if place is None:
            raise self._unknown(node, f"axes {axes}")
        if x.place == "last" and len(order) < 4:
            self._count(x, 3, node)
        return x._replace(place=place)

    def _item(self, node: fx.Node, x: _Value) -> _Value:
        """The first result of attention, or one token of a sequence."""
        source, index = node.args
        if source.op == "call_module":  # type: ignore[union-attr]
            layer = self.root.get_submodule(str(source.target))  # type: ignore[union-attr]
            if isinstance(layer, nn.MultiheadAttention):
                if index == 0:
                    return x
                raise self._unknown(node, "a part of a tensor")
        match index:
            case (slice(start=None, stop=None, step=None), int(), *rest):
                if x.place == "last" and all(k == slice(None) for k in rest):
                    self._count(x, 3, node)
                    return x._replace(axes=self._new(2))
        raise self._unknown(node, "a part of a tensor")

    # ---- groups ----------------------------------------------------------------------

    def _union(self, x: _Value) -> _Union:
        return self.unions[self._find(x.group)]

    def _mix(self, x: _Value, node: fx.Node, what: str = "") -> _Value:
        self._union(x).mixed.append(what or str(node.target))
        return x

    def _counted(self, x: _Value) -> int | None:
        return self.unions[self._find(x.axes)].width

    def _count(self, x: _Value, axes: int, node: fx.Node) -> None:
        """Note that x has so many axes: BatchNorm1d reads axis 1, others the last."""
        if self._counted(x) not in (None, axes):
            raise self._unknown(node, "rows (n, c) here and sequences elsewhere")
        self.unions[self._find(x.axes)].width = axes

    def _new(self, width: int | None, fixed: bool = False) -> int:
        self.unions.append(_Union(width, fixed))
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def _find(self, k: int) -> int:
        while self.parent[k] != k:
            k = self.parent[k]
        return k

    def _join(self, i: int, j: int, node: fx.Node | str) -> None:
        i, j = sorted((self._find(i), self._find(j)))
        if i == j:
            return
        a, b = self.unions[i], self.unions[j]
        if 1 in (a.width, b.width) and a.width != b.width:
            return  # one channel for all: any order of the others will do
        if None not in (a.width, b.width) and a.width != b.width:
            widths = f"{a.width} with {b.width}"
            raise ValueError(f"module: {node} combines {widths} channels")
        if 1 != a.blocks != b.blocks != 1:
            raise TypeError(
                f"module: cannot follow channels through {node}: two GroupNorms with "
                "different numbers of groups norm the same channels"
            )
        a.width = a.width or b.width
        a.fixed, a.blocks = a.fixed or b.fixed, max(a.blocks, b.blocks)
        a.mixed += b.mixed
        self.parent[j] = i

    def _width(self, x: _Value, given: int) -> int:
        """Channels of a value; an input has as many as its reader takes."""
        union = self._union(x)
        union.width = union.width or given
        return union.width

    def _slot(
        self,
        t: Tensor | None,
        axis: int,
        x: _Value,
        role: str,
        layer: Any,
        node: Any = "",
    ) -> None:
        """Note that an axis of a tensor runs over the channels of x."""
        if t is None:
            return
        if x.place == "any":  # of the input: whatever else an axis runs over stays too
            x = x._replace(group=self._new(t.shape[axis], fixed=True))
        size, name = t.shape[axis], self.names[id(t)]
        width = self._width(x, size)
        times = size // max(width, 1)
        if not width or times * width != size or (times > 1 and x.place not in FLAT):
            where = f"layer {name.rpartition('.')[0]} reads {size} inputs"
            why = f"which does not follow the {width} channels before it"
            raise ValueError(f"module: {where}, {why}")
        outer, inner = (1, times) if x.place != FLAT[1] else (times, 1)
        holder = self.layers.get(id(layer), name.rpartition(".")[0])
        slot = Slot(name, axis, outer, inner, role, holder)
        known = self.slots.setdefault((name, axis), (x.group, slot))
        if known[1] is not slot:
            if (known[1].outer, known[1].inner) != (outer, inner):
                raise ValueError(f"module: {name} is used on two layouts of channels")
            self._join(known[0], x.group, node)

    def _attribute(self, node: Any) -> Tensor:
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise self._unknown(node)
        found: Any = self.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if id(found) not in self.names:
            raise self._unknown(node)
        return found

    def _unknown(self, node: fx.Node, why: str = "") -> TypeError:
        what = str(node.target)
        if node.op == "call_module":
            layer = self.root.get_submodule(what)
            what = f"{type(layer).__name__} at {self.layers.get(id(layer), what)}"
        elif not isinstance(node.target, str):
            what = getattr(node.target, "__name__", what)
        detail = f" ({why})" if why else ""
        return TypeError(f"module: cannot follow channels through {what}{detail}")


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    """What a call of a function was given, in order or by name."""
    return (*node.args[place:], node.kwargs.get(name, default))[0]


RULES: dict[str, Callable[[GraphReader, fx.Node, _Value], _Value]] = {
    "linear": GraphReader._functional_linear,
    "flatten": lambda r, n, x: r._flatten(n, x, _argument(n, 1, "start_dim", 0)),
    "view": GraphReader._view,
    "reshape": GraphReader._view,
    "mean": GraphReader._mean,
    "cumsum": GraphReader._cumulated,
    "transpose": GraphReader._transpose,
    "permute": GraphReader._transpose,
    "getitem": GraphReader._item,
}
