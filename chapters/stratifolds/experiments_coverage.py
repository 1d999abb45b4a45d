"""How often the sampler's error bar holds the exact learning coefficient.

Mixture A, truth N(0, 1), and two regressions of noise on a normal input, y = b a x and
y = b tanh(a x), each on many samples of 300 points; on each the exact grid, and 32 chains
of 1500 steps from random starts beside the singular set. The bar is `interval`, that of
Student's law for the means of the chains. The step and its range were chosen on samples
5000 to 5129 of mixture A; the tables have others, and nothing was chosen on the regressions.

geolib sweep coverage --size full
geolib sweep coverage-regressions --size full
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds import ChartLoss, MixtureKL, learning_coefficient, mixture_a
from geolib.sweep import Sweep, grid

POINTS, BLOCK, FIRST = 300, 10, 10_000
# first sample, and blocks
REGRESSIONS = {"y = b a x": (60_000, 20), "y = b tanh(a x)": (70_000, 20)}
BOX = {"mixture A": [[0.0, -3.0], [1.0, 3.0]]}
SQUARE = [[-2.0, -2.0], [2.0, 2.0]]


@dataclass(frozen=True)
class Spec:
    """A block of samples of mixture A, by the number of its first one."""

    first: int
    samples: int = BLOCK
    steps: int = 1500
    chains: int = 32


@dataclass(frozen=True)
class RegressionSpec(Spec):
    """The same of a regression."""

    model: str = "y = b a x"


def regression(
    x: Tensor, y: Tensor, act: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Half the mean square of y - b act(a x), less that of y."""

    def loss(theta: Tensor) -> Tensor:
        f = theta[:, 1:] * act(theta[:, :1] * x)
        return (f * (0.5 * f - y)).mean(1)

    return loss


def problem(model: str, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
    """The loss on one sample; it is zero on the singular set."""
    x = torch.tensor(rng.standard_normal(POINTS))
    if model == "mixture A":
        law = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return ChartLoss(MixtureKL(law, data=x), mixture_a().chart)
    y = torch.tensor(rng.standard_normal(POINTS))
    return regression(x, y, torch.tanh if "tanh" in model else lambda t: t)


def trial(
    model: str, number: int, steps: int = 1500, chains: int = 32
) -> tuple[float, float]:
    """The sampler's distance from the grid, and half its interval of 95 %."""
    rng = np.random.default_rng([5, number])
    loss = problem(model, rng)
    low, high = torch.tensor(BOX.get(model, SQUARE), dtype=torch.float64)
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
    model = getattr(spec, "model", "mixture A")
    found = [trial(model, number, spec.steps, spec.chains) for number in numbers]
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

COVERAGE_REGRESSIONS = Sweep(
    "coverage-regressions",
    run,
    {
        "small": lambda: [RegressionSpec(0, samples=2, steps=200, chains=8)],
        "book": lambda: [RegressionSpec(60_000)],
        "full": lambda: [
            RegressionSpec(first, model=model)
            for model, (start, blocks) in REGRESSIONS.items()
            for first in range(start, start + blocks * BLOCK, BLOCK)
        ],
    },
    text="The same of two regressions whose truth is singular.",
    about={"points": POINTS},
)
