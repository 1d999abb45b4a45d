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
    import numpy as np

    from geolib.regimes import REGIMES, Setup, classify_regime, simulate, theory_curves

    h = max(1, round(spec.d * 2.0**spec.log_h))
    n = max(1, round(spec.d * 2.0**spec.log_n))
    setup = Setup(spec.d, h, n, spec.scale / (h + spec.d))
    t = setup.times(25)
    path = simulate(setup, t, seeds=spec.seeds, rtol=1e-5, atol=1e-7)

    def error(name: str) -> float:
        """The worse error of the two losses' changes, over the largest change."""
        worst = 0.0
        curves = theory_curves(name, t, setup, depth=6)
        for loss, theory in zip((path.train, path.population), curves, strict=True):
            mean = loss.mean(0) / path.d
            moved = mean - mean[0]
            away = np.abs(moved - (theory - theory[0])).max()
            worst = max(worst, float(away / np.abs(moved).max()))
        return worst

    errors = {name: error(name) for name in REGIMES[:4]}
    regime = classify_regime(setup)
    return {
        "h": h,
        "n": n,
        "errors": errors,
        "best": min(errors, key=lambda name: errors[name]),
        "regime": regime.name,
        "predicted": regime.best,
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
