r"""The width law: what the natural flow does on and off the training data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geolib.naturality.defect import train
from geolib.naturality.problem import Problem
from geolib.naturality.subject import as_subject
from geolib.naturality.towers import two_layer


def erf_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""The NNGP and NTK kernels of an infinitely wide erf network, in closed form.

    .. math:: K = \tfrac2\pi\arcsin\frac{2x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y)}}, \qquad
        \Theta = K + \tfrac4\pi\frac{x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y) - 4(x\cdot y)^2}} .

    For hidden weights N(0, I) and readout N(0, 1).

    Source: Williams 1997 for K; its derivative for the second term.
    """
    xy = x @ y.T
    norms = (1 + 2 * (x * x).sum(1))[:, None] * (1 + 2 * (y * y).sum(1))[None, :]
    K = 2 / torch.pi * torch.asin(2 * xy / norms.sqrt())
    slope = 4 / torch.pi / (norms - 4 * xy**2).sqrt()
    return K, K + xy * slope


def erf_network(
    width: int, seed: int, scaling: str, n: int = 12, d: int = 3, m: int = 20
) -> Problem:
    """A random erf network on the same n inputs (and m test inputs) at every width."""
    rng = np.random.default_rng(1000)
    x, probe = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    y = np.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((width, d))
    a = draw.standard_normal((1, width))
    if scaling == "standard":
        a = a / np.sqrt(width)
    as_tensor = torch.tensor
    return two_layer(
        as_tensor(x),
        as_tensor(y),
        as_tensor(w),
        as_tensor(a),
        scaling,
        "erf",
        as_tensor(probe),
    )


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


def width_run(
    width: int,
    seed: int,
    scaling: str = "ntk",
    optimizer: str = "ngd-rk4",
    horizon: float = 1.0,
    steps: int = 12,
) -> WidthRun:
    r"""Train one network and compare with the closed forms.

    The natural flow on training outputs obeys :math:`\dot f = -(f - y)` at every
    width:

    .. math:: f_T = y + e^{-T}(f_0 - y), \qquad
        f_T(x) \approx f_0(x) + (1 - e^{-T})\,k(x)^TK^{-1}(y - f_0) .
    """
    problem = erf_network(width, seed, scaling)
    x, probe = _inputs()
    f0, p0 = problem.outputs(problem.theta0), _probe(problem, problem.theta0)
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]
    end = train(as_subject(optimizer), problem, horizon / steps, steps)
    decay = float(np.exp(-horizon))
    law = y + decay * (f0 - y)
    gaps = []
    for K, k in zip(erf_kernels(x, x), erf_kernels(probe, x), strict=True):
        predicted = p0 + (1 - decay) * k @ torch.linalg.solve(K, y - f0)
        gaps.append(float((_probe(problem, end) - predicted).square().mean().sqrt()))
    train_gap = float((problem.outputs(end) - law).norm() / (f0 - y).norm())
    return WidthRun(width, train_gap, gaps[1], gaps[0])


def _inputs(n: int = 12, d: int = 3, m: int = 20) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1000)
    x = rng.standard_normal((n, d))
    return torch.tensor(x), torch.tensor(rng.standard_normal((m, d)))


def _probe(problem: Problem, theta: Tensor) -> Tensor:
    assert problem.probe is not None
    return problem.probe(theta)
