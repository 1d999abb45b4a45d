"""Masks and surgery of a few weights, worked out by hand."""

import torch
from geodesics_cases import PRUNERS as BASELINES
from geodesics_cases import vector
from torch import nn

from geolib.core import Realization
from geolib.geodesics import (
    FunctionSpace,
)
from geolib.geodesics.sparse_path import (
    MetricMask,
)
from geolib.networks import (
    Meter,
    Table,
)

prune_and_finetune = BASELINES.prune_and_finetune


def test_the_mask_of_the_metric_by_hand():
    # one output: with any sign J^T u is the input, and its square the diagonal
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.5, 4.0]]).double()
    S = FunctionSpace(net, x, "raw")
    w = torch.tensor([4.0, 2.0, 1.0]).double()
    mask = MetricMask(S, Meter(), memory=0.5)
    first, second = torch.tensor([0]), torch.tensor([1])
    assert mask(w, 0.4, first, 1).tolist() == [True, True, False]  # 16, 16, 16: ties
    mask(w, 0.4, second, 2)
    assert torch.allclose(mask.mean, (x[0].square() + x[1].square()) / 2)
    assert mask.meter.gradient_evaluations == 2


def test_the_masks_of_the_rivals_by_hand():
    R = Realization(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 3)))
    w = vector(R.p, 0).float()
    data = Table(*[vector((8, 6), 1).float(), torch.arange(8) % 3] * 3)
    first, second = w[:12].square(), w[12:18].square()
    asked = w, 0.5, torch.arange(8), 1, None
    kept = {k: f(R, data, Meter())(*asked) for k, f in BASELINES.KEEP.items()}
    assert all(int((~m).sum()) == 9 and bool(m[18:].all()) for m in kept.values())
    # LAMP: each square over the sum of those that are not smaller, in its own layer
    share = [v / torch.stack([v[v >= u].sum() for u in v]) for v in (first, second)]
    best = torch.cat(share).topk(9).indices
    assert set(kept["LAMP"][:18].nonzero()[:, 0].tolist()) == set(best.tolist())
    # ERK: densities 8/12 and 5/6 up to a factor, so 8 : 5 of nine weights, 5.5 and 3.5
    assert [int(kept["ERK"][:12].sum()), int(kept["ERK"][12:18].sum())] in (
        [6, 3],
        [5, 4],
    )


def test_kronecker_surgeon_is_the_dense_inverse_of_a_product():
    # one linear layer: the Fisher matrix that it inverts is kron(B, A)
    net = nn.Linear(4, 3, bias=False).double()
    R, x, y = Realization(net), vector((50, 4), 0), torch.arange(50) % 3
    data = Table(*[x, y] * 3)
    meter = Meter()
    choose = BASELINES.kronecker_obs(R, data, meter, damping=1e-3)
    rows = torch.arange(50)
    w = R.theta0
    slope = torch.softmax(R(w, x), 1) - nn.functional.one_hot(y, 3)
    A, B = x.T @ x / 50, slope.T @ slope / 50
    A = A + 1e-3 * A.diagonal().mean() * torch.eye(4)
    B = B + 1e-3 * B.diagonal().mean() * torch.eye(3)
    cost = w.square() / torch.linalg.inv(torch.kron(B, A)).diagonal()
    for level in (0.25, 0.5, 0.75):
        keep = choose(w, level, rows, 1, None)
        assert set(keep.nonzero()[:, 0].tolist()) == set(
            cost.topk(12 - round(12 * level)).indices.tolist()
        )
    assert meter.gradient_evaluations == 3 * 50


def test_kronecker_surgeon_of_a_convolution_counts_every_place():
    # a 1 x 1 filter and the mean over four places: A and B are means over all of them
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    R = Realization(nn.Sequential(nn.Conv2d(4, 3, 1, bias=False).double(), pool))
    x, y, w = vector((20, 4, 2, 2), 0), torch.arange(20) % 3, R.theta0
    choose = BASELINES.kronecker_obs(R, Table(*[x, y] * 3), Meter(), damping=1e-3)
    places = x.permute(0, 2, 3, 1).reshape(-1, 4)
    slope = torch.softmax(R(w, x), 1) - nn.functional.one_hot(y, 3)
    slope = (slope / 4).repeat_interleave(4, 0)
    A, B = places.T @ places / 80, slope.T @ slope / 80
    A = A + 1e-3 * A.diagonal().mean() * torch.eye(4)
    B = B + 1e-3 * B.diagonal().mean() * torch.eye(3)
    cost = w.square() / torch.linalg.inv(torch.kron(B, A)).diagonal()
    keep = choose(w, 0.5, torch.arange(20), 1, None)
    assert set(keep.nonzero()[:, 0].tolist()) == set(cost.topk(6).indices.tolist())
