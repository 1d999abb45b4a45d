"""Four formulations of the same gradient flow, by what they keep in memory.

With :math:`A = W^T W`, :math:`B = A - I`, :math:`S = X X^T / n` the flow of the
training loss is :math:`W' = -W (B S + S B)`. Each class below is one arrangement of
its products; `choose` takes the cheapest that fits the promise that no d x d matrix
is formed when h is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FORMS = ("gram", "covariance", "latent", "samples")


def trace_product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product <a, b> of each member of a batch, shape (batch,)."""
    return (a * b).flatten(1).sum(1)


@dataclass
class FlowProblem:
    """Data of a batch of flows: `S` or `X` (b, d, n), and the population.

    `S` is (b, d, d), or (b, d): the eigenvalues where S is diagonal.
    `P` (d, d) is the population covariance, None for the identity. `target=False`
    drops the target: the flow of the loss with :math:`B` replaced by :math:`A`.
    """

    d: int
    n: int
    S: Tensor | None = None
    X: Tensor | None = None
    P: Tensor | None = None
    target: bool = True

    @property
    def trace(self) -> Tensor:
        """tr S, shape (batch,)."""
        if self.S is not None:
            return (self.S if self.S.ndim == 2 else _diagonal(self.S)).sum(1)
        assert self.X is not None
        return self.X.square().flatten(1).sum(1) / self.n

    def by_s(self, M: Tensor) -> Tensor:
        """S M for M (b, d, k)."""
        assert self.S is not None
        return self.S[:, :, None] * M if self.S.ndim == 2 else self.S @ M


class Gram:
    r"""State A (b, d, d): :math:`A' = -(C A + A C)`, :math:`C = S B + B S`.

    Two d x d x d products an evaluation. Best when h is at least about 0.6 d.
    """

    def __init__(self, problem: FlowProblem) -> None:
        self.p = problem

    def start(self, W: Tensor) -> Tensor:
        return W.mT @ W

    def _error(self, A: Tensor) -> Tensor:
        """B = A - I, or A itself without the target."""
        if not self.p.target:
            return A
        B = A.clone()
        B.diagonal(dim1=1, dim2=2).sub_(1.0)
        return B

    def flow(self, A: Tensor) -> Tensor:
        N = self.p.by_s(self._error(A))
        D = (N + N.mT) @ A
        return (D + D.mT).neg_()

    def losses(self, A: Tensor, dA: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        """Train and population loss, and the first-order effect of the error `e`."""
        B = self._error(A)
        N = self.p.by_s(B)
        M = B if self.p.P is None else self.p.P @ B
        pair = (trace_product(N, B) / 2, trace_product(M, B) / 2)
        return *pair, trace_product(N, e).abs(), trace_product(M, e).abs()


class _Weights:
    """State W (b, h, d); subclasses supply G = W S and the flow."""

    def __init__(self, problem: FlowProblem) -> None:
        self.p = problem
        self.two = 2.0 if problem.target else 0.0
        self.base = problem.trace / 2 if problem.target else 0.0 * problem.trace
        self.size = float(problem.d) if problem.P is None else float(problem.P.trace())

    def start(self, W: Tensor) -> Tensor:
        return W.clone()

    def image(self, W: Tensor) -> Tensor:
        raise NotImplementedError

    def flow(self, W: Tensor) -> Tensor:
        r""":math:`W' = -(K G + Q W - 2 G)`, K = W W^T, Q = G W^T, as two products."""
        G = self.image(W)
        h = W.shape[1]
        both = torch.cat((W, G), 1) @ W.mT  # (b, 2h, h): K above Q
        KQ = torch.cat((both[:, h:], both[:, :h]), 2)  # (b, h, 2h): Q beside K
        return torch.baddbmm(G, KQ, torch.cat((W, G), 1), beta=self.two, alpha=-1.0)

    def losses(self, W: Tensor, dW: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        """Train and population loss, and the first-order effect of the error `e`."""
        G = self.image(W)
        K, Q = W @ W.mT, G @ W.mT
        train = self.base - self.two / 2 * _diagonal(Q).sum(1) + trace_product(K, Q) / 2
        H, R = (W, K) if self.p.P is None else (W @ self.p.P, (W @ self.p.P) @ W.mT)
        base = self.size / 2 if self.p.target else 0.0
        population = base - self.two / 2 * _diagonal(R).sum(1) + trace_product(K, R) / 2
        slope = K @ H + R @ W - self.two * H
        # The training loss falls along its own flow: its gradient is -dW.
        return (
            train,
            population,
            trace_product(dW, e).abs(),
            trace_product(slope, e).abs(),
        )


class Covariance(_Weights):
    """G = W S with S kept (d x d): many samples, moderate width."""

    def image(self, W: Tensor) -> Tensor:
        return self.p.by_s(W.mT).mT


class Latent(_Weights):
    """G = (W X) X^T / n with the data kept: no d x d matrix anywhere."""

    def image(self, W: Tensor) -> Tensor:
        assert self.p.X is not None
        return (W @ self.p.X) @ self.p.X.mT / self.p.n


class Samples(Latent):
    r"""For few samples: U = W X, Z = W^T U,
    :math:`W' = ((2 U - W Z) X^T - U Z^T) / n`, with no h x h matrix in the flow."""

    def flow(self, W: Tensor) -> Tensor:
        X = self.p.X
        assert X is not None
        U = W @ X
        Z = W.mT @ U
        V = torch.baddbmm(U, W, Z, beta=self.two, alpha=-1.0)
        left, right = torch.cat((V, -U), 2), torch.cat((X, Z), 2)
        return left @ right.mT / self.p.n


def _diagonal(Q: Tensor) -> Tensor:
    return Q.diagonal(dim1=1, dim2=2)


BY_NAME: dict[str, type[Gram] | type[_Weights]] = {
    "gram": Gram,
    "covariance": Covariance,
    "latent": Latent,
    "samples": Samples,
}


def flops(form: str, d: int, h: int, n: int) -> float:
    """Floating-point operations of one evaluation of the flow, products only.

    Examples:
        >>> flops("gram", 10, 10, 40)
        4000.0
    """
    return {
        "gram": 4.0 * d**3,
        "covariance": 2.0 * h * d * d + 8.0 * h * h * d,
        "latent": 4.0 * h * d * n + 8.0 * h * h * d,
        "samples": 10.0 * h * d * n,
    }[form]


def choose(d: int, h: int, n: int, weights: bool = False) -> str:
    """The cheapest form; when 8 h < d only those that form no d x d matrix.

    `weights=True` keeps to those whose state is W: a step of length epsilon is then a
    step of gradient descent, which it is not in A.

    Examples:
        >>> choose(64, 64, 4096), choose(64, 64, 4), choose(1600, 11, 1600)
        ('gram', 'samples', 'latent')
    """
    allowed = FORMS[2:] if 8 * h < d else FORMS[weights:]
    return min(allowed, key=lambda form: flops(form, d, h, n))
