"""What says `converged`, `holds`, `exact` or `applies` says no where that is honest.

The claims that are tested beside the function they belong to: `Bound.holds`, `Solution`,
`Geodesic`, `Sparsified` and `MixtureFit.converged`, `WeightPath.linestyle`,
`Certificate.applies`, `Seminorm.exact`, `Resolution.exact`,
`SurgeryRecord.accepted`, `Connection.aligned`,
`Claim.reproduces` and `Ledger.is_valid`. All others are here, and
`test_no_claim_is_forgotten` knows when one is added.
"""

import ast
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from torch import nn

import geolib
from geolib.core import PullbackMetric, Realization, init_, normal
from geolib.core.linear_solvers import largest_eigenpairs
from geolib.geodesics import FunctionSpace, exponential_map, learn_sequence
from geolib.inverse_stability import ShallowReLU, canonicalize, certify, compare
from geolib.naturality import Verdict, audit
from geolib.networks import Task, align, mlp, permute_channels
from geolib.stratifolds import (
    CollarSurgery,
    GaussianMixture,
    find_strata,
    natural_fit,
)

NATURAL_RULES = chapter_module("naturality", "natural_rules")
CLAIMS = {
    "accepted", "aligned", "applies", "closes", "converged", "exact", "holds",
    "is_triangular_prism", "is_valid", "local_minimum", "reproduces", "rigorous", "same",
    "verified",
}  # fmt: skip
OWNERS = {
    "Alignment", "Bound", "Canonical", "Certificate", "Claim", "Comparison",
    "Connection", "ExponentialMap", "Geodesic", "Learned", "Ledger", "MixtureFit",
    "ModuleTrial", "Resolution", "Seminorm", "Solution",
    "Sparsified", "Spectrum", "SurgeryRecord", "UnitStratum", "Verdict", "WeightPath",
}  # fmt: skip


def test_no_claim_is_forgotten():
    found = set()
    for path in Path(geolib.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = {
                    getattr(n, "name", getattr(getattr(n, "target", None), "id", ""))
                    for n in node.body
                }
                if names & CLAIMS and node.name[0] != "_":
                    found.add(node.name)
    assert found == OWNERS


def relu_net(seed):
    net = nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    return init_(net, seed, bias_scale=0.5).double().eval()


def test_an_alignment_that_was_stopped_early():
    a, b = relu_net(0), relu_net(1)
    assert not align(a, b, max_sweeps=1).converged
    assert align(a, b).converged


def test_a_balance_that_was_stopped_early():
    early, late = (canonicalize(relu_net(0), max_sweeps=k) for k in (1, 2000))
    assert not early.converged
    assert late.converged
    assert early.energy[1] > late.energy[1] * (1 + 1e-12)


def test_a_comparison_of_networks_that_are_not_balanced(monkeypatch):
    a, b = relu_net(0), relu_net(1)
    assert compare(a, b).converged
    room = sys.modules["geolib.inverse_stability.compare"]
    monkeypatch.setattr(room, "canonicalize", partial(canonicalize, max_sweeps=1))
    assert not compare(a, b).converged


def test_a_pair_further_apart_than_the_bound():
    f, g = (ShallowReLU(np.array([[1.0, t]]), np.ones((1, 1))) for t in (0.0, 0.1))
    found = certify(f, g)
    assert found.holds
    assert not replace(found, distance=1.01 * found.bound).holds
    assert not replace(found, bounds={"jump": 0.99 * found.distance}).holds


@pytest.mark.slow
def test_a_geodesic_of_steps_that_are_too_long():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    R = Realization(init_(net, 0, bias_scale=0.5).double())
    space = FunctionSpace(R, normal((6, 2), 1), "raw", damping=0.1)
    v = 3 * normal(R.p, 2)
    assert not exponential_map(space, R.theta0, v, steps=1, tol=1e-6).converged
    assert exponential_map(space, R.theta0, 1e-3 * v, steps=20, tol=1e-6).converged


def test_eigenvalues_that_are_asked_for_too_sharply():
    net = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40))
    R = Realization(init_(net, 0).double())
    G = PullbackMetric(R, normal((60, 40), 1)).at(R.theta0)
    for k, tol, honest in ((3, 1e-6, True), (24, 1e-30, False)):
        found = largest_eigenpairs(G.product, normal(R.p, 0), k, tol)
        assert found.method == "lanczos"
        assert found.converged is honest


