"""Regimes of weight-tied linear autoencoders: in which limits is training solved?

The flow of :math:`L = \\frac{1}{2n}\\sum_i |x_i - W^T W x_i|^2` from Gaussian weights,
simulated (`simulate`, `gradient_flow`), expanded exactly in time (`exact_loss`,
`planar_loss`, `prism`), solved on four faces of the prism and in closed form on all
its edges and vertices, followed numerically on the fifth face and in the interior
(`fock_curves`), and sorted by regime (`classify`, `predict`).
"""

from geolib.regimes.classify import Regime, classify, classify_data, face_errors
from geolib.regimes.curves import Curves
from geolib.regimes.edges import EDGES, VERTICES, cell_curves
from geolib.regimes.expansion import evaluate, exact_loss, planar_loss, planar_numeric
from geolib.regimes.fock import fock_curves, fock_space
from geolib.regimes.integrate import IntegrationError
from geolib.regimes.large_data import (
    large_data,
    large_data_next,
    large_data_two_stage,
)
from geolib.regimes.law import Law, marchenko_pastur, narayana, sample_law
from geolib.regimes.matrix import DataMatrix, prepare
from geolib.regimes.mean_field import mean_field, mean_field_next
from geolib.regimes.narrow import narrow
from geolib.regimes.phase_map import (
    Cell,
    excess_error,
    headline_error,
    measure_cell,
    next_order_curves,
    phase_map,
)
from geolib.regimes.polytope import Facet, Polytope, hull, pareto
from geolib.regimes.predict import (
    THEORIES,
    Prediction,
    RegimeWarning,
    leading_curves,
    predict,
)
from geolib.regimes.prism import REGIMES, face, face_test, prism, regime_of_facet
from geolib.regimes.setup import Setup
from geolib.regimes.simulate import (
    Trajectory,
    draw_covariance,
    draw_data,
    draw_weights,
    gradient_flow,
    simulate,
)
from geolib.regimes.small_data import bidiagonal, small_data, small_data_truncated
from geolib.regimes.taylor import theory_taylor
from geolib.regimes.words import loss_words

__all__ = [
    "EDGES",
    "REGIMES",
    "THEORIES",
    "VERTICES",
    "Cell",
    "Curves",
    "DataMatrix",
    "Facet",
    "IntegrationError",
    "Law",
    "Polytope",
    "Prediction",
    "Regime",
    "RegimeWarning",
    "Setup",
    "Trajectory",
    "bidiagonal",
    "cell_curves",
    "classify",
    "classify_data",
    "draw_covariance",
    "draw_data",
    "draw_weights",
    "evaluate",
    "exact_loss",
    "excess_error",
    "face",
    "face_errors",
    "face_test",
    "fock_curves",
    "fock_space",
    "gradient_flow",
    "headline_error",
    "hull",
    "large_data",
    "large_data_next",
    "large_data_two_stage",
    "leading_curves",
    "loss_words",
    "marchenko_pastur",
    "mean_field",
    "mean_field_next",
    "measure_cell",
    "narayana",
    "narrow",
    "next_order_curves",
    "pareto",
    "phase_map",
    "planar_loss",
    "planar_numeric",
    "predict",
    "prepare",
    "prism",
    "regime_of_facet",
    "sample_law",
    "simulate",
    "small_data",
    "small_data_truncated",
    "theory_taylor",
]
