"""Solvers against surfaces whose geodesics are known in closed form."""

import itertools
import math

import pytest
import torch
from chapter_experiments import chapter_module

from geolib.geodesics import LegendreBasis, SineBasis, exponential_map, geodesic

surfaces = chapter_module("geodesics", "surfaces")


def point(*values):
    return torch.tensor(values, dtype=torch.float64)


def solve(space, a, b, size=16):
    return geodesic(space, a, b, basis=LegendreBasis(size), optimizer="lbfgs")


def length(found):
    return math.sqrt(2 * found.energies[-1])


def test_sphere_great_circle():
    S, a, b = surfaces.sphere(), point(0.0, 0.5), point(1.5, 0.5)
    found = solve(S, a, b, 12)
    p, q = S(torch.stack([a, b]))
    assert length(found) == pytest.approx(torch.arccos(p @ q).item(), abs=1e-10)
    normal = torch.linalg.cross(p, q)
    on_path = S(found.path(found.path.times(101)))
    assert (on_path @ normal / normal.norm()).abs().max() < 1e-6
    assert found.converged


def test_half_plane_half_circle():
    a, b = point(0.0, 1.0), point(2.0, 0.5)
    found = solve(surfaces.half_plane(), a, b)
    assert length(found) == pytest.approx(
        surfaces.half_plane_distance(a, b).item(), abs=1e-9
    )
    w = found.path(found.path.times(101))
    centre = (b.square().sum() - a.square().sum()) / (2 * (b[0] - a[0]))
    radius = ((w[:, 0] - centre).square() + w[:, 1].square()).sqrt()
    assert (radius - radius[0]).abs().max() < 1e-6


def test_gaussians_fisher_distance():
    # independent closed form: sqrt 2 times the half-plane distance in (mean / sqrt 2)
    a, b = point(0.0, 1.0), point(1.0, 2.0)
    scaled = (a / point(math.sqrt(2), 1), b / point(math.sqrt(2), 1))
    exact = math.sqrt(2) * surfaces.half_plane_distance(*scaled).item()
    found = length(solve(surfaces.gaussians(), a, b))
    assert found == pytest.approx(exact, abs=1e-9)
    assert surfaces.half_plane_distance(a, b, 2.0).item() == pytest.approx(
        exact, abs=1e-12
    )


@pytest.mark.slow
def test_torus_both_solvers_meet_and_keep_clairaut():
    T = surfaces.torus()
    shot = exponential_map(T, point(0.0, 0.3), point(1.0, 2.0), steps=60)
    w, v = shot.points, shot.velocities
    clairaut = (2 + w[:, 1].cos()).square() * v[:, 0]
    assert (clairaut - clairaut[0]).abs().max() < 1e-6
    assert shot.drift < 1e-7
    assert shot.converged
    found = solve(T, w[0], shot.end)
    assert (found.path(shot.times) - w).abs().max() < 1e-6


def test_cylinder_is_straight_from_a_bent_start():
    bent = 0.3 * torch.ones(4, 2, dtype=torch.float64)
    a, b = point(0.0, 0.0), point(1.0, 2.0)
    found = geodesic(
        surfaces.cylinder(),
        a,
        b,
        basis=LegendreBasis(4),
        optimizer="lbfgs",
        start=bent,
    )
    line = a + found.path.times(9)[:, None] * (b - a)
    assert (found.path(found.path.times(9)) - line).abs().max() < 1e-9


def test_map_and_chart_agree_on_acceleration():
    # the torus by its map and by its metric tensor: two derivations of one equation
    def metric(w):
        rho2 = (2 + w[..., 1].cos()).square()
        return torch.diag_embed(torch.stack([rho2, torch.ones_like(rho2)], -1))

    w, v = point(0.4, 0.7), point(-0.3, 1.2)
    by_map = surfaces.torus().acceleration(w, v)
    assert (by_map - surfaces.Chart(metric).acceleration(w, v)).abs().max() < 1e-12


@pytest.mark.slow
def test_shot_and_boundary_problem_are_inverse_on_the_sphere():
    S, a, v = surfaces.sphere(), point(0.2, 0.1), point(0.8, 0.4)
    end = exponential_map(S, a, v, steps=60).end
    found = solve(S, a, end, 12)
    first = found.path.velocity(point(0.0))[0]
    assert (first - v).abs().max() < 1e-6


@pytest.mark.slow
def test_runge_kutta_order():
    H, a, v = surfaces.half_plane(), point(0.0, 1.0), point(1.0, 0.3)
    errors = []
    fine = exponential_map(H, a, v, steps=120).end
    for steps in (8, 16, 32):
        errors.append((exponential_map(H, a, v, steps=steps).end - fine).norm().item())
    orders = [math.log2(p / q) for p, q in itertools.pairwise(errors)]
    assert all(3.7 < order < 4.3 for order in orders)


def test_stochastic_search_finds_the_great_circle():
    S, a, b = surfaces.sphere(), point(0.0, 0.5), point(1.5, 0.5)
    found = geodesic(S, a, b, basis=SineBasis(4), segments=8, steps=600, lr=2e-2)
    p, q = S(torch.stack([a, b]))
    w = S(found.path(found.path.times(129)))
    polygon = w.diff(dim=0).norm(dim=1).sum().item()
    assert polygon == pytest.approx(torch.arccos(p @ q).item(), abs=2e-3)
    assert found.converged


@pytest.mark.peer
def test_geomstats_gives_the_same_distances():
    np = pytest.importorskip("numpy")
    if not hasattr(np, "trapz"):  # geomstats 2.8 still asks for the old name
        np.trapz = np.trapezoid
    pytest.importorskip("geomstats", reason="the peer for Riemannian manifolds")
    import geomstats.backend as gs
    from geomstats.geometry.hypersphere import Hypersphere
    from geomstats.geometry.poincare_half_space import PoincareHalfSpace
    from geomstats.information_geometry.normal import UnivariateNormalDistributions

    a, b = point(0.0, 1.0), point(2.0, 0.5)
    ours = length(solve(surfaces.half_plane(), a, b))
    space = PoincareHalfSpace(2)
    theirs = space.metric.dist(gs.array(a.numpy()), gs.array(b.numpy()))
    assert ours == pytest.approx(float(theirs), abs=1e-8)
    normal = UnivariateNormalDistributions()
    fisher = normal.metric.dist(gs.array(a.numpy()), gs.array(b.numpy()))
    assert length(solve(surfaces.gaussians(), a, b)) == pytest.approx(
        float(fisher), abs=1e-6
    )
    S, p, q = surfaces.sphere(), point(0.0, 0.5), point(1.5, 0.5)
    ends = S(torch.stack([p, q])).numpy()
    arc = Hypersphere(2).metric.dist(*gs.array(ends))
    assert length(solve(S, p, q, 12)) == pytest.approx(float(arc), abs=1e-8)
