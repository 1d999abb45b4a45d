"""The learning coefficient (RLCT) of a model at finite n: exactly, or by sampling.

The estimate is that of WBIC: the mean loss under a posterior at temperature log n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.stratifolds.charts import Chart
from geolib.stratifolds.descent import Objective, pull_back


@dataclass(frozen=True)
class LearningCoefficient:
    """An estimate of the learning coefficient holds at one n and one temperature.

    Attributes:
        value: n beta (E[L] - L0).
        error: standard error of the sampler; 0 for a grid.
        method: "grid" or "mala".
        acceptance: of the sampler; 1 for a grid.
        chains: of the sampler, or 1.
    """

    value: float
    error: float
    method: str
    acceptance: float
    chains: int = 1

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the means of the chains; a grid is exact."""
        if self.chains < 2:
            return self.value, self.value
        bar = self.error * float(student.ppf((1 + level) / 2, self.chains - 1))
        return self.value - bar, self.value + bar


@dataclass(frozen=True)
class ChartLoss:
    r"""The loss as a function of a chart's coordinates has a hand-written gradient.

    .. math:: \eta \mapsto L(\alpha(\eta)), \qquad \nabla_\eta L = J^\top\nabla_\alpha L

    Args:
        objective: loss on natural parameters.
        chart: coordinates.

    Cost: one `evaluate`.
    Source: :eq:`drv-stratifolds-pullback` (derivations).

    Examples:
        >>> from geolib.stratifolds import MixtureKL, mixture_a
        >>> kl = MixtureKL(torch.tensor([1.0, 0.0], dtype=torch.float64))
        >>> eta = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        >>> round(float(ChartLoss(kl, mixture_a().chart)(eta)), 6)
        0.125
    """

    objective: Objective
    chart: Chart

    def __call__(self, eta: Annotated[Tensor, "real b self.chart.width"]) -> Tensor:
        return self.objective.value(self.chart.embed(eta))

    def with_gradient(
        self, eta: Annotated[Tensor, "real b self.chart.width"]
    ) -> tuple[Tensor, Tensor]:
        """Loss (b,) and gradient (b, P)."""
        loss, g, _ = pull_back(self.objective, self.chart, eta, False)
        return loss, g


@dataclass(frozen=True)
class TemperedPosterior:
    r"""A tempered posterior over a box takes the loss at an inverse temperature.

    .. math:: \pi(\theta) \propto \exp\bigl(-n\beta\,L(\theta)\bigr)
              \,[\,l \le \theta \le u\,]

    Args:
        loss: (b, P) -> (b,) mean loss over the data; it may offer
            `with_gradient(theta) -> (loss, gradient)`, else autograd is used.
        n: number of data.
        lower, upper: (P,) the box.
        beta: inverse temperature; default 1/log n (Watanabe's WBIC).

    Raises:
        ValueError: n < 2, or the box is empty.

    Source: Watanabe 2013 (WBIC).
    """

    loss: Callable[[Tensor], Tensor]
    n: int
    lower: Tensor
    upper: Tensor
    beta: float | None = None

    def __post_init__(self) -> None:
        expect(self.n >= 2, "n", "at least 2 observations", self.n)
        low, high = self.lower, self.upper
        ordered = low.shape == high.shape and bool((low < high).all())
        wanted = "lower < upper in each coordinate"
        expect(ordered, "lower, upper", wanted, (low.tolist(), high.tolist()))

    @property
    def weight(self) -> float:
        """n beta."""
        return self.n * (1 / math.log(self.n) if self.beta is None else self.beta)

    def energy(self, theta: Tensor, loss: Tensor) -> Tensor:
        """Minus the log density, infinite outside the box."""
        inside = ((theta >= self.lower) & (theta <= self.upper)).all(1)
        return torch.where(inside, self.weight * loss, torch.inf)

    def values(self, theta: Tensor) -> Tensor:
        """The loss, one number for each point."""
        loss, wanted = self.loss(theta), "one number for each point, shape (b,)"
        got = getattr(loss, "shape", type(loss).__name__)
        expect(got == theta.shape[:1], "loss", wanted, got)
        return loss

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, energy and the energy's gradient."""
        if hasattr(self.loss, "with_gradient"):
            loss, g = self.loss.with_gradient(theta)
        else:
            with torch.enable_grad():
                leaf = theta.detach().requires_grad_(True)
                loss = self.values(leaf)
                (g,) = torch.autograd.grad(loss.sum(), leaf)
            loss = loss.detach()
        return loss, self.energy(theta, loss), self.weight * g


