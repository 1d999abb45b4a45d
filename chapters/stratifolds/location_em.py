"""Expectation-maximization for unit-variance location mixtures, batched over starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import with_columns
from geolib.stratifolds.descent import Descent, RunLog
from geolib.stratifolds.mixture_kl import MixtureKL, check_mixture


def em_step(
    objective: MixtureKL, natural: Tensor, fixed: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    r"""One exact EM step towards the teacher or data of `objective`, and the loss.

    .. math:: r_k(x) = \frac{a_k\varphi(x - c_k)}{p(x)}, \quad
              a_k' = E_q[r_k], \quad c_k' = \frac{E_q[x\,r_k]}{E_q[r_k]}

    Args:
        objective: its law q supplies the expectations.
        natural: (b, 2K) weights and locations.
        fixed: components whose location does not move (mixture A's first).

    Returns:
        The loss (b,) before the step, and (b, 2K) new weights and locations; the
        likelihood never decreases.

    Cost: one `evaluate`.
    Source: Dempster, Laird, Rubin 1977; :eq:`drv-stratifolds-em` (derivations).

    Examples:
        >>> kl = MixtureKL(torch.tensor([1.0, 0.5], dtype=torch.float64))
        >>> one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> [round(float(a), 6) for a in em_step(kl, one)[1][0]]
        [1.0, 0.5]
    """
    a, c = natural.chunk(2, 1)
    loss, g, _ = objective.evaluate(natural)
    d_a, d_c = g.chunk(2, 1)
    mass = -a * d_a  # a_k E_q[f_k/p]
    # E_q[r_k (x - c_k)] = -dL/dc_k
    shift = -d_c / mass.clamp_min(1e-300)
    new_c = c + torch.where(mass > 1e-300, shift, torch.zeros_like(shift))
    new_c = with_columns(new_c, {k: c[:, k] for k in fixed})
    return loss, torch.cat([mass, new_c], 1)


def em(
    objective: MixtureKL,
    natural0: Annotated[Tensor, "real batch A"],
    *,
    fixed: Annotated[Sequence[int], "fixed >= 0"] = (),
    steps: int = 5000,
    tol: float = 1e-6,
    plateau: float | None = None,
) -> Descent:
    r"""EM (expectation-maximization) from a batch of starts, recorded like a descent.

    .. math:: \alpha \leftarrow \mathrm{EM}(\alpha) \quad\text{until}\quad L < \tau

    Args:
        objective: KL to a teacher, or the likelihood of data.
        natural0: (b, 2K) starts, weights and locations.
        fixed: components whose location does not move.
        steps: budget.
        tol: a run hits when its loss falls below this :math:`\tau`.
        plateau: level whose first crossing is reported in `escaped_at`.

    Returns:
        A `Descent` with `eta` holding weights and locations.

    Raises:
        ValueError: the starts are malformed.

    Cost: one `evaluate` a step.
    Source: Dempster, Laird, Rubin 1977; :eq:`drv-stratifolds-em-wall` (derivations)
    for its rate at the wall.

    Examples:
        >>> kl = MixtureKL(torch.tensor([0.7, 0.3, 0.0, 2.0], dtype=torch.float64))
        >>> start = torch.tensor([[0.5, 0.5, 0.0, -1.0]], dtype=torch.float64)
        >>> bool(em(kl, start, fixed=[0]).success)
        True
    """
    check_mixture(natural0, "natural0")
    natural = natural0.detach()
    weights = natural[:, : natural.shape[1] // 2]
    expect(bool((weights >= 0).all()), "natural0", "weights >= 0", weights.tolist())
    log = RunLog(natural, steps, tol, plateau)
    for it in range(steps + 1):
        loss, new = em_step(objective, natural, fixed)
        done = log.note(it, loss, natural)
        if it == steps:
            break
        natural = new[~done] if log.drop(done) else new
        if not len(natural):
            break
    return log.runs()
