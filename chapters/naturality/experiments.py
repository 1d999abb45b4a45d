r"""The experiments of the chapter on naturality: tasks, the stored audit, drawings.

    geolib run naturality                     # reads the stored audit
    geolib sweep audit --size full            # twenty minutes of one core
    geolib sweep audit --size full --publish  # writes `measured/audit-*.json` from it

The sweep may be stopped and started again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.core import integrate
from geolib.data import load as load_data
from geolib.naturality import (
    OPTIMIZERS,
    SEEDS,
    Defect,
    Embedding,
    GeometricOptimizer,
    LocalGeometry,
    OptimizerSpec,
    Problem,
    Projection,
    Protocol,
    Verdict,
    affine_mlp,
    audit,
    cross_entropy,
    linear_model,
    mse,
    naturality_class,
    regression_problem,
    run_optimizer,
    softmax_problem,
    two_layer,
)
from geolib.networks import erf_kernels
from geolib.plotting import COLORS
from geolib.sweep import Sweep, grid, measured

# ---- problems ------------------------------------------------------------------------


def components(x: np.ndarray, k: int) -> np.ndarray:
    """The first k principal components of x (n, d), each with unit variance."""
    x = x - x.mean(0)
    U, _, _ = np.linalg.svd(x, full_matrices=False)
    sign = np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])])
    return (U * sign)[:, :k] * np.sqrt(len(x))


def digits_problem(
    seed: int = 0, samples: int = 200, inputs: int = 6, hidden: int = 3
) -> Problem:
    """Zeros, ones and twos of the digits: principal components, two free logits.

    The default seed has the best conditioned metric of seeds 0, 1, 2.
    """
    d = load_data("digits")
    keep = np.flatnonzero(d.y < 3)[:samples]
    x = torch.as_tensor(components(np.asarray(d.x)[keep], inputs))
    y = torch.as_tensor(np.asarray(d.y)[keep]).long()
    module = affine_mlp([inputs, hidden, 2], seed=seed)
    return Problem.of(module, x, cross_entropy(y, reference=True))


def diabetes_problem(seed: int = 1, inputs: int = 10, hidden: int = 1) -> Problem:
    """Disease progression from principal components of the ten measurements.

    The default seed has the best conditioned metric of seeds 0, 1, 2.
    """
    d = load_data("diabetes")
    x = torch.as_tensor(components(np.asarray(d.x), inputs))
    y: Tensor = torch.as_tensor(np.asarray(d.y)).double()
    y = ((y - y.mean()) / y.std()).reshape(-1, 1)
    return Problem.of(affine_mlp([inputs, hidden, 1], seed=seed, gain=2.0), x, mse(y))


def wide_problem(seed: int, width: int = 12, n: int = 10, m: int = 100) -> Problem:
    """A tanh network with more parameters (4 a unit) than its n samples."""
    rng = np.random.default_rng(seed)

    def inputs(k: int) -> Tensor:
        return torch.tensor(np.hstack([rng.standard_normal((k, 2)), np.ones((k, 1))]))

    x, probe = inputs(n), inputs(m)
    w = torch.tensor(rng.standard_normal((width, 3)))
    a = torch.tensor(rng.standard_normal((1, width)) / np.sqrt(width))
    teacher = torch.tensor(rng.standard_normal((1, width)) / np.sqrt(width))
    y = torch.tanh(x @ w.T) @ teacher.T
    y = y + 0.05 * torch.tensor(rng.standard_normal((n, 1)))
    return two_layer(x, y, w, a, probe=probe)


def best_conditioned(seeds: Sequence[int], count: int = 3) -> list[int]:
    """The seeds of `twin_problem` whose narrow metric is best conditioned."""

    def cond(seed: int) -> float:
        narrow = twin_problem(seed, 1, "standard")[1]
        w = torch.linalg.eigvalsh(narrow.point(narrow.theta0).F)
        return float(w[-1] / w[0].clamp(min=1e-300))

    return sorted(sorted(seeds, key=cond)[:count])


# ---- towers ----------------------------------------------------------------------


def duplication(
    k: int, d: int, c: int, copies: int, scaling: str = "standard"
) -> Embedding:
    r"""Replace every hidden unit by `copies` identical ones.

    Standard scaling divides the outgoing weights, :math:`a_i \mapsto a_i/r`; in
    mean-field scaling the empirical measure of units is the same, and nothing is
    divided: this is the block embedding of the mean-field tower.

    Args:
        k, d, c: numbers of units, inputs and outputs.
        copies: of each unit.
        scaling: as in `two_layer`.

    Raises:
        ValueError: fewer than one copy.

    Source: :eq:`drv-naturality-twins` (derivations).

    Examples:
        >>> iota = duplication(1, 1, 1, 2)
        >>> iota(torch.tensor([3.0, 4.0]))
        tensor([3., 3., 2., 2.])
    """
    if copies < 1:
        raise ValueError(f"copies: expected at least 1, got {copies}")
    divide = {"standard": copies, "mean-field": 1, "ntk": copies**0.5}[scaling]

    def iota(theta: Tensor) -> Tensor:
        w, a = theta[: k * d].view(k, d), theta[k * d :].view(c, k)
        wide = [w.repeat_interleave(copies, 0), a.repeat_interleave(copies, 1) / divide]
        return torch.cat([t.reshape(-1) for t in wide])

    return Embedding(iota, f"{copies} copies, {scaling}")


def prune_dead(
    x: Tensor, weights: Tensor, readout: Tensor, activation: str = "relu"
) -> tuple[Tensor, Projection, Embedding]:
    r"""Find the hidden units that are off on all of x, and maps that drop or add them.

    A unit is dead when :math:`\sigma(w\cdot x) = 0` and
    :math:`\sigma'(w\cdot x) = 0` on the data: neither it nor its weights can be felt.

    Args:
        x: the data, (n, d).
        weights, readout: of the network, (k, d) and (c, k).
        activation: `relu`, or another with :math:`\sigma(0) = 0`.

    Returns:
        A mask of the live units (k,), the projection that forgets dead units and the
        embedding that puts these very ones back.

    Source: :eq:`drv-naturality-dead` (derivations).

    Examples:
        >>> x = torch.ones(1, 1)
        >>> live, pi, iota = prune_dead(x, torch.tensor([[1.0], [-1.0]]), torch.ones(1, 2))
        >>> live, pi(torch.tensor([1.0, -1.0, 5.0, 6.0]))
        (tensor([ True, False]), tensor([1., 5.]))
    """
    s = x @ weights.T
    live = (s > 0).any(0) if activation == "relu" else (s.abs() > 0).any(0)
    k, d = weights.shape
    c = readout.shape[0]
    m = int(live.sum())

    def pi(theta: Tensor) -> Tensor:
        w, a = theta[: k * d].view(k, d), theta[k * d :].view(c, k)
        return torch.cat([w[live].reshape(-1), a[:, live].reshape(-1)])

    where = torch.nonzero(live)[:, 0]

    def iota(theta: Tensor) -> Tensor:
        w = weights.index_copy(0, where, theta[: m * d].view(m, d))
        a = readout.index_copy(1, where, theta[m * d :].view(c, m))
        return torch.cat([w.reshape(-1), a.reshape(-1)])

    return live, Projection(pi, "forget dead units"), Embedding(iota, "add dead units")


def deep_linear(d: int, c: int, k: int) -> tuple[Projection, list[tuple[int, int]]]:
    r"""Return the product :math:`\pi(W_2, W_1) = W_2W_1`, and the shapes upstairs.

    A submersion onto all (c, d) matrices wherever :math:`k \ge \min(c, d)` and the
    factors have full rank.

    Args:
        d, c, k: numbers of inputs, outputs and hidden units.

    Source: :eq:`drv-naturality-submersion` (derivations).

    Examples:
        >>> pi, shapes = deep_linear(1, 1, 2)
        >>> pi(torch.tensor([1.0, 2.0, 3.0, 4.0])), shapes
        (tensor([11.]), [(1, 2), (2, 1)])
    """

    def pi(theta: Tensor) -> Tensor:
        W2, W1 = theta[: c * k].view(c, k), theta[c * k :].view(k, d)
        return (W2 @ W1).reshape(-1)

    return Projection(pi, f"product through {k}"), [(c, k), (k, d)]


def weight_norm(rows: int, d: int) -> tuple[Projection, list[tuple[int, ...]]]:
    r"""Return weight normalisation, row by row, and the shapes upstairs.

    .. math:: \pi(g, v) = g\,v/|v| .

    Args:
        rows, d: of the weight matrix.

    Source: :eq:`drv-naturality-submersion` (derivations); Salimans and Kingma 2016.

    Examples:
        >>> weight_norm(1, 2)[0](torch.tensor([5.0, 3.0, 4.0]))
        tensor([3., 4.])
    """

    def pi(theta: Tensor) -> Tensor:
        g, v = theta[:rows], theta[rows:].view(rows, d)
        return (g[:, None] * v / v.norm(dim=1, keepdim=True)).reshape(-1)

    return Projection(pi, "weight normalisation"), [(rows,), (rows, d)]


def polynomial_tower(
    high: int, low: int, n: int = 60, seed: int = 0
) -> tuple[Problem, Problem, Projection, Projection]:
    r"""Return polynomials of degree `high` and `low` on a grid of [-1, 1].

    Args:
        high, low: degrees, high > low.
        n: points of the grid.
        seed: of noise and start.

    Raises:
        ValueError: `low` is not below `high`.

    Source: :eq:`drv-naturality-polynomials` (derivations).

    Examples:
        >>> wide, narrow, orthogonal, truncation = polynomial_tower(2, 1)
        >>> truncation(torch.tensor([1.0, 2.0, 3.0]))
        tensor([1., 2.])

    Returns:
        The wide and the narrow problem, the projection that is orthogonal in
        :math:`L^2` of the grid, and the one that drops coefficients.
    """
    if not 0 <= low < high:
        raise ValueError(f"low, high: expected 0 <= low < high, got {low}, {high}")
    rng = np.random.default_rng(seed)
    t = torch.linspace(-1, 1, n, dtype=torch.float64)
    V = torch.stack([t**j for j in range(high + 1)], dim=1)
    y = torch.tensor(np.sin(2.5 * t.numpy()) + 0.1 * rng.standard_normal(n))[:, None]
    start = torch.tensor(rng.standard_normal((1, high + 1)))
    S = torch.linalg.lstsq(V[:, : low + 1], V).solution  # narrow coefficients of V
    wide = linear_model(V, y, start)
    narrow = linear_model(V[:, : low + 1], y, start[:, : low + 1])
    orthogonal = Projection(lambda c: S @ c, "orthogonal in L2")
    truncation = Projection(lambda c: c[: low + 1], "dropping coefficients")
    return wide, narrow, orthogonal, truncation


def twin_problem(
    seed: int,
    copies: int,
    scaling: str,
    *,
    k: int = 3,
    d: int = 2,
    c: int = 2,
    n: int = 60,
) -> tuple[Problem, Problem, Embedding]:
    """Return a wide network of twins, its narrow one, and the embedding between them.

    Args:
        seed: of data, teacher and start.
        copies: of each unit.
        scaling: as in `two_layer`.
        k, d, c: hidden units, inputs and outputs; n: samples.

    Source: :eq:`drv-naturality-twins` (derivations).

    Examples:
        >>> wide, narrow, iota = twin_problem(0, 2, "mean-field")
        >>> gap = wide.outputs(iota(narrow.theta0)) - narrow.outputs(narrow.theta0)
        >>> bool(gap.abs().max() < 1e-12)
        True
    """
    rng = np.random.default_rng(seed)
    x = torch.tensor(np.hstack([rng.standard_normal((n, d)), np.ones((n, 1))]))
    w = torch.tensor(1.3 * rng.standard_normal((k, d + 1)))
    a = torch.tensor(1.3 * rng.standard_normal((c, k)))
    if scaling == "mean-field":
        a = a * k
    y = two_layer(x, torch.zeros(n, c).double(), w, a, scaling)
    target = y.outputs(y.theta0) + 0.05 * torch.tensor(rng.standard_normal((n, c)))
    w = w + 0.3 * torch.tensor(rng.standard_normal(w.shape))
    a = a * (1 + 0.3 * torch.tensor(rng.standard_normal(a.shape)))
    narrow = two_layer(x, target, w, a, scaling)
    iota = duplication(k, d + 1, c, copies, scaling)
    start = iota(narrow.theta0)
    size = copies * k * (d + 1)
    wide = two_layer(
        x,
        target,
        start[:size].view(copies * k, d + 1),
        start[size:].view(c, copies * k),
        scaling,
    )
    return wide, narrow, iota


# ---- minibatches -----------------------------------------------------------------


class MinibatchNatural(GeometricOptimizer):
    r"""Natural gradient descent that sees a random batch at every step.

    .. math:: x \leftarrow x - h\,F_B^{+} g_B, \qquad
        F_B = \tfrac1{|B|}\sum_{i \in B} J_i^T W_i J_i .

    The closure gives the full batch; rows are chosen here, so that runs in two charts
    see the same batches. :math:`F_B` is singular whenever the batch has fewer outputs
    than there are parameters; `damping_metric` M then chooses the step of minimum
    M-norm, the identity when None.

    Args:
        batch: samples per step; None takes all.
        seed: of the batches.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        batch: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if batch is not None and batch < 1:
            raise ValueError(f"batch: expected at least 1 sample, got {batch}")
        super().__init__(params, lr, batch=batch, seed=seed, **options)

    def update(self, q: LocalGeometry) -> Tensor:
        n = len(q.z)
        size = self.options["batch"] or n
        if size > n:
            raise ValueError(f"batch: expected at most {n} samples, got {size}")
        step = int(self.memory.get("t", 0))
        self.memory["t"] = step + 1
        rng = np.random.default_rng([self.options["seed"], step])
        rows = torch.as_tensor(rng.permutation(n)[:size]).to(q.z.device)
        damping = self.options["damping"]
        x = q.minibatch_gradient(rows, damping, self.damping_metric)
        return -self.options["lr"] * x


