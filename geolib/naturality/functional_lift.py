r"""Any torch optimizer, lifted to output space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer
from geolib.naturality.local_geometry import LocalGeometry

Rule = Callable[[list[Tensor]], torch.optim.Optimizer]


class FunctionalLift(GeometricOptimizer):
    r"""Run a rule on the outputs; pull its step back by least squares.

    .. math:: z = f(x), \quad r = W^{+}d\ell, \quad
        \Delta z = \mathrm{rule}(z, r), \quad x \leftarrow x + F^{+}J^TW\,\Delta z .

    No reparameterization acts on outputs, so the rule's state is natural whatever the
    rule. Lifted SGD is natural gradient descent. It needs the full batch at every step.

    Args:
        rule: makes the inner optimizer from a list with the one output tensor, for
            example `lambda z: torch.optim.Adam(z, lr=0.1)`. Its `lr` is the step size.
        (others): see `GeometricOptimizer`.

    Source: :eq:`drv-naturality-lift` (derivations).

    Examples:
        >>> x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> opt = FunctionalLift([x], rule=lambda z: torch.optim.SGD(z, lr=0.5))
        >>> def closure():
        ...     z = 7 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 12)
        1.5
    """

    def __init__(self, params: Iterable[Any], *, rule: Rule, **options: Any) -> None:
        self.rule = rule
        self.inner: torch.optim.Optimizer | None = None
        self._pending: dict[str, Any] | None = None
        super().__init__(params, 1.0, **options)

    def _inner(self, q: LocalGeometry) -> tuple[torch.optim.Optimizer, Tensor]:
        inner = self.inner
        if inner is None:
            self.shadow = q.z.clone().requires_grad_()
            inner = self.inner = self.rule([self.shadow])
            if self._pending is not None:
                inner.load_state_dict(self._pending)
                self._pending = None
        if self.shadow.shape != q.z.shape:
            raise ValueError(
                f"closure: outputs of shape {tuple(q.z.shape)}, but the lift holds "
                f"{tuple(self.shadow.shape)}; it needs the full batch at every step"
            )
        return inner, self.shadow

    def update(self, q: LocalGeometry) -> Tensor:
        inner, shadow = self._inner(q)
        with torch.no_grad():
            shadow.copy_(q.z)
        shadow.grad = q.raise_index(q.dl)
        inner.step()
        dz = (shadow - q.z).detach()
        return self.options["lr"] * self.solve(q, q.lower(dz))

    def state_dict(self) -> dict[str, Any]:
        """Return the usual dictionary, with the inner optimizer's under `inner`."""
        inner = self._pending if self.inner is None else self.inner.state_dict()
        return {**super().state_dict(), "inner": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers; the inner one is made at the next step."""
        state = dict(state_dict)
        self._pending = state.pop("inner", None)
        self.inner = None
        super().load_state_dict(state)
