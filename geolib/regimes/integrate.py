"""Runge-Kutta integration of a batch of matrix flows, with an estimate of its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geolib.core.ode import DOPRI5, ERROR

# `core.flow` keeps every state of one flow; here a whole batch runs on one step size,
# states are read and dropped, and local errors are summed. The tableau is the same.
STAGES = DOPRI5.a[1:]

Field = Callable[[Tensor], Tensor]
Observe = Callable[[Tensor, Tensor, Tensor], None]


class IntegrationError(RuntimeError):
    """The flow could not be followed: it left the finite numbers or took too long."""


@dataclass
class IntegrationStats:
    """What an integration cost."""

    evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    steps: list[float] = field(default_factory=list)


def adaptive(
    flow: Field,
    y: Tensor,
    times: Sequence[float],
    observe: Observe,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 20_000,
) -> IntegrationStats:
    r"""Follow y' = flow(y) by Dormand-Prince 5(4), landing on every output time.

    The step is accepted when, for each member of the batch,

    .. math:: \|e\|_F \le \mathrm{atol}\sqrt{\mathrm{numel}} + \mathrm{rtol}\,\|y\|_F ,

    with e the difference of the two embedded solutions. `observe(y, dy, e)` is called
    at each output time with the state, its velocity and the sum of the local errors so
    far, from which the caller estimates the error of what it reads off.

    Args:
        flow: the vector field; must not depend on time.
        y: (batch, ...) initial state at time 0.
        times: increasing, from 0 or later.
        observe: called once an output time.
        rtol, atol: see above.
        max_steps: accepted and rejected steps allowed in all.

    Raises:
        IntegrationError: the state or the step became too large or too small.

    Cost: six evaluations of `flow` a step; memory for ten states.

    Source: Dormand and Prince 1980.

    Examples:
        >>> out = []
        >>> work = adaptive(lambda y: -y, torch.ones(1, 1, dtype=torch.float64),
        ...                 [1.0], lambda y, dy, e: out.append(y.item()))
        >>> abs(out[0] - math.exp(-1)) < 1e-6
        True
    """
    work = IntegrationStats(evaluations=1)
    k = torch.empty((7, *y.shape), dtype=y.dtype, device=y.device)
    k[0] = flow(y)
    drift = torch.zeros_like(y)
    now, step = 0.0, _first_step(y, k[0], rtol)
    for end in times:
        while end - now > 1e-14 * max(1.0, abs(end)):
            if work.accepted + work.rejected >= max_steps:
                raise IntegrationError(
                    f"no end in sight: {max_steps} steps reached t = {now:.3g} of "
                    f"{times[-1]:.3g}; loosen rtol or shorten times"
                )
            size = min(step, end - now)
            new = _stages(flow, y, k, size)
            work.evaluations += 6
            local = combine(ERROR, k) * size
            ratio = _ratio(local, y, new, rtol, atol)
            if not math.isfinite(ratio):
                ratio = 1e6
            if ratio <= 1:
                now = end if size == end - now else now + size
                y = new
                k[0] = k[6]
                drift += local
                work.accepted += 1
                work.steps.append(size)
            else:
                work.rejected += 1
            grow = min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
            # A step cut short to land on an output time says nothing against `step`.
            step = max(step, size * grow) if ratio <= 1 and size < step else size * grow
            if step < 1e-13 * max(now, 1e-3):
                raise IntegrationError(f"step fell to {step:.1e} at t = {now:.3g}")
        observe(y, k[0], drift)
    return work


def euler(
    flow: Field, y: Tensor, times: Sequence[float], observe: Observe, *, step: float
) -> IntegrationStats:
    r"""Follow y' = flow(y) by explicit Euler: full-batch gradient descent.

    .. math:: y_{k+1} = y_k + \epsilon f(y_k)

    Output times must be whole multiples of `step`, to rounding. The local errors that
    are summed for `observe` are :math:`\epsilon (f(y_{k+1}) - f(y_k)) / 2`.

    Raises:
        ValueError: a step that is not positive, or times off its grid.
        IntegrationError: the iteration diverged.

    Cost: one evaluation of `flow` a step.

    Source: Golikov, Gusev and Yarotsky 2026 (their own protocol).
    """
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step: expected a positive, finite number, got {step!r}")
    work = IntegrationStats(evaluations=1)
    velocity = flow(y)
    drift = torch.zeros_like(y)
    done = 0
    for end in times:
        target = round(end / step)
        if abs(target * step - end) > 1e-6 * step:
            raise ValueError(
                f"times: {end} is not a whole number of steps of {step}; "
                "fixed-step integration does not interpolate"
            )
        while done < target:
            y = y + step * velocity
            new = flow(y)
            drift += (step / 2) * (new - velocity)
            velocity = new
            done += 1
        work.evaluations += done - work.accepted
        work.accepted = done
        if not torch.isfinite(y).all():
            raise IntegrationError(
                f"gradient descent diverged before t = {end:.3g}; step {step} is too "
                "long (it must stay below 1 / (2 max eigenvalue))"
            )
        observe(y, velocity, drift)
    return work


def combine(weights: Sequence[float], k: Tensor) -> Tensor:
    """The weighted sum of the first stages in one pass over memory."""
    count = len(weights)
    w = torch.tensor(weights, dtype=k.dtype, device=k.device)
    return (w @ k[:count].reshape(count, -1)).reshape(k.shape[1:])


def _stages(flow: Field, y: Tensor, k: Tensor, size: float) -> Tensor:
    for i, row in enumerate(STAGES):
        new = torch.add(y, combine(row, k), alpha=size)
        k[i + 1] = flow(new)
    return new


def _norms(y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], -1).norm(dim=1)


def _ratio(local: Tensor, y: Tensor, new: Tensor, rtol: float, atol: float) -> float:
    size = torch.maximum(_norms(y), _norms(new))
    allowed = atol * math.sqrt(y[0].numel()) + rtol * size
    return float((_norms(local) / allowed).max())


def _first_step(y: Tensor, velocity: Tensor, rtol: float) -> float:
    if not torch.isfinite(velocity).all():
        raise IntegrationError("the initial velocity is not finite")
    speed = _norms(velocity).clamp_min(1e-300)
    return 0.3 * rtol**0.2 * float((_norms(y) / speed).min())