def minibatch_spec(
    batch: int | None, metric: Callable[[Any], Tensor] | None = None
) -> OptimizerSpec:
    """`MinibatchNatural` as a subject; `metric` gives M in the run's chart."""

    def make(params: list[Tensor], h: float, run: Any) -> torch.optim.Optimizer:
        M = None if metric is None else (lambda: metric(run))
        return MinibatchNatural(
            params, h, batch=batch, damping_metric=M, output_metric=run.output_metric
        )

    return OptimizerSpec(f"ngd, batch {batch or 'full'}", make)


def home_metric(run: Any) -> Tensor:
    """The home chart's identity, carried as a metric tensor to the run's chart."""
    return run.push_metric(torch.eye(len(run.home.theta0)).to(run.home.theta0))


def reference_metric(run: Any) -> Tensor:
    """The Fisher metric of the probe inputs, in the run's chart."""
    probe = run.problem.probe
    if probe is None:
        raise ValueError("problem: expected probe inputs for the reference metric")
    x = torch.cat([t.detach().reshape(-1) for t in run.leaves])
    J = torch.func.jacrev(probe)(x).flatten(0, 1)
    return J.T @ J / len(J)


# ---- width -----------------------------------------------------------------------


def width_data(n: int = 12, d: int = 3, m: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """The same training inputs, test inputs and targets at every width."""
    rng = np.random.default_rng(1000)
    x = torch.tensor(rng.standard_normal((n, d)))
    probe = torch.tensor(rng.standard_normal((m, d)))
    return x, probe, torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]


