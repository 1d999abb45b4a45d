r"""The derivative of R at one point: forward pass once, products many times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geolib.core.inputs import Inputs, require_matching
from geolib.core.layers import Recorder, Use, exact_uses

if TYPE_CHECKING:
    from geolib.core.realization import Realization


_NO_SECOND_DERIVATIVE = re.compile(
    "derivative for|not implemented|differentiate twice|not have been used"
)


@dataclass(frozen=True)
class _Sources:
    """Where the parameters enter the graph: linear layers, and all other leaves."""

    exact: list[Use]
    uses: list[Use]
    rest: list[str]
    tensors: list[Any]  # graph edges and tensors


def _slices(sizes: tuple[int, ...]) -> Iterator[slice]:
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        yield slice(end - size, end)


class Linearization:
    r"""Outputs of R at theta and the products of its Jacobian there.

    .. math:: R(\theta + \epsilon v, x) = z + \epsilon\, J v + O(\epsilon^2),
              \qquad J \in \mathbb{R}^{(n o) \times p}.

    The graph of the forward pass is kept. A `vjp` is one backward pass through it; a
    `jvp` is a backward pass through the graph of that backward pass (transposing the
    transpose), so neither ever runs the model again. Both go around the weights of
    linear layers, whose part is one matrix product with the layer's input, written
    where it belongs. Memory: the activations of the batch, twice after the first
    `jvp`. Where an operation has no second derivative formula, `jvp` falls back to
    forward mode, at one more forward pass each.

    Attributes:
        outputs: z, shape (n, o).
        output_shape: the axes of one sample's output as the module gave them, o in all.
        places: where each named parameter lies in the vector.

    Cost: about 1 forward pass per `jvp` and 2 per `vjp`; `jacobian` costs n*o `vjp`.

    Examples:
        >>> from geolib.core import Realization
        >>> R = Realization(torch.nn.Linear(3, 2))
        >>> L = R.linearize(R.theta0, torch.ones(5, 3))
        >>> L.jvp(torch.ones(8))[0]
        tensor([4., 4.])
        >>> L.vjp(torch.ones(5, 2))
        tensor([5., 5., 5., 5., 5., 5., 5., 5.])
    """

    def __init__(self, R: Realization, theta: Tensor, x: Inputs) -> None:
        self.R = R
        self.theta = theta.detach()
        self.x = x
        self._leaves = {
            n: t.detach().requires_grad_() for n, t in R.unflatten(self.theta).items()
        }
        with Recorder(self._leaves) as recorder:
            z = R.run(self._leaves, x)
        self._z, self.output_shape = z.reshape(len(z), -1), z.shape[1:] or (1,)
        self._uses = recorder.uses
        self.outputs = self._z.detach()
        self._exact: list[Use] | None = None
        self._plan: _Sources | None = None
        self.places = dict(zip(R.names, _slices(R.sizes), strict=True))
        self._transpose: tuple[_Sources, Tensor | None, list[Tensor]] | None = None

    @property
    def p(self) -> int:
        """Number of parameters."""
        return self.R.p

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (n, o); a batch of shape (k, p) gives (k, n, o)."""
        self._check("v", v, (self.p,))
        if not self._z.requires_grad:  # no parameter reaches the outputs
            return v.new_zeros(v.shape[:-1] + self.outputs.shape)
        sources, u, g = self._transposed()
        if u is None:
            return self._forward_mode(v)
        pairs = zip(g, self._tangents(sources, v), strict=True)
        moving = [(gi, t) for gi, t in pairs if gi.requires_grad]
        try:
            (out,) = torch.autograd.grad(
                [gi for gi, _ in moving],
                u,
                [t for _, t in moving],
                retain_graph=True,
                is_grads_batched=v.ndim == 2,
            )
        except (RuntimeError, NotImplementedError) as error:
            if not _NO_SECOND_DERIVATIVE.search(str(error)):
                raise
            self._transpose = (sources, None, [])
            return self._forward_mode(v)
        return out

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u for u of shape (n, o), shape (p,); a batch (k, n, o) gives (k, p)."""
        self._check("u", u, tuple(self.outputs.shape))
        batch = u.shape[:-2]
        if not self._z.requires_grad:  # no parameter reaches the outputs
            return u.new_zeros((*batch, self.p))
        sources = self._sources()
        grads = torch.autograd.grad(
            self._z,
            sources.tensors,
            u,
            retain_graph=True,
            is_grads_batched=u.ndim == 3,
            allow_unused=True,
        )
        return self._gathered(sources, grads, u.new_empty((*batch, self.p)))

    def jacobian(self, chunk: int = 256) -> Tensor:
        """The dense Jacobian, shape (n, o, p), `chunk` rows at a time.

        Cost: n*o*p numbers of memory and n*o backward passes, batched.
        """
        n, o = self.outputs.shape
        rows = torch.empty(n * o, self.p, dtype=self.theta.dtype)
        rows = rows.to(self.theta.device)
        for start in range(0, n * o, chunk):
            index = torch.arange(start, min(start + chunk, n * o))
            seeds = torch.zeros(len(index), n * o, dtype=rows.dtype, device=rows.device)
            seeds[torch.arange(len(index)), index] = 1.0
            rows[start : start + chunk] = self.vjp(seeds.view(-1, n, o))
        return rows.view(n, o, self.p)

    def linear_uses(self) -> list[Use]:
        """The recorded uses of the weights that only linear layers use."""
        changed = (u.x._version != u.version for u in self._exact or ())
        if self._exact is None or any(changed):
            self._exact = []
            if self._uses:
                self._exact = exact_uses(self._uses, self._leaves, self._z)
        return self._exact

    def pull_to(self, uses: list[Use], u: Tensor) -> list[Tensor]:
        """Gradients of <u, z> in the outputs of `uses`; u as in :meth:`vjp`."""
        return list(
            torch.autograd.grad(
                self._z,
                [use.edge for use in uses],
                u,
                retain_graph=True,
                is_grads_batched=u.ndim == 3,
            )
        )

    def vjp_to(self, names: list[str], u: Tensor) -> Tensor:
        """As :meth:`vjp` of one u, only for the named parameters, in that order."""
        self._check("u", u, tuple(self.outputs.shape))
        leaves = [self._leaves[n] for n in names]
        grads = torch.autograd.grad(
            self._z, leaves, u, retain_graph=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in grads])

    def _sources(self) -> _Sources:
        """Outputs of the linear layers, and the parameters that none of them holds."""
        exact = self.linear_uses()
        if self._plan is None or self._plan.exact is not exact:
            uses = [u for u in exact if u.kind == "linear"]
            held = {u.weight for u in uses} | {u.bias for u in uses}
            rest = [n for n in self.R.names if n not in held]
            tensors: list[Any] = [u.edge for u in uses]
            tensors += [self._leaves[n] for n in rest]
            self._plan = _Sources(exact, uses, rest, tensors)
        return self._plan

    def _tangents(self, sources: _Sources, v: Tensor) -> list[Tensor]:
        """What v (p,) or (k, p) adds to each source, to first order."""

        def piece(name: str) -> Tensor:
            t = v[..., self.places[name]]
            return t.view(v.shape[:-1] + self._leaves[name].shape)

        pushed = [
            u.push(piece(u.weight), None if u.bias is None else piece(u.bias))
            for u in sources.uses
        ]
        return pushed + [piece(name) for name in sources.rest]

    def _gathered(
        self, sources: _Sources, grads: Sequence[Tensor | None], out: Tensor
    ) -> Tensor:
        """The gradients in the sources as gradients in the parameters, in `out`."""
        seen: set[str] = set()

        def place(name: str) -> Tensor:
            t = out[..., self.places[name]]
            return t.view(out.shape[:-1] + self._leaves[name].shape)

        for use, g in zip(sources.uses, grads, strict=False):
            assert g is not None  # the graph of z holds each use
            bias = None if use.bias is None else place(use.bias)
            use.pull(g, place(use.weight), bias, use.weight in seen)
            seen.add(use.weight)
        for name, g in zip(sources.rest, grads[len(sources.uses) :], strict=True):
            place(name).copy_(torch.zeros(()) if g is None else g)
        return out

    def _transposed(self) -> tuple[_Sources, Tensor | None, list[Tensor]]:
        """A dummy u and the sources' gradients as a graph in u; made once."""
        sources = self._sources()
        if self._transpose is None or self._transpose[0] is not sources:
            u = torch.zeros_like(self.outputs, requires_grad=True)
            g = torch.autograd.grad(
                self._z,
                sources.tensors,
                u,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            self._transpose = (sources, u, list(g))
        return self._transpose

    def _forward_mode(self, v: Tensor) -> Tensor:
        def push(t: Tensor) -> Tensor:
            return torch.func.jvp(lambda s: self.R(s, self.x), (self.theta,), (t,))[1]

        return push(v) if v.ndim == 1 else torch.stack([push(t) for t in v])

    def _check(self, name: str, t: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
        extra = t.ndim - len(shape)
        if extra not in (0, 1) or tuple(t.shape[extra:]) != shape:
            raise ValueError(
                f"{name}: expected shape {shape} or (k, *{shape}), got {tuple(t.shape)}"
            )
        require_matching(name, t, self.theta, "theta")
