"""Tempered posteriors: their mean loss by an exact grid and by Langevin sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TemperedPosterior:
    r"""A tempered posterior over a box, optionally tied to an anchor.

    .. math:: \pi(\theta) \propto \exp\bigl(-n\beta\,L(\theta)
              - \tfrac\gamma2|\theta - \theta_0|^2\bigr)\,[\,l \le \theta \le u\,]

    Args:
        loss: (b, P) -> (b,) mean loss over the data; it may offer
            `with_gradient(theta) -> (loss, gradient)`, else autograd is used.
        n: number of data.
        lower, upper: (P,) the box.
        beta: inverse temperature; default 1/log n (Watanabe's WBIC).
        anchor, gamma: centre and strength of the tie.

    Raises:
        ValueError: n < 2, an empty box, or gamma without an anchor.

    Source: Watanabe 2013; the tie from Lau et al. 2023. Cost: none.
    """

    loss: Callable[[Tensor], Tensor]
    n: int
    lower: Tensor
    upper: Tensor
    beta: float | None = None
    anchor: Tensor | None = None
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"n: expected at least 2 observations, got {self.n}")
        if self.lower.shape != self.upper.shape or not bool(
            (self.lower < self.upper).all()
        ):
            raise ValueError("lower, upper: expected lower < upper in each coordinate")
        if self.gamma and self.anchor is None:
            raise ValueError("anchor: gamma > 0 needs a point to be tied to")
        if self.beta is None:
            object.__setattr__(self, "beta", 1 / math.log(self.n))

    @property
    def weight(self) -> float:
        """n beta."""
        assert self.beta is not None
        return self.n * self.beta

    def energy(self, theta: Tensor, loss: Tensor) -> Tensor:
        """Minus the log density, infinite outside the box."""
        inside = ((theta >= self.lower) & (theta <= self.upper)).all(1)
        energy = self.weight * loss
        if self.anchor is not None:
            energy = energy + self.gamma / 2 * ((theta - self.anchor) ** 2).sum(1)
        return torch.where(inside, energy, torch.inf)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, energy and the energy's gradient."""
        if hasattr(self.loss, "with_gradient"):
            loss, g = self.loss.with_gradient(theta)
        else:
            with torch.enable_grad():
                leaf = theta.detach().requires_grad_(True)
                loss = self.loss(leaf)
                (g,) = torch.autograd.grad(loss.sum(), leaf)
            loss = loss.detach()
        g = self.weight * g
        if self.anchor is not None:
            g = g + self.gamma * (theta - self.anchor)
        return loss, self.energy(theta, loss), g


def grid_mean_loss(posterior: TemperedPosterior, points: Sequence[int]) -> float:
    r"""The exact mean loss under a tempered posterior, by the midpoint rule.

    .. math:: E_\beta[L] = \frac{\sum_g L_g e^{-U_g}}{\sum_g e^{-U_g}}

    Args:
        posterior: in at most 3 dimensions.
        points: number of midpoints along each coordinate.

    Raises:
        ValueError: a wrong number of axes, or more than three.

    Source: definition. Cost: the product of `points` losses.
    """
    P = len(posterior.lower)
    if len(points) != P or P > 3:
        raise ValueError(
            f"points: expected one number for each of {P} <= 3 coordinates, got "
            f"{list(points)}; use the sampler in higher dimension"
        )
    axes = [
        lo + (hi - lo) * (torch.arange(k, dtype=lo.dtype, device=lo.device) + 0.5) / k
        for lo, hi, k in zip(posterior.lower, posterior.upper, points, strict=True)
    ]
    nodes = torch.cartesian_prod(*axes).reshape(-1, P)
    loss = torch.cat([posterior.loss(part) for part in nodes.split(4096)])
    weight = torch.softmax(-posterior.energy(nodes, loss), 0)
    return float((weight * loss).sum())


@dataclass(frozen=True)
class Sampled:
    """Samples of the loss under a tempered posterior.

    Attributes:
        mean: mean loss over chains and steps.
        error: standard error from the spread of the chains' means.
        acceptance: fraction of accepted proposals.
        theta: (chains, P) last states.
    """

    mean: float
    error: float
    acceptance: float
    theta: Tensor


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

    h is drawn anew at each step, log-uniform in ``[step/30, step]`` and independent
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
        ValueError: a start outside the box or not finite, or bad settings.

    Source: Roberts, Tweedie 1996. Cost: steps evaluations of all chains.
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
        h = step * 30 ** -torch.as_tensor(rng.random((b, 1))).to(theta)
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
    return Sampled(float(means.mean()), error, accepted / steps, theta)
