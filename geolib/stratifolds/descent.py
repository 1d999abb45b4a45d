"""One descent for every chart: batched, recording hits, plateaus and stuck runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, Surgery, real_part


class Objective(Protocol):
    """A loss on natural parameters: value, gradient and Fisher matrix."""

    def value(self, natural: Tensor) -> Tensor:
        """The loss only, (b,)."""
        ...

    def evaluate(
        self, natural: Tensor, fisher: bool = False
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
        hitting_time: first iteration with loss < tol, -1 if never.
        escaped_at: first iteration with loss < plateau, -1 if never (or not asked).
        entered: the run was inside the collar at some iteration.
        stuck: the run stopped moving before it hit.
        loss: last loss.
        eta: last coordinates, (b, P).
        clipped: steps shortened by the clip.
        surgeries: how often a surgery changed the run.
        path: (b, records, P) coordinates, if `record` was asked for.
        iterations: budget T.
    """

    hitting_time: Tensor
    escaped_at: Tensor
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
        return self.hitting_time >= 0

    def rate(self, mask: Tensor | None = None) -> float:
        """The fraction of (masked) runs that hit."""
        chosen = self.success if mask is None else self.success[mask]
        return float(chosen.double().mean())

    def median(self, mask: Tensor | None = None) -> float:
        """Median hitting time; runs that missed count as the whole budget."""
        times = torch.where(self.success, self.hitting_time, self.iterations).double()
        chosen = times if mask is None else times[mask]
        return float(torch.quantile(chosen, 0.5))


class RunLog:
    """The records of a batch, kept for the rows that are still running.

    Args:
        eta: (b, P) starts.
        steps: budget.
        tol, plateau: levels of the loss, see `descend`.

    Attributes:
        live: indices of the rows that are still running.
        now: their records, by the name of the field; a row that ends is written out.
    """

    def __init__(
        self, eta: Tensor, steps: int, tol: float, plateau: float | None = None
    ) -> None:
        never = torch.full((len(eta),), -1, dtype=torch.long, device=eta.device)
        self.now = {
            "hitting_time": never,
            "escaped_at": never,
            "entered": never > 0,
            "stuck": never > 0,
            "loss": torch.full_like(eta[:, 0], float("nan")),
            "eta": eta,
            "clipped": never + 1,
            "surgeries": never + 1,
        }
        every = {name: value.clone() for name, value in self.now.items()}
        self._runs = Descent(**every, path=None, iterations=steps)
        self.live = torch.arange(len(eta), device=eta.device)
        self.tol, self.plateau = tol, plateau

    def note(self, it: int, loss: Tensor, eta: Tensor) -> Tensor:
        """Record the running rows' losses and coordinates; which have arrived."""
        self.now["loss"], self.now["eta"] = loss, eta
        if self.plateau is not None:
            self._first("escaped_at", it, loss < self.plateau)
        done = loss < self.tol
        self._first("hitting_time", it, done)
        return done

    def _first(self, name: str, it: int, here: Tensor) -> None:
        before = self.now[name]
        self.now[name] = torch.where(here & (before < 0), it, before)

    def drop(self, out: Tensor) -> bool:
        """Let some running rows end as they are; whether there were any."""
        if not bool(out.any()):
            return False
        self.runs()
        self.live = self.live[~out]
        self.now = {name: value[~out] for name, value in self.now.items()}
        return True

    def runs(self) -> Descent:
        """The records of all rows as they stand."""
        for name, value in self.now.items():
            getattr(self._runs, name)[self.live] = value
        return self._runs


