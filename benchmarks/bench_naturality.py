"""The natural optimizers of the naturality chapter, as a user of torch meets them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.bench_core import DAMPING, STEP, million
from benchmarks.harness import Result, benchmark, race
from geolib.naturality import NaturalGradient


@benchmark("naturality.optimizer_step", bar="<= 2.2", size=STEP)
def optimizer_step() -> Result:
    """One `NaturalGradient(module).step(closure)`, against one gradient of the loss"""
    problem = million()
    # a step this small leaves the network where it is, so that rounds are alike
    optimizer = NaturalGradient(problem.module, lr=1e-12, damping=DAMPING)

    def closure() -> tuple[torch.Tensor, torch.Tensor]:
        z = problem.module(problem.x)
        return z, 0.5 * (z - problem.t).square().sum() / len(z)

    def gradient() -> Callable:
        def call() -> None:
            problem.gradient()

        return call

    def ours() -> None:
        optimizer.step(closure)

    return race(ours, {"torch gradient": gradient}, rounds=11)
