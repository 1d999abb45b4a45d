"""Small trained networks and inputs shared by the tests of this chapter."""

import functools

import numpy as np
import torch
from chapter_experiments import chapter_module
from torch import nn

from geolib.core import Realization
from geolib.geodesics import LEARNERS
from geolib.networks import mlp, table, train

PRUNERS = chapter_module("geodesics", "pruners")
VARIANTS = chapter_module("geodesics", "variants")
PRUNING = {**PRUNERS.METHODS, **VARIANTS.PRUNING_VARIANTS}
RIVALS = chapter_module("geodesics", "rivals")
YARDSTICKS = chapter_module("geodesics", "yardsticks")
WALK = chapter_module("geodesics", "walk")
POLYGONS = chapter_module("geodesics", "polygons")
CERTIFICATE = chapter_module("geodesics", "certificate")
KNOWN = {**LEARNERS, **RIVALS.RIVALS, **VARIANTS.LEARNER_VARIANTS}


@functools.cache
def digits():
    return table("digits", validation=200)


@functools.cache
def trained(seed, sizes=(64, 16, 10), steps=400):
    """A realization and trained weights."""
    R = Realization(mlp(sizes, seed))
    data = digits()
    return R, train(R, data.x, data.y, steps=steps, seed=seed)


def smooth(seed=0, sizes=(3, 5, 4)):
    """A small tanh network at random weights, with a few inputs."""
    net = mlp(sizes, seed, activation=nn.Tanh)
    R = Realization(net)
    draw = np.random.default_rng(seed).standard_normal((7, sizes[0]))
    return R, R.theta0, torch.from_numpy(draw)


def vector(size, seed, scale=1.0):
    draw = np.random.default_rng(seed).standard_normal(size)
    return scale * torch.from_numpy(draw)


def difference_energy(space, points, times, rows=None):
    r"""Energy of a polygon (k, p) in function space at its times, written out.

    .. math:: E = \frac12 \sum_i \frac{|\Phi(w_{i+1}) - \Phi(w_i)|^2
              + \lambda |w_{i+1} - w_i|^2}{t_{i+1} - t_i}
    """
    square = space(points, rows).diff(dim=0).flatten(1).square().sum(1)
    square = square + space.damping * points.diff(dim=0).square().sum(1)
    return 0.5 * (square / times.diff()).sum()
