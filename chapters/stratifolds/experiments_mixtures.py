"""The second paper's contest: mixtures in relative coordinates against their rivals.

geolib sweep stratifold-contest --size full --publish

All methods work on batches of starts of one weighted sample: the nodes of an exact
quadrature for the near-overlapping pairs, the rows of a table for real data.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mixture_race as race
import numpy as np
import torch
from mixture_race import Mixture, Race, Task
from torch import Tensor

from geolib.data import load
from geolib.stratifolds import kmeans_start
from geolib.sweep import Sweep

SEPARATIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
TABLES = {  # name: components; four principal components, at most 300 rows
    "uci/iris": 3,
    "uci/wine": 3,
    "uci/wheat-seeds": 3,
    "digits": 5,
    "uci/banknote_authentication": 2,
    "uci/glass": 3,
    "uci/pima-indians-diabetes": 3,
    "uci/ionosphere": 3,
    "uci/abalone": 3,
    "uci/winequality-white": 3,
}
KINDS = ("full", "diagonal", "spherical")  # of a table's covariances
RATES = tuple(10 ** (k / 2) for k in range(-6, 4))  # 0.001 to 31.6, all methods alike
TUNING, SEEDS = (100, 101, 102), tuple(range(10))
PRIOR = 1.0  # rows of unit covariance that each component of a table is given
LIBRARY = "scikit-learn"

METHODS: dict[str, tuple[Callable[..., None], str, bool]] = {  # chart, has a rate
    "EM": (race.em, "standard", False),
    "EM, relative": (race.em, "relative", False),
    "SQUAREM": (race.squarem, "standard", False),
    "over-relaxed EM": (race.over_relaxed, "standard", True),
    "EM, then natural gradient": (race.hybrid, "standard", True),
    "split and merge": (race.split_merge, "standard", False),
    **{
        f"{name}, {chart}": (rule, chart, True)
        for name, rule in (
            ("natural gradient", race.natural),
            ("Adam", race.adam),
            ("descent", race.descent),
            ("momentum", race.momentum),
        )
        for chart in ("standard", "relative", "moduli")
    },
}


# Tasks and starts


def pair_task(separation: float, known: bool) -> Task:
    """Two unit Gaussians so far apart, weights 0.6 and 0.4, by quadrature."""
    x = torch.linspace(-9, 10, 191, dtype=torch.float64)[:, None]
    log_p = torch.logaddexp(
        math.log(0.6) - 0.5 * x[:, 0] ** 2,
        math.log(0.4) - 0.5 * (x[:, 0] - separation) ** 2,
    )
    q = log_p.exp() / log_p.exp().sum()
    task = Task(x, q, 2, "known" if known else "full")
    one = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    means = torch.tensor([[[0.0], [separation]]], dtype=torch.float64)
    truth = Mixture(one.log(), means, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    floor = float(task.evaluate(truth)[0])
    mean = q @ x[:, 0]
    sd = torch.ones(()) if known else (q @ (x[:, 0] - mean) ** 2).sqrt()
    single = Mixture(one.log(), mean.expand(1, 2, 1), sd.double().expand(1, 2, 1, 1))
    task = replace(task, floor=floor)
    return replace(task, scale=float(task.evaluate(single)[0]))


def table_task(name: str, kind: str) -> Task:
    """At most 300 rows of a table by their four first principal components."""
    data = load(name)
    x = torch.tensor(data.x).double().flatten(1)
    x = x[torch.tensor(np.random.default_rng(0).permutation(len(x))[:300])]
    x = x - x.mean(0)
    x = x[:, x.std(0) > 1e-9]
    x = x / x.std(0)
    x = torch.linalg.svd(x, full_matrices=False)[0][:, :4] * len(x) ** 0.5
    n = len(x)
    q = torch.full((n,), 1 / n, dtype=torch.float64)
    return Task(x, q, TABLES[name], kind, prior=PRIOR / n)


def starts(task: Task, kind: str, seeds: Sequence[int]) -> Mixture:
    """k-means++ on 300 rows, or a pair near the overlap."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng([7, seed])
        if kind == "near":
            w, m = rng.uniform(0.2, 0.8), 0.2 + 0.1 * rng.standard_normal(2)
            sd = (
                np.ones(2)
                if task.kind == "known"
                else np.exp(0.05 * rng.standard_normal(2))
            )
            found.append((np.log([w, 1 - w]), m[:, None], sd[:, None, None]))
            continue
        x = task.x
        if task.prior == 0:
            x = x[rng.choice(len(x), 300, p=task.q.numpy())]
            x = x + 0.01 * torch.tensor(rng.standard_normal(x.shape))
        start = kmeans_start(x, task.K, seed=seed)
        S = race.restricted(start.covariances, task.kind)
        L = torch.linalg.cholesky(torch.ones_like(S) if task.kind == "known" else S)
        found.append((start.weights.log(), start.means, L))
    stacked = [torch.stack([torch.as_tensor(f[i]) for f in found]) for i in range(3)]
    return Mixture(*(t.double() for t in stacked))


