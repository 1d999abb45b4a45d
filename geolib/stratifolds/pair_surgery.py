"""Collar surgery on two signed units: leave the overlap stratum where it attracts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps
from geolib.stratifolds.charts_units import overlap_coordinates
from geolib.stratifolds.two_unit import UnitLoss, split_units


@dataclass
class PairSurgery:
    r"""Retract a pair onto its overlap stratum and re-enter where the loss falls.

    .. math:: L(V, b, U) = L(V, b, 0) + \tfrac12\langle A, U\rangle + O(|U|^{3/2}),
              \qquad A = V\,E[(f - f^*)\,\sigma''(b\cdot x)\,x x^\top],
              \quad U = z(1-z)\,d d^\top

    With A's eigenpair :math:`(\lambda, e)`: a negative :math:`\lambda` is entered with
    both units between (z = 1/2, u > 0), a positive one with a unit of opposite sign
    outside (z = 3/2, u < 0). The move is kept only where the loss does not rise.

    Args:
        objective: population loss.
        eps: collar, a pair is operated on when :math:`|u| < \varepsilon`.
        u_min: spread at re-entry; None tries geometric sizes up to `eps`.

    Raises:
        ValueError: `eps` not positive.

    Source: our construction, spec 2; A is the splitting matrix of Wu, Wang, Liu 2019.
    Cost: one kernel Hessian and a few losses.
    """

    objective: UnitLoss
    eps: float = 0.1
    u_min: float | None = None

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def matrix(self, theta: Tensor) -> Tensor:
        """The splitting matrix A at the retraction of each row, (B, n, n)."""
        V, _, b, _, _ = overlap_coordinates(theta)
        loss = self.objective
        teacher = loss.teacher_w.expand(len(theta), -1, -1)
        points = torch.cat([b[:, None], teacher], 1)
        c = torch.cat([V[:, None], -loss.teacher_v.expand(len(theta), -1)], 1)
        H = loss.kernel.d11(b[:, None], points)
        return V[:, None, None] * torch.einsum("bj,bjnm->bnm", c, H)

    def __call__(self, theta: Tensor, value: Tensor) -> Tensor:
        V, _, b, _, u = overlap_coordinates(theta)
        inside = torch.isfinite(u) & (u.abs() < self.eps) & (V.abs() > 1e-8)
        best, best_loss = theta.clone(), value.clone()
        if not bool(inside.any()):
            return best
        A = b.new_zeros(len(theta), b.shape[1], b.shape[1])
        A[inside] = self.matrix(theta[inside])
        lam, E = torch.linalg.eigh(A)
        sizes = [self.u_min] if self.u_min else [self.eps * 4.0**-k for k in range(4)]
        for col, share in ((0, 0.5), (-1, 1.5)):
            useful = inside & ((lam[:, col] < 0) if col == 0 else (lam[:, col] > 0))
            for size in sizes:
                trial = self._enter(V, b, E[:, :, col], share, u, size)
                ok = useful & torch.isfinite(trial).all(1)
                trial = torch.where(ok[:, None], trial, theta)
                loss = self.objective.value(trial)
                better = ok & (loss < best_loss)
                best[better], best_loss[better] = trial[better], loss[better]
        return best

    @staticmethod
    def _enter(
        V: Tensor, b: Tensor, e: Tensor, share: float, u: Tensor, size: float
    ) -> Tensor:
        spread = u.abs().clamp_min(size)
        gap = torch.sqrt(spread / abs(share * (1 - share)))[:, None]
        w1, w2 = b - share * gap * e, b + (1 - share) * gap * e
        v = torch.stack([(1 - share) * V, share * V], 1)
        return torch.cat([v, w1, w2], 1)


def on_plateau(theta: Tensor, eps: float = 0.1) -> Tensor:
    r"""Which two-unit networks sit in the collar of the overlap stratum.

    .. math:: |u| = |z(1-z)|\,|w_1 - w_2|^2 < \varepsilon

    Args:
        theta: (B, 2 + 2n) raw weights.
        eps: width of the collar in u.

    Returns:
        (B,) booleans.

    Source: spec 1.5. Cost: O(B n).

    Examples:
        >>> on_plateau(torch.tensor([[1.0, 1.0, 0.0, 0.1], [1.0, 1.0, 0.0, 2.0]]))
        tensor([ True, False])
    """
    split_units(theta, 2)
    u = overlap_coordinates(theta)[4]
    return torch.isfinite(u) & (u.abs() < eps)
