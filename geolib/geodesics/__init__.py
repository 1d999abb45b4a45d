"""Paths in weight space that keep the function: geodesics and what they win.

From the metric to its uses: `FunctionSpace` measures weights by the functions they
realise; `geodesic` and `exponential_map` solve for shortest paths; `connect`,
`sparsify` and `learn_sequence` put them to work on any module.
"""

from geolib.doors import guarded as _guarded
from geolib.geodesics.bvp import (
    Geodesic as Geodesic,
    geodesic as geodesic,
    geodesics as geodesics,
)
from geolib.geodesics.connect import connect as connect
from geolib.geodesics.continual import learn_sequence as learn_sequence
from geolib.geodesics.curves import (
    trained_curve as trained_curve,
    trained_curves as trained_curves,
)
from geolib.geodesics.embedding import embed as embed
from geolib.geodesics.function_space import FunctionSpace as FunctionSpace
from geolib.geodesics.ivp import exponential_map as exponential_map
from geolib.geodesics.learners import LEARNERS as LEARNERS
from geolib.geodesics.magnitude_masks import (
    magnitude_mask as magnitude_mask,
    matrices as matrices,
)
from geolib.geodesics.measures import (
    lengths as lengths,
    profile as profile,
)
from geolib.geodesics.path import (
    LegendreBasis as LegendreBasis,
    LinearSplineBasis as LinearSplineBasis,
    SineBasis as SineBasis,
    WeightPath as WeightPath,
)
from geolib.geodesics.sparse_path import sparse_path as sparse_path
from geolib.geodesics.sparsify import sparsify as sparsify

__all__ = _guarded(globals())
