r"""Popular rules that `torch.optim` lacks, as controls for the audit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.base import check_tensors, positive
from geolib.naturality.directions import polar, root


class _Euclidean(torch.optim.Optimizer):
    """A rule of one tensor at a time that reads `.grad`."""

    def __init__(self, params: Iterable[Any], lr: float, **defaults: Any) -> None:
        items = list(params)
        lists = [g["params"] if isinstance(g, dict) else [g] for g in items]
        check_tensors(t for group in lists for t in group)
        super().__init__(items, {"lr": positive("lr", lr), **defaults})

    def change(self, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        """The tensor's displacement, over -lr."""
        raise NotImplementedError

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
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
    """The gradient of a parameter.

    Raises:
        ValueError: it is sparse, or has entries that are not finite.
    """
    g = t.grad
    assert g is not None
    what = f"grad of a parameter of shape {tuple(t.shape)}"
    if g.layout != torch.strided:
        raise ValueError(f"{what}: expected a dense tensor, got layout {g.layout}")
    if not bool(torch.isfinite(g).all()):
        raise ValueError(f"{what}: expected finite entries")
    return g


class SignSGD(_Euclidean):
    r"""The rule :math:`x \leftarrow x - h\,\mathrm{sign}(g)`."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, lr)

    def change(self, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        return g.sign()


class Lion(_Euclidean):
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

    def change(self, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        b1, b2 = o["betas"]
        m = state.get("m", torch.zeros_like(g))
        state["m"] = b2 * m + (1 - b2) * g
        return (b1 * m + (1 - b1) * g).sign()


class PolarMuon(_Euclidean):
    r"""Muon with the exact polar factor instead of Newton-Schulz iterations.

    .. math:: B \leftarrow \mu B + (1-\mu) G, \qquad X \leftarrow X - h\,UV^T,
        \quad B = U\Sigma V^T .

    A parameter of one axis counts as a matrix of one row.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95
    ) -> None:
        super().__init__(params, lr, momentum=momentum)

    def change(self, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        mu = o["momentum"]
        state["B"] = mu * state.get("B", torch.zeros_like(g)) + (1 - mu) * g
        B = state["B"]
        return polar(B.reshape(len(B), -1) if B.ndim > 1 else B[None]).view_as(g)


class Shampoo(_Euclidean):
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

    def change(self, g: Tensor, state: dict[str, Any], o: dict[str, Any]) -> Tensor:
        G = g.reshape(len(g), -1) if g.ndim > 1 else g[None]
        for name, S in (("L", G @ G.T), ("R", G.T @ G)):
            eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
            state[name] = state.get(name, o["accumulator"] * eye) + S
        L, R = root(state["L"], o["power"]), root(state["R"], o["power"])
        return (L @ G @ R).view_as(g)