Starts = tuple[Mixture, Tensor, Tensor]


@cache
def problem(name: str, budget: int) -> tuple[Task, dict[str, Starts]]:
    """A task with starts and targets for tuning and for the report.

    The third of each is minus the mean log-likelihood at EM's limit, for a table.
    """
    table, _, kind = name.partition(" | ")
    if table in TABLES:
        task, begin = table_task(table, kind or "full"), "k-means++"
    else:
        variance, separation, begin = name.split(" | ")
        task = pair_task(float(separation), variance == "known variance")
    sets: dict[str, Starts] = {}
    for use, seeds in (("tuning", TUNING), ("report", SEEDS)):
        start = starts(task, begin, seeds)
        target = torch.full((len(seeds),), 1e-3 * task.scale, dtype=torch.float64)
        likelihood = target
        if table in TABLES:  # as good as EM after four times the budget
            run = Race(task, "standard", start, target - math.inf, target)
            run.run(race.em, 4 * budget, still=1e-10)
            target, limit = run.best + 1e-6, run.state(run.ends)
            likelihood = replace(task, prior=0.0).evaluate(limit)[0]
        sets[use] = start, target, likelihood
    return task, sets


@dataclass(frozen=True)
class Spec:
    """One method on one task, all seeds: `task` names a table or a pair.

    A table's name may be followed by the kind of its covariances.
    """

    task: str
    method: str
    budget: int = 1500


def still(rule: race.Rule) -> float:
    """What a run must gain between two looks: the natural gradient stops at a maximum."""
    return 1e-14 if rule in (race.natural, race.hybrid) else -1.0


Order = tuple[
    float, float
]  # mean log passes of the tuning starts, mean log of what is left


def trial(spec: Spec, rates: Sequence[float], to_beat: float) -> dict[float, Order]:
    """How well these rates do on the tuning starts.

    A rate whose unfinished runs can no longer bring its mean below the best known
    one is given up, which does not change which rate is best.
    """
    rule, chart, _ = METHODS[spec.method]
    task, sets = problem(spec.task, spec.budget)
    start, target, _ = sets["tuning"]
    many = Mixture(*(t.repeat(len(rates), *[1] * (t.ndim - 1)) for t in start))
    every = torch.tensor(rates, dtype=torch.float64).repeat_interleave(len(target))
    run = Race(task, chart, many, target.repeat(len(rates)), every)

    def mean(late: float) -> Tensor:
        return run.passes.clamp_max(late).reshape(len(rates), -1).log().mean(1)

    def hopeless(run: Race) -> Tensor:
        done = run.passes.isfinite().reshape(len(rates), -1).all(1)
        so_far = mean(run.count)  # of an unfinished rate, a bound from below
        best = min([to_beat, *so_far[done].tolist()])
        return (~done & (so_far > best)).repeat_interleave(len(target))

    run.run(rule, spec.budget, hopeless, still(rule))
    left = (run.best - run.target).clamp(1e-16, 1e3).reshape(len(rates), -1)
    orders = zip(mean(spec.budget).tolist(), left.log().mean(1).tolist(), strict=True)
    return dict(zip(rates, orders, strict=True))


def tuned(spec: Spec) -> tuple[float, list[float]]:
    """The rate of the fewest passes on the tuning starts, never at the grid's end.

    A grid whose best is at an end is continued there by two more rates, up to a
    rate of 1e-6 or 1e6.
    """
    scores: dict[float, Order] = {}
    new: tuple[float, ...] = RATES
    while new:
        to_beat = min((p for p, _ in scores.values()), default=math.inf)
        scores |= trial(spec, new, to_beat)
        best, low, high = min(scores, key=lambda r: scores[r]), min(scores), max(scores)
        new = ()
        if best == low and low > 1e-6:
            new = (low / 10, low / 10**0.5)
        if best == high and high < 1e6:
            new = (high * 10**0.5, high * 10)
    return best, sorted(scores)


