"""Resolving a stratifold: a smooth space mapped onto the singular one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from geolib.stratifolds.charts import Chart
from geolib.stratifolds.descent import Descent, descend, warn_if_collared
from geolib.stratifolds.strata import Stratifold


@dataclass(frozen=True)
class Resolution:
    r"""A resolution is a smooth space with a map onto the singular one.

    .. math:: \hat S \xrightarrow{\ \pi\ } S, \qquad
              \hat p_\varepsilon(\cdot\,; \eta) = p(\cdot\,; \pi(\eta))
              \ \text{ wherever } h(\pi(\eta)) \ge \varepsilon

    Attributes:
        stratifold: the singular space.
        chart: coordinates of the resolution, with their collar.
    """

    stratifold: Stratifold
    chart: Chart

    def to_chart(self, theta: Tensor) -> Tensor:
        """Raw parameters to coordinates."""
        return self.chart.to_chart(theta)

    def pi(self, eta: Tensor) -> Tensor:
        """Coordinates to raw parameters."""
        return self.chart.from_chart(eta)

    def metric(self, eta: Tensor) -> Tensor:
        """The metric of the resolution: the pulled-back Fisher matrix."""
        fisher = self.stratifold.information(self.chart.embed(eta))
        return self.chart.pull_back_metric(eta, fisher)

    def exact(self, eta: Tensor) -> Tensor:
        """Certificate: rows outside the collar, where the model is unchanged, (b,)."""
        return ~self.chart.inside_collar(eta)

    def descend(self, teacher: Tensor, theta0: Tensor, **settings: Any) -> Descent:
        """Fit a teacher from raw starts, in this resolution.

        Args:
            teacher: (P,) raw parameters of the truth.
            theta0: (b, P) raw starts.
            settings: see `descend`.

        Warns:
            CollarWarning: the teacher is nearer to the strata than `eps`.
        """
        objective = self.stratifold.objective(teacher)
        height = self.chart.collar_height(teacher[None])
        if height is not None and self.chart.eps is not None:
            warn_if_collared(float(height[0]), self.chart.eps)
        return descend(objective, self.chart, self.to_chart(theta0), **settings)


def resolve(
    S: Stratifold,
    eps: Annotated[float | None, "0 < eps < inf"] = None,
    kind: str = "tube",
) -> Resolution:
    r"""Resolve a stratifold by one of the constructions that it admits.

    ==========  =========================================  ===========================
    kind        construction                               what `eps` measures
    ==========  =========================================  ===========================
    tube        two sheets glued by a tube                 mean t (mixture A), height
                                                           xi (cone)
    cap         the tip over one sheet rounded             spread v (mixture B)
    moduli      coordinates that the labels' symmetry      no collar
                leaves fixed
    ==========  =========================================  ===========================

    A model may have further kinds, without a collar: `S.charts` lists all.

    Args:
        S: the singular space.
        eps: width of the collar in the units of the table; 0.1 if not given.
        kind: construction; `S.charts` lists those available.

    Raises:
        ValueError: `eps` is not positive, is given to a construction without a collar,
            or `kind` is not available for this model.

    Source: :eq:`drv-stratifolds-resolution` (derivations), in the spirit of
    arXiv 2112.03734 and 2206.08598.

    Examples:
        >>> import torch
        >>> from geolib.stratifolds import mixture_a
        >>> R = resolve(mixture_a(), eps=0.1)
        >>> R.exact(R.to_chart(torch.tensor([[0.3, 2.0], [0.01, 2.0]]))).tolist()
        [True, False]
    """
    if kind not in S.charts:
        raise ValueError(
            f"kind: {S.name} can be resolved by {sorted(S.charts)}, not {kind!r}"
        )
    construction = S.charts[kind]
    if not isinstance(construction, Chart):
        return Resolution(S, construction(0.1 if eps is None else eps))
    if eps is not None:
        raise ValueError(f"eps: {kind!r} has no collar; expected None, got {eps!r}")
    return Resolution(S, construction)
