r"""Popular optimizers that `torch.optim` lacks, as their papers define them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from geolib.naturality import GeometricOptimizer, LocalGeometry, OptimizerSpec
from geolib.naturality.catalogue import (
    SPEED,
    TAU,
    from_class,
    geometric,
    layered,
    memories,
)
from geolib.core.validation import expect
from geolib.naturality.geometric_optimizer import check_tensors
from geolib.naturality.kfac import kronecker
from geolib.naturality.local_geometry import Diverged, flatten, unflatten


class TensorwiseOptimizer(torch.optim.Optimizer):
    """The base of rules that change one tensor at a time and read its `.grad`.

    A subclass defines `change`: gradient, state and options to the displacement over -lr.
    """

    has_memory = True
    change: Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor]

    def __init__(self, params: Iterable[Any], lr: float, **defaults: Any) -> None:
        items = list(params)
        lists = [g["params"] if isinstance(g, dict) else [g] for g in items]
        check_tensors(t for group in lists for t in group)
        expect(0 < lr < math.inf, "lr", "a finite number more than 0", lr)
        super().__init__(items, {"lr": lr, **defaults})

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Take one step; with a closure its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for t in group["params"]:
                    if t.grad is not None:
                        g = dense_gradient(t)
                        change = self.change(g, self.state[t], group)
                        t.sub_(group["lr"] * change)
        return loss


def dense_gradient(t: Tensor) -> Tensor:
    """Return the gradient of a parameter.

    Raises:
        ValueError: it is sparse, or (`Diverged`) has entries that are not finite.
    """
    g = t.grad
    assert g is not None
    what = f"grad of a parameter of shape {tuple(t.shape)}"
    if g.layout != torch.strided:
        raise ValueError(f"{what}: expected a dense tensor, got layout {g.layout}")
    if not bool(torch.isfinite(g).all()):
        raise Diverged(f"{what}: expected finite entries")
    return g


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


def first_step(cls: type[TensorwiseOptimizer], **options: Any) -> Callable[..., Tensor]:
    """The velocity of a tensorwise optimizer's first step, from an empty state."""

    @cache  # at the first use: an optimizer made while importing would load the compiler
    def defaults() -> dict[str, Any]:
        blank = torch.zeros(1, requires_grad=True)
        return cls([blank], lr=1.0, **options).param_groups[0]  # type: ignore[call-arg]

    def direction(q: LocalGeometry) -> Tensor:
        grads = unflatten(q.g, q.params)
        return flatten([-cls.change(g, {}, defaults()) for g in grads])

    return direction


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
