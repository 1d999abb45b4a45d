"""The geometry at a point, against dense automatic differentiation."""

import numpy as np
import pytest
import torch
from naturality_chapter import PROBLEMS
from torch.func import jacrev

from geolib.core import (
    Bernoulli,
    Categorical,
    Euclidean,
    KroneckerFactors,
    Metric,
    OutputMetric,
    Realization,
    init_,
)
from geolib.core.output_metrics import DiagonalMetric
from geolib.naturality import (
    LocalGeometry,
    NaturalGradient,
    Problem,
    affine_mlp,
    covariant_hessian,
    cross_entropy,
    mse,
    standard_suite,
)
from geolib.naturality.reparameterization import directional
from geolib.naturality.rules import hessian


def problem(kind):
    rng = np.random.default_rng(0)
    module = affine_mlp([2, 3, 2], seed=1, gain=1.5)
    x = torch.tensor(rng.standard_normal((9, 2)))
    if kind == "mse":
        loss = mse(torch.tensor(rng.standard_normal((9, 2))))
    else:
        loss = cross_entropy(torch.tensor(rng.integers(0, 2, 9)), kind == "softmax-ref")
    return Problem.of(module, x, loss)


KINDS = ["mse", "softmax", "softmax-ref"]


def dense_fisher(P):
    def F(t):
        J = jacrev(P.outputs)(t)
        z = P.outputs(t)
        W = P.loss.output_metric.at(z, slice(0, len(z))).dense(z.shape[1]) / len(z)
        return torch.einsum("nip,nij,njq->pq", J, W, J)

    return F


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind):
    P = problem(kind)
    t = P.theta0
    q = P.point(t)
    rng = np.random.default_rng(2)
    v, w = (torch.tensor(rng.standard_normal(len(t))) for _ in range(2))
    J = jacrev(P.outputs)(t)
    assert torch.allclose(q.J, J.reshape(-1, len(t)), atol=1e-12)
    assert torch.allclose(q.g, jacrev(lambda s: P.loss(P.outputs(s)))(t), atol=1e-13)
    H = jacrev(jacrev(P.outputs))(t)
    assert torch.allclose(
        q.second(v, w), torch.einsum("ncij,i,j->nc", H, v, w), atol=1e-11
    )
    a = torch.tensor(rng.standard_normal(q.z.shape))
    assert torch.allclose(q.curvature(a), torch.einsum("ncij,nc->ij", H, a), atol=1e-11)
    assert torch.allclose(q.hvp(a, w), q.curvature(a) @ w, atol=1e-11)
    exact = jacrev(jacrev(lambda s: P.loss(P.outputs(s))))(t)
    assert torch.allclose(hessian(q), exact, atol=1e-11)
    assert torch.allclose(q.F, dense_fisher(P)(t), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_christoffel_symbols_by_differentiating_the_metric(kind):
    P = problem(kind)
    t = P.theta0
    q = P.point(t)
    rng = np.random.default_rng(3)
    v, w = (torch.tensor(rng.standard_normal(len(t))) for _ in range(2))
    dF = jacrev(dense_fisher(P))(t)  # dF[i, j, k] = d_k F_ij
    first = 0.5 * (
        torch.einsum("kja,j,a->k", dF, w, v)
        + torch.einsum("kja,j,a->k", dF, v, w)
        - torch.einsum("ijk,i,j->k", dF, v, w)
    )
    assert torch.allclose(q.christoffel(v, w), first, atol=1e-11)
    carried = 0.5 * (
        torch.einsum("jki,j,k->i", dF, v, w)
        + torch.einsum("ika,k,a->i", dF, v, w)
        - torch.einsum("ika,k,a->i", dF, w, v)
    )
    assert torch.allclose(q.transport(torch.zeros_like(t), v, w), carried, atol=1e-11)


@pytest.mark.parametrize("kind", ["mse", "softmax-ref"])
def test_the_connection_transforms_as_one(kind):
    # Gamma'(Dv, Dv) = D Gamma(v, v) - D^2 phi(v, v)
    P = problem(kind)
    P = P.at(P.theta0)
    rng = np.random.default_rng(4)
    n = 40  # enough samples for a metric of full rank
    x = torch.tensor(rng.standard_normal((n, 2)))
    loss = (
        mse(torch.tensor(rng.standard_normal((n, 2))))
        if kind == "mse"
        else cross_entropy(torch.tensor(rng.integers(0, 3, n)), True)
    )
    module = affine_mlp([2, 2, 2], seed=1, gain=1.5)
    P = Problem.of(module, x, loss)
    phi = standard_suite(module, P.theta0)["coupling"]
    v = torch.tensor(rng.standard_normal(len(P.theta0)))
    q, Q = P.point(P.theta0), P.push(phi).point(phi(P.theta0))
    gamma = torch.linalg.solve(q.F, q.christoffel(v, v))
    Dv = phi.push_vector(P.theta0, v)
    there = torch.linalg.solve(Q.F, Q.christoffel(Dv, Dv))
    law = phi.push_vector(P.theta0, gamma) - directional(
        lambda y: directional(phi.forward, y, v), P.theta0, v
    )
    assert float((there - law).norm() / law.norm()) < 1e-8
    wrong = phi.push_vector(P.theta0, gamma)
    assert float((there - wrong).norm() / law.norm()) > 1e-3
    assert torch.allclose(Q.F, phi.push_metric(P.theta0, q.F), atol=1e-10)
    C, D = covariant_hessian(q), covariant_hessian(Q)
    assert torch.allclose(D, phi.push_metric(P.theta0, C), atol=1e-8)
    n = torch.linalg.solve(q.F, q.g)  # v^T (H - Gamma^k g_k) v
    straight = v @ hessian(q) @ v - q.christoffel(v, v) @ n
    assert torch.allclose(v @ C @ v, straight, atol=1e-10)
    H, K = hessian(q), hessian(Q)
    assert not torch.allclose(K, phi.push_metric(P.theta0, H), atol=1e-3)


def test_christoffel_of_a_flat_metric_vanishes_in_its_flat_coordinate():
    # dz^2 / z^2 is flat, and z = e^x makes it dx^2: both terms must cancel.
    class Logarithmic(OutputMetric):
        def at(self, z, samples):
            return DiagonalMetric(z, 1 / z**2)

        def christoffel(self, z, a, b):  # [ab, k] = -a b / z^3 for dz^2 / z^2
            return -a * b / z**3

    x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    z = x.exp().view(1, 1)
    q = LocalGeometry(z, z.sum(), [x], Logarithmic())
    v = torch.ones(1, dtype=torch.float64)
    assert float(q.F) == pytest.approx(1.0)
    assert abs(float(q.christoffel(v, v))) < 1e-14


METRICS = {
    "softmax": Categorical(),
    "softmax-ref": Categorical(reference=True),
    "bernoulli": Bernoulli(),
}


@pytest.mark.parametrize("name", METRICS)
def test_output_metrics_are_hessians_of_a_potential(name):
    z = torch.tensor(np.random.default_rng(0).standard_normal((1, 3)))
    G = METRICS[name]

    def potential(u):
        if name == "bernoulli":
            return torch.nn.functional.softplus(u).sum()
        pad = torch.cat([u, u.new_zeros(1)]) if name == "softmax-ref" else u
        return torch.logsumexp(pad, 0)

    W = jacrev(jacrev(potential))(z[0])
    assert torch.allclose(G.at(z, slice(0, 1)).dense(3)[0], W, atol=1e-13)
    T = jacrev(jacrev(jacrev(potential)))(z[0])
    a, b = torch.tensor(np.random.default_rng(1).standard_normal((2, 1, 3)))
    assert torch.allclose(
        G.christoffel(z, a, b)[0],
        0.5 * torch.einsum("ijk,i,j->k", T, a[0], b[0]),
        atol=1e-13,
    )


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("twin", [False, True])
def test_solve_against_dense_pseudo_inverse(n, twin):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((n, 2)))
    if twin:  # a sample twice, a unit twice: zero eigenvalues but for rounding
        x[1] = x[0]
    y = mse(torch.tensor(rng.standard_normal((n, 1))))
    P = Problem.of(affine_mlp([2, 3, 1], seed=2), x, y)
    if twin:
        theta = P.theta0.clone()
        theta[3:6], theta[10] = theta[:3], theta[9]
        P = P.at(theta)
    q = P.point(P.theta0)
    p = len(P.theta0)
    v = q.F @ torch.tensor(rng.standard_normal(p))
    least = torch.linalg.pinv(q.F, hermitian=True, rtol=1e-10) @ v
    assert torch.allclose(q.solve(v), least, rtol=1e-5, atol=1e-7)
    w = torch.tensor(rng.standard_normal(p))
    I = torch.eye(p).double()
    assert torch.allclose(
        q.solve(w, 0.1), torch.linalg.solve(q.F + 0.1 * I, w), atol=1e-10
    )
    A = torch.tensor(rng.standard_normal((p, p)))
    M = A @ A.T + I
    assert torch.allclose(
        q.solve(w, 0.1, M), torch.linalg.solve(q.F + 0.1 * M, w), atol=1e-10
    )
    if n < p and not twin:  # least M-norm among the solutions of F x = v
        x = q.solve(v, 0.0, M)
        assert torch.allclose(q.F @ x, v, atol=1e-8)
        null = torch.linalg.svd(q.A).Vh[n:]
        assert float((null @ M @ x).norm()) < 1e-6 * float((M @ x).norm())


