r"""The optimizers of the audit table, each scaled so that its flow limit exists.

Averages keep their memory as h goes to 0 when :math:`\beta = e^{-h/\tau}`; a heavy
ball when :math:`lr = h^2`, :math:`\mu = e^{-\gamma h}`; AdaGrad when
:math:`lr = \sqrt{h}`. Rows that say `fixed` keep the usual constants instead.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, optim

from geolib.files import did_you_mean, imported
from geolib.naturality.kfac import KFAC
from geolib.naturality.local_geometry import ZERO
from geolib.naturality.momentum import HeavyBall, NaturalMomentum
from geolib.naturality.natural_gradient import INTEGRATORS, NaturalGradient
from geolib.naturality.optimizer_spec import OptimizerSpec, RunContext
from geolib.naturality.rules import FirstOrderRule

TAU = (0.1, 0.2)  # memories of first and second moments, in training time
FRICTION = 1.0
SPEED = 0.3  # of rules whose step ignores the gradient's size, so as not to overshoot


def memories(h: float) -> tuple[float, float]:
    """Return the betas whose memories are `TAU` at every step size."""
    return math.exp(-h / TAU[0]), math.exp(-h / TAU[1])


Scaled = Callable[[float], dict[str, Any]]


def from_class(
    cls: Any, scaled: Scaled | None = None
) -> Callable[..., optim.Optimizer]:
    """Make a torch optimizer, its options scaled to the step size."""

    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        return cls(params, **{"lr": h, **(scaled(h) if scaled else {})})

    return make


def geometric(
    cls: Any, scaled: Scaled | None = None, **fixed: Any
) -> Callable[..., Any]:
    """Make a `GeometricOptimizer` with the metric of the problem."""

    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        extra = {"initial": run.initial} if run.initial is not None else {}
        options = {"lr": h, **fixed, **(scaled(h) if scaled else {}), **extra}
        return cls(params, output_metric=run.output_metric, rtol=ZERO, **options)

    return make


def layered(cls: Any, **fixed: Any) -> Callable[..., Any]:
    """Make an optimizer of the network itself."""

    def make(params: list[Tensor], h: float, run: RunContext) -> optim.Optimizer:
        return cls(run.network, h, output_metric=run.output_metric, **fixed)

    return make


def _rule(name: str) -> Callable[..., Any]:
    return geometric(FirstOrderRule, rule=name)


def _adam(eps: float) -> Scaled:
    return lambda h: {"betas": memories(h), "eps": eps}


_ADAM = _adam(1e-12)


class Together:
    """Two optimizers of one network, that step as one.

    Args:
        parts: which must not share parameters.
    """

    def __init__(self, *parts: optim.Optimizer) -> None:
        self.parts = parts

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self, closure: Callable[[], Any]) -> None:
        closure()
        for part in self.parts:
            part.step()


def _muon(params: list[Tensor], h: float, run: RunContext) -> Any:
    """Muon for matrices, AdamW for the rest, as it is used."""
    matrices = [p for p in params if p.ndim == 2]
    rest = [p for p in params if p.ndim != 2]
    parts: list[optim.Optimizer] = []
    if matrices:
        parts.append(optim.Muon(matrices, lr=SPEED * h, weight_decay=0.0))
    if rest:
        parts.append(optim.AdamW(rest, SPEED * h, weight_decay=0.0, **_ADAM(h)))
    return Together(*parts)


def _ball(nesterov: bool) -> Scaled:
    return lambda h: {
        "lr": h * h,
        "momentum": math.exp(-FRICTION * h),
        "nesterov": nesterov,
    }


_Row = OptimizerSpec
_EUCLIDEAN = [
    _Row("gd", from_class(optim.SGD), generator="gradient"),
    _Row("sgd-momentum-fixed", from_class(optim.SGD, lambda h: {"momentum": 0.9})),
    _Row("heavy-ball", from_class(optim.SGD, _ball(False)), generator=HeavyBall),
    _Row("nesterov", from_class(optim.SGD, _ball(True))),
    _Row("asgd", from_class(optim.ASGD)),
    _Row(
        "adagrad",
        from_class(
            optim.Adagrad,
            lambda h: {"lr": h**0.5, "initial_accumulator_value": 1e-3 / h},
        ),
    ),
    _Row("adadelta", from_class(optim.Adadelta, lambda h: {"rho": memories(h)[1]})),
    _Row("adafactor", from_class(optim.Adafactor)),
    _Row("rmsprop", from_class(optim.RMSprop, lambda h: {"alpha": memories(h)[1]})),
    _Row("rprop", from_class(optim.Rprop)),
    _Row("adam", from_class(optim.Adam, _ADAM)),
    _Row("adam-eps-1e-2", from_class(optim.Adam, _adam(1e-2))),
    _Row("adam-fixed", from_class(optim.Adam)),
    _Row("adamw", from_class(optim.AdamW, lambda h: {**_ADAM(h), "weight_decay": 0.5})),
    _Row("adamax", from_class(optim.Adamax, lambda h: {"betas": memories(h)})),
    _Row("nadam", from_class(optim.NAdam, lambda h: {"betas": memories(h)})),
    _Row("radam", from_class(optim.RAdam, lambda h: {"betas": memories(h)})),
    _Row("normalized", _rule("normalized")),
    _Row("muon", _muon),
    _Row("lbfgs", from_class(optim.LBFGS, lambda h: {"max_iter": 1})),
]
_METRIC = [
    _Row("newton", _rule("newton")),
    _Row("damped-ngd", geometric(NaturalGradient, damping=0.1)),
    _Row("diagonal-fisher", _rule("diagonal")),
    _Row("kfac", layered(KFAC), layered=True),
    _Row("kfac-damped", layered(KFAC, damping=0.1), layered=True),
]
_NATURAL = [
    _Row("ngd", geometric(NaturalGradient, damping=0.0)),
    _Row("covariant-newton", _rule("covariant-newton")),
    *(
        _Row(f"ngd-{name}", geometric(NaturalGradient, damping=0.0, integrator=name))
        for name in INTEGRATORS[1:]
    ),
    _Row("natural-momentum", geometric(NaturalMomentum), "vector"),
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
    if optimizer is optim.Muon:  # which refuses vectors
        return OPTIMIZERS["muon"]
    if inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer):
        outputs = getattr(optimizer, "needs_outputs", False)
        make = geometric(optimizer) if outputs else from_class(optimizer)
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
    known: dict[str, Any] = {
        k.lower(): v for k, v in vars(optim).items() if inspect.isclass(v)
    }
    known |= OPTIMIZERS
    if name.lower() in known:
        return as_spec(known[name.lower()])
    wanted = f"an import path such as torch.optim.Adam or one of {sorted(OPTIMIZERS)}"
    return as_spec(imported(name, "optimizer", wanted + did_you_mean(name, known)))
