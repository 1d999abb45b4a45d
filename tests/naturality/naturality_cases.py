"""Optimizers and small problems that several of this chapter's tests share."""

import numpy as np
import torch
from naturality_chapter import CONTROLS, MINIBATCHES, PROBLEMS, RULES
from torch import nn

from geolib.core import (
    init_,
)
from geolib.naturality import (
    KFAC,
    FirstOrderRule,
    NaturalGradient,
    NaturalMomentum,
    affine_mlp,
    mse,
    standard_suite,
)
from geolib.naturality.local_geometry import flatten
from geolib.naturality.momentum import HeavyBall

OURS = {
    "natural": lambda p: NaturalGradient(p, 0.1, damping=0.0),
    "tuned": lambda p: NaturalGradient(p),
    "damped": lambda p: NaturalGradient(p, 0.1, damping=0.1),
    "midpoint": lambda p: NaturalGradient(p, 0.1, damping=0.0, integrator="midpoint"),
    "geodesic": lambda p: NaturalGradient(p, 0.1, damping=0.0, integrator="geodesic"),
    "covariant-newton": lambda p: FirstOrderRule(p, 0.1, rule="covariant-newton"),
    "bfgs": lambda p: CONTROLS.BFGS(p, 0.1),
    "momentum": lambda p: NaturalMomentum(p, 0.1),
    "covector": lambda p: CONTROLS.NaturalCovectorMomentum(p, 0.1),
    "function": lambda p: RULES.FunctionMomentum(p, 0.1),
    "adam": lambda p: RULES.NaturalAdam(p, 0.1),
    "adagrad": lambda p: RULES.NaturalAdaGrad(p, 0.1),
    "proximal": lambda p: RULES.ProximalNatural(p, 0.1),
    "retraction": lambda p: RULES.RetractedNaturalGradient(p, 0.1),
    "lift": lambda p: RULES.FunctionalLift(p, rule=lambda z: torch.optim.Adam(z, 0.1)),
    "unconnected": lambda p: NaturalMomentum(p, 0.1, connection=False),
    "rk4": lambda p: NaturalGradient(p, 0.1, damping=0.0, integrator="rk4"),
    "newton": lambda p: FirstOrderRule(p, 0.1, rule="newton"),
    "heavy-ball": lambda p: HeavyBall(p, 0.1),
    "minibatch": lambda p: MINIBATCHES.MinibatchNatural(p, 0.1, batch=8),
}


def setting(seed=12):
    P = PROBLEMS.regression_problem(seed)
    leaves = P.leaves()

    def closure():
        z = P.outputs(flatten(leaves))
        return z, P.loss(z)

    return P, leaves, closure


def network(seed=0):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return init_(module, seed=seed)


DATA = [torch.tensor(np.random.default_rng(5).standard_normal((40, k))) for k in (3, 2)]
FROM_MODULE = {
    **{k: f for k, f in OURS.items() if k not in ("newton", "covariant-newton")},
    "kfac": lambda m: KFAC(m, 0.1, damping=0.1),
    "kfac-damped": lambda m: CONTROLS.KFACDampedNatural(m, 0.1),
}


def fit(module, opt, steps, n=40):
    x, y = (t[:n] for t in DATA)

    def closure():
        z = module(x)
        return z, mse(y)(z)

    for _ in range(steps):
        opt.step(closure)
    return torch.cat([t.detach().reshape(-1) for t in module.parameters()])


def linear(seed=0):
    rng = np.random.default_rng(seed)
    X = torch.tensor(rng.standard_normal((20, 4)))
    y = torch.tensor(rng.standard_normal((20, 1)))
    P = PROBLEMS.linear_model(X, y, torch.tensor(rng.standard_normal((1, 4))))
    best = torch.linalg.lstsq(X, y).solution[:, 0]
    return P, best


def bent(P):
    """The linear model in coupling coordinates: the flow is known, not straight."""
    phi = standard_suite(affine_mlp([3, 1]), P.theta0)["coupling"]
    return phi