def erf_weights(width: int, seed: int, scaling: str) -> tuple[Tensor, Tensor]:
    """Weights (N, d) and readout (1, N) of a random network on `width_data`."""
    draw = np.random.default_rng(seed)
    w = torch.tensor(draw.standard_normal((width, width_data()[0].shape[1])))
    a = torch.tensor(draw.standard_normal((1, width)))
    return w, a / width**0.5 if scaling == "standard" else a


def erf_network(width: int, seed: int, scaling: str) -> Problem:
    """A random erf network on `width_data`."""
    x, probe, y = width_data()
    return two_layer(x, y, *erf_weights(width, seed, scaling), scaling, "erf", probe)


@dataclass(frozen=True)
class WidthRun:
    """One network trained to time T.

    Attributes:
        train: relative deviation of training outputs from the law of the flow.
        ntk, nngp: root mean square deviation of test outputs from the predictors with
            either kernel.
    """

    width: int
    train: float
    ntk: float
    nngp: float


def width_runs(
    width: int,
    seeds: Sequence[int],
    scaling: str = "ntk",
    optimizer: str | None = None,
    horizon: float = 1.0,
    steps: int = 12,
) -> list[WidthRun]:
    r"""Train a network a seed by the natural flow and compare with the closed forms.

    The natural flow on training outputs obeys :math:`\dot f = -(f - y)` at every
    width:

    .. math:: f_T = y + e^{-T}(f_0 - y), \qquad
        f_T(x) \approx f_0(x) + (1 - e^{-T})\,k(x)^TK^{-1}(y - f_0) .

    All seeds are integrated at once; an `optimizer` trains them one after the other.
    """
    problems = [erf_network(width, s, scaling) for s in seeds]
    start = torch.stack([p.theta0 for p in problems])
    if optimizer is None:
        times, field = [0.0, horizon], natural_field(width, scaling)
        step = horizon / steps
        ends = integrate(field, start, times, method="rk4", step=step).final
    else:
        h = horizon / steps
        ends = torch.stack([run_optimizer(optimizer, p, h, steps) for p in problems])
    decay = float(np.exp(-horizon))
    x, probe, y = width_data()
    kernels = list(zip(erf_kernels(x, x), erf_kernels(probe, x), strict=True))
    runs = []
    for problem, end in zip(problems, ends, strict=True):
        f0, p0 = problem.outputs(problem.theta0), _probe(problem, problem.theta0)
        train_gap = problem.outputs(end) - y - decay * (f0 - y)
        nngp, ntk = (
            p0 + (1 - decay) * k @ torch.linalg.solve(K, y - f0) for K, k in kernels
        )
        gaps = [_probe(problem, end) - predicted for predicted in (ntk, nngp)]
        rms = [float(gap.square().mean().sqrt()) for gap in gaps]
        runs.append(WidthRun(width, float(train_gap.norm() / (f0 - y).norm()), *rms))
    return runs


