r"""The optimizers of the audit table, each scaled so that its flow limit exists.

Averages keep their memory as h goes to 0 when :math:`\beta = e^{-h/\tau}`; a heavy
ball when :math:`lr = h^2`, :math:`\mu = e^{-\gamma h}`; AdaGrad when
:math:`lr = \sqrt{h}`. Rows that say `fixed` keep the usual constants instead.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, optim

from geolib.naturality.adaptive import DiagonalAdaGrad, NaturalAdaGrad, NaturalAdam
from geolib.naturality.functional_lift import FunctionalLift
from geolib.naturality.implicit_steps import ProximalNatural, RetractedNaturalGradient
from geolib.naturality.kfac import KFAC, KFACDampedNatural
from geolib.naturality.momentum import (
    FunctionMomentum,
    HeavyBall,
    NaturalCovectorMomentum,
    NaturalMomentum,
)
from geolib.naturality.natural_gradient import GeodesicNaturalGradient, NaturalGradient
from geolib.naturality.newton import BFGS
from geolib.naturality.optimizer_spec import OptimizerSpec, RunContext
from geolib.naturality.rules import FirstOrderRule
from geolib.naturality.tensorwise import Lion, PolarMuon, Shampoo, SignSGD

TAU = (0.1, 0.2)  # memories of first and second moments, in training time
FRICTION = 1.0
SPEED = 0.3  # of rules whose step ignores the gradient's size, so as not to overshoot


def _betas(h: float) -> tuple[float, float]:
    return math.exp(-h / TAU[0]), math.exp(-h / TAU[1])


Scaled = Callable[[float], dict[str, Any]]


def _torch(cls: Any, scaled: Scaled | None = None) -> Callable[..., optim.Optimizer]:
    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        return cls(params, **{"lr": h, **(scaled(h) if scaled else {})})

    return make


def _ours(cls: Any, scaled: Scaled | None = None, **fixed: Any) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        extra = {"initial": run.initial} if run.initial is not None else {}
        options = {"lr": h, **fixed, **(scaled(h) if scaled else {}), **extra}
        return cls(params, output_metric=run.output_metric, **options)

    return make


def _layered(cls: Any, **fixed: Any) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        return cls(run.network, h, output_metric=run.output_metric, **fixed)

    return make


def _rule(name: str) -> Callable[..., Any]:
    return _ours(FirstOrderRule, rule=name)


def _lift(inner: Callable[[list[Tensor], float], Any]) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        return FunctionalLift(
            params, rule=lambda z: inner(z, h), output_metric=run.output_metric
        )

    return make


def _home_damped(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
    p = len(run.home.theta0)
    M = torch.eye(p).to(run.home.theta0)
    return NaturalGradient(
        params,
        h,
        output_metric=run.output_metric,
        damping=0.1,
        damping_metric=lambda: run.push_metric(M),
    )


def _ball(nesterov: bool) -> Scaled:
    return lambda h: {
        "lr": h * h,
        "momentum": math.exp(-FRICTION * h),
        "nesterov": nesterov,
    }


def _adam(eps: float) -> Scaled:
    return lambda h: {"betas": _betas(h), "eps": eps}


_ADAM = _adam(1e-12)
_Row = OptimizerSpec
_EUCLIDEAN = [
    _Row("gd", _torch(optim.SGD), generator="gradient"),
    _Row("sgd-momentum-fixed", _torch(optim.SGD, lambda h: {"momentum": 0.9})),
    _Row("heavy-ball", _torch(optim.SGD, _ball(False)), generator=HeavyBall),
    _Row("nesterov", _torch(optim.SGD, _ball(True))),
    _Row("heavy-ball-vector", _ours(HeavyBall), "vector"),
    _Row("heavy-ball-covector", _ours(HeavyBall), "covector"),
    _Row("asgd", _torch(optim.ASGD)),
    _Row(
        "adagrad",
        _torch(
            optim.Adagrad,
            lambda h: {"lr": h**0.5, "initial_accumulator_value": 1e-3 / h},
        ),
        generator=DiagonalAdaGrad,
    ),
    _Row("adadelta", _torch(optim.Adadelta, lambda h: {"rho": _betas(h)[1]})),
    _Row("adafactor", _torch(optim.Adafactor)),
    _Row("rmsprop", _torch(optim.RMSprop, lambda h: {"alpha": _betas(h)[1]})),
    _Row("rprop", _torch(optim.Rprop)),
    _Row("adam", _torch(optim.Adam, _ADAM)),
    _Row("adam-eps-1e-2", _torch(optim.Adam, _adam(1e-2))),
    _Row("adam-fixed", _torch(optim.Adam)),
    _Row("adamw", _torch(optim.AdamW, lambda h: {**_ADAM(h), "weight_decay": 0.5})),
    _Row("adamax", _torch(optim.Adamax, lambda h: {"betas": _betas(h)})),
    _Row("nadam", _torch(optim.NAdam, lambda h: {"betas": _betas(h)})),
    _Row("radam", _torch(optim.RAdam, lambda h: {"betas": _betas(h)})),
    _Row("sign", _torch(SignSGD, lambda h: {"lr": SPEED * h})),
    _Row("normalized", _rule("normalized")),
    _Row("lion", _torch(Lion, lambda h: {"lr": SPEED * h, "betas": _betas(h)})),
    _Row("muon", _torch(optim.Muon, lambda h: {"lr": SPEED * h, "weight_decay": 0.0})),
    _Row(
        "muon-polar",
        _torch(
            PolarMuon, lambda h: {"lr": SPEED * h, "momentum": math.exp(-h / TAU[0])}
        ),
    ),
    _Row("shampoo-1/4", _torch(Shampoo)),
    _Row("shampoo-1/2", _torch(Shampoo, lambda h: {"power": -0.5, "accumulator": 0.3})),
    _Row("lbfgs", _torch(optim.LBFGS, lambda h: {"max_iter": 1})),
    _Row("bfgs-identity", _ours(BFGS, start="identity")),
]
_METRIC = [
    _Row("bfgs-natural", _ours(BFGS, start="natural")),
    _Row("newton", _rule("newton")),
    _Row("damped-ngd", _ours(NaturalGradient, damping=0.1)),
    _Row("marquardt", _rule("marquardt")),
    _Row("diagonal-fisher", _rule("diagonal")),
    _Row("block-fisher", _rule("block")),
    _Row("kronecker-fisher", _rule("kronecker")),
    _Row("empirical-fisher", _rule("empirical")),
    _Row("kfac", _layered(KFAC), layered=True),
    _Row("kfac-damped", _layered(KFAC, damping=0.1), layered=True),
    _Row("ngd-euclidean-momentum", _ours(NaturalMomentum, connection=False), "vector"),
    _Row(
        "natural-adam-no-connection",
        _ours(
            NaturalAdam,
            lambda h: {"betas": _betas(h), "eps": 1e-2, "connection": False},
        ),
    ),
]
_NATURAL = [
    _Row("ngd", _ours(NaturalGradient)),
    _Row("covariant-newton", _rule("covariant-newton")),
    _Row("ngd-midpoint", _ours(NaturalGradient, integrator="midpoint"), cost=2),
    _Row("ngd-rk4", _ours(NaturalGradient, integrator="rk4"), cost=4),
    _Row("ngd-geodesic", _ours(GeodesicNaturalGradient)),
    _Row("ngd-kfac-damped", _layered(KFACDampedNatural), layered=True),
    _Row("ngd-home-damped", _home_damped, cost=2),
    _Row("natural-momentum", _ours(NaturalMomentum), "vector"),
    _Row("natural-momentum-covector", _ours(NaturalCovectorMomentum), "flat"),
    _Row("function-momentum", _ours(FunctionMomentum)),
    _Row(
        "natural-adam", _ours(NaturalAdam, lambda h: {"betas": _betas(h), "eps": 1e-2})
    ),
    _Row(
        "natural-adagrad",
        _ours(NaturalAdaGrad, lambda h: {"lr": h**0.5, "initial": 0.05 / h}),
    ),
    _Row("lift-sgd", _lift(lambda z, h: optim.SGD(z, h))),
    _Row("lift-adam", _lift(lambda z, h: optim.Adam(z, h, _betas(h), 1e-2))),
    _Row("ngd-retraction", _ours(RetractedNaturalGradient), cost=8),
    _Row("proximal", _ours(ProximalNatural), cost=8),
]


def _grouped(group: str, specs: list[OptimizerSpec]) -> dict[str, OptimizerSpec]:
    return {s.name: replace(s, group=group) for s in specs}


OPTIMIZERS: dict[str, OptimizerSpec] = {
    **_grouped("Euclidean", _EUCLIDEAN),
    **_grouped("with a metric", _METRIC),
    **_grouped("natural", _NATURAL),
}


def as_spec(optimizer: Any) -> OptimizerSpec:
    """Return an optimizer class, factory, import path or table name as a spec.

    Raises:
        ValueError: a name that is neither in the table nor importable.
        TypeError: anything else; or a class that cannot be made with `(params, lr=h)`.
    """
    if isinstance(optimizer, OptimizerSpec):
        return optimizer
    if isinstance(optimizer, str):
        return _named(optimizer)
    if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer):
        geometric = getattr(optimizer, "needs_outputs", False)
        make = _ours(optimizer) if geometric else _torch(optimizer)
        return OptimizerSpec(optimizer.__name__, make)
    if callable(optimizer):
        factory = optimizer
        name = getattr(factory, "__name__", "factory")
        return OptimizerSpec(name, lambda params, h, run: factory(params, h))
    raise TypeError(
        "optimizer: expected an Optimizer class, a factory (params, h), a name or an "
        f"OptimizerSpec, got {type(optimizer).__name__}"
    )


def _named(name: str) -> OptimizerSpec:
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"optimizer: {name!r} is neither an import path such as torch.optim.Adam "
            f"nor one of {sorted(OPTIMIZERS)}"
        ) from None
    return as_spec(found)
