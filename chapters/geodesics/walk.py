"""Walks that keep the function: how far can the weights go?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from polygons import polygon
from torch import Tensor

from geolib.geodesics.function_space import FunctionSpace
from geolib.geodesics.path import WeightPath

MODES = ("straight", "once", "invariant", "corrected")


@dataclass(frozen=True)
class Walk:
    """A walk in weight space.

    Attributes:
        points: shape (steps + 1, p).
        distance: distance from the start in weights, shape (steps + 1,).
        drift: root mean square change of the embedded outputs, shape (steps + 1,).
        gradient_evaluations: compute paid.
    """

    points: Tensor
    distance: Tensor
    drift: Tensor
    gradient_evaluations: int

    @property
    def path(self) -> WeightPath:
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
    damping: float = 1e-2,
    iterations: int = 30,
) -> Walk:
    r"""Walk along a direction, each step made as invariant as the metric allows.

    .. math:: s \propto (G_w + \mu I)^{-1} d, \qquad |s| = \text{size}

    which is the natural gradient step of the objective -<d, w> and, as mu goes to zero,
    the projection of d on the directions in which no output moves.

    Args:
        space: whose function is kept.
        w: start, shape (p,).
        direction: where to go, shape (p,).
        mode: `straight`: along d itself; `once`: d projected at the start and kept;
            `invariant`: projected anew at each step; `corrected`: and after each step
            a damped solve takes back the drift of the outputs.
        steps: of the walk.
        size: length of a step, in the norm of the weights.
        damping: :math:`\mu`; small is stricter.
        iterations: most conjugate-gradient steps of a solve.

    Raises:
        ValueError: an unknown mode, a direction of another size or zero, non-finite
            weights, or options out of range.

    Cost: steps * (iterations + 1) * inputs gradient evaluations, twice that if `corrected`.

    Source: Raghavan and Thomson 2021 (the idea); :eq:`drv-geodesics-invariant-step`
        (derivations).

    Examples:
        >>> from geolib.networks import mlp
        >>> S = FunctionSpace(mlp([2, 8, 3]), torch.eye(2).double(), space="logit")
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
    n, evaluations = space.size, 0
    start = space.embedded(w[None])[0].detach()
    points, heading = [w], direction / direction.norm()
    plan = {"tol": 1e-8, "max_iterations": iterations}
    for k in range(steps):
        if mode in ("invariant", "corrected") or (mode == "once" and k == 0):
            G = space.metric(points[-1])
            heading = G.solve(direction, damping, "cg", **plan).x  # type: ignore[arg-type]
            evaluations += (iterations + 1) * n
        w = points[-1] + size * heading / heading.norm()
        if mode == "corrected":
            G = space.metric(w)
            covector = space.drift_covector(G, start)
            w = w - G.solve(covector, damping, "cg", **plan).x  # type: ignore[arg-type]
            evaluations += (iterations + 2) * n
        points.append(w)
    W = torch.stack(points)
    with torch.no_grad():
        gaps = torch.stack([space.embedded(u[None])[0] - start for u in W])
    drift = gaps.square().sum(2).mean(1).sqrt()
    return Walk(W, (W - W[0]).norm(dim=1), drift, evaluations)
