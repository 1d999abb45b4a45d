"""The mixtures of the chapter as stratifolds, ready to be resolved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds.charts import LogitA, RawA, TubeA, check_theta
from geolib.stratifolds.charts_k import PairModuli, SoftmaxAtoms
from geolib.stratifolds.charts_pair import LogitB, ModuliB, RawB
from geolib.stratifolds.location import MixtureKL
from geolib.stratifolds.strata import Stratifold, Stratum


def axes(*columns: tuple[float, ...]) -> Any:
    """Constant fibre directions, repeated for every row."""

    def fibre(theta: Tensor) -> Tensor:
        N = theta.new_tensor(columns).T
        return N.expand(len(theta), -1, -1)

    return fibre


def pinned(theta: Tensor, **columns: float) -> Tensor:
    out = theta.clone()
    for name, value in columns.items():
        out[:, int(name[1:])] = value
    return out


def mixture_a() -> Stratifold:
    r"""The mixture of a fixed and a free Gaussian, singular where w mu = 0.

    .. math:: p = (1-w)\,N(0,1) + w\,N(\mu,1), \qquad
              \Sigma = \{w\mu = 0\}\ \text{(one density)}

    Ranks 0 (origin), 1 (the wall w = 0 and the line mu = 0), 2.

    Source: spec 1.3. Cost: none.

    Examples:
        >>> S = mixture_a()
        >>> S.rank(torch.tensor([[0.3, 2.0], [0.0, 2.0], [0.3, 0.0], [0.0, 0.0]],
        ...                     dtype=torch.float64)).tolist()
        [2, 1, 1, 0]
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([rng.uniform(0.05, 0.95, n), rng.uniform(-3, 3, n)], 1)

    def on_wall(rng: np.random.Generator, n: int) -> np.ndarray:
        return draw(rng, n) * [0, 1]

    def on_line(rng: np.random.Generator, n: int) -> np.ndarray:
        return draw(rng, n) * [1, 0]

    origin = Stratum(
        "origin",
        rank=0,
        dim=0,
        height=lambda t: t.norm(dim=1),
        onto=torch.zeros_like,
        fibre=axes((1, 0), (0, 1)),
        draw=lambda rng, n: np.zeros((n, 2)),
    )
    wall = Stratum(
        "wall w = 0",
        rank=1,
        dim=1,
        height=lambda t: t[:, 0].abs(),
        onto=lambda t: pinned(t, _0=0.0),
        fibre=axes((1, 0)),
        draw=on_wall,
    )
    line = Stratum(
        "line mu = 0",
        rank=1,
        dim=1,
        height=lambda t: t[:, 1].abs(),
        onto=lambda t: pinned(t, _1=0.0),
        fibre=axes((0, 1)),
        draw=on_line,
    )
    return Stratifold(
        name="mixture A",
        chart=RawA(),
        strata=(origin, wall, line),
        objective=lambda theta: MixtureKL(RawA().atoms(theta[None])[0]),
        draw=draw,
        charts={"tube": TubeA, "logit": lambda eps: LogitA()},
        distance=lambda theta: theta.prod(1).abs(),
    )


