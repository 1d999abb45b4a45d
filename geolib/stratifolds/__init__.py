"""Singular parameter spaces, their strata, and charts that resolve them.

Models (`mixture_a`, `mixture_b`, `mixture_k`, `cone`, `two_unit_network`) are
`Stratifold`s; `resolve` gives smooth charts over them; `descend` and `em` run hundreds
of starts at once in any chart. For real networks there are `find_strata` and
`CollarSurgery`; for Bayesian asymptotics `learning_coefficient` and `evidence_curve`.
"""

from geolib.stratifolds.bump import (
    smooth_modulus,
    smooth_step,
)
from geolib.stratifolds.charts import (
    Chart,
    LogitA,
    RawA,
    TubeA,
)
from geolib.stratifolds.charts_k import (
    PairModuli,
    SoftmaxAtoms,
)
from geolib.stratifolds.charts_pair import (
    LogitB,
    ModuliB,
    RawB,
    RelativeB,
    moduli_of,
)
from geolib.stratifolds.charts_units import (
    CentralUnits,
    PronyUnits,
    overlap_coordinates,
)
from geolib.stratifolds.collar import (
    CollarSurgery,
    Operation,
    overlap_forms,
)
from geolib.stratifolds.cone import (
    Cone,
    MeanLoss,
)
from geolib.stratifolds.descent import (
    CollarWarning,
    Descent,
    SingularMetricError,
    descend,
    natural_step,
    pull_back,
)
from geolib.stratifolds.em import (
    em,
    em_step,
)
from geolib.stratifolds.evidence import (
    EvidenceCurve,
    divergence_from_null,
    evidence_curve,
    log_axis,
)
from geolib.stratifolds.find_strata import (
    UnitStratum,
    find_strata,
    overlap_distances,
)
from geolib.stratifolds.gmm import (
    GaussianMixture,
    MixtureFit,
    em_fit,
)
from geolib.stratifolds.gmm_natural import (
    fit_mixture,
    natural_fit,
)
from geolib.stratifolds.kernels import (
    ErfKernel,
    RBFKernel,
)
from geolib.stratifolds.llc import (
    ChartLoss,
    LearningCoefficient,
    learning_coefficient,
    module_loss,
)
from geolib.stratifolds.location import (
    Grid,
    MixtureKL,
    density,
)
from geolib.stratifolds.mlp import (
    HiddenLayer,
    hidden_layers,
)
from geolib.stratifolds.models import (
    mixture_a,
    mixture_b,
    mixture_k,
)
from geolib.stratifolds.models_more import (
    cone,
    two_unit_network,
)
from geolib.stratifolds.pair_surgery import (
    PairSurgery,
    on_plateau,
)
from geolib.stratifolds.resolve import (
    Annealed,
    Resolved,
    anneal,
    resolve,
)
from geolib.stratifolds.strata import (
    NormalCone,
    Stratifold,
    Stratum,
)
from geolib.stratifolds.tempered import (
    TemperedPosterior,
    grid_mean_loss,
    mala,
)
from geolib.stratifolds.tuning import (
    tune,
)
from geolib.stratifolds.two_unit import (
    RawUnits,
    UnitLoss,
)

__all__ = [
    "Annealed",
    "CentralUnits",
    "Chart",
    "ChartLoss",
    "CollarSurgery",
    "CollarWarning",
    "Cone",
    "Descent",
    "ErfKernel",
    "EvidenceCurve",
    "GaussianMixture",
    "Grid",
    "HiddenLayer",
    "LearningCoefficient",
    "LogitA",
    "LogitB",
    "MeanLoss",
    "MixtureFit",
    "MixtureKL",
    "ModuliB",
    "NormalCone",
    "Operation",
    "PairModuli",
    "PairSurgery",
    "PronyUnits",
    "RBFKernel",
    "RawA",
    "RawB",
    "RawUnits",
    "RelativeB",
    "Resolved",
    "SingularMetricError",
    "SoftmaxAtoms",
    "Stratifold",
    "Stratum",
    "TemperedPosterior",
    "TubeA",
    "UnitLoss",
    "UnitStratum",
    "anneal",
    "cone",
    "density",
    "descend",
    "divergence_from_null",
    "em",
    "em_fit",
    "em_step",
    "evidence_curve",
    "find_strata",
    "fit_mixture",
    "grid_mean_loss",
    "hidden_layers",
    "learning_coefficient",
    "log_axis",
    "mala",
    "mixture_a",
    "mixture_b",
    "mixture_k",
    "module_loss",
    "moduli_of",
    "natural_fit",
    "natural_step",
    "on_plateau",
    "overlap_coordinates",
    "overlap_distances",
    "overlap_forms",
    "pull_back",
    "resolve",
    "smooth_modulus",
    "smooth_step",
    "tune",
    "two_unit_network",
]
