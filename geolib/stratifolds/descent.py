"""One descent for every chart: batched, recording hits, plateaus and stuck runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart


class Objective(Protocol):
    """A loss on atoms: value, gradient and Fisher (or Gauss-Newton) matrix."""

    def evaluate(
        self, atoms: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, A), matrix (b, A, A) or None."""
        ...


class SingularMetricError(ValueError):
    """A natural gradient met a singular metric and was given no damping."""


class CollarWarning(UserWarning):
    """The truth lies inside the collar, where the resolved model differs from it."""


@dataclass
class Descent:
    """What a batch of runs did; every field has one entry a start.

    Attributes:
        hits: first iteration with loss < tol, -1 if never.
        left: first iteration with loss < plateau, -1 if never (or not asked).
        entered: the run was inside the collar at some iteration.
        stuck: the run stopped moving before it hit.
        loss: last loss.
        eta: last coordinates, (b, P).
        clipped: steps shortened by the clip.
        surgeries: how often a surgery changed the run.
        path: (b, records, P) coordinates, if `record` was asked for.
        iterations: budget T.
    """

    hits: Tensor
    left: Tensor
    entered: Tensor
    stuck: Tensor
    loss: Tensor
    eta: Tensor
    clipped: Tensor
    surgeries: Tensor
    path: Tensor | None
    iterations: int

    @property
    def success(self) -> Tensor:
        """Which runs hit the tolerance."""
        return self.hits >= 0

    def rate(self, mask: Tensor | None = None) -> float:
        """The fraction of (masked) runs that hit."""
        chosen = self.success if mask is None else self.success[mask]
        return float(chosen.double().mean())

    def median(self, mask: Tensor | None = None) -> float:
        """Median hitting time; runs that missed count as the whole budget."""
        hits = torch.where(self.success, self.hits, self.iterations).double()
        chosen = hits if mask is None else hits[mask]
        return float(torch.quantile(chosen, 0.5))


def natural_step(G: Tensor, g: Tensor, damping: float) -> Tensor:
    r"""The natural-gradient direction for a batch of small metrics.

    .. math:: (G + \lambda I)\,\delta = g

    Args:
        G: (b, P, P) metrics.
        g: (b, P) gradients.
        damping: :math:`\lambda \ge 0`.

    Raises:
        SingularMetricError: a metric that is singular to working precision and no
            damping.

    Source: Amari's natural gradient. Cost: O(b P^3).

    Examples:
        >>> natural_step(2 * torch.eye(2)[None], torch.ones(1, 2), 0.0)
        tensor([[0.5000, 0.5000]])
    """
    if not damping >= 0:
        raise ValueError(f"damping: expected a number >= 0, got {damping!r}")
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    factor, info = torch.linalg.cholesky_ex(G + damping * eye)
    pivots = factor.diagonal(dim1=-2, dim2=-1).abs()
    tiny = pivots.amin(-1) ** 2 <= 4 * torch.finfo(G.dtype).eps * pivots.amax(-1) ** 2
    bad = (info > 0) | tiny | ~torch.isfinite(pivots).all(-1)
    if bool(bad.any()):
        if damping == 0:
            row = int(bad.nonzero()[0])
            raise SingularMetricError(
                f"damping: the metric of row {row} is singular to working precision; "
                "give damping > 0, a ridge metric or a resolved chart"
            )
        # indefinite by rounding only: the symmetric solve does not need a root
        lam, U = torch.linalg.eigh(G[bad])
        inv = 1 / (lam.clamp_min(0) + damping)
        out = torch.cholesky_solve(g[..., None], factor)[..., 0]
        turned = torch.einsum("bji,bj->bi", U, g[bad])
        out[bad] = torch.einsum("bij,bj->bi", U, inv * turned)
        return out
    return torch.cholesky_solve(g[..., None], factor)[..., 0]


