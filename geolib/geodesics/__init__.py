"""Paths in weight space that keep the function: geodesics and what they win."""

from geolib.geodesics.bvp import Geodesic, difference_energy, geodesic
from geolib.geodesics.embedding import Embedded, Features, embed, noise_like
from geolib.geodesics.ivp import Shot, shoot
from geolib.geodesics.measures import lengths, profile
from geolib.geodesics.models import lenet, mlp, vgg
from geolib.geodesics.path import (
    BezierBasis,
    HatBasis,
    LegendreBasis,
    Path,
    SineBasis,
    polygon,
)
from geolib.geodesics.space import FunctionSpace, function_space