SPREAD = 300  # largest step of the sampler over its smallest
APART = 1.5  # largest mean change of the energy between nodes of a grid


def grid_mean_loss(
    posterior: TemperedPosterior, points: Sequence[int]
) -> tuple[float, float]:
    r"""The exact mean loss under a tempered posterior, by the midpoint rule.

    .. math:: E_\beta[L] = \frac{\sum_g L_g e^{-U_g}}{\sum_g e^{-U_g}}

    Args:
        posterior: in at most 3 dimensions.
        points: number of midpoints along each coordinate.

    Returns:
        The mean loss, and the mean change of the energy from a node to the next one
        along the axis where that is largest: above about 1.5 nodes are further apart
        than the posterior is wide.

    Raises:
        ValueError: the number of axes is wrong, or more than three.

    Cost: the product of `points` losses.
    """
    P = len(posterior.lower)
    wanted = f"one number for each of {P} <= 3 coordinates (else use the sampler)"
    expect(len(points) == P <= 3, "points", wanted, list(points))
    axes = [
        lo + (hi - lo) * (torch.arange(k, dtype=lo.dtype, device=lo.device) + 0.5) / k
        for lo, hi, k in zip(posterior.lower, posterior.upper, points, strict=True)
    ]
    nodes = torch.cartesian_prod(*axes).reshape(-1, P)
    loss = torch.cat([posterior.values(part) for part in nodes.split(256)])
    energy = posterior.energy(nodes, loss)
    weight = torch.softmax(-energy, 0)
    mass, U = weight.view(*points), energy.view(*points)
    jumps = [0.0]
    for axis in (k for k, count in enumerate(points) if count > 1):
        pairs = mass.unfold(axis, 2, 1).sum(-1)
        jumps.append(float((pairs * U.diff(dim=axis).abs()).sum() / pairs.sum()))
    return float((weight * loss).sum()), max(jumps)


@dataclass(frozen=True)
class Sampled:
    """Samples of the loss under a tempered posterior.

    Attributes:
        mean: mean loss over chains and steps.
        error: standard error from the spread of the chains' means.
        acceptance: fraction of accepted proposals.
    """

    mean: float
    error: float
    acceptance: float


def mala(
    posterior: TemperedPosterior,
    theta0: Tensor,
    *,
    steps: int = 4000,
    step: float = 0.1,
    burn: float = 0.2,
    seed: int = 0,
) -> Sampled:
    r"""Metropolis-adjusted Langevin sampling with a random step length.

    .. math:: \theta' = \theta - \tfrac{h^2}{2}\nabla U(\theta) + h\xi, \qquad
              \alpha = \min\Bigl(1,\ e^{U(\theta) - U(\theta')}\,
              \frac{N(\theta;\ \theta' - \tfrac{h^2}2\nabla U(\theta'), h^2)}
              {N(\theta';\ \theta - \tfrac{h^2}2\nabla U(\theta), h^2)}\Bigr)

    h is drawn anew at each step, log-uniform in ``[step/300, step]`` and independent
    of the state (so the chain stays exact): near a singular set the posterior is wide
    in places and needle-thin in others. Where the drift would exceed h it is cut to
    h, in both directions of the ratio.

    Args:
        posterior: target.
        theta0: (chains, P) starts inside the box.
        steps: proposals a chain.
        step: largest step length.
        burn: fraction of the steps that is discarded.
        seed: of NumPy's generator.

    Raises:
        ValueError: a start is outside the box or not finite, or a setting is bad.

    Cost: steps evaluations of all chains.
    Source: Roberts, Tweedie 1996; :eq:`drv-stratifolds-mala` (derivations).
    """
    if not (step > 0 and steps >= 10 and 0 <= burn < 1):
        raise ValueError("step, steps, burn: expected step > 0, steps >= 10, 0<=burn<1")
    rng = np.random.default_rng(seed)
    theta = theta0.clone()
    loss, U, g = posterior.evaluate(theta)
    if not bool(torch.isfinite(U).all()):
        raise ValueError("theta0: expected starts inside the box with a finite loss")
    b, P = theta.shape
    total, kept, accepted = theta.new_zeros(b), 0, 0.0

    def drift(h: Tensor, g: Tensor) -> Tensor:
        move = 0.5 * h * h * g
        size = move.norm(dim=1, keepdim=True).clamp_min(1e-300)
        return move * (h / size).clamp_max(1.0)

    for it in range(steps):
        h = step * SPREAD ** -torch.as_tensor(rng.random((b, 1))).to(theta)
        xi = torch.as_tensor(rng.standard_normal((b, P))).to(theta)
        new = theta - drift(h, g) + h * xi
        new_loss, new_U, new_g = posterior.evaluate(new)
        safe = torch.where(torch.isfinite(new_g), new_g, torch.zeros_like(new_g))
        back = theta - new + drift(h, safe)
        log_ratio = U - new_U - 0.5 * (back**2 / h**2).sum(1) + 0.5 * (xi**2).sum(1)
        take = torch.log(torch.as_tensor(rng.random(b)).to(theta)) < log_ratio
        pick = take[:, None]
        theta, g = torch.where(pick, new, theta), torch.where(pick, safe, g)
        loss, U = torch.where(take, new_loss, loss), torch.where(take, new_U, U)
        accepted += float(take.double().mean())
        if it >= burn * steps:
            total += loss
            kept += 1
    means = total / kept
    error = float(means.std() / math.sqrt(b)) if b > 1 else float("nan")
    return Sampled(float(means.mean()), error, accepted / steps)


