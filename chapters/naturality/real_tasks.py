r"""Training problems of the chapter: two real tasks, and a network wider than its data."""

from __future__ import annotations


import numpy as np
import torch
from torch import Tensor
from audit_problems import two_layer

from geolib.data import load as load_data
from geolib.naturality import Problem, affine_mlp, cross_entropy, mse


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
    d = load_data("digits")
    keep = np.flatnonzero(d.y < 3)[:samples]
    x = torch.as_tensor(components(np.asarray(d.x)[keep], inputs))
    y = torch.as_tensor(np.asarray(d.y)[keep]).long()
    module = affine_mlp([inputs, hidden, 2], seed=seed)
    return Problem.of(module, x, cross_entropy(y, reference=True))


def diabetes_problem(seed: int = 1, inputs: int = 10, hidden: int = 1) -> Problem:
    """Disease progression from principal components of the ten measurements.

    The default seed has the best conditioned metric of seeds 0, 1, 2.
    """
    d = load_data("diabetes")
    x = torch.as_tensor(components(np.asarray(d.x), inputs))
    y: Tensor = torch.as_tensor(np.asarray(d.y)).double()
    y = ((y - y.mean()) / y.std()).reshape(-1, 1)
    return Problem.of(affine_mlp([inputs, hidden, 1], seed=seed, gain=2.0), x, mse(y))


def wide_problem(seed: int, width: int = 12, n: int = 10, m: int = 100) -> Problem:
    """A tanh network with more parameters (4 a unit) than its n samples."""
    rng = np.random.default_rng(seed)

    def inputs(k: int) -> Tensor:
        return torch.tensor(np.hstack([rng.standard_normal((k, 2)), np.ones((k, 1))]))

    x, probe = inputs(n), inputs(m)
    w = torch.tensor(rng.standard_normal((width, 3)))
    a = torch.tensor(rng.standard_normal((1, width)) / np.sqrt(width))
    teacher = torch.tensor(rng.standard_normal((1, width)) / np.sqrt(width))
    y = torch.tanh(x @ w.T) @ teacher.T
    y = y + 0.05 * torch.tensor(rng.standard_normal((n, 1)))
    return two_layer(x, y, w, a, probe=probe)