def test_bad_input_is_named():
    P = PROBLEMS.small_problem()
    q = P.point(P.theta0)
    with pytest.raises(ValueError, match="damping_metric.*positive definite"):
        q.solve(q.g, 0.1, -torch.eye(9).double())
    with pytest.raises(ValueError, match="metric.*finite"):
        q.solve(q.g, 0.1, torch.full((9, 9), torch.nan))
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="outputs of shape"):
        LocalGeometry(x, x.sum(), [x], Euclidean())
    z = x.view(2, 1)
    with pytest.raises(ValueError, match="finite"):
        LocalGeometry(z, z.sum() / 0.0, [x], Euclidean())
    y = z.sqrt() - 1.0
    bad = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    u = bad.sqrt()
    with pytest.raises(ValueError, match="gradient"):
        _ = LocalGeometry(u, u.sum(), [bad], Euclidean()).g
    steep = LocalGeometry(u, u.sum(), [bad], Euclidean())
    with pytest.raises(ValueError, match="gradient"):
        steep.solve(steep.dl)
    with pytest.raises(ValueError, match="computed from the outputs"):
        LocalGeometry(z, (2 * x).sum(), [x], Euclidean())

    class Negative(OutputMetric):
        def at(self, z, samples):
            return DiagonalMetric(z, -torch.ones_like(z))

    with pytest.raises(ValueError, match="semi-definite"):
        LocalGeometry(y, y.sum(), [x], Negative()).solve(torch.ones(2).double())
    with pytest.raises(TypeError, match="metric"):
        NaturalGradient([x], output_metric="euclid")
    with pytest.raises(ValueError, match="y:"):
        mse(torch.zeros(3))
    with pytest.raises(ValueError, match="y:"):
        cross_entropy(torch.zeros(3))
    with pytest.raises(ValueError, match="theta0"):
        P.at(torch.zeros(3))