def natural_field(width: int, scaling: str) -> Callable[[float, Tensor], Tensor]:
    r"""The natural flow of many erf networks at once, (seeds, p) to the same.

    .. math:: \dot a = h^T v, \quad \dot w = (\delta \circ v)^T x, \qquad
        K v = y - f, \quad K = h h^T + \delta\delta^T \circ x x^T,

    with activations h and their gradients :math:`\delta`, scaling included. A kernel
    of the samples stands in for F: no Jacobian is formed.
    """
    x, _, y = width_data()
    s = {"standard": 1.0, "ntk": width**-0.5}[scaling]
    size, inputs = width * x.shape[1], x @ x.T

    def field(_: float, theta: Tensor) -> Tensor:
        w = theta[:, :size].view(len(theta), width, -1)
        a = theta[:, None, size:]
        u = x @ w.mT
        h = s * torch.erf(u)
        slope = s * 2 / math.pi**0.5 * (-u * u).exp() * a
        K = h @ h.mT + slope @ slope.mT * inputs
        residual = y - h @ a.mT
        v = torch.linalg.pinv(K, hermitian=True, rtol=1e-10) @ residual
        dw = (slope * v).mT @ x
        return torch.cat([dw.flatten(1), (h.mT @ v)[..., 0]], dim=1)

    return field


