"""Inverse stability of the ReLU realization map: norms, gauges, certificates.

Shallow networks live in `ShallowReLU` and `BiasedReLU`; functions are compared by
`seminorm_difference`, parameters by `parameter_distance`, and `certify` does both. Deep
networks have no such theorem, but a canonical form (`canonicalize`) and an alignment
(`align`).
"""

from geolib.inverse_stability.arrangement import cells, generic_cell_count
from geolib.inverse_stability.box import seminorm_on_box
from geolib.inverse_stability.canonical import Canonical, canonicalize
from geolib.inverse_stability.certificate import Certificate, certify, sharp_constant
from geolib.inverse_stability.descent import (
    Descent,
    descend,
    mean_square,
    mean_square_gradient,
)
from geolib.inverse_stability.distance import (
    Closest,
    absolute_value_distance,
    closest_parametrization,
    parameter_distance,
)
from geolib.inverse_stability.escape import escape_degenerate
from geolib.inverse_stability.extremal import extremal_pair, perturb, random_pair
from geolib.inverse_stability.gauge import random_gauge
from geolib.inverse_stability.kinks import Kinks, jump_seminorm, kinks
from geolib.inverse_stability.net import BiasedReLU, ShallowReLU
from geolib.inverse_stability.normal_form import (
    AbsoluteValueForm,
    absolute_value_form,
    balance,
    merge_parallel,
)
from geolib.inverse_stability.pathologies import (
    Pathology,
    distance_to_line,
    exploding_gradient,
    opposite_between,
    opposite_within,
    redundant,
    triangle,
    unbalanced,
)
from geolib.inverse_stability.paths import path_lifting, path_metric
from geolib.inverse_stability.planar import PlanarNorms, planar_norms
from geolib.inverse_stability.rates import Rates, rates
from geolib.inverse_stability.restricted import (
    in_restricted,
    lift_inputs,
    lift_to_restricted,
    restricted_defects,
    slice_of,
)
from geolib.inverse_stability.search import SearchResult, search_extremal
from geolib.inverse_stability.seminorm import (
    Seminorm,
    seminorm,
    seminorm_difference,
)
from geolib.inverse_stability.staircase import (
    Staircase,
    best_approximation,
    realization_move,
)
from geolib.inverse_stability.training import Fit, fit, initial_network
from geolib.networks import Alignment, align

__all__ = [
    "AbsoluteValueForm",
    "Alignment",
    "BiasedReLU",
    "Canonical",
    "Certificate",
    "Closest",
    "Descent",
    "Fit",
    "Kinks",
    "Pathology",
    "PlanarNorms",
    "Rates",
    "SearchResult",
    "Seminorm",
    "ShallowReLU",
    "Staircase",
    "absolute_value_distance",
    "absolute_value_form",
    "align",
    "balance",
    "best_approximation",
    "canonicalize",
    "cells",
    "certify",
    "closest_parametrization",
    "descend",
    "distance_to_line",
    "escape_degenerate",
    "exploding_gradient",
    "extremal_pair",
    "fit",
    "generic_cell_count",
    "in_restricted",
    "initial_network",
    "jump_seminorm",
    "kinks",
    "lift_inputs",
    "lift_to_restricted",
    "mean_square",
    "mean_square_gradient",
    "merge_parallel",
    "opposite_between",
    "opposite_within",
    "parameter_distance",
    "path_lifting",
    "path_metric",
    "perturb",
    "planar_norms",
    "random_gauge",
    "random_pair",
    "rates",
    "realization_move",
    "redundant",
    "restricted_defects",
    "search_extremal",
    "seminorm",
    "seminorm_difference",
    "seminorm_on_box",
    "sharp_constant",
    "slice_of",
    "triangle",
    "unbalanced",
]
