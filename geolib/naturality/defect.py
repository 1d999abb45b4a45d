r"""The defect: train in two coordinate systems, come back, and compare."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.naturality.affine_layers import InChart
from geolib.naturality.catalogue import as_spec
from geolib.naturality.local_geometry import Diverged, flatten
from geolib.naturality.losses import Loss
from geolib.naturality.optimizer_spec import OptimizerSpec, RunContext
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization

EXACT = 1e-9  # float64 round-off of a few hundred ill-conditioned steps
ROUNDOFF = 1e-12  # below it a falling defect is noise, not an order


class Verdict(StrEnum):
    """What a defect says about one optimizer and one map.

    Attributes:
        EXACT: the square closes at every step size.
        NATURAL: it closes in the limit of small steps.
        UNNATURAL: it stays open.
        UNDECIDED: the runs do not say (no flow limit, too stiff, diverged).
        UNDEFINED: the optimizer makes no sense in that chart.

    Source: :eq:`eq-naturality-square`.

    Examples:
        >>> Verdict.NATURAL.letter, Verdict.from_letter("U").value
        ('N', 'unnatural')
    """

    EXACT = "exact"
    NATURAL = "natural"
    UNNATURAL = "unnatural"
    UNDECIDED = "undecided"
    UNDEFINED = "undefined"

    @property
    def letter(self) -> str:
        """E exact, N natural in the limit, U unnatural, ? undecided, - undefined."""
        return LETTERS[self]

    @property
    def closes(self) -> bool:
        """Whether the square closes, at once or in the limit."""
        return self in (Verdict.EXACT, Verdict.NATURAL)

    @classmethod
    def from_letter(cls, letter: Annotated[str, tuple("ENU?-")]) -> Verdict:
        """Return the verdict of a letter."""
        return {v: k for k, v in LETTERS.items()}[letter]


LETTERS = dict(zip(Verdict, "ENU?-", strict=True))


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
        verdict: what they say together.
        space: whether parameters or outputs were compared.
        self_convergence: relative change of the home run between the two smallest
            steps: large when the optimizer has no flow limit.
        floor: the round-off to expect (0 for runs: not measured).
        note: why there is no verdict, or what decided.

    Source: :eq:`drv-naturality-defect` (derivations).
    """

    steps: tuple[float, ...]
    values: tuple[float, ...]
    slope: float
    plateau: float
    verdict: Verdict
    space: str = "parameters"
    self_convergence: float = field(default=math.nan)
    floor: float = 0.0
    note: str = ""

    @property
    def letter(self) -> str:
        """The letter of the verdict."""
        return self.verdict.letter

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON (what is not finite becomes None)."""

        def plain(v: Any) -> Any:
            if isinstance(v, tuple):
                return [plain(u) for u in v]
            return None if isinstance(v, float) and not math.isfinite(v) else v

        return {k: plain(v) for k, v in asdict(self).items()}


def decide(
    values: Sequence[float], slope: float, plateau: float, floor: float = EXACT
) -> Verdict:
    """Apply the rule: exact below `floor`; natural if D falls to 0; unnatural if it stays.

    Examples:
        >>> decide([4e-3, 2e-3, 1e-3], 1.0, 1e-5).value
        'natural'
        >>> decide([0.5, 0.5, 0.5], 0.0, 0.5).value
        'unnatural'
    """
    if not all(math.isfinite(v) for v in values):
        return Verdict.UNDECIDED
    last, largest = values[-1], max(values)
    if largest < ROUNDOFF:
        return Verdict.EXACT
    if slope > 0.75 and plateau <= 0.15 * last:
        return Verdict.NATURAL
    if largest < floor:
        return Verdict.EXACT
    if plateau >= max(0.5 * last, floor) and abs(slope) < 0.35:
        return Verdict.UNNATURAL
    return Verdict.UNDECIDED


def check_steps(steps: Sequence[float]) -> list[float]:
    """Return step sizes in decreasing order, or refuse them.

    Raises:
        ValueError: fewer than two distinct step sizes, or one that is not positive.
    """
    hs = sorted({float(h) for h in steps}, reverse=True)
    good = len(hs) >= 2 and all(math.isfinite(h) and h > 0 for h in hs)
    expect(good, "step_sizes", "at least two distinct positive numbers", list(steps))
    return hs


def run_optimizer(
    optimizer: Any,
    problem: Problem,
    h: float,
    steps: int,
    phi: Reparameterization | None = None,
    callback: Callable[[Tensor], None] | None = None,
    initial: Tensor | None = None,
) -> Tensor:
    r"""Run an optimizer in the chart of phi; return the end, in the home chart.

    Args:
        optimizer: what to run, as in `naturality_defect`.
        problem: in home coordinates.
        h: step size; `steps` of them are taken.
        phi: None runs at home.
        callback: called with the home parameters before the first and after each step.
        initial: the velocity at the start, (p,), for an optimizer that asks for one; drawn
            and pushed when None.

    Returns:
        :math:`\phi^{-1}(\psi_T)`, (p,).

    Raises:
        ValueError: a layer-wise optimizer on a problem without a module; or what the
            optimizer refuses, such as a step that is not finite.

    Source: :eq:`eq-naturality-defect`.

    Examples:
        >>> from geolib.naturality import Reparameterization, affine_mlp, mse
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> end = run_optimizer("ngd", P, 0.1, 5)
        >>> scaled = run_optimizer("ngd", P, 0.1, 5, Reparameterization.scaling(3.0))
        >>> bool((end - scaled).norm() < 1e-9)
        True
    """
    spec = as_spec(optimizer)
    velocity = spec.velocity(problem, phi) if initial is None else initial
    run = RunContext(problem, h, phi, velocity)
    if callback is not None:
        callback(problem.theta0)
    if spec.update is not None:
        return _iterate(spec.update, run, steps, callback)
    step = _stepper(spec, run)
    for _ in range(steps):
        step()
        if callback is not None:
            callback(run.theta())
    return run.theta()


def _iterate(
    update: Callable[..., Tensor],
    run: RunContext,
    steps: int,
    callback: Callable[[Tensor], None] | None,
) -> Tensor:
    """Iterate a plain update function in the chart of the run."""
    y, state = run.problem.theta0, {}  # type: ignore[var-annotated]
    home = (lambda t: t) if run.phi is None else run.phi.inverse
    for _ in range(steps):
        y = update(run.problem, y, run.h, state).detach()
        if callback is not None:
            callback(home(y))
    return home(y)


def _stepper(spec: OptimizerSpec, run: RunContext) -> Callable[[], Any]:
    """Make the leaves and the optimizer of a run; return what takes one step."""
    problem = run.home
    if spec.layered:
        if problem.module is None:
            raise ValueError(f"problem: {spec.name} needs a problem with a module")
        module = copy.deepcopy(problem.module)  # the caller's keeps its weights
        Realization(module).load(problem.theta0)
        network = InChart(module, None if run.phi is None else run.phi.layers)
        run.network, run.leaves = network, list(network.matrices)
        z, same = problem.outputs(problem.theta0), False
        with suppress(RuntimeError):  # shapes that do not fit
            same = torch.allclose(network(problem.data), z)
        expect(same, "module", "weights that only their layers read", module)
    else:
        run.leaves = run.problem.leaves()
    assert spec.make is not None
    optimizer = spec.make(run.leaves, run.h, run)

    def forward() -> tuple[Tensor, Tensor]:
        if run.network is not None:
            z = run.network(problem.data)
        else:
            z = run.problem.outputs(flatten(run.leaves))
        return z, problem.loss(z)

    def scalar() -> Tensor:
        optimizer.zero_grad()
        loss = forward()[1]
        loss.backward()
        return loss

    closure = forward if getattr(optimizer, "needs_outputs", False) else scalar
    return lambda: optimizer.step(closure)  # type: ignore[arg-type]


Runs = dict[float, Tensor]


def home_runs(
    optimizer: Any,
    problem: Problem,
    steps: Sequence[float],
    horizon: float,
    initial: Tensor | None = None,
) -> Runs:
    """Return the ends of the home runs, which all reparameterizations share."""
    expect(horizon <= 1e6 * min(steps), "horizon", "at most a million steps", horizon)
    spec = as_spec(optimizer)

    def end(h: float) -> Tensor:
        return run_optimizer(spec, problem, h, round(horizon / h), initial=initial)

    return {h: end(h) for h in steps}


@dataclass(frozen=True)
class Comparison:
    """What is the same for every map of an audit, resolved once.

    Attributes:
        spec: the optimizer.
        problem: in home coordinates.
        steps: step sizes, decreasing.
        horizon: training time.
        space: where ends are compared.
    """

    spec: OptimizerSpec
    problem: Problem
    steps: list[float]
    horizon: float
    space: str

    def project(self, theta: Tensor) -> Tensor:
        """Return an end in the space of comparison, as one vector."""
        if self.space == "parameters":
            return theta
        if self.space == "outputs":
            return self.problem.outputs(theta).detach().reshape(-1)
        assert self.problem.probe is not None
        return self.problem.probe(theta).detach().reshape(-1)

    def reference(self) -> Runs | str:
        """Return the home runs, or why there are none."""
        try:
            return home_runs(self.spec, self.problem, self.steps, self.horizon)
        except (Diverged, torch.linalg.LinAlgError) as error:
            return f"diverged: {str(error)[:60]}"

    def defect(self, phi: Reparameterization, reference: Runs | str) -> Defect:
        """Train in the chart of phi and compare with the home runs."""
        if undefined := self.undefined(phi):
            return undefined
        if isinstance(reference, str):
            return self._without_runs(Verdict.UNDECIDED, reference)
        differences = []
        try:
            for h in self.steps:
                steps = round(self.horizon / h)
                end = run_optimizer(self.spec, self.problem, h, steps, phi)
                differences.append(self.project(end) - self.project(reference[h]))
        except (Diverged, torch.linalg.LinAlgError) as error:
            note = f"diverged: {str(error)[:60]}"
            return self._without_runs(Verdict.UNDECIDED, note)
        start = self.project(self.problem.theta0)
        ends = [self.project(reference[h]) - start for h in self.steps]
        return summarize(self.steps, differences, ends, self.space)

    def undefined(self, phi: Reparameterization) -> Defect | None:
        """Return the verdict on a map for which the optimizer makes no sense."""
        if not self.spec.layered or phi.layers is not None:
            return None
        return self._without_runs(Verdict.UNDEFINED, "needs maps of layer form U W V")

    def _without_runs(self, verdict: Verdict, note: str) -> Defect:
        nan, n = math.nan, len(self.steps)
        return Defect(
            tuple(self.steps), (nan,) * n, nan, nan, verdict, self.space, note=note
        )


def compare(
    optimizer: Any,
    problem: Problem,
    steps: Sequence[float],
    horizon: float | None,
    space: str,
) -> Comparison:
    """Resolve and check what the caller gave.

    Raises:
        ValueError: bad step sizes, a horizon shorter than a step, an unknown space,
            parameters that are not float64, a loss that is not finite.
    """
    hs = check_steps(steps)
    T = 16 * hs[0] if horizon is None else horizon
    wanted = f"from one step of {hs[0]} to a million of {hs[-1]}"
    expect(hs[0] <= T <= 1e6 * hs[-1], "horizon", wanted, T)
    known = ["parameters", "outputs", *(["probe"] if problem.probe else [])]
    wanted = "'parameters', 'outputs' or (with probe inputs) 'probe'"
    expect(space in known, "space", wanted, space)
    return Comparison(as_spec(optimizer), problem, hs, T, space)


@differentiation()
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
            path such as `torch.optim.Adam`, a name in `OPTIMIZERS`, or an
            `OptimizerSpec` (which also wraps plain update functions).
        reparameterization: checked for being inverse to itself at the start.
        realization: a module, its `Realization`, or a whole `Problem`.
        loss: the loss on outputs (not with a `Problem`).
        step_sizes: at least two; halving is best.
        x: the inputs (not with a `Problem`).
        horizon: training time T; each run takes round(T/h) steps. Default: 16 of the
            largest steps.
        space: `parameters`, `outputs` (on the training inputs; the right one where
            the metric is singular) or `probe` (the problem's other inputs).
        home: ends of the home runs by step size, to save time.

    Raises:
        ValueError: bad step sizes, a map that is no bijection, parameters that are
            not float64.

    Source: Goodbrake 2023, abstract (ii); :eq:`drv-naturality-defect` (derivations).

    Examples:
        >>> from geolib.naturality import Reparameterization, affine_mlp, mse
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> phi = Reparameterization.scaling(2.0)
        >>> naturality_defect(torch.optim.SGD, phi, P, step_sizes=[1/64, 1/128]).letter
        'U'
        >>> naturality_defect("ngd", phi, P, step_sizes=[1/64, 1/128]).letter
        'E'
    """
    problem = as_problem(realization, loss, x)
    setting = compare(optimizer, problem, step_sizes, horizon, space)
    reparameterization.check(problem.theta0)
    if setting.spec.layered and reparameterization.layers is None:
        return setting.defect(reparameterization, {})
    return setting.defect(reparameterization, home or setting.reference())


