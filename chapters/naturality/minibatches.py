r"""The natural gradient of random batches, and the metrics that damp it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.naturality import GeometricOptimizer, LocalGeometry, OptimizerSpec
from geolib.naturality.local_geometry import solve_weighted


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
        # the geometry of the batch alone: its means are over its own samples
        A = q.A.view(n, -1, len(q.g))[rows].flatten(0, 1) * (n / size) ** 0.5
        dl = torch.zeros_like(q.dl)
        dl[rows] = q.dl[rows] * n / size
        M = self.damping_metric
        M = M() if callable(M) else M
        options = self.options["damping"], M, self.options["rtol"]
        return -self.options["lr"] * solve_weighted(A, q.vjp(dl), *options)


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
