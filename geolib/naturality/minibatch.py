r"""The natural gradient on fewer samples than parameters, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.naturality.base import PointOptimizer
from geolib.naturality.point import Point, solve_weighted
from geolib.naturality.problem import Problem
from geolib.naturality.subject import Run, Subject
from geolib.naturality.towers import two_layer


class MinibatchNatural(PointOptimizer):
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

    def update(self, q: Point) -> Tensor:
        n = len(q.z)
        size = self.options["batch"] or n
        if size > n:
            raise ValueError(f"batch: expected at most {n} samples, got {size}")
        step = int(self.memory.get("t", 0))
        self.memory["t"] = step + 1
        rng = np.random.default_rng([self.options["seed"], step])
        rows = torch.as_tensor(rng.permutation(n)[:size]).to(q.z.device)
        A = q.A.view(n, -1, len(q.g))[rows].flatten(0, 1) * (n / size) ** 0.5
        dl = torch.zeros_like(q.dl)
        dl[rows] = q.dl[rows] * n / size
        M = self.damping_metric
        M = M() if callable(M) else M
        x = solve_weighted(A, q.vjp(dl), self.options["damping"], M, q.rtol)
        return -self.options["lr"] * x


def minibatch_subject(
    batch: int | None, metric: Callable[[Run], Tensor] | None = None
) -> Subject:
    """`MinibatchNatural` as a subject; `metric` gives M in the run's chart."""

    def make(params: list[Tensor], h: float, run: Run) -> torch.optim.Optimizer:
        M = None if metric is None else (lambda: metric(run))
        return MinibatchNatural(
            params, h, batch=batch, damping_metric=M, metric=run.metric
        )

    return Subject(f"ngd, batch {batch or 'full'}", make)


def home_metric(run: Run) -> Tensor:
    """The home chart's identity, carried as a metric tensor to the run's chart."""
    return run.push_metric(torch.eye(len(run.home.theta0)).to(run.home.theta0))


def reference_metric(run: Run) -> Tensor:
    """The Fisher metric of the probe inputs, in the run's chart."""
    probe = run.problem.probe
    if probe is None:
        raise ValueError("problem: expected probe inputs for the reference metric")
    x = torch.cat([t.detach().reshape(-1) for t in run.leaves])
    J = torch.func.jacrev(probe)(x).flatten(0, 1)
    return J.T @ J / len(J)


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
