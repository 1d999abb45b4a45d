"""How often the sampler's error bar holds the exact learning coefficient.

`python coverage.py` in this folder measures `measured/coverage.json`: mixture A, truth
N(0, 1), and two regressions of noise on a normal input, y = b a x and y = b tanh(a x), each
on many samples of 300 points; on each the exact grid, and 32 chains of 1500 steps from
random starts beside the singular set. The bar is `interval`, that of Student's law for the
means of the chains. The step and its range were chosen on samples 5000 to 5129 of mixture A;
the table has others, and nothing was chosen on the regressions. Blocks that are in it are not
measured again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds import ChartLoss, MixtureKL, learning_coefficient, mixture_a
from geolib.sweep import keep, measured

STORED = Path(__file__).parent / "measured" / "coverage.json"
POINTS, CHAINS, STEPS, BLOCK, BLOCKS = 300, 32, 1500, 10, 20
FIRST = {"mixture A": 10_000, "y = b a x": 60_000, "y = b tanh(a x)": 70_000}
BOX = {"mixture A": [[0.0, -3.0], [1.0, 3.0]]}
SQUARE = [[-2.0, -2.0], [2.0, 2.0]]


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
    model: str, number: int, steps: int = STEPS, chains: int = CHAINS
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


if __name__ == "__main__":
    about = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": torch.__version__.split("+")[0],
        "machine": platform.machine(),
        "chains": CHAINS,
        "steps": STEPS,
    }
    for model, first in FIRST.items():
        for start in range(first, first + BLOCKS * BLOCK, BLOCK):
            if str(start) not in measured(STORED).entries:
                found = [trial(model, start + k) for k in range(BLOCK)]
                rounded = [[float(f"{v:.3g}") for v in row] for row in found]
                keep(STORED, {str(start): rounded}, about)
