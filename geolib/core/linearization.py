r"""The derivative of R at one point: forward pass once, products many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise, starmap
from typing import Annotated, Any

import torch
from torch import Tensor

from .linear_calls import CallRecorder, LinearCall, exact_calls, gradients, unbiased
from .validation import (
    Inputs,
    expect,
    map_inputs,
    outside_inference,
    require_matching,
    single,
)


@dataclass(frozen=True)
class _Sources:
    """Where the parameters enter the graph: linear layers, and all other leaves."""

    exact: list[LinearCall]
    calls: list[LinearCall]
    rest: list[str]
    tensors: list[Any]  # graph edges and tensors


@contextmanager
def differentiation() -> Iterator[None]:
    """Derivatives are taken, also where the caller switched gradients off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


MISFIT = RuntimeError, TypeError, LookupError, AttributeError  # of inputs, in a module
NO_FORMULA = (  # what torch says where a backward pass cannot be differentiated
    "implement", "differentiate twice", "double backward", "batching rule", "vmap", "forward ad",
    "not have been used in the graph", "does not require grad", "non-empty inputs",
)  # fmt: skip


def lacks_formula(error: RuntimeError) -> bool:
    """Whether torch says that it has no such derivative; all else is the caller's."""
    told = isinstance(error, NotImplementedError)
    return told or any(words in str(error).lower() for words in NO_FORMULA)


@dataclass(frozen=True)
class Rerun:
    """How to run the same model again, on other parameters or on some of the samples.

    Attributes:
        run: named parameters and inputs to outputs with all their axes.
        x: the inputs of the graph at hand.
        certificates: which recorded layers lead with the samples; filled on first use
            and shared by all linearizations of one model.
    """

    run: Callable[[Mapping[str, Tensor], Inputs], Tensor]
    x: Inputs
    certificates: dict[tuple, list[bool]] = field(default_factory=dict)

    def linearize(self, named: Mapping[str, Tensor], x: Inputs) -> Linearization:
        """Run the model once on `x`, recorded, and keep the graph."""
        with differentiation():
            leaves = {n: t.detach().requires_grad_() for n, t in named.items()}
            with CallRecorder(leaves) as recorder:
                z = self.run(leaves, x)
        return Linearization(z, leaves, recorder.calls, replace(self, x=x))


