"""The map R from parameters to functions: products, metrics, solvers, flows."""

from geolib.core.ode import Trajectory, flow
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
from geolib.core.jacobian_factors import JacobianFactors
from geolib.core.random import init_, normal, rng, uniform
from geolib.core.linear_solvers import Solution, Spectrum

__all__ = [
    "Bernoulli",
    "Categorical",
    "DeviceMemoryError",
    "Euclidean",
    "JacobianFactors",
    "Linearization",
    "Metric",
    "OutputMetric",
    "PullbackMetric",
    "Realization",
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