def _probe(problem: Problem, theta: Tensor) -> Tensor:
    assert problem.probe is not None
    return problem.probe(theta)


# ---- the stored audit --------------------------------------------------------------

PROTOCOL = Protocol(horizon=0.5, counts=(16, 32, 64, 128), seed=0)
TASKS = {  # the problem of a seed, and the seeds of the stored table
    "regression": (regression_problem, SEEDS),
    "softmax": (softmax_problem, (102,)),
}
CELL = ("verdict", "values", "slope", "plateau", "self")


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
    report = audit(spec.optimizer, problem, protocol=protocol)
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
    names, steps = list(OPTIMIZERS), [PROTOCOL.counts]
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
        "book": lambda: grid(Spec, optimizer=list(OPTIMIZERS)),
        "full": every_audit,
    },
    text="Naturality of optimizers, over problems and step sizes.",
    kept_as=compact,
    about={"horizon": PROTOCOL.horizon, "maps_seed": PROTOCOL.seed, "cell": CELL},
)


def stored_audit(path: Path | str) -> dict[str, Any]:
    """A published table: `about` and `cells[seed][optimizer][family]`.

    Raises:
        ValueError: the file is missing or is no such table.
    """
    cells: dict[str, Any] = {}
    try:
        table = measured(path)
        if not table.entries:
            raise ValueError("there is nothing in it")
        for key in sorted(table.entries, key=lambda k: int(k.partition(" | ")[0])):
            seed, _, name = key.partition(" | ")
            cells.setdefault(seed, {})[name] = {
                family: dict(zip(CELL, cell, strict=True))
                for family, cell in table.entries[key].items()
            }
        steps = len(cells[seed][name]["affine"]["values"])
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"path: {path} is no audit table ({error})") from None
    task = Path(path).stem.removeprefix("audit-")
    counts = list(PROTOCOL.counts[:steps])
    return {"about": {**table.about, "task": task, "counts": counts}, "cells": cells}


