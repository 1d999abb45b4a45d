"""Curves that are trained with labels: the yardstick for label-free geodesics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.bvp import Geodesic
from geolib.geodesics.path import Basis, BezierBasis, WeightPath, check_ends
from geolib.networks.training import batches, minimize
from geolib.networks.validation import check_inputs, check_labels, check_positive


def trained_curve(
    R: Realization,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    basis: Basis | None = None,
    steps: int = 5000,
    batch: int = 256,
    lr: float = 1e-2,
    seed: int = 0,
) -> Geodesic:
    r"""Minimise the mean cross-entropy over a curve, one random time a step.

    .. math:: \min_c\; \mathbb{E}_{t \sim U(0, 1)}\, L(W_c(t))

    Args:
        R: the network as a function of its weights.
        a, b: the ends, shape (p,).
        x, y: inputs (n, ...) and classes (n,).
        basis: the Bezier curve with one control point by default.
        steps, batch, lr, seed: as in `geolib.networks.train`.

    Raises:
        ValueError: ends that no path can join, labels the network has no output for,
            non-finite inputs, or options out of range.

    Cost: steps * batch gradient evaluations.

    Source: Garipov et al. 2018, equation 2.

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, y = torch.eye(2).double(), torch.tensor([0, 1])
        >>> w = R.theta0
        >>> trained_curve(R, w, -w, x, y, steps=10).gradient_evaluations
        20
    """
    check_ends(a, b, distinct=True)
    check_inputs(x)
    check_labels(R(a, x[:1]).shape[1], y, len(x))
    check_positive(steps=steps, batch=batch, lr=lr)
    basis = BezierBasis(1) if basis is None else basis
    control = torch.zeros(basis.size, a.numel(), dtype=a.dtype, device=a.device)
    control.requires_grad_(True)
    curve = WeightPath(a, b, basis, control)
    times = np.random.default_rng(seed).uniform(size=steps)
    draws = batches(len(x), batch, steps, seed + 1, x.device)

    def loss(step: int) -> Tensor:
        rows = next(draws)
        t = torch.tensor(times[step : step + 1]).to(a)
        return F.cross_entropy(R(curve(t)[0], x[rows]), y[rows])

    losses = [v.item() for v in minimize([control], loss, steps, lr)]
    tail = sum(losses[-max(1, steps // 10) :]) / max(1, steps // 10)
    good = bool(np.isfinite(tail)) and tail <= losses[0]
    message = f"mean loss {tail:.2e} over the last tenth of the steps"
    if not bool(torch.isfinite(control).all()):
        control, good = torch.zeros_like(control), False
        message = "the loss left the finite numbers; this is the straight line"
    path = replace(curve, control=control.detach(), converged=good)
    return Geodesic(path, losses, steps * min(batch, len(x)), tail, good, message)
