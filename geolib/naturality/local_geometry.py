r"""The geometry at one point: every derivative an optimizer here may use.

All of it is read from the graph of one forward pass, by reverse mode only, so that it
works for any closure over any list of parameter tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    Linearization,
    Metric,
    OutputMetric,
    Solution,
)
from geolib.core.linear_calls import graph_nodes
from geolib.core.linear_solvers import RootSystem
from geolib.core.linearization import lacks_formula
from geolib.core.output_metrics import LocalMetric
from geolib.core.validation import expect, require_matching

LARGE = 1 << 24  # entries of a Jacobian beyond which no factorization of it is made
ZERO = 1e-24  # audits cut the metric's eigenvalues here: singular values of A at 1e-12


class Diverged(ValueError):
    """A run left the finite numbers, or met a matrix that is not positive definite."""


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector out of a list of tensors."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`, with the shapes of `like`."""
    pieces = flat.split([t.numel() for t in like])
    return [q.reshape(t.shape) for q, t in zip(pieces, like, strict=True)]


Vector = Annotated[Tensor, "real self.linearization.p"]


class LocalGeometry:
    r"""Outputs z = f(x), their loss, and derivatives with respect to `params`.

    .. math:: g = J^T d\ell, \qquad F = J^T W J, \qquad
        [vw, k] = J^T\bigl(W\,D^2f[v, w] + [Jv\,Jw, \cdot\,]_W\bigr).

    Args:
        outputs: (n, c), with a graph to `params`; further axes are joined.
        loss: a scalar function of `outputs`.
        params: leaf tensors; p numbers in all.
        output_metric: the rule for n W on outputs.
        rtol: eigenvalues of F below `rtol` times the largest count as zero.
        linearization: of the same graph, where the network is known: core's metric
            then solves, and nothing of size n c p is formed unless asked for.

    Raises:
        ValueError: outputs of another shape, a non-finite loss or gradient, a metric
            that is not positive semi-definite, sparse gradients.

    Cost: without `linearization` J is materialised for a solve, N = n c rows of p
        numbers (one batched backward pass); beyond 2^24 numbers core's metric solves.

    Source: :eq:`drv-naturality-christoffel` and :eq:`drv-naturality-transport`
        (derivations).

    Examples:
        >>> from geolib.core import Euclidean
        >>> x = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        >>> z = x.exp().view(1, 1)  # F = e^2x, so [vv, .] = F'/2 = F
        >>> q = LocalGeometry(z, z.sum(), [x], Euclidean())
        >>> v = torch.ones(1, dtype=torch.float64)
        >>> bool((q.christoffel(v, v) - q.F[0]).abs() < 1e-12)
        True
    """

    def __init__(
        self,
        outputs: Tensor,
        loss: Tensor,
        params: Sequence[Tensor],
        output_metric: OutputMetric,
        rtol: float = 1e-10,
        linearization: Linearization | None = None,
    ) -> None:
        wanted = "outputs of shape (n, c) or (n, ...)"
        expect(outputs.ndim >= 2, "closure", wanted, tuple(outputs.shape))
        alive = outputs.grad_fn is not None is not loss.grad_fn
        expect(alive, "outputs, loss", "tensors with a graph to the parameters", alive)
        self.graph, self.params = outputs.flatten(1), list(params)
        self.shape = outputs.shape
        self.output_metric, self.rtol, self.loss = output_metric, rtol, loss
        self.metric: Metric | None = None
        if linearization is None:
            named = {str(k): t for k, t in enumerate(self.params)}
            linearization = Linearization(outputs, named)
            known = outputs.numel() * linearization.p > LARGE
        else:
            known = True
        if known:
            self.metric = Metric.from_linearization(linearization, output_metric)
        self.linearization, self.z = linearization, linearization.outputs
        if loss.numel() != 1 or not bool(torch.isfinite(loss)):
            raise Diverged(
                f"closure: expected a finite scalar loss, got {loss.detach()}; "
                "after a step, a smaller h or lr may help"
            )
        self.solution: Solution | None = None
        (dl,) = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
        wanted = "a loss that is computed from the outputs it returns"
        expect(dl is not None, "closure", wanted, "another")
        self._dl = _finite(dl.detach().flatten(1))
        self._direct = direct_gradient(loss, outputs, self.params)

    @cached_property
    def g(self) -> Tensor:
        """The gradient of the loss, (p,)."""
        g = self.vjp(self._dl)
        return _finite(g if self._direct is None else g + self._direct)

    @property
    def dl(self) -> Tensor:
        """The gradient of the loss in the outputs, (n, c), all that there is of it."""
        if self._direct is not None:
            raise ValueError(
                "loss: a part of it does not pass through the outputs (a penalty on "
                "the weights), and this optimizer is driven by the outputs alone"
            )
        return self._dl

    @property
    def covector(self) -> Tensor:
        """The gradient in the outputs, (n, c); with a penalty, in the weights, (p,)."""
        return self._dl if self._direct is None else self.g

    @cached_property
    def local(self) -> LocalMetric:
        """The matrices n W of all samples, with their roots."""
        return self.output_metric.at(self.z.view(self.shape), slice(0, len(self.z)))

    def vjp(self, u: Tensor) -> Tensor:
        r"""Return the covector :math:`J^T u`, (p,): by J where a solve has formed it."""
        shape, wanted = tuple(self.z.shape), "the outputs' shape"
        expect(u.shape[-2:] == shape, "u", f"{wanted} {shape}", tuple(u.shape))
        require_matching("u", u, self.z, "the outputs")
        if "J" in self.__dict__:
            return u.reshape(-1) @ self.J
        return self._dense(self.linearization.vjp, u)

    @staticmethod
    def _dense(derivative: Callable[..., Tensor], *at: Tensor) -> Tensor:
        try:
            return derivative(*at)
        except RuntimeError as error:
            if "sparse" not in str(error).lower():
                raise
            wanted = "expected dense gradients (an embedding with sparse=False)"
            raise ValueError(f"closure: {wanted}, got a sparse gradient") from None

    def _grad(self, z: Tensor, u: Tensor, create: bool = True) -> list[Tensor]:
        """The gradients of <u, z> in the parameters, themselves with a graph."""
        if not z.requires_grad:
            return [torch.zeros_like(q) for q in self.params]
        return list(
            torch.autograd.grad(
                z,
                self.params,
                u,
                retain_graph=True,
                create_graph=create,
                materialize_grads=True,
            )
        )

    @cached_property
    def J(self) -> Tensor:
        """The Jacobian of the outputs, (n c, p)."""
        return self._dense(self.linearization.jacobian).flatten(0, 1)

    @cached_property
    def W(self) -> Tensor:
        """The metric's blocks at z, (n, c, c)."""
        return self.local.dense(self.z.shape[1]) / len(self.z)

    def lower(self, u: Tensor) -> Tensor:
        """W u for outputs-shaped u, (n, c)."""
        return self.local.apply(u) / len(self.z)

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

    def jvp(self, v: Vector) -> Tensor:
        r"""Return the tangent :math:`Jv`, (n, c): by J only where a solve needs it."""
        if self.metric is None:
            return (self.J @ v).view_as(self.z)
        return self.linearization.jvp(v)

    @cached_property
    def _row(self) -> tuple[Tensor, Tensor]:
        """s(u) = J^T u as a graph in both u and the parameters."""
        u = torch.zeros_like(self.z, requires_grad=True)
        return u, flatten(self._grad(self.graph, u))

    def second(self, v: Vector, w: Vector) -> Tensor:
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
        r"""Return the Hessian of :math:`\langle a, f\rangle` for frozen a, (p, p)."""
        s = flatten(self._grad(self.graph, a))
        if not s.requires_grad:
            return s.new_zeros(s.numel(), s.numel())
        named = {str(k): t for k, t in enumerate(self.params)}
        return Linearization(s[:, None], named).jacobian()[:, 0]

    def hvp(self, a: Tensor, w: Tensor) -> Tensor:
        r"""The product :math:`\langle a, D^2f[w, \cdot]\rangle` for frozen a, (p,)."""
        s = flatten(self._grad(self.graph, a))
        if not s.requires_grad:
            return torch.zeros_like(w)
        return flatten(self._grad(s, w, create=False)).detach()

    def christoffel(self, v: Vector, w: Vector) -> Tensor:
        r"""First-kind symbols of F contracted with v and w: :math:`[vw, k]`, (p,)."""
        return self.vjp(self.christoffel_on_outputs(v, w))

    def christoffel_on_outputs(self, v: Vector, w: Vector) -> Tensor:
        r"""The covector on outputs whose pull-back is :math:`[vw, k]`, (n, c)."""
        return self.lower(self.second(v, w)) + self._connection(v, w)

    def _connection(self, v: Tensor, w: Tensor) -> Tensor:
        """W's own symbols at J v and J w."""
        if self.output_metric.constant:
            return torch.zeros_like(self.z)
        at = (t.view(self.shape) for t in (self.z, self.jvp(v), self.jvp(w)))
        return self.output_metric.christoffel(*at).flatten(1) / len(self.z)

    def transport(self, m: Tensor, u: Tensor, w: Tensor) -> Tensor:
        r"""The rate :math:`[\,\cdot\, w, u]` at which m = F u is parallel along w."""
        out = self.hvp(self.lower(self.jvp(u)), w)
        if not self.output_metric.constant:
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
            return s.x.to(v)
        A = _finite(self.A)  # forms J, and with it every vjp is a product
        if metric is not None:
            M = metric() if callable(metric) else metric
            v = _finite(self.vjp(v) if v.ndim == 2 else v)
            return solve_weighted(A, v, damping, M, self.rtol)
        if v.ndim == 1:
            return self._system.solve(_finite(v), damping, self.rtol)
        u = self.local.root_solve(v)
        if float((self.local.root(u) - v).norm()) > 1e-10 * float(v.norm()):
            return self._system.solve(self.vjp(v), damping, self.rtol)
        r = u.reshape(-1) * len(v) ** 0.5  # J^T v = A^T r
        return self._system.least_squares(r, damping, self.rtol)

    @cached_property
    def _system(self) -> RootSystem:
        return RootSystem(self.A)