def cells_of(
    table: dict[str, Any], names: Sequence[str], families: Sequence[str]
) -> list[dict[str, Any]]:
    """The stored cells of some optimizers and families, for every seed that has them.

    Raises:
        ValueError: an optimizer that the table has for no seed.
    """
    found = [
        cells[n][f]
        for n in names
        for cells in table["cells"].values()
        if n in cells
        for f in families
    ]
    missing = [n for n in names if not any(n in c for c in table["cells"].values())]
    if missing:
        raise ValueError(f"names: the table has no rows {missing}")
    return found


def consensus(table: dict[str, Any], name: str, family: str) -> set[Verdict]:
    """The verdicts of a cell over all seeds: one, or several where they disagree."""
    cells = cells_of(table, [name], [family])
    return {Verdict.from_letter(cell["verdict"]) for cell in cells}


def letters(verdicts: set[Verdict]) -> str:
    """One letter, or several joined by a slash where seeds disagree."""
    return "/".join(sorted(v.letter for v in verdicts))


def show(table: dict[str, Any], name: str, family: str) -> str:
    """A cell for people: E, `U .31-.52` (plateaus) or `N 1.01` (slopes)."""
    verdicts = consensus(table, name, family)
    text = letters(verdicts)
    if verdicts not in ({Verdict.UNNATURAL}, {Verdict.NATURAL}):
        return text
    key = "plateau" if verdicts == {Verdict.UNNATURAL} else "slope"
    values = [cell[key] for cell in cells_of(table, [name], [family])]
    ends = [f"{v:.2g}" for v in (min(values), max(values))]
    return f"{text} {ends[0] if ends[0] == ends[1] else '–'.join(ends)}"


def recompute(table: dict[str, Any], seed: int, name: str, family: str) -> Defect:
    """One cell again, from scratch, by the protocol the table states."""
    about = table["about"]
    protocol = Protocol(
        about["horizon"], tuple(about["counts"]), seed=about["maps_seed"]
    )
    problem = TASKS[about["task"]][0](seed)
    report = audit(name, problem, families=[family], protocol=protocol)
    return report[family]


# ---- drawings ----------------------------------------------------------------------

SHADES = {
    "E": COLORS["green"],
    "N": COLORS["sky"],
    "U": COLORS["orange"],
    "?": "#bbbbbb",
    "-": "#eeeeee",
}


