"""Curves of a training and a population loss, and following equations for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geolib.core import Trajectory, integrate

MOST = 30_000  # evaluations of a theory's equations: seconds; T t = 3 takes some 300


class StiffError(ValueError):
    """A theory's equations do not reach the last time in what they may cost."""


class Curves(NamedTuple):
    """A theory's training and population loss at the requested times.

    Attributes:
        train: (T,) training loss.
        population: (T,) population loss.
    """

    train: np.ndarray
    population: np.ndarray

    def moved(self, step: Curves, share: float) -> Curves:
        """These curves with `share` times a correction added."""
        return Curves(*(a + share * b for a, b in zip(self, step, strict=True)))


def logistic(start: float | np.ndarray, growth: float | np.ndarray) -> np.ndarray:
    r"""The solution of the flow along one common eigenvector of A and S.

    .. math:: a' = 4 x a (1 - a), \qquad
        a = \frac{a_0}{a_0 + (1 - a_0)\, e^{-4xt}}

    Args:
        start: a_0.
        growth: x t.

    Examples:
        >>> float(logistic(0.5, np.array(0.0)))
        0.5
    """
    return np.asarray(start / (start + (1 - start) * np.exp(-4 * growth)))


def solve(field, y0: np.ndarray, times: np.ndarray, rtol: float, atol: float):  # type: ignore[no-untyped-def]
    """States (T, size) of y' = field(t, y) from time 0, by SciPy's DOP853.

    The theories' equations are small and smooth: an eighth-order pair reaches the
    1e-9 at which they are compared with far fewer evaluations than `core.integrate`.

    Raises:
        StiffError: the equations are too stiff to reach the last time.
    """
    from scipy.integrate import solve_ivp  # a third of a second to import

    if times[-1] == 0:
        return np.repeat(y0[None], times.size, 0)
    left, end = iter(range(MOST)), times[-1]

    def stop(t: float) -> StiffError:
        return StiffError(
            f"times: the theory's equations are too stiff, they reached {t:.3g} of "
            f"{end:.3g}; expected an earlier end, or rho and kappa nearer to one"
        )

    def counted(t: float, y: np.ndarray) -> np.ndarray:
        if next(left, None) is None:
            raise stop(t)
        return np.asarray(field(t, y))

    with np.errstate(over="ignore", invalid="ignore"):  # steps that are then rejected
        out = solve_ivp(counted, (0.0, end), y0, "DOP853", times, rtol=rtol, atol=atol)
    if out.status != 0:
        raise stop(max(out.t, default=0.0))
    return out.y.T


def follow(
    flow: Callable[[Tensor], Tensor],
    start: Tensor,
    times: np.ndarray,
    read: Callable[[Tensor, Tensor, Tensor], Any],
    **options: Any,
) -> tuple[list[Any], Trajectory]:
    """What is read off a batch of flows y' = flow(y) from time 0, and their cost.

    `read(y, dy, e)` gets the state, its velocity and the sum of the local errors at
    each of the times; the states themselves are dropped.
    """
    rows: list[Any] = []

    def observer(t: float, y: Tensor, dy: Tensor, e: Tensor) -> None:
        if t >= times[0]:
            rows.append(read(y, dy, e))

    grid = times.tolist() if times[0] == 0 else [0.0, *times.tolist()]
    options = {"max_steps": 20_000, "observer": observer, "batched": True, **options}
    with torch.no_grad():
        return rows, integrate(lambda _, y: flow(y), start, grid, **options)
