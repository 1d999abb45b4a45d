"""A rival chart of mixture B: means in order, and a gap between them that is kept open."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import AffineChart, check_theta


class RelativeMixture(AffineChart):
    r"""The relative chart writes mixture B by one mean and a gap that is kept open.

    .. math:: (\mu_1, \Delta, w), \qquad \mu_2 = \mu_1 + \Delta,\quad
              \Delta \ge \mathrm{gap} \ge 0

    Args:
        gap: smallest separation; 0 keeps the order but not the distance.

    Raises:
        ValueError: `gap` is negative.

    Source: named in arXiv 2206.08598; its form is our reading of that name.

    Examples:
        >>> RelativeMixture(0.05).project(torch.tensor([[0.0, -1.0, 0.5]]))
        tensor([[0.0000, 0.0500, 0.5000]])
    """

    def __init__(self, gap: float = 0.05) -> None:
        expect(gap >= 0, "gap", "a number >= 0", gap)
        rows = [[0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 1, 0]]
        super().__init__(("mu1", "delta", "w"), rows, [1, 0, 0, 0], weight=2)
        self.gap = float(gap)

    def project(self, eta: Tensor) -> Tensor:
        m1, gap, w = eta.unbind(1)
        return torch.stack([m1, gap.clamp_min(self.gap), w.clamp(0, 1)], 1)

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 3, weight=0)
        w, m1, m2 = theta.unbind(1)
        swap = m2 < m1  # the same density with its labels exchanged
        low, high = torch.minimum(m1, m2), torch.maximum(m1, m2)
        w = torch.where(swap, 1 - w, w)
        return self.project(torch.stack([low, high - low, w], 1))

    def from_chart(self, eta: Tensor) -> Tensor:
        m1, gap, w = eta.unbind(1)
        return torch.stack([w, m1, m1 + gap], 1)
