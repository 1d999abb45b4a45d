"""Paths in weight space that keep the function: geodesics and what they win.

From the metric to its uses: `function_space` measures weights by the functions they
realise; `geodesic` and `shoot` solve for shortest paths; `connect`, `sparsify` and
`learn_sequence` put them to work on any module.
"""

from geolib.geodesics.batchnorm import recalibrate, with_batch_statistics
from geolib.geodesics.bvp import Geodesic, difference_energy, geodesic
from geolib.geodesics.certificate import Certificate, certify
from geolib.geodesics.connect import Connection, connect
from geolib.geodesics.continual import Learned, learn_sequence
from geolib.geodesics.curves import trained_curve
from geolib.geodesics.embedding import Embedded, Features, embed, noise_like
from geolib.geodesics.ivp import Shot, shoot
from geolib.geodesics.learners import LEARNERS
from geolib.geodesics.measures import (
    Lengths,
    Profile,
    calibration_error,
    lengths,
    profile,
)
from geolib.geodesics.models import lenet, mlp, vgg
from geolib.geodesics.path import (
    BezierBasis,
    HatBasis,
    LegendreBasis,
    Path,
    SineBasis,
    polygon,
)
from geolib.geodesics.pruning import METHODS
from geolib.geodesics.space import FunctionSpace, function_space
from geolib.geodesics.sparse_path import Sparse, sparse_path
from geolib.geodesics.sparsify import Sparsified, sparsify
from geolib.geodesics.tasks import Task, pair_tasks, split_tasks
from geolib.geodesics.train import Table, accuracy, table, train
from geolib.geodesics.walk import Walk, invariant_walk

__all__ = [
    "LEARNERS",
    "METHODS",
    "BezierBasis",
    "Certificate",
    "Connection",
    "Embedded",
    "Features",
    "FunctionSpace",
    "Geodesic",
    "HatBasis",
    "Learned",
    "LegendreBasis",
    "Lengths",
    "Path",
    "Profile",
    "Shot",
    "SineBasis",
    "Sparse",
    "Sparsified",
    "Table",
    "Task",
    "Walk",
    "accuracy",
    "calibration_error",
    "certify",
    "connect",
    "difference_energy",
    "embed",
    "function_space",
    "geodesic",
    "invariant_walk",
    "learn_sequence",
    "lenet",
    "lengths",
    "mlp",
    "noise_like",
    "pair_tasks",
    "polygon",
    "profile",
    "recalibrate",
    "shoot",
    "sparse_path",
    "sparsify",
    "split_tasks",
    "table",
    "train",
    "trained_curve",
    "vgg",
    "with_batch_statistics",
]
