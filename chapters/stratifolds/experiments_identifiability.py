"""What enforced identifiability does to the error of a fit, and to networks.

geolib sweep stratifold-identifiability --size full --publish
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from experiments_mixtures import RATES, pair_task
from mixture_race import Mixture, Race, Task, natural
from torch import Tensor

from geolib.core import init_
from geolib.data import load
from geolib.sweep import Sweep


@dataclass(frozen=True)
class Spec:
    """A study of fits (`chart`, `separation`, `n`) or of networks (`chart`, `rule`).

    `size` is the number of samples of a study of fits, of steps for networks.
    """

    study: str
    chart: str
    separation: float = 0.0
    n: int = 0
    rule: str = ""
    size: int = 200


def fits(spec: Spec) -> dict[str, Any]:
    """Excess divergence of maximum-likelihood fits, in units of P/2n, and information.

    P/2n is what a regular model with P parameters would have; P = 3 here.
    """
    law = pair_task(spec.separation, known=True)
    rng = np.random.default_rng([11, spec.n, int(10 * spec.separation)])
    which = rng.random((spec.size, spec.n)) < 0.4
    x = rng.standard_normal((spec.size, spec.n)) + spec.separation * which
    q = torch.full((spec.n,), 1 / spec.n, dtype=torch.float64)
    task = Task(torch.tensor(x)[:, None, :, None], q, 2, "known")
    a = torch.tensor([[0.6, 0.4]], dtype=torch.float64).log()
    m = torch.tensor([[[0.0], [spec.separation]]], dtype=torch.float64)
    truth = Mixture(a, m, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    many = Mixture(*(t.expand(spec.size, *t.shape[1:]).clone() for t in truth))
    rate = torch.ones(spec.size, dtype=torch.float64)
    race = Race(task, spec.chart, many, -np.inf * rate, rate)
    race.run(natural, 150)
    excess = law.evaluate(race.state(race.eta))[0] * 2 * spec.n / 3
    s, _ = law.scores(truth, *law.evaluate(truth)[1:])
    spectrum = torch.linalg.eigvalsh((s[0] * law.q) @ s[0].T)
    return {
        "excess": round(float(excess.mean()), 4),
        "error": round(float(excess.std()) / spec.size**0.5, 4),
        "spectrum": [float(f"{v:.4g}") for v in spectrum.tolist()],
    }


class Networks:
    """A batch of tanh networks 64-16-16-10, one a rate and seed, on digits.

    In the relative chart the first unit of each hidden layer has its weights and bias,
    the others their differences from it.
    """

    def __init__(self, seeds: Sequence[int], chart: str) -> None:
        data = load("digits")
        self.x = torch.tensor(data.x[:500]).double().flatten(1)
        self.y = torch.tensor(data.y[:500])
        self.xt = torch.tensor(data.x_test).double().flatten(1)
        self.yt = torch.tensor(data.y_test)
        self.relative = chart == "relative"
        nets = []
        for seed in seeds:
            sizes = (64, 16, 16, 10)
            layers = [
                torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)
            ]
            net = init_(torch.nn.Sequential(*layers).double(), seed)
            nets.append([p.detach().clone() for p in net.parameters()])
        stacked = [torch.stack(ps) for ps in zip(*nets, strict=True)]
        self.p = [self.turn(p, -1) if k < 4 else p for k, p in enumerate(stacked)]

    def turn(self, p: Tensor, sign: int) -> Tensor:
        """Between weights and their differences from the first unit's."""
        if not self.relative:
            return p
        return torch.cat([p[:, :1], p[:, 1:] + sign * p[:, :1]], 1)

    def outputs(self, p: list[Tensor], x: Tensor) -> Tensor:
        h = x
        for k in range(3):
            W, b = (self.turn(t, 1) if k < 2 else t for t in p[2 * k : 2 * k + 2])
            h = h @ W.mT + b[:, None]
            h = h.tanh() if k < 2 else h
        return h

    def losses(self, p: list[Tensor]) -> Tensor:
        scores = self.outputs(p, self.x)
        wanted = self.y.expand(len(scores), -1)
        cross = torch.nn.functional.cross_entropy
        return cross(scores.mT, wanted, reduction="none").mean(1)

    def train(self, rule: str, rate: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Last loss and test accuracy of each network."""
        p = [t.requires_grad_(True) for t in self.p]
        first, second = [0 * t.detach() for t in p], [0 * t.detach() for t in p]
        for it in range(1, steps + 1):
            grads = torch.autograd.grad(self.losses(p).sum(), p)
            with torch.no_grad():
                for k, (t, g) in enumerate(zip(p, grads, strict=True)):
                    if rule == "Adam":
                        first[k] = 0.9 * first[k] + 0.1 * g
                        second[k] = 0.999 * second[k] + 0.001 * g * g
                        root = (second[k] / (1 - 0.999**it)).sqrt() + 1e-8
                        g = first[k] / (1 - 0.9**it) / root
                    t -= rate.reshape(-1, *[1] * (t.ndim - 1)) * g
        with torch.no_grad():
            loss = torch.nan_to_num(self.losses(p), nan=torch.inf)
            right = self.outputs(p, self.xt).argmax(-1) == self.yt
        return loss, right.double().mean(1)


def networks(spec: Spec) -> dict[str, Any]:
    """Loss after the steps at the rate that is best on three other seeds."""
    seeds, grid = (100, 101, 102), list(RATES)
    many = Networks([s for _ in grid for s in seeds], spec.chart)
    rate = torch.tensor(grid, dtype=torch.float64).repeat_interleave(len(seeds))
    loss = many.train(spec.rule, rate, spec.size)[0].reshape(len(grid), -1).mean(1)
    best = int(loss.argmin())
    final = Networks(range(10), spec.chart)
    rate = torch.full((10,), grid[best], dtype=torch.float64)
    loss, accuracy = final.train(spec.rule, rate, spec.size)
    return {
        "rate": float(f"{grid[best]:.3g}"),
        "interior": 0 < best < len(grid) - 1,
        "loss": [float(f"{v:.3g}") for v in loss.tolist()],
        "accuracy": [round(v, 4) for v in accuracy.tolist()],
    }


def run(spec: Spec) -> dict[str, Any]:
    """One study."""
    return fits(spec) if spec.study == "fits" else networks(spec)


def specs(separations: Sequence[float], sizes: Sequence[int], steps: int) -> list[Spec]:
    """Fits at all separations and sample sizes, networks under both rules."""
    return [
        *(
            Spec("fits", chart, separation, n)
            for separation in separations
            for n in sizes
            for chart in ("standard", "relative", "gap 0.5", "gap 1")
        ),
        *(
            Spec("networks", chart, rule=rule, size=steps)
            for chart in ("standard", "relative")
            for rule in ("descent", "Adam")
        ),
    ]


IDENTIFIABILITY = Sweep(
    "stratifold-identifiability",
    run,
    {
        "small": lambda: specs([1.0], [100], 20)[:2],
        "book": lambda: specs([0.5, 2.0], [100], 300),
        "full": lambda: specs([0.2, 0.5, 1.0, 2.0, 3.0], [100, 1000], 300),
    },
    text="Error of fits with an enforced gap, and relative coordinates in networks.",
    about={"device": "two shared cores, one thread"},
)
