"""The logit chart, the usual practice and the honest rival of a resolution."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import Chart, Coordinates, with_columns


class Logit(Chart):
    r"""The logit chart puts one weight of another chart on the logit scale.

    .. math:: w = 1/(1 + e^{-\ell})

    There is no wall left, but the way to w = 0 is infinitely long: the usual practice,
    and the honest rival of a resolution.

    Args:
        chart: the chart whose weight is meant.
        column: where that weight is.

    Source: :eq:`drv-stratifolds-logit` (derivations).

    Examples:
        >>> from geolib.stratifolds import mixture_a
        >>> Logit(mixture_a().chart).embed(torch.tensor([[0.0, 2.0]]))
        tensor([[0.5000, 0.5000, 0.0000, 2.0000]])
    """

    def __init__(self, chart: Chart, column: int = 0) -> None:
        self.chart, self.column = chart, column
        expect(0 <= column < chart.width, "column", "one of the chart's", column)
        names = list(chart.names)
        names[column] = f"logit {names[column]}"
        self.names = tuple(names)

    def _inner(self, eta: Tensor) -> Tensor:
        return with_columns(eta, {self.column: torch.sigmoid(eta[:, self.column])})

    def embed(self, eta: Coordinates) -> Tensor:
        return self.chart.embed(self._inner(eta))

    def jacobian(self, eta: Coordinates) -> Tensor:
        return self.linearize(eta)[1]

    def linearize(self, eta: Coordinates) -> tuple[Tensor, Tensor]:
        inner = self._inner(eta)
        natural, J = self.chart.linearize(inner)
        slope = torch.ones_like(inner)
        w = inner[:, self.column]
        slope[:, self.column] = w * (1 - w)
        return natural, J * slope[:, None]

    def to_chart(self, theta: Tensor) -> Tensor:
        inner = self.chart.to_chart(theta)
        logit = torch.logit(inner[:, self.column], eps=1e-12)
        return with_columns(inner, {self.column: logit})

    def from_chart(self, eta: Coordinates) -> Tensor:
        return self.chart.from_chart(self._inner(eta))