def natural_step(
    G: Annotated[Tensor, "real b p p"], g: Annotated[Tensor, "real b p"], damping: float
) -> Tensor:
    r"""The direction of the natural gradient for a batch of small metrics.

    .. math:: (G + \lambda I)\,\delta = g

    Args:
        G: (b, P, P) metrics.
        g: (b, P) gradients.
        damping: :math:`\lambda \ge 0`.

    Raises:
        SingularMetricError: a metric is singular to working precision and there is no
            damping.

    Cost: O(b P^3).
    Source: Amari 1998; :eq:`drv-stratifolds-natural` (derivations).

    Examples:
        >>> natural_step(2 * torch.eye(2)[None], torch.ones(1, 2), 0.0)
        tensor([[0.5000, 0.5000]])
    """
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    factor, info = torch.linalg.cholesky_ex(G + damping * eye)
    pivots = factor.diagonal(dim1=-2, dim2=-1).abs()
    tiny = pivots.amin(-1) ** 2 <= 4 * torch.finfo(G.dtype).eps * pivots.amax(-1) ** 2
    bad = (info > 0) | tiny | ~torch.isfinite(pivots).all(-1)
    step = torch.cholesky_solve(g[..., None], factor)[..., 0]
    if bool(bad.any()):
        if damping == 0:
            row = int(bad.nonzero()[0])
            raise SingularMetricError(
                f"damping, G: the metric of row {row} is singular to working precision; "
                "give damping > 0 or a resolved chart"
            )
        # indefinite by rounding only: the symmetric solve does not need a root
        lam, U = torch.linalg.eigh(G[bad])
        turned = torch.einsum("bji,bj->bi", U, g[bad])
        inverse = 1 / (lam.clamp_min(0) + damping)
        step[bad] = torch.einsum("bij,bj->bi", U, inverse * turned)
    return step


