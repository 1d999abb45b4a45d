"""The chapter's zoo in one table: strata, ranks, waiting times, learning coefficients.

geolib sweep zoo --size full
geolib sweep zoo-sampler --size full
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zoo
import zoo_sampler

from geolib.sweep import Sweep


@dataclass(frozen=True)
class Spec:
    """The whole table, its integrals with so many nodes an axis."""

    nodes: int = 240


@dataclass(frozen=True)
class SamplerSpec:
    """The sampler on one model."""

    model: str
    steps: int = 6000
    chains: int = 64
    seed: int = 0


def run(spec: Spec) -> dict[str, Any]:
    """A row a model."""
    return {"models": list(zoo.table(spec.nodes))}


def sample(spec: SamplerSpec) -> dict[str, Any]:
    """The estimate and half its interval of 95 %."""
    found = zoo_sampler.sampled(spec.model, spec.chains, spec.steps, spec.seed)
    bar = found.interval()[1] - found.value
    return {"value": found.value, "bar": bar, "acceptance": found.acceptance}


ZOO = Sweep(
    "zoo",
    run,
    {"small": lambda: [Spec(40)], "book": lambda: [Spec()], "full": lambda: [Spec()]},
    version=2,
    text="Learning coefficients, ranks and waiting times against what is known.",
)

ZOO_SAMPLER = Sweep(
    "zoo-sampler",
    sample,
    {
        "small": lambda: [SamplerSpec("deep linear, 2 scalars", steps=200, chains=8)],
        "book": lambda: [SamplerSpec("deep linear, 2 scalars")],
        "full": lambda: [SamplerSpec(case.name) for case in zoo.cases(20)],
    },
    text="The zoo's learning coefficients by the sampler, model by model.",
    about={"data": zoo.DATA},
)
