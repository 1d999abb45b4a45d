"""Is an optimizer natural? The audit over optimizers and problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.sweep.runner import Sweep
from geolib.sweep.spec import grid


@dataclass(frozen=True)
class Spec:
    """One audit; `problem` is `regression` or `softmax`, `steps` the numbers of steps."""

    optimizer: str
    problem: str = "regression"
    seed: int = 12
    steps: tuple[int, ...] = (16, 32)


def run(spec: Spec) -> dict[str, Any]:
    """The defects of one optimizer by family of reparameterizations."""
    from geolib.naturality import (
        Protocol,
        audit,
        naturality_class,
        regression_problem,
        softmax_problem,
    )

    problems = {"regression": regression_problem, "softmax": softmax_problem}
    if spec.problem not in problems:
        raise ValueError(f"problem: expected {list(problems)}, got {spec.problem!r}")
    report = audit(
        spec.optimizer,
        problems[spec.problem](spec.seed),
        protocol=Protocol(counts=spec.steps),
    )
    return {
        "letters": report.letters,
        "verdict": naturality_class(report.verdicts),
        "defects": {family: d.to_dict() for family, d in report.defects.items()},
    }


def optimizers() -> list[str]:
    """Every optimizer of the chapter's table."""
    from geolib.naturality import OPTIMIZERS

    return list(OPTIMIZERS)


def full() -> Sequence[Spec]:
    """All optimizers on three regressions and one classification, four step sizes."""
    steps = (16, 32, 64, 128)
    three = grid(Spec, optimizer=optimizers(), seed=[12, 68, 113], steps=[steps])
    softmax = grid(
        Spec, optimizer=optimizers(), problem="softmax", seed=102, steps=[steps]
    )
    return [*three, *softmax]


SWEEP = Sweep(
    "audit",
    run,
    {
        "small": lambda: grid(Spec, optimizer=["gd", "adam", "ngd"]),
        "book": lambda: grid(Spec, optimizer=optimizers()),
        "full": full,
    },
    text="Naturality of optimizers, over problems and step sizes.",
)