@pytest.mark.parametrize("method", ["cholesky", "woodbury", "cg", "nystrom", "kfac"])
@pytest.mark.parametrize("damping", [0.1, 0.0])
@pytest.mark.parametrize("on_outputs", [True, False])
def test_a_solve_of_which_more_than_rounding_is_asked(method, damping, on_outputs):
    if method in ("nystrom", "kfac") and damping == 0.0:
        return  # refused by name
    net = init_(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), 0)
    R = Realization(net)
    G = PullbackMetric(R, normal((20, 3), 1).float()).at(R.theta0)
    u = normal((20, 2), 2).float()
    g = u if on_outputs else G.pull(u)
    D = G.dense().double()
    A = D + damping * torch.eye(len(D))
    if damping == 0.0 and not on_outputs:
        g = (D @ (D @ normal(len(D), 3))).float()  # well inside its range
    b = (G.pull(u) if on_outputs else g).double()
    sharp = G.solve(g, damping, method, tol=1e-40)
    assert not sharp.converged
    loose = G.solve(g, damping, method, tol=0.05)
    if method == "cg" and damping == 0.0:
        return  # here eigenvalues near the cut leave x unknown; the next test has others
    assert loose.converged
    assert float((A @ loose.x.double() - b).norm()) < 0.1 * float(b.norm())


@pytest.mark.parametrize("widths", [(3, 2), (4, 1)])
@pytest.mark.parametrize("on_outputs", [True, False])
def test_iterations_without_damping_say_yes_where_no_eigenvalue_is_near_the_cut(
    widths, on_outputs
):
    R = Realization(init_(nn.Linear(*widths), 0))
    G = PullbackMetric(R, normal((20, widths[0]), 1).float()).at(R.theta0)
    u = normal((20, widths[1]), 2).float()
    loose = G.solve(u if on_outputs else G.pull(u), 0.0, "cg", tol=0.05)
    assert loose.converged
    true = torch.linalg.pinv(G.dense().double()) @ G.pull(u).double()
    assert float((loose.x - true).norm()) < 0.1 * float(true.norm())


@pytest.mark.parametrize("small", [1e-2, 1e-3])
@pytest.mark.parametrize("limit", [1, 2])
def test_iterations_without_damping_that_end_before_a_small_eigenvalue(small, limit):
    """The residual is within tol, and x is off by most of itself."""
    values = torch.tensor([1.0, 0.9, small][-limit - 1 :]).double()
    R = Realization(nn.Linear(len(values), 1, bias=False).double())
    G = PullbackMetric(R, (len(values) * values).sqrt().diag()).at(R.theta0)
    g = torch.tensor([1.0, 1.0, 3 * small][-limit - 1 :]).double()
    found = G.solve(g, 0.0, "cg", tol=0.1, max_iterations=limit)
    assert found.residual < 0.1
    assert float((found.x - g / values).norm()) > 0.5 * float((g / values).norm())
    assert not found.converged
    assert G.solve(g, 0.0, "cg", tol=0.1).converged


@pytest.mark.parametrize("damping", [1e-2, 1e-5])
@pytest.mark.parametrize("limit", [2, 5, 2000])
def test_the_residual_of_landmarks_is_that_of_the_answer(damping, limit):
    """Of a covector on the weights the error counts for more than on the outputs."""
    net = init_(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2)), 0)
    R = Realization(net.double())
    G = PullbackMetric(R, normal((40, 3), 1)).at(R.theta0)
    g, D = normal(R.p, 2), G.dense()
    found = G.solve(g, damping, "nystrom", tol=1e-7, max_iterations=limit)
    true = float((D @ found.x + damping * found.x - g).norm() / g.norm())
    assert true < 3 * found.residual + 1e-9
    assert found.converged is (limit == 2000)


@pytest.mark.filterwarnings("ignore:.*overflow")
def test_a_sequence_of_tasks_whose_weights_overflow():
    x = 1e38 * normal((40, 2), 0).clamp(-3, 3).float()
    y = (x[:, 0] > 0).long()
    net = mlp([2, 4, 2], seed=0).float()
    tasks = [Task(x, y, x, y, (0, 1))]
    options = {"gradient_evaluations": 640, "batch": 16}
    assert not learn_sequence(
        net, tasks, "fine-tuning", scenario="task", **options
    ).converged


def test_a_proximal_step_that_was_stopped_early():
    x, y = normal((5, 2), 0), normal((5, 1), 1)
    for iterations, tolerance, honest in ((1, 1e-14, False), (200, 1e-8, True)):
        net = init_(
            nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), 0
        ).double()
        opt = NATURAL_RULES.ProximalNatural(
            net.parameters(), 0.2, iterations=iterations, tolerance=tolerance
        )

        def closure(net=net):
            z = net(x)
            return z, (z - y).square().mean() / 2

        opt.step(closure)
        assert opt.converged is honest


def test_a_mixture_whose_steps_the_damping_forbids():
    """A step of no length gains nothing, and is not the end of the way."""
    x = torch.cat([normal((50, 1), 0) - 2, normal((50, 1), 1) + 2])
    start = GaussianMixture(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[0.5], [0.6]]).double(),
        torch.ones(2, 1, 1).double(),
    )
    for damping in (1e9, 1e13):
        assert not natural_fit(x, start, damping=damping, max_iter=5).converged
    assert natural_fit(x, start).converged


