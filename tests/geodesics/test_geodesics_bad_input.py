"""What a user may hand in by mistake: each is one clear error that names the argument."""

import copy
import gzip

import pytest
import torch
from geodesics_cases import CERTIFICATE, WALK, YARDSTICKS
from torch import nn

from geolib.core import Realization
from geolib.geodesics import (
    FunctionSpace,
    SineBasis,
    WeightPath,
    connect,
    exponential_map,
    geodesic,
    learn_sequence,
    profile,
    sparsify,
    trained_curve,
)
from geolib.networks import Table, mlp, recalibrate, split_tasks, table, train

NAN = float("nan")
X = torch.linspace(-1, 1, 80, dtype=torch.float64).view(20, 4).sin()
Y = torch.arange(20) % 3
A, B = mlp([4, 6, 3], 0), mlp([4, 6, 3], 1)
R = Realization(A)
WA, WB = R.theta0, Realization(B).theta0
S = FunctionSpace(R, X)
LINE = WeightPath(WA, WB)
certify_path, invariant_walk = CERTIFICATE.certify_path, WALK.invariant_walk


def broken():
    net = copy.deepcopy(B)
    net[1].weight.data[0, 0] = NAN
    return net


def normed():
    parts = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*parts).double()


def tasks():
    return split_tasks(Table(X, Y, X, Y, X, Y), [[0, 1], [2]])


def poisoned():
    w = WB.clone()
    w[3] = NAN
    return w


def logits(w):
    return R(w, X)


