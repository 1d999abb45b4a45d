"""Singular parameter spaces, their strata, and charts that resolve them.

Models (`mixture_a`, `mixture_b`, `mixture_k`, `cone`, `two_unit_network`) are
`Stratifold`s; `resolve` gives smooth charts over them; `descend` and `em` run hundreds
of starts at once in any chart. For real networks there are `find_strata` and
`CollarSurgery`; for Bayesian asymptotics `learning_coefficient` and `evidence_curve`.
"""

from geolib.doors import guarded as _guarded
from geolib.stratifolds.charts import smooth_modulus as smooth_modulus
from geolib.stratifolds.charts import Chart as Chart
from geolib.stratifolds.charts import Logit as Logit
from geolib.stratifolds.surgery import CollarSurgery as CollarSurgery
from geolib.stratifolds.surgery import overlap_forms as overlap_forms
from geolib.stratifolds.cone import cone as cone
from geolib.stratifolds.descent import CollarWarning as CollarWarning
from geolib.stratifolds.descent import descend as descend
from geolib.stratifolds.descent import natural_step as natural_step
from geolib.stratifolds.descent import pull_back as pull_back
from geolib.stratifolds.em import em as em
from geolib.stratifolds.learning_coefficient import (
    divergence_from_null as divergence_from_null,
)
from geolib.stratifolds.learning_coefficient import evidence_curve as evidence_curve
from geolib.stratifolds.learning_coefficient import log_axis as log_axis
from geolib.stratifolds.find_strata import find_strata as find_strata
from geolib.stratifolds.find_strata import overlap_distances as overlap_distances
from geolib.stratifolds.gmm import GaussianMixture as GaussianMixture
from geolib.stratifolds.gmm import em_fit as em_fit
from geolib.stratifolds.gmm import fit_mixture as fit_mixture
from geolib.stratifolds.gmm import kmeans_start as kmeans_start
from geolib.stratifolds.gmm import natural_fit as natural_fit
from geolib.stratifolds.hidden_layers import hidden_layers as hidden_layers
from geolib.stratifolds.learning_coefficient import ChartLoss as ChartLoss
from geolib.stratifolds.learning_coefficient import (
    learning_coefficient as learning_coefficient,
)
from geolib.stratifolds.mixture_fixed import MixtureTube as MixtureTube
from geolib.stratifolds.mixture_fixed import mixture_a as mixture_a
from geolib.stratifolds.mixture_free import MixtureCap as MixtureCap
from geolib.stratifolds.mixture_free import MixtureModuli as MixtureModuli
from geolib.stratifolds.mixture_free import mixture_b as mixture_b
from geolib.stratifolds.mixture_free import moduli_of as moduli_of
from geolib.stratifolds.mixture_k import mixture_k as mixture_k
from geolib.stratifolds.mixture_kl import Grid as Grid
from geolib.stratifolds.mixture_kl import MixtureKL as MixtureKL
from geolib.stratifolds.mixture_kl import mixture_density as mixture_density
from geolib.stratifolds.resolve import anneal as anneal
from geolib.stratifolds.resolve import resolve as resolve
from geolib.stratifolds.strata import Stratifold as Stratifold
from geolib.stratifolds.surgery import PairSurgery as PairSurgery
from geolib.stratifolds.surgery import on_plateau as on_plateau
from geolib.stratifolds.two_units import CentralUnits as CentralUnits
from geolib.stratifolds.two_units import PronyUnits as PronyUnits
from geolib.stratifolds.two_units import two_unit_network as two_unit_network

__all__ = _guarded(globals())
