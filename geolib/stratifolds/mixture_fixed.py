"""Mixture A, a fixed and a free Gaussian: its strata, and the tube that resolves it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from .charts import AffineChart, Chart, Coordinates, Raw, check_theta, smooth_modulus
from .mixture_kl import mixture_stratifold
from .strata import Charts, Stratifold, coordinate_stratum


class MixtureTube(Chart):
    r"""The tube over mixture A glues its two sheets, mu > 0 and mu < 0.

    .. math:: \hat p = (1-w)\,N(0,1) + w\,[\sigma N(\nu,1) + (1-\sigma) N(-\nu,1)],
              \quad w = \frac{|t|_\varepsilon}{\nu},\quad
              \sigma = \tfrac12\Bigl(1 + \frac{t}{|t|_\varepsilon}\Bigr)

    :math:`t` is the mean of :math:`\hat p`, exactly. For :math:`|t| \ge \varepsilon`
    this is mixture A with :math:`\mu = \mathrm{sign}(t)\,\nu`; inside the collar it is
    a genuine density with three components, so a run may change the sign of the mean
    without crossing the point where both sheets meet.

    Args:
        eps: width of the collar, in the mean t.

    Raises:
        ValueError: `eps` is not positive; on `to_chart`, weights outside [0, 1].

    Source: :eq:`drv-stratifolds-tube` (derivations), in the spirit of
    arXiv 2112.03734.

    Examples:
        >>> c = MixtureTube(0.1)
        >>> c.embed(c.to_chart(torch.tensor([[0.25, 2.0]])))
        tensor([[ 0.7500,  0.2500,  0.0000,  0.0000,  2.0000, -2.0000]])
    """

    names = ("t", "nu")
    eps: float
    collar = 0

    def __init__(self, eps: Annotated[float, "0 < eps < inf"] = 0.1) -> None:
        self.eps = float(eps)

    def embed(self, eta: Coordinates) -> Tensor:
        return self.linearize(eta)[0]

    def jacobian(self, eta: Coordinates) -> Tensor:
        return self.linearize(eta)[1]

    def linearize(self, eta: Coordinates) -> tuple[Tensor, Tensor]:
        t, nu = eta.unbind(1)
        m, dm = smooth_modulus(t, self.eps)
        zero, one, half = torch.zeros_like(nu), torch.ones_like(nu), 0.5 / nu
        w, up, down = m / nu, (m + t) * half, (m - t) * half
        natural = torch.stack([1 - w, up, down, zero, nu, -nu], 1)
        d_t = torch.stack([-dm / nu, (dm + 1) * half, (dm - 1) * half, *3 * [zero]], 1)
        d_nu = torch.stack([w / nu, -up / nu, -down / nu, zero, one, -one], 1)
        return natural, torch.stack([d_t, d_nu], 2)

    def project(self, eta: Coordinates) -> Tensor:
        t, nu = eta.unbind(1)
        return torch.stack([t, torch.maximum(nu, smooth_modulus(t, self.eps)[0])], 1)

    def to_chart(self, theta: Raw) -> Tensor:
        check_theta(theta, 2, weight=0)
        return self.project(torch.stack([theta.prod(1), theta[:, 1].abs()], 1))

    def from_chart(self, eta: Coordinates) -> Tensor:
        t, nu = eta.unbind(1)
        sign = torch.where(t < 0, -1.0, 1.0).to(t)
        return torch.stack([t.abs() / nu, sign * nu], 1)


def mixture_a() -> Stratifold:
    r"""Mixture A has a fixed and a free Gaussian and is singular where w mu = 0.

    .. math:: p = (1-w)\,N(0,1) + w\,N(\mu,1), \qquad
              \Sigma = \{w\mu = 0\}\ \text{(one density)}

    Ranks 0 (origin), 1 (the wall w = 0 and the line mu = 0), 2. Resolutions: "tube"
    (`MixtureTube`).

    Source: :eq:`drv-stratifolds-fisher-a` (derivations).

    Examples:
        >>> S = mixture_a()
        >>> S.rank(torch.tensor([[0.3, 2.0], [0.0, 2.0], [0.3, 0.0], [0.0, 0.0]],
        ...                     dtype=torch.float64)).tolist()
        [2, 1, 1, 0]
    """
    raw = AffineChart(
        ("w", "mu"), [[-1, 0], [1, 0], [0, 0], [0, 1]], [1, 0, 0, 0], weight=0
    )

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([rng.uniform(0.05, 0.95, n), rng.uniform(-3, 3, n)], 1)

    origin = coordinate_stratum("origin", 0, 2, {0: 0.0, 1: 0.0}, draw)
    wall = coordinate_stratum("wall w = 0", 1, 2, {0: 0.0}, draw)
    line = coordinate_stratum("line mu = 0", 1, 2, {1: 0.0}, draw)
    charts: Charts = {"tube": MixtureTube}
    return mixture_stratifold("mixture A", raw, (origin, wall, line), draw, charts)
