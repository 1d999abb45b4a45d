"""What `find_strata` says of networks with a planted stratum, or with none.

geolib sweep planted-layers --size full
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import planted
import planted_layers

from geolib.sweep import Sweep, grid

FIRST, BLOCK, COUNT = 130_000, 50, 500


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
    return ["perceptron", p.kind, p.depth, p.kind != "none", p.missed, p.invented]


def run(spec: Spec) -> dict[str, Any]:
    """Family, kind, depth, whether one was planted, missed, invented."""
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
    version=2,
    text="Planted strata of units, channels and heads that are missed or invented.",
    kept_as=kept_as,
    about={"first": FIRST},
)
