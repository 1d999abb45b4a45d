"""How often the sampler's error bar holds the exact learning coefficient.

`python coverage.py` in this folder measures `measured/coverage.json`: mixture A, truth
N(0, 1), many samples of 300 points; on each the exact grid, and 32 chains of 1500 steps
from random starts. The bar is that of Student's law for the means of the chains. Blocks
that are in the table are not measured again.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from geolib.stratifolds import ChartLoss, MixtureKL, learning_coefficient, mixture_a
from geolib.sweep import keep, measured

STORED = Path(__file__).parent / "measured" / "coverage.json"
POINTS, CHAINS, STEPS, BLOCK, BLOCKS = 300, 32, 1500, 25, 8


def trial(number: int, steps: int = STEPS, chains: int = CHAINS) -> tuple[float, float]:
    """The sampler's distance from the grid, and its standard error."""
    rng = np.random.default_rng([5, number])
    law = torch.tensor([1.0, 0.0], dtype=torch.float64)
    A, x = mixture_a(), torch.tensor(rng.standard_normal(POINTS))
    loss = ChartLoss(MixtureKL(law, data=x), A.chart)
    low, high = torch.tensor([[0.0, -3.0], [1.0, 3.0]], dtype=torch.float64)
    exact = learning_coefficient(loss, POINTS, low, high, base=0.0, points=[80, 160])
    begin = np.stack([rng.random(chains), 0.1 * rng.standard_normal(chains)], 1)
    drawn = learning_coefficient(
        loss, POINTS, low, high, base=0.0, sampler="mala", seed=number,
        theta0=torch.tensor(begin), steps=steps, step=0.8,
    )  # fmt: skip
    return drawn.value - exact.value, drawn.error


def held(trials: list[tuple[float, float]], chains: int, level: float = 0.95) -> int:
    """How many bars of this level hold the exact value."""
    width = float(student.ppf(0.5 + level / 2, chains - 1))
    return sum(abs(distance) <= width * error for distance, error in trials)


if __name__ == "__main__":
    about = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": torch.__version__.split("+")[0],
        "machine": platform.machine(),
        "chains": CHAINS,
        "steps": STEPS,
    }
    for block in range(BLOCKS):
        key = f"{block * BLOCK:03d}"
        if key not in measured(STORED).entries:
            found = [trial(block * BLOCK + k) for k in range(BLOCK)]
            rounded = [[float(f"{v:.3g}") for v in row] for row in found]
            keep(STORED, {key: rounded}, about)
