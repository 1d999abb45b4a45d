r"""The stored audit of the chapter on naturality: the sweep that writes its tables.

    geolib run naturality                     # reads the stored audit
    geolib sweep audit --size full            # twenty minutes of one core
    geolib sweep audit --size full --publish  # writes `measured/audit-*.json` from it

    geolib sweep networks --size full --publish  # and `measured/networks.json`
    geolib sweep rules --size full --publish     # and `measured/rules.json`

The sweeps may be stopped and started again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import random_networks
from controls import TABLE
from stored_audits import CELL, PROTOCOL, TASKS, naturality_class

from geolib.naturality import (
    Verdict,
    audit,
)
from geolib.sweep import Sweep, grid


@dataclass(frozen=True)
class Spec:
    """One audit: an optimizer on the problem of a task and a seed."""

    optimizer: str
    problem: str = "regression"
    seed: int = 12
    steps: tuple[int, ...] = PROTOCOL.counts[:2]


def run(spec: Spec) -> dict[str, Any]:
    """The defects of one optimizer by family of reparameterizations.

    Raises:
        ValueError: an unknown task.
    """
    if spec.problem not in TASKS:
        raise ValueError(f"problem: expected {list(TASKS)}, got {spec.problem!r}")
    protocol = replace(PROTOCOL, counts=spec.steps)
    problem = TASKS[spec.problem][0](spec.seed)
    report = audit(TABLE[spec.optimizer], problem, protocol=protocol)
    return {
        "letters": report.letters,
        "verdict": naturality_class(report.verdicts),
        "defects": {family: d.to_dict() for family, d in report.defects.items()},
    }


def compact(_key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
    """A row as the table keeps it: by seed and optimizer, each cell in `CELL` order."""

    def short(v: float | None) -> float | None:
        return None if v is None else float(f"{v:.5g}")

    cells = {
        family: [
            Verdict(d["verdict"]).letter,
            [*map(short, d["values"])],
            *map(short, (d["slope"], d["plateau"], d["self_convergence"])),
        ]
        for family, d in row["defects"].items()
    }
    return f"audit-{row['problem']}", f"{row['seed']} | {row['optimizer']}", cells


def every_audit() -> list[Spec]:
    """All optimizers on all problems of the table, four step sizes."""
    names, steps = list(TABLE), [PROTOCOL.counts]
    return [
        spec
        for task, (_, seeds) in TASKS.items()
        for spec in grid(Spec, optimizer=names, problem=task, seed=seeds, steps=steps)
    ]


AUDIT = Sweep(
    "audit",
    run,
    {
        "small": lambda: grid(Spec, optimizer=["gd", "adam", "ngd"]),
        "book": lambda: grid(Spec, optimizer=list(TABLE)),
        "full": every_audit,
    },
    text="Naturality of optimizers, over problems and step sizes.",
    kept_as=compact,
    about={"horizon": PROTOCOL.horizon, "maps_seed": PROTOCOL.seed, "cell": CELL},
)

NETWORKS = Sweep(
    "networks",
    random_networks.run,
    {
        "small": lambda: random_networks.specs(list(range(2))),
        "book": lambda: random_networks.specs(list(range(6))),
        "full": lambda: random_networks.specs(list(range(20))),
    },
    text="The audit on default-initialised networks, beside closed forms.",
    kept_as=random_networks.compact,
    about={"seeds": "0 to 19", "open": random_networks.OPEN},
)

RULES = Sweep(
    "rules",
    random_networks.run,
    {
        "small": lambda: random_networks.specs([30], ["kfac", "torch.optim.Muon"]),
        "book": lambda: random_networks.specs([30], random_networks.NAMED),
        "full": lambda: random_networks.specs(
            [30, 31, 32], (*random_networks.NAMED, *random_networks.CLASSES)
        ),
    },
    text="Rules of the literature and every class of torch.optim on three networks.",
    kept_as=random_networks.compact_rule,
    about={"seeds": "30 to 32"},
)
