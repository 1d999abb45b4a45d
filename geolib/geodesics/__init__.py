"""Paths in weight space that keep the function: geodesics and what they win.

From the metric to its uses: `FunctionSpace` measures weights by the functions they
realise; `geodesic` and `exponential_map` solve for shortest paths; `connect`,
`sparsify` and `learn_sequence` put them to work on any module.
"""

from geolib.doors import guarded as _guarded

from .bvp import Geodesic as Geodesic, geodesic as geodesic, geodesics as geodesics
from .connect import connect as connect
from .continual import learn_sequence as learn_sequence
from .curves import trained_curve as trained_curve, trained_curves as trained_curves
from .embedding import embed as embed
from .function_space import FunctionSpace as FunctionSpace
from .ivp import exponential_map as exponential_map
from .learners import LEARNERS as LEARNERS
from .magnitude_masks import magnitude_mask as magnitude_mask, matrices as matrices
from .measures import profile as profile
from .path import LegendreBasis as LegendreBasis, SineBasis as SineBasis
from .path import WeightPath as WeightPath
from .sparse_path import sparse_path as sparse_path
from .sparsify import sparsify as sparsify

__all__ = _guarded(globals())
