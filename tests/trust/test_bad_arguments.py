"""Arguments that once gave a wrong number, an error without a name, or no end."""

import math
import re
import time

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from torch import nn

from geolib.claims import claim
from geolib.core import PullbackMetric, Realization, init_, normal
from geolib.inverse_stability import ShallowReLU, certify
from geolib.naturality import NaturalGradient, Problem, jet_defect, mse
from geolib.networks import accuracy, mlp, table
from geolib.regimes import (
    Setup,
    gradient_flow,
    large_data_next,
    mean_field_next,
    narrow,
    predict,
    prepare,
)
from geolib.stratifolds import (
    MixtureKL,
    descend,
    find_strata,
    learning_coefficient,
    mixture_a,
)

DESCENT = chapter_module("inverse_stability", "descent")
TRAINING = chapter_module("inverse_stability", "realization_training")
YARDSTICKS = chapter_module("geodesics", "yardsticks")
NAN, INF = math.nan, math.inf
SHALLOW = ShallowReLU([[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0]])
TWINS = ShallowReLU([[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0]])
POINTS = np.random.default_rng(0).standard_normal((10, 2))
TARGETS = np.zeros((10, 1))
NET = mlp([2, 3, 2], seed=0)
R = Realization(NET)
X, Y = normal((20, 2), 0), torch.arange(20) % 2
BOX = torch.ones(1, dtype=torch.float64)
DATA = np.random.default_rng(0).standard_normal((3, 9))
MIXTURE = mixture_a()
KL = MIXTURE.objective(torch.tensor([0.3, 2.0], dtype=torch.float64))
START = torch.tensor([[0.5, 1.0], [0.5, -1.0]], dtype=torch.float64)
G = PullbackMetric(R, X).at(R.theta0)


def problem():
    net = init_(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), 0)
    return Problem.of(net, X, mse(normal((20, 1), 1)))


def broken(net):
    net = mlp([2, 3, 2], seed=0) if net is NET else net
    with torch.no_grad():
        next(net.parameters()).fill_(NAN)
    return net


def tanh_net():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def square(t):
    return (t**2).sum(1)


def coefficient(**options):
    given = {"base": 0.0, "points": [501], **options}
    return learning_coefficient(square, 1000, -BOX, BOX, **given)


def descent(**options):
    given = {"steps": 3, "lr": 0.1, **options}
    return DESCENT.gradient_descent(SHALLOW, POINTS, TARGETS, **given)


