r"""The audit: one optimizer against every family of reparameterizations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import Euclidean
from geolib.core.linearization import differentiation
from geolib.core.validation import expect, require_finite
from geolib.networks.batch_norm import copy_module
from geolib.tables import html_table, text_table

from .defect import Defect, Verdict, as_problem, check_steps, compare
from .evidence import UNSEEN, Site, gather, resolved_samples, sites
from .families import standard_suite
from .local_geometry import Diverged
from .losses import Loss, cross_entropy, mse
from .problem import Problem
from .reparameterization import Reparameterization

TINTS = {
    Verdict.EXACT: "#009E73",
    Verdict.NATURAL: "#56B4E9",
    Verdict.UNNATURAL: "#D55E00",
    Verdict.UNDECIDED: "#777777",
    Verdict.UNDEFINED: "#bbbbbb",
}


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.2g}"


@dataclass(frozen=True, repr=False)
class AuditReport:
    """The defects of one optimizer, by family of reparameterizations.

    Attributes:
        optimizer: its name.
        defects: by family.
        title: the task, for headings.
        space: where ends were compared.
    """

    optimizer: str
    defects: dict[str, Defect]
    title: str = ""
    space: str = "parameters"

    @property
    def letters(self) -> str:
        """One letter a family: E exact, N natural, U unnatural, ? and -."""
        return "".join(d.letter for d in self.defects.values())

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict of each family."""
        return {k: d.verdict for k, d in self.defects.items()}

    def __getitem__(self, family: str) -> Defect:
        return self.defects[family]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.optimizer} ({self.title})\n{text_table(self._cells())}"

    def _cells(self) -> list[list[str]]:
        rows = [["family", "verdict", "defect D(h)", "slope", "plateau", "why"]]
        for name, d in self.defects.items():
            exact = d.verdict is Verdict.EXACT
            size = max(d.values) if exact else d.values[-1]
            order = ["-", "-"] if exact else [_number(d.slope), _number(d.plateau)]
            rows.append([name, d.verdict.value, _number(size), *order, d.note or "-"])
        return rows

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        for row in body:
            tint = TINTS[Verdict(row[1])]
            row[1] = f'<b style="border-left:5px solid {tint}">&nbsp;{row[1]}</b>'
        rows = [("", row) for row in body]
        return html_table(head, rows, f"{self.optimizer} ({self.title})", "sortable")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: title, space, and every defect with its evidence."""
        return {
            "optimizer": self.optimizer,
            "title": self.title,
            "space": self.space,
            "defects": {k: d.to_dict() for k, d in self.defects.items()},
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON text (numbers that are not finite become null)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


@dataclass(frozen=True)
class Protocol:
    """How an audit is run.

    Attributes:
        horizon: time T of runs that are made beside the steps at single states.
        counts: numbers of steps to T, at least two of them, or none. The defect of the runs
            is then what the report shows; a verdict rests on them only where an optimizer
            has a memory and does not say its generator.
        space: where ends of runs are compared, as in `naturality_defect`.
        seed: of the maps and states.
        states: how many states the optimizer is tried at.
    """

    horizon: float = 0.5
    counts: Sequence[int] = ()
    space: str = "parameters"
    seed: int = 0
    states: int = 2

    @property
    def steps(self) -> list[float]:
        """The step sizes of the runs, T over the numbers of steps."""
        return check_steps([self.horizon / k for k in self.counts or RUNS])


RUNS = (16, 32, 64)  # where a verdict needs runs and none are asked for


@differentiation()
def audit(
    optimizer: Any,
    module: nn.Module | Problem,
    data: Any = None,
    *,
    loss: Loss | None = None,
    families: Sequence[str] | Mapping[str, Reparameterization] | None = None,
    protocol: Protocol | None = None,
) -> AuditReport:
    r"""Run one optimizer in every coordinate system and say where it is natural.

    At a few states a step is made at home and in the chart, with sizes so small that its
    order shows, and the two are compared in the metric of the outputs. Where samples
    outnumber what double precision can tell apart, as many as it can are kept.

    Args:
        optimizer: a class, factory, import path, table name or
            `OptimizerSpec` (see `naturality_defect`).
        module: a network, or a `Problem`. The audit runs on a copy in float64, since
            single precision would hide what is exact; the module is left alone.
        data: a pair (x, y) of tensors or arrays: integer y of shape (n,) is
            classification with cross entropy, floating-point y regression. Not with a
            `Problem`.
        loss: overrides the loss chosen from y.
        families: names out of `standard_suite`, or maps of one's own by name.
        protocol: states, seed and runs beside; `Protocol()` when None.

    Returns:
        An `AuditReport`: printable, HTML in a notebook, `to_json`.

    Raises:
        ValueError: data of the wrong kind or on several devices, unknown families, and
            what `naturality_defect` refuses.

    Cost: per state some 9 steps at home and 3 to 9 in each chart, three times as many
        for an optimizer with memory, and the steps of the runs.

    Source: :eq:`drv-naturality-step` and :eq:`drv-naturality-defect` (derivations).

    Examples:
        >>> import torch
        >>> from geolib.naturality import affine_mlp
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
        >>> report = audit(torch.optim.SGD, affine_mlp([1, 2, 1]), (x, x**2),
        ...                families=["permutation", "uniform", "orthogonal"])
        >>> report.letters
        'EUE'
    """
    protocol = Protocol() if protocol is None else protocol
    problem, samples = _resolve(module, data, loss)
    chosen = _families(problem, families, protocol)
    T = protocol.horizon
    setting = compare(optimizer, problem, protocol.steps, T, protocol.space)
    for phi in chosen.values():
        phi.check(problem.theta0)
    places, why = sites(setting.spec, problem, protocol.states, protocol.seed)
    runs = cache(setting.reference)
    defects = {}
    for name, phi in chosen.items():
        d = setting.undefined(phi) or _at_sites(places, phi, why)
        if protocol.counts or d.note == UNSEEN:
            d = _with_runs(d, setting.defect(phi, runs()))
        defects[name] = d
    squared = isinstance(problem.loss.output_metric, Euclidean)
    title = "regression" if squared else "classification"
    title += f", p = {len(problem.theta0)}"
    if places:
        title += f", rank {places[0].rank}, condition {places[0].condition:.0e}"
    if samples:
        title += f", {samples[0]} of {samples[1]} samples"
    return AuditReport(setting.spec.name, defects, title, protocol.space)


def _at_sites(places: Sequence[Site], phi: Reparameterization, why: str) -> Defect:
    """The defect of a map at the states that decide."""
    found = []
    for site in places:
        try:
            found.append(site.defect(phi))
        except (Diverged, torch.linalg.LinAlgError) as error:
            why = why or str(error)
    if found:
        return gather(found)
    nan = math.nan
    return Defect((nan,), (nan,), nan, nan, Verdict.UNDECIDED, "metric", note=why[:80])


def _with_runs(d: Defect, run: Defect) -> Defect:
    """Show the defect of the runs; let it decide what single states cannot see."""
    if d.note == UNSEEN:
        return replace(run, note=f"{UNSEEN}: by runs")
    return replace(run, verdict=d.verdict, floor=d.floor, note=d.note)


def _resolve(
    module: Any, data: Any, loss: Loss | None
) -> tuple[Problem, tuple[int, int] | None]:
    """The problem in float64, on one device; samples kept and given, where fewer."""
    if isinstance(module, Problem):
        return as_problem(module, None, None), None
    pair = isinstance(data, tuple | list) and len(data) == 2
    pair = pair and all(isinstance(part, Tensor | np.ndarray) for part in data)
    wanted = "a pair (x, y) of tensors or arrays (a Problem carries its own data)"
    expect(pair, "data", wanted, type(data).__name__)
    x, y = (_double(torch.as_tensor(v)) for v in data)
    shapes = tuple(x.shape), tuple(y.shape)
    expect(x.ndim and y.ndim and len(x) == len(y) > 0, "data", "as many x as y", shapes)
    for part in (x, y):
        require_finite("data", part)
    kind = type(module).__name__
    expect(isinstance(module, nn.Module), "module", "an nn.Module", kind)
    places = {str(t.device) for t in (x, y, *module.parameters())}
    expect(len(places) == 1, "data", "the module's device", sorted(places))
    copy = copy_module(module).double()
    if loss is not None:
        return as_problem(copy, loss, x), None
    of, y = (
        (mse, y if y.ndim == 2 else y[:, None])
        if y.is_floating_point()
        else (cross_entropy, y)
    )
    problem = as_problem(copy, of(y), x)
    kept = resolved_samples(problem.point(problem.theta0).A, len(x))
    if len(kept) == len(x):
        return problem, None
    return as_problem(copy, of(y[kept]), x[kept]), (len(kept), len(x))


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
    expect(not unknown, "families", f"names out of {list(suite)}", unknown)
    return {f: suite[f] for f in families}
