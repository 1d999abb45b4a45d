"""The map R from parameters to functions: products, metrics, solvers, flows."""

from geolib.doors import guarded as _guarded

from .assumptions import AssumptionError as AssumptionError
from .jacobian_factors import JacobianFactors as JacobianFactors
from .kronecker import KroneckerFactors as KroneckerFactors
from .linear_solvers import Solution as Solution, Spectrum as Spectrum
from .linear_solvers import conjugate_gradient as conjugate_gradient
from .linearization import Linearization as Linearization
from .metric import Metric as Metric, PullbackMetric as PullbackMetric
from .ode import IntegrationError as IntegrationError, Trajectory as Trajectory
from .ode import integrate as integrate
from .output_metrics import Bernoulli as Bernoulli, Categorical as Categorical
from .output_metrics import Euclidean as Euclidean, OutputMetric as OutputMetric
from .random import init_ as init_, normal as normal, rng as rng
from .realization import Realization as Realization

__all__ = _guarded(globals())
