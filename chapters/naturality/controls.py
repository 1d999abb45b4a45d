r"""Rules that the audit compares with, and that nobody would train with: its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from natural_rules import NATURAL, FunctionalLift, NaturalAdam
from popular import POPULAR, PolarMuon, Shampoo, SignSGD, as_matrix, first_step
from torch import Tensor, nn, optim

from geolib.naturality import (
    OPTIMIZERS,
    FirstOrderRule,
    GeometricOptimizer,
    LocalGeometry,
    NaturalGradient,
    NaturalMomentum,
    OptimizerSpec,
)
from geolib.naturality.catalogue import geometric, layered, memories
from geolib.core.validation import expect
from geolib.naturality.geometric_optimizer import State
from geolib.naturality.kfac import kronecker
from geolib.naturality.local_geometry import Diverged, flatten, unflatten
from geolib.naturality.momentum import HeavyBall
from geolib.naturality.rules import Rule


def empirical(q: LocalGeometry) -> Tensor:
    r"""The empirical Fisher :math:`\frac1n\sum g_ig_i^T` in place of F."""
    n, c = q.z.shape
    rows = n * torch.einsum("ncp,nc->np", q.J.view(n, c, -1), q.dl)
    return -torch.linalg.lstsq(rows.T @ rows / n, q.g[:, None]).solution[:, 0]


def marquardt(damping: float) -> Rule:
    r"""Levenberg-Marquardt with its scaling: :math:`F + \lambda\,\mathrm{diag}F`."""

    def direction(q: LocalGeometry) -> Tensor:
        d = torch.diag((q.A * q.A).sum(0))
        return -torch.linalg.solve(q.F + damping * d, q.g)

    return direction


def _slices(q: LocalGeometry) -> list[slice]:
    ends = torch.tensor([t.numel() for t in q.params]).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def block(q: LocalGeometry) -> Tensor:
    r"""F with only the blocks of one parameter tensor each."""
    out = torch.empty_like(q.g)
    for s in _slices(q):
        A = q.A[:, s]
        out[s] = -torch.linalg.solve(A.T @ A, q.g[s])
    return out


def partial_traces(q: LocalGeometry) -> Tensor:
    r"""Each block replaced by the Kronecker product of its partial traces.

    .. math:: F_l \approx \frac{\mathrm{tr}_{in}F_l \otimes \mathrm{tr}_{out}F_l}
        {\mathrm{tr} F_l} .

    A surrogate that needs the dense F; it is not K-FAC (:eq:`drv-naturality-kfac`).
    """
    steps = []
    grads = unflatten(q.g, q.params)
    for s, g in zip(_slices(q), grads, strict=True):
        G = as_matrix(g)
        A = q.A[:, s].view(-1, *G.shape)
        rows = torch.einsum("kai,kbi->ab", A, A)
        cols = torch.einsum("kai,kaj->ij", A, A)
        X = torch.linalg.solve(rows, G)
        steps.append(-torch.linalg.solve(cols, X.T).T * rows.trace())
    return flatten(steps)


class BFGS(GeometricOptimizer):
    r"""BFGS with fixed step size, started at the identity or at the natural metric.

    .. math:: x \leftarrow x - h B g, \qquad
        B \leftarrow (I - \rho s y^T) B (I - \rho y s^T) + \rho s s^T .

    Started at :math:`B_0 = F_0^{-1}` it is exactly natural under affine maps at
    finite h. The update is skipped when :math:`s^Ty` is not positive.

    Args:
        start: `identity` or `natural`.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: another `start`.

    Source: :eq:`drv-naturality-bfgs` (derivations).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        start: str = "natural",
        **o: Any,
    ) -> None:
        if start not in ("identity", "natural"):
            raise ValueError(f"start: expected 'identity' or 'natural', got {start!r}")
        self.start = start
        super().__init__(params, lr, **o)

    def update(self, q: LocalGeometry) -> Tensor:
        m, g = self.memory, q.g
        if "B" not in m:
            m["B"] = torch.eye(len(g), dtype=g.dtype, device=g.device)
            if self.start == "natural":
                m["B"] = torch.linalg.pinv(q.F, hermitian=True)
        else:
            s, y = m["s"], g - m["g"]
            sy = torch.dot(s, y)
            if sy > 0:
                E = torch.eye(len(g), dtype=g.dtype, device=g.device)
                E = E - torch.outer(s, y) / sy
                m["B"] = E @ m["B"] @ E.T + torch.outer(s, s) / sy
        m["g"], m["s"] = g, -self.options["lr"] * m["B"] @ g
        return m["s"]


class DiagonalAdaGrad(GeometricOptimizer):
    r"""AdaGrad's own flow, :math:`\dot x = -g/\sqrt a`, :math:`\dot a = g^2`: a control.

    Its state is a list of p numbers on which no map of parameters but a monomial one
    acts (:eq:`drv-naturality-no-lift-squares`).
    """

    tags: ClassVar[Mapping[str, str]] = {"a": "entrywise"}

    def gains(self) -> tuple[float, float]:
        return 1.0, 1.0

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return -q.g / s["a"].sqrt()

    def drive(self, q: LocalGeometry, s: State) -> State:
        return {"a": q.g * q.g}


