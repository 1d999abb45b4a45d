r"""The one integrator: adaptive Dormand-Prince 5(4), and schemes of fixed step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from .validation import expect

Field = Callable[[float, Tensor], Tensor]
Observer = Callable[[float, Tensor, Tensor, Tensor], None]


# Explicit Runge-Kutta schemes: stages, weights, nodes.
Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...], tuple[float, ...]]
FIXED: dict[str, Tableau] = {
    "euler": (((),), (1.0,), (0.0,)),
    "midpoint": (((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
    "rk4": (
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        (0.0, 0.5, 0.5, 1.0),
    ),
}
SHRINK, GROW, SAFETY = 0.2, 5.0, 0.9  # bounds on the change of a step, and its caution


@functools.cache
def dormand_prince() -> tuple[Tableau, list[float], list[list[float]]]:
    """Scipy's table of the pair, the weights of a step's error, fifth minus fourth, and
    those of the powers of the share of a step in the state at that share.
    """
    from scipy.integrate import RK45  # slow to import

    rows = [tuple(row[:k]) for k, row in enumerate(RK45.A.tolist())]
    b, nodes = (*RK45.B.tolist(), 0.0), (*RK45.C.tolist(), 1.0)
    return ((*rows, b[:-1]), b, nodes), (-RK45.E).tolist(), RK45.P.tolist()


class IntegrationError(RuntimeError):
    """The flow could not be followed: it left the finite numbers or took too long."""


@dataclass(frozen=True)
class Trajectory:
    """A solution of an initial value problem, and what it cost.

    Attributes:
        times: as asked for, shape (k,), float64.
        states: `states[i]` at `times[i]`, shape (k, ...); with an observer only the
            last one, shape (1, ...).
        error: the sum of the local errors of all steps, shape of the state; to first
            order the state's own error where the flow neither stretches nor contracts.
            Zero for `midpoint` and `rk4`, which estimate none.
        evaluations: calls of the field.
        steps, rejected: steps taken and thrown away.
        sizes: lengths of the steps taken.
        method: the scheme.
    """

    times: Tensor
    states: Tensor
    error: Tensor
    evaluations: int
    steps: int
    rejected: int
    sizes: tuple[float, ...]
    method: str

    @property
    def final(self) -> Tensor:
        """The state at the last time."""
        return self.states[-1]


def integrate(
    field: Field,
    y0: Tensor,
    times: Sequence[float] | Tensor,
    rtol: Annotated[float, "rtol > 0"] = 1e-7,
    atol: Annotated[float, "atol > 0"] = 1e-9,
    *,
    method: str = "dopri5",
    observer: Observer | None = None,
    batched: bool = False,
    step: float | None = None,
    max_steps: int = 100_000,
) -> Trajectory:
    r"""Integrate an ordinary differential equation and report it at `times`.

    .. math:: \dot y = X(t, y), \qquad y(t_0) = y_0.

    `dopri5` is the adaptive pair of Dormand and Prince. A step from y to y' with the
    estimated error e is taken when, for each member of a batch,

    .. math:: \|e\| \le \mathrm{atol}\sqrt{N} + \mathrm{rtol}\,
        \max(\|y\|, \|y'\|),

    N numbers having that member. Times inside a step come from its quartic
    interpolant. `euler`, `midpoint` and `rk4` take equal steps no longer than `step`,
    as many as bring them exactly to each time.

    Args:
        field: X, a function of the time (a float) and the state (a tensor). It may
            return one buffer again and again, but not write to the state.
        y0: state at `times[0]`; any shape, dtype and device; float64 is wise.
        times: at least one, strictly increasing or strictly decreasing.
        rtol, atol: tolerances of `dopri5`; positive.
        method: dopri5, euler, midpoint or rk4.
        observer: called at each time with the time, the state, its velocity and the
            sum of the local errors so far, from which an error bar of anything read
            off the state follows. Steps then end exactly on the times, and states are
            dropped once they were seen.
        batched: the first axis of the state counts flows that share their steps; the
            tolerance then holds for each by itself.
        step: largest step of the fixed-step methods.
        max_steps: steps allowed, accepted and rejected ones together.

    Raises:
        ValueError: bad times, tolerances, method or step; a field of another shape,
            not finite at the start, or one that writes to the state.
        TypeError: y0 is not of a floating dtype.
        IntegrationError: `max_steps` used up, a step below rounding, a fixed-step
            iteration that left the finite numbers.

    Cost: 6 evaluations of the field a step (`dopri5`), 4 (`rk4`), 2 or 1; memory for
    ten states, and one more a time without an observer.

    Source: Dormand and Prince 1980; interpolant as in Hairer, Norsett and Wanner 1993,
    II.6; :eq:`drv-core-dopri-error` (derivations).

    Examples:
        >>> y = integrate(lambda t, y: -y, torch.ones(1).double(), [0.0, 1.0])
        >>> abs(y.final.item() - math.exp(-1)) < 1e-8
        True
    """
    grid = [float(t) for t in times]
    steps = [b - a for a, b in pairwise(grid)]
    expect(grid and all(map(math.isfinite, grid)), "times", "finite numbers", grid)
    monotone = all(s > 0 for s in steps) or all(s < 0 for s in steps)
    expect(monotone, "times", "a strictly monotone sequence", grid)
    expect(y0.numel(), "y0", "at least one number", tuple(y0.shape))
    run = _Run(field, y0, batched, observer, max_steps)
    if method == "dopri5":
        run.adaptive(grid, rtol, atol)
    else:
        expect(method in FIXED, "method", f"dopri5, {', '.join(FIXED)}", method)
        expect(step is not None, "step", f"a positive step, which {method} needs", step)
        run.fixed(grid, method, float(step or 0))
    found = torch.tensor(grid, dtype=torch.float64), torch.stack(run.states), run.error
    counts = run.evaluations, len(run.sizes), run.rejected
    return Trajectory(*found, *counts, tuple(run.sizes), method)


class _Stages:
    """The velocities of one step, (stages, ...), and weighted sums of them."""

    def __init__(self, tableau: Tableau, like: Tensor) -> None:
        rows, weights, self.c = tableau
        self.k = like.new_zeros(len(rows), *like.shape)
        self.rows, self.b = list(map(like.new_tensor, rows)), like.new_tensor(weights)

    def sum(self, weights: Tensor) -> Tensor:
        """One pass over memory, whatever the number of stages."""
        k = self.k[: len(weights)]
        return (weights @ k.reshape(len(weights), -1)).reshape(k.shape[1:])


@dataclass
class _Run:
    """One integration: where it is, what it has seen, what it has cost."""

    field: Field
    y: Tensor
    batched: bool
    observer: Observer | None
    max_steps: int

    def __post_init__(self) -> None:
        self.states: list[Tensor] = []
        self.error = torch.zeros_like(self.y)
        self.evaluations, self.rejected = 0, 0
        self.sizes: list[float] = []

    def velocity(self, t: float, y: Tensor) -> Tensor:
        self.evaluations += 1
        writes = 0 if y.is_inference() else y._version
        k = self.field(t, y)
        if not y.is_inference() and y._version != writes:
            raise ValueError("field: it writes to the state; return its own tensor")
        expect(k.shape == y.shape, "field", f"shape {tuple(y.shape)}", tuple(k.shape))
        return k

    def start(self, t: float) -> Tensor:
        """The velocity at the start, which must be finite."""
        k = self.velocity(t, self.y)
        if not bool(torch.isfinite(k).all()):
            raise ValueError(f"field: not finite at time {t:.6g}")
        return k

    def report(self, t: float, y: Tensor, k: Tensor) -> None:
        if self.observer is None:
            self.states.append(y)
        else:
            self.states = [y]
            self.observer(t, y, k.clone(), self.error)  # k may be a part of a buffer

    def count(self, t: float, end: float) -> None:
        """Refuse to go on when all steps are used up."""
        if len(self.sizes) + self.rejected >= self.max_steps:
            used = f"max_steps {self.max_steps} used up at time {t:.6g} of {end:.6g}"
            hint = "loosen rtol or shorten times"
            raise IntegrationError(f"no end in sight: {used}; {hint}")

    def fixed(self, grid: list[float], method: str, step: float) -> None:
        """Equal steps between the times; Euler's also sum their local errors."""
        s, y = _Stages(FIXED[method], self.y), self.y
        seen = self.observer is not None
        k = self.start(grid[0]) if seen or len(grid) > 1 else y
        self.report(grid[0], y, k)
        for t0, t1 in pairwise(grid):
            count = math.ceil(abs(t1 - t0) / step * (1 - 1e-12))
            h = (t1 - t0) / count
            for i in range(count):
                self.count(t0 + i * h, grid[-1])
                t = t0 + i * h
                for j, (row, c) in enumerate(zip(s.rows, s.c, strict=True)):
                    if j:
                        k = self.velocity(t + c * h, y + h * s.sum(row))
                    s.k[j] = k
                y = y + h * s.sum(s.b)
                self.sizes.append(abs(h))
                last = i == count - 1 and t1 == grid[-1]
                if not last or seen:
                    k = self.velocity(t + h, y)
                if method == "euler" and (not last or seen):
                    self.error = self.error + (h / 2) * (k - s.k[0])
            if not bool(torch.isfinite(y).all()):
                why = f"not finite; a step of {abs(h):.3g} is too long"
                what = f"{method} diverged before time {t1:.6g}"
                raise IntegrationError(f"{what}: {why}")
            self.report(t1, y, k)

    def adaptive(self, grid: list[float], rtol: float, atol: float) -> None:
        """Dormand-Prince; lands on the times for an observer, else interpolates."""
        t, y, end = grid[0], self.y, grid[-1]
        if len(grid) == 1 and self.observer is None:
            return self.report(t, y, y)
        table, *weights = dormand_prince()
        sign, s = (1.0 if end >= t else -1.0), _Stages(table, y)
        errors, dense = map(y.new_tensor, weights)
        s.k[0] = self.start(t)
        self.report(t, y, s.k[0])
        step = self._first_step(y, s.k[0], rtol, atol)
        ahead = iter(grid[1:])
        goal = next(ahead, None)
        while goal is not None:
            stop = end if self.observer is None else goal
            self.count(t, end)
            left = abs(stop - t)
            size = min(step, left)
            h = sign * size
            for j, row in enumerate(s.rows[1:], 1):
                new = y + h * s.sum(row)
                s.k[j] = self.velocity(t + s.c[j] * h, new)
            local = h * s.sum(errors)
            ratio = self._ratio(local, y, new, rtol, atol)
            ratio = ratio if math.isfinite(ratio) else 1e6
            grow = min(GROW, max(SHRINK, SAFETY * max(ratio, 1e-10) ** -0.2))
            if ratio <= 1:
                there = stop if size == left else t + h
                self.sizes.append(size)
                self.error = self.error + local
                while goal is not None and sign * (there - goal) >= 0:
                    share, z = (goal - t) / h, new
                    if goal != there:
                        powers = y.new_tensor([share**k for k in (1, 2, 3, 4)])
                        z = y + h * s.sum(dense @ powers)
                    self.report(goal, z, s.k[6])
                    goal = next(ahead, None)
                s.k[0] = s.k[6].clone()
                # A step cut short to land on a time says nothing against `step`.
                step = max(step, size * grow) if size < step else size * grow
                t, y = there, new
            else:
                self.rejected += 1
                step = size * grow
            if step < 1e-13 * max(abs(t), 1e-3):
                what = f"step fell to {step:.1e} at time {t:.6g}"
                raise IntegrationError(f"{what}: stiff, or rtol and atol are too small")

    def _norms(self, y: Tensor) -> Tensor:
        return y.reshape(len(y) if self.batched else 1, -1).norm(dim=1)

    def _allowed(self, y: Tensor, atol: float) -> float:
        return atol * math.sqrt(y[0].numel() if self.batched else y.numel())

    def _ratio(
        self, local: Tensor, y: Tensor, new: Tensor, rtol: float, atol: float
    ) -> float:
        size = torch.maximum(self._norms(y), self._norms(new))
        allowed = self._allowed(y, atol) + rtol * size
        return float((self._norms(local) / allowed).max())

    def _first_step(self, y: Tensor, k: Tensor, rtol: float, atol: float) -> float:
        """The time in which the slowest to notice would move by rtol^(1/5) of itself."""
        speed = self._norms(k).clamp_min(1e-300)
        size = self._norms(y).clamp_min(self._allowed(y, atol))
        return 0.3 * rtol**0.2 * float((size / speed).min())
