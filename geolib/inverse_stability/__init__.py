"""Inverse stability of the ReLU realization map: norms, gauges, certificates.

Shallow networks live in `ShallowReLU` and `BiasedReLU`; functions are compared by
`w1inf_seminorm`, parameters by `parameter_distance`, and `certify` does both. Deep
networks have no such theorem, but a canonical form (`canonicalize`), and two of them are
aligned by `geolib.networks.align`.
"""

from geolib.doors import guarded as _guarded

from .arrangement import generic_cell_count as generic_cell_count
from .canonical import canonicalize as canonicalize
from .certificate import angle_constant as angle_constant, certify as certify
from .certificate import sampled_bound as sampled_bound
from .certificate import sharp_constant as sharp_constant
from .compare import compare as compare
from .distance import closest_parametrization as closest_parametrization
from .distance import parameter_distance as parameter_distance
from .gauge import random_gauge as random_gauge
from .kinks import kinks as kinks
from .paths import path_metric as path_metric
from .restricted import in_restricted as in_restricted, lift_inputs as lift_inputs
from .restricted import lift_to_restricted as lift_to_restricted
from .shallow_relu import BiasedReLU as BiasedReLU, ShallowReLU as ShallowReLU
from .w1inf_seminorm import planar_norms as planar_norms
from .w1inf_seminorm import seminorm_on_box as seminorm_on_box
from .w1inf_seminorm import w1inf_seminorm as w1inf_seminorm

__all__ = _guarded(globals())