def pull_back(
    objective: Objective,
    chart: Chart,
    eta: Annotated[Tensor, "real b chart.width"],
    natural: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Loss, gradient and metric in a chart's coordinates.

    .. math:: \nabla_\eta L = \mathrm{Re}\,J^\top \nabla_\alpha L, \qquad
              F_\eta = \mathrm{Re}\,J^\top F_\alpha J

    Args:
        objective: loss on natural parameters.
        chart: coordinates.
        eta: (b, P).
        natural: whether the metric is wanted.

    Returns:
        Loss (b,), gradient (b, P), and the metric (b, P, P) or None.

    Cost: one `evaluate` and one Jacobian.
    Source: :eq:`drv-stratifolds-pullback` (derivations).

    Examples:
        >>> from geolib.stratifolds import mixture_a
        >>> A, eta = mixture_a(), torch.tensor([[0.5, 0.0]]).double()
        >>> loss, g, G = pull_back(A.objective(eta[0]), A.chart, eta, True)
        >>> G[0].round(decimals=4)
        tensor([[0.0000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    embedded, J = chart.linearize(eta)
    loss, grad, fisher = objective.evaluate(embedded, natural)
    g = real_part(torch.einsum("bap,ba->bp", J, grad))
    G = None if fisher is None else chart.pull_back_metric(eta, fisher, J)
    return real_part(loss), g, G


def descend(
    objective: Objective,
    chart: Chart,
    eta0: Annotated[Tensor, "real batch chart.width"],
    *,
    method: Annotated[str, ("gd", "ngd")] = "gd",
    lr: float = 1.0,
    damping: float = 0.0,
    clip: float = 1.0,
    steps: int = 5000,
    tol: float = 1e-6,
    plateau: float | None = None,
    stall: float = 1e-10,
    record: Sequence[int] = (),
    surgery: Surgery | None = None,
    surgery_every: int = 50,
) -> Descent:
    r"""Descend from a batch of starts at once, in any chart.

    .. math:: \eta \leftarrow \Pi\Bigl(\eta - \min\bigl(1, \tfrac{\rho}{|\delta|}\bigr)
              \delta\Bigr), \qquad
              \delta = h\,g \ \text{ or }\ h\,(G + \lambda I)^{-1} g

    Rows leave the batch when they hit `tol` or stop moving, so the cost follows the
    rows that are still running.

    Args:
        objective: loss on natural parameters.
        chart: coordinates; `chart.project` is :math:`\Pi`.
        eta0: (b, P) starts, already in the chart (see `Chart.to_chart`).
        method: "gd" or "ngd".
        lr: step size h.
        damping: :math:`\lambda` of the natural gradient.
        clip: largest step length :math:`\rho`.
        steps: budget T.
        tol: a run hits when its loss falls below this.
        plateau: level whose first crossing is reported in `escaped_at`.
        stall: a row that moves less than this has stopped.
        record: iterations at which to keep the coordinates.
        surgery: (eta, loss) -> eta, offered every `surgery_every` steps to rows whose
            loss fell by less than a thousandth since the last offer.
        surgery_every: steps between two offers.

    Returns:
        A `Descent`.

    Raises:
        ValueError: the method is unknown, the starts are malformed, or a loss is not
            finite.
        SingularMetricError: "ngd" without damping met a singular metric.

    Cost: T evaluations of the running rows.
    Source: :eq:`drv-stratifolds-natural` (derivations).

    Examples:
        >>> from geolib.stratifolds import mixture_a
        >>> A = mixture_a()
        >>> kl = A.objective(torch.tensor([0.3, 2.0], dtype=torch.float64))
        >>> eta0 = torch.tensor([[0.5, 1.0], [0.5, -1.0]], dtype=torch.float64)
        >>> descend(kl, A.chart, eta0, lr=0.3).success.tolist()
        [True, False]
    """
    natural = method == "ngd"
    eta = chart.project(eta0.detach().clone())
    log, kept = RunLog(eta, steps, tol, plateau), []
    last_offer = torch.full_like(eta[:, 0], float("inf"))
    for it in range(steps + 1):
        loss, g, G = pull_back(objective, chart, eta, natural and it < steps)
        _check_finite(loss, log.live, it)
        done = log.note(it, loss, eta)
        if it in record:
            kept.append(log.runs().eta.clone())
        log.now["entered"] = log.now["entered"] | chart.inside_collar(eta)
        if it == steps:
            break
        if surgery is not None and it and it % surgery_every == 0:
            eta, moved = _offer(surgery, eta, loss, last_offer, done)
            log.now["surgeries"], log.now["eta"] = log.now["surgeries"] + moved, eta
            last_offer = loss
            if bool(moved.any()):
                loss, g, G = pull_back(objective, chart, eta, natural)
        step = lr * (g if G is None else natural_step(G, g, damping))
        shrink = (clip / step.norm(dim=1).clamp_min(1e-300)).clamp_max(1.0)
        log.now["clipped"] = log.now["clipped"] + (shrink < 1)
        new = chart.project(eta - shrink[:, None] * step)
        out = done
        if surgery is None:  # a surgery may still free a row that has stopped
            halted = (new - eta).norm(dim=1) < stall
            log.now["stuck"], out = halted & ~done, done | halted
        eta = new
        if log.drop(out):
            eta, last_offer = new[~out], last_offer[~out]
            if not len(eta):
                break
    runs = log.runs()
    if record:  # a batch that finished early repeats its last coordinates
        kept += [runs.eta] * (len(record) - len(kept))
        runs.path = torch.stack(kept, 1)
    return runs


def _check_finite(loss: Tensor, live: Tensor, it: int) -> None:
    if not bool(torch.isfinite(loss).all()):
        row = int(live[~torch.isfinite(loss)][0])
        raise ValueError(
            f"lr, eta0: the loss of start {row} is not finite at iteration {it}; "
            "use a smaller step or clip"
        )


def _offer(
    surgery: Surgery, eta: Tensor, loss: Tensor, before: Tensor, done: Tensor
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


def warn_if_collared(distance: float, eps: float) -> None:
    """Warn, with both numbers, when the truth lies inside the collar.

    Examples:
        >>> warn_if_collared(0.6, 0.1)
    """
    if distance < eps:
        warnings.warn(
            f"eps = {eps:g} exceeds the teacher's distance {distance:g} to the "
            "stratum: the resolved model cannot represent it exactly and the loss has "
            "a floor; use a smaller eps",
            CollarWarning,
            stacklevel=3,
        )
