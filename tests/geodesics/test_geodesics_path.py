"""Paths: bases, slopes, bounds on slopes, faults."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from geodesics_cases import CERTIFICATE, POLYGONS, vector

from geolib.geodesics import (
    FunctionSpace,
    LegendreBasis,
    SineBasis,
    WeightPath,
    geodesics,
    profile,
)
from geolib.geodesics.path import BezierBasis

LinearSplineBasis, polygon = POLYGONS.LinearSplineBasis, POLYGONS.polygon

BASES = [
    SineBasis(3),
    LegendreBasis(3),
    BezierBasis(1),
    BezierBasis(3),
    LinearSplineBasis(5),
]
IDS = [f"{type(b).__name__}{b.size}" for b in BASES]


def curve(basis, size=4):
    control = vector((basis.size, size), 2)
    return WeightPath(vector(size, 0), vector(size, 1), basis, control)


@pytest.mark.parametrize("basis", BASES, ids=IDS)
def test_ends_are_kept(basis):
    path = curve(basis)
    ends = path(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.allclose(ends[0], path.a, atol=1e-14)
    assert torch.allclose(ends[1], path.b, atol=1e-14)


@pytest.mark.parametrize("basis", BASES, ids=IDS)
def test_velocity_is_the_derivative(basis):
    path = curve(basis)
    t = torch.tensor([0.07, 0.31, 0.52, 0.94], dtype=torch.float64)
    h = 1e-6
    numeric = (path(t + h) - path(t - h)) / (2 * h)
    assert torch.allclose(path.velocity(t), numeric, atol=1e-7)


@pytest.mark.parametrize("basis", BASES, ids=IDS)
def test_slope_change_is_a_bound(basis):
    grid = 33
    t = torch.linspace(0, 1, grid, dtype=torch.float64)
    mid, r = (t[1:] + t[:-1]) / 2, 0.5 / (grid - 1)
    bound = CERTIFICATE.slope_change(basis, mid, r)
    for s in torch.linspace(-0.999, 0.999, 7, dtype=torch.float64):
        gap = (basis.slopes(mid + s * r) - basis.slopes(mid)).abs()
        assert bool((gap <= bound + 1e-9).all())


def test_legendre_slopes_are_orthonormal():
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    S = LegendreBasis(5).slopes(t)
    gram = torch.trapezoid(S[:, :, None] * S[:, None, :], t, dim=0)
    assert torch.allclose(gram, torch.eye(5, dtype=torch.float64), atol=1e-6)


def test_sine_bends_of_one_size_cost_one_energy():
    # the slopes are orthogonal and equally long: that is what the factor 1/k buys
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    slopes = SineBasis(4).slopes(t)
    gram = torch.trapezoid(slopes[:, :, None] * slopes[:, None, :], t, dim=0)
    half = torch.eye(4, dtype=torch.float64) * torch.pi**2 / 2
    assert torch.allclose(gram, half, atol=1e-5)


def test_bezier_is_the_textbook_curve():
    path = curve(BezierBasis(1))
    middle = (path.a + path.b) / 2 + path.control[0]
    t = torch.tensor([0.3], dtype=torch.float64)
    textbook = 0.49 * path.a + 2 * 0.3 * 0.7 * middle + 0.09 * path.b
    assert torch.allclose(path(t)[0], textbook)


def test_polygon_passes_its_points():
    points = vector((5, 3), 7)
    path = polygon(points)
    assert torch.allclose(path(path.times(5)), points)
    assert torch.allclose(polygon(points[:2]).b, points[1])


def test_not_converged_is_drawn_dashed():
    path = WeightPath(vector(2, 0), vector(2, 1))
    assert path.linestyle == "-"
    assert WeightPath(path.a, path.b, converged=False).linestyle == "--"


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (torch.zeros(2), torch.zeros(3), "b: expected a flat weight vector"),
        (torch.zeros(2), torch.tensor([0.0, float("nan")]), "b: expected finite"),
        (torch.tensor([float("inf"), 0.0]), torch.zeros(2), "a: expected finite"),
    ],
)
def test_bad_ends(a, b, text):
    with pytest.raises(ValueError, match=text):
        WeightPath(a, b)


def test_bad_control_and_polygon():
    a, b = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match=r"control: expected shape \(3, 2\)"):
        WeightPath(a, b, SineBasis(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="come together"):
        WeightPath(a, b, SineBasis(3))
    with pytest.raises(ValueError, match="at least two"):
        polygon([a])
    with pytest.raises(ValueError, match="one time per knot"):
        CERTIFICATE.slope_change(LinearSplineBasis(31), torch.tensor([0.5]), 0.25)


def test_a_profile_draws_what_it_measured():
    line = WeightPath(torch.tensor([-1.0]), torch.tensor([1.0]))
    found = profile(line, lambda w: torch.stack([w, -w], 1), torch.tensor([0]), 5)
    axes = found.plot()
    drawn = {a.get_label(): a.get_xydata() for a in axes.get_lines()}
    for name in ("loss", "accuracy"):
        assert np.allclose(
            drawn[name], np.stack([found.times, getattr(found, name)], 1)
        )
    plt.close(axes.figure)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bends_at_times_in_half_precision(dtype):
    t = torch.linspace(0, 1, 5, dtype=dtype)
    for found, true in (
        (LegendreBasis(4).values(t), LegendreBasis(4).values(t.double())),
        (LegendreBasis(4).slopes(t), LegendreBasis(4).slopes(t.double())),
    ):
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), true, atol=0.05, rtol=0.02)


def test_ends_that_require_gradients_do_not_train_through_the_search():
    space = FunctionSpace(torch.nn.Linear(2, 1, bias=False), torch.eye(2), "raw")
    a, b = torch.zeros(2, 2), torch.ones(2, 2)
    plain = geodesics(space, a, b, seeds=[0, 1], steps=3)
    found = geodesics(space, a.requires_grad_(), b, seeds=[0, 1], steps=3)
    assert [f.energies for f in found] == [f.energies for f in plain]
