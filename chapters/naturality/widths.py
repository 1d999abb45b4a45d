r"""Random erf networks of growing width under the natural flow, all seeds at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from audit_problems import two_layer

from geolib.core import integrate
from geolib.naturality import Problem, run_optimizer
from geolib.networks import ErfKernel


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


def erf_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the NNGP and NTK kernels of an infinitely wide erf network.

    .. math:: K = \tfrac2\pi\arcsin\frac{2x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y)}}, \qquad
        \Theta = K + \tfrac4\pi\frac{x\cdot y}
        {\sqrt{(1+2x\cdot x)(1+2y\cdot y) - 4(x\cdot y)^2}} .

    For hidden weights N(0, I) and readout N(0, 1), one hidden layer, no biases.

    Args:
        x, y: inputs, (n, d) and (m, d).

    Returns:
        K and :math:`\Theta`, both (n, m).

    Source: Williams 1998 for K; :eq:`drv-naturality-erf` (derivations).

    Examples:
        >>> K, NTK = erf_kernels(torch.tensor([[0.5**0.5]]), torch.tensor([[0.5**0.5]]))
        >>> K  # 2 x.x = 1: arcsin(1/2) is a sixth of pi
        tensor([[0.3333]])
    """
    xy = x @ y.T
    norms = (1 + 2 * (x * x).sum(1))[:, None] * (1 + 2 * (y * y).sum(1))[None, :]
    K = ErfKernel()(2**0.5 * x[:, None], 2**0.5 * y[None])
    slope = 4 / torch.pi / (norms - 4 * xy**2).sqrt()
    return K, K + xy * slope


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
