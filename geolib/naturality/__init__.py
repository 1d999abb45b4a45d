r"""Which training algorithms move the function the same way in every chart.

An optimizer is *natural* when changing the coordinates of parameter space, training,
and changing back is the same as training. The package measures it
(`naturality_defect`, `audit`), certifies it (`jet_defect`),
and trains naturally (`NaturalGradient`, `NaturalMomentum`, `KFAC`).
"""

from geolib.doors import guarded as _guarded
from geolib.naturality.affine_layers import affine_mlp as affine_mlp
from geolib.naturality.audit import (
    AuditReport as AuditReport,
    Protocol as Protocol,
    audit as audit,
)
from geolib.naturality.catalogue import OPTIMIZERS as OPTIMIZERS
from geolib.naturality.defect import (
    Defect as Defect,
    Verdict as Verdict,
    naturality_defect as naturality_defect,
    run_optimizer as run_optimizer,
)
from geolib.naturality.families import (
    random_affine as random_affine,
    standard_suite as standard_suite,
)
from geolib.naturality.geometric_optimizer import (
    GeometricOptimizer as GeometricOptimizer,
)
from geolib.naturality.jets import (
    Generator as Generator,
    jet_defect as jet_defect,
    sample_points as sample_points,
)
from geolib.naturality.kfac import KFAC as KFAC
from geolib.naturality.local_geometry import LocalGeometry as LocalGeometry
from geolib.naturality.losses import (
    Loss as Loss,
    cross_entropy as cross_entropy,
    mse as mse,
)
from geolib.naturality.momentum import NaturalMomentum as NaturalMomentum
from geolib.naturality.natural_gradient import NaturalGradient as NaturalGradient
from geolib.naturality.rules import covariant_hessian as covariant_hessian
from geolib.naturality.optimizer_spec import (
    OptimizerSpec as OptimizerSpec,
    from_update as from_update,
)
from geolib.naturality.problem import Problem as Problem
from geolib.naturality.reparameterization import (
    Reparameterization as Reparameterization,
)
from geolib.naturality.rules import FirstOrderRule as FirstOrderRule

__all__ = _guarded(globals())
