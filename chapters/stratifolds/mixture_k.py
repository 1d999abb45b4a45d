"""A mixture of K free Gaussians: its usual chart, and one with a pair in its moduli."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import Chart, Coordinates, check_theta, with_columns
from geolib.stratifolds.mixture_free import MixtureModuli, moduli_of
from geolib.stratifolds.mixture_kl import mixture_stratifold
from geolib.stratifolds.strata import Stratifold, Stratum


class SoftmaxMixture(Chart):
    r"""The usual chart of K components: softmax weights and free locations.

    .. math:: a_k = e^{\ell_k} / \bigl(1 + \textstyle\sum_{j>1} e^{\ell_j}\bigr),
              \qquad \ell_1 = 0

    Args:
        K: number of components.

    Source: :eq:`drv-stratifolds-softmax` (derivations).

    Examples:
        >>> SoftmaxMixture(2).embed(torch.zeros(1, 3))
        tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """

    def __init__(self, K: int) -> None:
        self.K = K
        names = [f"logit a{k}" for k in range(1, K)] + [f"mu{k}" for k in range(K)]
        self.names = tuple(names)

    def embed(self, eta: Coordinates) -> Tensor:
        return torch.cat(
            [grouped_softmax(eta[:, : self.K - 1]), eta[:, self.K - 1 :]], 1
        )

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2 * self.K - 1)
        return theta

    def coordinates(self, natural: Tensor) -> Tensor:
        """The inverse of `embed`: positive weights that sum to 1, and locations."""
        check_theta(natural, 2 * self.K)
        a = natural[:, : self.K]
        if bool((a <= 0).any()) or bool(((a.sum(1) - 1).abs() > 1e-6).any()):
            raise ValueError("theta: expected positive weights that sum to 1")
        return torch.cat([torch.log(a[:, 1:] / a[:, :1]), natural[:, self.K :]], 1)


class PairModuli(Chart):
    r"""The chart that puts one pair of K components in its moduli.

    .. math:: \eta = (\ell_3, \dots, \ell_K;\ b, v, s;\ \mu_3, \dots, \mu_K)

    The pair shares the group weight :math:`W = 1/(1 + \sum_k e^{\ell_k})` and splits it
    as in `MixtureModuli`. With ``v = s = 0`` the pair is one component.

    Args:
        K: number of components, at least 2.
        pair: the two components that may overlap.

    Raises:
        ValueError: K < 2, or `pair` does not name two different components.

    Cost: O(b K^2) for the Jacobian.
    Source: :eq:`drv-stratifolds-softmax` (derivations).
    """

    def __init__(self, K: int, pair: tuple[int, int] = (0, 1)) -> None:
        i, j = pair
        good = K >= 2 and i != j and 0 <= i < K and 0 <= j < K
        expect(good, "pair", f"two of {K} components", pair)
        self.K, self.pair = K, (i, j)
        self.rest = [k for k in range(K) if k not in pair]
        self.names = (
            *(f"logit a{k}" for k in self.rest),
            *("b", "v", "s"),
            *(f"mu{k}" for k in self.rest),
        )

    def embed(self, eta: Coordinates) -> Tensor:
        r = self.K - 2
        group = grouped_softmax(eta[:, :r])
        w, m1, m2 = MixtureModuli().from_chart(eta[:, r : r + 3]).unbind(1)
        W = group[:, 0]
        a = torch.cat([torch.stack([W * (1 - w), W * w], 1), group[:, 1:]], 1)
        c = torch.cat([torch.stack([m1, m2], 1), eta[:, r + 3 :]], 1)
        order = torch.tensor([*self.pair, *self.rest], device=eta.device)
        back = torch.argsort(order)
        return torch.cat([a[:, back], c[:, back]], 1)

    def project(self, eta: Coordinates) -> Tensor:
        v = self.K - 1
        return with_columns(eta, {v: eta[:, v].clamp_min(0)})

    def to_chart(self, theta: Tensor) -> Tensor:
        """Softmax coordinates (b, 2K-1) to those of this chart."""
        K, (i, j) = self.K, self.pair
        natural = SoftmaxMixture(K).embed(SoftmaxMixture(K).to_chart(theta))
        a, c = natural[:, :K], natural[:, K:]
        W = a[:, i] + a[:, j]
        raw = torch.stack([a[:, j] / W, c[:, i], c[:, j]], 1)
        logits = torch.log(a[:, self.rest] / W[:, None])
        return torch.cat([logits, moduli_of(raw), c[:, self.rest]], 1)

    def from_chart(self, eta: Coordinates) -> Tensor:
        return SoftmaxMixture(self.K).coordinates(self.embed(eta))


def grouped_softmax(logits: Tensor) -> Tensor:
    """Weights (b, m + 1) from m logits against a first one of zero."""
    zero = logits.new_zeros(len(logits), 1)
    return torch.softmax(torch.cat([zero, logits], 1), 1)


def mixture_k(
    K: Annotated[int, "2 <= K <= 1000"], pair: tuple[int, int] = (0, 1)
) -> Stratifold:
    r"""A mixture of K free unit Gaussians, with one pair singled out to be resolved.

    .. math:: p = \sum_k a_k\,N(c_k, 1), \qquad
              \Sigma_{ij} = \{c_i = c_j\}

    Coordinates are softmax weights and locations. The rank is 2K-3 on one overlap.

    Args:
        K: number of components.
        pair: whose overlap `resolve(..., kind="moduli")` removes.

    Raises:
        ValueError: `pair` does not name two different components.

    Source: :eq:`drv-stratifolds-softmax` (derivations).

    Examples:
        >>> mixture_k(3).dim
        5
    """
    moduli = PairModuli(K, pair)  # refuses a bad pair
    chart = SoftmaxMixture(K)
    i, j = (K - 1 + p for p in pair)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.concatenate(
            [rng.normal(size=(n, K - 1)), rng.uniform(-3, 3, (n, K))], 1
        )

    def shares(theta: Tensor) -> Tensor:
        """How the pair divides its weight, (b, 2)."""
        a = chart.embed(theta)[:, list(pair)]
        return a / a.sum(1, keepdim=True)

    def merge(theta: Tensor) -> Tensor:
        b = (shares(theta) * theta[:, [i, j]]).sum(1)
        return with_columns(theta, {i: b, j: b})

    def apart(theta: Tensor) -> Tensor:
        w = shares(theta)
        return with_columns(torch.zeros_like(theta), {i: -w[:, 1], j: w[:, 0]})[
            ..., None
        ]

    def overlapping(rng: np.random.Generator, n: int) -> np.ndarray:
        out = draw(rng, n)
        out[:, j] = out[:, i]
        return out

    def distance(theta: Tensor) -> Tensor:
        return (theta[:, i] - theta[:, j]).abs()

    name, rank = f"overlap of {pair}", 2 * K - 3
    overlap = Stratum(name, rank, rank + 1, distance, merge, apart, overlapping)
    charts = {"moduli": moduli}
    return mixture_stratifold(f"mixture of {K}", chart, (overlap,), draw, charts)
