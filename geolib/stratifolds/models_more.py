"""The cone and the two-unit networks as stratifolds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart
from geolib.stratifolds.charts_units import (
    CentralUnits,
    PronyUnits,
    overlap_coordinates,
)
from geolib.stratifolds.cone import Cone, MeanLoss
from geolib.stratifolds.kernels import ErfKernel, Kernel, RBFKernel
from geolib.stratifolds.models import axes, pinned
from geolib.stratifolds.strata import Stratifold, Stratum
from geolib.stratifolds.two_unit import RawUnits, UnitLoss, split_units

Draw = Callable[[np.random.Generator, int], np.ndarray]


def cone(c: float = 2.0) -> Stratifold:
    r"""The cone, singular at its apex.

    .. math:: m(\xi, \omega) = \xi\,(1, c\cos\omega, c\sin\omega)/\sqrt{1+c^2},
              \qquad \Sigma = \{\xi = 0\}

    Source: spec 1.6. Cost: none.

    Examples:
        >>> cone().rank(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [2, 1]
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([rng.uniform(0.1, 2, n), rng.uniform(-np.pi, np.pi, n)], 1)

    apex = Stratum(
        "apex xi = 0",
        rank=1,
        dim=1,
        height=lambda t: t[:, 0].abs(),
        onto=lambda t: pinned(t, _0=0.0),
        fibre=axes((1, 0)),
        draw=lambda rng, n: draw(rng, n) * [0, 1],
    )
    return Stratifold(
        name=f"cone c = {c:g}",
        chart=Cone(c),
        strata=(apex,),
        objective=lambda theta: MeanLoss(Cone(c).atoms(theta[None])[0]),
        draw=draw,
        charts={"tube": lambda eps: Cone(c, eps=eps)},
        distance=lambda t: t[:, 0].abs(),
    )


def _silent(kind: str, i: int, n: int, draw: Draw) -> Stratum:
    """Unit i contributes nothing: its output weight or its input weights vanish."""
    P = 2 + 2 * n
    columns = [i] if kind == "dead output" else [2 + i * n + a for a in range(n)]

    def silenced(rng: np.random.Generator, count: int) -> np.ndarray:
        out = draw(rng, count)
        out[:, columns] = 0
        return out

    def onto(theta: Tensor) -> Tensor:
        out = theta.clone()
        out[:, columns] = 0
        return out

    unit = [tuple(float(k == c) for k in range(P)) for c in columns]
    return Stratum(
        f"{kind} of unit {i + 1}",
        # without output the n input weights are free, without input only the output is
        rank=P - n if kind == "dead output" else P - 1,
        dim=P - len(columns),
        height=lambda t: t[:, columns].norm(dim=1),
        onto=onto,
        fibre=axes(*unit),
        draw=silenced,
    )


def _overlap(n: int, sign: int, draw: Draw) -> Stratum:
    """Both units alike, w1 = w2, or w1 = -w2 where the activation is odd."""
    P = 2 + 2 * n

    def flip(theta: Tensor) -> Tensor:
        out = theta.clone()
        out[:, 1] *= sign
        out[:, 2 + n :] *= sign
        return out

    def merge(theta: Tensor) -> Tensor:
        b = overlap_coordinates(flip(theta))[2]
        return torch.cat([theta[:, :2], b, sign * b], 1)

    def apart(theta: Tensor) -> Tensor:
        z = overlap_coordinates(flip(theta))[1]
        N = torch.zeros(len(theta), P, n, dtype=theta.dtype, device=theta.device)
        for a in range(n):
            N[:, 2 + a, a], N[:, 2 + n + a, a] = -z, sign * (1 - z)
        return N

    def overlapping(rng: np.random.Generator, count: int) -> np.ndarray:
        out = draw(rng, count)
        out[:, 2 + n :] = sign * out[:, 2 : 2 + n]
        return out

    def separation(theta: Tensor) -> Tensor:
        w = split_units(theta, 2)[1]
        return (w[:, 1] - sign * w[:, 0]).norm(dim=1)

    name = "overlap w1 = w2" if sign > 0 else "overlap w1 = -w2"
    return Stratum(name, 1 + n, P - n, separation, merge, apart, overlapping)


def two_unit_network(kind: str = "rbf", n: int = 1) -> Stratifold:
    r"""Two signed units: singular on overlap, and where an output weight vanishes.

    .. math:: f(x) = v_1\,\sigma(w_1, x) + v_2\,\sigma(w_2, x), \qquad
              \Sigma = \{w_1 = w_2\} \cup \{v_1 = 0\} \cup \{v_2 = 0\}

    The error function is odd: there w1 = -w2 and w_i = 0 are singular as well.

    Args:
        kind: "rbf" (Gaussian bumps on the line) or "erf".
        n: input dimension, 1 for "rbf", 1 or 2 for "erf".

    Raises:
        ValueError: an unknown kind or dimension.

    Source: spec 1.5. Cost: none.

    Examples:
        >>> S = two_unit_network()
        >>> theta = torch.tensor([[1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 0.5, 0.5],
        ...                       [0.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
        >>> S.rank(theta).tolist()
        [4, 2, 3]
    """
    if kind not in ("rbf", "erf") or n not in (1, 2) or (kind == "rbf" and n == 2):
        raise ValueError(
            f"kind, n: expected 'rbf' with n = 1, or 'erf' with n = 1 or 2; "
            f"got {kind!r}, {n}"
        )
    kernel: Kernel = RBFKernel() if kind == "rbf" else ErfKernel()

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        v = rng.normal(size=(count, 2))
        return np.concatenate([v, rng.uniform(-2, 2, (count, 2 * n))], 1)

    strata = [
        _overlap(n, 1, draw),
        *(_silent("dead output", i, n, draw) for i in (0, 1)),
    ]
    if kind == "erf":
        strata.append(_overlap(n, -1, draw))
        strata += [_silent("zero input", i, n, draw) for i in (0, 1)]

    def objective(theta: Tensor) -> UnitLoss:
        v, w = split_units(theta[None], 2)
        return UnitLoss(kernel, v[0], w[0])

    charts: dict[str, Any] = {"central": lambda eps: CentralUnits(n)}
    charts["moduli"] = charts["central"]
    if n == 1:
        charts["moduli"] = charts["prony"] = lambda eps: PronyUnits()

    def surgical(eps: float) -> Chart:
        chart = RawUnits(2, n)
        chart.eps = eps
        return chart

    charts["surgery"] = surgical
    return Stratifold(
        name=f"two {kind} units, {n}-D",
        chart=RawUnits(2, n),
        strata=tuple(sorted(strata, key=lambda stratum: stratum.rank)),
        objective=objective,
        draw=draw,
        charts=charts,
        distance=lambda t: overlap_coordinates(t)[4].abs(),
    )
