"""The zoo's learning coefficients by the sampler, at a finite number of data.

Each model is a divergence on the unit cube with its prior made flat: normal weights are
quantiles. The sampler's estimate is that at n beta = DATA/log DATA, so it is compared with
the integral there, from which it differs by its own error only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from evidence import divergence_from_null
from torch import Tensor
from zoo import DATA

from geolib.stratifolds import learning_coefficient
from geolib.stratifolds.learning_coefficient import LearningCoefficient

Divergence = Callable[[Tensor], Tensor]


def linear(M: int, N: int, H: int) -> tuple[int, Divergence]:
    """Half the squared entries of BA, of normal matrices."""

    def K(u: Tensor) -> Tensor:
        A, B = torch.special.ndtri(u).split([H * M, N * H], 1)
        return (B.view(-1, N, H) @ A.view(-1, H, M)).square().sum((1, 2)) / 2

    return H * (M + N), K


def tensor(*dims: int) -> tuple[int, Divergence]:
    """Half the squared entries of an outer product of normal vectors."""

    def K(u: Tensor) -> Tensor:
        parts = torch.special.ndtri(u).split(dims, 1)
        return torch.stack([v.square().sum(1) for v in parts]).prod(0) / 2

    return sum(dims), K


def odd_units(u: Tensor) -> Tensor:
    """Two units t + t^3 with flat weights in and normal ones out."""
    a, b = u[:, :2], torch.special.ndtri(u[:, 2:])
    return ((b * a).sum(1) ** 2 + (b * a**3).sum(1) ** 2) / 2


def relu_units(u: Tensor) -> Tensor:
    """Two units of one input: those of either sign of a are one function."""
    a, b = torch.special.ndtri(u).chunk(2, 1)
    sides = [(b * torch.relu(sign * a)).sum(1) ** 2 for sign in (1, -1)]
    return (sides[0] + sides[1]) / 4


def excess(r: Tensor) -> Tensor:
    """KL(q || q (1 + r)) of the values that q takes alike, along the last axis."""
    return (r - torch.log1p(r)).mean(-1)


def boltzmann(M: int) -> tuple[int, Divergence]:
    """Visible spins of one hidden one; the means of t lie in (0, 0.9)."""
    x = torch.tensor(list(product((1.0, -1.0), repeat=M)), dtype=torch.float64)

    def K(u: Tensor) -> Tensor:
        t = 0.9 * u[:, None] * x
        return excess(((1 + t).prod(2) + (1 - t).prod(2)) / 2 - 1)

    return M, K


def markov(u: Tensor) -> Tensor:
    """Three signs of a stationary chain of two states, as `zoo.markov_excess`."""
    shift, size = u.new_tensor([0.5, 0, 0, 0]), u.new_tensor([0.4, 0.6, 1.0, 0.8])
    mean, gap, share, memory = ((u - shift) * size).unbind(1)
    law = torch.stack([share, 1 - share])
    s = torch.stack([mean + (1 - share) * gap, mean - share * gap])
    words = []
    for word in product((1, -1), repeat=3):
        rest = 0 * law
        for x in word:
            moved = memory * rest + (1 - memory) * law * rest.sum(0)
            rest = moved + x * s * (law + moved)
        words.append(rest.sum(0))
    return excess(torch.stack(words, 1))


def mixture_a(u: Tensor) -> Tensor:
    """A part w of N(mu, 1) beside N(0, 1)."""
    w, mu = u[:, 0], 3 * u[:, 1]
    return divergence_from_null(torch.stack([1 - w, w, 0 * w, mu], 1))


def mixture_b(u: Tensor) -> Tensor:
    """Two unit normals at any places."""
    w, b, d = u[:, 0], 6 * u[:, 1] - 3, 6 * u[:, 2]
    return divergence_from_null(torch.stack([1 - w, w, b - w * d, b + (1 - w) * d], 1))


def named(name: str) -> tuple[int, Divergence]:
    """Dimension and divergence of a model of the zoo."""
    numbers = [int(k) for k in name.replace(",", " ").split() if k.isdigit()]
    if name.startswith("reduced rank"):
        M, H, N = numbers
        return linear(M, N, H)
    if "tensor" in name:
        return tensor(*numbers)
    if "deep linear" in name:
        return tensor(*[1] * numbers[0])
    if "Boltzmann" in name:
        return boltzmann(numbers[0])
    return {
        "two odd units (tanh)": (4, odd_units),
        "two ReLU units, one input": (4, relu_units),
        "hidden Markov, 2 states": (4, markov),
        "mixture A": (2, mixture_a),
        "mixture B": (3, mixture_b),
    }[name]


def sampled(
    name: str, chains: int = 64, steps: int = 6000, seed: int = 0
) -> LearningCoefficient:
    """The sampler's estimate; each chain begins at the best of 100 draws of the prior."""
    P, K = named(name)
    gen = torch.Generator().manual_seed(seed)
    u = torch.rand(100, chains, P, generator=gen, dtype=torch.float64)
    best = K(u.view(-1, P)).view(100, chains).argmin(0)
    zero = torch.zeros(P, dtype=torch.float64)
    return learning_coefficient(
        K, DATA, zero, zero + 1, base=0.0, sampler="mala", seed=seed,
        theta0=u[best, torch.arange(chains)], steps=steps, step=1.0,
    )  # fmt: skip
