"""The same matrices from curvlinops and nngeometry (optional peers)."""

import warnings

import pytest
import torch
from core_cases import make, residuals
from torch import nn

from geolib.core import (
    Categorical,
    Euclidean,
    PullbackMetric,
    Realization,
    normal,
    rng,
)

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


def peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"peer library {name} is absent")


def labels(n, o):
    return torch.as_tensor(rng(5).integers(0, o, n))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("case", ["mlp", "conv", "batchnorm", "nobias"])
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_products_agree_with_curvlinops(case, loss):
    curvlinops = peer("curvlinops")
    module, x = make(case)
    R = Realization(module)
    n, o = R(R.theta0, x).shape
    params = list(module.parameters())
    if loss == "mse":
        G = PullbackMetric(R, x, Euclidean()).at(R.theta0)
        y, lossfn, factor = normal((n, o), 3), nn.MSELoss(reduction="sum"), 2 * n
    else:
        G = PullbackMetric(R, x, Categorical()).at(R.theta0)
        y, lossfn, factor = labels(n, o), nn.CrossEntropyLoss(), 1
    op = curvlinops.GGNLinearOperator(module, lossfn, params, [(x, y)])
    v = normal(R.p, 4)
    assert relative(factor * (G @ v), op @ v) < 1e-12


def test_empirical_fisher_agrees_with_curvlinops():
    curvlinops = peer("curvlinops")
    module, x = make("mlp")
    R, y = Realization(module), labels(7, 2)
    G = PullbackMetric(R, x, residuals(nn.CrossEntropyLoss(reduction="sum"), y)).at(
        R.theta0
    )
    params = list(module.parameters())
    op = curvlinops.EFLinearOperator(module, nn.CrossEntropyLoss(), params, [(x, y)])
    v = normal(R.p, 4)
    assert relative(G @ v, op @ v) < 1e-12


@pytest.mark.parametrize("case", ["mlp", "conv"])
@pytest.mark.parametrize("function", ["regression", "classif_logits"])
def test_fisher_matrices_agree_with_nngeometry(case, function):
    peer("nngeometry")
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense
    from torch.utils.data import DataLoader, TensorDataset

    module, x = make(case)
    module, x = module.float(), x.float()  # nngeometry's softmax needs float32
    R = Realization(module)
    metric = Euclidean() if function == "regression" else Categorical()
    G = PullbackMetric(R, x, metric).at(R.theta0)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    F = FIM(model=module, loader=loader, representation=PMatDense, variant=function)
    assert relative(G.dense(), F.to_torch()) < 1e-5