def pull_back(
    objective: Objective, chart: Chart, eta: Tensor, natural: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Loss, gradient and metric in a chart's coordinates.

    .. math:: \nabla_\eta L = \mathrm{Re}\,J^\top \nabla_\alpha L, \qquad
              F_\eta = \mathrm{Re}\,J^\top F_\alpha J

    Source: chain rule. Cost: one `evaluate` and one Jacobian.
    """
    J = chart.jacobian(eta)
    loss, grad, fisher = objective.evaluate(chart.atoms(eta), natural)
    g = torch.einsum("bap,ba->bp", J, grad)
    if fisher is None:
        return _real(loss), _real(g), None
    F = _real(torch.einsum("bap,bac,bcq->bpq", J, fisher, J))
    return _real(loss), _real(g), chart.metric(eta, (F + F.transpose(1, 2)) / 2)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


class _Log:
    """The records of a batch, addressed by the rows still running."""

    def __init__(self, eta: Tensor) -> None:
        b, dev = len(eta), eta.device
        self.hits = torch.full((b,), -1, dtype=torch.long, device=dev)
        self.left = self.hits.clone()
        self.clipped, self.surgeries = self.hits + 1, self.hits + 1
        self.stuck = torch.zeros(b, dtype=torch.bool, device=dev)
        self.entered = self.stuck.clone()
        self.loss = torch.full((b,), float("nan"), dtype=eta.dtype, device=dev)
        self.eta = eta.clone()

    def note(
        self,
        live: Tensor,
        it: int,
        loss: Tensor,
        inside: Tensor,
        tol: float,
        plateau: float | None,
    ) -> Tensor:
        """Record one iteration of the running rows; which of them are done."""
        self.loss[live] = loss
        self.entered[live] |= inside
        if plateau is not None:
            fresh = (loss < plateau) & (self.left[live] < 0)
            self.left[live[fresh]] = it
        done = loss < tol
        self.hits[live[done]] = it
        return done


def descend(
    objective: Objective,
    chart: Chart,
    eta0: Tensor,
    *,
    method: str = "gd",
    lr: float = 1.0,
    damping: float = 0.0,
    clip: float = 1.0,
    steps: int = 5000,
    tol: float = 1e-6,
    plateau: float | None = None,
    stall: float = 1e-10,
    record: Sequence[int] = (),
    surgery: Callable[[Tensor, Tensor], Tensor] | None = None,
    surgery_every: int = 50,
) -> Descent:
    r"""Descend from a batch of starts at once, in any chart.

    .. math:: \eta \leftarrow \Pi\Bigl(\eta - \min\bigl(1, \tfrac{\rho}{|\delta|}\bigr)
              \delta\Bigr), \qquad
              \delta = h\,g \ \text{ or }\ h\,(G + \lambda I)^{-1} g

    Rows leave the batch when they hit `tol` or stop moving, so the cost follows the
    rows that are still running.

    Args:
        objective: loss on atoms.
        chart: coordinates; `chart.project` is :math:`\Pi`.
        eta0: (b, P) starts, already in the chart (see `chart.lift`).
        method: "gd" or "ngd".
        lr: step size h.
        damping: :math:`\lambda` of the natural gradient.
        clip: largest step length :math:`\rho`.
        steps: budget T.
        tol: a run hits when its loss falls below this.
        plateau: level whose first crossing is reported in `left`.
        stall: a row that moves less than this has stopped.
        record: iterations at which to keep the coordinates.
        surgery: (eta, loss) -> eta, offered every `surgery_every` steps to rows whose
            loss fell by less than a thousandth since the last offer.

    Returns:
        a `Descent`.

    Raises:
        ValueError: an unknown method, a malformed start, or a loss that is not finite.
        SingularMetricError: "ngd" without damping on a singular metric.

    Source: spec 2. Cost: T evaluations of the running rows.

    Examples:
        >>> from geolib.stratifolds import MixtureKL, RawA
        >>> teacher = torch.tensor([0.7, 0.3, 0.0, 2.0], dtype=torch.float64)
        >>> eta0 = torch.tensor([[0.5, 1.0], [0.5, -1.0]], dtype=torch.float64)
        >>> descend(MixtureKL(teacher), RawA(), eta0, lr=0.3).success.tolist()
        [True, False]
    """
    if method not in ("gd", "ngd"):
        raise ValueError(f"method: expected 'gd' or 'ngd', got {method!r}")
    if eta0.ndim != 2 or not bool(torch.isfinite(eta0).all()) or not len(eta0):
        raise ValueError(
            f"eta0: expected finite starts of shape (batch >= 1, P), got shape "
            f"{tuple(eta0.shape)}"
        )
    eta = chart.project(eta0.clone())
    log, live = _Log(eta), torch.arange(len(eta), device=eta.device)
    kept: list[Tensor] = []
    last_offer = torch.full_like(eta[:, 0], float("inf"))
    for it in range(steps + 1):
        if it in record:
            log.eta[live] = eta
            kept.append(log.eta.clone())
        loss, g, G = pull_back(objective, chart, eta, method == "ngd" and it < steps)
        _check_finite(loss, live, it)
        done = log.note(live, it, loss, chart.inside_collar(eta), tol, plateau)
        if it == steps:
            log.eta[live] = eta
            break
        if surgery is not None and it and it % surgery_every == 0:
            eta, moved = _offer(surgery, eta, loss, last_offer[live], done)
            log.surgeries[live] += moved
            last_offer[live] = loss
            if bool(moved.any()):
                loss, g, G = pull_back(objective, chart, eta, method == "ngd")
        step = lr * (g if G is None else natural_step(G, g, damping))
        size = step.norm(dim=1)
        shrink = (clip / size.clamp_min(1e-300)).clamp_max(1.0)
        log.clipped[live] += (shrink < 1).long()
        new = chart.project(eta - shrink[:, None] * step)
        halted = (new - eta).norm(dim=1) < stall
        if surgery is not None:
            halted &= False  # a surgery may still free the row
        log.stuck[live] = halted & ~done
        out = done | halted
        if bool(out.any()):
            log.eta[live] = eta
            live, new = live[~out], new[~out]
        eta = new
        if not len(live):
            break
    path = _fill(kept, log.eta, len(record)) if record else None
    names = ("hits", "left", "entered", "stuck", "loss", "eta", "clipped", "surgeries")
    return Descent(**{n: getattr(log, n) for n in names}, path=path, iterations=steps)


def _check_finite(loss: Tensor, live: Tensor, it: int) -> None:
    if not bool(torch.isfinite(loss).all()):
        row = int(live[~torch.isfinite(loss)][0])
        raise ValueError(
            f"lr: the loss of start {row} is not finite at iteration {it}; "
            "use a smaller step or clip"
        )


def _offer(
    surgery: Callable[[Tensor, Tensor], Tensor],
    eta: Tensor,
    loss: Tensor,
    before: Tensor,
    done: Tensor,
) -> tuple[Tensor, Tensor]:
    """Offer the surgery to the rows that hardly improved since the last offer."""
    flat = (loss > before * (1 - 1e-3)) & ~done
    moved = torch.zeros(len(eta), dtype=torch.long, device=eta.device)
    if not bool(flat.any()):
        return eta, moved
    new = eta.clone()
    new[flat] = surgery(eta[flat], loss[flat])
    moved += (new != eta).any(1).long()
    return new, moved


def _fill(kept: list[Tensor], last: Tensor, count: int) -> Tensor:
    """Records of a batch that finished early repeat its last coordinates."""
    kept = kept + [last] * (count - len(kept))
    return torch.stack(kept, 1)


def warn_if_collared(distance: float, eps: float) -> None:
    """Warn, with both numbers, when the truth lies inside the collar.

    Examples:
        >>> warn_if_collared(0.6, 0.1)
    """
    if distance < eps:
        warnings.warn(
            f"eps = {eps:g} exceeds the teacher's distance {distance:g} to the "
            "stratum: the resolved model cannot represent it exactly and the loss has "
            "a floor; use anneal(...) or a smaller eps",
            CollarWarning,
            stacklevel=3,
        )
