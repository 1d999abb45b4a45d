"""Regimes of weight-tied linear autoencoders: in which limits is training solved?

The flow of :math:`L = \\frac{1}{2n}\\sum_i |x_i - W^T W x_i|^2` from Gaussian weights,
simulated (`simulate`, `gradient_flow`), expanded exactly in time (`exact_loss`,
`planar_loss`), solved on four faces of the prism and in closed form on all
its edges and vertices, followed numerically on the fifth face and in the interior
(`fock_curves`), and sorted by regime (`classify_regime`, `predict`).
"""

from geolib.doors import guarded as _guarded

from .data_matrix import prepare as prepare
from .descent import Rule as Rule
from .ensemble import ensemble as ensemble
from .fock import fock_curves as fock_curves, fock_space as fock_space
from .large_data import large_data as large_data, large_data_next as large_data_next
from .mean_field import mean_field as mean_field, mean_field_next as mean_field_next
from .narrow import narrow as narrow
from .predict import RegimeWarning as RegimeWarning, classify_regime as classify_regime
from .predict import predict as predict, theory_curves as theory_curves
from .trace_words import REGIMES as REGIMES, face as face
from .setup import Setup as Setup
from .simulate import draw_covariance as draw_covariance, draw_weights as draw_weights
from .simulate import gradient_flow as gradient_flow, simulate as simulate
from .small_data import small_data as small_data
from .spectral_measures import SpectralMeasure as SpectralMeasure
from .spectral_measures import marchenko_pastur as marchenko_pastur
from .trace_words import evaluate as evaluate, exact_loss as exact_loss
from .trace_words import loss_words as loss_words, planar_loss as planar_loss

__all__ = _guarded(globals())
