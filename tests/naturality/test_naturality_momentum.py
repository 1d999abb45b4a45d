"""Momentum, Adam and AdaGrad made natural, against closed forms."""

import math

import pytest
import torch
from naturality_cases import bent, linear, setting
from naturality_chapter import CONTROLS, RULES

from geolib.core import (
    Euclidean,
)
from geolib.naturality import (
    Loss,
    NaturalMomentum,
    OptimizerSpec,
    Problem,
    run_optimizer,
)
from geolib.naturality.local_geometry import flatten


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["natural-momentum", "natural-momentum-covector", "function-momentum"]
)
def test_momentum_is_the_damped_oscillator(name):
    # x'' + x' + (x - best) = 0 for each coordinate of the linear model
    P, best = linear()
    s = CONTROLS.TABLE[name]
    w = math.sqrt(0.75)

    def exact(v0, t=1.0):
        u0 = P.theta0 - best
        c = (v0 + 0.5 * u0) / w
        return best + math.exp(-0.5 * t) * (u0 * math.cos(w * t) + c * math.sin(w * t))

    v0 = s.velocity(P, None)
    v0 = torch.zeros_like(best) if v0 is None else v0
    if name.endswith("covector"):
        v0 = torch.linalg.solve(P.point(P.theta0).F, v0)
    ends = [
        float((run_optimizer(s, P, 1 / k, k, bent(P)) - exact(v0)).norm())
        for k in (64, 128)
    ]
    assert 0.85 < math.log2(ends[0] / ends[1]) < 1.15
    assert ends[1] < 0.05


@pytest.mark.slow
def test_a_free_particle_moves_straight_and_without_connection_does_not():
    P, _ = linear()
    no_force = Loss(lambda z: 0.0 * z.sum(), Euclidean())
    free = Problem(P.outputs, no_force, P.theta0, P.shapes)
    gaps = {}
    for connection in (True, False):
        s = OptimizerSpec(
            "free",
            lambda p, h, run, c=connection: NaturalMomentum(
                p,
                h,
                friction=0.0,
                initial=run.initial,
                connection=c,
                output_metric=run.output_metric,
            ),
            "vector",
        )
        straight = P.theta0 + s.velocity(free, None)
        gaps[connection] = [
            float((run_optimizer(s, free, 1 / k, k, bent(P)) - straight).norm())
            for k in (32, 64)
        ]
    assert 0.9 < math.log2(gaps[True][0] / gaps[True][1]) < 1.1
    assert gaps[False][1] > 10 * gaps[True][1]
    assert abs(math.log2(gaps[False][0] / gaps[False][1])) < 0.3


def test_natural_adagrad_and_adam_first_steps_by_hand():
    P, _, _ = setting()
    q = P.point(P.theta0)
    n = q.solve(q.g)
    unit = n / torch.dot(q.g, n).sqrt()
    for cls, options in (
        (RULES.NaturalAdaGrad, {"eps": 0.0}),
        (RULES.NaturalAdam, {"eps": 0.0}),
    ):
        leaves = P.leaves()

        def closure(leaves=leaves):
            z = P.outputs(flatten(leaves))
            return z, P.loss(z)

        cls(leaves, 0.1, **options).step(closure)
        step = flatten([t.detach() for t in leaves]) - P.theta0
        assert torch.allclose(step, -0.1 * unit, atol=1e-12)


def test_state_indexed_by_samples_refuses_another_batch():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def closure(n):
        z = x.sum() * torch.ones(n, 1).double()
        return z, 0.5 * (z**2).mean()

    for opt in (
        RULES.FunctionMomentum([x]),
        RULES.FunctionalLift([x], rule=lambda z: torch.optim.SGD(z, 0.1)),
    ):
        opt.step(lambda: closure(3))
        with pytest.raises(ValueError, match="full batch"):
            opt.step(lambda: closure(2))
