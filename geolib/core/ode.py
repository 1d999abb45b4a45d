r"""Integrating a flow: adaptive Dormand-Prince 5(4), and fixed-step schemes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from geolib.core.validation import require_finite

Field = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta scheme: stages `a`, weights `b`, nodes `c`."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


EULER = Tableau(((),), (1.0,), (0.0,))
MIDPOINT = Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5))
RK4 = Tableau(
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 0.5, 0.5, 1.0),
)
DOPRI5 = Tableau(
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
)
# Fifth-order weights minus the embedded fourth-order ones: the error of a step.
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Quartic interpolant inside a step (Hairer, Norsett, Wanner I, II.6): weights of the
# stages in its top coefficient.
DENSE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
FIXED = {"euler": EULER, "midpoint": MIDPOINT, "rk4": RK4}


@dataclass(frozen=True)
class Trajectory:
    """A solution of the flow: `states[i]` at `times[i]`, and what it cost."""

    times: Tensor
    states: Tensor
    evaluations: int
    steps: int
    rejected: int
    method: str

    @property
    def final(self) -> Tensor:
        """The state at the last time."""
        return self.states[-1]


def flow(
    field: Field,
    y0: Tensor,
    times: Sequence[float] | Tensor,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    *,
    method: str = "dopri5",
    step: float | None = None,
    max_steps: int = 100_000,
) -> Trajectory:
    r"""Integrate an ordinary differential equation and report it at `times`.

    .. math:: \dot y = X(t, y), \qquad y(t_0) = y_0.

    `dopri5` is the adaptive pair of Dormand and Prince: each step keeps its estimated
    error below `atol + rtol * |y|` in root mean square over the entries; times inside
    a step come from its quartic interpolant. `euler`, `midpoint` and `rk4` take equal
    steps no longer than `step`, as many as bring them exactly to each time.

    Args:
        field: X, a function of the time (a float) and the state (a tensor).
        y0: state at `times[0]`; any shape; float64 is wise.
        times: at least one, strictly increasing or strictly decreasing.
        rtol, atol: tolerances of `dopri5`; positive.
        step: largest step of the fixed-step methods.
        max_steps: an honest stop for a stiff or divergent problem.

    Raises:
        ValueError: bad times, tolerances, method or step; a non-finite field.
        RuntimeError: `max_steps` used up, or the step fell below rounding.

    Cost: 6 evaluations of the field a step (`dopri5`), 4 (`rk4`), 2 or 1.

    Source: Dormand and Prince 1980; interpolant as in Hairer, Norsett, Wanner.

    Examples:
        >>> y = flow(lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
        >>> abs(y.final.item() - math.exp(-1)) < 1e-8
        True
    """
    grid = _check_times(times)
    if not y0.is_floating_point():
        raise TypeError(f"y0: expected a floating dtype, got {y0.dtype}")
    require_finite("y0", y0)
    counter = _Counted(field)
    if method == "dopri5":
        if not (rtol > 0 and atol > 0):
            raise ValueError(
                f"rtol, atol: expected positive tolerances, got {rtol} and {atol}"
            )
        states, steps, rejected = _adaptive(counter, y0, grid, rtol, atol, max_steps)
    elif method in FIXED:
        if step is None or not step > 0:
            raise ValueError(f"step: {method} needs a positive step, got {step!r}")
        states, steps = _fixed(counter, FIXED[method], y0, grid, step, max_steps)
        rejected = 0
    else:
        raise ValueError(f"method: expected dopri5, {', '.join(FIXED)}; got {method!r}")
    t = torch.tensor(grid, dtype=torch.float64)
    return Trajectory(t, torch.stack(states), counter.calls, steps, rejected, method)


class _Counted:
    """The field, its calls counted and its values checked."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.calls = 0

    def __call__(self, t: float, y: Tensor) -> Tensor:
        self.calls += 1
        k = self.field(t, y)
        if k.shape != y.shape:
            raise ValueError(
                f"field: expected shape {tuple(y.shape)}, got {tuple(k.shape)}"
            )
        if not bool(torch.isfinite(k).all()):
            raise ValueError(f"field: not finite at time {t:.6g}")
        return k


def _combine(y: Tensor, h: float, weights: Sequence[float], ks: list[Tensor]) -> Tensor:
    for w, k in zip(weights, ks, strict=False):
        if w:
            y = torch.add(y, k, alpha=h * w)
    return y


def _stages(
    f: _Counted, tab: Tableau, t: float, y: Tensor, h: float, first: Tensor | None
) -> list[Tensor]:
    ks: list[Tensor] = [] if first is None else [first]
    for row, c in list(zip(tab.a, tab.c, strict=True))[len(ks) :]:
        ks.append(f(t + c * h, _combine(y, h, row, ks)))
    return ks


def _fixed(
    f: _Counted, tab: Tableau, y: Tensor, grid: list[float], step: float, limit: int
) -> tuple[list[Tensor], int]:
    states, taken = [y], 0
    for t0, t1 in pairwise(grid):
        count = math.ceil(abs(t1 - t0) / step * (1 - 1e-12))
        h = (t1 - t0) / count
        taken += count
        if taken > limit:
            raise RuntimeError(f"flow: {taken} steps needed, max_steps is {limit}")
        for i in range(count):
            ks = _stages(f, tab, t0 + i * h, y, h, None)
            y = _combine(y, h, tab.b, ks)
        states.append(y)
    return states, taken


def _adaptive(
    f: _Counted, y: Tensor, grid: list[float], rtol: float, atol: float, limit: int
) -> tuple[list[Tensor], int, int]:
    states, steps, rejected = [y], 0, 0
    if len(grid) == 1:
        return states, 0, 0
    t, end = grid[0], grid[-1]
    sign = 1.0 if end > t else -1.0
    k = f(t, y)
    h = sign * _first_step(f, t, y, k, abs(end - t), sign, rtol, atol)
    while len(states) < len(grid):
        if steps + rejected >= limit:
            raise RuntimeError(f"flow: max_steps {limit} used up at time {t:.6g}")
        if sign * (t + 1.01 * h - end) > 0:
            h = end - t
        if abs(h) <= 4e-16 * max(abs(t), abs(end)):
            raise RuntimeError(f"flow: step fell to {h:.2g} at time {t:.6g}; stiff?")
        ks = _stages(f, DOPRI5, t, y, h, k)
        new = _combine(y, h, DOPRI5.b, ks)
        scale = atol + rtol * torch.maximum(y.abs(), new.abs())
        error = _rms(_combine(torch.zeros_like(y), h, ERROR, ks) / scale)
        if error > 1:
            rejected += 1
            h *= max(0.2, 0.9 * error**-0.2)
            continue
        steps += 1
        t_new = end if h == end - t else t + h
        while len(states) < len(grid) and sign * (t_new - grid[len(states)]) >= 0:
            s = (grid[len(states)] - t) / h
            states.append(new if s >= 1 else _interpolate(s, h, y, new, ks))
        t, y, k = t_new, new, ks[-1]
        h *= min(5.0, 0.9 * max(error, 1e-10) ** -0.2)
    return states, steps, rejected


def _interpolate(
    s: float, h: float, y: Tensor, new: Tensor, ks: list[Tensor]
) -> Tensor:
    difference = new - y
    bend = h * ks[0] - difference
    r = difference - h * ks[-1] - bend
    top = _combine(torch.zeros_like(y), h, DENSE, ks)
    return y + s * (difference + (1 - s) * (bend + s * (r + (1 - s) * top)))


def _first_step(
    f: _Counted,
    t: float,
    y: Tensor,
    k: Tensor,
    span: float,
    sign: float,
    rtol: float,
    atol: float,
) -> float:
    """A step whose Euler increment is small beside the state (Hairer II.4)."""
    scale = atol + rtol * y.abs()
    d0, d1 = _rms(y / scale), _rms(k / scale)
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, span)
    d2 = _rms((f(t + sign * h0, y + sign * h0 * k) - k) / scale) / h0
    top = max(d1, d2)
    h1 = max(1e-6, 1e-3 * h0) if top <= 1e-15 else (0.01 / top) ** 0.2
    return min(100 * h0, h1, span)


def _rms(t: Tensor) -> float:
    return float(t.norm()) / math.sqrt(max(t.numel(), 1))


def _check_times(times: Sequence[float] | Tensor) -> list[float]:
    grid = [float(t) for t in times]
    steps = [b - a for a, b in pairwise(grid)]
    if not grid or not all(math.isfinite(t) for t in grid):
        raise ValueError(f"times: expected finite numbers, got {grid}")
    if not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        raise ValueError("times: expected a strictly monotone sequence")
    return grid
