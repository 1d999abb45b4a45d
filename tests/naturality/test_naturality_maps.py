"""Reparameterizations: inverses, tensor pushes, families."""

import numpy as np
import pytest
import torch
from torch import nn

from geolib.core import Realization
from geolib.naturality import (
    Reparameterization,
    affine_mlp,
    families,
    random_affine,
    standard_suite,
)
from geolib.naturality.affine_layers import InChart, blocks
from geolib.naturality.families import orthogonal, permutation, radial, relu_rescaling
from geolib.naturality.reparameterization import directional


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def bend(phi, x, v):
    """The second derivative of phi along v."""
    return directional(lambda y: directional(phi.forward, y, v), x, v)


def theta(module, seed=0):
    p = sum(t.numel() for t in module.parameters())
    return torch.tensor(np.random.default_rng(seed).standard_normal(p))


MODULES = {"linear": network, "homogeneous": lambda: affine_mlp([3, 4, 2])}
SUITE = list(standard_suite(network(), theta(network())))


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


@pytest.mark.parametrize("family", SUITE)
def test_families_are_bijections_and_push_tensors_consistently(module, family):
    x = theta(module)
    phi = standard_suite(module, x, seed=3)[family]
    phi.check(x)
    rng = np.random.default_rng(1)
    v, m = (torch.tensor(rng.standard_normal(len(x))) for _ in range(2))
    D = phi.jacobian(x)
    assert torch.allclose(phi.push_vector(x, v), D @ v, atol=1e-12)
    w = phi.push_covector(x, m)
    assert torch.allclose(D.T @ w, m, atol=1e-10)
    assert torch.allclose(w @ phi.push_vector(x, v), m @ v)
    A = torch.tensor(rng.standard_normal((len(x), len(x))))
    F = A @ A.T
    pushed = phi.push_metric(x, F)
    assert torch.allclose(D.T @ pushed @ D, F, atol=1e-8)
    h = 1e-4
    second = (phi(x + h * v) - 2 * phi(x) + phi(x - h * v)) / h**2
    assert torch.allclose(bend(phi, x, v), second, atol=1e-5)
    if phi.kind == "affine":
        assert float(bend(phi, x, v).abs().max()) < 1e-12


@pytest.mark.parametrize("make", MODULES.values())
def test_permutation_is_monomial_and_keeps_the_function(make):
    module = make()
    R = Realization(module)
    x = torch.tensor(np.random.default_rng(0).standard_normal((5, 3)))
    phi = permutation(module, R.theta0, 4)
    assert not torch.equal(phi(R.theta0), R.theta0)
    assert torch.allclose(R(phi(R.theta0), x), R(R.theta0, x))
    D = phi.jacobian(R.theta0)
    assert torch.equal(D, D.round())
    assert torch.equal(D.sum(0), torch.ones_like(R.theta0))


def test_relu_rescaling_keeps_a_relu_network():
    module = affine_mlp([3, 5, 4, 2], nn.ReLU)
    R = Realization(module)
    x = torch.tensor(np.random.default_rng(0).standard_normal((6, 3)))
    phi = relu_rescaling(module, R.theta0, 1)
    assert float((phi(R.theta0) - R.theta0).abs().max()) > 0.1
    assert torch.allclose(R(phi(R.theta0), x), R(R.theta0, x), atol=1e-12)


def test_layer_maps_match_the_charted_network():
    module = affine_mlp([3, 4, 2])
    R = Realization(module)
    x = torch.tensor(np.random.default_rng(0).standard_normal((5, 3)))
    phi = standard_suite(module, R.theta0)["layer-affine"]
    other = InChart(module, phi.layers)
    S = Realization(other)
    assert torch.allclose(S.theta0, phi(R.theta0))
    assert torch.allclose(S(S.theta0, x), R(R.theta0, x))


def test_blocks_cover_every_parameter_once():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.Flatten(), nn.Linear(8, 3, bias=False)
    )
    index = torch.cat([b.reshape(-1) for b in blocks(module)])
    p = sum(t.numel() for t in module.parameters())
    assert torch.equal(index.sort().values, torch.arange(p))
    with pytest.raises(ValueError, match="no trainable parameters"):
        blocks(nn.ReLU())


def test_condition_numbers_and_orthogonality():
    x = torch.zeros(7, dtype=torch.float64)
    D = random_affine(x, 0, cond=5.0).jacobian(x)
    assert float(torch.linalg.cond(D)) == pytest.approx(5.0)
    Q = orthogonal(x, 0).jacobian(x)
    assert torch.allclose(Q.T @ Q, torch.eye(7).double(), atol=1e-12)


def test_long_vectors_use_rotations_that_are_orthogonal(monkeypatch):
    monkeypatch.setattr(families, "DENSE", 4)
    x = torch.tensor(np.random.default_rng(0).standard_normal(9))
    phi = orthogonal(x, 0)
    phi.check(x)
    Q = phi.jacobian(x)
    assert torch.allclose(Q.T @ Q, torch.eye(9).double(), atol=1e-12)
    assert int((Q.abs() > 1e-3).sum()) > 40  # it mixes
    A = random_affine(x, 0).jacobian(x)
    assert float(torch.linalg.cond(A)) == pytest.approx(3.0)


def test_composition_and_inverse():
    module = network()
    x = theta(module)
    s = standard_suite(module, x)
    phi = s["affine"].then(s["coupling"]).then(s["sinh"])
    phi.check(x)
    assert torch.allclose(phi(x), s["sinh"](s["coupling"](s["affine"](x))))
    assert phi.kind == "nonlinear"
    assert s["affine"].then(s["diagonal"]).kind == "affine"
    assert torch.allclose(phi.inverse(phi(x)), x)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((lambda x: 2 * x, lambda y: y), "misses x"),
        ((lambda x: x * float("nan"), lambda y: y), "misses x"),
        ((lambda x: x[:2], lambda y: y), "same shape"),
    ],
)
def test_a_pair_that_is_no_bijection_is_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        Reparameterization(*pair).check(torch.ones(3))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="A: .* with p = 2"):
        Reparameterization.affine(torch.ones(2, 3))
    with pytest.raises(ValueError, match="scale"):
        Reparameterization.scaling(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="power"):
        radial(network(), torch.ones(23), -1.0)
    with pytest.raises(ValueError, match="tag"):
        Reparameterization.scaling(2.0).push("twist", torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="sizes"):
        affine_mlp([3])
