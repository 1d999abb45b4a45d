"""The map R from parameters to functions: products, metrics, solvers, flows."""

from geolib.core.flow import Trajectory, flow
from geolib.core.linearization import Linearization
from geolib.core.memory import DeviceMemoryError, fitting_batch
from geolib.core.metric import Metric, PullbackMetric
from geolib.core.output_metrics import (
    Bernoulli,
    Categorical,
    Euclidean,
    OutputMetric,
)
from geolib.core.realization import Realization
from geolib.core.rows import Rows
from geolib.core.seeding import init_, normal, rng, uniform
from geolib.core.solvers import Solution, Spectrum

__all__ = [
    "Bernoulli",
    "Categorical",
    "DeviceMemoryError",
    "Euclidean",
    "Linearization",
    "Metric",
    "OutputMetric",
    "PullbackMetric",
    "Realization",
    "Rows",
    "Solution",
    "Spectrum",
    "Trajectory",
    "fitting_batch",
    "flow",
    "init_",
    "normal",
    "rng",
    "uniform",
]