class NaturalCovectorMomentum(HeavyBall):
    r"""Momentum as a covector, Hamilton's form of `NaturalMomentum`.

    .. math:: v = F^{+}m, \quad
        m \leftarrow e^{-\gamma h}m + h\bigl(-g + \tfrac12\,\partial_x(v^TFv)\bigr),
        \quad x \leftarrow x + h F^{+}m .

    The same flow on the cotangent bundle, with a larger error constant.

    Args:
        friction: :math:`\gamma`, per unit of time.
        initial: the momentum at the start, flat (p,); zero when None.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-hamilton` (derivations).

    Examples:
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> opt = NaturalCovectorMomentum([x], lr=0.5, friction=0.0)
        >>> def closure():
        ...     z = 2 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 6)  # F = g = 4: the momentum is -2, the velocity -1/2
        0.75
    """

    tags: ClassVar[Mapping[str, str]] = {"momentum": "covector"}

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        return self.solve(q, s["momentum"])

    def drive(self, q: LocalGeometry, s: State) -> State:
        m = s["momentum"]
        v = self.solve(q, m)
        # 1/2 d(v^T F v) at frozen v = [ . v, v] = the rate of parallel transport
        return {"momentum": q.transport(torch.zeros_like(m), v, v) - q.g}


class KFACDampedNatural(GeometricOptimizer):
    r"""The exact natural gradient, damped by K-FAC's metric.

    .. math:: x \leftarrow x - h\,(F + \lambda F_{KFAC})^{-1} g .

    Damping without the loss of layer-affine naturality that :math:`\lambda I` costs.

    Cost: dense, p^2 memory and p^3 time; for small models.
    """

    def __init__(
        self, module: nn.Module, lr: float = 1e-2, *, damping: float = 0.1, **o: Any
    ) -> None:
        expect(damping > 0, "damping", "a finite number more than 0", damping)
        super().__init__(module, lr, damping=damping, **o)

    def velocity(self, q: LocalGeometry, s: State) -> Tensor:
        M = self.options["damping"] * kronecker(q).dense()
        try:
            return -torch.linalg.solve(q.F + M, q.g)
        except torch.linalg.LinAlgError:
            raise Diverged(
                "module: F + damping F_KFAC is singular, as where a unit is dead"
            ) from None


def _home_damped(params: list[Tensor], h: float, run: Any) -> NaturalGradient:
    M = torch.eye(len(run.home.theta0)).to(run.home.theta0)
    metric = {"damping": 0.1, "damping_metric": lambda: run.push_metric(M)}
    return NaturalGradient(params, h, output_metric=run.output_metric, **metric)


def _lifted_sgd(params: list[Tensor], h: float, run: Any) -> FunctionalLift:
    return FunctionalLift(
        params, rule=lambda z: optim.SGD(z, h), output_metric=run.output_metric
    )


def _of_rule(rule: Any) -> Any:
    return geometric(FirstOrderRule, rule=rule)


_Row = OptimizerSpec
_ROWS = [
    replace(OPTIMIZERS["adagrad"], generator=DiagonalAdaGrad),
    _Row("heavy-ball-vector", geometric(HeavyBall), "vector", group="Euclidean"),
    _Row("heavy-ball-covector", geometric(HeavyBall), "covector", group="Euclidean"),
    _Row("bfgs-identity", geometric(BFGS, start="identity"), group="Euclidean"),
    _Row("bfgs-natural", geometric(BFGS, start="natural")),
    _Row("marquardt", _of_rule(marquardt(0.1))),
    _Row("block-fisher", _of_rule(block)),
    _Row("kronecker-fisher", _of_rule(partial_traces)),
    _Row("empirical-fisher", _of_rule(empirical)),
    _Row(
        "ngd-euclidean-momentum",
        geometric(NaturalMomentum, connection=False),
        "vector",
    ),
    _Row(
        "natural-adam-no-connection",
        geometric(
            NaturalAdam,
            lambda h: {"betas": memories(h), "eps": 1e-2, "connection": False},
        ),
    ),
    _Row("ngd-kfac-damped", layered(KFACDampedNatural), layered=True, group="natural"),
    _Row("ngd-home-damped", _home_damped, group="natural"),
    _Row(
        "natural-momentum-covector",
        geometric(NaturalCovectorMomentum),
        "flat",
        group="natural",
    ),
    _Row("lift-sgd", _lifted_sgd, group="natural"),
]
_ROWS = [
    *(replace(s, group="Euclidean") for s in POPULAR),
    *_ROWS,
    *(replace(s, group="natural") for s in NATURAL),
]
CONTROLS = {
    s.name: s if s.group != "user" else replace(s, group="with a metric") for s in _ROWS
}
GROUPS = ("Euclidean", "with a metric", "natural")
TABLE = dict(
    sorted(
        {**OPTIMIZERS, **CONTROLS}.items(), key=lambda item: GROUPS.index(item[1].group)
    )
)
RULES = {  # of the naturality algebras, where the name is no rule of the package
    "adagrad": DiagonalAdaGrad,
    "sign": first_step(SignSGD),
    "muon": first_step(PolarMuon),
    "shampoo": first_step(Shampoo),
    "marquardt": marquardt(0.1),
    "kronecker": partial_traces,
    "block": block,
    "empirical": empirical,
}
