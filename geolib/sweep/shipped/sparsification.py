"""Accuracy of sparse networks, over levels, seeds and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geolib.sweep.runner import Sweep
from geolib.sweep.shipped._networks import data_of, network
from geolib.sweep.spec import grid

METHODS = [
    "one-shot", "surgeon", "magnitude + labels", "gradual + labels",
    "gradual + distillation", "penalty path", "invariant path",
]  # fmt: skip
LEVELS = [0.5, 0.8, 0.9, 0.95, 0.98]


@dataclass(frozen=True)
class Spec:
    """One network made sparse: `level` is the share of zeros in its matrices."""

    seed: int
    level: float
    method: str
    dataset: str = "digits"
    hidden: tuple[int, ...] = (32, 32)
    train_steps: int = 600
    device: str = "cpu"
    dtype: str = "float64"


def run(spec: Spec) -> dict[str, Any]:
    """Train, prune, and score before and after on the test rows."""
    from geolib.geodesics import METHODS as PRUNERS
    from geolib.networks import accuracy, train

    data = data_of(spec)
    R = network(spec, data, spec.seed)
    w = train(R, data.x, data.y, steps=spec.train_steps, seed=spec.seed)
    found = PRUNERS[spec.method](R, w, data, spec.level)
    return {
        "dense": accuracy(R, w, data.x_test, data.y_test),
        "accuracy": accuracy(R, found.weights, data.x_test, data.y_test),
        "zeros": int((found.weights == 0).sum()),
        "weights": R.p,
        "passes": found.gradient_evaluations,
        "ran_on": data.x.device.type,
    }


def full() -> Sequence[Spec]:
    """Five seeds on digits in double precision, five on the image sets in single."""
    digits = grid(Spec, seed=range(5), level=LEVELS, method=METHODS)
    images = grid(
        Spec, seed=range(5), level=LEVELS, method=METHODS,
        dataset=["mnist", "fashion_mnist"], hidden=[(256, 128)], train_steps=4000,
        device="auto", dtype="float32",
    )  # fmt: skip
    return [*digits, *images]


SWEEP = Sweep(
    "sparsification",
    run,
    {
        "small": lambda: grid(
            Spec, seed=0, level=[0.5, 0.9], method=["one-shot", "invariant path"],
            hidden=[(16,)], train_steps=150,
        ),
        "book": lambda: grid(
            Spec, seed=range(3), level=[0.9, 0.95, 0.98], method=METHODS
        ),
        "full": full,
    },
    text="Accuracy against sparsity, over levels, seeds and methods.",
)  # fmt: skip
