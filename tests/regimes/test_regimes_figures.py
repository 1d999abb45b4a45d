"""The data of the figures that move: the solid prism, and what is predicted of setups."""

import numpy as np
from chapter_experiments import experiments

from geolib.regimes import REGIMES, Setup, classify_regime, theory_curves


def test_the_faces_are_flat_convex_and_outermost():
    faces, lattice = experiments("regimes").solid_prism(3)
    assert sorted(f["name"] for f in faces) == sorted(REGIMES)
    assert len(lattice) == 60
    for face in faces:
        points = face["points"]
        sides = np.roll(points, -1, 0) - points
        turns = np.cross(sides, np.roll(sides, -1, 0))
        normal = turns[0] / np.linalg.norm(turns[0])
        assert np.allclose(np.cross(turns, normal), 0, atol=1e-9)
        assert (turns @ normal > 0).all()  # the corners go once around
        heights = (lattice - points[0]) @ normal
        assert heights.min() > -1e-9 or heights.max() < 1e-9


def test_a_setup_has_its_own_cell_and_curve():
    found = experiments("regimes").predicted_setups([32, 64], [4, 512], [0.5, 1 / 512])
    k = 1 * 8 + 0 * 4 + 1 * 2 + 1  # d = 64, h = 4, n = 512, the second variance
    setup = Setup(64, 4, 512, 1 / 512)
    regime = classify_regime(setup)
    assert found["active"][k] == list(regime.active)
    assert found["active"][k] != found["active"][0]
    unit, loss = found["train"][k].T
    curves = theory_curves(found["theory"][k], unit / regime.rate, setup, depth=4)
    assert np.allclose(loss, curves.train / curves.train[0])
