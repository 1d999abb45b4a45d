"""What `find_strata` says of networks with a planted stratum, or with none.

geolib sweep planted-layers --size full
geolib sweep planted-fresh --size full
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import planted
import planted_layers

from geolib.sweep import Sweep, grid

FIRST, BLOCK, PLANNED = 120_000, 50, 1000
COUNT = 550  # of those planned: then the time was over
FRESH, FRESH_COUNT = 130_000, 100  # drawn when units that are off were named in full


@dataclass(frozen=True)
class Spec:
    """A block of networks, by the number of its first one."""

    first: int
    networks: int = BLOCK


def row(number: int) -> list[Any]:
    """What is stored of a network: a perceptron by its even number, other kinds by odd ones."""
    if number % 2:
        return list(astuple(planted_layers.trial(number // 2)))
    p = planted.trial(number // 2)
    planted_one = p.kind != "none"
    found = [p.missed, p.invented, p.dormant]
    return ["perceptron", p.kind, p.depth, planted_one, *found]


def run(spec: Spec) -> dict[str, Any]:
    """Family, kind, depth, whether one was planted, missed, invented, found as dormant."""
    numbers = range(spec.first, spec.first + spec.networks)
    return {"trials": [row(number) for number in numbers]}


def kept_as(key: str, row: dict[str, Any]) -> tuple[str, str, list[list[Any]]]:
    """An entry of `planted.json` by the first number."""
    return "planted", str(row["first"]), row["trials"]


PLANTED_LAYERS = Sweep(
    "planted-layers",
    run,
    {
        "small": lambda: [Spec(FIRST, networks=4)],
        "book": lambda: [Spec(FIRST)],
        "full": lambda: grid(Spec, first=range(FIRST, FIRST + COUNT, BLOCK)),
    },
    text="Planted strata of units, channels and heads that are missed or invented.",
    kept_as=kept_as,
    about={"first": FIRST},
)

PLANTED_FRESH = Sweep(
    "planted-fresh",
    run,
    {
        "small": lambda: [Spec(FRESH, networks=4)],
        "book": lambda: [Spec(FRESH)],
        "full": lambda: grid(Spec, first=range(FRESH, FRESH + FRESH_COUNT, BLOCK)),
    },
    text="The same of fresh networks, where units that are off must be named in full.",
    kept_as=lambda key, row: ("planted-fresh", str(row["first"]), row["trials"]),
    about={"first": FRESH},
)