def _finite(gradient: Tensor) -> Tensor:
    if not bool(torch.isfinite(gradient).all()):
        raise Diverged("closure: the gradient has entries that are not finite")
    return gradient


def direct_gradient(
    loss: Tensor, outputs: Tensor, params: Sequence[Tensor]
) -> Tensor | None:
    """The gradient of what in the loss goes around the outputs, (p,); None if nothing.

    Examples:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> z = 2 * x
        >>> direct_gradient(z.sum() + x.square().sum(), z, [x])
        tensor([6.])
    """
    nodes = graph_nodes(loss, outputs.grad_fn)
    leaves = {id(getattr(node, "variable", None)) for node in nodes}
    if not leaves & set(map(id, params)) or outputs.grad_fn is None:
        return None
    cut = outputs.register_hook(torch.zeros_like)
    try:
        found = torch.autograd.grad(
            loss, params, retain_graph=True, materialize_grads=True
        )
    finally:
        cut.remove()
    return flatten(found).detach()


def metric_of_loss(loss: Tensor, outputs: Tensor) -> OutputMetric:
    """The metric of which the loss's Hessian in the outputs is a multiple.

    Each sample may have a multiple of its own, as weights of samples and classes make.

    Raises:
        ValueError: the Hessian is that of no metric known here.

    Cost: two backward passes between loss and outputs.

    Examples:
        >>> z = torch.eye(2, 3, requires_grad=True)
        >>> y = torch.tensor([0, 1])
        >>> metric_of_loss(torch.nn.functional.cross_entropy(z, y), z)
        Categorical()
    """
    if loss.numel() != 1 or not (outputs.requires_grad and loss.requires_grad):
        return Euclidean()  # what is wrong then, LocalGeometry says
    names = " ".join(node.name() for node in graph_nodes(loss, outputs.grad_fn))
    z, eps = outputs.detach(), torch.finfo(outputs.dtype).eps
    axes = [None] if z.ndim == 2 else [1, -1]
    classes = [Categorical(dim=d) for d in axes if z.shape[-1 if d is None else d] > 1]
    named: list[OutputMetric] = [*classes] if "NllLoss" in names else []
    named += [Bernoulli()] if "BinaryCrossEntropyWithLogits" in names else []
    v = torch.arange(z.numel(), device=z.device).double().square().cos().to(z)
    H, v = hessian_product(loss, outputs, v.view_as(z)).flatten(1), v.view(len(z), -1)
    rough = 1e3 * eps * v.norm()
    if not bool(torch.isfinite(H).all()):
        return [*named, Euclidean()][0]
    for metric in [*named, Euclidean(), *classes, Bernoulli()]:
        M = metric.at(z, slice(0, len(z))).apply(v)
        if metric in named and M.norm() <= rough and H.norm() <= rough:
            return metric  # every sample is sure of its class
        rows = (1,) if metric in named or M.shape[1] > 1 else (0, 1)
        c = (H * M).sum(rows, True) / (M * M).sum(rows, True).clamp_min(1e-30)
        slack = eps**0.4 * H.norm() + rough * ((H * M).sum() / (M * M).sum()).abs()
        if (H - c * M).norm() <= slack and c.max() > 0 and c.min() >= -0.01 * c.max():
            return metric
    if named and not bool(H.any()) and bool((z.exp().sum(1) - 1).abs().max() < 1e-3):
        return named[0]  # the outputs are logarithms of probabilities
    raise ValueError(
        "output_metric: expected one, as it cannot be told from this loss, whose Hessian "
        "in the outputs is a multiple of no squared loss's, softmax's or Bernoulli's; "
        "give Euclidean() for the metric of squared loss"
    )


