r"""The audit: one optimizer against every family of reparameterizations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geolib.naturality.defect import (
    Defect,
    Runs,
    as_problem,
    check_steps,
    home_runs,
    naturality_defect,
)
from geolib.naturality.families import standard_suite
from geolib.naturality.outputs import Loss, cross_entropy, mse
from geolib.naturality.problem import Problem
from geolib.naturality.reparameterization import Reparameterization
from geolib.naturality.report import AuditReport
from geolib.naturality.subject import as_subject

__all__ = ["AuditReport", "Protocol", "audit", "audit_table"]


@dataclass(frozen=True)
class Protocol:
    """How an audit is run: training time, step sizes, space and seed of the maps."""

    horizon: float = 0.5
    counts: Sequence[int] = (16, 32, 64, 128)
    space: str = "parameters"
    seed: int = 0

    @property
    def steps(self) -> list[float]:
        """The step sizes, T over the numbers of steps."""
        return check_steps([self.horizon / k for k in self.counts])


FAST = Protocol(counts=(16, 32))
TWO = ("affine", "coupling")  # a linear map and a curved one


def audit(
    optimizer: Any,
    module: nn.Module | Problem,
    data: Any = None,
    *,
    loss: Loss | None = None,
    families: Sequence[str] | Mapping[str, Reparameterization] | None = None,
    protocol: Protocol = FAST,
    fast: bool = False,
) -> AuditReport:
    r"""Run one optimizer in every coordinate system and say where it is natural.

    Args:
        optimizer: a class, factory, import path, table name or `Subject`
            (see `naturality_defect`).
        module: a network, or a `Problem`. The audit runs on a copy in float64, since
            single precision would hide what is exact; the module is left alone.
        data: a pair (x, y) of tensors or arrays: integer y of shape (n,) is
            classification with cross entropy, floating-point y regression. Not with a
            `Problem`.
        loss: overrides the loss chosen from y.
        families: names out of `standard_suite`, or maps of one's own by name.
        protocol: step sizes, horizon and the space of comparison.
        fast: two families only, unless named: `affine` and `coupling`.

    Returns:
        An `AuditReport`: printable, HTML in a notebook, `to_json`.

    Raises:
        ValueError: data of the wrong kind or on several devices, unknown families, and
            what `naturality_defect` refuses.

    Cost: (families + 1) times the sum of `protocol.counts` steps.

    Examples:
        >>> import torch
        >>> from geolib.naturality import mlp
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
        >>> report = audit(torch.optim.SGD, mlp([1, 2, 1]), (x, x**2),
        ...                families=["permutation", "uniform", "orthogonal"])
        >>> print(report)
        SGD (regression, p = 7)
        family       verdict    defect D(h)    slope  plateau
        permutation  exact      0              -      -
        uniform      unnatural  ...
        orthogonal   exact      ...
    """
    problem = as_problem(*_resolve(module, data, loss))
    subject = as_subject(optimizer)
    chosen = _families(
        problem, TWO if fast and families is None else families, protocol
    )
    hs = protocol.steps
    home: Runs | None
    try:
        home = home_runs(subject, problem, hs, protocol.horizon)
    except (ValueError, torch.linalg.LinAlgError):
        home = None  # each defect below reports it, or raises if it is bad input
    defects: dict[str, Defect] = {
        name: naturality_defect(
            subject,
            phi,
            problem,
            step_sizes=hs,
            horizon=protocol.horizon,
            space=protocol.space,
            home=home,
        )
        for name, phi in chosen.items()
    }
    task = "regression" if problem.loss.geometry.name == "mse" else "classification"
    title = f"{task}, p = {len(problem.theta0)}"
    return AuditReport(subject.name, defects, title, protocol.space)


def _resolve(module: Any, data: Any, loss: Loss | None) -> tuple[Any, Loss | None, Any]:
    """Module, loss and inputs in float64, on one device."""
    if isinstance(module, Problem):
        return module, None, None
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(
            f"data: expected a pair (x, y), got {type(data).__name__}; a Problem "
            "carries its own data"
        )
    x, y = (_double(torch.as_tensor(v)) for v in data)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"data: expected as many x as y, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    places = {str(t.device) for t in (x, y, *module.parameters())}
    if len(places) > 1:
        raise ValueError(f"data: module and data on several devices: {sorted(places)}")
    if loss is None:
        if y.is_floating_point():
            loss = mse(y if y.ndim == 2 else y[:, None])
        else:
            loss = cross_entropy(y)
    return copy.deepcopy(module).double(), loss, x


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _families(
    problem: Problem,
    families: Sequence[str] | Mapping[str, Reparameterization] | None,
    protocol: Protocol,
) -> Mapping[str, Reparameterization]:
    if isinstance(families, Mapping):
        return families
    if problem.module is None:
        raise ValueError("families: a problem without a module needs maps of its own")
    suite = standard_suite(problem.module, problem.theta0, protocol.seed)
    if families is None:
        return suite
    unknown = [f for f in families if f not in suite]
    if unknown:
        raise ValueError(
            f"families: unknown {unknown}; expected names out of {list(suite)}"
        )
    return {f: suite[f] for f in families}


def audit_table(
    optimizers: Iterable[Any],
    problem: Problem,
    *,
    families: Sequence[str] | None = None,
    protocol: Protocol = FAST,
) -> list[AuditReport]:
    """Audits of several optimizers on one problem, in the order given."""
    return [audit(o, problem, families=families, protocol=protocol) for o in optimizers]