class Linearization:
    r"""Outputs of R at theta and the products of its Jacobian there.

    .. math:: R(\theta + \epsilon v, x) = z + \epsilon\, J v + O(\epsilon^2),
              \qquad J \in \mathbb{R}^{(n o) \times p}.

    The graph of the forward pass is kept. A `vjp` is one backward pass through it; a
    `jvp` is a backward pass through the graph of that backward pass (transposing the
    transpose), so neither ever runs the model again. Both go around the weights of
    linear layers, whose part is one matrix product with the layer's input, written
    where it belongs. Memory: the activations of the batch, twice after the first
    `jvp`. Where an operation cannot be differentiated twice, `jvp` runs in forward mode,
    at one more forward pass each; where it lacks that too (`EmbeddingBag`, `cdist`),
    from the Jacobian, whose n*o rows are one backward pass each, once.

    `R.linearize(theta, x)` makes one by running the model. An optimizer whose closure
    has run the module already makes one from that graph instead, and with it
    `Metric.from_linearization`:

    .. code-block:: python

        R = Realization(module)               # once
        with R.recording() as record:
            loss = closure()                  # calls the module
        L = record.linearization()            # no forward pass more
        G = Metric.from_linearization(L, Categorical())
        x = G.solve(u, damping).x             # u: d loss / d outputs, shape (n, o)

    Args:
        outputs: z with its graph, shape (n, ...); further axes are joined.
        leaves: the parameters, by name, in the order of the flat vector; leaves of
            that graph.
        calls: what a :class:`CallRecorder` noted while the graph was made. Without
            them every weight is treated as an unknown parameter: right, but slow.
        again: how to run the model again. Without it the rows of parameters outside
            linear layers cost one backward pass each.

    Attributes:
        outputs: z, shape (n, o), without its graph.
        graph: z with its graph.
        output_shape: the axes of one sample's output as the module gave them, o in all.
        places: where each named parameter lies in the vector.

    Raises:
        ValueError: outputs without a leading sample axis.

    Cost: about 1 forward pass per `jvp` and 2 per `vjp`; `jacobian` costs n*o `vjp`.

    Source: :eq:`drv-core-transpose` (derivations).

    Examples:
        >>> from geolib.core import Realization
        >>> R = Realization(torch.nn.Linear(3, 2))
        >>> L = R.linearize(R.theta0, torch.ones(5, 3))
        >>> L.jvp(torch.ones(8))[0]
        tensor([4., 4.])
        >>> L.vjp(torch.ones(5, 2))
        tensor([5., 5., 5., 5., 5., 5., 5., 5.])
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> Linearization((w**2).view(2, 1), {"w": w}).jvp(torch.ones(2)).tolist()
        [[2.0], [4.0]]
    """

    def __init__(
        self,
        outputs: Annotated[Tensor, "n ..."],
        leaves: Mapping[str, Tensor],
        calls: Sequence[LinearCall] = (),
        again: Rerun | None = None,
    ) -> None:
        with differentiation():
            self.graph = outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]
        self.output_shape = outputs.shape[1:] or torch.Size([1])
        self.outputs = self.graph.detach()
        self.leaves, self._calls, self.again = dict(leaves), list(calls), again
        sizes = [t.numel() for t in self.leaves.values()]
        ends = [0, *accumulate(sizes)]
        self.p = ends[-1]
        self.places = dict(
            zip(self.leaves, starmap(slice, pairwise(ends)), strict=True)
        )
        self._exact: list[LinearCall] | None = None
        self._plan: _Sources | None = None
        self._transpose: tuple[_Sources, Tensor, list[Tensor]] | None = None

    @cached_property
    def theta(self) -> Tensor:
        """The parameters as one vector, shape (p,)."""
        return torch.cat([t.detach().reshape(-1) for t in self.leaves.values()])

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (n, o); a batch of shape (k, p) gives (k, n, o)."""
        v = self._check("v", v, (self.p,))
        if not self.graph.requires_grad:  # no parameter reaches the outputs
            return v.new_zeros(v.shape[:-1] + self.outputs.shape)
        with differentiation():
            return self._jvp(outside_inference(v))

    def _jvp(self, v: Tensor) -> Tensor:
        (u, tensors), sources = self._transposed(), self._sources()
        added = [call.push(*self._parts(v, call)) for call in sources.calls]
        added += [self._part(v, name) for name in sources.rest]
        pairs = zip(tensors, added, strict=True)
        moving = [(gi, t) for gi, t in pairs if gi.requires_grad]
        grads, tangents = map(list, zip(*moving, strict=True)) if moving else ([], [])
        many = v.ndim == 2
        try:
            return torch.autograd.grad(
                grads, u, tangents, retain_graph=True, is_grads_batched=many
            )[0]
        except RuntimeError as error:
            if self.again is None or not lacks_formula(error):
                raise
        try:
            return torch.stack(list(map(self._pushed, v))) if many else self._pushed(v)
        except RuntimeError as error:
            if not lacks_formula(error):
                raise
            return torch.einsum("nop,...p->...no", self.rows, v)

    def _pushed(self, v: Tensor) -> Tensor:
        """As :meth:`jvp`, in forward mode: by running the model again."""
        assert self.again is not None
        named = {n: t.detach() for n, t in self.leaves.items()}
        tangents = {n: v[self.places[n]].view(t.shape) for n, t in named.items()}
        run, x = self.again.run, self.again.x
        z = torch.func.jvp(lambda named: run(named, x), (named,), (tangents,))[1]
        return z.reshape(self.outputs.shape)

    def single(self) -> Linearization:
        """The model run again in float32, where it is in half precision.

        Raises:
            TypeError: it is not known how to run it.
        """
        if self.again is None:
            what = "half precision is solved for in float32"
            raise TypeError(f"L: {what}; expected one that R.linearize made")
        named = {n: single(t) for n, t in self.leaves.items()}
        return self.again.linearize(named, map_inputs(single, self.again.x))

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u for u of shape (n, o), shape (p,); a batch (k, n, o) gives (k, p)."""
        u = self._check("u", u, tuple(self.outputs.shape))
        batch = u.shape[:-2]
        if not self.graph.requires_grad:  # no parameter reaches the outputs
            return u.new_zeros((*batch, self.p))
        sources = self._sources()
        grads = self._gradients(sources.tensors, u)
        return self._gathered(sources, grads, u.new_empty((*batch, self.p)))

    def _gradients(self, places: Sequence[Any], u: Tensor) -> list[Tensor]:
        """Gradients of <u, z> in tensors and edges of the graph; u as in :meth:`vjp`."""
        u, many = outside_inference(u), u.ndim == 3
        with differentiation():
            return gradients(self.graph, places, u, is_grads_batched=many)

    def jacobian(self, chunk: int = 256) -> Tensor:
        """The dense Jacobian, shape (n, o, p), `chunk` rows or columns at a time.

        Cost: twice n*o*p numbers of memory; min(p, n*o) backward passes, batched.
        """
        n, o = self.outputs.shape
        if self.p < n * o and self.graph.requires_grad:
            try:
                columns = [self.jvp(v) for v in self._units(self.p, chunk)]
                return torch.cat(columns).permute(1, 2, 0)
            except RuntimeError as error:
                if not lacks_formula(error):
                    raise
                # an operation without a second derivative: row by row
        rows = [self.vjp(u.view(-1, n, o)) for u in self._units(n * o, chunk)]
        return torch.cat(rows).view(n, o, self.p)

    def _units(self, size: int, chunk: int) -> Iterator[Tensor]:
        """The unit vectors of so many axes, `chunk` at a time."""
        for start in range(0, size, chunk):
            unit = self.outputs.new_zeros(min(chunk, size - start), size)
            unit.diagonal(start).fill_(1.0)
            yield unit

    @cached_property
    def rows(self) -> Tensor:
        """The Jacobian by one backward pass a row, where torch can batch none of it."""
        unit = torch.eye(self.outputs.numel()).to(self.outputs)
        grads = [self.vjp(e.view_as(self.outputs)) for e in unit]
        return torch.stack(grads).view(*self.outputs.shape, self.p)

    def linear_calls(self) -> list[LinearCall]:
        """The recorded calls of the weights that only linear layers use."""
        changed = (u.x._version != u.version for u in self._exact or ())
        if self._exact is None or any(changed):
            self._exact = []
            if self._calls:
                self._exact = exact_calls(self._calls, self.leaves, self.graph)
        return self._exact

    def pull_to(self, calls: list[LinearCall], u: Tensor) -> list[Tensor]:
        """Gradients of <u, z> in the outputs of `calls`; u as in :meth:`vjp`."""
        return self._gradients([call.edge for call in calls], u)

    def _sources(self) -> _Sources:
        """Outputs of the linear layers, and the parameters that none of them holds."""
        exact = self.linear_calls()
        if self._plan is None or self._plan.exact is not exact:
            others = {u.bias for u in exact if u.kind != "linear"}
            calls = [u for u in exact if u.kind == "linear"]
            calls = [unbiased(u) if u.bias in others else u for u in calls]
            held = {u.weight for u in calls} | {u.bias for u in calls}
            rest = [n for n in self.leaves if n not in held]
            tensors: list[Any] = [u.edge for u in calls]
            tensors += [self.leaves[n] for n in rest]
            self._plan = _Sources(exact, calls, rest, tensors)
        return self._plan

    def _part(self, v: Tensor, name: str) -> Tensor:
        """The view of a flat v, (p,) or (k, p), that is one parameter's."""
        t = v[..., self.places[name]]
        return t.view(v.shape[:-1] + self.leaves[name].shape)

    def _parts(self, v: Tensor, call: LinearCall) -> tuple[Tensor, Tensor | None]:
        """Those of a layer's weight and bias."""
        bias = None if call.bias is None else self._part(v, call.bias)
        return self._part(v, call.weight), bias

    def _gathered(
        self, sources: _Sources, grads: Sequence[Tensor], out: Tensor
    ) -> Tensor:
        """The gradients in the sources as gradients in the parameters, in `out`."""
        seen: set[str | None] = set()
        for call, g in zip(sources.calls, grads, strict=False):
            known = call.weight in seen, call.bias in seen
            call.pull(g, *self._parts(out, call), *known)
            seen |= {call.weight, call.bias}
        for name, g in zip(sources.rest, grads[len(sources.calls) :], strict=True):
            self._part(out, name).copy_(g)
        return out

    def _transposed(self) -> tuple[Tensor, list[Tensor]]:
        """A dummy u and the sources' gradients as a graph in u; made once."""
        sources = self._sources()
        if self._transpose is None or self._transpose[0] is not sources:
            u = torch.zeros_like(self.outputs, requires_grad=True)
            g = gradients(self.graph, sources.tensors, u, create_graph=True)
            self._transpose = (sources, u, g)
        return self._transpose[1:]

    def _check(self, name: str, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        extra, got = t.ndim - len(shape), tuple(t.shape)
        fits = extra in (0, 1) and got[extra:] == shape
        expect(fits, name, f"shape {shape} or (k, *{shape})", got)
        require_matching(name, t, self.outputs, "theta")
        return t.detach() if t.requires_grad else t  # no graph runs through it
