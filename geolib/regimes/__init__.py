"""Regimes of weight-tied linear autoencoders: in which limits is training solved?

The flow of :math:`L = \\frac{1}{2n}\\sum_i |x_i - W^T W x_i|^2` from Gaussian weights,
simulated (`simulate`, `gradient_flow`), expanded exactly in time (`exact_loss`,
`planar_loss`, `prism`), solved on four faces of the prism and in closed form on all
its edges and vertices, followed numerically on the fifth face and in the interior
(`fock_curves`), and sorted by regime (`classify_regime`, `predict`).
"""

from geolib.doors import guarded as _guarded
from geolib.regimes.data_matrix import prepare as prepare
from geolib.regimes.descent import Rule as Rule
from geolib.regimes.edges import cell_curves as cell_curves
from geolib.regimes.ensemble import ensemble as ensemble
from geolib.regimes.fock import fock_curves as fock_curves, fock_space as fock_space
from geolib.regimes.large_data import (
    large_data as large_data,
    large_data_next as large_data_next,
)
from geolib.regimes.mean_field import (
    mean_field as mean_field,
    mean_field_next as mean_field_next,
)
from geolib.regimes.narrow import narrow as narrow
from geolib.regimes.predict import (
    RegimeWarning as RegimeWarning,
    classify_regime as classify_regime,
    predict as predict,
    theory_curves as theory_curves,
)
from geolib.regimes.prism import (
    REGIMES as REGIMES,
    face as face,
    hull as hull,
    pareto as pareto,
    prism as prism,
    regime_of_facet as regime_of_facet,
)
from geolib.regimes.setup import Setup as Setup
from geolib.regimes.simulate import (
    draw_covariance as draw_covariance,
    draw_weights as draw_weights,
    gradient_flow as gradient_flow,
    simulate as simulate,
)
from geolib.regimes.small_data import small_data as small_data
from geolib.regimes.spectral_measures import (
    SpectralMeasure as SpectralMeasure,
    marchenko_pastur as marchenko_pastur,
)
from geolib.regimes.trace_words import (
    evaluate as evaluate,
    exact_loss as exact_loss,
    loss_words as loss_words,
    planar_loss as planar_loss,
    planar_numeric as planar_numeric,
)

__all__ = _guarded(globals())
