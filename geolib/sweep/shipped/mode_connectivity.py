"""Barriers of the straight line, a trained curve and the geodesic between networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.sweep.runner import Sweep
from geolib.sweep.shipped._networks import data_of, network
from geolib.sweep.spec import grid

METHODS = ["line", "aligned line", "curve", "geodesic", "aligned geodesic"]


@dataclass(frozen=True)
class Spec:
    """One path: the two ends have the seeds 2 pair and 2 pair + 1.

    `steps` is the budget of the geodesic; the curve gets as many passes. `device` is
    `cpu`, `cuda` or `auto`.
    """

    pair: int
    method: str
    dataset: str = "digits"
    hidden: tuple[int, ...] = (32, 32)
    train_steps: int = 600
    steps: int = 2000
    device: str = "cpu"
    dtype: str = "float64"


def run(spec: Spec) -> dict[str, Any]:
    """Train both ends, join them, and score the path on training and test data."""
    from geolib.geodesics import connect
    from geolib.networks import train

    data = data_of(spec)
    seeds = (2 * spec.pair, 2 * spec.pair + 1)
    a, b = (network(spec, data, seed) for seed in seeds)
    for R, seed in zip((a, b), seeds, strict=True):
        R.load(train(R, data.x, data.y, steps=spec.train_steps, seed=seed))
    method = spec.method.removeprefix("aligned ")
    options: dict[str, Any] = {
        "line": {},
        "curve": {"steps": 3 * spec.steps, "seed": spec.pair},
        "geodesic": {"steps": spec.steps, "seed": spec.pair},
    }[method]
    align = spec.method != method
    found = connect(
        a.module, b.module, data.x, data.y, method=method, align=align, **options
    )
    train_part = found.profile(data.x, data.y)
    test_part = found.profile(data.x_test, data.y_test)
    return {
        "barrier": train_part.barrier,
        "test_barrier": test_part.barrier,
        "worst": test_part.worst,
        "middle": test_part.middle,
        "ends": [test_part.accuracy[0].item(), test_part.accuracy[-1].item()],
        "passes": found.gradient_evaluations,
        "ran_on": data.x.device.type,
    }


def full() -> Sequence[Spec]:
    """Eight pairs on digits in double precision, five on the image sets in single."""
    digits = grid(Spec, pair=range(8), method=METHODS)
    images = grid(
        Spec, pair=range(5), method=METHODS, dataset=["mnist", "fashion_mnist"],
        hidden=[(256, 128)], train_steps=4000, steps=4000, device="auto",
        dtype="float32",
    )  # fmt: skip
    return [*digits, *images]


SWEEP = Sweep(
    "mode-connectivity",
    run,
    {
        "small": lambda: grid(
            Spec, pair=range(2), method=["line", "geodesic"], hidden=[(16,)],
            train_steps=150, steps=150,
        ),
        "book": lambda: grid(Spec, pair=range(3), method=METHODS),
        "full": full,
    },
    text="Loss barriers of paths between trained networks, over pairs and methods.",
)  # fmt: skip
