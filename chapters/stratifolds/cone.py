"""The cone: a regular statistical model bent until two sheets meet in a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import Chart, Coordinates, check_theta, smooth_modulus
from geolib.stratifolds.strata import Stratifold, coordinate_stratum


class Cone(Chart):
    r"""The mean of :math:`N(m(\xi, \omega), I_3)` runs over a cone with slope c.

    .. math:: m = \frac{(\xi,\ c\,r\cos\omega,\ c\,r\sin\omega)}{\sqrt{1 + c^2}},
              \qquad r = \xi

    Args:
        c: slope; both sheets are steep for c > 1.

    Raises:
        ValueError: `c` is not positive.

    Source: Amari, Park, Ozeki 2006; :eq:`eq-stratifolds-cone`.

    Examples:
        >>> Cone(c=1.0).embed(torch.tensor([[2.0, 0.0]]))
        tensor([[1.4142, 1.4142, 0.0000]])
    """

    names = ("xi", "omega")

    def __init__(self, c: float = 2.0) -> None:
        expect(0 < c < float("inf"), "c", "a finite number above zero", c)
        self.c = float(c)

    def radius(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """The radius r over c, and its derivative in xi."""
        return xi, torch.ones_like(xi)

    def embed(self, eta: Coordinates) -> Tensor:
        xi, om = eta.unbind(1)
        r, _ = self.radius(xi)
        mean = torch.stack([xi, self.c * r * om.cos(), self.c * r * om.sin()], 1)
        return mean / (1 + self.c**2) ** 0.5

    def jacobian(self, eta: Coordinates) -> Tensor:
        xi, om = eta.unbind(1)
        r, dr = self.radius(xi)
        c, zero = self.c, torch.zeros_like(xi)
        d_xi = torch.stack([zero + 1, c * dr * om.cos(), c * dr * om.sin()], 1)
        d_om = torch.stack([zero, -c * r * om.sin(), c * r * om.cos()], 1)
        return torch.stack([d_xi, d_om], 2) / (1 + c * c) ** 0.5

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2)
        return theta


class ConeWaist(Cone):
    r"""The resolved cone opens the apex to a waist: :math:`r = |\xi|_\varepsilon`.

    Args:
        c: slope.
        eps: width of the collar, in the height xi.

    Raises:
        ValueError: `c` or `eps` is not positive.

    Source: :eq:`eq-stratifolds-waist`; :eq:`drv-stratifolds-waist` (derivations).
    """

    eps: float
    collar = 0

    def __init__(
        self, c: float = 2.0, eps: Annotated[float, "0 < eps < inf"] = 0.1
    ) -> None:
        super().__init__(c)
        self.eps = float(eps)

    def radius(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        return smooth_modulus(xi, self.eps)

    def to_chart(self, theta: Tensor) -> Tensor:
        r"""A point of the lower sheet is reached half a turn away.

        On the cone :math:`(\xi, \omega)` with :math:`\xi < 0` is the direction
        :math:`\omega + \pi` at distance :math:`|\xi|`.
        """
        xi, om = super().to_chart(theta).unbind(1)
        return torch.stack([xi, torch.where(xi < 0, om + torch.pi, om)], 1)

    def from_chart(self, eta: Coordinates) -> Tensor:
        xi, om = eta.unbind(1)
        return torch.stack([xi, torch.where(xi < 0, om - torch.pi, om)], 1)


@dataclass
class MeanLoss:
    r"""The KL divergence between unit Gaussians in space is a least-squares loss.

    .. math:: L(m) = \tfrac12 |m - m^*|^2, \qquad F = I

    Args:
        teacher: (k,) the true mean.

    Examples:
        >>> MeanLoss(torch.zeros(3)).evaluate(torch.ones(1, 3))[0]
        tensor([1.5000])
    """

    teacher: Tensor

    def value(self, natural: Tensor) -> Tensor:
        """The loss only, (b,)."""
        return 0.5 * ((natural - self.teacher) ** 2).sum(1)

    def evaluate(
        self, natural: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, k), identity (b, k, k) if asked for."""
        F = identity_fisher(natural) if fisher else None
        return self.value(natural), natural - self.teacher, F


def identity_fisher(natural: Tensor) -> Tensor:
    """The Fisher matrix of a mean: the identity, (b, k, k)."""
    eye = torch.eye(natural.shape[1], dtype=natural.dtype, device=natural.device)
    return eye.expand(len(natural), -1, -1)


def cone(c: float = 2.0) -> Stratifold:
    r"""The cone is a Gaussian model with a mean on a cone, singular at its apex.

    .. math:: m(\xi, \omega) = \xi\,(1, c\cos\omega, c\sin\omega)/\sqrt{1+c^2},
              \qquad \Sigma = \{\xi = 0\}

    Resolution: "tube", the apex opened to a waist.

    Args:
        c: slope.

    Source: :eq:`drv-stratifolds-waist` (derivations); Amari, Park, Ozeki 2006.

    Examples:
        >>> cone().rank(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [2, 1]
    """
    chart = Cone(c)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([rng.uniform(0.1, 2, n), rng.uniform(-np.pi, np.pi, n)], 1)

    def objective(theta: Tensor) -> MeanLoss:
        return MeanLoss(chart.embed(theta[None])[0])

    apex = (coordinate_stratum("apex xi = 0", 1, 2, {0: 0.0}, draw),)
    charts = {"tube": lambda eps: ConeWaist(c, eps)}
    name = f"cone c = {c:g}"
    return Stratifold(name, chart, apex, objective, identity_fisher, draw, charts)
