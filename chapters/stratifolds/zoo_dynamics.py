"""Ranks on the strata of the zoo's models, and how long descent waits beside one.

On a stratum the loss has a saddle. Where its Hessian has a least eigenvalue -c < 0,
descent with step h from distance d waits log(1/d)/log(1 + h c) iterations; where the
first descent is of order k > 2, as for a product of k factors, 1/d^(k-2) of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
F64 = torch.float64
MANY = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEW = (0.1, 0.05, 0.025)  # the waits of a power law are long


def linear(theta: Tensor) -> Tensor:
    """The matrix BA of a linear network 3 -> 2 -> 3."""
    return (theta[6:].reshape(3, 2) @ theta[:6].reshape(2, 3)).flatten()


def tensor(theta: Tensor) -> Tensor:
    """The outer product of three vectors in the plane."""
    return torch.einsum("i,j,k->ijk", *theta.reshape(3, 2)).flatten()


def chain(theta: Tensor) -> Tensor:
    """The product of four numbers."""
    return theta.prod()[None]


def boltzmann(theta: Tensor) -> Tensor:
    """The law of three visible spins with one hidden one, no biases."""
    x = torch.tensor(list(product((1.0, -1.0), repeat=3)), dtype=F64)
    return torch.softmax((x @ theta).cosh().log(), 0)


def markov(theta: Tensor) -> Tensor:
    """The law of three signs of a stationary two-state chain (a, b, p, q).

    a and b are the probabilities to leave state 1 and 2, p and q those of a plus.
    """
    a, b, p, q = theta
    law = torch.stack([b, a]) / (a + b)
    A = torch.stack([torch.stack([1 - a, a]), torch.stack([b, 1 - b])])
    plus = torch.stack([p, q])
    words = []
    for word in product((1, 0), repeat=3):
        alpha = law
        for k, x in enumerate(word):
            alpha = (alpha @ A if k else alpha) * (plus if x else 1 - plus)
        words.append(alpha.sum())
    return torch.stack(words)


X = torch.linspace(-6, 6, 241, dtype=F64)
LAW = torch.exp(-X * X / 2) * 0.05 / (2 * torch.pi) ** 0.5


def units(act: Map) -> Map:
    """Two units (b_1, b_2, a_1, a_2) without biases as a function of one normal input."""
    return lambda theta: (act(X[:, None] * theta[2:]) @ theta[:2]) * LAW.sqrt()


def mixture(theta: Tensor) -> Tensor:
    """Two Gaussians (w, m_1, m_2), in the weights of their law on a grid."""
    w, *means = theta
    one, two = (
        torch.exp(-((X - m) ** 2) / 2) * 0.05 / (2 * torch.pi) ** 0.5 for m in means
    )
    return (1 - w) * one + w * two


def fixed_mixture(theta: Tensor) -> Tensor:
    """As `mixture`, the first component N(0, 1): (w, mu)."""
    return mixture(torch.stack([theta[0], 0 * theta[1], theta[1]]))


def rank(model: Map, theta: Tensor) -> int:
    """The rank of a model's Jacobian, which is that of its Fisher matrix."""
    values = torch.linalg.svdvals(torch.func.jacrev(model)(theta))
    return int((values > 1e-9 * max(1.0, float(values.max()))).sum())


