r"""Maps between parameter spaces of different size, and the square they must close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geolib.core.linearization import differentiation
from geolib.naturality.catalogue import as_spec
from geolib.naturality.defect import Defect, Runs, check_steps, home_runs, summarize
from geolib.naturality.optimizer_spec import OptimizerSpec
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import directional

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    r"""A submersion from a large parameter space onto a small one.

    .. math:: \pi : \Theta' \to \Theta, \qquad f' = f \circ \pi
        \;\text{ when the models agree.}

    Attributes:
        forward: a torch function from (p',) to (p,).
        name: for tables.

    Source: :eq:`drv-naturality-category` (derivations).

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
        r"""Return the problem :math:`f\circ\pi` upstairs, started at x."""
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

    Attributes:
        forward: a torch function from (p,) to (p',).
        name: for tables.

    Source: :eq:`drv-naturality-category` (derivations).
    """

    forward: Map
    name: str = "embedding"

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@differentiation()
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
    below: Runs | None = None,
) -> Defect:
    r"""Train wide and narrow, and measure whether the link carries one to the other.

    For a projection :math:`\pi(\theta'_T)` is compared with :math:`\theta_T` started
    at :math:`\pi(\theta'_0)`; for an embedding :math:`\theta'_T` started at
    :math:`\iota(\theta_0)` with :math:`\iota(\theta_T)`. An optimizer that starts with a
    velocity has it pushed along: the run at the target starts with
    :math:`D\pi\,v'`, or :math:`D\iota\,v`.

    Args:
        optimizer: as in `naturality_defect`, for the narrow model (and the wide one).
        wide, narrow: problems; one start is replaced as above.
        link: the map between their parameters.
        step_sizes, horizon: as in `naturality_defect`.
        space: `outputs` (of the narrow model, for a projection; of both, for an
            embedding) or `parameters`.
        wide_optimizer: if the wide model needs other hyper-parameters.
        below: ends of the narrow runs by step size, to save time (for an embedding,
            where the narrow model keeps its start).

    Raises:
        ValueError: bad step sizes, starts whose size does not fit the link, or an optimizer
            that starts with a covector, which no such link pushes.

    Source: :eq:`drv-naturality-submersion`, :eq:`drv-naturality-momentum-projects` and
        :eq:`drv-naturality-twins` (derivations).

    Examples:
        >>> from geolib.naturality import mse
        >>> pi = Projection(lambda w: (w[0] * w[1]).reshape(1), "product")
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> narrow = Problem.of(torch.nn.Linear(1, 1, bias=False).double(), x, mse(3 * x))
        >>> wide = pi.pull(narrow, [(2,)], torch.tensor([1.0, 2.0]).double())
        >>> steps = [1 / 32, 1 / 64]
        >>> projection_defect("ngd", wide, narrow, pi, steps, horizon=0.5).letter
        'N'
        >>> projection_defect("gd", wide, narrow, pi, steps, horizon=0.5).letter
        'U'
    """
    hs = check_steps(step_sizes)
    small = as_spec(optimizer)
    large = small if wide_optimizer is None else as_spec(wide_optimizer)
    down = isinstance(link, Projection)
    if down:
        narrow = target = narrow.at(link(wide.theta0).detach())
    else:
        wide = target = wide.at(link(narrow.theta0).detach())
    # Everything is compared in the target of the link, and the narrow run's way
    # is what the defect is divided by.
    up, low = _velocities(small, wide, narrow, link)
    below = below or home_runs(small, narrow, hs, horizon, low)
    above = home_runs(large, wide, hs, horizon, up)
    carried = link if down else (lambda t: t)
    same = (lambda t: t) if down else link

    def project(t: Tensor) -> Tensor:
        return (target.outputs(t) if space == "outputs" else t).detach().reshape(-1)

    differences = [project(carried(above[h])) - project(same(below[h])) for h in hs]
    if space == "outputs":
        start, *ends = (
            narrow.outputs(t).detach().reshape(-1)
            for t in (narrow.theta0, *(below[h] for h in hs))
        )
    else:  # lengths are measured in the target
        start, *ends = (same(t) for t in (narrow.theta0, *(below[h] for h in hs)))
    return summarize(hs, differences, [e - start for e in ends], space)


def _velocities(
    spec: OptimizerSpec, wide: Problem, narrow: Problem, link: Projection | Embedding
) -> tuple[Tensor | None, Tensor | None]:
    """The velocity at the start of the link, wide and narrow, and its push."""
    problem = wide if isinstance(link, Projection) else narrow
    v = spec.velocity(problem, None)
    if v is None:
        return None, None
    if spec.initial != "vector":
        raise ValueError(
            f"optimizer: {spec.name} starts with a covector, which {link.name} does not "
            "push; expected one that starts at rest or with a velocity"
        )
    pushed = directional(link.forward, problem.theta0, v)
    return (v, pushed) if isinstance(link, Projection) else (pushed, v)
