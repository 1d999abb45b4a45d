"""What the chapter's pages compute beside the package: bounds, zoo, planted networks."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module, experiments

from geolib.stratifolds import (
    MixtureTube,
    mixture_a,
    mixture_b,
    resolve,
    smooth_modulus,
)
from geolib.sweep import measured

em = chapter_module("stratifolds", "location_em").em
F64 = torch.float64


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_certified_floors_lie_below_the_least_eigenvalue_on_a_grid(eps):
    kreck = chapter_module("stratifolds", "kreck")
    grid = torch.cartesian_prod(
        torch.linspace(-eps, eps, 15, dtype=F64), torch.linspace(eps, 2, 15, dtype=F64)
    )
    chart = MixtureTube(eps)
    grid = grid[(chart.project(grid) - grid).norm(dim=1) == 0]
    least = torch.linalg.eigvalsh(resolve(mixture_a(), eps).metric(grid)).min()
    bound = kreck.tube_floor(eps, most=2.0) * eps**2
    assert 0.5 * least < bound < least
    v = torch.linspace(0, eps / 2, 9, dtype=F64)
    cells = torch.cartesian_prod(v, torch.linspace(-2, 2, 9, dtype=F64))
    eta = torch.stack([0 * cells[:, 0], cells[:, 0], cells.prod(1)], 1)
    least = torch.linalg.eigvalsh(resolve(mixture_b(), eps, "cap").metric(eta)).min()
    assert 0.5 * least < kreck.cap_floor(eps) < least


def test_the_enclosed_modulus_holds_the_modulus_and_its_slope():
    kreck = chapter_module("stratifolds", "kreck")
    eps = 0.3
    for low, high in itertools.pairwise(np.linspace(0, eps, 24)):
        t = torch.linspace(low, high, 9, dtype=F64)
        sides = kreck.modulus(kreck.iv.mpf([low, high]), eps)
        for values, side in zip(smooth_modulus(t, eps), sides, strict=True):
            assert kreck.ends(side)[0] - 1e-15 <= values.min()
            assert values.max() <= kreck.ends(side)[1] + 1e-15
        assert kreck.ends(sides[0])[1] - kreck.ends(sides[0])[0] < 0.1 * eps


@cache
def zoo_cases():
    """Every model with its integrals, computed once for two tests."""
    return list(chapter_module("stratifolds", "zoo").cases(80))


def test_zoo_has_the_published_coefficients():
    zoo = chapter_module("stratifolds", "zoo")
    # Aoyagi and Watanabe's four cases, and the symmetry of input and output
    assert zoo.reduced_rank(1, 1, 1) == (0.5, 2)
    assert zoo.reduced_rank(3, 3, 2) == (2.5, 1)
    assert zoo.reduced_rank(2, 7, 2) == (2.0, 1)
    assert zoo.reduced_rank(2, 2, 7) == (2.0, 1)
    for M, N, H in np.ndindex(4, 4, 4):
        one, two = (
            zoo.reduced_rank(*p) for p in ((M + 1, N + 1, H + 1), (N + 1, M + 1, H + 1))
        )
        assert one == two
        assert (
            one[0] <= min((H + 1) * (M + 1), (H + 1) * (N + 1), (M + 1) * (N + 1)) / 2
        )
    found = zoo_cases()
    assert max(abs(case.measured - case.known) for case in found) < 0.01
    assert sum(case.polyhedron is not None for case in found) == 25
    assert all(abs((c.polyhedron or c.known) - c.known) < 1e-9 for c in found)


@pytest.mark.slow
def test_the_sampler_has_the_divergences_and_priors_of_the_integrals():
    """Z at the sampler's n by draws of its prior, where enough of them count."""
    zoo, sampler = (chapter_module("stratifolds", m) for m in ("zoo", "zoo_sampler"))
    gen, n, told = torch.Generator().manual_seed(5), zoo.NEAR.mean(), 0
    for case in zoo.cases(160):  # of fewer nodes the integrals at so few data are off
        P, K = sampler.named(case.name)
        w = torch.exp(-n * K(torch.rand(100_000, P, generator=gen, dtype=F64)))
        error = float(w.std() / w.mean()) / len(w) ** 0.5
        if error < 0.05 and case.family != "mixture":  # its masses are of no unit prior
            told += 1
            gap = float(w.mean().log()) - float(case.log_z[-2:].mean())
            assert abs(gap) < 5 * error + 0.02, case.name
    assert told >= 20