def mixture_b() -> Stratifold:
    r"""The mixture of two free Gaussians, singular on overlap and elimination.

    .. math:: p = (1-w)\,N(\mu_1,1) + w\,N(\mu_2,1), \qquad
              \Sigma = \{\mu_1 = \mu_2\} \cup \{w = 0\} \cup \{w = 1\}

    Ranks 1 (overlap), 2 (a missing component), 3.

    Source: spec 1.4. Cost: none.

    Examples:
        >>> S = mixture_b()
        >>> S.rank(torch.tensor([[0.5, -1.0, 1.0], [0.5, 1.0, 1.0], [0.0, -1.0, 1.0]],
        ...                     dtype=torch.float64)).tolist()
        [3, 1, 2]
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        w, m = rng.uniform(0.05, 0.95, (n, 1)), rng.uniform(-3, 3, (n, 2))
        return np.concatenate([w, m], 1)

    def merge(theta: Tensor) -> Tensor:
        w, m1, m2 = theta.unbind(1)
        b = (1 - w) * m1 + w * m2
        return torch.stack([w, b, b], 1)

    def apart(theta: Tensor) -> Tensor:
        w, zero = theta[:, 0], torch.zeros_like(theta[:, 0])
        return torch.stack([zero, -w, 1 - w], 1)[..., None]

    def overlapping(rng: np.random.Generator, n: int) -> np.ndarray:
        return draw(rng, n)[:, [0, 1, 1]]

    overlap = Stratum(
        "overlap mu1 = mu2",
        rank=1,
        dim=2,
        height=lambda t: (t[:, 2] - t[:, 1]).abs(),
        onto=merge,
        fibre=apart,
        draw=overlapping,
    )

    def wall(end: float) -> Stratum:
        def eliminated(rng: np.random.Generator, n: int) -> np.ndarray:
            out = draw(rng, n)
            out[:, 0] = end
            return out

        return Stratum(
            f"elimination w = {end:g}",
            rank=2,
            dim=2,
            height=lambda t: (t[:, 0] - end).abs(),
            onto=lambda t: pinned(t, _0=end),
            fibre=axes((1 - 2 * end, 0, 0)),
            draw=eliminated,
        )

    return Stratifold(
        name="mixture B",
        chart=RawB(),
        strata=(overlap, wall(0.0), wall(1.0)),
        objective=lambda theta: MixtureKL(RawB().atoms(theta[None])[0]),
        draw=draw,
        charts={
            "moduli": lambda eps: ModuliB(),
            "tube": lambda eps: ModuliB(eps=eps),
            "metric": lambda eps: ModuliB(ridge=eps),
            "logit": lambda eps: LogitB(),
        },
        distance=lambda t: t[:, 0] * (1 - t[:, 0]) * (t[:, 2] - t[:, 1]) ** 2,
    )


def mixture_k(K: int, pair: tuple[int, int] = (0, 1)) -> Stratifold:
    r"""K free unit Gaussians, with one pair singled out to be resolved.

    .. math:: p = \sum_k a_k\,N(c_k, 1), \qquad
              \Sigma_{ij} = \{c_i = c_j\}

    Coordinates are softmax weights and locations. Rank 2K-3 on one overlap.

    Args:
        K: number of components.
        pair: whose overlap `resolve(..., kind="moduli")` removes.

    Raises:
        ValueError: `pair` does not name two different components.

    Source: spec 5.3. Cost: none.

    Examples:
        >>> mixture_k(3).dim
        5
    """
    PairModuli(K, pair)  # refuses a bad pair here rather than at the first use
    chart = SoftmaxAtoms(K)
    i, j = (K - 1 + p for p in pair)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.concatenate(
            [rng.normal(size=(n, K - 1)), rng.uniform(-3, 3, (n, K))], 1
        )

    def merge(theta: Tensor) -> Tensor:
        a = chart.atoms(theta)[:, list(pair)]
        out = theta.clone()
        b = (a * theta[:, [i, j]]).sum(1) / a.sum(1)
        out[:, i], out[:, j] = b, b
        return out

    def apart(theta: Tensor) -> Tensor:
        a = chart.atoms(theta)[:, list(pair)]
        w = a / a.sum(1, keepdim=True)
        out = torch.zeros_like(theta)
        out[:, i], out[:, j] = -w[:, 1], w[:, 0]
        return out[..., None]

    def overlapping(rng: np.random.Generator, n: int) -> np.ndarray:
        out = draw(rng, n)
        out[:, j] = out[:, i]
        return out

    overlap = Stratum(
        f"overlap of {pair}",
        rank=2 * K - 3,
        dim=2 * K - 2,
        height=lambda t: (t[:, i] - t[:, j]).abs(),
        onto=merge,
        fibre=apart,
        draw=overlapping,
    )

    class Softmax(SoftmaxAtoms):
        def lift(self, theta: Tensor) -> Tensor:
            check_theta(theta, 2 * K - 1)
            return theta

        def push(self, eta: Tensor) -> Tensor:
            return eta

    class Moduli(PairModuli):
        def lift(self, theta: Tensor) -> Tensor:
            return super().lift(chart.atoms(theta))

        def push(self, eta: Tensor) -> Tensor:
            return chart.lift(self.atoms(eta))

    return Stratifold(
        name=f"mixture of {K}",
        chart=Softmax(K),
        strata=(overlap,),
        objective=lambda theta: MixtureKL(chart.atoms(theta[None])[0]),
        draw=draw,
        charts={"moduli": lambda eps: Moduli(K, pair)},
        distance=lambda t: (t[:, i] - t[:, j]) ** 2,
    )
