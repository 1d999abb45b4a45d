"""Descent through ever thinner tubes, for a truth that lies near a stratum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds import Stratifold, descend, resolve


@dataclass(frozen=True)
class Annealed:
    """An annealed fit has one row a stage, and the certificate of the last.

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
        eps: first width; each of the `stages` has half that of the last.
        stages: number of widths.
        steps: gradient steps a stage, of size `lr` and length at most `clip`.
        lr, clip: see `descend`.

    Raises:
        ValueError: the model has no tube.

    Cost: stages x steps evaluations.
    Source: :eq:`drv-stratifolds-floor` (derivations).

    Examples:
        >>> from cone import cone
        >>> apex = torch.tensor([0.0, 0.0], dtype=torch.float64)
        >>> start = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        >>> fit = anneal(cone(), apex, start, stages=8, steps=50)
        >>> bool(fit.loss[-1] < 1e-4 * fit.loss[0]), fit.exact.tolist()
        (True, [False])
    """
    objective = S.objective(teacher)
    widths = tuple(eps * 0.5**k for k in range(stages))
    chart = resolve(S, widths[0], "tube").chart
    eta, losses = chart.to_chart(theta0), []
    for width in widths:
        chart = resolve(S, width, "tube").chart
        eta = chart.project(eta)
        run = descend(
            objective, chart, eta, lr=lr, clip=clip, steps=steps, tol=0.0, stall=0.0
        )
        eta = run.eta
        losses.append(run.loss)
    return Annealed(widths, torch.stack(losses), eta, ~chart.inside_collar(eta))
