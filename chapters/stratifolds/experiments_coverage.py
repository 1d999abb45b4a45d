"""How often the sampler's error bar holds the exact learning coefficient.

Mixture A, truth N(0, 1), many samples of 300 points; on each the exact grid, and 32
chains of 1500 steps from random starts. The bar is `interval`, that of Student's law for
the means of the chains. The step and its range were chosen on samples 5000 to 5129; the
table has others.

geolib sweep coverage --size full
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from geolib.stratifolds import ChartLoss, MixtureKL, learning_coefficient, mixture_a
from geolib.sweep import Sweep, grid

POINTS, BLOCK, FIRST = 300, 10, 10_000


@dataclass(frozen=True)
class Spec:
    """A block of samples, by the number of its first one."""

    first: int
    samples: int = BLOCK
    steps: int = 1500
    chains: int = 32


def trial(number: int, steps: int = 1500, chains: int = 32) -> tuple[float, float]:
    """The sampler's distance from the grid, and half its interval of 95 %."""
    rng = np.random.default_rng([5, number])
    law = torch.tensor([1.0, 0.0], dtype=torch.float64)
    A, x = mixture_a(), torch.tensor(rng.standard_normal(POINTS))
    loss = ChartLoss(MixtureKL(law, data=x), A.chart)
    low, high = torch.tensor([[0.0, -3.0], [1.0, 3.0]], dtype=torch.float64)
    exact = learning_coefficient(loss, POINTS, low, high, base=0.0, points=[80, 160])
    begin = np.stack([rng.random(chains), 0.1 * rng.standard_normal(chains)], 1)
    drawn = learning_coefficient(
        loss, POINTS, low, high, base=0.0, sampler="mala", seed=number,
        theta0=torch.tensor(begin), steps=steps, step=1.6,
    )  # fmt: skip
    return drawn.value - exact.value, drawn.interval()[1] - drawn.value


def held(trials: list[tuple[float, float]]) -> int:
    """How many bars hold the exact value."""
    return sum(abs(distance) <= bar for distance, bar in trials)


def run(spec: Spec) -> dict[str, list[list[float]]]:
    """Distance and bar of each sample of a block, to three digits."""
    numbers = range(spec.first, spec.first + spec.samples)
    found = [trial(number, spec.steps, spec.chains) for number in numbers]
    return {"trials": [[float(f"{v:.3g}") for v in row] for row in found]}


COVERAGE = Sweep(
    "coverage",
    run,
    {
        "small": lambda: [Spec(0, samples=2, steps=200, chains=8)],
        "book": lambda: [Spec(FIRST)],
        "full": lambda: grid(Spec, first=range(FIRST, FIRST + 20 * BLOCK, BLOCK)),
    },
    text="Whether the sampler's bar holds the exact learning coefficient, by sample.",
    about={"points": POINTS},
)
