"""Singular parameter spaces, their strata, and charts that resolve them.

Models (`mixture_a`, `mixture_b`) are `Stratifold`s; `resolve` gives smooth charts over
them; `descend` runs hundreds of starts at once in any chart. For real networks
there are `find_strata` and `CollarSurgery`; for Bayesian asymptotics
`learning_coefficient`.
"""

from geolib.doors import guarded as _guarded

from .charts import Chart as Chart, smooth_modulus as smooth_modulus
from .descent import CollarWarning as CollarWarning, descend as descend
from .descent import natural_step as natural_step, pull_back as pull_back
from .find_strata import find_strata as find_strata
from .find_strata import overlap_distances as overlap_distances
from .gmm import GaussianMixture as GaussianMixture, em_fit as em_fit
from .gmm import fit_mixture as fit_mixture, kmeans_start as kmeans_start
from .gmm import natural_fit as natural_fit
from .hidden_layers import hidden_layers as hidden_layers
from .learning_coefficient import ChartLoss as ChartLoss
from .learning_coefficient import learning_coefficient as learning_coefficient
from .mixture_fixed import MixtureTube as MixtureTube, mixture_a as mixture_a
from .mixture_free import MixtureCap as MixtureCap, MixtureModuli as MixtureModuli
from .mixture_free import mixture_b as mixture_b, moduli_of as moduli_of
from .mixture_kl import Grid as Grid, MixtureKL as MixtureKL
from .mixture_kl import mixture_density as mixture_density
from .resolve import resolve as resolve
from .strata import Stratifold as Stratifold
from .surgery import CollarSurgery as CollarSurgery, overlap_forms as overlap_forms

__all__ = _guarded(globals())
