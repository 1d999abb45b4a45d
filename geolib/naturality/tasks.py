"""Real data as small problems for audits: a classification and a regression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geolib.naturality.layers import mlp
from geolib.naturality.outputs import cross_entropy, mse
from geolib.naturality.problem import Problem


def components(x: np.ndarray, k: int) -> np.ndarray:
    """The first k principal components of x (n, d), each with unit variance."""
    x = x - x.mean(0)
    U, _, _ = np.linalg.svd(x, full_matrices=False)
    sign = np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])])
    return (U * sign)[:, :k] * np.sqrt(len(x))


def digits_problem(
    seed: int = 0, samples: int = 200, inputs: int = 6, hidden: int = 3
) -> Problem:
    """Zeros, ones and twos of the digits: principal components, two free logits.

    The default seed has the best conditioned metric of seeds 0, 1, 2.
    """
    from geolib.data import load

    d = load("digits")
    keep = np.flatnonzero(d.y < 3)[:samples]
    x = torch.as_tensor(components(np.asarray(d.x)[keep], inputs))
    y = torch.as_tensor(np.asarray(d.y)[keep]).long()
    module = mlp([inputs, hidden, 2], seed=seed)
    return Problem.of(module, x, cross_entropy(y, reference=True))


def diabetes_problem(seed: int = 1, inputs: int = 10, hidden: int = 1) -> Problem:
    """Disease progression from principal components of the ten measurements.

    The default seed has the best conditioned metric of seeds 0, 1, 2.
    """
    from geolib.data import load

    d = load("diabetes")
    x = torch.as_tensor(components(np.asarray(d.x), inputs))
    y: Tensor = torch.as_tensor(np.asarray(d.y)).double()
    y = ((y - y.mean()) / y.std()).reshape(-1, 1)
    return Problem.of(mlp([inputs, hidden, 1], seed=seed, gain=2.0), x, mse(y))
