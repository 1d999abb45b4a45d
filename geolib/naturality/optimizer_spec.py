r"""What is audited: an optimizer with its hyper-parameters scaled to the step size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import OutputMetric
from geolib.naturality.affine_layers import blocks
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization


class RunContext:
    """What a factory may know about the run that its optimizer is made for.

    Args:
        problem: in home coordinates.
        h: the step size.
        phi: the chart of the run, or None at home.
        initial: the pushed initial velocity, if the optimizer asks for one.

    Attributes:
        home: the problem in home coordinates; `problem` is in the chart of the run.
        leaves: the parameter tensors.
        network: the module, for layer-wise methods.

    Source: :eq:`drv-naturality-push` (derivations).

    Examples:
        >>> from geolib.naturality import Problem, affine_mlp, mse
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> P = Problem.of(affine_mlp([1, 1]), x, mse(x))
        >>> run = RunContext(P, 0.1, Reparameterization.scaling(2.0))
        >>> M = torch.eye(2, dtype=torch.float64)
        >>> run.leaves = run.problem.leaves()
        >>> float(run.push_metric(M)[0, 0])  # lengths are twice as long there
        0.25
    """

    def __init__(
        self,
        problem: Problem,
        h: float,
        phi: Reparameterization | None = None,
        initial: Tensor | None = None,
    ) -> None:
        self.home, self.h, self.phi, self.initial = problem, h, phi, initial
        self.problem = problem if phi is None else problem.push(phi)
        self.leaves: list[Tensor] = []
        self.network: nn.Module | None = None

    @property
    def output_metric(self) -> OutputMetric:
        """The metric on the outputs of the problem."""
        return self.home.loss.output_metric

    def theta(self) -> Tensor:
        """Return the present parameters, in the home chart."""
        y = torch.cat([t.detach().reshape(-1) for t in self.leaves])
        if self.network is not None:  # whose leaves are a layer's weight with its bias
            assert self.home.module is not None
            order = torch.cat([i.reshape(-1) for i in blocks(self.home.module)])
            y = y[order.argsort()]
        return y if self.phi is None else self.phi.inverse(y)

    def push_metric(self, M: Tensor) -> Tensor:
        """Return a constant home metric, in the run's chart at the present point."""
        return M if self.phi is None else self.phi.push_metric(self.theta(), M)


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer under audit, with the rules that scale it to the step size.

    Attributes:
        name: for tables.
        make: `(params, h, run: RunContext) -> Optimizer`.
        initial: the space of the initial velocity, or None for optimizers that start
            at rest. It is drawn as 0.5 N(0, I) and pushed as a `vector` or
            `covector`; `flat` makes the covector F v of a velocity 0.3 times as long.
        layered: needs the network itself (K-FAC).
        update: a plain update function `(problem, x, h, state) -> x` instead of
            `make`; `state` is an empty dictionary at the start of a run.
        generator: the rule or `GeometricOptimizer` class whose flow it follows, where
            `make` gives an optimizer that does not say so itself.
        group: a heading for tables.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer] | None = None
    initial: str | None = None
    layered: bool = False
    update: Callable[..., Tensor] | None = None
    generator: Any = None
    group: str = "user"

    def velocity(
        self, problem: Problem, phi: Reparameterization | None
    ) -> Tensor | None:
        """Return the initial velocity or momentum, pushed to the chart of phi."""
        if self.initial is None:
            return None
        draw = np.random.default_rng(1234).standard_normal(len(problem.theta0))
        v = 0.5 * torch.as_tensor(draw).to(problem.theta0)
        if self.initial == "flat":
            v = 0.3 * problem.point(problem.theta0).F @ v
        if phi is None:
            return v
        tag = "covector" if self.initial == "flat" else self.initial
        return phi.push(tag, problem.theta0, v)


def from_update(update: Callable[..., Tensor], name: str = "update") -> OptimizerSpec:
    """Make a plain update function `(problem, x, h, state) -> x` auditable.

    Args:
        update: takes the problem in the chart of the run, the parameters x (p,), the
            step size and a dictionary for its memory; returns the new x.
        name: for tables.

    Source: :eq:`drv-naturality-defect` (derivations).

    Examples:
        >>> from geolib.naturality import affine_mlp, mse, naturality_defect
        >>> def descend(problem, x, h, state):
        ...     return x - h * problem.point(x).g
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> phi, P = Reparameterization.scaling(2.0), Problem.of(affine_mlp([1, 2]), x, mse(
        ...     torch.cat([x.sin(), x.cos()], 1)))
        >>> rule = from_update(descend)
        >>> naturality_defect(rule, phi, P, step_sizes=[0.02, 0.01]).letter
        'U'
    """
    return OptimizerSpec(name, update=update)
