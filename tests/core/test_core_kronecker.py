"""K-FAC against Kronecker products written out, and against its own dense form."""

import pytest
import torch
from core_cases import make

from geolib.core import (
    Categorical,
    KroneckerFactors,
    PullbackMetric,
    Realization,
    normal,
)


def build(case):
    module, x = make(case)
    R = Realization(module)
    return PullbackMetric(R, x, Categorical()).at(R.theta0), module, x


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_the_factors_of_a_perceptron_by_hand():
    G, module, x = build("mlp")
    pairs = KroneckerFactors(G.rows()).pairs
    h, n = torch.tanh(module[0](x)).detach(), len(x)
    for a, (_, A), k in ((x, pairs[0], 0), (h, pairs[1], 1)):
        a = torch.cat([a, torch.ones(n, 1).double()], 1).detach()
        assert relative(A, a.mT @ a / n) < 1e-14, k
    pi = module(x).softmax(-1).detach()
    M = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    slope = module[2].weight.detach() * (1 - h**2)[:, None, :]  # (n, outputs, hidden)
    assert relative(pairs[1][0], M.mean(0)) < 1e-13
    B = torch.einsum("noa,nop,npb->ab", slope, M, slope) / n
    assert relative(pairs[0][0], B) < 1e-13


@pytest.mark.parametrize("case", ["mlp", "conv", "sequence", "grouped_conv", "shared"])
def test_solving_is_the_inverse_of_the_dense_form(case):
    G, *_ = build(case)
    K = KroneckerFactors(G.rows())
    F, v = K.dense(), normal(G.p, 1)
    assert relative(F, F.mT) < 1e-14
    H = F + 0.1 * torch.eye(G.p, dtype=torch.float64)
    assert relative(K.solve(v, 0.1), torch.linalg.solve(H, v)) < 1e-12
    assert relative(K.join(K.split(v), v), v) == 0.0


def test_the_factored_damping_by_its_own_formula():
    G, *_ = build("mlp")
    K = KroneckerFactors(G.rows())
    v, root = normal(G.p, 1), 0.3
    expected = []
    for (B, A), V in zip(K.pairs, K.split(v), strict=True):
        pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
        A, B = (
            A + pi * root * torch.eye(len(A)).double(),
            B + root / pi * torch.eye(len(B)).double(),
        )
        expected.append(torch.linalg.inv(B) @ V @ torch.linalg.inv(A))
    found = K.solve(v, root**2, factored=True)
    assert relative(found, K.join(expected)) < 1e-12


def test_one_sample_and_one_layer_are_exact():
    module, x = torch.nn.Linear(3, 2).double(), normal((1, 3), 1)
    R = Realization(module)
    G = PullbackMetric(R, x).at(R.theta0)
    assert relative(KroneckerFactors(G.rows()).dense(), G.dense()) < 1e-14


def dead_layer():
    """K-FAC of a network with no gradient at its first layer."""
    G, _, _ = build("mlp")
    K = KroneckerFactors(G.rows())
    (B, A), last = K.pairs
    K.pairs = [(0 * B, A), last]
    return K, normal(K.p, 1)


def test_a_dead_layer_is_damped_like_any_other():
    K, v = dead_layer()
    x = K.solve(v, 0.25, factored=True)
    A, V = K.pairs[0][1], K.split(v)[0]
    eye = torch.eye(len(A)).to(A)
    expected = torch.linalg.solve(A + 0.5 * eye, V.mT).mT / 0.5  # B = 0, pi = 1
    assert relative(K.split(x)[0], expected) < 1e-12


def test_singular_factors_without_damping_are_refused_by_name():
    K, v = dead_layer()
    with pytest.raises(torch.linalg.LinAlgError, match="damping: .* 3 inputs and 5"):
        K.solve(v, 0.0, factored=True)
