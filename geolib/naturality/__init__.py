r"""Which training algorithms move the function the same way in every chart.

An optimizer is *natural* when changing the coordinates of parameter space, training,
and changing back is the same as training. The package measures it
(`naturality_defect`, `audit`), certifies it (`jet_defect`, `naturality_algebra`),
repairs algorithms (`NaturalGradient`, `NaturalMomentum`, `NaturalAdam`, ...) and does
the same for maps between networks of different size (`projection_defect`).
"""

from geolib.naturality.adaptive import NaturalAdaGrad, NaturalAdam
from geolib.naturality.algebra import NaturalityAlgebra, naturality_algebra
from geolib.naturality.audit import AuditReport, Protocol, audit, audit_table
from geolib.naturality.base import PointOptimizer
from geolib.naturality.defect import Defect, home_runs, naturality_defect
from geolib.naturality.diagrams import heat_map, square
from geolib.naturality.directions import damped as damped_direction
from geolib.naturality.euclidean import Lion, PolarMuon, Shampoo, SignSGD
from geolib.naturality.families import (
    affine,
    coupling,
    diagonal,
    layer_affine,
    layer_orthogonal,
    linear,
    log_scaling,
    orthogonal,
    permutation,
    radial,
    relu_rescaling,
    sinh,
    standard_suite,
    uniform,
)
from geolib.naturality.finite import ProximalNatural, RetractedNaturalGradient
from geolib.naturality.gradient import (
    BFGS,
    CovariantNewton,
    GeodesicNaturalGradient,
    NaturalGradient,
    Preconditioned,
)
from geolib.naturality.jets import FIELDS, Field, jet_defect, sample_points
from geolib.naturality.kfac import KFAC, KFACDampedNatural, LayerFactors
from geolib.naturality.layers import Homogeneous, blocks, charted, mlp
from geolib.naturality.lift import FunctionalLift
from geolib.naturality.minibatch import (
    MinibatchNatural,
    home_metric,
    minibatch_subject,
    reference_metric,
    wide_problem,
)
from geolib.naturality.momentum import (
    FunctionMomentum,
    HeavyBall,
    NaturalCovectorMomentum,
    NaturalMomentum,
)
from geolib.naturality.outputs import Loss, OutputGeometry, cross_entropy, mse
from geolib.naturality.point import Point
from geolib.naturality.problem import (
    SEEDS,
    Problem,
    regression_problem,
    small_problem,
    softmax_problem,
)
from geolib.naturality.projections import (
    Embedding,
    Projection,
    horizontal_lift,
    is_riemannian,
    projection_defect,
)
from geolib.naturality.reparameterization import (
    Reparameterization,
    compose,
    identity,
)
from geolib.naturality.report import classify, format_table
from geolib.naturality.subject import Run, Subject, plain
from geolib.naturality.subjects import SUBJECTS
from geolib.naturality.tasks import diabetes_problem, digits_problem
from geolib.naturality.towers import (
    best_conditioned,
    deep_linear,
    duplication,
    linear_model,
    polynomial_tower,
    prune_dead,
    twin_problem,
    two_layer,
    weight_norm,
)
from geolib.naturality.width import WidthRun, erf_kernels, width_run

__all__ = [
    "BFGS",
    "FIELDS",
    "KFAC",
    "SEEDS",
    "SUBJECTS",
    "AuditReport",
    "CovariantNewton",
    "Defect",
    "Embedding",
    "Field",
    "FunctionMomentum",
    "FunctionalLift",
    "GeodesicNaturalGradient",
    "HeavyBall",
    "Homogeneous",
    "KFACDampedNatural",
    "LayerFactors",
    "Lion",
    "Loss",
    "MinibatchNatural",
    "NaturalAdaGrad",
    "NaturalAdam",
    "NaturalCovectorMomentum",
    "NaturalGradient",
    "NaturalMomentum",
    "NaturalityAlgebra",
    "OutputGeometry",
    "Point",
    "PointOptimizer",
    "PolarMuon",
    "Preconditioned",
    "Problem",
    "Projection",
    "Protocol",
    "ProximalNatural",
    "Reparameterization",
    "RetractedNaturalGradient",
    "Run",
    "Shampoo",
    "SignSGD",
    "Subject",
    "WidthRun",
    "affine",
    "audit",
    "audit_table",
    "best_conditioned",
    "blocks",
    "charted",
    "classify",
    "compose",
    "coupling",
    "cross_entropy",
    "damped_direction",
    "deep_linear",
    "diabetes_problem",
    "diagonal",
    "digits_problem",
    "duplication",
    "erf_kernels",
    "format_table",
    "heat_map",
    "home_metric",
    "home_runs",
    "horizontal_lift",
    "identity",
    "is_riemannian",
    "jet_defect",
    "layer_affine",
    "layer_orthogonal",
    "linear",
    "linear_model",
    "log_scaling",
    "minibatch_subject",
    "mlp",
    "mse",
    "naturality_algebra",
    "naturality_defect",
    "orthogonal",
    "permutation",
    "plain",
    "polynomial_tower",
    "projection_defect",
    "prune_dead",
    "radial",
    "reference_metric",
    "regression_problem",
    "relu_rescaling",
    "sample_points",
    "sinh",
    "small_problem",
    "softmax_problem",
    "square",
    "standard_suite",
    "twin_problem",
    "two_layer",
    "uniform",
    "weight_norm",
    "wide_problem",
    "width_run",
]
