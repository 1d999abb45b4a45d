r"""The metric that the parameters inherit from the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, reduce
from itertools import zip_longest
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import jacobian_factors as factors
from . import solve as solving
from .assumptions import AssumptionError
from .jacobian_factors import JacobianFactors
from .linear_solvers import Solution, Spectrum, default_rtol, largest_eigenpairs
from .linearization import Linearization
from .output_metrics import Euclidean, LocalMetric, OutputMetric
from .random import normal
from .realization import Realization
from .solve_cost import CALL, GPU_CALL, ProblemSize
from .validation import (
    Inputs,
    expect,
    num_samples,
    require_finite,
    single,
    take,
    tensors,
)

DIRECT = 1500  # up to this size eigenvalues come from a dense matrix
CHUNK = 1 << 25  # entries of A held at once when G is formed


class PullbackMetric:
    r"""The field of metrics that R pulls back from the outputs on a data set.

    .. math:: G(\theta) = \frac1n \sum_{i=1}^n J_i(\theta)^T M_i\, J_i(\theta),
              \qquad J_i = \partial f(x_i; \theta) / \partial \theta .

    With a Fisher `output_metric` it is the Fisher information matrix; with the
    Hessian of a loss, the generalised Gauss-Newton matrix.

    Args:
        R: a :class:`Realization`, or a module to make one of.
        x: inputs: a tensor, a dict or a tuple of tensors; or an iterable of such
            batches that can be gone through again and again in the same order.
        output_metric: the M_i; Euclidean by default.
        reduction: "mean" as above, or "sum" to leave out the 1/n.
        batch_size: hold only so many samples at a time. Then, as for an iterable,
            every product runs the model again: memory is bounded, time is not.
        check: False leaves out the check of a module, and of batches, that they are
            what the formulas assume; see :class:`Realization`.

    Raises:
        AssumptionError: batches that are others when they are gone through again
            (a `DataLoader` that shuffles); and what :class:`Realization` refuses.
        ValueError: an unknown reduction, a batch size below 1 or beside batches, no
            samples.
        TypeError: an output metric of another kind, inputs that cannot be repeated.

    Source: :eq:`drv-core-pullback` (derivations).

    Examples:
        >>> from geolib.core import Realization
        >>> R = Realization(nn.Linear(2, 1))
        >>> PullbackMetric(R, torch.eye(2)).at(R.theta0).dense()
        tensor([[0.5000, 0.0000, 0.5000],
                [0.0000, 0.5000, 0.5000],
                [0.5000, 0.5000, 1.0000]])
    """

    def __init__(
        self,
        R: Realization | nn.Module,
        x: Inputs | Iterable[Inputs],
        output_metric: OutputMetric | None = None,
        *,
        reduction: Annotated[str, ("mean", "sum")] = "mean",
        batch_size: int | None = None,
        check: bool = True,
    ) -> None:
        self.output_metric = output_metric or Euclidean()
        self.R = R if isinstance(R, Realization) else Realization(R, check=check)
        self.data = _Data(x, batch_size, check)
        self.scale = 1 / self.data.n if reduction == "mean" else 1.0

    def at(self, theta: Annotated[Tensor, "self.R.p"]) -> Metric:
        """The metric at one point, theta of shape (p,)."""
        theta = theta.detach()
        require_finite("theta", theta)

        def linearizations() -> Iterator[tuple[slice, Linearization]]:
            return ((samples, self.R.linearize(theta, x)) for samples, x in self.data)

        given = linearizations, theta, self.data.n, self.output_metric
        return Metric(*given, scale=self.scale, streamed=not self.data.single)


class Metric:
    r"""The pulled-back metric at one point, as a symmetric linear operator.

    Nothing is computed before it is needed; the forward pass and the factored rows
    are then kept (with one batch). Every method has a dense counterpart to test
    against: `G @ v == G.dense() @ v`.

    Attributes:
        p: number of parameters.
        n: number of samples.

    Cost: `G @ v` is about one loss gradient once the forward pass is kept.

    Source: :eq:`drv-core-pullback` (derivations).

    Examples:
        >>> from geolib.core import Categorical, Realization
        >>> R = Realization(nn.Linear(2, 3, bias=False))
        >>> G = PullbackMetric(R, torch.ones(4, 2), Categorical()).at(torch.zeros(6))
        >>> G @ torch.arange(6.0)
        tensor([-1.3333, -1.3333,  0.0000,  0.0000,  1.3333,  1.3333])
        >>> G.rank()
        2
        >>> (G.solve(G @ torch.arange(6.0), damping=0.0).x.round(decimals=4) + 0.0)
        tensor([-2., -2.,  0.,  0.,  2.,  2.])
    """

    def __init__(
        self,
        linearizations: Callable[[], Iterator[tuple[slice, Linearization]]],
        theta: Tensor,
        n: int,
        output_metric: OutputMetric,
        *,
        scale: float,
        streamed: bool = False,
    ) -> None:
        self.theta, self.p, self.n = theta, theta.numel(), n
        self.output_metric, self.scale, self.streamed = output_metric, scale, streamed
        self._linearizations = linearizations

    @classmethod
    def from_linearization(
        cls, L: Linearization, output_metric: OutputMetric | None = None
    ) -> Metric:
        """The metric at a point where the forward pass has been made already.

        Args:
            L: from `R.linearize`, or of a graph; see :class:`Linearization`.
            output_metric: as for :class:`PullbackMetric`, with the mean over samples.

        Raises:
            TypeError, ValueError: as :class:`PullbackMetric`.

        Cost: none.
        """
        metric, n = output_metric or Euclidean(), len(L.outputs)
        return cls(lambda: iter([(slice(0, n), L)]), L.theta, n, metric, scale=1 / n)

    def __repr__(self) -> str:
        return f"Metric(p={self.p}, n={self.n}, {self.output_metric})"

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return self.p, self.p

    @cached_property
    def single(self) -> Metric:
        """Itself; of weights in half precision the metric at these, in float32.

        Products with that lose no digits, which iterations need, and torch factorises
        no matrix in half precision: all that solves runs in it.

        Raises:
            TypeError: half precision, and no way to run the model again.
        """
        theta = single(self.theta)
        if theta is self.theta:
            return self

        given = theta, self.n, self.output_metric
        runs = lambda: ((s, L.single()) for s, L in self._linearizations())  # noqa: E731
        return type(self)(runs, *given, scale=self.scale, streamed=self.streamed)

    @cached_property
    def _only(self) -> tuple[slice, Linearization, LocalMetric]:
        ((samples, L),) = self._linearizations()
        return samples, L, self._local(samples, L)

    def _local(self, samples: slice, L: Linearization) -> LocalMetric:
        require_finite("R(theta, x)", L.outputs)
        n, rows = samples.stop - samples.start, len(L.outputs)
        if rows != n:
            raise ValueError(f"x: {n} samples gave {rows} rows of outputs")
        return self.output_metric.at(L.outputs.view(n, *L.output_shape), samples)

    def batches(self) -> Iterator[tuple[slice, Linearization, LocalMetric]]:
        """For each batch its place, linearization and output metric."""
        if not self.streamed:
            yield self._only
            return
        for samples, L in self._linearizations():
            yield samples, L, self._local(samples, L)

    def row_batches(self) -> Iterator[JacobianFactors]:
        """The factored rows, batch by batch."""
        if not self.streamed:
            yield self._only_rows
            return
        yield from map(self._rows, self.batches())

    def _rows(self, batch: tuple[slice, Linearization, LocalMetric]) -> JacobianFactors:
        return factors.factored_jacobian(*batch[1:], self.scale**0.5)

    @cached_property
    def problem_size(self) -> ProblemSize:
        """The sizes that decide how to solve."""
        _, L, local = next(self.batches())
        calls = factors.certified_calls(L)
        held = {c.weight for c in calls} | {c.bias for c in calls}
        layers = tuple(c.sizes for c in calls)
        loose = sum(t.numel() for name, t in L.leaves.items() if name not in held)
        sizes = self.p, self.n, L.outputs.shape[1], local.rank, layers, loose
        return ProblemSize(
            *sizes, self.streamed, GPU_CALL if self.theta.is_cuda else CALL
        )

    def outputs(self) -> Tensor:
        """R(theta, x) for all samples, shape (n, o)."""
        return torch.cat([L.outputs for _, L, _ in self.batches()])

    def __matmul__(self, v: Annotated[Tensor, "self.p ..."]) -> Tensor:
        """G v for v of shape (p,), or column by column for v of shape (p, k)."""
        expect(v.ndim <= 2, "v", f"shape ({self.p},) or ({self.p}, k)", tuple(v.shape))
        return self.product(v) if v.ndim == 1 else self.product(v.mT).mT

    def product(self, v: Tensor) -> Tensor:
        """G v for v of shape (p,) or (k, p), row by row; no checks."""
        parts = (
            L.vjp(self.scale * local.apply(L.jvp(v))) for _, L, local in self.batches()
        )
        return reduce(Tensor.add_, parts)

    def inner(self, v: Tensor, w: Tensor) -> Tensor:
        """The inner product <v, w> of two tangent vectors, a scalar tensor."""
        return v @ (self @ w)

    def pull(self, u: Tensor) -> Tensor:
        """The covector J^T u of outputs' covectors u, shape (n, o) to (p,)."""
        total = u.new_zeros(self.p)
        for samples, L, _ in self.batches():
            total += L.vjp(u[samples])
        return total

    def rows(self) -> JacobianFactors:
        """The factored matrix A with G = A^T A; see :class:`JacobianFactors`."""
        return factors.join_samples(list(self.row_batches()))

    @cached_property
    def _only_rows(self) -> JacobianFactors:
        return self._rows(self._only)

    def dense(self) -> Tensor:
        """G itself, shape (p, p); cost n r p^2."""
        G = self.theta.new_zeros(self.p, self.p)
        for A in self.row_batches():
            for rows in A.chunks(CHUNK):
                G.addmm_(rows.mT, rows)
        return G

    def kernel(self) -> Tensor:
        """K = A A^T, shape (n r, n r): G's nonzero eigenvalues in function space."""
        return self.rows().gram()

    def trace(self) -> float:
        """The sum of G's eigenvalues."""
        rows = (part for A in self.row_batches() for part in A.chunks(CHUNK))
        return sum(float(part.square().sum()) for part in rows)

    def spectrum(self, k: int | None = None, *, vectors: bool = False) -> Spectrum:
        """The k largest eigenvalues (all by default), with vectors if asked for.

        Up to a size of 1500 (of G or of the kernel) they come from the dense matrix,
        otherwise from ARPACK's Lanczos.

        Raises:
            ValueError: k outside 1..p.
        """
        if self.single is not self:
            return self.single.spectrum(k, vectors=vectors)
        k, m = self.p if k is None else k, self.problem_size.m
        expect(1 <= k <= self.p, "k", f"1 to {self.p}", k)
        if min(self.p, m) <= DIRECT or k > min(self.p, m) // 3:
            return self._direct_spectrum(k, vectors, m)
        start, tol = normal(self.p, 0).to(self.theta), default_rtol(self.theta.dtype)
        found = largest_eigenpairs(self.product, start, k, tol)
        return found if vectors else replace(found, vectors=None)

    def _direct_spectrum(self, k: int, vectors: bool, m: int) -> Spectrum:
        in_functions = m < self.p and (not vectors or k <= m)
        values, U = torch.linalg.eigh(self.kernel() if in_functions else self.dense())
        values, U = values.flip(0)[:k].clamp_min(0), U.flip(1)[:, :k]
        if vectors and in_functions:
            A = self.rows()
            U = torch.stack([A.rmatvec(c) for c in U.mT.contiguous()], dim=1)
            U = torch.linalg.qr(U)[0]
        values = torch.nn.functional.pad(values, (0, k - len(values)))
        method = "kernel" if in_functions else "dense"
        found = U if vectors else None
        return Spectrum(values, found, torch.zeros_like(values), True, method)

    def rank(self, rtol: float | None = None) -> int:
        """Singular values of A above rtol times the largest: the rank of G.

        They are the square roots of G's eigenvalues, so a relative size of 1e-8 in A
        is told apart where G itself, in float64, has lost it. Default: the larger
        side of A times the precision.

        Raises:
            ValueError: an rtol that is not finite or negative.

        Cost: a singular value decomposition of A.
        """
        s = torch.linalg.svdvals(self.single.rows().dense())
        rtol = max(len(s), self.p) * torch.finfo(s.dtype).eps if rtol is None else rtol
        return int((s > rtol * s.max()).sum()) if len(s) and s.max() > 0 else 0

    def solve(
        self,
        g: Tensor,
        damping: float = 0.0,
        method: Annotated[str, solving.METHODS] = "auto",
        *,
        tol: Annotated[float | None, "0 <= tol < inf"] = None,
        rtol: float | None = None,
        max_iterations: int | None = None,
        free: Annotated[Tensor | None, "self.p"] = None,
    ) -> Solution:
        r"""Solve (G + damping I) x = g; with damping 0, x = G^+ g (least norm).

        .. math:: x = (G + \lambda I)^{-1} g \qquad\text{or, in function space,}\qquad
                  x = A^T (K + \lambda I)^{-1} b \;\text{ for } g = A^T b.

        Args:
            g: a covector of shape (p,), or one on the outputs, of shape (n, o), which
                stands for J^T g. A loss's gradient in the outputs is of that kind;
                "woodbury" then needs no subtraction and keeps more digits.
            damping: at least 0. Adding the identity is a choice of metric: it does
                not change as a tensor under a change of coordinates.
            method: "cholesky" (G is formed; small p), "woodbury" (K is formed; n r
                small), "cg" (neither: conjugate gradients in the parameters), "kfac"
                (the same, preconditioned by the Kronecker factors of G + damping I),
                "nystrom" (conjugate gradients in function space, preconditioned by
                the rows of a few samples), or "auto", which estimates their costs. The
                preconditioned two need a damping.
            tol: the relative residual that counts as converged; sqrt(eps) by default.
            rtol: with damping 0, eigenvalues below rtol times the largest are zero;
                eps^(2/3) by default.
            max_iterations: of the iterative methods; what was reached by then is
                returned, with `converged` False if that is not enough.
            free: for "cg": a mask of shape (p,). Only these parameters may move: with P
                the projection on them, (P G P + damping I) x = P g is solved.

        Raises:
            ValueError: a g, damping or tolerance that is not finite, a negative one,
                an unknown method, or a system that this precision cannot factorise.

        Weights in half precision are solved for in float32, and so is x.

        Cost: cholesky n r p^2 + p^3/3; woodbury (n r)^2 (layer widths) + (n r)^3/3;
        cg one product an iteration; nystrom (n r) k (layer widths + k) for a sample of
        k rows, then one product an iteration, of which it needs far fewer.
        With a stream of batches, woodbury holds all layers' factors and K; cg and
        nystrom hold one batch and, the latter, k n r numbers.

        Source: :eq:`drv-core-woodbury` and :eq:`drv-core-nystrom` (derivations).
        """
        limits = tol, rtol, max_iterations, free
        return solving.solve(self, g, damping, method, *limits)


