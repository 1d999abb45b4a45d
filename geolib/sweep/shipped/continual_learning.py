"""What is left of earlier tasks, over orders of the classes, seeds and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.sweep.runner import Sweep
from geolib.sweep.shipped._networks import data_of, network
from geolib.sweep.spec import grid

METHODS = [
    "joint", "fine-tuning", "elastic weights", "without forgetting", "replay",
    "distilled logits", "penalty path", "invariant path",
]  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One sequence of five tasks of two classes.

    `order` 0 is 0/1, 2/3, ...; any other is the seed of a permutation of the classes.
    """

    order: int
    seed: int
    method: str
    scenario: str = "class"
    dataset: str = "digits"
    hidden: tuple[int, ...] = (64, 64, 64)
    memory: int = 50
    passes: int = 38_400
    tasks: int = 5
    device: str = "cpu"
    dtype: str = "float64"


def groups(order: int, tasks: int = 5) -> list[list[int]]:
    """The classes of each task.

    Examples:
        >>> groups(0)
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    """
    import numpy as np

    classes = np.arange(10)
    if order:
        classes = np.random.default_rng(order).permutation(10)
    return classes[: 2 * tasks].reshape(-1, 2).tolist()


def run(spec: Spec) -> dict[str, Any]:
    """Learn the tasks in their order; accuracies in per cent are left to the reader."""
    from geolib.geodesics import learn_sequence
    from geolib.networks import split_tasks

    data = data_of(spec)
    found = learn_sequence(
        network(spec, data, spec.seed).module,
        split_tasks(data, groups(spec.order, spec.tasks)),
        spec.method,
        scenario=spec.scenario,
        memory=spec.memory,
        gradient_evaluations=spec.passes,
        seed=spec.seed,
    )
    return {
        "average": found.average,
        "forgetting": found.forgetting,
        "last": found.table[-1],
        "spent": found.gradient_evaluations,
        "stored": found.stored,
        "converged": found.converged,
        "ran_on": data.x.device.type,
    }


def full() -> Sequence[Spec]:
    """Four orders and five seeds on digits and MNIST, both scenarios."""
    digits = grid(
        Spec, order=range(4), seed=range(5), method=METHODS, scenario=["class", "task"]
    )
    mnist = grid(
        Spec, order=range(4), seed=range(5), method=METHODS, dataset="mnist",
        hidden=[(256, 256)], passes=384_000, device="auto", dtype="float32",
    )  # fmt: skip
    return [*digits, *mnist]


SWEEP = Sweep(
    "continual-learning",
    run,
    {
        "small": lambda: grid(
            Spec, order=0, seed=range(2), hidden=[(32,)], passes=12_800,
            method=["joint", "fine-tuning", "replay"],
        ),
        "book": lambda: grid(Spec, order=range(2), seed=range(1, 4), method=METHODS),
        "full": full,
    },
    text="Accuracy left after five tasks, over class orders, seeds and methods.",
)  # fmt: skip
