"""Certificates: jets and the naturality algebra."""

import numpy as np
import pytest
import torch
from naturality_chapter import ALGEBRA, CONTROLS, PROBLEMS

from geolib.naturality import (
    Generator,
    jet_defect,
    sample_points,
)

P = PROBLEMS.small_problem(0)
POINTS = sample_points(P, 3)

LAWS = {  # (1-jets, 2-jets): whether they pass
    "gradient": (False, True),
    "sign": (False, True),
    "natural": (True, True),
    "damped": (False, True),
    "newton": (True, False),
    "covariant-newton": (True, True),
    "empirical": (True, True),
    "heavy-ball": (False, False),
    "ngd-euclidean-momentum": (True, False),
    "natural-momentum": (True, True),
    "natural-momentum-covector": (True, True),
    "function-momentum": (True, True),
}


def law(name):
    """A rule of the chapter, or of the package by its name."""
    return CONTROLS.RULES.get(name, CONTROLS.CONTROLS.get(name, name))


@pytest.mark.slow_for("natural-*", "covariant-*", "heavy-*", "function-*")
@pytest.mark.parametrize("name", LAWS)
def test_jets_decide(name):
    for order, passes in zip((1, 2), LAWS[name], strict=True):
        d = jet_defect(law(name), P, order, points=POINTS, jets=3)
        assert (d < 1e-5) if passes else (d > 0.1), (name, order, d)


@pytest.mark.parametrize("name", ["natural", "covariant-newton", "natural-momentum"])
def test_jets_on_a_classification_problem(name):
    S = PROBLEMS.softmax_problem()
    for order in (1, 2):
        assert jet_defect(name, S, order, points=[S.theta0], jets=2) < 1e-4


def linear():
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.standard_normal((15, 2)))
    y = torch.tensor(rng.standard_normal((15, 2)))
    return PROBLEMS.linear_model(X, y, torch.tensor(rng.standard_normal((2, 2))))


@pytest.mark.slow_for("natural-*", "damped-*")
@pytest.mark.parametrize(
    ("name", "dim"), [("gradient", 6), ("damped", 6), ("natural", 16)]
)
def test_algebra_of_a_two_by_two_linear_model(name, dim):
    # so(4), so(4), gl(4)
    A = ALGEBRA.naturality_algebra(name, linear())
    assert A.dim == dim
    assert A.bracket_residual() < 1e-4
    assert A.gap > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim"),
    [("gradient", 36), ("muon", 7), ("kronecker", 14), ("block", 45), ("diagonal", 9)],
)
def test_algebra_of_the_network(name, dim):
    assert ALGEBRA.naturality_algebra(law(name), P).dim == dim


def test_the_algebra_of_the_gradient_is_antisymmetric():
    A = ALGEBRA.naturality_algebra("gradient", linear())
    assert float((A.basis + A.basis.mT).abs().max()) < 1e-7


def test_a_field_of_ones_own_and_errors():
    mine = Generator("mine", lambda q, s: {"x": -2 * q.solve(q.g)})
    assert jet_defect(mine, P, points=POINTS[:1], jets=2) < 1e-5
    assert jet_defect(lambda q: -q.g, P, points=POINTS[:1], jets=2) > 0.1
    with pytest.raises(ValueError, match="order"):
        jet_defect("natural", P, 3)
    with pytest.raises(ValueError, match="rule: expected"):
        jet_defect("nope", P)
    with pytest.raises(ValueError, match="condition number"):
        sample_points(P, cond=1.0)
