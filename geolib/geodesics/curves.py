"""Curves that follow a target: the arc between two functions, or labels."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolib.core import Realization
from geolib.core.validation import check_inputs, check_labels, expect
from geolib.geodesics.embedding import SPACES
from geolib.networks.rows import PIECE, Rows
from geolib.networks.training import batches, minimize

from .bvp import Geodesic, passed_on
from .function_space import FunctionSpace
from .path import Basis, BezierBasis, WeightPath, check_ends

# maps embedded or plain outputs (k, n, c), rows (k, n) and times (k,) to losses (k,)
CurveLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def trained_curve(
    R: Realization,
    a: Tensor,
    b: Tensor,
    x: Tensor | Rows,
    y: Tensor | None = None,
    *,
    seed: int = 0,
    **options,
) -> Geodesic:
    r"""Move a curve toward the arc between its ends' functions, one random time a step.

    .. math:: \min_c\; \mathbb{E}_{t \sim U(0, 1)}\,
              |\Phi(W_c(t)) - \gamma_x(t)|^2

    with :math:`\gamma_x` the geodesic of the output space between the two answers to x:
    a great circle on the sphere, a straight line in the flat spaces. No label enters.
    With labels `y` their mean cross-entropy along the curve is minimised instead.

    Args:
        R: the network as a function of its weights.
        a, b: the ends, shape (p,).
        x: inputs (n, ...).
        y: classes (n,), or None for the arc.
        seed: of all draws.
        options: of `trained_curves`: space, ends, basis, steps, batch, lr, callback.

    Raises:
        ValueError: ends that no path can join, labels the network has no output for,
            non-finite inputs, or options out of range.

    Cost: steps * batch gradient evaluations, and 2 n for the answers of the ends.

    Source: Garipov et al. 2018, equation 2 (labels);
        :eq:`drv-geodesics-arc-target` (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, w = torch.eye(2).double(), R.theta0
        >>> trained_curve(R, w, -w, x, steps=10).gradient_evaluations
        24
    """
    return trained_curves(R, a[None], b[None], x, y, seeds=[seed], **options)[0]


def trained_curves(
    R: Realization,
    a: Annotated[Tensor, "pairs p"],
    b: Annotated[Tensor, "pairs p"],
    x: Tensor | Rows,
    y: Tensor | None = None,
    *,
    seeds: Annotated[Sequence[int], "pairs"],
    space: Annotated[str, SPACES] = "sphere",
    ends: tuple[Realization, Realization] | None = None,
    basis: Basis | None = None,
    steps: int = 5000,
    batch: int = 256,
    lr: float = 1e-2,
    callback: Callable[[int, float], object] | None = None,
) -> list[Geodesic]:
    r"""Train the curves between k pairs of networks side by side; see `trained_curve`.

    .. math:: \min_{c_1, \dots, c_k} \sum_i
              \mathbb{E}_{t \sim U(0, 1)}\, L_t(W_{c_i}(t))

    Args:
        R, x, y: as in `trained_curve`.
        a, b: the ends, shape (k, p).
        seeds: one for each pair.
        space: where the arc lies; see `embed`.
        ends: what gives the answers of a and of b, if not R: networks with BatchNorm
            and their own statistics.
        basis: the Bezier curve with one control point by default.
        steps, batch, lr: as in `geolib.networks.train`.
        callback: called after each step with its number and the sum of the losses.

    Raises:
        ValueError: as `trained_curve`; another number of seeds than pairs.

    Cost: steps * batch gradient evaluations a curve, and 2 n without labels.

    Source: Garipov et al. 2018, equation 2 (labels);
        :eq:`drv-geodesics-arc-target` (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> R = Realization(mlp([2, 3]))
        >>> x, y, w = torch.eye(2).double(), torch.tensor([0, 1]), R.theta0
        >>> pairs = torch.stack([w, 2 * w]), torch.stack([-w, -w])
        >>> len(trained_curves(R, *pairs, x, y, seeds=[0, 1], steps=10))
        2
    """
    expect(min(seeds, default=0) >= 0, "seeds", "whole numbers >= 0", list(seeds))
    for start, end in zip(a, b, strict=True):
        check_ends(start, end, distinct=True)
    if isinstance(x, Tensor):
        check_inputs(x)
    paid = steps * min(batch, len(x))
    S = FunctionSpace(R, x, space)
    if y is not None:
        y = check_labels(R(a[0], x[:1]).shape[1], y, len(x))
        curve_loss: CurveLoss = partial(_label_losses, y)
    else:
        first, last = (R, R) if ends is None else ends
        curve_loss = arc_loss(S, first, last, a, b)
        paid += 2 * len(x)
    basis = BezierBasis(1) if basis is None else basis
    control = a.new_zeros(len(a), basis.size, a.shape[1]).requires_grad_(True)
    draws = [batches(len(x), batch, steps, s + 1, x.device) for s in seeds]
    drawn = [np.random.default_rng(s).uniform(size=steps) for s in seeds]
    times = torch.from_numpy(np.array(drawn)).to(a)
    losses: list[list[float]] = []

    def loss(step: int) -> Tensor:
        t = times[:, step]
        bends = (basis.values(t)[:, None] @ control)[:, 0]
        w = a + t[:, None] * (b - a) + bends
        rows = torch.stack([next(d) for d in draws])
        z = S.logits(w, rows if len(w) > 1 else rows[0])
        each = curve_loss(z, rows, t)
        losses.append(each.tolist())
        return each.sum()

    after = callback and passed_on(callback)
    minimize([control], loss, steps, lr, after=after)
    return [
        _judged(pair, basis, bends, list(values), paid)
        for *pair, bends, values in zip(
            a, b, control.detach(), zip(*losses, strict=True), strict=True
        )
    ]


def labels_of(R: Realization, source: Any, x: Tensor | Rows) -> Tensor:
    """The classes of all inputs x, given as they are or read beside inputs in pairs."""
    if not isinstance(source, Tensor):
        pairs = Rows(source, None, torch.zeros(1), "labels", part=1)
        source = torch.cat([part.flatten() for part in pairs.split(PIECE)])
    classes = R(R.theta0, x[:1]).shape[1]
    return check_labels(classes, source, len(x), "labels").to(x.device)


def _label_losses(y: Tensor, z: Tensor, rows: Tensor, _t: Tensor) -> Tensor:
    """The mean cross-entropy of each network."""
    pairs = zip(z, y[rows], strict=True)
    return torch.stack([F.cross_entropy(*pair) for pair in pairs])


def arc_loss(
    S: FunctionSpace, first: Realization, last: Realization, a: Tensor, b: Tensor
) -> CurveLoss:
    """The mean squared distance from the arcs between the answers of a and of b (k, p).

    Cost: 2 forward passes on all inputs for each pair.
    """

    def answers(R: Realization, points: Tensor) -> Tensor:
        parts = S.x.split(PIECE)
        with torch.no_grad():
            found = [torch.stack([R(w, part) for w in points]) for part in parts]
        return S.embed(torch.cat(found, 1))

    start, stop = answers(first, a), answers(last, b)
    each = torch.arange(len(a), device=a.device)[:, None]

    def loss(z: Tensor, rows: Tensor, t: Tensor) -> Tensor:
        p, q = start[each, rows], stop[each, rows]
        goal = arc(p, q, t[:, None, None], S.space == "sphere")
        return (S.embed(z) - goal).square().sum(2).mean(1)

    return loss


def arc(p: Tensor, q: Tensor, t: Tensor, sphere: bool) -> Tensor:
    r"""The point at time t of the shortest path between points (..., c).

    .. math:: \frac{\sin((1-t)\omega)\,p + \sin(t\omega)\,q}{\sin\omega}, \qquad
              \cos\omega = \frac{p \cdot q}{|p||q|}

    on the sphere of radius 2, and :math:`(1-t)p + tq` in a flat space.

    Source: :eq:`drv-geodesics-arc-target` (derivations).

    Examples:
        >>> p, q = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> arc(p, q, torch.tensor(0.5), True).tolist()
        [1.4142..., 1.4142...]
    """
    if not sphere:
        return (1 - t) * p + t * q
    # by the chord, since the cosine of a small angle is 1 to all digits
    omega = 2 * torch.asin(((p - q).norm(dim=-1, keepdim=True) / 4).clamp(max=1))
    s, u = (torch.sinc(r * omega / torch.pi) * r for r in (1 - t, t))
    return (s * p + u * q) / torch.sinc(omega / torch.pi)


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
