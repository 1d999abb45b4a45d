r"""Rules that read a gradient as a matrix: Muon, Shampoo, SOAP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensorwise import TensorwiseOptimizer
from torch import Tensor


def as_matrix(g: Tensor) -> Tensor:
    """Return a tensor as a matrix; one of a single axis is a row."""
    return g.reshape(len(g), -1) if g.ndim > 1 else g.reshape(1, -1)


def polar(G: Tensor) -> Tensor:
    r"""Return the orthogonal factor :math:`UV^T` of a matrix."""
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ Vh


def root(S: Tensor, power: float) -> Tensor:
    """Return a power of a positive semi-definite matrix, zero on its kernel."""
    w, U = torch.linalg.eigh(S)
    keep = w > 1e-14 * w[-1]
    return (U * torch.where(keep, torch.where(keep, w, 1.0) ** power, 0.0)) @ U.T


class PolarMuon(TensorwiseOptimizer):
    r"""Muon with the exact polar factor instead of Newton-Schulz iterations.

    .. math:: B \leftarrow \mu B + (1-\mu) G, \qquad X \leftarrow X - h\,UV^T,
        \quad B = U\Sigma V^T .

    A parameter of one axis counts as a matrix of one row.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95
    ) -> None:
        super().__init__(params, lr, momentum=momentum)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        mu = o["momentum"]
        state["B"] = mu * state.get("B", torch.zeros_like(g)) + (1 - mu) * g
        return polar(as_matrix(state["B"])).view_as(g)


class Shampoo(TensorwiseOptimizer):
    r"""Shampoo: matrix AdaGrad with one factor for rows and one for columns.

    .. math:: L \leftarrow L + GG^T, \quad R \leftarrow R + G^TG, \quad
        X \leftarrow X - h\,L^{q} G R^{q} .

    Args:
        power: q, by default -1/4.
        accumulator: L and R start at this multiple of the identity.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        power: float = -0.25,
        accumulator: float = 0.1,
    ) -> None:
        super().__init__(params, lr, power=power, accumulator=accumulator)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        G = as_matrix(g)
        for name, S in (("L", G @ G.T), ("R", G.T @ G)):
            eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
            state[name] = state.get(name, o["accumulator"] * eye) + S
        L, R = root(state["L"], o["power"]), root(state["R"], o["power"])
        return (L @ G @ R).view_as(g)


class SOAP(TensorwiseOptimizer):
    r"""SOAP: Adam in the eigenbasis of Shampoo's factors.

    .. math:: L \leftarrow \beta_2L + (1-\beta_2)GG^T, \quad
        R \leftarrow \beta_2R + (1-\beta_2)G^TG, \quad
        X \leftarrow X - h\,Q_L\,\frac{Q_L^TMQ_R}{\sqrt V + \epsilon}\,Q_R^T,

    with M the average of G and V that of the squares of :math:`Q_L^TGQ_R`, bias corrected;
    the bases are found anew at each step. A vector is a matrix of one row.

    Source: Vyas et al. 2024.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps)

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        G, (b1, b2) = as_matrix(g), o["betas"]
        state["t"] = t = state.get("t", 0) + 1

        def average(name: str, value: Tensor, beta: float) -> Tensor:
            old = state.get(name, torch.zeros_like(value))
            state[name] = beta * old + (1 - beta) * value
            return state[name]

        QL, QR = (
            torch.linalg.eigh(average(n, S, b2)).eigenvectors
            for n, S in (("L", G @ G.T), ("R", G.T @ G))
        )
        M = average("M", G, b1) / (1 - b1**t)
        V = average("V", (QL.T @ G @ QR).square(), b2) / (1 - b2**t)
        return (QL @ (QL.T @ M @ QR / (V.sqrt() + o["eps"])) @ QR.T).view_as(g)
