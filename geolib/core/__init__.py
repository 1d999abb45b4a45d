"""The map R from parameters to functions: products, metrics, solvers, flows."""

from geolib.core.assumptions import AssumptionError as AssumptionError
from geolib.core.jacobian_factors import JacobianFactors as JacobianFactors
from geolib.core.kronecker import KroneckerFactors as KroneckerFactors
from geolib.core.linear_solvers import (
    Solution as Solution,
    Spectrum as Spectrum,
    conjugate_gradient as conjugate_gradient,
)
from geolib.core.linearization import Linearization as Linearization
from geolib.core.memory import (
    DeviceMemoryError as DeviceMemoryError,
    fitting_batch as fitting_batch,
)
from geolib.core.metric import Metric as Metric, PullbackMetric as PullbackMetric
from geolib.core.ode import (
    IntegrationError as IntegrationError,
    Trajectory as Trajectory,
    integrate as integrate,
)
from geolib.core.output_metrics import (
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    Euclidean as Euclidean,
    OutputMetric as OutputMetric,
)
from geolib.core.random import (
    init_ as init_,
    normal as normal,
    rng as rng,
    uniform as uniform,
)
from geolib.core.realization import Realization as Realization
from geolib.doors import guarded as _guarded

__all__ = _guarded(globals())