def test_the_two_forms_of_the_hidden_markov_law_agree():
    zoo, dynamics = (chapter_module("stratifolds", m) for m in ("zoo", "zoo_dynamics"))
    a, b, p, q = 0.2, 0.5, 0.9, 0.3
    share = b / (a + b)
    s = 2 * np.array([p, q]) - 1
    args = (share * s[0] + (1 - share) * s[1], s[0] - s[1], share, 1 - a - b)
    excess = zoo.markov_excess(*map(np.asarray, args))
    law = dynamics.markov(torch.tensor([a, b, p, q], dtype=F64)).numpy()
    assert np.abs(law - (1 + excess) / 8).max() < 1e-15
    assert abs(law.sum() - 1) < 1e-15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_of_the_zoo_are_those_of_theory(seed):
    """Those of seed 0 are also compared with the stored table, in the fast layer."""
    dynamics = chapter_module("stratifolds", "zoo_dynamics")
    assert all(theory == rank for *_, theory, rank in dynamics.ranks(seed))


def test_the_stored_zoo_is_what_is_computed():
    zoo, dynamics = (chapter_module("stratifolds", m) for m in ("zoo", "zoo_dynamics"))
    file = Path(zoo.__file__).parent / "measured" / "zoo.json"
    (entry,) = measured(file).entries.values()
    stored = {row["model"]: row for row in entry["models"]}
    cases = zoo_cases()
    assert list(stored) == [c.name for c in cases]
    families = {row["family"] for row in stored.values()}
    words = ("reduced rank", "deep linear", "tensor", "hidden Markov", "Boltzmann", "tanh",
             "ReLU", "mixture")  # fmt: skip
    assert all(any(word in f for f in families) for word in words)
    for c in cases:
        row = stored[c.name]
        assert (row["lambda"], row["m"], row["algebra"]) == (
            c.known, c.multiplicity, c.polyhedron)  # fmt: skip
        assert row["source"]
        assert row["wait"] or row["empty because"]
    ranks = {name: [] for name in stored}
    for name, _, theory, rank in dynamics.ranks():
        assert theory == rank
        ranks[name].append(str(rank))
    assert all(stored[n]["rank, measured"] == ", ".join(r) for n, r in ranks.items())


@pytest.mark.slow
def test_plateaus_of_the_zoo_are_those_of_theory():
    dynamics = chapter_module("stratifolds", "zoo_dynamics")
    for wait in dynamics.plateaus():
        assert abs(wait.measured / wait.expected - 1) < 0.05


def test_em_in_the_tube_is_em_outside_the_collar_and_passes_the_wall():
    tube_em = experiments("stratifolds").tube_em
    A = mixture_a()
    far = A.objective(torch.tensor([0.3, 5.0], dtype=F64))
    start = torch.tensor([[0.01, -4.0]], dtype=F64)
    lost = em(far, A.chart.embed(start), fixed=[0], steps=500)
    assert not lost.success.any()
    assert tube_em(far, start, eps=0.1, steps=50)[0].all()
    near = A.objective(torch.tensor([0.3, 2.0], dtype=F64))
    start = torch.tensor([[0.5, 1.0], [0.4, 2.5]], dtype=F64)
    plain = em(near, A.chart.embed(start), fixed=[0], steps=200)
    assert torch.equal(tube_em(near, start, eps=0.1, steps=200)[1], plain.hitting_time)


# those of each sixth number have all kinds and all depths
@pytest.mark.parametrize(
    "number",
    [pytest.param(2000 + k, marks=[pytest.mark.slow] * bool(k % 6)) for k in range(25)],
)
def test_planted_strata_are_found_and_nothing_else(number):
    found = chapter_module("stratifolds", "planted").trial(number)
    assert [found.missed, found.invented] == [False] * 2
    assert found.depth == 1 + number // 5 % 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [120_177, 120_220, 120_393, 120_490, 120_529])
def test_planted_strata_of_units_that_are_off_are_named(number):
    """Their units are off on all data, and to call them dormant is not enough."""
    row = chapter_module("stratifolds", "experiments_planted").row(number)
    assert row[3:] == [True, False, False]


