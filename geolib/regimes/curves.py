"""What a theory returns: a training curve and a population curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Curves(NamedTuple):
    """Training and population loss at the requested times, both of shape (T,)."""

    train: np.ndarray
    population: np.ndarray


def solve(field, y0: np.ndarray, times: np.ndarray, rtol: float, atol: float):  # type: ignore[no-untyped-def]
    """States (T, size) of y' = field(t, y) from time 0, by an eighth-order pair.

    Raises:
        RuntimeError: the integration stopped before the last time.
    """
    from scipy.integrate import solve_ivp  # a third of a second to import

    if times[-1] == 0:
        return np.repeat(y0[None], times.size, 0)

    out = solve_ivp(field, (0.0, times[-1]), y0, "DOP853", times, rtol=rtol, atol=atol)
    if out.status != 0:
        raise RuntimeError(f"theory's equations stopped: {out.message}")
    return out.y.T
