"""Curves that are trained with labels: the yardstick for label-free geodesics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.geodesics.bvp import Geodesic
from geolib.geodesics.path import Basis, BezierBasis, WeightPath, check_ends
from geolib.networks.training import batches, minimize
from geolib.networks.validation import check_inputs, check_labels


def trained_curve(
    R: Realization,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    **options,
) -> Geodesic:
    r"""Minimise the mean cross-entropy over a curve, one random time a step.

    .. math:: \min_c\; \mathbb{E}_{t \sim U(0, 1)}\, L(W_c(t))

    Args:
        R: the network as a function of its weights.
        a, b: the ends, shape (p,).
        x, y: inputs (n, ...) and classes (n,).
        seed: of all draws.
        options: of `trained_curves`: basis, steps, batch, lr.

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
    check_ends(a, b)
    return trained_curves(R, a[None], b[None], x, y, seeds=[seed], **options)[0]


def trained_curves(
    R: Realization,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    seeds: Sequence[int],
    basis: Basis | None = None,
    steps: int = 5000,
    batch: int = 256,
    lr: float = 1e-2,
) -> list[Geodesic]:
    r"""Train the curves between k pairs of networks side by side; see `trained_curve`.

    .. math:: \min_{c_1, \dots, c_k} \sum_i
              \mathbb{E}_{t \sim U(0, 1)}\, L(W_{c_i}(t))

    Args:
        R, x, y: as in `trained_curve`.
        a, b: the ends, shape (k, p).
        seeds: one for each pair.
        basis: the Bezier curve with one control point by default.
        steps, batch, lr: as in `geolib.networks.train`.

    Raises:
        ValueError: as `trained_curve`; another number of seeds than pairs.

    Cost: steps * batch gradient evaluations a curve.

    Source: Garipov et al. 2018, equation 2.

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, y, w = torch.eye(2).double(), torch.tensor([0, 1]), R.theta0
        >>> ends = torch.stack([w, 2 * w]), torch.stack([-w, -w])
        >>> len(trained_curves(R, *ends, x, y, seeds=[0, 1], steps=10))
        2
    """
    if len(seeds) != len(a):
        raise ValueError(f"seeds: expected one for each of {len(a)} pairs, got {seeds}")
    for start, end in zip(a, b, strict=True):
        check_ends(start, end, distinct=True)
    check_inputs(x)
    check_labels(R(a[0], x[:1]).shape[1], y, len(x))
    basis = BezierBasis(1) if basis is None else basis
    control = a.new_zeros(len(a), basis.size, a.shape[1]).requires_grad_(True)
    draws = [batches(len(x), batch, steps, s + 1, x.device) for s in seeds]
    drawn = [np.random.default_rng(s).uniform(size=steps) for s in seeds]
    times = torch.from_numpy(np.array(drawn)).to(a)

    def each_loss(step: int) -> Tensor:
        t = times[:, step]
        bends = (basis.values(t)[:, None] @ control)[:, 0]
        w = a + t[:, None] * (b - a) + bends
        rows = torch.stack([next(d) for d in draws])
        if len(w) == 1:
            return F.cross_entropy(R(w[0], x[rows[0]]), y[rows[0]])[None]
        z = torch.vmap(R)(w, x[rows])
        each = F.cross_entropy(z.flatten(0, 1), y[rows].flatten(), reduction="none")
        return each.view(rows.shape).mean(1)

    losses: list[list[float]] = []

    def loss(step: int) -> Tensor:
        each = each_loss(step)
        losses.append(each.tolist())
        return each.sum()

    minimize([control], loss, steps, lr)
    paid = steps * min(batch, len(x))
    return [
        _judged(ends, basis, bends, list(values), paid)
        for *ends, bends, values in zip(
            a, b, control.detach(), zip(*losses, strict=True), strict=True
        )
    ]


def _judged(
    ends: list[Tensor], basis: Basis, bends: Tensor, losses: list[float], paid: int
) -> Geodesic:
    """One curve with its status: whether its loss fell, and stayed finite."""
    tenth = max(1, len(losses) // 10)
    tail = sum(losses[-tenth:]) / tenth
    good = bool(np.isfinite(tail)) and tail <= losses[0]
    message = f"mean loss {tail:.2e} over the last tenth of the steps"
    if not bool(torch.isfinite(bends).all()):
        bends, good = torch.zeros_like(bends), False
        message = "the loss left the finite numbers; this is the straight line"
    path = WeightPath(ends[0], ends[1], basis, bends, good)
    return Geodesic(path, losses, paid, tail, good, message)