@pytest.mark.parametrize("method", ["Adam, standard", "natural gradient, relative"])
def test_taking_ended_runs_out_of_a_race_changes_no_result(method, monkeypatch):
    contest = chapter_module("stratifolds", "experiments_mixtures")
    spec = contest.Spec("known variance | 1.0 | near", method, budget=120)
    quick = contest.run(spec)
    monkeypatch.setattr(contest.race, "LOOK", 10**9)  # nobody looks
    slow = contest.run(spec)
    assert any(p is not None for p in slow["passes"])
    assert [quick[k] for k in ("rate", "passes")] == [
        slow[k] for k in ("rate", "passes")
    ]


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
@pytest.mark.parametrize("chart", ["standard", "relative"])
def test_gradients_and_steps_of_each_kind_of_covariance(kind, chart):
    """The slope is that of autograd, and EM's fixed point has none."""
    contest = chapter_module("stratifolds", "experiments_mixtures")
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.standard_normal((60, 3)))
    x[:30] += 3
    task = contest.Task(x, torch.full((60,), 1 / 60).double(), 2, kind, prior=0.02)
    start = contest.starts(task, "k-means++", [1, 2])
    zero = torch.zeros(2, dtype=F64)
    run = contest.Race(task, chart, start, zero - torch.inf, zero)
    eta = run.eta.clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad(task.evaluate(run.state(eta))[0].sum(), eta)
    torch.testing.assert_close(run.slope(run.eta)[1], wanted, rtol=1e-9, atol=1e-12)
    run.run(contest.race.em, 300)
    assert run.slope(run.ends)[1].abs().max() < 1e-6


@pytest.mark.slow
def test_the_table_of_models_holds_what_each_of_them_says():
    table = chapter_module("stratifolds", "kreck_table")
    rows = {row["model"]: row for row in table.table()}
    assert [rows[m]["bounds"] for m in ("cone, slope 2", "+-delta in space")] == [
        "yes",
        "no",
    ]
    asked = ("density depends on g", "told apart off it", "regular off it")
    assert all(row[key] for row in rows.values() for key in asked)
    assert sum(row["certified metric"] is not None for row in rows.values()) == 4
    assert all((row["certified metric"] or 1) > 0 for row in rows.values())


def test_models_as_stratifolds_and_what_is_none():
    table = chapter_module("stratifolds", "kreck_table")
    models = {m.name: m for m in table.models()}
    assert table.bounds(models["cone, slope 2"].link)
    assert not table.bounds(models["+-delta in space"].link)
    A, B = models["mixture A"], models["mixture B"]
    w, mu = A.coordinates
    assert (A.collapses(), A.separates(), A.regular()) == (True, True, True)
    # on w = 1 the density depends on mu, the location; w and mu are not told by w mu alone
    assert not dataclasses.replace(A, wall=[{w: 1}]).collapses()
    assert not dataclasses.replace(A, told=[(A.told[0][0], mu)]).separates()
    assert not dataclasses.replace(A, off=[w]).regular()
    assert not dataclasses.replace(B, base=[]).collapses()  # it depends on b
    assert table.fills(table.DISK, table.CIRCLE)
    assert not table.fills(table.DISK, table.TWO_CIRCLES)
    assert not table.fills(table.CYLINDER, table.CIRCLE)  # it has another end


def test_certified_floors_of_the_waist_and_of_squares_lie_below_the_metric():
    table, bent = (chapter_module("stratifolds", n) for n in ("kreck_table", "cone"))
    eps = 0.1
    xi = torch.linspace(-eps, eps, 201, dtype=F64)
    eta = torch.stack([xi, 0.3 + 0 * xi], 1)
    least = torch.linalg.eigvalsh(resolve(bent.cone(2.0), eps).metric(eta)).min()
    bound = table.cone_floor(2.0, eps) * eps**2
    assert 0.9 * least < bound <= least * (1 + 1e-12)
    # the metric in z by Monte Carlo-free quadrature of the score, at |z| <= 1
    x = torch.linspace(-8, 8, 161, dtype=F64)
    grid = torch.cartesian_prod(x, x)
    for size in (1e-3, 0.3, 1.0):
        z = torch.tensor([size, 0.0], dtype=F64)

        def density(z):
            r = z.norm()
            delta = torch.stack(
                [((r + z[0]) / 2).sqrt(), ((r - z[0]).clamp_min(0) / 2).sqrt()]
            )
            delta = delta * torch.tensor([1.0, 1.0 if z[1] >= 0 else -1.0], dtype=F64)
            far = (grid - delta).square().sum(1), (grid + delta).square().sum(1)
            return sum(torch.exp(-f / 2) for f in far) / (4 * np.pi)

        h, p = 1e-4 * size, density(z)
        step = torch.eye(2, dtype=F64) * h
        score = torch.stack(
            [(density(z + e) - density(z - e)) / (2 * h) for e in step], 1
        )
        F = (score.T / p) @ score * 0.1**2
        assert table.square_floor(size) <= torch.linalg.eigvalsh(F).min() * (1 + 1e-3)