CASES = {
    # two networks
    "other widths": (
        lambda: connect(A, mlp([4, 7, 3]), X),
        "b: expected the arch.*'1.weight'",
    ),
    "other depth": (
        lambda: connect(A, mlp([4, 6, 6, 3]), X),
        r"'3.weight' is \(6, 6\) here",
    ),
    "other activation": (
        lambda: connect(A, mlp([4, 6, 3], 1, nn.Tanh), X, method="line"),
        "b: expected the arch.*'2' is Tanh here and ReLU there",
    ),
    "no module": (lambda: connect(A, WB, X), r"b: expected an nn\.Module"),
    "equal ends": (lambda: connect(A, copy.deepcopy(A), X), "the ends are equal"),
    "NaN weights": (lambda: connect(A, broken(), X), "b: expected finite weights"),
    "NaN weights, aligned": (lambda: connect(A, broken(), X, align=True), "NaN"),
    "training BatchNorm": (lambda: connect(normed(), normed(), X), "eval"),
    "line with options": (
        lambda: connect(A, B, X, method="line", steps=3),
        r"options: expected none for a straight line, got \['steps'\]",
    ),
    "other float types": (
        lambda: geodesic(S, WA, WB.float()),
        "b: dtype torch.float32",
    ),
    # data
    "NaN data, no search": (
        lambda: connect(A, B, X * NAN, method="line"),
        "data: expected finite inputs",
    ),
    "no data": (
        lambda: connect(A, B, X[:0]),
        "data: expected a tensor of at least one",
    ),
    "list for data": (lambda: connect(A, B, X.tolist()), "data: expected a tensor"),
    "narrow data": (
        lambda: connect(A, B, X[:, :3]),
        "data: expected what the module takes: .*shapes",
    ),
    "NaN data for noise": (
        lambda: YARDSTICKS.noise_like(X * NAN, 3),
        "x: expected finite",
    ),
    "NaN data for statistics": (
        lambda: recalibrate(normed().eval(), X * NAN),
        "x: expected finite",
    ),
    "NaN data for training": (lambda: train(R, X * NAN, Y), "x: expected finite"),
    "one output": (
        lambda: FunctionSpace(Realization(mlp([4, 1])), X)(torch.zeros(1, 5).double()),
        "space: expected 'raw' where outputs are one number",
    ),
    # labels
    "too few labels": (
        lambda: connect(A, B, X, Y[:-2], method="curve"),
        "labels: expected one label per input, 20, got 18",
    ),
    "labels that are no numbers": (
        lambda: trained_curve(R, WA, WB, X, Y.double()),
        "y: expected a tensor .* of whole numbers",
    ),
    "unseen labels": (lambda: train(R, X, Y + 1), "y: expected classes 0 to 2"),
    "unseen labels on a path": (
        lambda: profile(LINE, logits, Y + 1, 3),
        "labels: expected classes 0 to 2",
    ),
    "tasks with unseen labels": (
        lambda: learn_sequence(mlp([4, 6, 2]), tasks()),
        "tasks: expected labels below the module's 2 outputs, got 2",
    ),
    "NaN in the first network": (
        lambda: learn_sequence(broken(), tasks()),
        "module: expected finite weights",
    ),
    "tasks, training BatchNorm": (lambda: learn_sequence(normed(), tasks()), "eval"),
    # options
    "time after the end": (
        lambda: connect(A, B, X, method="line").module(2.0),
        r"t: expected a time in \[0, 1\]",
    ),
    "no bends": (lambda: geodesic(S, WA, WB, basis=SineBasis(0)), "at least one bend"),
    "NaN bends": (
        lambda: WeightPath(WA, WB, SineBasis(1), poisoned()[None]),
        "control: expected finite numbers",
    ),
    "NaN tolerance": (lambda: geodesic(S, WA, WB, tol=NAN), "tol: expected"),
    "curve, no steps": (lambda: trained_curve(R, WA, WB, X, Y, steps=0), "steps"),
    "curve, NaN rate": (lambda: trained_curve(R, WA, WB, X, Y, lr=NAN), "lr"),
    "shot with NaN": (lambda: exponential_map(S, WA, poisoned()), "v: expected finite"),
    "shot of other size": (
        lambda: exponential_map(S, WA, WB[:-1]),
        "v: .* as in a, got shape",
    ),
    "shot, no velocity": (lambda: exponential_map(S, WA, 0 * WA), "other than zero"),
    "shot, no steps": (lambda: exponential_map(S, WA, WB, steps=0), "steps"),
    "walk from NaN": (lambda: invariant_walk(S, poisoned(), WA), "w: expected finite"),
    "walk to NaN": (lambda: invariant_walk(S, WA, poisoned()), "direction: expected"),
    "walk, negative damping": (
        lambda: invariant_walk(S, WA, WB, damping=-1.0),
        "damping",
    ),
    "certificate, one time": (lambda: certify_path(S, LINE, grid=1), "grid"),
    "level as text": (lambda: sparsify(A, X, "0.5"), "sparsity: expected a share"),
    "level of one": (lambda: sparsify(A, X, 1), "sparsity: expected a share"),
    "sparsify, no steps": (lambda: sparsify(A, X, 0.5, steps=0), "steps: expected"),
    "sparsify, training BatchNorm": (lambda: sparsify(normed(), X, 0.5), "eval"),
    "one width": (lambda: mlp([4]), "sizes: expected two or more"),
}


@pytest.mark.parametrize("name", CASES)
def test_clear_error(name):
    call, text = CASES[name]
    with pytest.raises(ValueError, match=text):
        call()


def test_outputs_that_overflow_on_the_way_are_not_scored():
    # finite weights whose outputs are not
    huge = WeightPath(WA * 1e200, WB * 1e200)
    with pytest.raises(ValueError, match=r"logits: not finite at time 0"):
        profile(huge, logits, Y, 3)


def test_a_curve_that_diverged_says_so_and_is_dashed():
    found = trained_curve(R, WA, WB, X, Y, steps=5, lr=1e300)
    assert not found.converged
    assert found.path.linestyle == "--"
    assert "left the finite numbers" in found.message
    assert bool((found.path.control == 0).all())


def test_corrupt_data_is_a_clear_error(tmp_path, monkeypatch):
    from geolib.data import DataError

    monkeypatch.setenv("GEOLIB_DATA", str(tmp_path))
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"not a picture"))
    with pytest.raises(DataError, match=r"(?s)train-images.*expected: md5.*fetch"):
        table("mnist")
