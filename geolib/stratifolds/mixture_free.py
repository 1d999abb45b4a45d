"""Mixture B, two free Gaussians: its strata, its moduli, and what is built on them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from .charts import AffineChart, Chart, Coordinates, check_theta, smooth_step
from .mixture_kl import mixture_stratifold
from .strata import Charts, Stratifold, Stratum, coordinate_stratum

FLOOR = 1e-10  # added to D^2: the model at v + FLOOR/4, so that derivatives stay finite
ROWS = [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
RAW = AffineChart(("w", "mu1", "mu2"), ROWS, [1, 0, 0, 0], weight=0)


def moduli_of(theta: Annotated[Tensor, "n 3"]) -> Tensor:
    r"""The moduli of mixture B are what remains when the labels are forgotten.

    .. math:: b = (1-w)\mu_1 + w\mu_2,\quad v = w(1-w)d^2,\quad s = (1-2w)d,
              \quad d = \mu_2 - \mu_1

    Args:
        theta: (b, 3) rows :math:`(w, \mu_1, \mu_2)`.

    Returns:
        (b, 3) rows :math:`(b, v, s)`; the label swap leaves them fixed.

    Source: :eq:`drv-stratifolds-moduli` (derivations).

    Examples:
        >>> moduli_of(torch.tensor([[0.25, 0.0, 2.0], [0.75, 2.0, 0.0]]))
        tensor([[0.5000, 0.7500, 1.0000],
                [0.5000, 0.7500, 1.0000]])
    """
    w, m1, m2 = theta.unbind(1)
    d = m2 - m1
    return torch.stack([(1 - w) * m1 + w * m2, w * (1 - w) * d * d, (1 - 2 * w) * d], 1)


class MixtureModuli(Chart):
    r"""The moduli chart of mixture B turns the singular line into the wall v = 0.

    .. math:: D = \sqrt{s^2 + 4v},\quad w = \tfrac12(1 - s/D),\quad
              \mu_1 = b - wD,\quad \mu_2 = b + (1-w)D

    The density is analytic in (b, v, s), and its derivative in v does not vanish at
    v = 0: the escape from the overlap takes constant time instead of log(1/d).

    Source: :eq:`drv-stratifolds-moduli` (derivations), in the spirit of
    arXiv 2206.08598.

    Examples:
        >>> c = MixtureModuli()
        >>> c.from_chart(torch.tensor([[0.5, 0.75, 1.0]]))
        tensor([[0.2500, 0.0000, 2.0000]])
    """

    names = ("b", "v", "s")

    def from_chart(self, eta: Coordinates) -> Tensor:
        b, v, s = eta.unbind(1)
        D = torch.sqrt(s * s + 4 * v + FLOOR)
        return torch.stack([(1 - s / D) / 2, b - (D - s) / 2, b + (D + s) / 2], 1)

    def embed(self, eta: Coordinates) -> Tensor:
        return RAW.embed(self.from_chart(eta))

    def jacobian(self, eta: Coordinates) -> Tensor:
        _, v, s = eta.unbind(1)
        D = torch.sqrt(s * s + 4 * v + FLOOR)
        J = eta.new_zeros(len(eta), 4, 3)
        J[:, 1, 1] = s / D**3
        J[:, 1, 2] = (s * s - D * D) / (2 * D**3)
        J[:, 0] = -J[:, 1]
        J[:, 2, 0] = J[:, 3, 0] = 1
        J[:, 2, 1], J[:, 3, 1] = -1 / D, 1 / D
        J[:, 2, 2], J[:, 3, 2] = (1 - s / D) / 2, (1 + s / D) / 2
        return J

    def project(self, eta: Coordinates) -> Tensor:
        return torch.stack([eta[:, 0], eta[:, 1].clamp_min(0), eta[:, 2]], 1)

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        return self.project(moduli_of(theta))


class MixtureCap(Chart):
    r"""The cap over mixture B rounds the tip that its densities form at each N(b, 1).

    .. math:: \hat p = S\,p_{b,\,v,\,y/v} + (1 - S)\Bigl[\bigl(1 - \tfrac v4\bigr)
              \varphi_{b'} + \tfrac{2v + y}{16}\,\varphi_{b'+2}
              + \tfrac{2v - y}{16}\,\varphi_{b'-2}\Bigr], \quad
              b' = b - \tfrac y4,\ S = S\bigl(\tfrac{2v}\varepsilon - 1\bigr)

    Mean b, spread v and :math:`y = vs`, which is odd under reflection. For
    :math:`v \ge \varepsilon` this is mixture B; inside the collar, where
    :math:`|y| \le 2v`, it is a genuine density, whose Fisher matrix stays positive
    definite down to the tip :math:`v = y = 0`.

    Args:
        eps: width of the collar, in the spread v.

    Raises:
        ValueError: `eps` is not positive; on `to_chart`, weights outside [0, 1].

    Source: :eq:`drv-stratifolds-cap` (derivations), in the spirit of
    arXiv 2112.03734.

    Examples:
        >>> c = MixtureCap(0.1)
        >>> c.embed(torch.tensor([[0.0, 0.0, 0.0]]))[0, 2:5]    # N(0, 1), by one atom
        tensor([1., 0., 0.])
    """

    names = ("b", "v", "y")
    eps: float
    collar = 1

    def __init__(self, eps: Annotated[float, "0 < eps < inf"] = 0.1) -> None:
        self.eps = float(eps)

    def _pair(self, eta: Tensor) -> Tensor:
        """Moduli (b, v, s) of the two-component part; no 0/0 where it has no share."""
        b, v, y = eta.unbind(1)
        v = v.clamp_min(self.eps / 4)
        return torch.stack([b, v - FLOOR / 4, y / v], 1)  # D > 0 needs no floor here

    def embed(self, eta: Coordinates) -> Tensor:
        b, v, y = eta.unbind(1)
        share = smooth_step(2 * v / self.eps - 1)[:, None]
        pair = MixtureModuli().embed(self._pair(eta))
        cap = torch.stack([1 - v / 4, (2 * v + y) / 16, (2 * v - y) / 16], 1)
        mid = b - y / 4
        atoms = torch.stack([mid, mid + 2, mid - 2], 1)
        return torch.cat(
            [share * pair[:, :2], (1 - share) * cap, pair[:, 2:], atoms], 1
        )

    def project(self, eta: Coordinates) -> Tensor:
        b, v, y = eta.unbind(1)
        v = v.clamp_min(0)
        most = torch.where(v < self.eps, 2 * v, torch.inf)
        return torch.stack([b, v, torch.maximum(torch.minimum(y, most), -most)], 1)

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        b, v, s = moduli_of(theta).unbind(1)
        return self.project(torch.stack([b, v, v * s], 1))

    def from_chart(self, eta: Coordinates) -> Tensor:
        b, v, y = eta.unbind(1)
        s = torch.where(v > 0, y / v.clamp_min(1e-300), torch.zeros_like(v))
        return MixtureModuli().from_chart(torch.stack([b, v, s], 1))


def mixture_b() -> Stratifold:
    r"""Mixture B has two free Gaussians, singular on overlap and elimination.

    .. math:: p = (1-w)\,N(\mu_1,1) + w\,N(\mu_2,1), \qquad
              \Sigma = \{\mu_1 = \mu_2\} \cup \{w = 0\} \cup \{w = 1\}

    Ranks 1 (overlap), 2 (a missing component), 3. Resolutions: "moduli"
    (`MixtureModuli`), and "cap" (`MixtureCap`, the tip rounded).

    Source: :eq:`drv-stratifolds-moduli` (derivations).

    Examples:
        >>> S = mixture_b()
        >>> S.rank(torch.tensor([[0.5, -1.0, 1.0], [0.5, 1.0, 1.0], [0.0, -1.0, 1.0]],
        ...                     dtype=torch.float64)).tolist()
        [3, 1, 2]
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        w, m = rng.uniform(0.05, 0.95, (n, 1)), rng.uniform(-3, 3, (n, 2))
        return np.concatenate([w, m], 1)

    def merge(theta: Tensor) -> Tensor:
        b = moduli_of(theta)[:, 0]
        return torch.stack([theta[:, 0], b, b], 1)

    def apart(theta: Tensor) -> Tensor:
        w, zero = theta[:, 0], torch.zeros_like(theta[:, 0])
        return torch.stack([zero, -w, 1 - w], 1)[..., None]

    def distance(theta: Tensor) -> Tensor:
        return (theta[:, 2] - theta[:, 1]).abs()

    def together(rng: np.random.Generator, n: int) -> np.ndarray:
        return draw(rng, n)[:, [0, 1, 1]]

    overlap = Stratum("overlap mu1 = mu2", 1, 2, distance, merge, apart, together)
    eliminations = (
        coordinate_stratum(
            f"elimination w = {end:g}", 2, 3, {0: end}, draw, inward=1 - 2 * end
        )
        for end in (0.0, 1.0)
    )
    charts: Charts = {"moduli": MixtureModuli(), "cap": MixtureCap}
    strata = (overlap, *eliminations)
    return mixture_stratifold("mixture B", RAW, strata, draw, charts)
