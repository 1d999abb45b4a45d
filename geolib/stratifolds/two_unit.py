"""Signed networks of few units with a closed-form population loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, check_theta
from geolib.stratifolds.kernels import Kernel


def split_units(atoms: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Atoms (b, K(1+n)) to output weights (b, K) and input weights (b, K, n)."""
    v, w = atoms[:, :units], atoms[:, units:]
    return v, w.reshape(len(atoms), units, -1)


@dataclass
class UnitLoss:
    r"""Half the squared distance between two networks, in closed form.

    .. math:: L = \tfrac12\Bigl\| \sum_i v_i\,\sigma(w_i, \cdot)
              - \sum_j v^*_j\,\sigma(w^*_j, \cdot)\Bigr\|^2
              = \tfrac12 c^\top K c

    where c stacks v and -v*, and K is the kernel of all units. All formulas are
    bilinear, without conjugation, so complex-conjugate pairs of units are valid.

    Args:
        kernel: inner product of units.
        teacher_v: (K*,) true output weights.
        teacher_w: (K*, n) true input weights.
        units: number of units K of the student.

    Raises:
        ValueError: teacher weights of unequal length or not finite.

    Source: definition; derivatives by the chain rule. Cost: b (K + K*)^2 n^2.

    Examples:
        >>> from geolib.stratifolds import RBFKernel
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> loss = UnitLoss(RBFKernel(), one, 0 * one[:, None], units=1)
        >>> loss.value(torch.zeros(1, 2, dtype=torch.float64))
        tensor([0.5000], dtype=torch.float64)
    """

    kernel: Kernel
    teacher_v: Tensor
    teacher_w: Tensor
    units: int = 2

    def __post_init__(self) -> None:
        v, w = self.teacher_v, self.teacher_w
        if w.ndim != 2 or v.shape != w.shape[:1]:
            raise ValueError(
                "teacher_w: expected shape (units, n) with one row for each of "
                f"{len(v)} output weights, got {tuple(w.shape)}"
            )
        if not bool(torch.isfinite(v).all() and torch.isfinite(w).all()):
            raise ValueError("teacher: expected finite weights")

    def _all(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        v, w = split_units(atoms, self.units)
        b = len(atoms)
        tv = -self.teacher_v.to(v.dtype).expand(b, -1)
        tw = self.teacher_w.to(w.dtype).expand(b, -1, -1)
        return torch.cat([v, tv], 1), torch.cat([w, tw], 1)

    def value(self, atoms: Tensor) -> Tensor:
        """The loss only, (b,)."""
        c, w = self._all(atoms)
        K = self.kernel(w[:, :, None], w[:, None])
        L = 0.5 * torch.einsum("bi,bij,bj->b", c, K, c)
        return L.real if L.is_complex() else L

    def evaluate(
        self, atoms: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, A), Gauss-Newton matrix (b, A, A) if asked for."""
        c, w = self._all(atoms)
        own_v, own_w = split_units(atoms, self.units)
        k = self.kernel(own_w[:, :, None], w[:, None])
        d_v = torch.einsum("bij,bj->bi", k, c)
        slope = self.kernel.d1(own_w[:, :, None], w[:, None])
        d_w = own_v[..., None] * torch.einsum("bijn,bj->bin", slope, c)
        loss = self.value(atoms)
        gradient = torch.cat([d_v, d_w.flatten(1)], 1)
        return loss, gradient, self.fisher(atoms) if fisher else None

    def fisher(self, atoms: Tensor) -> Tensor:
        """The Gauss-Newton matrix in atom coordinates, (b, A, A)."""
        v, w = split_units(atoms, self.units)
        b, K, n = w.shape
        left, right = w[:, :, None], w[:, None]
        F = torch.empty(b, K * (1 + n), K * (1 + n), dtype=w.dtype, device=w.device)
        F[:, :K, :K] = self.kernel(left, right)
        cross = self.kernel.d1(left, right) * v[:, :, None, None]  # (b, i, j, n)
        F[:, K:, :K] = cross.permute(0, 1, 3, 2).reshape(b, K * n, K)
        F[:, :K, K:] = F[:, K:, :K].transpose(1, 2)
        outer = (v[:, :, None] * v[:, None])[..., None, None]
        block = (self.kernel.d12(left, right) * outer).permute(0, 1, 3, 2, 4)
        F[:, K:, K:] = block.reshape(b, K * n, K * n)
        return F


class RawUnits(Chart):
    r"""Output and input weights of K units, as they are.

    .. math:: \theta = (v_1, \dots, v_K;\ w_1, \dots, w_K)

    Source: definition. Cost: none.

    Examples:
        >>> RawUnits(2, 1).names
        ('v0', 'v1', 'w0_0', 'w1_0')
    """

    def __init__(self, units: int = 2, n: int = 1) -> None:
        self.units, self.n = units, n
        w = [f"w{i}_{a}" for i in range(units) for a in range(n)]
        self.names = (*(f"v{i}" for i in range(units)), *w)

    def atoms(self, eta: Tensor) -> Tensor:
        return eta

    def jacobian(self, eta: Tensor) -> Tensor:
        eye = torch.eye(eta.shape[1], dtype=eta.dtype, device=eta.device)
        return eye.expand(len(eta), -1, -1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, self.units * (1 + self.n))
        return theta