class _Data:
    """The inputs as a sequence of (place, batch), which can be repeated."""

    def __init__(
        self, x: Inputs | Iterable[Inputs], batch_size: int | None, check: bool
    ) -> None:
        whole = isinstance(x, Tensor | Mapping | tuple)
        repeats = isinstance(x, Iterable | Dataset) and not isinstance(x, Iterator)
        wanted = "a tensor, a dict, a tuple, or a list of batches that can be repeated"
        expect(whole or repeats, "x", wanted, type(x))
        wanted = "batches, as of DataLoader(x, batch_size)"
        got = f"{type(x).__name__}, of samples"
        expect(not isinstance(x, Dataset), "x", wanted, got)
        wanted = "None, as x already comes in batches"
        expect(whole or batch_size is None, "batch_size", wanted, batch_size)
        self.x, self.whole = x, whole
        if whole:
            self.n = num_samples(x)  # type: ignore[arg-type]
        else:
            with torch.random.fork_rng([]):  # where a shuffle takes its seed from
                self.n = sum(_lengths(x, check))  # type: ignore[arg-type]
        if self.n == 0:
            raise ValueError("x: no samples")
        self.size = min(batch_size or self.n, self.n)
        self.single = whole and self.size == self.n

    def __iter__(self) -> Iterator[tuple[slice, Inputs]]:
        if self.single:
            yield slice(0, self.n), self.x  # type: ignore[misc]
            return
        start = 0
        for batch in self._batches():
            batch = tuple(batch) if isinstance(batch, list) else batch
            stop = start + num_samples(batch)
            yield slice(start, stop), batch
            start = stop
        if start != self.n:
            finding = f"x: {start} samples came this time, {self.n} the first time"
            raise AssumptionError("data", f"{finding}; batches must repeat")

    def _batches(self) -> Iterator[Inputs]:
        if not self.whole:
            with torch.random.fork_rng([]):  # a `DataLoader` draws a seed for workers
                batches = iter(self.x)
            yield from batches  # type: ignore[misc]
            return
        for i in range(0, self.n, self.size):
            yield take(self.x, slice(i, i + self.size))  # type: ignore[arg-type]


def _lengths(x: Iterable[Inputs], check: bool) -> Iterator[int]:
    """Samples of each batch; with `check` the batches of two passes are compared."""
    passes = zip_longest(x, x, fillvalue=()) if check else ((b, b) for b in x)
    for k, pair in enumerate(passes):
        a, b = ([t.nan_to_num() for t in tensors(batch)] for batch in pair)
        if len(a) != len(b) or not all(map(torch.equal, a, b)):
            finding = f"x: batch {k} is another one when the data is gone through again"
            hint = "batches must repeat (shuffle=False, no random augmentation)"
            raise AssumptionError("data", f"{finding}; {hint}")
        yield num_samples(pair[0])
