"""Strata and stratifolds: where a parameter space loses rank, and what is near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart


@dataclass(frozen=True)
class NormalCone:
    r"""How a loss leaves a stratum, to second order along its normal fibre.

    .. math:: L(r(\theta) + N y) = L + \langle g, y\rangle
              + \tfrac12 y^\top A\,y + O(|y|^3)

    Attributes:
        slope: (b, m) first-order coefficients g; zero unless the stratum is a wall or
            the fibre is crossed transversally.
        curvature: (b, m) eigenvalues of A in ascending order.
        directions: (b, P, m) the eigenvectors as directions of the parameters.
    """

    slope: Tensor
    curvature: Tensor
    directions: Tensor

    def attracts(self, tol: float = 1e-9) -> Tensor:
        """Rows where no admissible direction decreases the loss, (b,) bool.

        A slope is read one-sidedly (a wall has only one side); where it vanishes the
        curvature decides.
        """
        flat = self.slope.abs() <= tol
        up = torch.where(flat, self.curvature > tol, self.slope > 0)
        return up.all(1)


@dataclass(frozen=True)
class Stratum:
    r"""One lower stratum of a parameter space, with its local retraction.

    .. math:: h(\theta) \ge 0, \qquad r(\theta) \in \Sigma, \qquad
              L(r(\theta)) = L(\theta) + O(h)

    Args:
        name: as printed.
        rank: Fisher rank on the stratum.
        dim: its dimension as a subset of the parameter space.
        height: theta (b, P) -> h (b,).
        onto: theta (b, P) -> r(theta) (b, P).
        fibre: theta (b, P) -> (b, P, m), directions that retract to theta.
        draw: (rng, n) -> (n, P) random points of the stratum.

    Source: Kreck's stratifolds; the finite-rank reading is ours (spec 1.1).
    Cost: O(b) for all models here.
    """

    name: str
    rank: int
    dim: int
    height: Callable[[Tensor], Tensor] = field(repr=False)
    onto: Callable[[Tensor], Tensor] = field(repr=False)
    fibre: Callable[[Tensor], Tensor] = field(repr=False)
    draw: Callable[[np.random.Generator, int], np.ndarray] = field(repr=False)

    def distance(self, theta: Tensor) -> Tensor:
        """The height h above the stratum, (b,)."""
        return self.height(theta)

    def retract(self, theta: Tensor) -> Tensor:
        """The nearest point along the fibre, (b, P)."""
        return self.onto(theta)

    def normal_cone(
        self, theta: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> NormalCone:
        """The loss along the fibre at r(theta): slope, curvature, directions.

        Args:
            theta: (b, P) points near the stratum.
            loss: (b, P) -> (b,), differentiable by autograd.
        """
        base = self.onto(theta).detach()
        N = self.fibre(base)
        m = N.shape[2]
        with torch.enable_grad():
            y = base.new_zeros(len(base), m, requires_grad=True)
            value = loss(base + torch.einsum("bpm,bm->bp", N, y)).sum()
            (g,) = torch.autograd.grad(value, y, create_graph=True)
            rows = [
                torch.autograd.grad(
                    g[:, i].sum(), y, retain_graph=True, materialize_grads=True
                )[0]
                for i in range(m)
            ]
        A = torch.stack(rows, 1)
        lam, U = torch.linalg.eigh((A + A.transpose(1, 2)) / 2)
        slope = torch.einsum("bm,bmk->bk", g.detach(), U)
        return NormalCone(slope, lam, torch.einsum("bpm,bmk->bpk", N, U))


@dataclass(frozen=True)
class Stratifold:
    r"""A singular parameter space: raw coordinates, lower strata, known resolutions.

    .. math:: \Theta = \bigsqcup_i S^i, \qquad
              S^i = \{\theta : \operatorname{rank} F(\theta) = i\}, \qquad
              \Sigma^i = S^0 \cup \dots \cup S^i \ \text{(skeleton)}

    Args:
        name: of the model.
        chart: raw coordinates.
        strata: lower strata, lowest rank first.
        objective: teacher's raw parameters (P,) -> loss on atoms.
        draw: (rng, n) -> (n, P) random points of the top stratum.
        charts: kind of resolution -> (eps -> chart), see `resolve`.
        distance: height above the union of strata in the units of `eps`.

    Source: Esser, Nielsen 2021 (the programme); this form is ours (spec 5).
    Cost: none.
    """

    name: str
    chart: Chart
    strata: tuple[Stratum, ...]
    objective: Callable[[Tensor], Any] = field(repr=False)
    draw: Callable[[np.random.Generator, int], np.ndarray] = field(repr=False)
    charts: dict[str, Callable[[float], Chart]] = field(repr=False)
    distance: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def dim(self) -> int:
        """Dimension of the parameter space, the rank on the top stratum."""
        return len(self.chart.names)

    def fisher(self, theta: Tensor) -> Tensor:
        """The Fisher (or Gauss-Newton) matrix in raw coordinates, (b, P, P)."""
        theta = self.chart.lift(theta)
        F = self.objective(theta[0]).fisher(self.chart.atoms(theta))
        J = self.chart.jacobian(theta)
        return torch.einsum("bap,bac,bcq->bpq", J, F, J)

    def rank(self, theta: Tensor, rtol: float = 1e-9) -> Tensor:
        """Fisher rank of each row, (b,), whatever the scales of the coordinates.

        A coordinate with information below `rtol` is blind; the others are scaled to
        unit information and eigenvalues above `rtol` are counted.
        """
        F = self.fisher(theta)
        info = F.diagonal(dim1=1, dim2=2)
        scale = torch.where(info > rtol, info.clamp_min(1e-300).rsqrt(), 0.0)
        lam = torch.linalg.eigvalsh(scale[:, :, None] * F * scale[:, None])
        return (lam > rtol).sum(1)

    def stratum_of(self, theta: Tensor, tol: float = 1e-8) -> Tensor:
        """Index in `strata` of the lowest stratum within `tol`, or -1 on top, (b,)."""
        theta = self.chart.lift(theta)
        found = torch.full((len(theta),), -1, dtype=torch.long, device=theta.device)
        for i in reversed(range(len(self.strata))):
            found[self.strata[i].distance(theta) <= tol] = i
        return found

    def skeleton(self, i: int) -> tuple[Stratum, ...]:
        """The strata of Fisher rank at most i; their union is closed."""
        return tuple(s for s in self.strata if s.rank <= i)

    def sample_stratum(
        self, i: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """n random points of Fisher rank i, drawn evenly from the strata of that rank.

        Raises:
            ValueError: no stratum has rank i.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1 point, got {n}")
        rng = np.random.default_rng(seed)
        if i == self.dim:
            return torch.as_tensor(self.draw(rng, n), dtype=dtype)
        group = [s for s in self.strata if s.rank == i]
        if not group:
            ranks = sorted({s.rank for s in self.strata} | {self.dim})
            raise ValueError(f"i: {self.name} has strata of ranks {ranks}, not {i}")
        parts = np.array_split(np.arange(n), len(group))
        draws = [s.draw(rng, len(p)) for s, p in zip(group, parts, strict=True)]
        return torch.as_tensor(np.concatenate(draws), dtype=dtype)
