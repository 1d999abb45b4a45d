r"""The defect: train in two coordinate systems, come back, and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.naturality.layers import charted
from geolib.naturality.outputs import Loss
from geolib.naturality.point import flatten
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization
from geolib.naturality.subject import Run, Subject, as_subject

EXACT = 1e-9  # float64 round-off of a few hundred ill-conditioned steps
ROUNDOFF = 1e-12  # below it a falling defect is noise, not an order


@dataclass(frozen=True)
class Defect:
    r"""How far an optimizer is from commuting with one reparameterization.

    .. math:: D(h) = \frac{|\phi^{-1}(\psi_T^h) - \theta_T^h|}
        {|\theta_T^h - \theta_0|} .

    Attributes:
        steps: step sizes h, decreasing.
        values: D(h) for each.
        slope: the fitted order of D in h (from the first and last of the last three).
        plateau: the limit of D at h = 0, by Richardson extrapolation of the
            difference *vector* from the two smallest steps, at order 1 or, where the
            slope is larger, at the slope rounded to an integer.
        verdict: `exact`, `natural`, `unnatural` or `undecided`.
        space: whether parameters or outputs were compared.
        self_convergence: relative change of the home run between the two smallest
            steps: large when the optimizer has no flow limit.
        note: why a run could not be completed, if so.
    """

    steps: tuple[float, ...]
    values: tuple[float, ...]
    slope: float
    plateau: float
    verdict: str
    space: str = "parameters"
    self_convergence: float = field(default=math.nan)
    note: str = ""

    @property
    def letter(self) -> str:
        """E exact, N natural in the limit, U unnatural, ? undecided, - undefined."""
        return LETTERS[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON (what is not finite becomes None)."""

        def plain(v: Any) -> Any:
            if isinstance(v, tuple):
                return [plain(u) for u in v]
            return None if isinstance(v, float) and not math.isfinite(v) else v

        return {k: plain(v) for k, v in asdict(self).items()}


LETTERS = {
    "exact": "E",
    "natural": "N",
    "unnatural": "U",
    "undecided": "?",
    "undefined": "-",
}


def verdict(values: Sequence[float], slope: float, plateau: float) -> str:
    """The rule: exact below 1e-9; natural if D falls to 0; unnatural if it stays.

    Examples:
        >>> verdict([4e-3, 2e-3, 1e-3], 1.0, 1e-5)
        'natural'
        >>> verdict([0.5, 0.5, 0.5], 0.0, 0.5)
        'unnatural'
    """
    if not all(math.isfinite(v) for v in values):
        return "undecided"
    last, largest = values[-1], max(values)
    if largest < ROUNDOFF:
        return "exact"
    if slope > 0.75 and plateau <= 0.15 * last:
        return "natural"
    if largest < EXACT:
        return "exact"
    if plateau >= 0.5 * last and abs(slope) < 0.35:
        return "unnatural"
    return "undecided"


def check_steps(steps: Sequence[float]) -> list[float]:
    """Step sizes in decreasing order, or a clear refusal.

    Raises:
        ValueError: fewer than two distinct step sizes, or one that is not positive.
    """
    hs = sorted({float(h) for h in steps}, reverse=True)
    if len(hs) < 2:
        raise ValueError(
            f"step_sizes: expected at least two distinct step sizes, got {list(steps)}"
        )
    if not all(math.isfinite(h) and h > 0 for h in hs):
        raise ValueError(f"step_sizes: expected positive numbers, got {list(steps)}")
    return hs


