r"""Rules that read the metric: Sophia and E-KFAC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality import GeometricOptimizer, LocalGeometry
from geolib.naturality.kfac import kronecker


class Sophia(GeometricOptimizer):
    r"""Sophia: momentum over the diagonal of the Gauss-Newton matrix, clipped.

    .. math:: m \leftarrow \beta_1m + (1-\beta_1)g, \quad
        k \leftarrow \beta_2k + (1-\beta_2)\,\mathrm{diag}F, \quad
        x \leftarrow x - h\,\mathrm{clip}\Bigl(\frac{m}{\gamma k + \epsilon}, \pm1\Bigr) .

    The diagonal is exact and found at each step; Sophia estimates it now and then.

    Source: Liu et al. 2023.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        **o: Any,
    ) -> None:
        super().__init__(params, lr, betas=betas, gamma=gamma, **o)

    def update(self, q: LocalGeometry) -> Tensor:
        b1, b2 = self.options["betas"]
        m, k = (self.memory.get(n, torch.zeros_like(q.g)) for n in ("m", "k"))
        self.memory["m"] = m = b1 * m + (1 - b1) * q.g
        self.memory["k"] = k = b2 * k + (1 - b2) * (q.A * q.A).sum(0)
        ratio = m / (self.options["gamma"] * k + 1e-12)
        return -self.options["lr"] * ratio.clamp(-1, 1)


class EKFAC(GeometricOptimizer):
    r"""E-KFAC: K-FAC's eigenbasis with the second moments of the gradients in it.

    .. math:: X_l \leftarrow X_l - h\,Q_B\,\frac{Q_B^TG_lQ_A}{S_l + \lambda}\,Q_A^T, \qquad
        S_l = \sum_i (Q_B^TJ_{il}Q_A)^2,

    with :math:`J_{il}` the rows of the root of F.

    Source: George et al. 2018.
    """

    def velocity(self, q: LocalGeometry, s: Any) -> Tensor:
        K = kronecker(q)
        rows = [K.split(row) for row in q.A]
        parts = []
        for k, ((B, A), G) in enumerate(zip(K.pairs, K.split(q.g), strict=True)):
            QB, QA = (torch.linalg.eigh(S).eigenvectors for S in (B, A))
            S = sum((QB.mT @ row[k] @ QA).square() for row in rows)
            turned = QB.mT @ G @ QA / (S + self.options["damping"])
            parts.append(-QB @ turned @ QA.mT)
        return K.join(parts)
