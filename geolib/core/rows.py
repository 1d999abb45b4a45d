r"""The matrix A with G = A^T A, kept in factors: one pair per linear layer.

.. math:: A = \tfrac{1}{\sqrt n} S^T J \in \mathbb{R}^{(n r) \times p}, \qquad
          G = A^T A, \qquad K = A A^T.

K is the kernel in function space (the neural tangent kernel, weighted by the metric).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 24  # entries of a temporary


class Block(ABC):
    """The columns of A that belong to some parameters, for n samples and r roots."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """A v restricted to these columns, shape (n, r); v is the whole (p,)."""

    @abstractmethod
    def rmatvec_(self, a: Tensor, out: Tensor) -> None:
        """Write A^T a into these parameters' places of out, shape (p,)."""

    @abstractmethod
    def add_gram_(self, K: Tensor) -> None:
        """Add this block's A A^T to K, shape (n, r, n, r)."""

    @abstractmethod
    def add_rows_(self, rows: Tensor) -> None:
        """Write the block's rows into rows, shape (n, r, p)."""

    @abstractmethod
    def at(self, samples: slice) -> Block:
        """The same columns for some of the samples."""


class LayerBlock(Block):
    r"""A linear layer's weight (and bias), never multiplied out.

    .. math:: \nabla_W z_{i a} = \sum_t \delta_{i a t}\, x_{i t}^T .

    Args:
        x: inputs, shape (n, g, t, d): samples, groups, positions, fan-in.
        delta: output gradients, shape (n, r, g, t, a).
        weight: place of the weight in the parameter vector.
        bias: place of the bias, or None.
    """

    def __init__(
        self, x: Tensor, delta: Tensor, weight: slice, bias: slice | None
    ) -> None:
        self.x, self.delta = x, delta
        self.weight, self.bias = weight, bias
        self.n, self.r, self.g, self.t, self.a = delta.shape
        self.d = x.shape[-1]

    def matvec(self, v: Tensor) -> Tensor:
        W = v[self.weight].view(self.g, self.a, self.d)
        y = self.x @ W.mT
        if self.bias is not None:
            y = y + v[self.bias].view(self.g, 1, self.a)
        flat = self.delta.reshape(self.n, self.r, -1)
        return torch.bmm(flat, y.reshape(self.n, -1, 1))[..., 0]

    def rmatvec_(self, a: Tensor, out: Tensor) -> None:
        flat = self.delta.reshape(self.n, self.r, -1)
        c = torch.bmm(a[:, None, :], flat).view(self.n, self.g, self.t, self.a)
        c = c.permute(1, 3, 0, 2).reshape(self.g, self.a, self.n * self.t)
        x = self.x.permute(1, 0, 2, 3).reshape(self.g, self.n * self.t, self.d)
        out[self.weight] = torch.bmm(c, x).view(-1)
        if self.bias is not None:
            out[self.bias] = c.sum(-1).view(-1)

    def add_gram_(self, K: Tensor) -> None:
        one_place = self.t == 1
        for g in range(self.g):
            if one_place:
                self._add_products_(K, g)
            elif self.t**2 * (self.d + self.a * self.r**2) < self.d * self.a * self.r:
                self._add_positions_(K, g)
            else:
                self._add_outer_(K, g)
        if self.bias is not None and not one_place:
            rows = self.delta.sum(3).reshape(self.n * self.r, -1)
            K.view(self.n * self.r, -1).addmm_(rows, rows.mT)

    def _add_products_(self, K: Tensor, g: int) -> None:
        """One position: the Gram of outer products is the product of Grams."""
        x, delta = self.x[:, g, 0], self.delta[:, :, g, 0].reshape(-1, self.a)
        XX = x @ x.mT
        if self.bias is not None:
            XX += 1.0
        DD = (delta @ delta.mT).view(self.n, self.r, self.n, self.r)
        K.addcmul_(DD, XX[:, None, :, None])

    def _add_positions_(self, K: Tensor, g: int) -> None:
        """Few positions: the same for each pair of them, some samples at a time."""
        n, r, t = self.n, self.r, self.t
        x = self.x[:, g].reshape(n * t, self.d)
        delta = self.delta[:, :, g].reshape(n * r * t, self.a)
        step = max(1, CHUNK // (r * t * n * r * t))
        for i in range(0, n, step):
            j = min(i + step, n)
            XX = (x[i * t : j * t] @ x.mT).view(j - i, 1, t, n, 1, t)
            DD = delta[i * r * t : j * r * t] @ delta.mT
            DD = DD.view(j - i, r, t, n, r, t)
            K[i:j] += (XX * DD).sum(dim=(2, 5))

    def _add_outer_(self, K: Tensor, g: int) -> None:
        """Many positions: multiply out some output channels at a time."""
        m = self.n * self.r
        for rows in self._outer(g):
            K.view(m, m).addmm_(rows, rows.mT)

    def _outer(self, g: int) -> Iterator[Tensor]:
        m = self.n * self.r
        step = max(1, CHUNK // (m * self.d))
        x = self.x[:, None, g]
        for i in range(0, self.a, step):
            delta = self.delta[:, :, g, :, i : i + step]
            yield (delta.mT @ x).reshape(m, -1)

    def add_rows_(self, rows: Tensor) -> None:
        W = torch.matmul(self.delta.mT, self.x[:, None])  # n r g a d
        rows[..., self.weight] = W.reshape(self.n, self.r, -1)
        if self.bias is not None:
            rows[..., self.bias] = self.delta.sum(3).reshape(self.n, self.r, -1)

    def at(self, samples: slice) -> LayerBlock:
        return LayerBlock(self.x[samples], self.delta[samples], self.weight, self.bias)


class DenseBlock(Block):
    """Columns of A held as they are: parameters that no linear layer holds.

    Args:
        rows: shape (n, r, q).
        index: the q places of these columns in the parameter vector.
    """

    def __init__(self, rows: Tensor, index: Tensor) -> None:
        self.rows, self.index = rows, index

    def matvec(self, v: Tensor) -> Tensor:
        return self.rows @ v[self.index]

    def rmatvec_(self, a: Tensor, out: Tensor) -> None:
        out[self.index] = torch.einsum("nrq,nr->q", self.rows, a)

    def add_gram_(self, K: Tensor) -> None:
        flat = self.rows.reshape(-1, self.rows.shape[-1])
        K.view(len(flat), -1).addmm_(flat, flat.mT)

    def add_rows_(self, rows: Tensor) -> None:
        rows[..., self.index] = self.rows

    def at(self, samples: slice) -> DenseBlock:
        return DenseBlock(self.rows[samples], self.index)


class Rows:
    """A for a whole data set: blocks of columns that share their n samples, r roots.

    Examples:
        >>> block = DenseBlock(torch.ones(3, 1, 2), torch.arange(2))
        >>> Rows([block], 3, 1, 2, torch.ones(1)).gram()
        tensor([[2., 2., 2.],
                [2., 2., 2.],
                [2., 2., 2.]])
    """

    def __init__(self, blocks: list[Block], n: int, r: int, p: int, like: Tensor):
        self.blocks, self.n, self.r, self.p, self.like = blocks, n, r, p, like

    @property
    def m(self) -> int:
        """Number of rows, n r."""
        return self.n * self.r

    def matvec(self, v: Tensor) -> Tensor:
        """A v, shape (m,)."""
        total = v.new_zeros(self.n, self.r)
        for block in self.blocks:
            total += block.matvec(v)
        return total.view(-1)

    def rmatvec(self, a: Tensor) -> Tensor:
        """A^T a, shape (p,)."""
        out = a.new_zeros(self.p)
        for block in self.blocks:
            block.rmatvec_(a.view(self.n, self.r), out)
        return out

    def gram(self) -> Tensor:
        """K = A A^T, shape (m, m); cost about m^2 (fan-in / r^2 + fan-out) a layer."""
        K = self.like.new_zeros(self.n, self.r, self.n, self.r)
        for block in self.blocks:
            block.add_gram_(K)
        return K.view(self.m, self.m)

    def dense(self) -> Tensor:
        """A itself, shape (m, p)."""
        return self._dense(slice(0, self.n))

    def chunks(self, entries: int) -> Iterator[Tensor]:
        """The rows of A in turn, at most about `entries` numbers at a time."""
        step = max(1, entries // (self.r * self.p))
        for i in range(0, self.n, step):
            yield self._dense(slice(i, min(i + step, self.n)))

    def square_sum(self) -> Tensor:
        """The trace of G: the sum of squares of A's entries."""
        chunks = [rows.square().sum() for rows in self.chunks(CHUNK)]
        return torch.stack(chunks).sum()

    def _dense(self, samples: slice) -> Tensor:
        count = samples.stop - samples.start
        rows = self.like.new_zeros(count, self.r, self.p)
        for block in self.blocks:
            block.at(samples).add_rows_(rows)
        return rows.view(count * self.r, self.p)
