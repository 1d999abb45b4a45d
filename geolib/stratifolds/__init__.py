"""Singular parameter spaces, their strata, and charts that resolve them."""

from geolib.stratifolds.bump import smooth_modulus, smooth_step
from geolib.stratifolds.charts import Chart, LogitA, RawA, TubeA
from geolib.stratifolds.charts_pair import (
    LogitB, ModuliB, PairModuli, RawB, RelativeB, SoftmaxAtoms, moduli_of)
from geolib.stratifolds.cone import Cone, MeanLoss
from geolib.stratifolds.descent import CollarWarning, Descent, SingularMetricError, descend, natural_step, tune
from geolib.stratifolds.location import Grid, MixtureKL, density
from geolib.stratifolds.kernels import ErfKernel, RBFKernel
from geolib.stratifolds.pair_surgery import PairSurgery, on_plateau
from geolib.stratifolds.two_unit import CentralUnits, PronyUnits, RawUnits, UnitLoss, overlap_coordinates
from geolib.stratifolds.em import em, em_step
from geolib.stratifolds.models import cone, mixture_a, mixture_b, mixture_k, two_unit_network
from geolib.stratifolds.resolve import Annealed, Resolved, anneal, resolve
from geolib.stratifolds.strata import NormalCone, Stratifold, Stratum
