r"""The geometry at one point: every derivative an optimizer here may use.

All of it is read from the graph of one forward pass, by reverse mode only, so that it
works for any closure over any list of parameter tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from geolib.core import Metric, Solution
from geolib.core.output_metrics import LocalMetric
from geolib.naturality.outputs import OutputGeometry


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector out of a list of tensors."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`, with the shapes of `like`."""
    pieces = flat.split([t.numel() for t in like])
    return [q.reshape(t.shape) for q, t in zip(pieces, like, strict=True)]


class Point:
    r"""Outputs z = f(x), their loss, and derivatives with respect to `params`.

    .. math:: g = J^T d\ell, \qquad F = J^T W J, \qquad
        [vw, k] = J^T\bigl(W\,D^2f[v, w] + [Jv\,Jw, \cdot\,]_W\bigr).

    Args:
        outputs: (n, c), with a graph to `params`.
        loss: a scalar function of `outputs`.
        params: leaf tensors; p numbers in all.
        geometry: the metric W on outputs.
        rtol: eigenvalues of F below `rtol` times the largest count as zero.
        metric: the same F as core's operator, where the network is known; it then
            solves, and nothing of size n c p is formed unless asked for.

    Raises:
        ValueError: outputs of another shape, a non-finite loss or gradient, a metric
            that is not positive semi-definite, sparse gradients.

    Cost: without `metric` J is materialised for a solve, N = n c rows of p numbers (one
    batched backward pass).

    Source: pull-back of a metric and of its Levi-Civita connection; standard.
    """

    def __init__(
        self,
        outputs: Tensor,
        loss: Tensor,
        params: Sequence[Tensor],
        geometry: OutputGeometry,
        rtol: float = 1e-10,
        metric: Metric | None = None,
    ) -> None:
        if outputs.ndim != 2:
            raise ValueError(
                f"closure: expected outputs of shape (n, c), got {tuple(outputs.shape)}"
            )
        if loss.numel() != 1 or not bool(torch.isfinite(loss)):
            raise ValueError(
                f"closure: expected a finite scalar loss, got {loss.detach()}"
            )
        self.graph, self.params, self.geometry = outputs, list(params), geometry
        self.z = outputs.detach()
        self.loss, self.rtol, self.metric = loss, rtol, metric
        self.solution: Solution | None = None
        (dl,) = torch.autograd.grad(
            loss, outputs, retain_graph=True, materialize_grads=True
        )
        self.dl = dl.detach()
        # At scale the parameters' gradient is not formed: a step that is not finite is
        # refused anyway.
        seen = self.dl if metric is not None else self.g
        if not bool(torch.isfinite(seen).all()):
            raise ValueError("closure: the gradient has entries that are not finite")

    @cached_property
    def g(self) -> Tensor:
        """The gradient of the loss, (p,)."""
        return self.vjp(self.dl)

    @cached_property
    def local(self) -> LocalMetric:
        """The matrices n W of all samples, with their roots."""
        return self.geometry.metric.at(self.z, slice(0, len(self.z)))

    def vjp(self, u: Tensor) -> Tensor:
        r"""The covector :math:`J^T u`, (p,)."""
        return flatten(self._grad(self.graph, u, create=False)).detach()

    def _grad(self, z: Tensor, u: Tensor, create: bool = True) -> list[Tensor]:
        if not z.requires_grad:
            return [torch.zeros_like(q) for q in self.params]
        grads = torch.autograd.grad(
            z,
            self.params,
            u,
            retain_graph=True,
            create_graph=create,
            materialize_grads=True,
        )
        for k, t in enumerate(grads):
            if t.layout != torch.strided:
                raise ValueError(
                    f"closure: parameter {k} has a sparse gradient; expected dense "
                    "ones (an embedding with sparse=False)"
                )
        return list(grads)

    @cached_property
    def J(self) -> Tensor:
        """The Jacobian of the outputs, (n c, p)."""
        N = self.z.numel()
        seeds = torch.eye(N, dtype=self.z.dtype, device=self.z.device)
        return self._rows(self.graph, seeds.view(N, *self.z.shape))

    def _rows(self, z: Tensor, seeds: Tensor) -> Tensor:
        """The gradients of <seed, z> for each of N seeds, (N, p)."""
        grads: Sequence[Tensor | None] = torch.autograd.grad(
            z,
            self.params,
            seeds,
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
        N = len(seeds)
        rows = [
            seeds.new_zeros(N, q.numel()) if r is None else r.reshape(N, -1)
            for r, q in zip(grads, self.params, strict=True)
        ]
        return torch.cat(rows, dim=1).detach()

    @cached_property
    def W(self) -> Tensor:
        """The metric's blocks at z, (n, c, c)."""
        return self.geometry.blocks(self.z)

    def weigh(self, u: Tensor) -> Tensor:
        """W u for outputs-shaped u, (n, c)."""
        return self.local.apply(u) / len(self.z)

    def unweigh(self, u: Tensor) -> Tensor:
        """The pseudo-inverse of W applied to u, (n, c)."""
        return torch.einsum(
            "nij,nj->ni", torch.linalg.pinv(self.W, hermitian=True, rtol=1e-12), u
        )

    @cached_property
    def A(self) -> Tensor:
        r"""The weighted Jacobian, root by root, (n r, p): :math:`F = A^TA`."""
        n, c = self.z.shape
        J = self.J.view(n, c, -1).permute(2, 0, 1)
        A = self.local.root_t(J).permute(1, 2, 0) / n**0.5
        return A.reshape(-1, J.shape[0])

    @cached_property
    def F(self) -> Tensor:
        r"""The Fisher metric :math:`J^T W J`, (p, p)."""
        return self.A.T @ self.A

    def jvp(self, v: Tensor) -> Tensor:
        r"""The tangent :math:`Jv`, (n, c): by J, or without it where core solves."""
        if self.metric is None:
            return (self.J @ v).view_as(self.z)
        u, s = self._row
        if not s.requires_grad:
            return torch.zeros_like(self.z)
        return torch.autograd.grad(s, u, v, retain_graph=True)[0]

    @cached_property
    def _row(self) -> tuple[Tensor, Tensor]:
        """s(u) = J^T u as a graph in both u and the parameters."""
        u = torch.zeros_like(self.z, requires_grad=True)
        return u, flatten(self._grad(self.graph, u))

    def second(self, v: Tensor, w: Tensor) -> Tensor:
        r"""The second derivative :math:`D^2 f[v, w]`, (n, c)."""
        u, s = self._row
        jv = torch.autograd.grad(s, u, v, create_graph=True, materialize_grads=True)[0]
        u2 = torch.zeros_like(self.z, requires_grad=True)
        t = flatten(self._grad(jv, u2))
        if not t.requires_grad:
            return torch.zeros_like(self.z)
        out = torch.autograd.grad(t, u2, w, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(self.z) if out is None else out.detach()

    def curvature(self, a: Tensor) -> Tensor:
        r"""The Hessian of :math:`\langle a, f\rangle` for frozen a, (p, p)."""
        s = flatten(self._grad(self.graph, a))
        p = s.numel()
        if not s.requires_grad:
            return s.new_zeros(p, p)
        return self._rows(s, torch.eye(p, dtype=s.dtype, device=s.device))

    def hvp(self, a: Tensor, w: Tensor) -> Tensor:
        r"""The product :math:`\langle a, D^2f[w, \cdot]\rangle` for frozen a, (p,)."""
        s = flatten(self._grad(self.graph, a))
        if not s.requires_grad:
            return torch.zeros_like(w)
        return flatten(self._grad(s, w, create=False)).detach()

    def christoffel(self, v: Tensor, w: Tensor) -> Tensor:
        r"""First-kind symbols of F contracted with v and w: :math:`[vw, k]`, (p,)."""
        return self.vjp(self.bend(v, w))

    def bend(self, v: Tensor, w: Tensor) -> Tensor:
        r"""The covector on outputs whose pull-back is :math:`[vw, k]`, (n, c)."""
        return self.weigh(self.second(v, w)) + self._connection(v, w)

    def _connection(self, v: Tensor, w: Tensor) -> Tensor:
        """W's own symbols at J v and J w."""
        third = self.geometry.christoffel
        if third is None:
            return torch.zeros_like(self.z)
        return third(self.z, self.jvp(v), self.jvp(w)) / len(self.z)

    def transport(self, m: Tensor, u: Tensor, w: Tensor) -> Tensor:
        r"""The rate :math:`[\,\cdot\, w, u]` at which m = F u is parallel along w."""
        out = self.hvp(self.weigh(self.jvp(u)), w)
        if self.geometry.christoffel is not None:
            out = out + self.vjp(self._connection(w, u))
        return m + out

    def solve(
        self,
        v: Tensor,
        damping: float = 0.0,
        metric: Tensor | Callable[[], Tensor] | None = None,
    ) -> Tensor:
        r"""The vector :math:`(F + \lambda M)^{-1}v`, M = I unless given, (p,).

        With `damping=0` it is a generalized inverse: the minimum-norm one, or with a
        `metric` M the one of minimum M-norm.

        Args:
            v: a covector, (p,), or one on the outputs, (n, c), that stands for
                :math:`J^T v`: in function space it keeps more digits.

        Raises:
            ValueError: M not positive definite, of another shape or not finite.

        Cost: core's, where the network is known. Otherwise one eigendecomposition of
        min(p, n r) rows; with M, a Cholesky factorization of p rows more.
        """
        if metric is None and self.metric is not None:
            s = self.solution = self.metric.solve(v, damping, rtol=self.rtol)
            return s.x
        v = self.vjp(v) if v.ndim == 2 else v
        if metric is None:
            return _pseudo_solve(self.A, self._eigen, v, damping, self.rtol)
        M = metric() if callable(metric) else metric
        return solve_weighted(self.A, v, damping, M, self.rtol)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return _small_eigen(self.A)


def solve_weighted(
    A: Tensor, v: Tensor, damping: float, M: Tensor | None, rtol: float
) -> Tensor:
    r"""The vector :math:`(A^TA + \lambda M)^{+}v`, of minimum M-norm, (p,)."""
    if M is None:
        return _pseudo_solve(A, _small_eigen(A), v, damping, rtol)
    p = A.shape[1]
    if M.shape != (p, p) or not bool(torch.isfinite(M).all()):
        raise ValueError(
            f"damping_metric: expected a finite matrix of shape {(p, p)}, got "
            f"{tuple(M.shape)}"
        )
    L, info = torch.linalg.cholesky_ex(M)
    if int(info):
        raise ValueError("damping_metric: expected a positive definite matrix")
    A = torch.linalg.solve_triangular(L, A.T, upper=False).T
    y = torch.linalg.solve_triangular(L, v[:, None], upper=False)[:, 0]
    y = _pseudo_solve(A, _small_eigen(A), y, damping, rtol)
    return torch.linalg.solve_triangular(L.T, y[:, None], upper=True)[:, 0]


def _small_eigen(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of the smaller of A^T A and A A^T."""
    w, U = torch.linalg.eigh(A.T @ A if A.shape[1] <= A.shape[0] else A @ A.T)
    return w, U


def _pseudo_solve(
    A: Tensor, eigen: tuple[Tensor, Tensor], v: Tensor, damping: float, rtol: float
) -> Tensor:
    """(A^T A + damping)^+ v through the smaller of A^T A and A A^T."""
    w, U = eigen
    if A.shape[1] <= A.shape[0]:
        return U @ (_reciprocal(w, damping, rtol) * (U.T @ v))
    b = U.T @ (A @ v)
    if damping > 0:  # Woodbury
        return (v - A.T @ (U @ (b / (w.clamp(min=0) + damping)))) / damping
    return A.T @ (U @ (_reciprocal(w, 0.0, rtol) ** 2 * b))


def _reciprocal(w: Tensor, damping: float, rtol: float) -> Tensor:
    if damping > 0:
        return 1 / (w.clamp(min=0) + damping)
    keep = w > rtol * w[-1].clamp(min=0)
    return torch.where(keep, 1 / torch.where(keep, w, 1.0), 0.0)
