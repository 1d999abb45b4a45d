"""The map R from parameters to functions: products, metrics, solvers, flows."""

from geolib.core.flow import Trajectory, flow
from geolib.core.linearization import Linearization
from geolib.core.realization import Realization
from geolib.core.seeding import init_, normal, rng, uniform

__all__ = [
    "Linearization",
    "Realization",
    "Trajectory",
    "flow",
    "init_",
    "normal",
    "rng",
    "uniform",
]
