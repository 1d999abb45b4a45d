"""How quickly a grown network uses its new units: surgery against plain remedies.

`geolib sweep stratifold-growth --size full --publish` makes the table of
`measured/growth.json`: digits, 500 images, 3 tanh units trained to saturation and
doubled, copies 0.001 apart. Each pair of an optimizer and a remedy has its rate chosen
on the seeds 0 and 1 from a grid of eight rates, which goes on where the best lies at an
end; ten other seeds are reported.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from geolib.core import init_, normal
from geolib.data import load
from geolib.stratifolds import CollarSurgery
from geolib.sweep import Sweep, grid

RATES = {
    "descent": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "Adam": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}
REMEDIES = ("none", "shear", "surgery")
TUNING, SEEDS, STEPS = (0, 1), tuple(range(5, 15)), 400
loss_of = nn.functional.cross_entropy


def optimizer(name: str, net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Descent, momentum 0.9 or Adam."""
    if name == "Adam":
        return torch.optim.Adam(net.parameters(), lr=rate)
    return torch.optim.SGD(
        net.parameters(), lr=rate, momentum=0.9 * (name != "descent")
    )


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits: 500 centred images and their classes, and the test set."""
    data = load("digits")
    x = torch.tensor(data.x[:500]).double().reshape(500, -1)
    xt = torch.tensor(data.x_test).double().reshape(len(data.x_test), -1)
    y, yt = torch.tensor(data.y[:500]), torch.tensor(data.y_test)
    return x - x.mean(0), y, xt - x.mean(0), yt


def saturated(x: Tensor, y: Tensor, seed: int) -> tuple[nn.Sequential, float]:
    """Three units after 700 steps of descent, rate 0.5, and their loss."""
    net = nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10)).double()
    init_(net, seed)
    descent = optimizer("descent", net, 0.5)
    for _ in range(700):
        descent.zero_grad()
        value = loss_of(net(x), y)
        value.backward()
        descent.step()
    return net, float(value.detach())


@torch.no_grad()
def doubled(small: nn.Sequential, seed: int, sheared: bool) -> nn.Sequential:
    """Each unit twice, 0.001 apart; `sheared` turns the two outputs apart at random.

    Both leave the function as it is, up to the distance of the copies.
    """
    W, b, V = small[0].weight, small[0].bias, small[2].weight
    noise = normal(W.shape, seed + 5)
    noise = 0.001 * noise * (W.norm(dim=1) / noise.norm(dim=1))[:, None]
    turn = normal(V.shape, seed + 6) if sheared else torch.zeros_like(V)
    turn = turn * (V.norm(dim=0) / turn.norm(dim=0).clamp_min(1e-300))
    big = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    big[0].weight.copy_(torch.cat([W - noise / 2, W + noise / 2]))
    big[0].bias.copy_(torch.cat([b, b]))
    big[2].weight.copy_(torch.cat([V / 2 + turn, V / 2 - turn], 1))
    big[2].bias.copy_(small[2].bias)
    return big


def steps_to_level(
    start: nn.Sequential, level: float, name: str, remedy: str, rate: float, data: Any
) -> dict[str, float]:
    """Steps until the loss is below `level`, and accuracy after all steps."""
    x, y, xt, yt = data
    net = start
    rule = optimizer(name, net, rate)
    surgery = CollarSurgery(
        net, loss_of, x, y, every=10, patience=float("inf"), eps=0.2
    )
    reached = STEPS
    for it in range(STEPS):
        rule.zero_grad()
        value = loss_of(net(x), y)
        if not bool(torch.isfinite(value)):
            return {"steps": STEPS, "loss": float("inf"), "accuracy": 0.0}
        if float(value.detach()) < level and reached == STEPS:
            reached = it
        value.backward()
        rule.step()
        if remedy == "surgery" and it < 100:
            surgery.step()
    with torch.no_grad():
        accuracy = float((net(xt).argmax(1) == yt).double().mean())
    return {"steps": reached, "loss": float(value.detach()), "accuracy": accuracy}


@dataclass(frozen=True)
class Pair:
    """One optimizer with one remedy, and on which seeds it is tuned and reported."""

    optimizer: str
    remedy: str
    rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = SEEDS


@cache
def small(seed: int) -> tuple[nn.Sequential, float]:
    """The saturated network of a seed and its loss."""
    return saturated(*images()[:2], seed)


def trial(pair: Pair, rate: float, seed: int) -> dict[str, float]:
    """One doubled network, trained."""
    net, value = small(seed)
    start = doubled(net, seed, pair.remedy == "shear")
    level = 0.75 * value
    return steps_to_level(start, level, pair.optimizer, pair.remedy, rate, images())


def run(pair: Pair) -> dict[str, Any]:
    """The chosen rate; steps, loss and accuracy by seed."""
    tuned: dict[float, float] = {}
    rates = pair.rates or RATES[pair.optimizer]
    while rates:
        for rate in rates:
            tuned[rate] = statistics.fmean(
                trial(pair, rate, s)["steps"] for s in TUNING
            )
        best = min(tuned, key=lambda rate: (tuned[rate], rate))
        at_end = {min(tuned): best / 3, max(tuned): 3 * best}
        rates = (at_end[best],) if best in at_end and not pair.rates else ()
    runs = [trial(pair, best, s) for s in pair.seeds]
    return {"rate": best} | {k: [round(r[k], 4) for r in runs] for k in runs[0]}


def kept_as(key: str, row: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Where a pair stands in the table of the chapter."""
    figures = {k: row[k] for k in ("rate", "steps", "loss", "accuracy")}
    return "growth", f"{row['optimizer']}, {row['remedy']}", figures


GROWTH = Sweep(
    "stratifold-growth",
    run,
    {
        "small": lambda: [Pair("Adam", "shear", (0.03, 0.1), (5,))],
        "full": lambda: grid(Pair, optimizer=list(RATES), remedy=REMEDIES),
    },
    text="how soon a grown network uses its new units",
    kept_as=kept_as,
    about={"seeds": [*SEEDS]},
)
