"""The chapter's sweep: descent from many starts, in raw, rival and resolved charts.

geolib sweep singular-starts --size full
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from location_em import em
from logit import Logit
from torch import Tensor

from geolib.stratifolds import MixtureKL, MixtureTube, descend, mixture_a, resolve
from geolib.sweep import Sweep

TEACHERS = [(0.3, 2.0), (0.5, 1.0), (0.1, 3.0)]
RATES = {"raw": 0.3, "logit": 3.0, "tube": 1.0}  # at which descent is stable


@dataclass(frozen=True)
class Spec:
    """A batch of starts of mixture A in one chart.

    `ngd` takes full natural steps with a little damping, `small` natural steps of 0.02.
    """

    teacher: tuple[float, float]
    chart: str
    method: str
    seed: int = 1
    starts: int = 400
    steps: int = 5000
    eps: float = 0.1
    lr: float = 0.0
    damping: float = 0.0


def run(spec: Spec) -> dict[str, Any]:
    """How many starts reach the teacher, in all and from the wrong side."""
    S = mixture_a()
    teacher = torch.tensor(spec.teacher, dtype=torch.float64)
    theta0 = torch.from_numpy(S.draw(np.random.default_rng(spec.seed), spec.starts))
    wrong = theta0[:, 1] * teacher[1] < 0
    objective = S.objective(teacher)
    settings: dict[str, Any] = {"steps": spec.steps, "tol": 1e-6}
    if spec.method == "em":
        natural = S.chart.embed(theta0)
        found = em(objective, natural, fixed=(0,), **settings)
    else:
        settings |= {
            "method": "gd" if spec.method == "gd" else "ngd",
            "lr": spec.lr,
            "damping": spec.damping,
        }
        if spec.chart == "raw":
            found = descend(objective, S.chart, S.chart.to_chart(theta0), **settings)
        else:
            chart = (
                Logit(S.chart) if spec.chart == "logit" else resolve(S, spec.eps).chart
            )
            found = descend(objective, chart, chart.to_chart(theta0), **settings)
    return {
        "success": found.rate(),
        "wrong": found.rate(wrong),
        "wrong_starts": int(wrong.sum()),
        "median_right": found.median(~wrong),
        "entered": float(found.entered.double().mean()),
        "stuck": float(found.stuck.double().mean()),
    }


def tube_em(
    objective: MixtureKL, theta0: Tensor, *, eps: float, steps: int, tol: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """EM in the tube over mixture A: which starts arrive, and after how many steps.

    A step of EM for the three atoms with common |location|, then back to the tube by
    its mean and that location.
    """
    chart = MixtureTube(eps)
    eta = chart.to_chart(theta0)
    hit = torch.full((len(eta),), steps)
    for it in range(steps):
        natural = chart.embed(eta)
        loss, g, _ = objective.evaluate(natural)
        hit = torch.where((loss < tol) & (hit == steps), it, hit)
        if bool((hit < steps).all()):
            break
        mass = -natural[:, :3] * g[:, :3]
        first = natural[:, 3:] * mass - g[:, 3:]  # E[x r_k]
        nu = (first[:, 1] - first[:, 2]) / (mass[:, 1] + mass[:, 2])
        mean = (mass[:, 1] - mass[:, 2]) * nu
        eta = chart.project(torch.stack([mean, nu.abs()], 1))
    return hit < steps, hit


def specs(seeds: Sequence[int], **sizes: Any) -> list[Spec]:
    """Every teacher, chart and method with its step size; EM once a teacher."""
    out: list[Spec] = []
    for teacher in sizes.pop("teachers", TEACHERS):
        for seed in seeds:
            em = Spec(teacher, "raw", "em", seed, **sizes)
            out.append(em)
            for chart in RATES:
                base = replace(em, chart=chart)
                out += [
                    replace(base, method="gd", lr=RATES[chart]),
                    replace(base, method="ngd", lr=1.0, damping=1e-2),
                    replace(base, method="small", lr=0.02, damping=1e-8),
                ]
    return out


def full() -> list[Spec]:
    """Ten seeds, and the collar's width on the resolved chart."""
    tube = replace(Spec((0.3, 2.0), "tube", "gd"), lr=1.0)
    widths = [replace(tube, eps=eps) for eps in (1e-8, 1e-3, 0.05, 0.2)]
    return [*specs(range(1, 11)), *widths]


SINGULAR_STARTS = Sweep(
    "singular-starts",
    run,
    {
        "small": lambda: specs([1], teachers=TEACHERS[:1], starts=40, steps=1500),
        "book": lambda: specs([1]),
        "full": full,
    },
    text="Starts that reach a singular model's truth, over charts, methods and seeds.",
)
