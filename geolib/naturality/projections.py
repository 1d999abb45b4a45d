r"""Maps between parameter spaces of different size, and the square they must close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

from geolib.naturality.defect import Defect, check_steps, summarize, train
from geolib.naturality.problem import Problem
from geolib.naturality.subject import as_subject

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    r"""A submersion from a large parameter space onto a small one.

    .. math:: \pi : \Theta' \to \Theta, \qquad f' = f \circ \pi
        \;\text{ when the models agree.}

    Examples:
        >>> pi = Projection(lambda w: (w[0] * w[1]).reshape(1), "product")
        >>> pi(torch.tensor([2.0, 3.0]))
        tensor([6.])
    """

    forward: Map
    name: str = "projection"

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def pull(self, problem: Problem, shapes: Sequence[Any], x: Tensor) -> Problem:
        r"""The problem :math:`f\circ\pi` upstairs, started at x."""
        outputs, probe = problem.outputs, problem.probe
        return replace(
            problem,
            outputs=lambda t: outputs(self.forward(t)),
            theta0=x,
            shapes=tuple(torch.Size(s) for s in shapes),
            module=None,
            probe=None if probe is None else (lambda t: probe(self.forward(t))),
        )


@dataclass(frozen=True)
class Embedding:
    r"""An injection of a small parameter space into a large one.

    .. math:: \iota : \Theta \to \Theta', \qquad f' \circ \iota = f .
    """

    forward: Map
    name: str = "embedding"

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


def horizontal_lift(
    pi: Map, x: Tensor, v: Tensor, metric: Tensor | None = None
) -> Tensor:
    r"""The tangent vector over v that is orthogonal to the fibre of pi through x.

    .. math:: v' = M^{-1} D\pi^T (D\pi M^{-1} D\pi^T)^{-1} v .

    Args:
        pi: a submersion near x (p', -> p,).
        v: a tangent vector at pi(x), (p,).
        metric: M upstairs, (p', p'), positive definite; the identity when None.

    Raises:
        ValueError: pi is no submersion at x (its Jacobian lacks full row rank).

    Examples:
        >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> horizontal_lift(lambda w: w.sum().reshape(1), x, x[:1])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    D = jacrev(pi)(x)
    X = D.T if metric is None else torch.linalg.solve(metric, D.T)
    G = D @ X
    w = torch.linalg.eigvalsh(0.5 * (G + G.T))
    if not float(w[0]) > 1e-12 * float(w[-1]):
        raise ValueError("pi: expected a submersion at x, its Jacobian lacks rank")
    return X @ torch.linalg.solve(G, v)


def is_riemannian(pi: Map, x: Tensor, upstairs: Tensor, downstairs: Tensor) -> float:
    r"""The relative failure of :math:`D\pi\,G'\,D\pi^T = G\circ\pi` for cometrics."""
    D = jacrev(pi)(x)
    gap = D @ upstairs @ D.T - downstairs
    return float(gap.norm() / downstairs.norm())


def projection_defect(
    optimizer: Any,
    wide: Problem,
    narrow: Problem,
    link: Projection | Embedding,
    step_sizes: Sequence[float],
    *,
    horizon: float,
    space: str = "outputs",
    wide_optimizer: Any = None,
) -> Defect:
    r"""Train wide and narrow, and measure whether the link carries one to the other.

    For a projection :math:`\pi(\theta'_T)` is compared with :math:`\theta_T` started
    at :math:`\pi(\theta'_0)`; for an embedding :math:`\theta'_T` started at
    :math:`\iota(\theta_0)` with :math:`\iota(\theta_T)`.

    Args:
        optimizer: as in `naturality_defect`, for the narrow model (and the wide one).
        wide, narrow: problems; one start is replaced as above.
        space: `outputs` (of the narrow model, for a projection; of both, for an
            embedding) or `parameters`.
        wide_optimizer: if the wide model needs other hyper-parameters.

    Raises:
        ValueError: bad step sizes, or starts whose size does not fit the link.
    """
    hs = check_steps(step_sizes)
    small = as_subject(optimizer)
    large = small if wide_optimizer is None else as_subject(wide_optimizer)
    if isinstance(link, Projection):
        narrow = narrow.at(link(wide.theta0).detach())
    else:
        wide = wide.at(link(narrow.theta0).detach())
    outputs = space == "outputs"
    ends = {h: train(small, narrow, h, round(horizon / h)) for h in hs}
    differences = []
    for h in hs:
        there = train(large, wide, h, round(horizon / h))
        if isinstance(link, Projection):
            there, model = link(there), narrow
            here = ends[h]
        else:
            model = wide
            here = link(ends[h])
        if outputs:
            there, here = model.outputs(there), model.outputs(here)
        differences.append((there - here).detach().reshape(-1))
    look = _outputs(narrow) if outputs else (lambda t: t)
    start = look(narrow.theta0)
    scale = 1.0
    if not outputs and isinstance(link, Embedding):  # lengths are measured upstairs
        look, start = link.forward, link(narrow.theta0)
    moved = [scale * float((look(ends[h]) - start).norm()) for h in hs]
    return summarize(hs, differences, moved, look, ends, space)


def _outputs(problem: Problem) -> Map:
    return lambda t: problem.outputs(t).detach().reshape(-1)
