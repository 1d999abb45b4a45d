r"""The derivative of R at one point: forward pass once, products many times."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geolib.core.inputs import Inputs, require_matching
from geolib.core.layers import Recorder, Use, exact_uses

if TYPE_CHECKING:
    from geolib.core.realization import Realization


_NO_SECOND_DERIVATIVE = re.compile(
    "derivative for|not implemented|differentiate twice|not have been used"
)


class Linearization:
    r"""Outputs of R at theta and the products of its Jacobian there.

    .. math:: R(\theta + \epsilon v, x) = z + \epsilon\, J v + O(\epsilon^2),
              \qquad J \in \mathbb{R}^{(n o) \times p}.

    The graph of the forward pass is kept. A `vjp` is one backward pass through it; a
    `jvp` is a backward pass through the graph of that backward pass (transposing the
    transpose), so neither ever runs the model again. Memory: the activations of the
    batch, twice after the first `jvp`. Where an operation has no second derivative
    formula, `jvp` falls back to forward mode, at one more forward pass each.

    Attributes:
        outputs: z, shape (n, o).

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
        recorder = Recorder(self._leaves) if R.recordable else nullcontext()
        with recorder:
            self._z = R.evaluate(self._leaves, x)
        self._uses = getattr(recorder, "uses", [])
        self.outputs = self._z.detach()
        self._exact: list[Use] | None = None
        self._transpose: tuple[Tensor | None, list[Tensor]] | None = None

    @property
    def p(self) -> int:
        """Number of parameters."""
        return self.R.p

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (n, o); a batch of shape (k, p) gives (k, n, o)."""
        self._check("v", v, (self.p,))
        if not self._z.requires_grad:  # no parameter reaches the outputs
            return v.new_zeros(v.shape[:-1] + self.outputs.shape)
        u, g = self._transposed()
        if u is None:
            return self._forward_mode(v)
        pieces = zip(v.split(self.R.sizes, dim=-1), self.R.shapes, g, strict=True)
        moving = [
            (gi, t.reshape(v.shape[:-1] + s)) for t, s, gi in pieces if gi.requires_grad
        ]
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
            self._transpose = (None, [])
            return self._forward_mode(v)
        return out

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u for u of shape (n, o), shape (p,); a batch (k, n, o) gives (k, p)."""
        self._check("u", u, tuple(self.outputs.shape))
        return self._backward(u, list(self._leaves.values()))

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
        if self._exact is None:
            uses = self._uses
            self._exact = exact_uses(uses, self._leaves, self._z) if uses else []
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
        """As :meth:`vjp`, only for the named parameters, in that order."""
        self._check("u", u, tuple(self.outputs.shape))
        return self._backward(u, [self._leaves[n] for n in names])

    def _backward(self, u: Tensor, leaves: list[Tensor]) -> Tensor:
        batch = u.shape[:-2]
        if not self._z.requires_grad:
            return u.new_zeros((*batch, sum(t.numel() for t in leaves)))
        grads = torch.autograd.grad(
            self._z,
            leaves,
            u,
            retain_graph=True,
            is_grads_batched=u.ndim == 3,
            allow_unused=True,
        )
        flat = [
            u.new_zeros((*batch, t.numel()))
            if g is None
            else g.reshape((*batch, t.numel()))
            for g, t in zip(grads, leaves, strict=True)
        ]
        return torch.cat(flat, dim=-1)

    def _transposed(self) -> tuple[Tensor | None, list[Tensor]]:
        """A dummy u and J^T u as a graph in u; made at the first call."""
        if self._transpose is None:
            u = torch.zeros_like(self.outputs, requires_grad=True)
            g = torch.autograd.grad(
                self._z,
                list(self._leaves.values()),
                u,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            self._transpose = (u, list(g))
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
