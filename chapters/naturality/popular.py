r"""Popular optimizers that `torch.optim` lacks, as their papers define them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from curvature_rules import EKFAC as EKFAC, Sophia as Sophia
from matrix_rules import (
    SOAP as SOAP,
    PolarMuon as PolarMuon,
    Shampoo as Shampoo,
    as_matrix as as_matrix,
)
from tensorwise import TensorwiseOptimizer, first_step as first_step
from torch import Tensor

from geolib.naturality import OptimizerSpec
from geolib.naturality.catalogue import (
    SPEED,
    TAU,
    from_class,
    geometric,
    layered,
    memories,
)


class SignSGD(TensorwiseOptimizer):
    r"""The rule :math:`x \leftarrow x - h\,\mathrm{sign}(g)`."""

    has_memory = False

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, lr)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        return g.sign()


class Lion(TensorwiseOptimizer):
    r"""Lion: the sign of an interpolated momentum, without weight decay.

    .. math:: x \leftarrow x - h\,\mathrm{sign}(\beta_1m + (1-\beta_1)g), \quad
        m \leftarrow \beta_2m + (1-\beta_2)g .
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(params, lr, betas=betas)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        b1, b2 = o["betas"]
        m = state.get("m", torch.zeros_like(g))
        state["m"] = b2 * m + (1 - b2) * g
        return (b1 * m + (1 - b1) * g).sign()


class ScheduleFree(TensorwiseOptimizer):
    r"""Schedule-free descent: gradients are taken between an iterate and its average.

    .. math:: y = (1-\beta)z + \beta x, \quad z \leftarrow z - h\,g(y), \quad
        x \leftarrow (1 - \tfrac1{t})x + \tfrac1{t}z .

    The parameters are y.

    Source: Defazio et al. 2024.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-1, beta: float = 0.9
    ) -> None:
        super().__init__(params, lr, beta=beta)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for y in group["params"]:
                self.state[y].setdefault("y", y.detach().clone())
        return super().step(closure)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        y, beta, h = state["y"], o["beta"], o["lr"]
        state["t"] = t = state.get("t", 0) + 1
        z = state.get("z", y) - h * g
        x = state.get("x", y)
        state["z"], state["x"] = z, x + (z - x) / t
        state["y"] = (1 - beta) * z + beta * state["x"]
        return (y - state["y"]) / h


_Row = OptimizerSpec
POPULAR = [
    _Row("sign", from_class(SignSGD, lambda h: {"lr": SPEED * h})),
    _Row("lion", from_class(Lion, lambda h: {"lr": SPEED * h, "betas": memories(h)})),
    _Row(
        "muon-polar",
        from_class(
            PolarMuon, lambda h: {"lr": SPEED * h, "momentum": math.exp(-h / TAU[0])}
        ),
    ),
    _Row("shampoo-1/4", from_class(Shampoo)),
    _Row(
        "shampoo-1/2",
        from_class(Shampoo, lambda h: {"power": -0.5, "accumulator": 0.3}),
    ),
    _Row("soap", from_class(SOAP, lambda h: {"betas": memories(h)})),
    _Row("schedule-free", from_class(ScheduleFree)),
    _Row("sophia", geometric(Sophia, lambda h: {"betas": memories(h)})),
    _Row("ekfac", layered(EKFAC), layered=True),
]
