r"""The map R from parameters to functions: any module as a function of one vector."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from geolib.core.assumptions import ModuleTrial
from geolib.core.linear_calls import CallRecorder
from geolib.core.linearization import MISFIT, Linearization, Rerun, differentiation
from geolib.core.validation import (
    ArgumentError,
    Inputs,
    expect,
    map_inputs,
    num_samples,
    outside_inference,
    require_matching,
    require_vector,
    tensors,
)

PLAIN: Any = (  # what sets up a checkpoint, and what runs one, do nothing but the work
    (checkpoint, "_checkpoint_without_reentrant_generator", lambda *a, **k: (yield)),
    (checkpoint.CheckpointFunction, "apply", lambda function, _, *a: function(*a)),
)
KEPT = ArgumentError, torch.OutOfMemoryError  # what says by itself what is wrong
transform = torch._C._functorch.peek_interpreter_stack  # of `torch.func`, that runs now
MODE_DEPENDENT: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm
    nn.modules.dropout._DropoutNd,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.RReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)


class Realization:
    r"""A module as the map from its flat parameter vector to its outputs.

    .. math:: R : \mathbb{R}^p \times X \to \mathbb{R}^{n \times o}, \qquad
              (\theta, x) \mapsto f(x; \theta).

    The vector holds the module's trainable parameters in the order of
    `named_parameters()`; a parameter that two layers share appears once and its
    derivative is the sum over its calls. Frozen parameters and buffers (BatchNorm's
    running statistics, say) are constants, copied when the object is made. The
    module itself is never written to, except by :meth:`load`. The row that an embedding
    pads with (`padding_idx`) has no derivative, as in torch. An `nn.TransformerEncoder`
    is taken as it runs where gradients are recorded; by itself, under `no_grad`, torch
    puts zeros where its inputs are padded, and gives other outputs.

    At first use it is checked, on two samples and near the point at hand, that the
    forward pass is a function, that its i-th output depends on the i-th input only,
    that it writes to nothing, and that its derivatives are those of its outputs.

    Args:
        module: any `nn.Module` of which this is true.
        check: False leaves the check out, for those who know.

    Attributes:
        theta0: the module's own parameters when the object was made, shape (p,).
        names, shapes: of the parameters, in the order of the vector.
        padding: of embeddings with such a row, the name of the weight and the row.

    Raises:
        ValueError: no trainable parameter; two in one place of memory; a BatchNorm,
            dropout or similar layer in training mode (then f is random or mixes
            samples); an embedding with sparse gradients; mixed dtypes or devices.
        AssumptionError: at first use; it says which assumption fails, and where.
        TypeError: a parameter that is not real floating point.

    Cost: a call is one forward pass, the check some eight of two samples. `R(theta, x)`
    is a pure function, so `torch.func` transforms (`jvp`, `grad`, `vmap` over theta)
    apply to it.

    Source: :eq:`drv-core-pullback` (derivations).

    Examples:
        >>> R = Realization(nn.Linear(3, 2))
        >>> R.p
        8
        >>> R(torch.zeros(8), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, module: nn.Module, *, check: bool = True) -> None:
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        _check_parameters(module, named)
        _check_memory(module)
        self.module = module
        self.names = tuple(named)
        self.shapes = tuple(p.shape for p in named.values())
        self.sizes = tuple(p.numel() for p in named.values())
        self.p = sum(self.sizes)
        padded = [
            (f"{n}.weight".lstrip("."), m.padding_idx)
            for n, m in module.named_modules()
            if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        ]
        self.padding = {n: k for n, k in padded if k is not None and n in named}
        self._layers = list(module.modules())
        self._moded = [m for m in self._layers if isinstance(m, MODE_DEPENDENT)]
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in self._layers)
        self._keywords, self._most = _forward_arguments(module)
        self._aliases = _aliases(module)
        with torch.inference_mode(False):
            constants = self._live_constants().items()
            self._constants = {n: c.detach().clone() for n, c in constants}
            self.theta0 = self.flatten(p.detach() for p in named.values())
        self._cast: dict[tuple, dict[str, Tensor]] = {}
        self._certificates: dict[tuple, list[bool]] = {}
        self._rewritten = [m for m in self._layers if m._forward_pre_hooks]
        self._checked: dict[tuple[int, ...], int] = {}  # in which modes, on how many
        self._check = check
        self._require_evaluation_mode()

    def __repr__(self) -> str:
        return f"Realization({type(self.module).__name__}, p={self.p})"

    def __call__(self, theta: Tensor, x: Inputs) -> Tensor:
        """The outputs, shape (n, o); further axes of the module's output are joined.

        Numbers that overflow on the way give inf or NaN, as in the module.
        """
        self._require(theta, x)
        self.check(theta, x)
        return self.evaluate(self.unflatten(theta), x)

    def evaluate(
        self, parameters: Annotated[Mapping[str, Tensor], "names"], x: Inputs
    ) -> Tensor:
        """As `R(theta, x)`, with theta already cut into named tensors; NaN is no error."""
        z = self.run(parameters, x)
        return z.flatten(1) if z.ndim > 1 else z[:, None]

    def run(
        self,
        parameters: Annotated[Mapping[str, Tensor], "names"],
        x: Inputs,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `evaluate`, NaN included, with the axes that the module gave its output.

        Args:
            constants: buffers and frozen parameters by name; by default the copies
                that were made with this object.
        """
        self._require_evaluation_mode()
        like = next(iter(parameters.values()))
        args, kwargs = self._arguments(x)
        fixed = self._constants_like(like) if constants is None else constants
        state = {**_like(fixed, like), **parameters}
        state |= {n: state[k] for n, k in self._aliases.items()}
        kept = [(m, _held(m)) for m in self._rewritten]
        with _differentiable_kernels(self._recurrent and like.is_cuda):
            try:
                z = torch.func.functional_call(
                    self.module, state, args, kwargs, tie_weights=False
                )
            except MISFIT as error:
                if isinstance(error, KEPT) or transform() is not None:
                    raise
                said = f"x: expected what the module takes: {error}"
                raise ArgumentError(said) from error
            finally:
                for m, was in kept:
                    _restore(m, was)
        z = _logits(z)
        wanted = f"outputs like its parameters, {like.dtype} (leave autocast out)"
        expect(z.dtype == like.dtype, "module", wanted, z.dtype)
        return z

    def linearize(self, theta: Tensor, x: Inputs) -> Linearization:
        """Run the forward pass once; see :class:`Linearization`."""
        self._require(theta, x)
        expect(num_samples(x), "x", "at least one sample", 0)
        self.check(theta, x)
        with differentiation():
            named = self.unflatten(outside_inference(theta.detach()))
            x = map_inputs(outside_inference, x)
            return Rerun(self.run, x, self._certificates).linearize(named, x)

    def check(
        self, theta: Tensor, x: Inputs, constants: Mapping[str, Tensor] | None = None
    ) -> None:
        """Check what is assumed of the module near theta, on two samples of x.

        Once for each mode of the layers and for inputs of as many axes; again where the
        first use had one sample only.
        Inside `torch.func` transforms there is nothing to compare, and it waits.

        Args:
            theta, x, constants: as for :meth:`run`.

        Raises:
            AssumptionError: one fails.

        Cost: some eight forward passes of two samples, at first use.
        """
        mode = *(m.training for m in self._layers), *(t.ndim for t in tensors(x))
        count = min(2, num_samples(x))
        done = self._checked.get(mode, 0 if self._check else 2)
        if done >= count or transform() is not None:
            return
        self._require_evaluation_mode()
        before = [(m, _held(m)) for m in self._layers]
        changed: dict[nn.Module, None] = {}

        def reset() -> None:
            changed.update({m: None for m, was in before if _restore(m, was)})

        try:
            with differentiation():
                fixed = self._constants_like(theta) if constants is None else constants
                at = outside_inference(theta.detach())
                x = map_inputs(lambda t: outside_inference(t).detach(), x)
                ModuleTrial(self, at, x, fixed, reset).check()
        finally:
            reset()
        self._rewritten += changed
        self._checked[mode] = count

    def label(self, layer: str | nn.Module) -> str:
        """How errors name a layer of the module."""
        if isinstance(layer, str):
            layer = self.module.get_submodule(layer)
        names = [n for n, m in self.module.named_modules() if m is layer]
        name = names[0] or "(root)" if names else "?"
        return f"layer {name!r} ({type(layer).__name__})"

    def _require(self, theta: Tensor, x: Inputs) -> None:
        require_vector("theta", theta, self.p, theta, "theta")
        fits = not isinstance(x, list) and any(t.ndim for t in tensors(x))
        wanted = "tensors with a leading sample axis"
        wanted += " (a list of batches is for `PullbackMetric`)"
        expect(fits, "x", wanted, type(x))
        for t in tensors(x):
            require_matching("x", t, theta, "theta")

    def recording(self) -> Recording:
        """Watch the module's own calls, to linearize without running it again.

        .. code-block:: python

            with R.recording() as record:
                loss = closure()
            L = record.linearization()

        `L` is at the module's own parameters and on the inputs of its last call.
        """
        self._require_evaluation_mode()
        return Recording(self)

    def unflatten(self, theta: Annotated[Tensor, "self.p"]) -> dict[str, Tensor]:
        """The vector cut into named views of the parameters' shapes."""
        parts = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        return {n: t.view(s) for n, t, s in parts}

    def flatten(self, parameters: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`; tensors may come by name or in order."""
        if isinstance(parameters, Mapping):
            parameters = [parameters[n] for n in self.names]
        flat = [t.reshape(-1) for t in parameters]
        got = tuple(t.numel() for t in flat)
        wanted = f"tensors of {self.sizes} entries"
        expect(got == self.sizes, "parameters", wanted, got)
        return torch.cat(flat)

    def load(self, theta: Tensor) -> None:
        """Copy `theta` into the module's own parameters."""
        require_vector("theta", theta, self.p, self.theta0, "the module")
        named = dict(self.module.named_parameters())
        with torch.no_grad():
            for n, t in self.unflatten(theta).items():
                named[n].copy_(t)

    def _arguments(self, x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        known = self._keywords
        if isinstance(x, Mapping) and (known is None or set(x) <= known):
            return (), dict(x)
        if not isinstance(x, tuple):
            return (x,), {}
        wanted = f"at most {self._most} inputs, which is what the module takes"
        hint = f"a tuple of {len(x)}; leave labels out, as in [x for x, y in loader]"
        if len(x) > self._most:
            raise ValueError(f"x: expected {wanted}, got {hint}")
        return x, {}

    def _live_constants(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters as the module has them now."""
        held = (*self.module.named_buffers(), *self.module.named_parameters())
        return {n: t for n, t in held if n not in self.names}

    def _constants_like(self, like: Tensor) -> dict[str, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._cast:
            self._cast[key] = _like(self._constants, like)
        return self._cast[key]

    def _require_evaluation_mode(self) -> None:
        for m in self._moded:
            if trouble := _why_not_a_function(m):
                raise ValueError(f"module: {self.label(m)} {trouble}")


class Recording(CallRecorder):
    """What a module was last called with while this is open, and the graph it made.

    Raises:
        ValueError: on leaving, never; see `linearization`.

    Source: ours.
    """

    def __init__(self, R: Realization) -> None:
        own = dict(R.module.named_parameters())
        self.leaves = {n: own[n] for n in R.names}
        super().__init__(self.leaves)
        self.R = R
        self.inputs: Inputs | None = None
        self.outputs: Any = None

    def __enter__(self) -> Recording:
        module = self.R.module
        cuda = next(iter(self.leaves.values())).is_cuda
        self._open = _differentiable_kernels(self.R._recurrent and cuda)
        start = module.register_forward_pre_hook(self._start, with_kwargs=True)
        self._open.callback(start.remove)
        self._open.callback(module.register_forward_hook(self._end).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._open.close()

    def _start(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if args and kwargs:
            wanted = "positional or keyword arguments of the module, not both"
            raise ValueError(f"closure: expected {wanted}")
        self.calls.clear()  # of the calls only the last counts
        self.inputs = kwargs or (args[0] if len(args) == 1 else args)

    def _end(self, _: nn.Module, args: Any, outputs: Any) -> None:
        self.outputs = outputs

    def linearization(self) -> Linearization:
        """The derivative at the module's parameters, from the graph of its last call.

        Raises:
            ValueError: the module was not called, or gave no tensor with a graph.

        Cost: none; the graph is there.
        """
        if self.inputs is None:
            raise ValueError("closure: it did not call the module")
        z = _logits(self.outputs)
        state = {n: t.detach() for n, t in self.R._live_constants().items()}
        self.R.check(self.R.flatten(self.leaves), self.inputs, state)
        run = partial(self.R.run, constants=state)
        again = Rerun(run, self.inputs, self.R._certificates)
        return Linearization(z, self.leaves, self.calls, again)


def _like(constants: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Constants on the device and, where they are real, of the dtype of a tensor."""
    return {
        n: c.to(like.device, like.dtype if c.is_floating_point() else c.dtype)
        for n, c in constants.items()
    }


def _why_not_a_function(m: nn.Module) -> str | None:
    """Why the layer's output is not a function of theta and of its own sample."""
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        if m.training or not m.track_running_stats:
            return "calls batch statistics, which mix samples; call module.eval()"
    elif isinstance(m, nn.modules.instancenorm._InstanceNorm):
        if m.training and m.track_running_stats:
            return "updates running statistics in training mode; call module.eval()"
    elif isinstance(m, nn.Embedding | nn.EmbeddingBag):
        if m.sparse:
            return "has sparse gradients; build it with sparse=False"
        if m.scale_grad_by_freq:
            return "has scaled gradients; build it with scale_grad_by_freq=False"
    elif isinstance(m, nn.RReLU):
        if m.training:
            return "is random in training mode; call module.eval()"
    else:
        rate = getattr(m, "p", getattr(m, "dropout", 0.0))
        if m.training and float(rate) > 0:
            return f"drops units at random (rate {rate}); call module.eval()"
    return None


def _check_parameters(module: nn.Module, named: dict[str, nn.Parameter]) -> None:
    for name, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule | nn.DataParallel):
            why = "whose code is compiled; expected the nn.Module that it was made of"
            if isinstance(m, nn.DataParallel):
                why = "which copies it; expected its `.module`"
            place = f"{name or '(root)'} ({type(m).__name__})"
            what = f"other parameters cannot be put in the calls of {place}"
            raise ValueError(f"module: {what}, {why}")
    odd = [n for n, p in module.named_parameters() if not p.is_floating_point()]
    if odd:
        raise TypeError(f"module: parameter {odd[0]!r} is not real floating point")
    lazy = [n for n, p in named.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(f"module: parameter {lazy[0]!r} is lazy; run the module once")
    if not sum(p.numel() for p in named.values()):
        hint = "frozen parameters and buffers do not count"
        what = f"{type(module).__name__} has no trainable parameters ({hint})"
        raise ValueError(f"module: {what}")
    for what in ("dtype", "device"):
        kinds = sorted({str(getattr(p, what)) for p in named.values()})
        if len(kinds) > 1:
            raise ValueError(f"module: parameters of several {what}s: {kinds}")


def _aliases(module: nn.Module) -> dict[str, str]:
    """Further places of shared tensors, to their first; a shared module is one place."""
    first: dict[int, str] = {}
    found = {}
    for prefix, m in module.named_modules():
        for name, t in (*m._parameters.items(), *m._buffers.items()):
            place = f"{prefix}.{name}".lstrip(".")
            if t is not None and first.setdefault(id(t), place) != place:
                found[place] = first[id(t)]
    return found


def _check_memory(module: nn.Module) -> None:
    """Refuse two tensors in one place, of which R would see two copies."""
    held = (*module.named_parameters(), *module.named_buffers())
    placed = sorted((t.data_ptr(), n) for n, t in held if t.numel() and not t.is_meta)
    known, end, last = dict(held), 0, ""
    for at, name in placed:
        t = known[name]
        if at < end and (t.requires_grad or known[last].requires_grad):
            what = f"{last!r} and {name!r} share memory without being one parameter"
            raise ValueError(f"module: {what}; assign itself (b.weight = a.weight)")
        steps = zip(t.shape, t.stride(), strict=True)
        reach = at + t.element_size() * (1 + sum((n - 1) * k for n, k in steps))
        end, last = max((end, last), (reach, name))


def _logits(output: Any) -> Tensor:
    """The logits among what a module returns, as transformers libraries name them."""
    if isinstance(output, Mapping):
        z = output.get("logits", output)
    else:
        z = getattr(output, "logits", output)
    real = isinstance(z, Tensor) and z.is_floating_point()
    if not real or z.ndim == 0 or 0 in z.shape[1:]:
        kind, hint = f"a {type(z).__name__}", "; wrap it in a module that returns them"
        if isinstance(z, Tensor):
            kind, hint = f"{z.dtype} of shape {tuple(z.shape)}", ""
        wanted = "real numbers with a leading sample axis, or to hold them as 'logits'"
        said = f"module: expected its output to be {wanted}, got {kind}{hint}"
        raise ArgumentError(said)
    return z


def _held(m: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a layer holds: its attributes, and its buffers."""
    return dict(vars(m)), dict(m._buffers)


def _restore(m: nn.Module, was: tuple[dict[str, Any], dict[str, Any]]) -> bool:
    """Give a layer back what it held; whether that was something else."""
    same = True
    for now, old in zip((vars(m), m._buffers), was, strict=True):
        if now.keys() != old.keys() or any(now[k] is not v for k, v in old.items()):
            same = False
            now.clear()
            now.update(old)
    return not same


def _forward_arguments(module: nn.Module) -> tuple[set[str] | None, float]:
    """Names that `forward` takes as keywords, and how many arguments in order."""
    taken = inspect.signature(module.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names: set[str] | None = {q.name for q in taken if q.kind in named}
    endless = any(q.kind is q.VAR_POSITIONAL for q in taken)
    ordered = sum(q.kind <= q.POSITIONAL_OR_KEYWORD for q in taken)
    if not ordered and any(q.kind is q.VAR_KEYWORD for q in taken):
        names = None  # all of them: what wraps another module
    return names, math.inf if endless else ordered


def _differentiable_kernels(recurrent: bool) -> ExitStack:
    """Fused attention and cuDNN's recurrent layers lack (second) derivatives.

    A checkpoint would run its layers again when a derivative is taken, with the module's
    own weights: they run as they are, and their activations are kept.
    """
    stack, mha, cudnn = ExitStack(), torch.backends.mha, torch.backends.cudnn
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    mha.set_fastpath_enabled(False)  # of whole encoder blocks
    if recurrent:
        stack.enter_context(cudnn.flags(False, cudnn.benchmark, cudnn.deterministic))
    for place, name, plain in PLAIN:
        stack.callback(setattr, place, name, getattr(place, name))
        setattr(place, name, plain)
    return stack