def square(
    ax: Any,
    corners: Sequence[str],
    arrows: Sequence[str],
    *,
    note: str = "",
    commutes: bool | None = None,
) -> None:
    """Draw one commuting square on a matplotlib axis.

    Args:
        corners: top left, top right, bottom left, bottom right (TeX is fine).
        arrows: labels of the top, bottom, left and right arrows.
        note: written in the middle.
        commutes: colours the note: green for True, orange for False, grey for None.

    Raises:
        ValueError: not four corners and four arrows.
    """
    if len(corners) != 4 or len(arrows) != 4:
        raise ValueError(
            f"corners, arrows: expected four each, got {len(corners)}, {len(arrows)}"
        )
    places = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]
    for (x, y), label in zip(places, corners, strict=True):
        ax.text(x, y, label, ha="center", va="center", fontsize=12)
    ends = [(0, 1, 0, 0.09), (2, 3, 0, -0.13), (0, 2, -0.06, 0), (1, 3, 0.06, 0)]
    align = ["center", "center", "right", "left"]
    for (i, j, dx, dy), label, ha in zip(ends, arrows, align, strict=True):
        (x0, y0), (x1, y1) = places[i], places[j]
        ax.annotate(
            "",
            xy=(x0 + 0.70 * (x1 - x0), y0 + 0.82 * (y1 - y0)),  # labels are wide
            xytext=(x0 + 0.24 * (x1 - x0), y0 + 0.18 * (y1 - y0)),
            arrowprops={"arrowstyle": "->", "color": COLORS["ink"], "lw": 1.2},
        )
        x, y = x0 + 0.47 * (x1 - x0) + dx, (y0 + y1) / 2 + dy
        ax.text(x, y, label, ha=ha, va="center", fontsize=10, color=COLORS["blue"])
    tint = {True: "green", False: "orange", None: "grey"}[commutes]
    ax.text(0.5, 0.5, note, ha="center", va="center", color=COLORS[tint], fontsize=10)
    ax.set(xlim=(-0.45, 1.45), ylim=(-0.3, 1.25))
    ax.axis("off")


def heat_map(
    ax: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
) -> None:
    """Draw verdicts as coloured, lettered cells (colour is never the only sign)."""
    from matplotlib.patches import Rectangle

    for i, line in enumerate(cells):
        for j, text in enumerate(line):
            shade = SHADES.get(text, SHADES["?"])
            ax.add_patch(Rectangle((j, i), 0.96, 0.92, color=shade))
            ax.text(j + 0.48, i + 0.5, text, ha="center", va="center", fontsize=7)
    ax.set_xticks([j + 0.48 for j in range(len(columns))], columns, rotation=40)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7)
    for label in ax.get_xticklabels():
        label.set(ha="right", fontsize=8)
    ax.set(xlim=(-0.05, len(columns)), ylim=(len(rows), -0.05))
    ax.grid(False)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def moving_table(
    table: dict[str, Any], names: Sequence[str], families: Sequence[str]
) -> dict[str, Any]:
    """The audit as a table to sort and filter, with the defects of the chosen cell."""
    by, about = ["optimizer", "family"], table["about"]
    steps = [about["horizon"] / k for k in about["counts"]]
    pairs = [(n, f) for n in names for f in families]
    seeds = list(table["cells"])

    def curve(seed: str, name: str, family: str) -> list[list[float]]:
        cell = table["cells"][seed].get(name, {}).get(family, {"values": []})
        return [
            [h, max(v, 1e-17)]
            for h, v in zip(steps, cell["values"], strict=False)
            if v is not None and math.isfinite(v)
        ]

    lines = [
        {"type": "line", "by": by, "color": color, "label": f"problem {seed}",
         "data": [curve(seed, *pair) for pair in pairs]}
        for seed, color in zip(seeds, ("blue", "orange", "green"), strict=False)
    ]  # fmt: skip
    words = [letters(consensus(table, *pair)) for pair in pairs]
    verdicts = [", ".join(sorted(consensus(table, *pair))) for pair in pairs]
    colors = {"E": "#56b4e9", "N": "#2fbf95", "U": "#e8915c", "?": "#d9d9d9"}
    controls = [
        {"name": name, "label": name, "values": list(range(len(shown))),
         "shown": list(shown), "start": start}
        for name, shown, start in (("optimizer", names, 0), ("family", families, 7))
    ]  # fmt: skip
    return {
        "controls": controls,
        "panels": [
            {"title": "verdicts", "shape": 1.0, "table": by,
             "hint": "Filter by name or verdict",
             "layers": [{"type": "cells", "data": words, "colors": colors,
                         "order": "ENU?-"}]},
            {"title": "the defect of the chosen cell", "shape": 0.7, "narrow": 1.2,
             "x": {"range": [steps[-1] / 1.3, steps[0] * 1.3], "label": "step h",
                   "log": True, "ticks": steps[::2]},
             "y": {"range": [1e-17, 10], "label": "defect", "log": True},
             "layers": lines},
        ],
        "readouts": [{"label": "verdict:", "by": by, "data": verdicts}],
    }  # fmt: skip