def library(spec: Spec) -> dict[str, Any]:
    """scikit-learn's EM from the same starts; one iteration is one pass.

    It knows no prior, so it has arrived when its likelihood is that of EM's limit.
    """
    from sklearn.mixture import GaussianMixture

    task, sets = problem(spec.task, spec.budget)
    start, _, goals = sets["report"]
    passes: list[int | None] = []
    iterations: list[int] = []
    short = {"diagonal": "diag"}.get(task.kind, task.kind)
    begin = time.process_time()
    for k, goal in enumerate(goals.tolist()):
        P = race.inverted(start.L[k])
        P = P.mT @ P
        P = P.diagonal(dim1=-2, dim2=-1) if task.kind != "full" else P
        P = P[:, 0] if task.kind == "spherical" else P
        fit = GaussianMixture(
            task.K, covariance_type=short, tol=1e-11, max_iter=spec.budget,
            weights_init=start.log_a[k].exp(), means_init=start.m[k], precisions_init=P,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            fit.fit(task.x)
        iterations.append(fit.n_iter_)
        arrived = np.flatnonzero(-np.array(fit.lower_bounds_) <= goal + 1e-6)
        passes.append(int(arrived[0]) + 1 if len(arrived) else None)
    spent = time.process_time() - begin
    return {
        "rate": None,
        "interior": True,
        "passes": passes,
        "ms_a_pass": float(f"{1e3 * spent / sum(iterations):.3g}"),
    }


def run(spec: Spec) -> dict[str, Any]:
    """Passes to the target for each seed, None where the budget ended first."""
    if spec.method == LIBRARY:
        return library(spec)
    rule, chart, has_rate = METHODS[spec.method]
    rate, grid = tuned(spec) if has_rate else (1.0, [0.0, 2.0])
    task, sets = problem(spec.task, spec.budget)
    start, target, _ = sets["report"]
    report = Race(task, chart, start, target, torch.full_like(target, rate))
    begin = time.process_time()
    report.run(rule, spec.budget, still=still(rule))
    spent = time.process_time() - begin
    passes = report.passes.tolist()
    return {
        "rate": float(f"{rate:.3g}") if has_rate else None,
        "interior": grid[0] < rate < grid[-1],
        "passes": [int(p) if math.isfinite(p) else None for p in passes],
        "left": [float(f"{v:.3g}") for v in (report.best - target).tolist()],
        "ms_a_pass": float(f"{1e3 * spent / report.count:.3g}"),
    }


def pairs(separations: Sequence[float] = SEPARATIONS) -> list[str]:
    """Names of the near-overlapping tasks."""
    return [
        f"{variance} | {separation} | {kind}"
        for variance in ("known variance", "free variance")
        for separation in separations
        for kind in ("near", "k-means++")
    ]


def tables() -> list[str]:
    """Names of the tables, full covariances first."""
    kinds = ["" if kind == "full" else f" | {kind}" for kind in KINDS]
    return [table + kind for kind in kinds for table in TABLES]


def specs(tasks: Sequence[str], budget: int = 1500) -> list[Spec]:
    """Every method that a task has; an interrupted sweep has whole tasks."""
    found = []
    for task in tasks:
        K = TABLES.get(task.partition(" | ")[0])  # None: a pair
        found += [
            Spec(task, method, budget if K is None else 2 * budget // 5)
            for method in (*METHODS, LIBRARY)
            if ("moduli" not in method or task.startswith("known"))
            and (method != "split and merge" or (K or 2) > 2)
            and (method != LIBRARY or K is not None)
        ]
    return found


CONTEST = Sweep(
    "stratifold-contest",
    run,
    {
        "small": lambda: specs(pairs([1.0])[:1], 200),
        "book": lambda: specs(pairs([0.4, 1.0])),
        "full": lambda: specs([*pairs(), *tables()]),
    },
    text="Passes to the optimum of mixtures, relative coordinates against their rivals.",
    about={"device": "two shared cores, one thread", "seeds": len(SEEDS)},
)
