"""The learning coefficient of a model at finite n, by exact grid or by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.stratifolds.charts import Chart
from geolib.stratifolds.descent import Objective, pull_back
from geolib.stratifolds.tempered import TemperedPosterior, grid_mean_loss, mala


@dataclass(frozen=True)
class LearningCoefficient:
    """An estimate of the learning coefficient at one n and one temperature.

    Attributes:
        value: n beta (E[L] - L0).
        error: standard error of the sampler; 0 for a grid.
        method: "grid" or "mala".
        acceptance: of the sampler; 1 for a grid.
    """

    value: float
    error: float
    method: str
    acceptance: float


@dataclass(frozen=True)
class ChartLoss:
    r"""A loss as a function of a chart's coordinates, with a hand-written gradient.

    .. math:: \eta \mapsto L(\alpha(\eta)), \qquad \nabla_\eta L = J^\top\nabla_\alpha L

    Args:
        objective: loss on atoms.
        chart: coordinates.

    Source: chain rule. Cost: one `evaluate`.

    Examples:
        >>> from geolib.stratifolds import MixtureKL, RawA
        >>> kl = MixtureKL(torch.tensor([1.0, 0.0], dtype=torch.float64))
        >>> eta = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        >>> round(float(ChartLoss(kl, RawA())(eta)), 6)
        0.125
    """

    objective: Objective
    chart: Chart

    def __call__(self, eta: Tensor) -> Tensor:
        return self.objective.evaluate(self.chart.atoms(eta))[0]

    def with_gradient(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (b,) and gradient (b, P)."""
        loss, g, _ = pull_back(self.objective, self.chart, eta, False)
        return loss, g


def module_loss(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
) -> Callable[[Tensor], Tensor]:
    r"""A module's mean loss as a function of a batch of flat parameter vectors.

    .. math:: \theta_{1..b} \mapsto \bigl(\ell(R(\theta_i, x), y)\bigr)_i

    Args:
        module: any module that `geolib.core.Realization` accepts.
        loss: (outputs, y) -> scalar mean.
        x, y: data, at least two of each.

    Raises:
        ValueError: data that are empty, one point, or of unequal length.

    Source: definition. Cost: one forward pass a row.

    Examples:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> x = torch.ones(3, 1)
        >>> module_loss(net, nn.functional.mse_loss, x, x)(torch.tensor([[0.0], [1.0]]))
        tensor([1., 0.])
    """
    from geolib.core import Realization

    if len(x) < 2 or len(x) != len(y):
        raise ValueError(
            f"data: expected at least 2 inputs and as many targets, got {len(x)} and "
            f"{len(y)}"
        )
    R = Realization(module)

    def batch(theta: Tensor) -> Tensor:
        return torch.stack([loss(R(row, x), y) for row in theta])

    return batch


def learning_coefficient(
    loss: Callable[[Tensor], Tensor],
    n: int,
    lower: Tensor,
    upper: Tensor,
    *,
    base: float,
    sampler: str = "grid",
    beta: float | None = None,
    points: Sequence[int] = (200, 200),
    theta0: Tensor | None = None,
    anchor: Tensor | None = None,
    gamma: float = 0.0,
    steps: int = 4000,
    step: float = 0.1,
    seed: int = 0,
) -> LearningCoefficient:
    r"""The finite-n learning coefficient of a loss on a box.

    .. math:: \hat\lambda(n) = n\beta\,\bigl(E_\beta[L_n] - L_n(\theta_0)\bigr),
              \qquad \beta = 1/\log n

    At finite n this is **not** the asymptotic coefficient: with multiplicity m it lies
    below it by about (m - 1)/log n and more, see `EvidenceCurve`. So compare a sampler
    with the grid, not with a theorem.

    Args:
        loss: (b, P) -> (b,) mean loss over the n data.
        n: number of data.
        lower, upper: (P,) the box of the flat prior.
        base: loss at the truth (or at the minimum), :math:`L_n(\theta_0)`.
        sampler: "grid" (P <= 3, exact) or "mala".
        beta: inverse temperature.
        points: grid size along each coordinate.
        theta0: (chains, P) starts of the sampler.
        anchor, gamma: optional tie to a point, as for networks.
        steps, step, seed: of the sampler.

    Raises:
        ValueError: an unknown sampler, a grid in more than three dimensions, a sampler
            without starts, or any of `TemperedPosterior`'s.

    Source: Watanabe 2013 (WBIC), Lau et al. 2023 (local version). Cost: the grid's
    nodes, or steps x chains losses.

    Examples:
        >>> square = lambda t: (t**2).sum(1)                 # K = t^2: 1/2
        >>> box = torch.ones(1, dtype=torch.float64)
        >>> out = learning_coefficient(square, 10**6, -box, box, base=0.0,
        ...                            points=[20001])
        >>> round(out.value, 3)
        0.5
    """
    posterior = TemperedPosterior(loss, n, lower, upper, beta, anchor, gamma)
    if sampler == "grid":
        mean = grid_mean_loss(posterior, points)
        return LearningCoefficient(posterior.weight * (mean - base), 0.0, "grid", 1.0)
    if sampler != "mala":
        raise ValueError(f"sampler: expected 'grid' or 'mala', got {sampler!r}")
    if theta0 is None:
        raise ValueError("theta0: the sampler needs starts of shape (chains, P)")
    out = mala(posterior, theta0, steps=steps, step=step, seed=seed)
    value = posterior.weight * (out.mean - base)
    return LearningCoefficient(
        value, posterior.weight * out.error, "mala", out.acceptance
    )
