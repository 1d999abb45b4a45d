"""Signed networks of few units, with a closed-form population loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.core.validation import expect, require_finite
from geolib.networks.erf_kernel import ErfKernel
from geolib.stratifolds.charts import real_part


class RBFKernel:
    r"""The overlap of Gaussian bumps on the line, by Lebesgue measure.

    .. math:: k(a, b) = \frac{1}{\sqrt\pi}\int e^{-(x-a)^2/2} e^{-(x-b)^2/2}\,dx
              = e^{-(a-b)^2/4}

    Entire in a and b, so complex-conjugate centres are allowed.

    Source: :eq:`drv-stratifolds-rbf` (derivations).

    Examples:
        >>> RBFKernel()(torch.zeros(1), torch.tensor([2.0]))
        tensor(0.3679)
    """

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b) for a, b of shape (..., 1); the others are its derivatives."""
        return torch.exp(-((a - b) ** 2)[..., 0] / 4)

    def d1(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b) / 2 * self(a, b)[..., None]

    def d12(self, a: Tensor, b: Tensor) -> Tensor:
        d = (a - b)[..., None]
        return (0.5 - d * d / 4) * self(a, b)[..., None, None]

    def d11(self, a: Tensor, b: Tensor) -> Tensor:
        return -self.d12(a, b)


Kernel = RBFKernel | ErfKernel


def split_units(theta: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Weights (b, K(1+n)) to output weights (b, K) and input weights (b, K, n)."""
    v, w = theta[:, :units], theta[:, units:]
    return v, w.reshape(len(theta), units, -1)


def overlap_coordinates(theta: Tensor) -> tuple[Tensor, ...]:
    r"""Two units seen from their overlap stratum.

    .. math:: V = v_1 + v_2,\quad z = v_2/V,\quad b = (1-z)w_1 + z w_2,\quad
              d = w_2 - w_1,\quad u = z(1-z)|d|^2

    Args:
        theta: (B, 2 + 2n) two units.

    Returns:
        V (B,), z (B,), b (B, n), d (B, n), u (B,). They are not finite where V = 0,
        the end of the central chart.

    Source: :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> V, z, b, d, u = overlap_coordinates(torch.tensor([[1.0, 1.0, 0.0, 2.0]]))
        >>> float(V), float(z), float(b), float(u)
        (2.0, 0.5, 1.0, 1.0)
    """
    width = theta.shape[-1]
    fits = theta.ndim == 2 and len(theta) and width >= 4 and width % 2 == 0
    expect(fits, "theta", "shape (B, 2 + 2n)", tuple(theta.shape))
    v, w = split_units(theta, 2)
    V = v.sum(1)
    z = v[:, 1] / V
    b = (1 - z)[:, None] * w[:, 0] + z[:, None] * w[:, 1]
    d = w[:, 1] - w[:, 0]
    return V, z, b, d, z * (1 - z) * (d * d).sum(1)


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
        ValueError: teacher weights are of unequal length or not finite.

    Cost: b (K + K*)^2 n^2.
    Source: :eq:`drv-stratifolds-unitloss` (derivations).

    Examples:
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
        require_finite("teacher_v", v)
        require_finite("teacher_w", w)
        if w.ndim != 2 or v.shape != w.shape[:1]:
            raise ValueError(
                "teacher_w: expected shape (units, n) with one row for each of "
                f"{len(v)} output weights, got {tuple(w.shape)}"
            )
        self._own = v @ self.kernel(w[:, None], w) @ v  # the teacher's squared norm

    def _all(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """Output and input weights of all units, the teacher's with a minus sign."""
        v, w = split_units(natural, self.units)
        b = len(natural)
        tv = -self.teacher_v.to(v.dtype).expand(b, -1)
        tw = self.teacher_w.to(w.dtype).expand(b, -1, -1)
        return torch.cat([v, tv], 1), torch.cat([w, tw], 1)

    def value(self, natural: Tensor) -> Tensor:
        """The loss only, (b,)."""
        c, w = self._all(natural)
        K = self.kernel(w[:, :, None], w[:, None])
        return real_part(0.5 * torch.einsum("bi,bij,bj->b", c, K, c))

    def evaluate(
        self, natural: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, A), Gauss-Newton matrix (b, A, A) if asked for."""
        c, w = self._all(natural)
        v, own = split_units(natural, self.units)
        k = self.kernel(own[:, :, None], w[:, None])
        d_v = (k @ c[..., None])[..., 0]
        cross = (k[:, :, self.units :] @ c[:, self.units :, None])[..., 0]
        loss = real_part(0.5 * ((v * (d_v + cross)).sum(1) + self._own))
        slope = self.kernel.d1(own[:, :, None], w[:, None])
        d_w = v[..., None] * (slope * c[:, None, :, None]).sum(2)
        gradient = torch.cat([d_v, d_w.flatten(1)], 1)
        F = unit_fisher(self.kernel, natural, self.units) if fisher else None
        return loss, gradient, F


def unit_fisher(kernel: Kernel, natural: Tensor, units: int = 2) -> Tensor:
    """The Gauss-Newton matrix in the weights of some units, (b, A, A)."""
    v, w = split_units(natural, units)
    b, K, n = w.shape
    left, right = w[:, :, None], w[:, None]
    F = torch.empty(b, K * (1 + n), K * (1 + n), dtype=w.dtype, device=w.device)
    F[:, :K, :K] = kernel(left, right)
    cross = kernel.d1(left, right) * v[:, :, None, None]  # (b, i, j, n)
    F[:, K:, :K] = cross.permute(0, 1, 3, 2).reshape(b, K * n, K)
    F[:, :K, K:] = F[:, K:, :K].transpose(1, 2)
    outer = (v[:, :, None] * v[:, None])[..., None, None]
    block = (kernel.d12(left, right) * outer).permute(0, 1, 3, 2, 4)
    F[:, K:, K:] = block.reshape(b, K * n, K * n)
    return F
