r"""What is audited: an optimizer with its hyper-parameters scaled to the step size."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization


class Run:
    """What a factory may know about the run its optimizer is made for.

    Attributes:
        problem: in the chart of the run (`home` is the untransformed one).
        phi: the chart, or None at home.
        initial: the pushed initial velocity, if the subject asks for one.
        leaves: the parameter tensors; network: for layer-wise methods.
    """

    def __init__(
        self,
        problem: Problem,
        h: float,
        phi: Reparameterization | None,
        initial: Tensor | None,
    ) -> None:
        self.home, self.h, self.phi, self.initial = problem, h, phi, initial
        self.problem = problem if phi is None else problem.push(phi)
        self.leaves: list[Tensor] = []
        self.network: nn.Module | None = None

    @property
    def metric(self) -> Any:
        """The output geometry of the problem."""
        return self.home.loss.geometry

    def theta(self) -> Tensor:
        """The present parameters, in the home chart."""
        y = torch.cat([t.detach().reshape(-1) for t in self.leaves])
        return y if self.phi is None else self.phi.inverse(y)

    def push_metric(self, M: Tensor) -> Tensor:
        """A constant home metric, in the run's chart at the present parameters."""
        return M if self.phi is None else self.phi.push_metric(self.theta(), M)


@dataclass(frozen=True)
class Subject:
    """An optimizer under audit.

    Attributes:
        name: for tables.
        make: `(params, h, run) -> Optimizer`.
        initial: the space of the initial velocity, or None for optimizers that start
            at rest. It is drawn as 0.5 N(0, I) and pushed as a `vector` or
            `covector`; `flat` makes the covector F v of a velocity 0.3 times as long.
        layered: needs the network itself (K-FAC).
        update: a plain update function `(problem, x, h, state) -> x` instead; `state`
            is an empty dictionary at the start of a run.
        group: a heading for tables.
        cost: relative cost of a step, to order long audits.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer] = field(default=lambda *a: None)  # type: ignore[assignment,return-value]
    initial: str | None = None
    layered: bool = False
    update: Callable[..., Tensor] | None = None
    group: str = "user"
    cost: float = 1.0

    def velocity(
        self, problem: Problem, phi: Reparameterization | None
    ) -> Tensor | None:
        """The initial velocity or momentum, pushed to the chart of phi."""
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


def plain(update: Callable[..., Tensor], name: str = "plain update") -> Subject:
    """A plain update function `(problem, x, h, state) -> x` as a subject.

    Examples:
        >>> from geolib.naturality import naturality_defect, regression_problem, uniform
        >>> def descend(problem, x, h, state):
        ...     return x - h * problem.point(x).g
        >>> P = regression_problem(12)
        >>> phi = uniform(2.0, P.theta0)
        >>> naturality_defect(plain(descend), phi, P, step_sizes=[0.02, 0.01]).letter
        'U'
    """
    return Subject(name, update=update)


def as_subject(optimizer: Any) -> Subject:
    """An optimizer class, factory, import path, table name or Subject as a Subject.

    Raises:
        ValueError: a name that is neither in the table nor importable.
        TypeError: anything else; or a class that cannot be made with `(params, lr=h)`.
    """
    if isinstance(optimizer, Subject):
        return optimizer
    if isinstance(optimizer, str):
        return _named(optimizer)
    if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer):
        cls: Any = optimizer
        outputs = getattr(cls, "needs_outputs", False)

        def make(params: list[Tensor], h: float, run: Run) -> torch.optim.Optimizer:
            if outputs:
                return cls(params, lr=h, metric=run.metric)
            return cls(params, lr=h)

        return Subject(cls.__name__, make)
    if callable(optimizer):
        factory = optimizer
        name = getattr(factory, "__name__", "factory")
        return Subject(name, lambda params, h, run: factory(params, h))
    raise TypeError(
        "optimizer: expected an Optimizer class, a factory (params, h), a name or a "
        f"Subject, got {type(optimizer).__name__}"
    )


def _named(name: str) -> Subject:
    from geolib.naturality.subjects import SUBJECTS

    if name in SUBJECTS:
        return SUBJECTS[name]
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"optimizer: {name!r} is neither an import path such as torch.optim.Adam "
            f"nor one of {sorted(SUBJECTS)}"
        ) from None
    return as_subject(found)
