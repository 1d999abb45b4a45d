"""How often the sampler's error bar holds the exact learning coefficient.

`python coverage.py` in this folder measures `measured/coverage.json`: mixture A, truth
N(0, 1), many samples of 300 points; on each the exact grid, and 32 chains of 1500 steps
from random starts. The bar is `interval`, that of Student's law for the means of the
chains. The step and its range were chosen on samples 5000 to 5129; the table has others.
Blocks that are in it are not measured again.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import torch

from geolib.stratifolds import ChartLoss, MixtureKL, learning_coefficient, mixture_a
from geolib.sweep import keep, measured

STORED = Path(__file__).parent / "measured" / "coverage.json"
POINTS, CHAINS, STEPS, BLOCK, BLOCKS, FIRST = 300, 32, 1500, 10, 20, 10_000


def trial(number: int, steps: int = STEPS, chains: int = CHAINS) -> tuple[float, float]:
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


if __name__ == "__main__":
    about = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": torch.__version__.split("+")[0],
        "machine": platform.machine(),
        "chains": CHAINS,
        "steps": STEPS,
    }
    for block in range(BLOCKS):
        key = str(FIRST + block * BLOCK)
        if key not in measured(STORED).entries:
            found = [trial(int(key) + k) for k in range(BLOCK)]
            rounded = [[float(f"{v:.3g}") for v in row] for row in found]
            keep(STORED, {key: rounded}, about)
