"""Every bad input gets an error that names the argument; nothing passes on a NaN."""

import numpy as np
import pytest
import torch
from invstab_chapter import (
    DESCENT,
    EXPERIMENTS,
    EXTREMAL,
    PATHOLOGIES,
    STAIRCASE,
    TRAINING,
)
from torch import nn

from geolib import inverse_stability as stab
from geolib.inverse_stability import BiasedReLU, ShallowReLU
from geolib.inverse_stability.restricted import restricted_defects

ONE = [[1.0]]
NAN, INF = float("nan"), float("inf")
NET = ShallowReLU([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]])
WIDE = ShallowReLU(np.random.default_rng(0).normal(size=(200, 12)), np.ones((1, 200)))


@pytest.mark.parametrize(
    ("A", "C", "error", "match"),
    [
        ([1.0], ONE, ValueError, "A: expected an array with 2 axes"),
        (ONE, [1.0], ValueError, "C: expected an array with 2 axes"),
        (ONE, [[1.0, 2.0]], ValueError, r"A, C: expected A \(m, d\)"),
        ([[NAN]], ONE, ValueError, "A: expected finite"),
        (ONE, [[INF]], ValueError, "C: expected finite"),
        (np.zeros((0, 2)), np.zeros((1, 0)), ValueError, "A: expected no empty axis"),
        (np.zeros((2, 0)), np.zeros((1, 2)), ValueError, "A: expected no empty axis"),
        (np.zeros((2, 2)), np.zeros((0, 2)), ValueError, "C: expected no empty axis"),
        ([["a"]], ONE, TypeError, "A: expected finite real numbers"),
        ([[1j]], ONE, TypeError, "A: expected finite real numbers"),
        (np.float32(ONE), np.float64(ONE), TypeError, "mixed dtypes.*float32.*float64"),
        (torch.ones(1, 1), np.float64(ONE), TypeError, "mixed dtypes"),
    ],
)
def test_networks(A, C, error, match):
    with pytest.raises(error, match=match):
        ShallowReLU(A, C)


def test_biased_networks():
    with pytest.raises(ValueError, match="W, b, C: expected"):
        BiasedReLU(ONE, [1.0, 2.0], ONE)
    with pytest.raises(ValueError, match="b: expected finite"):
        BiasedReLU(ONE, [NAN], ONE)
    with pytest.raises(TypeError, match="mixed dtypes"):
        BiasedReLU(np.float64(ONE), np.float32([1.0]), np.float64(ONE))


