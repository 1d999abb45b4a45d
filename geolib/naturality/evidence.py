r"""What single states say of an optimizer: the orders of its step, and its generator's law.

A run accumulates whatever separates two charts; a step does not. At a few states the step
is made at home and in the chart, and its defect is read in the metric of the outputs, in
which nothing depends on coordinates and round-off grows with the root of the condition
number only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from geolib.naturality.defect import Defect, Verdict, decide, run_optimizer, summarize
from geolib.naturality.geometric_optimizer import GeometricOptimizer
from geolib.naturality.jets import Generator, as_generator, draw_state, law_failure
from geolib.naturality.local_geometry import ZERO, Diverged
from geolib.naturality.optimizer_spec import OptimizerSpec, RunContext
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization, directional

STEP = 1 / 32  # the first step size; a quarter of it is the second
NUDGE = 0.01  # a step moves the parameters by at most this share of their length
RETRIES = 2  # times the step sizes are divided by eight where no order shows
SAFETY = 100.0  # round-off between charts, over that of a run from a nudged start
RESOLVED = 1e-8  # least singular value, over the largest, that a step can follow
SIZES = (1.0, 0.25)
UNSEEN = "memory without a known generator"
EPS = torch.finfo(torch.float64).eps


def singular_values(A: Tensor) -> tuple[float, int, bool]:
    """Return condition number of A^T A on its range, rank, and whether both are clear.

    Examples:
        >>> singular_values(torch.diag(torch.tensor([2.0, 1.0, 0.0]).double()))
        (4.0, 2, True)
    """
    s = torch.linalg.svdvals(A)
    s = s / s[0].clamp(min=1e-300)
    rank = int((s > ZERO**0.5).sum())
    if rank == 0:
        return math.inf, 0, False
    clear = float(s[rank - 1]) >= RESOLVED and not bool(
        (s[rank:] > 0.1 * ZERO**0.5).any()
    )
    return float(s[rank - 1]) ** -2, rank, clear


def resolved_samples(A: Tensor, n: int) -> list[int]:
    """Return the samples, in order, on which the rank of the metric is clear.

    They are taken by pivots, the most independent rows first, as many as can be.
    """
    if singular_values(A)[2]:
        return list(range(n))
    rows = len(A) // n
    pivots = scipy.linalg.qr(A.T.numpy(force=True), mode="r", pivoting=True)[1]
    pivots = [*pivots, *(k for k in range(len(A)) if k not in set(pivots))]
    order = list(dict.fromkeys(int(k) // rows for k in pivots))
    blocks = A.view(n, rows, -1)
    low, high = 1, n  # the rank is clear with `low` samples, and not with `high`
    while high - low > 1:
        middle = (low + high) // 2
        kept = blocks[order[:middle]].reshape(-1, A.shape[1])
        low, high = (middle, high) if singular_values(kept)[2] else (low, middle)
    return sorted(order[:low])


def remembers(spec: OptimizerSpec, problem: Problem) -> bool:
    """Whether an optimizer has a memory, so that one step does not show its flow."""
    if spec.initial is not None or spec.make is None:
        return True
    if spec.layered:
        return False
    run = RunContext(problem, STEP)
    run.leaves = problem.leaves()
    made = spec.make(run.leaves, STEP, run)
    if isinstance(made, GeometricOptimizer):
        return bool(made.tags) or not made.has_velocity
    if isinstance(made, torch.optim.SGD):
        return any(g["momentum"] for g in made.param_groups)
    return getattr(made, "has_memory", True)


def generator_of(spec: OptimizerSpec, problem: Problem) -> Generator | None:
    """The generator of an optimizer, or None where it does not say it."""
    try:
        return as_generator(spec, problem)
    except (ValueError, NotImplementedError):
        return None


@dataclass(frozen=True)
class HomeRun:
    """A few steps at home: their way, their end, and the round-off to expect."""

    h: float
    way: Tensor
    end: Tensor
    floor: float


class Site:
    r"""One state at which an optimizer is tried, with what all charts share.

    One step of size h (three for a rule with memory) ends at :math:`\theta + d` at home
    and at :math:`\phi(\theta) + d'` in the chart. Two defects are read in the metric:

    .. math:: D(h) = \frac{|f(\phi^{-1}(\phi(\theta) + d')) - f(\theta + d)|_W}
        {|f(\theta + d) - f(\theta)|_W}, \qquad
        D_1(h) = \frac{|D\phi^{-1}d' - d|_F}{|d|_F} .

    Args:
        spec: the optimizer.
        problem: started at the state.

    Raises:
        Diverged: a step that is not finite, or that does not change the outputs.

    Source: :eq:`drv-naturality-step` (derivations).
    """

    def __init__(self, spec: OptimizerSpec, problem: Problem) -> None:
        self.spec, self.problem = spec, problem
        self.memory = remembers(spec, problem)
        self.count = 3 if self.memory else 1
        q = problem.point(problem.theta0)
        self.A, self.n, self._root = q.A, len(q.z), q.local.root_t
        self.condition, self.rank, self.clear = singular_values(self.A)
        self.z = self.outputs(problem.theta0)
        self.generator = generator_of(spec, problem) if self.memory else None
        self.first, self.runs = self._short_step(), list[list[HomeRun]]()
        self.runs_at(0)

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the outputs as one vector, as long as the metric of the state says."""
        z = self.problem.outputs(theta).detach().flatten(1)
        return self._root(z[None]).reshape(-1) / self.n**0.5

    def _take(self, h: float, phi: Reparameterization | None = None) -> Tensor:
        return run_optimizer(self.spec, self.problem, h, self.count, phi)

    def _short_step(self) -> float:
        """A step size at which |d| is at most `NUDGE` times |theta|, or little more."""
        h, x = STEP, self.problem.theta0
        most = NUDGE * max(float(x.norm()), 0.1 * len(x) ** 0.5)
        for _ in range(8):
            way = float((self._take(h) - x).norm())
            if way <= 2 * most:
                break
            h *= max(most / way, 1e-6)
        return h

    def runs_at(self, level: int) -> list[HomeRun]:
        """Return the home runs at the step sizes divided by 8 `level` times."""
        while len(self.runs) <= level:
            scale = self.first * 8.0 ** -len(self.runs)
            self.runs.append([self._home(scale * c) for c in SIZES])
        return self.runs[level]

    def _home(self, h: float) -> HomeRun:
        x = self.problem.theta0
        way = self._take(h) - x
        end = self.outputs(x + way)
        length, gone = float((self.A @ way).norm()), float((end - self.z).norm())
        if not min(length, gone) > 1e3 * EPS * float(self.A.norm() * way.norm()):
            raise Diverged("the step does not change the outputs")
        draw = np.random.default_rng(0).standard_normal(len(x))
        units = 8 * EPS * (x.abs() + x.square().mean().sqrt())  # zeros move too
        nudged = x + units * torch.as_tensor(draw).to(x)
        again = run_optimizer(self.spec, self.problem.at(nudged), h, self.count)
        noise = float((self.A @ (again - nudged - way)).norm()) / length
        moved = float((self.outputs(again) - end).norm()) / gone
        rounding = EPS * float(self.z.norm()) / gone
        return HomeRun(h, way, end, SAFETY * max(noise, moved, rounding))

    def defect(self, phi: Reparameterization) -> Defect:
        """Return the defect of the step, with its verdict."""
        for level in range(RETRIES + 1):
            d = self._defect(phi, self.runs_at(level))
            if d.verdict is not Verdict.UNDECIDED or d.floor > NUDGE:
                break
        return d

    def _defect(self, phi: Reparameterization, runs: list[HomeRun]) -> Defect:
        x = self.problem.theta0
        y = phi.forward(x)
        gaps, firsts, one = [], [], [x.new_ones(1)] * len(runs)
        for run in runs:
            end = self._take(run.h, phi)
            back = directional(phi.inverse, y, phi.forward(end) - y)
            gone = float((run.end - self.z).norm())
            gaps.append((self.outputs(end) - run.end) / gone)
            firsts.append(self.A @ (back - run.way) / float((self.A @ run.way).norm()))
        hs, floor = [run.h for run in runs], max(run.floor for run in runs)
        ends, first = (summarize(hs, e, one, "metric") for e in (gaps, firsts))
        if floor > NUDGE:
            verdict = Verdict.UNDECIDED
        elif max(ends.values) <= floor and not ends.slope > 1.75:
            verdict = Verdict.EXACT
        else:
            verdict = decide(first.values, first.slope, first.plateau, floor)
            verdict = Verdict.NATURAL if verdict is Verdict.EXACT else verdict
        found = replace(ends, verdict=verdict, plateau=first.plateau, floor=floor)
        if verdict is Verdict.UNDECIDED:
            return replace(found, note=self._why(floor))
        return self._lawful(phi, found) if verdict.closes and self.memory else found

    def _why(self, floor: float) -> str:
        if not self.clear:
            return f"round-off: condition number {self.condition:.0e}"
        if floor > NUDGE:
            return f"round-off {floor:.0e}: a kink, or a stiff rule"
        return "no order shows at these step sizes"

    def _lawful(self, phi: Reparameterization, d: Defect) -> Defect:
        """A memory is seen by the generator's law at the state, or not at all."""
        if self.generator is None:
            return replace(d, note=UNSEEN) if d.verdict.closes else d
        rng = np.random.default_rng(1)
        state = draw_state(self.generator, self.problem, self.problem.theta0, rng)
        failure = law_failure(self.generator, self.problem, state, phi)
        floor = 10 * SAFETY * EPS * self.condition**0.5
        if failure <= floor:
            return d
        broken = failure > max(10 * floor, 1e-6)
        verdict = Verdict.UNNATURAL if broken else Verdict.UNDECIDED
        note = f"the generator's law fails by {failure:.1e}, round-off {floor:.0e}"
        return replace(d, verdict=verdict, plateau=failure, floor=floor, note=note)


def gather(defects: list[Defect]) -> Defect:
    """Return the defect that decides among those of several states.

    One state where the square stays open refutes; where it closes at all states that
    decide, the least exact of them speaks for the rest.
    """
    decided = [d for d in defects if d.verdict is not Verdict.UNDECIDED]
    if not decided:
        return defects[0]
    order = (Verdict.EXACT, Verdict.NATURAL, Verdict.UNNATURAL)
    return max(decided, key=lambda d: (order.index(d.verdict), bool(d.note), d.plateau))


def sites(
    spec: OptimizerSpec, problem: Problem, count: int = 2, seed: int = 0
) -> tuple[list[Site], str]:
    """Return states at which the optimizer makes a step, and why others failed.

    The first is the start of the problem; the others lie around it, each parameter moved
    by 0.3 N(0, 1) times the root mean square of all.

    Args:
        spec: the optimizer.
        problem: the start.
        count: of states.
        seed: of the draws.
    """
    rng, x = np.random.default_rng(seed), problem.theta0
    size = 0.3 * float(x.square().mean().sqrt()) if float(x.norm()) > 0 else 0.1
    found, why = [], ""
    for k in range(count):
        draw = torch.as_tensor(rng.standard_normal(len(x))).to(x)
        try:
            found.append(Site(spec, problem.at(x + size * draw if k else x)))
        except (Diverged, torch.linalg.LinAlgError) as error:
            why = why or str(error)
    return found, why
