"""The chapter's zoo in one table: strata, ranks, waiting times, learning coefficients.

geolib sweep zoo --size full
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zoo

from geolib.sweep import Sweep


@dataclass(frozen=True)
class Spec:
    """The whole table, its integrals with so many nodes an axis."""

    nodes: int = 160


def run(spec: Spec) -> dict[str, Any]:
    """A row a model."""
    return {"models": list(zoo.table(spec.nodes))}


ZOO = Sweep(
    "zoo",
    run,
    {"small": lambda: [Spec(40)], "book": lambda: [Spec()], "full": lambda: [Spec()]},
    text="Learning coefficients, ranks and waiting times against what is known.",
)