def test_a_bound_from_below_that_forgets_the_order_of_channels(monkeypatch):
    """Two orders of one network are no distance apart, also where alignment failed."""
    a, b = relu_net(0), relu_net(0)
    orders = [np.random.default_rng(k).permutation(n) for k, n in enumerate((6, 5))]
    permute_channels(b, orders)
    room = sys.modules["geolib.inverse_stability.compare"]
    found = compare(a, b)
    assert found.same
    monkeypatch.setattr(
        room, "align", lambda a, b, **rest: replace(align(a, b), module=b)
    )
    blind = compare(a, b)
    assert blind.distance_at_least <= 1e-6 * blind.distance
    c = relu_net(1)
    assert not compare(a, c).same
    assert compare(a, c).distance_at_least > 0.1


def test_a_stratum_whose_deficit_was_not_measured():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    init_(net, 0, bias_scale=0.5).double()
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
    x = normal((30, 3), 1)
    (found,) = find_strata(net, x, near=0.01)
    assert found.verified
    assert not find_strata(net, x, near=0.01, rtol=1e-40)[0].verified  # none is zero
    assert not replace(found, deficit=found.predicted - 1).verified
    assert not replace(found, gap=900.0).verified
    assert "NOT verified" in str(replace(found, gap=900.0))


def pair_at_a_minimum():
    """Two equal units with the best outgoing weights: no move of the pair can help."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(0.2)
        net[2].weight.fill_(0.5)
        net[2].bias.zero_()
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    return net, x


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_surgery_where_every_move_raises_the_loss(noise):
    """The labels are the network's own up to noise that no unit can follow."""
    net, x = pair_at_a_minimum()
    y = net(x).detach() + noise * torch.cos(40 * x)  # too quick for two units
    before = {k: t.clone() for k, t in net.state_dict().items()}
    surgery = CollarSurgery(net, nn.functional.mse_loss, x, y)
    losses = []
    value = surgery.loss
    surgery.loss = lambda f, t: losses.append(value(f, t)) or losses[-1]
    (record,) = surgery.operate()
    start, tried = float(losses[0]), [float(t) for t in losses[2:]]
    assert min(tried) > start * (1 - 1e-3)
    assert any(start < t < 1.5 * start for t in tried)  # what a lax guard would take
    assert not record.accepted or record.after < record.before
    if not record.accepted:
        for k, t in net.state_dict().items():
            assert torch.equal(t, before[k])
    assert float(nn.functional.mse_loss(net(x), y).detach()) <= start


def test_a_fit_that_collapsed_at_its_target():
    """A component on one point reaches any likelihood; that is no fit."""
    x = torch.cat([normal((30, 1), 1), torch.full((1, 1), 40.0).double()])
    start = GaussianMixture(
        torch.tensor([0.9, 0.1]).double(),
        torch.tensor([[0.0], [40.0]]).double(),
        torch.tensor([[[1.0]], [[1e-20]]]).double(),
    )
    found = natural_fit(x, start, target=-1.4)
    assert found.collapsed
    assert not found.converged


def test_a_deficit_that_is_there_on_the_stratum_only():
    """Beside it the rank is full: what is measured is the rank where it was moved to."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    init_(net, 0, bias_scale=0.5)
    with torch.no_grad():
        net[0].weight[1] = net[0].weight[0] + 0.02
        net[0].bias[1] = net[0].bias[0]
    found = [s for s in find_strata(net, normal((60, 3), 1)) if s.kind == "overlap"]
    (pair,) = (s for s in found if s.units == (0, 1))
    assert pair.verified
    assert pair.deficit == pair.predicted
    R = Realization(net)
    J = R.linearize(R.theta0, normal((60, 3), 1)).jacobian().flatten(0, 1)
    s = torch.linalg.svdvals(J)
    assert s[-1] > 1e-6 * s[0]  # no deficit at the present weights


def test_squares_that_do_not_close_or_of_which_nothing_is_known():
    """Gradient descent does not commute with a shear; a run that diverges says nothing."""
    net = init_(mlp([2, 3, 2], activation=nn.Tanh), 0, bias_scale=0.3)
    data = normal((12, 2), 1), torch.arange(12) % 2
    found = audit(torch.optim.SGD, net, data, families=["orthogonal", "affine"])
    assert [v.closes for v in found.verdicts.values()] == [True, False]
    assert [v.closes for v in map(Verdict.from_letter, "ENU?-")] == 2 * [True] + 3 * [
        False
    ]


def test_a_distance_beyond_the_bound_and_a_pair_that_the_theorem_does_not_know():
    f = ShallowReLU(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0]]))
    g = ShallowReLU(np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[1.0, 1.0]]))
    parallel = ShallowReLU(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 1.0]]))
    found = certify(f, g)
    assert found.holds
    assert not replace(found, distance=found.bound * 1.01 + 1e-6).holds
    assert not certify(f, parallel).applies
