"""Surgery on a pair of units: merge it on its overlap stratum, re-enter where loss falls.

One engine serves two-unit networks in a batch (`PairSurgery`) and pairs of a real
network, a batch of one (`CollarSurgery`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps
from geolib.stratifolds.unit_loss import UnitLoss, overlap_coordinates

Gaps = Callable[[float], Iterable[Tensor]]


@dataclass(frozen=True)
class Reentry:
    """A way back into the top stratum for some merged pairs.

    Attributes:
        move: "split" (incoming weights part along a direction) or "shear".
        useful: (B,) rows for which the second order promises a decrease.
        w1, w2: (B, n) incoming weights of both units.
        v1, v2: (B, m) their outgoing weights.
    """

    move: str
    useful: Tensor
    w1: Tensor
    w2: Tensor
    v1: Tensor
    v2: Tensor


def splits(
    V: Tensor, b: Tensor, lam: Tensor, E: Tensor, gaps: Gaps
) -> Iterator[Reentry]:
    r"""The splits that the splitting matrix recommends.

    .. math:: w_{1,2} = b - z d,\ b + (1-z) d, \qquad v_{1,2} = (1-z)V,\ zV, \qquad
              \Delta L = \tfrac12 z(1-z)\,\langle d, A d\rangle + O(|d|^3)

    A negative eigenvalue is entered with both units between (z = 1/2), a positive one
    with a unit of opposite sign outside (z = 3/2).

    Args:
        V: (B, m) total outgoing weights.
        b: (B, n) common incoming weights.
        lam, E: lowest and highest eigenvalue (B, 2) of A, eigenvectors (B, n, 2).
        gaps: z -> lengths (B,) of d to try.

    Source: :eq:`drv-stratifolds-split` (derivations).
    """
    for end, z in ((0, 0.5), (1, 1.5)):
        useful = lam[:, end] < 0 if z == 0.5 else lam[:, end] > 0
        for gap in gaps(z):
            d = gap[:, None] * E[:, :, end]
            w1, w2 = b - z * d, b + (1 - z) * d
            yield Reentry("split", useful, w1, w2, (1 - z) * V, z * V)


def best_reentry(
    trials: Iterable[Reentry], loss: Callable[[Reentry], Tensor], bound: Tensor
) -> tuple[list[Reentry | None], Tensor]:
    """The trial with the least loss below `bound`, row by row, and that loss.

    Args:
        trials: re-entries of the same B pairs.
        loss: a trial -> its loss (B,).
        bound: (B,) what a trial must fall below.

    Returns:
        B trials, None where there is no such trial, and their losses (`bound` there).
    """
    best: list[Reentry | None] = [None] * len(bound)
    bound = bound.clone()
    for trial in trials:
        value = loss(trial)
        better = trial.useful & (value < bound)
        bound = torch.where(better, value, bound)
        for row in better.nonzero()[:, 0].tolist():
            best[row] = trial
    return best, bound


@dataclass
class PairSurgery:
    r"""Surgery retracts a pair onto its overlap stratum and re-enters where loss falls.

    .. math:: L(V, b, U) = L(V, b, 0) + \tfrac12\langle A, U\rangle + O(|U|^{3/2}),
              \qquad A = V\,E[(f - f^*)\,\sigma''(b\cdot x)\,x x^\top],
              \quad U = z(1-z)\,d d^\top

    With A's eigenpair :math:`(\lambda, e)`: a negative :math:`\lambda` is entered with
    both units between (z = 1/2, u > 0), a positive one with a unit of opposite sign
    outside (z = 3/2, u < 0). The move is kept only where the loss does not rise.

    Args:
        objective: population loss.
        eps: collar; a pair is operated on when :math:`|u| < \varepsilon`.
        u_min: spread at re-entry; None tries geometric sizes up to `eps`.

    Raises:
        ValueError: `eps` is not positive.

    Cost: one kernel Hessian and a few losses.
    Source: :eq:`drv-stratifolds-split` (derivations); A is the splitting matrix of
    Wu, Wang, Liu 2019.

    Examples:
        >>> from geolib.stratifolds import two_unit_network
        >>> loss = two_unit_network().objective(torch.tensor([1.0, 1.0, -1.0, 1.0]))
        >>> pair = torch.tensor([[1.8, -0.3, 0.0, 0.02]])    # z outside [0, 1]: bound
        >>> after = PairSurgery(loss)(pair, loss.value(pair))
        >>> bool(loss.value(after) < loss.value(pair))
        True
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
        """The weights (B, 2 + 2n) after surgery, given them and their losses (B,)."""
        V, _, b, _, u = overlap_coordinates(theta)
        inside = torch.isfinite(u) & (u.abs() < self.eps) & (V.abs() > 1e-8)
        out, rows = theta.clone(), inside.nonzero()[:, 0]
        if not len(rows):
            return out
        lam, E = torch.linalg.eigh(self.matrix(theta[rows]))
        sizes = [self.u_min] if self.u_min else [self.eps * 4.0**-k for k in range(4)]

        def gaps(z: float) -> Iterator[Tensor]:
            for size in sizes:
                yield torch.sqrt(u[rows].abs().clamp_min(size) / abs(z * (1 - z)))

        def weights(trial: Reentry) -> Tensor:
            return torch.cat([trial.v1, trial.v2, trial.w1, trial.w2], 1)

        ends = lam[:, [0, -1]], E[:, :, [0, -1]]
        trials = splits(V[rows, None], b[rows], *ends, gaps)
        best, _ = best_reentry(
            trials, lambda trial: self.objective.value(weights(trial)), value[rows]
        )
        for k, trial in enumerate(best):
            if trial is not None:
                out[rows[k]] = weights(trial)[k]
        return out


def on_plateau(theta: Tensor, eps: float = 0.1) -> Tensor:
    r"""Which two-unit networks sit in the collar of the overlap stratum.

    .. math:: |u| = |z(1-z)|\,|w_1 - w_2|^2 < \varepsilon

    Args:
        theta: (B, 2 + 2n) raw weights.
        eps: width of the collar in u.

    Returns:
        (B,) booleans.

    Source: :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> on_plateau(torch.tensor([[1.0, 1.0, 0.0, 0.1], [1.0, 1.0, 0.0, 2.0]]))
        tensor([ True, False])
    """
    u = overlap_coordinates(theta)[4]
    return torch.isfinite(u) & (u.abs() < eps)
