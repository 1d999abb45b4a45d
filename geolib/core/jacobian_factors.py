r"""The root A of the metric, G = A^T A, in factors; A A^T is the neural tangent kernel.

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
STRIP = 256  # rows of K computed at a time, up to the diagonal only


class Block(ABC):
    """The columns of A that belong to some parameters, for n samples and r roots."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """A v restricted to these columns, shape (n, r); v is the whole (p,)."""

    @abstractmethod
    def rmatvec_(self, a: Tensor, out: Tensor) -> None:
        """Write A^T a into these parameters' places of out, shape (p,)."""

    @abstractmethod
    def add_cross_(self, K: Tensor, other: Block) -> None:
        """Add A B^T to K, shape (n, r, n', r), for the same columns B of other rows."""

    def add_gram_(self, K: Tensor, strips: list[slice]) -> None:
        """Add this block's A A^T to K, shape (n, r, n, r).

        For each strip of samples only against the samples up to the strip's end.
        """
        for s in strips:
            self.at(s).add_cross_(K[s, :, : s.stop], self.at(slice(0, s.stop)))

    @abstractmethod
    def add_rows_(self, rows: Tensor) -> None:
        """Write the block's rows into rows, shape (n, r, p)."""

    @abstractmethod
    def at(self, samples: slice | Tensor) -> Block:
        """The same columns for some of the samples."""


