"""Measured errors of the solved regimes, cell by cell of the phase map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.sweep.runner import Sweep
from geolib.sweep.spec import grid


@dataclass(frozen=True)
class Spec:
    """One cell: h = d 2^log_h, n = d 2^log_n, initial variance scale / (h + d)."""

    log_h: int
    log_n: int
    d: int = 64
    scale: float = 0.3
    seeds: int = 2


def run(spec: Spec) -> dict[str, Any]:
    """Simulate the cell and score every solved theory on it."""
    from geolib.regimes import Setup, measure_cell

    h = max(1, round(spec.d * 2.0**spec.log_h))
    n = max(1, round(spec.d * 2.0**spec.log_n))
    setup = Setup(spec.d, h, n, spec.scale / (h + spec.d))
    cell = measure_cell(setup, seeds=spec.seeds)
    return {
        "h": h,
        "n": n,
        "errors": cell.errors,
        "best": cell.best(),
        "regime": cell.regime.name,
        "predicted": cell.regime.best,
    }


def full() -> Sequence[Spec]:
    """A 13 by 13 map at d = 128, averaged over eight seeds, at three scales."""
    return grid(
        Spec, scale=[0.1, 0.3, 1.0], log_h=range(-6, 7), log_n=range(-6, 7), d=128,
        seeds=8,
    )  # fmt: skip


SWEEP = Sweep(
    "phase-map",
    run,
    {
        "small": lambda: grid(Spec, log_h=[-3, 0, 3], log_n=[-3, 0, 3], d=16),
        "book": lambda: grid(Spec, log_h=range(-5, 6), log_n=range(-5, 6)),
        "full": full,
    },
    text="Error of every solved regime over hidden width and sample size.",
)
