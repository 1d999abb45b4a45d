"""Walks that keep the function: how far can the weights go?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.core import Realization
from geolib.core.linear_solvers import conjugate_gradient
from geolib.geodesics.checks import check_positive
from geolib.geodesics.embedding import Embedded
from geolib.geodesics.path import Path, polygon
from geolib.geodesics.space import FunctionSpace

MODES = ("straight", "once", "invariant", "corrected")


@dataclass(frozen=True)
class Walk:
    """A walk in weight space.

    Attributes:
        points: shape (steps + 1, p).
        distance: distance from the start in weights, shape (steps + 1,).
        drift: root mean square change of the embedded outputs, shape (steps + 1,).
        passes: compute paid.
    """

    points: Tensor
    distance: Tensor
    drift: Tensor
    passes: int

    @property
    def path(self) -> Path:
        """The polygon through the points."""
        return polygon(self.points)


def invariant_walk(
    space: FunctionSpace,
    w: Tensor,
    direction: Tensor,
    mode: str = "invariant",
    *,
    steps: int = 80,
    size: float = 0.25,
    mu: float = 1e-2,
    cg: int = 30,
) -> Walk:
    r"""Walk along a direction, each step made as invariant as the metric allows.

    .. math:: s \propto (G_w + \mu I)^{-1} d, \qquad |s| = \text{size}

    which is the natural gradient step of the objective -<d, w> and, as mu goes to zero,
    the projection of d on the directions in which no output moves.

    Args:
        direction: where to go, shape (p,).
        mode: `straight`: along d itself; `once`: d projected at the start and kept;
            `invariant`: projected anew at each step; `corrected`: and after each step
            a damped solve takes back the drift of the outputs.
        mu: small is stricter.

    Raises:
        ValueError: an unknown mode, a direction of another size or zero, non-finite
            weights, or options out of range.

    Cost: steps * (cg + 1) * inputs passes, twice that if `corrected`.

    Source: Raghavan and Thomson 2021 (the idea); step: own derivation.

    Examples:
        >>> from geolib.geodesics import function_space, mlp
        >>> S = function_space(mlp([2, 8, 3]), torch.eye(2).double(), space="logit")
        >>> w = S.realization.theta0
        >>> walk = invariant_walk(S, w, torch.ones_like(w), "corrected", steps=5)
        >>> walk.drift[-1].item() < 0.1 < walk.distance[-1].item()
        True
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {MODES}, got {mode!r}")
    if direction.shape != w.shape or not bool(direction.any()):
        raise ValueError(
            f"direction: expected a vector other than zero of shape {tuple(w.shape)}"
        )
    for name, vector in (("w", w), ("direction", direction)):
        if not bool(torch.isfinite(vector).all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
    check_positive(steps=steps, size=size, mu=mu, cg=cg)
    map_ = Realization(Embedded(space.realization.module, space.space))
    n, passes = space.size, 0
    start = map_(w, space.x).detach()
    points, heading = [w], direction / direction.norm()
    for k in range(steps):
        if mode in ("invariant", "corrected") or (mode == "once" and k == 0):
            heading = _damped(map_, space.x, points[-1], direction, mu, cg)
            passes += (cg + 1) * n
        w = points[-1] + size * heading / heading.norm()
        if mode == "corrected":
            L = map_.linearize(w, space.x)
            back = _damped(map_, space.x, w, L.vjp((L.outputs - start) / n), mu, cg)
            w = w - back
            passes += (cg + 2) * n
        points.append(w)
    W = torch.stack(points)
    with torch.no_grad():
        gaps = torch.stack([map_(u, space.x) - start for u in W])
    drift = gaps.square().sum(2).mean(1).sqrt()
    return Walk(W, (W - W[0]).norm(dim=1), drift, passes)


def _damped(
    map_: Realization, x: Tensor, w: Tensor, rhs: Tensor, mu: float, cg: int
) -> Tensor:
    L, n = map_.linearize(w, x), len(x)
    return conjugate_gradient(lambda v: L.vjp(L.jvp(v) / n) + mu * v, rhs, 1e-8, cg)[0]
