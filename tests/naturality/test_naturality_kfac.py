"""K-FAC: its factors by their definition, and its steps."""

import copy

import numpy as np
import pytest
import torch
from naturality_cases import (
    DATA,
)
from naturality_chapter import CONTROLS, PROBLEMS
from torch import nn

from geolib.core import (
    Realization,
    init_,
)
from geolib.naturality import (
    KFAC,
    LocalGeometry,
    affine_mlp,
    cross_entropy,
    mse,
    run_optimizer,
    standard_suite,
)
from geolib.naturality.affine_layers import AffineLayer, InChart
from geolib.naturality.kfac import kronecker
from geolib.naturality.local_geometry import flatten


def test_kfac_factors_of_linear_and_homogeneous_layers_agree():
    rng = np.random.default_rng(0)
    h = affine_mlp([3, 4, 2], seed=1)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for k, layer in ((0, plain[0]), (2, plain[2])):
            layer.weight.copy_(h[k].weight[:, :-1])
            layer.bias.copy_(h[k].weight[:, -1])
    x = torch.tensor(rng.standard_normal((30, 3)))
    y = torch.tensor(rng.standard_normal((30, 2)))
    for cls in (KFAC, CONTROLS.KFACDampedNatural):
        ends = []
        for m in (copy.deepcopy(h), copy.deepcopy(plain)):
            opt = cls(m, 0.1, damping=0.1)

            def closure(m=m):
                z = m(x)
                return z, mse(y)(z)

            for _ in range(3):
                opt.step(closure)
            ends.append(m(x).detach())
        assert torch.allclose(*ends, atol=1e-12)
    q, K = kfac_factors(plain, x, mse(y))
    pairs = zip(K.pairs, K.split(q.g), strict=True)
    solved = [
        torch.linalg.solve(B, torch.linalg.solve(A, G.T).T) for (B, A), G in pairs
    ]
    dense = K.dense()
    assert torch.allclose(torch.linalg.solve(dense, q.g), K.join(solved), rtol=1e-6)
    # a single sample: the Kronecker form is exact, layer by layer
    single, K = kfac_factors(plain, x[:1], mse(y[:1]))
    assert torch.allclose(K.dense()[:16, :16], single.F[:16, :16], atol=1e-12)


def kfac_factors(module, x, loss):
    """The geometry of a module's call, and core's factors of it."""
    with Realization(module).recording() as record:
        z = module(x)
    L = record.linearization()
    leaves = list(module.parameters())
    q = LocalGeometry(z, loss(z), leaves, loss.output_metric, linearization=L)
    return q, kronecker(q)


def factors_by_hooks(module, x, loss):
    """The factors by their definition: each layer's inputs and output gradients."""
    kinds, seen = (nn.Linear, AffineLayer), {}
    layers = [m for m in module.modules() if isinstance(m, kinds)]

    def note(m, args, out):
        seen[m] = (args[0].detach(), out)

    hooks = [m.register_forward_hook(note) for m in layers]
    z = module(x)
    for hook in hooks:
        hook.remove()
    W = loss.output_metric.at(z.detach(), slice(0, len(z))).dense(z.shape[1]) / len(z)
    sums = [seen[m][1] for m in layers]
    rows = [torch.autograd.grad(z[:, k].sum(), sums, retain_graph=True) for k in (0, 1)]
    pairs = []
    for k, m in enumerate(layers):
        a, G = seen[m][0], torch.stack([row[k] for row in rows], dim=1)
        if isinstance(m, AffineLayer):
            a, G = m.features(a), G if m.left is None else G @ m.left
        else:
            a = torch.cat([a, torch.ones(len(a), 1).double()], dim=1)
        B = torch.einsum("nia,nij,njb->ab", G, W, G)
        pairs.append((B, a.T @ a / len(a)))
    return pairs


def kfac_cases():
    x, y = DATA
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    init_(plain, 3)
    labels = (y[:, 0] > 0).long()
    P, S = PROBLEMS.regression_problem(), PROBLEMS.softmax_problem()
    there = standard_suite(P.module, P.theta0)["layer-affine"].layers
    return {
        "linear": (plain, x, mse(y)),
        "linear-softmax": (plain, x, cross_entropy(labels)),
        "affine": (InChart(P.module, None), P.data, P.loss),
        "affine-chart": (InChart(P.module, there), P.data, P.loss),
        "softmax-chart": (InChart(S.module, there), S.data, S.loss),
    }


@pytest.mark.parametrize("case", list(kfac_cases()))
def test_core_factors_are_those_of_the_layers_and_steps_follow(case):
    module, x, loss = kfac_cases()[case]
    q, K = kfac_factors(module, x, loss)
    expected, root, steps = factors_by_hooks(module, x, loss), 0.1**0.5, []
    for (B, A), (b, a), G in zip(K.pairs, expected, K.split(q.g), strict=True):
        assert float((B - b).norm()) < 1e-13 * float(b.norm())
        assert float((A - a).norm()) < 1e-13 * float(a.norm())
        pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
        a = a + pi * root * torch.eye(len(a)).double()
        b = b + root / pi * torch.eye(len(b)).double()
        steps.append(torch.linalg.inv(b) @ G @ torch.linalg.inv(a))
    start = flatten(list(module.parameters())).detach()
    opt = KFAC(module, 0.1, damping=0.1, output_metric=loss.output_metric)

    def closure():
        z = module(x)
        return z, loss(z)

    opt.step(closure)
    moved = flatten(list(module.parameters())).detach() - start
    assert torch.allclose(moved, -0.1 * K.join(steps), atol=1e-13)


def test_a_dead_network_is_refused_by_name_where_kfac_damps():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)
    x = torch.ones(5, 3, dtype=torch.float64)

    def closure():
        z = net(x)
        return z, mse(torch.ones(5, 2, dtype=torch.float64))(z)

    with pytest.raises(ValueError, match=r"F \+ damping F_KFAC is singular"):
        CONTROLS.KFACDampedNatural(net, 0.1, damping=0.1).step(closure)


def test_a_run_leaves_the_module_of_the_problem_alone():
    P = PROBLEMS.regression_problem()  # which starts elsewhere than its module
    before = [t.detach().clone() for t in P.module.parameters()]
    assert not torch.equal(flatten(before), P.theta0)
    run_optimizer("kfac", P, 0.1, 2)
    for a, b in zip(before, P.module.parameters(), strict=True):
        assert torch.equal(a, b)
