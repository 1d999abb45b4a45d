"""Strata and stratifolds: where a parameter space loses rank, and what is near."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, with_columns

Draw = Callable[[np.random.Generator, int], np.ndarray]
Charts = Mapping[str, Chart | Callable[[float], Chart]]


@dataclass(frozen=True)
class NormalExpansion:
    r"""The expansion of a loss to second order along the normal fibre of a stratum.

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
    r"""A stratum of lower rank in a parameter space, with its local retraction.

    .. math:: h(\theta) \ge 0, \qquad r(\theta) \in \Sigma, \qquad
              L(r(\theta)) = L(\theta) + O(h)

    Args:
        name: as printed.
        rank: Fisher rank on the stratum.
        dim: its dimension as a subset of the parameter space.
        distance: theta (b, P) -> the height h above the stratum (b,).
        retract: theta (b, P) -> the nearest point along the fibre, r(theta) (b, P).
        fibre: theta (b, P) -> (b, P, m), directions that retract to theta.
        draw: (rng, n) -> (n, P) random points of the stratum.

    Source: Kreck's stratifolds; the reading by ranks is
    :eq:`drv-stratifolds-strata` (derivations).
    """

    name: str
    rank: int
    dim: int
    distance: Callable[[Tensor], Tensor] = field(repr=False)
    retract: Callable[[Tensor], Tensor] = field(repr=False)
    fibre: Callable[[Tensor], Tensor] = field(repr=False)
    draw: Draw = field(repr=False)

    def normal_expansion(
        self, theta: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> NormalExpansion:
        """The loss along the fibre at r(theta): slope, curvature, directions.

        Args:
            theta: (b, P) points near the stratum.
            loss: (b, P) -> (b,), differentiable by autograd.
        """
        base = self.retract(theta).detach()
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
        return NormalExpansion(slope, lam, torch.einsum("bpm,bmk->bpk", N, U))


def coordinate_stratum(
    name: str,
    rank: int,
    dim: int,
    values: Mapping[int, float],
    draw: Draw,
    inward: float = 1.0,
) -> Stratum:
    """The stratum on which some coordinates have given values.

    Args:
        name, rank: as in `Stratum`.
        dim: number P of coordinates of the whole space.
        values: coordinate -> its value on the stratum.
        draw: (rng, n) -> (n, P) random points of the top stratum.
        inward: sign of the admissible side, where the stratum is a wall.

    Examples:
        >>> wall = coordinate_stratum("w = 0", 1, 2, {0: 0.0}, lambda rng, n: None)
        >>> wall.retract(torch.tensor([[0.3, 2.0]]))
        tensor([[0., 2.]])
    """
    columns = list(values)

    def fibre(theta: Tensor) -> Tensor:
        eye = torch.eye(dim, dtype=theta.dtype, device=theta.device)
        return (inward * eye[:, columns]).expand(len(theta), -1, -1)

    def on_stratum(rng: np.random.Generator, n: int) -> np.ndarray:
        out = draw(rng, n)
        out[:, columns] = list(values.values())
        return out

    def distance(theta: Tensor) -> Tensor:
        there = theta.new_tensor(list(values.values()))
        return (theta[:, columns] - there).norm(dim=1)

    def retract(theta: Tensor) -> Tensor:
        return with_columns(theta, dict(values))

    free = dim - len(columns)
    return Stratum(name, rank, free, distance, retract, fibre, on_stratum)


@dataclass(frozen=True)
class Stratifold:
    r"""A stratifold is a singular parameter space with its strata and its resolutions.

    .. math:: \Theta = \bigsqcup_i S^i, \qquad
              S^i = \{\theta : \operatorname{rank} F(\theta) = i\}, \qquad
              \Sigma^i = S^0 \cup \dots \cup S^i \ \text{(skeleton)}

    Args:
        name: of the model.
        chart: raw coordinates.
        strata: lower strata, lowest rank first.
        objective: teacher's raw parameters (P,) -> loss on natural parameters.
        information: natural parameters (b, A) -> Fisher matrices (b, A, A); they do
            not depend on the teacher.
        draw: (rng, n) -> (n, P) random points of the top stratum.
        charts: kind of resolution -> a chart, or the class of charts with a collar,
            called with its width; see `resolve`.

    Source: :eq:`drv-stratifolds-strata` (derivations), after Esser, Nielsen 2021.
    """

    name: str
    chart: Chart
    strata: tuple[Stratum, ...]
    objective: Callable[[Tensor], Any] = field(repr=False)
    information: Callable[[Tensor], Tensor] = field(repr=False)
    draw: Draw = field(repr=False)
    charts: Charts = field(repr=False)

    @property
    def dim(self) -> int:
        """Dimension of the parameter space, the rank on the top stratum."""
        return len(self.chart.names)

    def fisher(self, theta: Tensor) -> Tensor:
        """The Fisher (or Gauss-Newton) matrix in raw coordinates, (b, P, P)."""
        eta = self.chart.to_chart(theta)
        return self.chart.pull_back_metric(eta, self.information(self.chart.embed(eta)))

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
        theta = self.chart.to_chart(theta)
        found = torch.full((len(theta),), -1, dtype=torch.long, device=theta.device)
        for i in reversed(range(len(self.strata))):
            found[self.strata[i].distance(theta) <= tol] = i
        return found

    def skeleton(self, i: int) -> tuple[Stratum, ...]:
        """The strata of Fisher rank at most i; their union is closed."""
        return tuple(s for s in self.strata if s.rank <= i)

    def sample_stratum(
        self,
        i: int,
        n: Annotated[int, "n >= 1"],
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """n random points of Fisher rank i, drawn evenly from the strata of that rank.

        Raises:
            ValueError: no stratum has rank i, or n < 1.
        """
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
