r"""Popular rules that `torch.optim` lacks, one tensor at a time: the audit's controls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.geometric_optimizer import check_tensors, positive
from geolib.naturality.local_geometry import Diverged


class TensorwiseOptimizer(torch.optim.Optimizer):
    """The base of rules that change one tensor at a time and read its `.grad`.

    A subclass defines `change`; its first step from an empty state is the rule
    without memory that `RULES` lists.
    """

    has_memory = True

    def __init__(self, params: Iterable[Any], lr: float, **defaults: Any) -> None:
        items = list(params)
        lists = [g["params"] if isinstance(g, dict) else [g] for g in items]
        check_tensors(t for group in lists for t in group)
        super().__init__(items, {"lr": positive("lr", lr), **defaults})

    @staticmethod
    def change(g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        """Return the tensor's displacement, over -lr."""
        raise NotImplementedError

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
