r"""Which training algorithms move the function the same way in every chart.

An optimizer is *natural* when changing the coordinates of parameter space, training,
and changing back is the same as training. The package measures it
(`naturality_defect`, `audit`), certifies it (`jet_defect`, `naturality_algebra`),
repairs algorithms (`NaturalGradient`, `NaturalMomentum`, `NaturalAdam`, ...) and does
the same for maps between networks of different size (`projection_defect`).
"""

from geolib.naturality.adaptive import NaturalAdaGrad, NaturalAdam
from geolib.naturality.audit import AuditReport, Protocol, audit, audit_table
from geolib.naturality.base import PointOptimizer
from geolib.naturality.defect import Defect, home_runs, naturality_defect
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
from geolib.naturality.kfac import KFAC, KFACDampedNatural, LayerFactors
from geolib.naturality.layers import Homogeneous, blocks, charted, mlp
from geolib.naturality.lift import FunctionalLift
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
    softmax_problem,
)
from geolib.naturality.reparameterization import (
    Reparameterization,
    compose,
    identity,
)
from geolib.naturality.report import classify, format_table
from geolib.naturality.subject import Run, Subject, plain
from geolib.naturality.subjects import SUBJECTS