def peer_case():
    rng = np.random.default_rng(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
    ).double()
    x = torch.tensor(rng.standard_normal((9, 2)))
    y = torch.tensor(rng.standard_normal((9, 2)))
    return init_(module, seed=0), x, y, torch.tensor(rng.integers(0, 2, 9))


PEER = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=PEER) for k in KINDS[:2]])
def test_fisher_against_curvlinops(kind):
    curvlinops = pytest.importorskip("curvlinops", reason="optional peer")
    module, x, y, labels = peer_case()
    P = Problem.of(module, x, mse(y) if kind == "mse" else cross_entropy(labels))
    function, target = {
        "mse": (torch.nn.MSELoss(), y),
        "softmax": (torch.nn.CrossEntropyLoss(), labels),
    }[kind]  # curvlinops averages over outputs too, and we halve: both give I / n
    G = curvlinops.GGNLinearOperator(
        module, function, list(module.parameters()), [(x, target)]
    )
    theirs = torch.as_tensor(G @ torch.eye(len(P.theta0)).double()).detach()
    assert torch.allclose(P.point(P.theta0).F, theirs, atol=1e-14)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=PEER) for k in KINDS[:2]])
def test_fisher_against_nngeometry(kind):
    pytest.importorskip("nngeometry", reason="optional peer")
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense
    from torch.utils.data import DataLoader, TensorDataset

    module, x, y, labels = peer_case()
    module, x = module.float(), x.float()  # nngeometry's softmax needs float32
    loss = mse(y.float()) if kind == "mse" else cross_entropy(labels)
    P = Problem.of(module, x, loss)
    F = FIM(
        model=module,
        loader=DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x)),
        representation=PMatDense,
        variant="regression" if kind == "mse" else "classif_logits",
    ).to_torch()
    ours = P.point(P.theta0).F
    assert float((ours - F).norm() / F.norm()) < 1e-5


@pytest.mark.parametrize("kind", [pytest.param(k, marks=PEER) for k in KINDS[:2]])
def test_kfac_against_curvlinops(kind):
    curvlinops = pytest.importorskip("curvlinops", reason="optional peer")
    module, x, y, labels = peer_case()
    function, target, loss = {
        "mse": (torch.nn.MSELoss(), y, mse(y)),
        "softmax": (torch.nn.CrossEntropyLoss(), labels, cross_entropy(labels)),
    }[kind]
    K = curvlinops.KFACLinearOperator(
        module,
        function,
        list(module.parameters()),
        [(x, target)],
        fisher_type="type-2",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    with Realization(module).recording() as record:
        module(x)
    G = Metric.from_linearization(record.linearization(), loss.output_metric)
    factors = KroneckerFactors(G.rows())
    theirs = torch.as_tensor(K @ torch.eye(G.p).double()).detach()
    assert torch.allclose(factors.dense(), theirs, atol=1e-13)