def train(
    subject: Subject,
    problem: Problem,
    h: float,
    steps: int,
    phi: Reparameterization | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    r"""Run the optimizer in the chart of phi; the end, brought back to the home chart.

    Args:
        subject: what to run.
        problem: in home coordinates.
        h: step size; `steps` of them are taken.
        phi: None runs at home.
        watch: called with the home parameters before the first and after each step.

    Returns:
        :math:`\phi^{-1}(\psi_T)`, (p,).
    """
    run = Run(problem, h, phi, subject.velocity(problem, phi))
    see = watch if watch is not None else (lambda theta: None)
    see(problem.theta0)
    if subject.update is not None:
        y = run.problem.theta0
        state: dict[str, Any] = {}
        for _ in range(steps):
            y = subject.update(run.problem, y, h, state).detach()
            see(y if phi is None else phi.inverse(y))
        return y if phi is None else phi.inverse(y)
    network = None
    if subject.layered:
        if problem.module is None:
            raise ValueError(f"problem: {subject.name} needs a problem with a module")
        network = charted(_loaded(problem), None if phi is None else phi.layers)
        run.network = network
        leaves: list[Tensor] = list(network.parameters())
    else:
        leaves = run.problem.leaves()
    run.leaves = leaves
    optimizer = subject.make(leaves, h, run)
    needs = getattr(optimizer, "needs_outputs", False)

    def forward() -> tuple[Tensor, Tensor]:
        z = (
            network(problem.data)
            if network is not None
            else (run.problem.outputs(flatten(leaves)))
        )
        return z, problem.loss(z)

    def closure() -> Any:
        if needs:
            return forward()
        optimizer.zero_grad()
        loss = forward()[1]
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        if watch is not None:
            see(run.theta())
    return run.theta()


def _loaded(problem: Problem) -> nn.Module:
    assert problem.module is not None
    Realization(problem.module).load(problem.theta0)
    return problem.module


Runs = dict[float, Tensor]


def home_runs(
    subject: Subject, problem: Problem, steps: Sequence[float], horizon: float
) -> Runs:
    """The home trajectories' ends, shared by all reparameterizations of an audit."""
    return {h: train(subject, problem, h, round(horizon / h)) for h in steps}


def naturality_defect(
    optimizer: Any,
    reparameterization: Reparameterization,
    realization: Realization | nn.Module | Problem,
    loss: Loss | None = None,
    step_sizes: Sequence[float] = (1 / 32, 1 / 64),
    *,
    x: Any = None,
    horizon: float | None = None,
    space: str = "parameters",
    home: Runs | None = None,
) -> Defect:
    r"""Measure whether an optimizer commutes with a reparameterization.

    The optimizer runs to the same training time from :math:`\theta_0` and from
    :math:`\phi(\theta_0)`, with f composed with :math:`\phi^{-1}`; the ends are
    compared for every step size.

    Args:
        optimizer: an optimizer class, a factory `(params, h) -> Optimizer`, an import
            path such as `torch.optim.Adam`, a name in `SUBJECTS`, or a `Subject`
            (which also wraps plain update functions).
        reparameterization: checked for being inverse to itself at the start.
        realization: a module, its `Realization`, or a whole `Problem`.
        loss: the loss on outputs (not with a `Problem`).
        step_sizes: at least two; halving is best.
        x: the inputs (not with a `Problem`).
        horizon: training time T; each run takes round(T/h) steps. Default: 16 of the
            largest steps.
        space: `parameters`, `outputs` (on the training inputs; the right one where
            the metric is singular) or `probe` (the problem's other inputs).
        home: runs of `home_runs`, to save time.

    Raises:
        ValueError: bad step sizes, a map that is no bijection, parameters that are
            not float64.

    Source: Goodbrake 2023, abstract (ii): the square that must commute.

    Examples:
        >>> from geolib.naturality import regression_problem, uniform
        >>> P = regression_problem(12)
        >>> phi = uniform(2.0, P.theta0)
        >>> naturality_defect(torch.optim.SGD, phi, P, step_sizes=[1/64, 1/128]).verdict
        'unnatural'
        >>> naturality_defect("ngd", phi, P, step_sizes=[1/64, 1/128]).verdict
        'exact'
    """
    problem = as_problem(realization, loss, x)
    hs = check_steps(step_sizes)
    subject = as_subject(optimizer)
    phi = reparameterization
    phi.check(problem.theta0)
    T = 16 * hs[0] if horizon is None else horizon
    if T < hs[0]:
        raise ValueError(f"horizon: expected at least one step of {hs[0]}, got {T}")
    look = _look(problem, space)
    if subject.layered and phi.layers is None:
        return _failed(hs, "undefined", space, "needs maps of layer form U W V")
    start = look(problem.theta0)
    differences, moved = [], []
    try:
        home = home_runs(subject, problem, hs, T) if home is None else home
        for h in hs:
            there = look(train(subject, problem, h, round(T / h), phi))
            differences.append(there - look(home[h]))
            moved.append(float((look(home[h]) - start).norm()))
    except (ValueError, torch.linalg.LinAlgError) as error:
        if not isinstance(error, torch.linalg.LinAlgError) and not any(
            w in str(error) for w in ("finite", "positive definite")
        ):
            raise
        return _failed(hs, "undecided", space, f"diverged: {str(error)[:60]}")
    return summarize(hs, differences, moved, look, home, space)


def summarize(
    hs: list[float],
    differences: list[Tensor],
    moved: list[float],
    look: Callable[[Tensor], Tensor],
    home: Runs,
    space: str,
) -> Defect:
    """Values, slope, plateau and verdict out of the difference vectors."""
    values = [
        float(e.norm()) / m if m > 0 else math.inf
        for e, m in zip(differences, moved, strict=True)
    ]
    first = max(len(hs) - 3, 0)
    slope = math.nan
    if values[first] > 0 and values[-1] > 0:
        slope = math.log(values[first] / values[-1]) / math.log(hs[first] / hs[-1])
    order = max(1, round(slope)) if math.isfinite(slope) and slope > 0.75 else 1
    r = (hs[-2] / hs[-1]) ** min(order, 6)
    limit = (r * differences[-1] - differences[-2]) / (r - 1)
    plateau = float(limit.norm()) / moved[-1] if moved[-1] > 0 else math.inf
    drift = float((look(home[hs[-1]]) - look(home[hs[-2]])).norm())
    return Defect(
        tuple(hs),
        tuple(values),
        slope,
        plateau,
        verdict(values, slope, plateau),
        space,
        drift / moved[-1] if moved[-1] > 0 else math.inf,
    )


def as_problem(
    realization: Realization | nn.Module | Problem, loss: Loss | None, x: Any
) -> Problem:
    """Whatever the caller has, as a `Problem` in float64."""
    if isinstance(realization, Problem):
        problem = realization
    else:
        if loss is None or x is None:
            raise ValueError("loss, x: needed unless a Problem is given")
        R = realization
        R = R if isinstance(R, Realization) else Realization(R)
        problem = Problem.from_realization(R, x, loss)
    if problem.theta0.dtype != torch.float64:
        raise ValueError(
            "realization: expected float64 parameters (round-off would hide exact "
            f"verdicts), got {problem.theta0.dtype}"
        )
    start = problem.loss(problem.outputs(problem.theta0))
    if start.numel() != 1 or not bool(torch.isfinite(start)):
        raise ValueError(f"loss: expected a finite number at the start, got {start}")
    return problem


def _look(problem: Problem, space: str) -> Callable[[Tensor], Tensor]:
    if space == "parameters":
        return lambda t: t
    if space == "outputs":
        return lambda t: problem.outputs(t).detach().reshape(-1)
    if space == "probe" and problem.probe is not None:
        probe = problem.probe
        return lambda t: probe(t).detach().reshape(-1)
    raise ValueError(
        "space: expected 'parameters', 'outputs' or (with probe inputs) 'probe', got "
        f"{space!r}"
    )


def _failed(hs: list[float], verdict: str, space: str, note: str) -> Defect:
    nan = math.nan
    return Defect(tuple(hs), (nan,) * len(hs), nan, nan, verdict, space, note=note)