def test_weights_are_copied_and_frozen():
    A = np.ones((1, 1))
    net = ShallowReLU(A, ONE)
    A[0, 0] = 7.0
    assert net.A[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        net.A[0, 0] = 2.0


X2, Y2 = np.arange(6.0).reshape(3, 2), np.ones((3, 1))
OTHER = ShallowReLU([[1.0, 0.0, 0.0]], [[1.0]])
HUGE = "d too large for exact enumeration: 200 hyperplanes of rank 12"
CALLS = [
    (lambda: NET(np.ones((3, 5))), r"x: expected shape \(n, 2\)"),
    (lambda: NET - OTHER, "equal input and output dimensions"),
    (lambda: NET.pad(1), "m: expected at least"),
    (lambda: stab.w1inf_seminorm(NET, "exact"), "method: expected one of"),
    (lambda: stab.w1inf_seminorm(WIDE, "cells"), HUGE),
    (lambda: stab.w1inf_seminorm(NET - OTHER), "equal input and output"),
    (lambda: stab.parameter_distance(NET, OTHER), "equal input and output"),
    (lambda: stab.parameter_distance(NET, NET, "rotation"), "gauge: expected one of"),
    (lambda: stab.parameter_distance(NET, NET.pad(13), "sign"), "at most 12"),
    (lambda: stab.certify(NET, OTHER), "equal input and output"),
    (lambda: stab.sharp_constant(0), "m: expected"),
    (lambda: EXTREMAL.extremal_pair(0), "m, delta, eps"),
    (lambda: EXTREMAL.extremal_pair(3, NAN), "m, delta, eps"),
    (lambda: EXTREMAL.extremal_pair(3, 1.0, 0.5), "m, delta, eps"),
    (lambda: EXPERIMENTS.search_extremal(5), "m: expected"),
    (lambda: PATHOLOGIES.Pathology.redundant([]), "ks: expected"),
    (lambda: PATHOLOGIES.Pathology.redundant([-1.0]), "ks: expected"),
    (lambda: PATHOLOGIES.Pathology.redundant([NAN]), "ks: expected"),
    (lambda: PATHOLOGIES.Pathology.redundant([INF]), "ks: expected"),
    (lambda: PATHOLOGIES.Pathology.unbalanced([1.0], -1.0), "r: expected"),
    (lambda: stab.planar_norms(OTHER), "input dimension 2"),
    (lambda: stab.in_restricted(ShallowReLU(ONE, ONE)), "at least 2"),
    (lambda: stab.lift_inputs(np.ones(3)), r"x: expected .* of shape \(n, d\)"),
    (lambda: stab.seminorm_on_box(BiasedReLU(ONE, [1.0], ONE), 1, 1), "low < high"),
    (lambda: stab.seminorm_on_box(BiasedReLU(ONE, [1.0], ONE), 0, INF), "finite"),
    (
        lambda: stab.seminorm_on_box(BiasedReLU(WIDE.A, np.ones(200), WIDE.C), -1, 1),
        "too many to enumerate",
    ),
    (
        lambda: DESCENT.gradient_descent(NET, np.ones((3, 2)), np.ones(3), 1, 0.1),
        "y: expected",
    ),
    (
        lambda: DESCENT.escape_degenerate(NET, np.ones((3, 2)), np.ones(3)),
        "residual: exp",
    ),
    (
        lambda: TRAINING.train_shallow(np.ones((3, 2)), np.ones((3, 1)), 2, "free"),
        "mode: expected",
    ),
    (
        lambda: TRAINING.train_shallow(np.ones((3, 2)), np.ones((3, 1)), 2, loss="l1"),
        "loss: expecte",
    ),
    (
        lambda: TRAINING.train_shallow(np.ones((3, 2)), np.ones(3), 2),
        r"x, y: expected shapes",
    ),
    (
        lambda: TRAINING.train_shallow(np.full((3, 2), NAN), np.ones((3, 1)), 2),
        "x, y: expected fin",
    ),
    (lambda: DESCENT.gradient_descent(NET, X2, Y2, 5, -0.1), "lr: expected"),
    (lambda: DESCENT.gradient_descent(NET, X2, Y2, 5, NAN), "lr: expected"),
    (lambda: DESCENT.gradient_descent(NET, X2, Y2, -5, 0.1), "steps: expected"),
    (lambda: DESCENT.gradient_descent(NET, X2, Y2, 5, 0.1, (NET, -1.0)), "ball: exp"),
    (lambda: DESCENT.gradient_descent(NET, X2, Y2, 5, 0.1, (OTHER, 1.0)), "ball: exp"),
    (lambda: DESCENT.gradient_descent(NET, X2 * NAN, Y2, 5, 0.1), "x: expected finite"),
    (lambda: DESCENT.mean_square(NET, X2, Y2[:, 0]), r"y: expected shape \(3, 1\)"),
    (lambda: DESCENT.mean_square(NET, X2, Y2[:1]), r"y: expected shape \(3, 1\)"),
    (lambda: DESCENT.mean_square(NET, X2 * NAN, Y2), "x: expected finite"),
    (lambda: DESCENT.mean_square(NET, X2, Y2 * NAN), "y: expected finite"),
    (lambda: DESCENT.mean_square(NET, X2[:0], Y2[:0]), "x: expected no empty axis"),
    (lambda: DESCENT.mean_square_gradient(NET, X2, Y2[:, 0]), "y: expected shape"),
    (lambda: NET(X2 * NAN), "x: expected finite"),
    (lambda: NET.jacobian(np.full((3, 2), INF)), "x: expected finite"),
    (lambda: BiasedReLU(ONE, [1.0], ONE)([[NAN]]), "x: expected finite"),
    (lambda: DESCENT.escape_degenerate(NET, X2, Y2, size=-1.0), "size: expected"),
    (lambda: DESCENT.escape_degenerate(NET, X2, Y2 * NAN), "residual: expected finite"),
    (lambda: DESCENT.escape_degenerate(NET, X2, Y2, candidates=0), "candidates: exp"),
    (lambda: DESCENT.escape_degenerate(NET, X2, Y2, tol=NAN), "tol: expected"),
    (lambda: stab.certify(NET, NET, tol=NAN), "tol: expected"),
    (lambda: stab.certify(NET, NET, tol=-1.0), "tol: expected"),
    (lambda: stab.certify(NET, NET, tol=INF), "tol: expected"),
    (lambda: stab.w1inf_seminorm(NET, tol=NAN), "tol: expected"),
    (lambda: stab.w1inf_seminorm(NET, samples=0), "samples: expected"),
    (lambda: restricted_defects(NET, NAN), "tol: expected"),
    (lambda: stab.generic_cell_count(3, 0), "d: expected a whole number"),
    (lambda: EXTREMAL.lipschitz_pair(0.5), "delta, eps: expected"),
    (lambda: EXPERIMENTS.search_lipschitz(0), "D: expected"),
    (lambda: EXPERIMENTS.search_lipschitz(restarts=0), "restarts: expected"),
    (lambda: EXPERIMENTS.random_pair(np.random.default_rng(0), 0), "m, d, D: expected"),
    (lambda: TRAINING.train_shallow(X2, Y2, -1), "width: expected"),
    (lambda: TRAINING.train_shallow(X2, Y2, 2, lr=NAN), "lr: expected"),
    (lambda: TRAINING.train_shallow(X2, Y2, 2, steps=0), "steps: expected"),
    (lambda: TRAINING.train_shallow(X2, Y2, 2, seeds=[]), "seeds: expected"),
    (lambda: TRAINING.train_shallow(X2, Y2, 2, device="abacus"), "device: cannot use"),
    (
        lambda: TRAINING.train_shallow(X2, [0, -1, 1], 2, loss="cross_entropy"),
        "y: expected class numbers",
    ),
    (
        lambda: STAIRCASE.Staircase([0.5, 0.2], [1, 2, 3]),
        "breaks: expected increasing",
    ),
    (lambda: STAIRCASE.Staircase([0.5], [1.0]), "breaks, slopes"),
    (lambda: STAIRCASE.Staircase([0.5], [1.0, NAN]), "finite|increasing"),
    (
        lambda: STAIRCASE.Staircase([0.5], [1.0, 2.0]).best_approximation(-1),
        "pieces: expected",
    ),
    (
        lambda: STAIRCASE.Staircase([], [1.0]).realization_move(
            STAIRCASE.Staircase([], [2.0]), 0.0, 2
        ),
        "radius: expected",
    ),
]


@pytest.mark.parametrize(("call", "match"), CALLS, ids=[m for _, m in CALLS])
def test_calls(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.LayerNorm(2), nn.GELU()])
def test_canonicalize_refuses_by_name(layer):
    net = nn.Sequential(nn.Linear(2, 2), layer, nn.Linear(2, 1)).eval()
    with pytest.raises(TypeError, match=type(layer).__name__):
        stab.canonicalize(net)


def test_training_takes_tensors_that_require_gradients():
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
    (run,) = TRAINING.train_shallow(x, torch.ones(3, 1), 2, steps=2)
    assert np.isfinite(run.losses).all()


def test_gauge_refuses_a_negative_spread():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="decades: expected"):
        stab.random_gauge(net, decades=-1.0)
    with pytest.raises(ValueError, match="max_sweeps: expected"):
        stab.canonicalize(net, max_sweeps=0)