def ranks(seed: int = 0) -> Iterator[tuple[str, str, int, int]]:
    """Model, stratum, and the rank there by theory and by the Jacobian."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> Tensor:
        return torch.tensor(rng.uniform(0.2, 0.8, n))

    def at(theta: Tensor, fixed: dict[int, float]) -> Tensor:
        theta = theta.clone()
        for k, value in fixed.items():
            theta[k] = value
        return theta

    one = torch.cat([torch.outer(draw(2), draw(3)).flatten(),
                     torch.outer(draw(3), draw(2)).flatten()])  # fmt: skip
    a, b, p, _ = draw(4)
    rows: list[tuple[str, Map, str, Tensor, int]] = [
        ("reduced rank 3 -> 2 -> 3", linear, "generic", draw(12), 8),
        ("reduced rank 3 -> 2 -> 3", linear, "both factors of rank 1", one, 5),
        ("reduced rank 3 -> 2 -> 3", linear, "zero", 0 * draw(12), 0),
        ("rank-one tensor 2 x 2 x 2", tensor, "generic", draw(6), 4),
        ("rank-one tensor 2 x 2 x 2", tensor, "one factor zero", at(draw(6), {0: 0, 1: 0}), 2),
        ("rank-one tensor 2 x 2 x 2", tensor, "two factors zero",
         at(draw(6), dict.fromkeys(range(4), 0)), 0),
        ("Boltzmann machine 3 x 1", boltzmann, "generic", draw(3), 3),
        ("Boltzmann machine 3 x 1", boltzmann, "one weight left",
         at(draw(3), {1: 0, 2: 0}), 2),
        ("Boltzmann machine 3 x 1", boltzmann, "zero", 0 * draw(3), 0),
        ("hidden Markov, 2 states", markov, "generic", draw(4), 4),
        ("hidden Markov, 2 states", markov, "equal states", torch.stack([a, b, p, p]), 1),
        ("hidden Markov, 2 states", markov, "no memory",
         at(draw(4), {0: 0.3, 1: 0.7}), 2),
        ("hidden Markov, 2 states", markov, "a state left out", at(draw(4), {0: 0}), 2),
        ("deep linear, 4 scalars", chain, "generic", draw(4), 1),
        ("deep linear, 4 scalars", chain, "two zero", at(draw(4), {0: 0, 1: 0}), 0),
        ("two odd units (tanh)", units(torch.tanh), "generic", draw(4), 4),
        ("two odd units (tanh)", units(torch.tanh), "overlap", torch.stack([a, b, p, p]), 2),
        ("two odd units (tanh)", units(torch.tanh), "one silent", at(draw(4), {0: 0}), 3),
        ("two ReLU units, one input", units(torch.relu), "one side", draw(4), 1),
        ("two ReLU units, one input", units(torch.relu), "both sides",
         at(draw(4), {3: -0.4}), 2),
        ("two ReLU units, one input", units(torch.relu), "zero", 0 * draw(4), 0),
        ("mixture A", fixed_mixture, "generic", 2 * draw(2), 2),
        ("mixture A", fixed_mixture, "the cross", at(draw(2), {0: 0}), 1),
        ("mixture A", fixed_mixture, "the corner", 0 * draw(2), 0),
        ("mixture B", mixture, "generic", torch.stack([a, -3 * b, 3 * p]), 3),
        ("mixture B", mixture, "overlap", torch.stack([a, p, p]), 1),
        ("mixture B", mixture, "one left out", at(torch.stack([a, -b, p]), {0: 0}), 2),
    ]  # fmt: skip
    for name, model, stratum, theta, expected in rows:
        yield name, stratum, expected, rank(model, theta)


@dataclass(frozen=True)
class Plateau:
    """How long descent waits beside a stratum.

    Attributes:
        distances: of the starts, falling.
        waits: iterations from them to half the stratum's loss.
        law: "log" or "power".
        expected: iterations an e-fold of closeness, or the power of 1/distance.
    """

    name: str
    distances: tuple[float, ...]
    waits: tuple[int, ...]
    law: str
    expected: float

    @property
    def measured(self) -> float:
        """The same from the last three distances."""
        x, y = -np.log(self.distances[-3:]), np.array(self.waits[-3:], dtype=float)
        return float(np.polyfit(x, y if self.law == "log" else np.log(y), 1)[0])


def wait(
    name: str, loss: Map, stratum: Tensor, step: float, power: int = 0, seed: int = 1
) -> Plateau:
    """Descend from beside a stratum in one random direction, at every distance."""
    least = float(torch.linalg.eigvalsh(torch.func.hessian(loss)(stratum))[0])
    away = np.abs(np.random.default_rng(seed).standard_normal(len(stratum)))
    far = tuple(power * d for d in FEW) if power else MANY
    theta = stratum + torch.tensor(np.outer(far, away / np.linalg.norm(away)))
    level, waits = 0.5 * float(loss(stratum)), torch.full((len(far),), -1)
    slope = torch.func.vmap(torch.func.grad_and_value(loss))
    for it in range(200_000):
        g, value = slope(theta)
        waits = torch.where((value < level) & (waits < 0), it, waits)
        if bool((waits >= 0).all()):
            break
        theta = theta - step * g
    law = "power" if power else "log"
    expected = power if power else 1 / np.log1p(-step * least)
    return Plateau(name, far, tuple(waits.tolist()), law, float(expected))


def plateaus() -> Iterator[Plateau]:
    """One plateau of each model of the zoo."""

    def square(model: Map, target: Tensor) -> Map:
        return lambda theta: 0.5 * (model(theta) - target).square().sum()

    def divergence(model: Map, truth: Tensor) -> Map:
        q = model(truth)
        return lambda theta: (q * (q.log() - model(theta).log())).sum()

    def f(*values: float) -> Tensor:
        return torch.tensor(values, dtype=F64)

    outer = torch.outer(f(1.0, 0.5, 0.2), f(0.3, 1.0, 0.4)).flatten()
    cube = torch.einsum("i,j,k->ijk", f(1, 0.5), f(0.6, 1), f(1, 0.3)).flatten()
    yield wait("reduced rank 3 -> 2 -> 3", square(linear, outer), f(*[0] * 12), 0.1)
    yield wait(
        "rank-one tensor 2 x 2 x 2", square(tensor, cube), f(*[0] * 6), 0.1, power=1
    )
    yield wait("deep linear, 4 scalars", square(chain, f(1)), f(*[0] * 4), 0.4, power=2)
    spins = divergence(boltzmann, f(0.8, 0.6, 0.7))
    yield wait("Boltzmann machine 3 x 1", spins, f(0, 0, 0), 0.3)
    tanh, up = units(torch.tanh), X.clamp_min(0) * LAW.sqrt()
    goal = tanh(f(1.0, 0.0, 1.5, 0.0))
    yield wait("two odd units (tanh)", square(tanh, goal), f(0, 0, 0, 0), 0.3)
    # the starts have a > 0, where a ReLU unit of a x is a times that of x
    relu = square(lambda t: (t[:2] @ t[2:]) * up, 1.5 * up)
    yield wait("two ReLU units, one input", relu, f(0, 0, 0, 0), 0.3)
    pair = divergence(mixture, f(0.5, -1.0, 1.0))
    yield wait("mixture B", pair, f(0.3, 0, 0), 0.3)
    signs = divergence(markov, f(0.2, 0.3, 0.9, 0.2))
    # the mean of a sign is the truth's: 0.6 of the time in state 1
    yield wait("hidden Markov, 2 states", signs, f(0.2, 0.3, 0.62, 0.62), 0.3)
