r"""The optimizers of the audit table, each scaled so that its flow limit exists.

Averages keep their memory as h goes to 0 when :math:`\beta = e^{-h/\tau}`; a heavy
ball when :math:`lr = h^2`, :math:`\mu = e^{-\gamma h}`; AdaGrad when
:math:`lr = \sqrt{h}`. Rows that say `fixed` keep the usual constants instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim

from geolib.naturality.adaptive import NaturalAdaGrad, NaturalAdam
from geolib.naturality.euclidean import Lion, PolarMuon, Shampoo, SignSGD
from geolib.naturality.finite import ProximalNatural, RetractedNaturalGradient
from geolib.naturality.gradient import (
    BFGS,
    CovariantNewton,
    GeodesicNaturalGradient,
    NaturalGradient,
    Preconditioned,
)
from geolib.naturality.kfac import KFAC, KFACDampedNatural
from geolib.naturality.lift import FunctionalLift
from geolib.naturality.momentum import (
    FunctionMomentum,
    HeavyBall,
    NaturalCovectorMomentum,
    NaturalMomentum,
)
from geolib.naturality.subject import Run, Subject

TAU = (0.1, 0.2)  # memories of first and second moments, in training time
FRICTION = 1.0
SPEED = 0.3  # of rules whose step ignores the gradient's size, so as not to overshoot


def _betas(h: float) -> tuple[float, float]:
    return math.exp(-h / TAU[0]), math.exp(-h / TAU[1])


Scaled = Callable[[float], dict[str, Any]]


def _torch(cls: Any, scaled: Scaled | None = None) -> Callable[..., optim.Optimizer]:
    def make(params: list[Tensor], h: float, run: Run) -> optim.Optimizer:
        return cls(params, **{"lr": h, **(scaled(h) if scaled else {})})

    return make


def _ours(cls: Any, scaled: Scaled | None = None, **fixed: Any) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: Run) -> optim.Optimizer:
        extra = {"initial": run.initial} if run.initial is not None else {}
        options = {"lr": h, **fixed, **(scaled(h) if scaled else {}), **extra}
        return cls(params, metric=run.metric, **options)

    return make


def _layered(cls: Any, **fixed: Any) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: Run) -> optim.Optimizer:
        return cls(run.network, h, metric=run.metric, **fixed)

    return make


def _rule(name: str) -> Callable[..., Any]:
    return _ours(Preconditioned, rule=name)


def _lift(inner: Callable[[list[Tensor], float], Any]) -> Callable[..., Any]:
    def make(params: list[Tensor], h: float, run: Run) -> optim.Optimizer:
        return FunctionalLift(params, rule=lambda z: inner(z, h), metric=run.metric)

    return make


def _home_damped(params: list[Tensor], h: float, run: Run) -> optim.Optimizer:
    p = len(run.home.theta0)
    M = torch.eye(p).to(run.home.theta0)
    return NaturalGradient(
        params,
        h,
        metric=run.metric,
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
    Subject("gd", _torch(optim.SGD)),
    Subject("sgd-momentum-fixed", _torch(optim.SGD, lambda h: {"momentum": 0.9})),
    Subject("heavy-ball", _torch(optim.SGD, _ball(False))),
    Subject("nesterov", _torch(optim.SGD, _ball(True))),
    Subject("heavy-ball-vector", _ours(HeavyBall), "vector"),
    Subject("heavy-ball-covector", _ours(HeavyBall), "covector"),
    Subject("asgd", _torch(optim.ASGD)),
    Subject(
        "adagrad",
        _torch(
            optim.Adagrad,
            lambda h: {"lr": h**0.5, "initial_accumulator_value": 1e-3 / h},
        ),
    ),
    Subject("adadelta", _torch(optim.Adadelta, lambda h: {"rho": _betas(h)[1]})),
    Subject("adafactor", _torch(optim.Adafactor)),
    Subject("rmsprop", _torch(optim.RMSprop, lambda h: {"alpha": _betas(h)[1]})),
    Subject("rprop", _torch(optim.Rprop)),
    Subject("adam", _torch(optim.Adam, _ADAM)),
    Subject("adam-eps-1e-2", _torch(optim.Adam, _adam(1e-2))),
    Subject("adam-fixed", _torch(optim.Adam)),
    Subject("adamw", _torch(optim.AdamW, lambda h: {**_ADAM(h), "weight_decay": 0.5})),
    Subject("adamax", _torch(optim.Adamax, lambda h: {"betas": _betas(h)})),
    Subject("nadam", _torch(optim.NAdam, lambda h: {"betas": _betas(h)})),
    Subject("radam", _torch(optim.RAdam, lambda h: {"betas": _betas(h)})),
    Subject("sign", _torch(SignSGD, lambda h: {"lr": SPEED * h})),
    Subject("normalized", _rule("normalized")),
    Subject("lion", _torch(Lion, lambda h: {"lr": SPEED * h, "betas": _betas(h)})),
    Subject(
        "muon",
        _torch(optim.Muon, lambda h: {"lr": SPEED * h, "weight_decay": 0.0}),
    ),
    Subject(
        "muon-polar",
        _torch(
            PolarMuon,
            lambda h: {"lr": SPEED * h, "momentum": math.exp(-h / TAU[0])},
        ),
    ),
    Subject("shampoo-1/4", _torch(Shampoo)),
    Subject(
        "shampoo-1/2", _torch(Shampoo, lambda h: {"power": -0.5, "accumulator": 0.3})
    ),
    Subject("lbfgs", _torch(optim.LBFGS, lambda h: {"max_iter": 1})),
    Subject("bfgs-identity", _ours(BFGS, start="identity")),
]
_METRIC = [
    Subject("bfgs-natural", _ours(BFGS, start="natural")),
    Subject("newton", _rule("newton")),
    Subject("damped-ngd", _ours(NaturalGradient, damping=0.1)),
    Subject("marquardt", _rule("marquardt")),
    Subject("diagonal-fisher", _rule("diagonal")),
    Subject("block-fisher", _rule("block")),
    Subject("kronecker-fisher", _rule("kronecker")),
    Subject("empirical-fisher", _rule("empirical")),
    Subject("kfac", _layered(KFAC), layered=True),
    Subject("kfac-damped", _layered(KFAC, damping=0.1), layered=True),
    Subject(
        "ngd-euclidean-momentum", _ours(NaturalMomentum, connection=False), "vector"
    ),
    Subject(
        "natural-adam-no-connection",
        _ours(
            NaturalAdam,
            lambda h: {"betas": _betas(h), "eps": 1e-2, "connection": False},
        ),
    ),
]
_NATURAL = [
    Subject("ngd", _ours(NaturalGradient)),
    Subject("covariant-newton", _ours(CovariantNewton)),
    Subject("ngd-midpoint", _ours(NaturalGradient, integrator="midpoint"), cost=2),
    Subject("ngd-rk4", _ours(NaturalGradient, integrator="rk4"), cost=4),
    Subject("ngd-geodesic", _ours(GeodesicNaturalGradient)),
    Subject("ngd-kfac-damped", _layered(KFACDampedNatural), layered=True),
    Subject("ngd-home-damped", _home_damped, cost=2),
    Subject("natural-momentum", _ours(NaturalMomentum), "vector"),
    Subject("natural-momentum-covector", _ours(NaturalCovectorMomentum), "flat"),
    Subject("function-momentum", _ours(FunctionMomentum)),
    Subject(
        "natural-adam",
        _ours(NaturalAdam, lambda h: {"betas": _betas(h), "eps": 1e-2}),
    ),
    Subject(
        "natural-adagrad",
        _ours(NaturalAdaGrad, lambda h: {"lr": h**0.5, "initial": 0.05 / h}),
    ),
    Subject("lift-sgd", _lift(lambda z, h: optim.SGD(z, h))),
    Subject("lift-adam", _lift(lambda z, h: optim.Adam(z, h, _betas(h), 1e-2))),
    Subject("ngd-retraction", _ours(RetractedNaturalGradient), cost=8),
    Subject("proximal", _ours(ProximalNatural), cost=8),
]


def _grouped(group: str, subjects: list[Subject]) -> dict[str, Subject]:
    from dataclasses import replace

    return {s.name: replace(s, group=group) for s in subjects}


SUBJECTS: dict[str, Subject] = {
    **_grouped("Euclidean", _EUCLIDEAN),
    **_grouped("with a metric", _METRIC),
    **_grouped("natural", _NATURAL),
}
