"""What `find_strata` says of networks with a planted stratum, or with none.

geolib sweep planted-layers --size full
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from planted_layers import trial

from geolib.sweep import Sweep, grid

FIRST, COUNT, BLOCK = 9000, 500, 25


@dataclass(frozen=True)
class Spec:
    """A block of networks, by the number of its first one."""

    first: int
    networks: int = BLOCK


def run(spec: Spec) -> dict[str, Any]:
    """Family, kind, depth, whether one was planted, missed, invented: of each network."""
    numbers = range(spec.first, spec.first + spec.networks)
    return {"trials": [list(astuple(trial(number))) for number in numbers]}


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
    text="Planted strata of channels and heads that are missed or invented.",
    kept_as=kept_as,
    about={"first": FIRST},
)