def hessian_product(loss: Tensor, outputs: Tensor, v: Tensor) -> Tensor:
    """The loss's Hessian in the outputs times v, zero where the loss is linear."""
    (g,) = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
    if g is None or not g.requires_grad:
        return torch.zeros_like(v)
    try:
        found = torch.autograd.grad(g, outputs, v, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not lacks_formula(error):
            raise
        return torch.zeros_like(v)
    return torch.zeros_like(v) if found[0] is None else found[0]


def solve_weighted(
    A: Tensor, v: Tensor, damping: float, M: Tensor | None, rtol: float
) -> Tensor:
    r"""The vector :math:`(A^TA + \lambda M)^{+}v`, of minimum M-norm, (p,)."""
    if M is None:
        return RootSystem(A).solve(v, damping, rtol)
    p = A.shape[1]
    expect(M.shape == (p, p), "damping_metric", f"shape {(p, p)}", tuple(M.shape))
    if not bool(torch.isfinite(M).all()):
        raise Diverged("damping_metric: expected a finite matrix")
    L, info = torch.linalg.cholesky_ex(M)
    if int(info):
        raise Diverged("damping_metric: expected a positive definite matrix")
    A = torch.linalg.solve_triangular(L, A.T, upper=False).T
    y = torch.linalg.solve_triangular(L, v[:, None], upper=False)[:, 0]
    y = RootSystem(A).solve(y, damping, rtol)
    return torch.linalg.solve_triangular(L.T, y[:, None], upper=True)[:, 0]