@differentiation()
def learning_coefficient(
    loss: Callable[[Tensor], Tensor],
    n: Annotated[int, "n >= 2"],
    lower: Annotated[Tensor, "P"],
    upper: Annotated[Tensor, "P"],
    *,
    base: float,
    sampler: Annotated[str, ("grid", "mala")] = "grid",
    beta: float | None = None,
    points: Annotated[Sequence[int], "2 <= points <= 10**8"] = (200, 200),
    theta0: Tensor | None = None,
    steps: int = 4000,
    step: float = 0.1,
    seed: int = 0,
) -> LearningCoefficient:
    r"""The learning coefficient of a loss on a box at finite n, as WBIC estimates it.

    .. math:: \hat\lambda(n) = n\beta\,\bigl(E_\beta[L_n] - L_n(\theta_0)\bigr),
              \qquad \beta = 1/\log n

    At finite n this is **not** the asymptotic coefficient: with multiplicity m it lies
    below it by about (m - 1)/log n and more. So compare a sampler
    with the grid, not with a theorem.

    Args:
        loss: (b, P) -> (b,) mean loss over the n data.
        n: number of data.
        lower, upper: (P,) the box of the flat prior.
        base: loss at the truth (or at the minimum), :math:`L_n(\theta_0)`.
        sampler: "grid" (P <= 3, exact) or "mala".
        beta: inverse temperature.
        points: grid size along each coordinate; it must resolve the posterior's width.
        theta0: (chains, P) starts of the sampler.
        steps, step, seed: of the sampler.

    Raises:
        ValueError: the sampler is unknown or has no starts, the grid has more than
            three dimensions or is too coarse (a coarser one gives another value),
            n < 2, or the box is empty.

    Cost: the grid's nodes and half as many again, or steps x chains losses.
    Source: Watanabe 2013 (WBIC); :eq:`drv-stratifolds-wbic` (derivations).

    Examples:
        >>> square = lambda t: (t**2).sum(1)                 # K = t^2: 1/2
        >>> box = torch.ones(1, dtype=torch.float64)
        >>> out = learning_coefficient(square, 10**6, -box, box, base=0.0,
        ...                            points=[20001])
        >>> round(out.value, 3)
        0.5
    """
    posterior = TemperedPosterior(loss, n, lower, upper, beta)
    if sampler == "grid":
        # two thirds of the nodes, elsewhere: even where these are odd
        fewer = [max(1, k // 3 * 2 + (k + 1) % 2) for k in points]
        both = [grid_mean_loss(posterior, k) for k in (points, fewer)]
        (mean, jump), (rough, _) = both
        expect(not math.isnan(mean), "loss", "a number at each node", "NaN")
        value, change = (posterior.weight * (e - mean) for e in (base, rough))
        fine = jump <= APART and abs(change) <= 0.1 * max(1.0, abs(value))
        wanted = (
            "a grid that resolves the posterior (or lower nearer to upper, or mala)"
        )
        expect(fine, "points", wanted, f"{list(points)}, where fewer change the value")
        return LearningCoefficient(-value, 0.0, "grid", 1.0)
    if theta0 is None:
        raise ValueError("theta0: the sampler needs starts of shape (chains, P)")
    out = mala(posterior, theta0, steps=steps, step=step, seed=seed)
    scale = posterior.weight
    value, error = scale * (out.mean - base), scale * out.error
    return LearningCoefficient(value, error, "mala", out.acceptance, len(theta0))
