"""Resolving a stratifold: a smooth space mapped onto the singular one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_eps
from geolib.stratifolds.charts import Chart
from geolib.stratifolds.descent import Descent, descend, warn_if_collared
from geolib.stratifolds.pair_surgery import PairSurgery
from geolib.stratifolds.strata import Stratifold


@dataclass
class Resolved:
    r"""A smooth space with a map onto the singular one.

    .. math:: \hat S \xrightarrow{\ \pi\ } S, \qquad
              \hat p_\varepsilon(\cdot\,; \eta) = p(\cdot\,; \pi(\eta))
              \ \text{ wherever } h(\pi(\eta)) \ge \varepsilon

    Attributes:
        stratifold: the singular space.
        chart: coordinates of the resolution (None of it is hidden: see `Chart`).
        eps: width of the collar.
        kind: which construction.
    """

    stratifold: Stratifold
    chart: Chart
    eps: float
    kind: str

    def lift(self, theta: Tensor) -> Tensor:
        """Raw parameters to coordinates."""
        return self.chart.lift(theta)

    def pi(self, eta: Tensor) -> Tensor:
        """Coordinates to raw parameters."""
        return self.chart.push(eta)

    def project(self, eta: Tensor) -> Tensor:
        """The nearest admissible coordinates."""
        return self.chart.project(eta)

    def metric(self, eta: Tensor) -> Tensor:
        """The metric of the resolution: pulled-back Fisher matrix plus any ridge."""
        J = self.chart.jacobian(eta)
        objective = self.stratifold.objective(
            self.stratifold.sample_stratum(self.stratifold.dim, 1, dtype=eta.dtype)[0]
        )
        F = torch.einsum(
            "bap,bac,bcq->bpq", J, objective.fisher(self.chart.atoms(eta)), J
        )
        return self.chart.metric(eta, F.real if F.is_complex() else F)

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
        if self.kind == "tube":
            distance = float(self.stratifold.distance(teacher[None])[0])
            warn_if_collared(distance, self.eps)
        if self.kind == "surgery":
            settings.setdefault("surgery", PairSurgery(objective, self.eps))
        return descend(objective, self.chart, self.lift(theta0), **settings)


def resolve(S: Stratifold, eps: float = 0.1, kind: str = "tube") -> Resolved:
    r"""Resolve a stratifold by one of the constructions it admits.

    ==========  ==================================================================
    kind        construction
    ==========  ==================================================================
    tube        glue two sheets by a tube of width eps
    moduli      coordinates that the labels' symmetry leaves fixed
    metric      moduli, plus a ridge where the metric degenerates
    surgery     raw coordinates, with re-entry from the collar (networks)
    ==========  ==================================================================

    Further kinds are rivals kept for comparison: "logit", "central", "prony".

    Args:
        S: the singular space.
        eps: width of the collar, in the units of ``S.distance``.
        kind: construction; `S.charts` lists those available.

    Raises:
        ValueError: `eps` not positive, or `kind` not available for this model.

    Source: our constructions in the spirit of arXiv 2112.03734 and 2206.08598, whose
    bodies were not at hand. Cost: none.

    Examples:
        >>> from geolib.stratifolds import mixture_a
        >>> R = resolve(mixture_a(), eps=0.1)
        >>> R.exact(R.lift(torch.tensor([[0.3, 2.0], [0.01, 2.0]]))).tolist()
        [True, False]
    """
    check_eps(eps)
    if kind not in S.charts:
        raise ValueError(
            f"kind: {S.name} can be resolved by {sorted(S.charts)}, not {kind!r}"
        )
    return Resolved(S, S.charts[kind](eps), float(eps), kind)


@dataclass(frozen=True)
class Annealed:
    """An annealed fit: one row a stage, and the certificate of the last.

    Attributes:
        eps: collar widths, (stages,).
        loss: losses at the end of each stage, (stages, b).
        eta: last coordinates, (b, P).
        exact: rows outside the last collar, where the resolved model is the model.
    """

    eps: tuple[float, ...]
    loss: Tensor
    eta: Tensor
    exact: Tensor


def anneal(
    S: Stratifold,
    teacher: Tensor,
    theta0: Tensor,
    *,
    eps: float = 0.4,
    stages: int = 10,
    steps: int = 400,
    lr: float = 1.0,
    clip: float = 1.0,
) -> Annealed:
    r"""Descend through ever thinner tubes, for a truth that lies near a stratum.

    .. math:: \varepsilon_k = 2^{-k}\varepsilon_0, \qquad
              \eta_0^{(k+1)} = \Pi_{\varepsilon_{k+1}}(\eta^{(k)})

    A fixed collar leaves a floor of order :math:`\varepsilon^4` when the truth is on
    the stratum; halving the width removes it.

    Args:
        S: a stratifold with a "tube".
        teacher: (P,) raw parameters of the truth.
        theta0: (b, P) raw starts.
        eps: first width; `stages` of them, each half the last.
        steps: gradient steps a stage, of size `lr` and length at most `clip`.

    Raises:
        ValueError: no stage, or the model has no tube.

    Source: spec pitfall 7. Cost: stages x steps evaluations.
    """
    if stages < 1:
        raise ValueError(f"stages: expected at least 1, got {stages}")
    objective = S.objective(teacher)
    eta, losses, widths = None, [], []
    for k in range(stages):
        chart = resolve(S, eps * 0.5**k, "tube").chart
        eta = chart.lift(theta0) if eta is None else chart.project(eta)
        run = descend(
            objective, chart, eta, lr=lr, clip=clip, steps=steps, tol=0.0, stall=0.0
        )
        eta = run.eta
        losses.append(run.loss)
        widths.append(eps * 0.5**k)
    assert eta is not None
    exact = ~chart.inside_collar(eta)
    return Annealed(tuple(widths), torch.stack(losses), eta, exact)