def summarize(
    hs: list[float], differences: list[Tensor], ways: list[Tensor], space: str
) -> Defect:
    """Turn the difference vectors into values, slope, plateau and verdict.

    Args:
        hs: step sizes, decreasing.
        differences: of the ends, one vector a step size.
        ways: from the start to the end, for each step size.
        space: for the record.
    """
    moved = [float(way.norm()) for way in ways]
    drift = float((ways[-1] - ways[-2]).norm())
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
    return Defect(
        tuple(hs),
        tuple(values),
        slope,
        plateau,
        decide(values, slope, plateau),
        space,
        drift / moved[-1] if moved[-1] > 0 else math.inf,
    )


def as_problem(
    realization: Realization | nn.Module | Problem, loss: Loss | None, x: Any
) -> Problem:
    """Return whatever the caller has as a `Problem` in float64."""
    if isinstance(realization, Problem):
        problem = realization
    else:
        if loss is None or x is None:
            raise ValueError("loss, x: needed unless a Problem is given")
        problem = Problem.of(realization, x, loss)
    kind, wanted = (
        problem.theta0.dtype,
        "float64 parameters (round-off would hide exact verdicts)",
    )
    expect(kind == torch.float64, "realization", wanted, kind)
    start = problem.loss(problem.outputs(problem.theta0)).detach()
    good = start.numel() == 1 and bool(torch.isfinite(start))
    expect(good, "loss", "a finite number at the start", start)
    return problem