REFUSED = {
    "targets (10,) are not broadcast": (
        "y",
        lambda: DESCENT.mean_square(SHALLOW, POINTS, np.zeros(10)),
    ),
    "targets (1, 1) are not broadcast": (
        "y",
        lambda: DESCENT.mean_square(SHALLOW, POINTS, np.zeros((1, 1))),
    ),
    "NaN in x": ("x", lambda: DESCENT.mean_square(SHALLOW, POINTS * NAN, TARGETS)),
    "no rows": ("x", lambda: DESCENT.mean_square(SHALLOW, POINTS[:0], TARGETS[:0])),
    "a negative rate": ("lr", lambda: descent(lr=-1.0)),
    "negative steps": ("steps", lambda: descent(steps=-1)),
    "a negative radius": ("ball", lambda: descent(ball=(SHALLOW, -1.0))),
    "a negative size": (
        "size",
        lambda: DESCENT.escape_degenerate(TWINS, POINTS, TARGETS, size=-1),
    ),
    "NaN residuals": (
        "residual",
        lambda: DESCENT.escape_degenerate(TWINS, POINTS, TARGETS * NAN),
    ),
    "width -1": (
        "width",
        lambda: TRAINING.train_realization(POINTS, TARGETS[:, 0], -1),
    ),
    "one target for ten rows": (
        "y",
        lambda: TRAINING.train_realization(POINTS, [1.0], 3),
    ),
    "an unknown device": ("device", lambda: table("digits", device="abacus")),
    "a device that is not here": ("device", lambda: table("digits", device="cuda:99")),
    "NaN into a network": ("x", lambda: R(R.theta0, X * NAN)),
    "NaN weights": ("theta", lambda: R(R.theta0 * NAN, X)),
    "NaN into its Jacobian": ("v", lambda: G.product(R.theta0 * NAN)),
    "NaN into a shallow network": ("x", lambda: SHALLOW(POINTS * NAN)),
    "no jets": ("jets", lambda: jet_defect("adagrad", problem(), jets=0)),
    "no points": ("points", lambda: jet_defect("adagrad", problem(), points=[])),
    "tolerance NaN": ("tol", lambda: certify(TWINS, TWINS, tol=NAN)),
    "tolerance -1": ("tol", lambda: certify(TWINS, TWINS, tol=-1)),
    "tolerance inf": ("tol", lambda: certify(TWINS, TWINS, tol=INF)),
    "NaN logits": (
        "logits",
        lambda: YARDSTICKS.calibration_error(X * NAN, Y),
    ),
    "no bins": ("bins", lambda: YARDSTICKS.calibration_error(X, Y, 0)),
    "accuracy of NaN weights": ("w", lambda: accuracy(R, R.theta0 * NAN, X, Y)),
    "one label for twenty rows": ("y", lambda: accuracy(R, R.theta0, X, Y[:1])),
    "labels in a column": ("y", lambda: accuracy(R, R.theta0, X, Y[:, None])),
    "CG at tolerance inf": ("tol", lambda: G.solve(R.theta0, 1.0, "cg", tol=INF)),
    "rank at NaN": ("rtol", lambda: G.rank(NAN)),
    "strata of a NaN network": ("module", lambda: find_strata(broken(tanh_net()), X)),
    "a grid of no points": ("points", lambda: coefficient(points=[0])),
    "a negative temperature": ("beta", lambda: coefficient(beta=-1)),
    "rtol NaN": ("rtol", lambda: NaturalGradient(NET, rtol=NAN)),
    "data that overflow": ("X", lambda: prepare(DATA * 1e200)),
    "a negative population": (
        "population",
        lambda: gradient_flow(np.ones((2, 3)), DATA, [0.0, 1.0], population=-np.eye(3)),
    ),
    "complex inputs": ("x", lambda: R(R.theta0, X * 1j)),
    "inputs of a wrong width": ("x", lambda: R(R.theta0, X[:, :1])),
    "inputs in half precision": ("x", lambda: R(R.theta0, X.half())),
    "text for a tensor": ("x", lambda: R(R.theta0, "text")),
    "a list for a number": ("damping", lambda: G.solve(R.theta0, [1.0])),
    "steps without end": (
        "steps",
        lambda: descend(KL, MIXTURE.chart, START, steps=1e3),
    ),
    "more steps than a life": (
        "steps",
        lambda: descend(KL, MIXTURE.chart, START, steps=10**15),
    ),
    "a name that is unknown": (
        "method",
        lambda: descend(KL, MIXTURE.chart, START, method="newton"),
    ),
    "another number of coordinates": (
        "eta0",
        lambda: descend(KL, MIXTURE.chart, START[:, :1]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_argument_is_refused_by_name(name):
    argument, call = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=rf"^[\w, ]*\b{argument}\b"):
        call()


def test_infinity_satisfies_no_claim():
    with pytest.raises((AssertionError, ValueError), match="infinite|finite"):
        claim("trust.infinite", "it grows", measured=INF, bound=">= 2")


def test_inputs_that_require_gradients_give_the_same():
    teacher = torch.tensor([1.0, 0.5], dtype=torch.float64)
    natural = torch.tensor([[0.5, 0.5, 0.0, -1.0]], dtype=torch.float64)
    u = normal((20, 2), 3)
    calls = {
        "descend": lambda t: descend(KL, MIXTURE.chart, t, lr=0.3, steps=20).eta,
        "MixtureKL": lambda t: MixtureKL(teacher).evaluate(t)[1],
        "pull": G.pull,
        "product": G.product,
    }
    given = {"descend": START, "pull": u, "product": R.theta0}
    for name, call in calls.items():
        plain = given.get(name, natural)
        found = call(plain.clone().requires_grad_())
        assert not found.requires_grad, name
        assert torch.equal(found, call(plain)), name


LATE = np.array([0.0, 1.0, 1e6])
STIFF = {
    "large data, late": lambda: large_data_next(LATE, 0.5, 1.0),
    "large data, rho": lambda: large_data_next([0.0, 1.0], 1e12, 1.0),
    "mean field, late": lambda: mean_field_next(LATE, 0.5, 1.0),
    "mean field, rho": lambda: mean_field_next([0.0, 1.0], 1e12, 1.0),
    "narrow, late": lambda: narrow(LATE, 0.5, 1.0),
    "narrow, kappa": lambda: narrow([0.0, 1.0], 1e12, 1.0),
    "predict, late": lambda: predict(Setup(256, 256, 65536, 1 / 256), [0.0, 1e6]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STIFF)
def test_a_stiff_end_has_an_end(name):
    start, said, found = time.process_time(), "", None
    try:
        found = STIFF[name]()
    except (ValueError, ArithmeticError, RuntimeError) as error:
        said = str(error)
    assert (
        re.search("theory|expected|too large", said) or np.isfinite(found.train).all()
    )
    assert time.process_time() - start < 60
