r"""The map R from parameters to functions: any module as a function of one vector."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geolib.core.linear_calls import CallRecorder
from geolib.core.linearization import Linearization, Rerun, differentiation
from geolib.core.validation import (
    Inputs,
    map_inputs,
    outside_inference,
    require_matching,
    require_vector,
    tensors,
)

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
    module itself is never written to, except by :meth:`load`.

    Args:
        module: any `nn.Module` whose i-th output depends on the i-th input only.

    Attributes:
        theta0: the module's own parameters when the object was made, shape (p,).
        names, shapes: of the parameters, in the order of the vector.

    Raises:
        ValueError: no trainable parameter; a BatchNorm, dropout or similar layer in
            training mode (then f is random or mixes samples); an embedding with
            sparse gradients; mixed dtypes or devices.
        TypeError: a parameter that is not real floating point.

    Cost: a call is one forward pass. `R(theta, x)` is a pure function, so
    `torch.func` transforms (`jvp`, `grad`, `vmap` over theta) apply to it.

    Source: :eq:`drv-core-pullback` (derivations).

    Examples:
        >>> R = Realization(nn.Linear(3, 2))
        >>> R.p
        8
        >>> R(torch.zeros(8), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module: expected an nn.Module, got {type(module).__name__}"
            )
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        _check_parameters(module, named)
        self.module = module
        self.names = tuple(named)
        self.shapes = tuple(p.shape for p in named.values())
        self.sizes = tuple(p.numel() for p in named.values())
        self.p = sum(self.sizes)
        self._mode_dependent = [
            (n, m) for n, m in module.named_modules() if isinstance(m, MODE_DEPENDENT)
        ]
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in module.modules())
        self._keywords = _keyword_names(module)
        every = [
            id(t)
            for named_tensors in (module.named_parameters, module.named_buffers)
            for _, t in named_tensors(remove_duplicate=False)
        ]
        self._tied = len(set(every)) < len(every)
        constants = {n: b for n, b in module.named_buffers()}
        constants |= {n: q for n, q in module.named_parameters() if n not in named}
        self._constants = {n: c.detach().clone() for n, c in constants.items()}
        self._cast: dict[tuple, dict[str, Tensor]] = {}
        self._certificates: dict[tuple, list[bool]] = {}
        self.theta0 = self.flatten(p.detach() for p in named.values())
        self._require_evaluation_mode()

    def __repr__(self) -> str:
        return f"Realization({type(self.module).__name__}, p={self.p})"

    def __call__(self, theta: Tensor, x: Inputs) -> Tensor:
        """The outputs, shape (n, o); further axes of the module's output are joined."""
        require_vector("theta", theta, self.p, theta, "theta")
        for t in tensors(x):
            require_matching("x", t, theta, "theta")
        return self.evaluate(self.unflatten(theta), x)

    def evaluate(self, parameters: Mapping[str, Tensor], x: Inputs) -> Tensor:
        """As `R(theta, x)`, with theta already cut into named tensors; no checks."""
        z = self.run(parameters, x)
        return z.reshape(z.shape[0], -1)

    def run(
        self,
        parameters: Mapping[str, Tensor],
        x: Inputs,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As `evaluate`, with the axes that the module gave its output.

        Args:
            constants: buffers and frozen parameters by name; by default the copies
                that were made with this object.
        """
        self._require_evaluation_mode()
        like = next(iter(parameters.values()))
        args, kwargs = self._arguments(x)
        fixed = self._constants_like(like) if constants is None else constants
        state = {**fixed, **parameters}
        with _differentiable_kernels(self._recurrent and like.is_cuda):
            z = torch.func.functional_call(
                self.module, state, args, kwargs, tie_weights=self._tied
            )
        if not isinstance(z, Tensor) or z.ndim == 0:
            raise TypeError(
                "module: expected its output to be one tensor with a leading sample "
                f"axis, got {type(z).__name__} of shape {getattr(z, 'shape', None)}"
            )
        return z

    def linearize(self, theta: Tensor, x: Inputs) -> Linearization:
        """Run the forward pass once; see :class:`Linearization`."""
        require_vector("theta", theta, self.p, theta, "theta")
        for t in tensors(x):
            require_matching("x", t, theta, "theta")
        with differentiation():
            named = self.unflatten(outside_inference(theta.detach()))
            leaves = {n: t.detach().requires_grad_() for n, t in named.items()}
            x = map_inputs(outside_inference, x)
        return Rerun(self.run, x, self._certificates).linearize(leaves, x)

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

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The vector cut into named views of the parameters' shapes."""
        pieces = theta.split(self.sizes)
        return {
            n: t.view(s)
            for n, t, s in zip(self.names, pieces, self.shapes, strict=True)
        }

    def flatten(self, parameters: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`; tensors may come by name or in order."""
        if isinstance(parameters, Mapping):
            parameters = [parameters[n] for n in self.names]
        flat = [t.reshape(-1) for t in parameters]
        if tuple(t.numel() for t in flat) != self.sizes:
            raise ValueError(
                f"parameters: expected tensors of {self.sizes} entries, got "
                f"{tuple(t.numel() for t in flat)}"
            )
        return torch.cat(flat)

    def load(self, theta: Tensor) -> None:
        """Copy `theta` into the module's own parameters."""
        require_vector("theta", theta, self.p, self.theta0, "the module")
        named = dict(self.module.named_parameters())
        with torch.no_grad():
            for n, t in self.unflatten(theta).items():
                named[n].copy_(t)

    def _arguments(self, x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(x, Mapping) and set(x) <= self._keywords:
            return (), dict(x)
        if isinstance(x, tuple):
            return x, {}
        return (x,), {}

    def _constants_like(self, like: Tensor) -> dict[str, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._cast:
            self._cast[key] = {
                n: c.to(like.device, like.dtype if c.is_floating_point() else c.dtype)
                for n, c in self._constants.items()
            }
        return self._cast[key]

    def _require_evaluation_mode(self) -> None:
        for name, m in self._mode_dependent:
            trouble = _why_not_a_function(m)
            if trouble:
                raise ValueError(
                    f"module: layer {name or '(root)'!r} ({type(m).__name__}) {trouble}"
                )


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
        self._open = ExitStack()
        cuda = next(iter(self.leaves.values())).is_cuda
        self._open.enter_context(_differentiable_kernels(self.R._recurrent and cuda))
        for hook in (
            module.register_forward_pre_hook(self._start, with_kwargs=True),
            module.register_forward_hook(self._end),
        ):
            self._open.callback(hook.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._open.close()

    def _start(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if args and kwargs:
            raise ValueError(
                "closure: call the module with positional or with keyword arguments, "
                "not with both"
            )
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
        z = self.outputs
        if not isinstance(z, Tensor) or z.ndim == 0:
            raise ValueError(
                "closure: expected the module to give one tensor with a leading sample "
                f"axis, got {type(z).__name__} of shape {getattr(z, 'shape', None)}"
            )
        state = {**dict(self.R.module.named_buffers())}
        state |= {
            n: q.detach()
            for n, q in self.R.module.named_parameters()
            if n not in self.leaves
        }

        def run(parameters: Mapping[str, Tensor], x: Inputs) -> Tensor:
            return self.R.run(parameters, x, state)

        again = Rerun(run, self.inputs, self.R._certificates)
        return Linearization(z, self.leaves, self.calls, again)


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
    elif isinstance(m, nn.RReLU):
        if m.training:
            return "is random in training mode; call module.eval()"
    else:
        rate = getattr(m, "p", getattr(m, "dropout", 0.0))
        if m.training and float(rate) > 0:
            return f"drops units at random (rate {rate}); call module.eval()"
    return None


def _check_parameters(module: nn.Module, named: dict[str, nn.Parameter]) -> None:
    odd = [n for n, p in module.named_parameters() if not p.is_floating_point()]
    if odd:
        raise TypeError(f"module: parameter {odd[0]!r} is not real floating point")
    lazy = [n for n, p in named.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(f"module: parameter {lazy[0]!r} is lazy; run the module once")
    if not sum(p.numel() for p in named.values()):
        raise ValueError(
            f"module: {type(module).__name__} has no trainable parameters (frozen "
            "parameters and buffers do not count)"
        )
    for what in ("dtype", "device"):
        kinds = {getattr(p, what) for p in named.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"module: parameters of several {what}s: {sorted(map(str, kinds))}"
            )


def _keyword_names(module: nn.Module) -> set[str]:
    """Names that `forward` takes; a dict of these is passed as keywords."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(module.forward)
    return {n for n, q in signature.parameters.items() if q.kind in kinds}


def _differentiable_kernels(recurrent: bool) -> ExitStack:
    """Fused attention and cuDNN's recurrent layers lack second derivatives."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    if recurrent:
        cudnn = torch.backends.cudnn
        stack.enter_context(cudnn.flags(False, cudnn.benchmark, cudnn.deterministic))
    return stack
