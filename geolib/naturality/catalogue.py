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
_EUCLIDEAN = [
    OptimizerSpec("gd", _torch(optim.SGD), generator="gradient"),
    OptimizerSpec("sgd-momentum-fixed", _torch(optim.SGD, lambda h: {"momentum": 0.9})),
    OptimizerSpec("heavy-ball", _torch(optim.SGD, _ball(False)), generator=HeavyBall),
    OptimizerSpec("nesterov", _torch(optim.SGD, _ball(True))),
    OptimizerSpec("heavy-ball-vector", _ours(HeavyBall), "vector"),
    OptimizerSpec("heavy-ball-covector", _ours(HeavyBall), "covector"),
    OptimizerSpec("asgd", _torch(optim.ASGD)),
    OptimizerSpec(
        "adagrad",
        _torch(
            optim.Adagrad,
            lambda h: {"lr": h**0.5, "initial_accumulator_value": 1e-3 / h},
        ),
        generator=DiagonalAdaGrad,
    ),
    OptimizerSpec("adadelta", _torch(optim.Adadelta, lambda h: {"rho": _betas(h)[1]})),
    OptimizerSpec("adafactor", _torch(optim.Adafactor)),
    OptimizerSpec("rmsprop", _torch(optim.RMSprop, lambda h: {"alpha": _betas(h)[1]})),
    OptimizerSpec("rprop", _torch(optim.Rprop)),
    OptimizerSpec("adam", _torch(optim.Adam, _ADAM)),
    OptimizerSpec("adam-eps-1e-2", _torch(optim.Adam, _adam(1e-2))),
    OptimizerSpec("adam-fixed", _torch(optim.Adam)),
    OptimizerSpec(
        "adamw", _torch(optim.AdamW, lambda h: {**_ADAM(h), "weight_decay": 0.5})
    ),
    OptimizerSpec("adamax", _torch(optim.Adamax, lambda h: {"betas": _betas(h)})),
    OptimizerSpec("nadam", _torch(optim.NAdam, lambda h: {"betas": _betas(h)})),
    OptimizerSpec("radam", _torch(optim.RAdam, lambda h: {"betas": _betas(h)})),
    OptimizerSpec("sign", _torch(SignSGD, lambda h: {"lr": SPEED * h})),
    OptimizerSpec("normalized", _rule("normalized")),
    OptimizerSpec(
        "lion", _torch(Lion, lambda h: {"lr": SPEED * h, "betas": _betas(h)})
    ),
    OptimizerSpec(
        "muon",
        _torch(optim.Muon, lambda h: {"lr": SPEED * h, "weight_decay": 0.0}),
    ),
    OptimizerSpec(
        "muon-polar",
        _torch(
            PolarMuon,
            lambda h: {"lr": SPEED * h, "momentum": math.exp(-h / TAU[0])},
        ),
    ),
    OptimizerSpec("shampoo-1/4", _torch(Shampoo)),
    OptimizerSpec(
        "shampoo-1/2", _torch(Shampoo, lambda h: {"power": -0.5, "accumulator": 0.3})
    ),
    OptimizerSpec("lbfgs", _torch(optim.LBFGS, lambda h: {"max_iter": 1})),
    OptimizerSpec("bfgs-identity", _ours(BFGS, start="identity")),
]
_METRIC = [
    OptimizerSpec("bfgs-natural", _ours(BFGS, start="natural")),
    OptimizerSpec("newton", _rule("newton")),
    OptimizerSpec("damped-ngd", _ours(NaturalGradient, damping=0.1)),
    OptimizerSpec("marquardt", _rule("marquardt")),
    OptimizerSpec("diagonal-fisher", _rule("diagonal")),
    OptimizerSpec("block-fisher", _rule("block")),
    OptimizerSpec("kronecker-fisher", _rule("kronecker")),
    OptimizerSpec("empirical-fisher", _rule("empirical")),
    OptimizerSpec("kfac", _layered(KFAC), layered=True),
    OptimizerSpec("kfac-damped", _layered(KFAC, damping=0.1), layered=True),
    OptimizerSpec(
        "ngd-euclidean-momentum", _ours(NaturalMomentum, connection=False), "vector"
    ),
    OptimizerSpec(
        "natural-adam-no-connection",
        _ours(
            NaturalAdam,
            lambda h: {"betas": _betas(h), "eps": 1e-2, "connection": False},
        ),
    ),
]
_NATURAL = [
    OptimizerSpec("ngd", _ours(NaturalGradient)),
    OptimizerSpec("covariant-newton", _rule("covariant-newton")),
    OptimizerSpec(
        "ngd-midpoint", _ours(NaturalGradient, integrator="midpoint"), cost=2
    ),
    OptimizerSpec("ngd-rk4", _ours(NaturalGradient, integrator="rk4"), cost=4),
    OptimizerSpec("ngd-geodesic", _ours(GeodesicNaturalGradient)),
    OptimizerSpec("ngd-kfac-damped", _layered(KFACDampedNatural), layered=True),
    OptimizerSpec("ngd-home-damped", _home_damped, cost=2),
    OptimizerSpec("natural-momentum", _ours(NaturalMomentum), "vector"),
    OptimizerSpec("natural-momentum-covector", _ours(NaturalCovectorMomentum), "flat"),
    OptimizerSpec("function-momentum", _ours(FunctionMomentum)),
    OptimizerSpec(
        "natural-adam",
        _ours(NaturalAdam, lambda h: {"betas": _betas(h), "eps": 1e-2}),
    ),
    OptimizerSpec(
        "natural-adagrad",
        _ours(NaturalAdaGrad, lambda h: {"lr": h**0.5, "initial": 0.05 / h}),
    ),
    OptimizerSpec("lift-sgd", _lift(lambda z, h: optim.SGD(z, h))),
    OptimizerSpec("lift-adam", _lift(lambda z, h: optim.Adam(z, h, _betas(h), 1e-2))),
    OptimizerSpec("ngd-retraction", _ours(RetractedNaturalGradient), cost=8),
    OptimizerSpec("proximal", _ours(ProximalNatural), cost=8),
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
