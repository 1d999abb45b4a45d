"""The cone: a regular statistical model bent until two sheets meet in a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps, smooth_modulus
from geolib.stratifolds.charts import Chart, check_theta


class Cone(Chart):
    r"""The mean of :math:`N(m(\xi, \omega), I_3)`, on a cone or on its resolution.

    .. math:: m = \frac{(\xi,\ c\,r\cos\omega,\ c\,r\sin\omega)}{\sqrt{1 + c^2}},
              \qquad r = \xi \ \text{(cone)} \quad\text{or}\quad r = |\xi|_\varepsilon

    Args:
        c: slope; both sheets are steep for c > 1.
        eps: None for the cone itself, or the width of the waist.

    Raises:
        ValueError: a slope or a width that is not positive.

    Source: Amari, Park, Ozeki 2006 (cone); resolution ours, spec 1.6. Cost: O(b).

    Examples:
        >>> Cone(c=1.0).atoms(torch.tensor([[2.0, 0.0]]))
        tensor([[1.4142, 1.4142, 0.0000]])
    """

    names = ("xi", "omega")

    def __init__(self, c: float = 2.0, eps: float | None = None) -> None:
        if not c > 0:
            raise ValueError(f"c: expected a positive slope, got {c!r}")
        if eps is not None:
            check_eps(eps)
        self.c, self.eps = float(c), eps

    def _radius(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        if self.eps is None:
            return xi, torch.ones_like(xi)
        return smooth_modulus(xi, self.eps)

    def atoms(self, eta: Tensor) -> Tensor:
        xi, om = eta.unbind(1)
        r, _ = self._radius(xi)
        mean = torch.stack([xi, self.c * r * om.cos(), self.c * r * om.sin()], 1)
        return mean / (1 + self.c**2) ** 0.5

    def jacobian(self, eta: Tensor) -> Tensor:
        xi, om = eta.unbind(1)
        r, dr = self._radius(xi)
        c, zero = self.c, torch.zeros_like(xi)
        d_xi = torch.stack([zero + 1, c * dr * om.cos(), c * dr * om.sin()], 1)
        d_om = torch.stack([zero, -c * r * om.sin(), c * r * om.cos()], 1)
        return torch.stack([d_xi, d_om], 2) / (1 + c * c) ** 0.5

    def lift(self, theta: Tensor) -> Tensor:
        r"""On the resolution a point of the lower sheet is reached half a turn away.

        On the cone :math:`(\xi, \omega)` with :math:`\xi < 0` is the direction
        :math:`\omega + \pi` at distance :math:`|\xi|`.
        """
        check_theta(theta, 2)
        if self.eps is None:
            return theta
        xi, om = theta.unbind(1)
        return torch.stack([xi, torch.where(xi < 0, om + torch.pi, om)], 1)

    def push(self, eta: Tensor) -> Tensor:
        if self.eps is None:
            return eta
        xi, om = eta.unbind(1)
        return torch.stack([xi, torch.where(xi < 0, om - torch.pi, om)], 1)

    def inside_collar(self, eta: Tensor) -> Tensor:
        if self.eps is None:
            return super().inside_collar(eta)
        return eta[:, 0].abs() < self.eps


@dataclass
class MeanLoss:
    r"""The KL divergence between unit Gaussians in space, a least-squares loss.

    .. math:: L(m) = \tfrac12 |m - m^*|^2, \qquad F = I

    Args:
        teacher: (k,) the true mean.

    Source: definition. Cost: O(b k).

    Examples:
        >>> MeanLoss(torch.zeros(3)).evaluate(torch.ones(1, 3))[0]
        tensor([1.5000])
    """

    teacher: Tensor

    def value(self, atoms: Tensor) -> Tensor:
        """The loss only, (b,)."""
        return 0.5 * ((atoms - self.teacher) ** 2).sum(1)

    def fisher(self, atoms: Tensor) -> Tensor:
        """The identity, (b, k, k)."""
        eye = torch.eye(atoms.shape[1], dtype=atoms.dtype, device=atoms.device)
        return eye.expand(len(atoms), -1, -1)

    def evaluate(
        self, atoms: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, k), identity (b, k, k) if asked for."""
        F = self.fisher(atoms) if fisher else None
        return self.value(atoms), atoms - self.teacher, F