class LayerBlock(Block):
    r"""A linear layer's weight (and bias), never multiplied out.

    .. math:: \nabla_W z_{i a} = \sum_t \delta_{i a t}\, x_{i t}^T .

    Args:
        x: inputs, shape (g, n, t, d): groups, samples, positions, fan-in.
        delta: output gradients, shape (n, r, g, t, a).
        weight: place of the weight in the parameter vector.
        bias: place of the bias, or None.
    """

    def __init__(
        self, x: Tensor, delta: Tensor, weight: slice, bias: slice | None
    ) -> None:
        self.x, self.delta = x.contiguous(), delta.contiguous()
        self.weight, self.bias = weight, bias
        # samples, roots, groups, positions, fan-out of a group; and its fan-in
        self.n, self.r, self.g, self.t, self.a = delta.shape
        self.d = x.shape[-1]

    def matvec(self, v: Tensor) -> Tensor:
        W = v[self.weight].view(self.g, self.a, self.d)
        y = torch.bmm(self.x.view(self.g, -1, self.d), W.mT)
        if self.bias is not None:
            y = y + v[self.bias].view(self.g, 1, self.a)
        y = y.view(self.g, self.n, -1).transpose(0, 1).reshape(self.n, -1)
        flat = self.delta.view(self.n, self.r, -1)
        if self.r == 1:
            return (flat[:, 0] * y).sum(-1, keepdim=True)
        return torch.bmm(flat, y[..., None])[..., 0]

    def rmatvec_(self, a: Tensor, out: Tensor) -> None:
        flat = self.delta.view(self.n, self.r, -1)
        c = a * flat[:, 0] if self.r == 1 else torch.bmm(a[:, None, :], flat)
        c = c.view(self.n, self.g, self.t, self.a).transpose(0, 1)
        c = c.reshape(self.g, -1, self.a)
        torch.bmm(
            c.mT,
            self.x.view(self.g, -1, self.d),
            out=out[self.weight].view(self.g, self.a, self.d),
        )
        if self.bias is not None:
            out[self.bias] = c.sum(1).view(-1)

    def add_cross_(self, K: Tensor, other: Block) -> None:
        assert isinstance(other, LayerBlock)  # blocks of one model correspond
        for g in range(self.g):
            if self.t == 1:
                self._add_products_(K, other, g)
            elif by_positions(self.r, self.t, self.d, self.a):
                self._add_positions_(K, other, g)
            else:
                for mine, theirs in zip(
                    self._outer(g, other.n), other._outer(g, self.n), strict=True
                ):
                    _add_rows_cross_(K, mine, theirs)
        if self.bias is not None and self.t > 1:
            _add_rows_cross_(K, self._bias_rows(), other._bias_rows())

    def add_gram_(self, K: Tensor, strips: list[slice]) -> None:
        if self.t == 1 or by_positions(self.r, self.t, self.d, self.a):
            return super().add_gram_(K, strips)
        for g in range(self.g):  # multiplied out once for all strips
            for rows in self._outer(g, self.n):
                _add_rows_gram_(K, rows, strips)
        if self.bias is not None:
            _add_rows_gram_(K, self._bias_rows(), strips)

    def _add_products_(self, K: Tensor, other: LayerBlock, g: int) -> None:
        """One position: the Gram of outer products is the product of Grams."""
        XX = self.x[g, :, 0] @ other.x[g, :, 0].mT
        if self.bias is not None:
            XX += 1.0
        left = self.delta[:, :, g, 0].reshape(-1, self.a)
        DD = left @ other.delta[:, :, g, 0].reshape(-1, self.a).mT
        K.addcmul_(DD.view(K.shape), XX[:, None, :, None])

    def _add_positions_(self, K: Tensor, other: LayerBlock, g: int) -> None:
        """Few positions: the same for each pair of them, some samples at a time."""
        n, r, t = other.n, self.r, self.t
        x = self.x[g].reshape(-1, self.d)
        delta = self.delta[:, :, g].reshape(-1, self.a)
        theirs = other.delta[:, :, g].reshape(-1, self.a).mT
        step = max(1, CHUNK // (r * t * n * r * t))
        for i in range(0, self.n, step):
            j = min(i + step, self.n)
            XX = x[i * t : j * t] @ other.x[g].reshape(-1, self.d).mT
            DD = delta[i * r * t : j * r * t] @ theirs
            XX, DD = XX.view(j - i, 1, t, n, 1, t), DD.view(j - i, r, t, n, r, t)
            K[i:j] += (XX * DD).sum(dim=(2, 5))

    def _outer(self, g: int, beside: int) -> Iterator[Tensor]:
        """Many positions: rows multiplied out, some output channels at a time."""
        step = max(1, CHUNK // (max(self.n, beside) * self.r * self.d))
        for i in range(0, self.a, step):
            delta = self.delta[:, :, g, :, i : i + step]
            yield (delta.mT @ self.x[g, :, None]).reshape(self.n, self.r, -1)

    def _bias_rows(self) -> Tensor:
        return self.delta.sum(3).view(self.n, self.r, -1)

    def add_rows_(self, rows: Tensor) -> None:
        x = self.x.transpose(0, 1)[:, None]
        W = torch.matmul(self.delta.mT, x)  # n r g a d
        rows[..., self.weight] = W.reshape(self.n, self.r, -1)
        if self.bias is not None:
            rows[..., self.bias] = self._bias_rows()

    def at(self, samples: slice | Tensor) -> LayerBlock:
        x = self.x[:, samples]
        return LayerBlock(x, self.delta[samples], self.weight, self.bias)


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

    def add_cross_(self, K: Tensor, other: Block) -> None:
        assert isinstance(other, DenseBlock)  # blocks of one model correspond
        _add_rows_cross_(K, self.rows, other.rows)

    def add_rows_(self, rows: Tensor) -> None:
        rows[..., self.index] = self.rows

    def at(self, samples: slice | Tensor) -> DenseBlock:
        return DenseBlock(self.rows[samples], self.index)


class JacobianFactors:
    r"""The matrix A of a whole data set in factors, one block of columns a layer.

    .. math:: A = \tfrac{1}{\sqrt n} S^T J \in \mathbb{R}^{(n r) \times p}.

    Args:
        blocks: columns of A, disjoint and covering all parameters.
        n, r, p: samples, roots for each sample, parameters.
        like: a tensor of the dtype and device of new ones.

    Source: :eq:`drv-core-factors` (derivations).

    Examples:
        >>> block = DenseBlock(torch.ones(3, 1, 2), torch.arange(2))
        >>> JacobianFactors([block], 3, 1, 2, torch.ones(1)).gram()
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
        out = a.new_empty(self.p)
        for block in self.blocks:
            block.rmatvec_(a.view(self.n, self.r), out)
        return out

    def gram(self) -> Tensor:
        """K = A A^T, shape (m, m); cost about m^2 (fan-in / r^2 + fan-out) a layer."""
        K = self.like.new_zeros(self.n, self.r, self.n, self.r)
        strips = self._strips()
        for block in self.blocks:
            block.add_gram_(K, strips)
        K = K.view(self.m, self.m)
        for s in strips:
            i, j = s.start * self.r, s.stop * self.r
            K[:i, i:j] = K[i:j, :i].mT
        return K

    def cross(self, other: JacobianFactors) -> Tensor:
        """A B^T for the rows B of other samples, shape (m, other's m)."""
        K = self.like.new_zeros(self.n, self.r, other.n, other.r)
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            mine.add_cross_(K, theirs)
        return K.view(self.m, other.m)

    def at(self, samples: slice | Tensor) -> JacobianFactors:
        """The rows of some of the samples, copied."""
        blocks = [block.at(samples) for block in self.blocks]
        n = torch.arange(self.n, device=self.like.device)[samples].numel()
        return JacobianFactors(blocks, n, self.r, self.p, self.like)

    def _strips(self) -> list[slice]:
        step = max(1, STRIP // self.r)
        return [slice(i, min(i + step, self.n)) for i in range(0, self.n, step)]

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


def by_positions(r: int, t: int, d: int, a: int) -> bool:
    """Whether a Gram over pairs of positions is cheaper than multiplying out."""
    return t**2 * (d + a * r**2) < d * a * r**2


def _add_rows_cross_(K: Tensor, rows: Tensor, others: Tensor) -> None:
    """Add rows others^T to K, shape (n, r, n', r), for rows of shape (n, r, q)."""
    n, r, m, _ = K.shape
    K.view(n * r, m * r).addmm_(rows.flatten(0, 1), others.flatten(0, 1).mT)


def _add_rows_gram_(K: Tensor, rows: Tensor, strips: list[slice]) -> None:
    """Add rows rows^T to K up to the diagonal."""
    for s in strips:
        _add_rows_cross_(K[s, :, : s.stop], rows[s], rows[: s.stop])
