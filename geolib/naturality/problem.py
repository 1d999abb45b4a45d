r"""A training problem, and the same problem in other coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from geolib.core import Linearization, Realization
from geolib.core.validation import expect
from geolib.naturality.local_geometry import LocalGeometry, flatten
from geolib.naturality.losses import Loss
from geolib.naturality.reparameterization import Reparameterization


@dataclass(frozen=True)
class Problem:
    r"""A parametric family on fixed data, with a loss: :math:`(\Theta, f, \ell, W)`.

    Attributes:
        outputs: the function :math:`f`, from (p,) to (n, c).
        loss: :math:`\ell` and its metric W.
        theta0: the starting point, (p,).
        shapes: of the parameter tensors that an optimizer will see.
        module: the network behind it, if any (for layer-wise methods).
        probe: outputs on other inputs, (p,) to (m, c), for comparisons off the data.
        data: the inputs, if a module is to be called on them.

    Source: :eq:`drv-naturality-category` and :eq:`drv-naturality-problem` (derivations).
    """

    outputs: Callable[[Tensor], Tensor]
    loss: Loss
    theta0: Tensor
    shapes: tuple[torch.Size, ...]
    module: nn.Module | None = None
    probe: Callable[[Tensor], Tensor] | None = None
    data: Any = None

    @classmethod
    def of(
        cls, module: nn.Module | Realization, x: Any, loss: Loss, probe: Any = None
    ) -> Problem:
        """Return the problem of a module on inputs x; `probe`: further inputs.

        Raises:
            ValueError: what `geolib.core.Realization` refuses (no parameters, layers
                that mix samples or draw at random).
        """
        R = module if isinstance(module, Realization) else Realization(module)
        other = None if probe is None else (lambda t: R(t, probe))
        start, shapes = R.theta0.detach().clone(), tuple(R.shapes)
        return cls(lambda t: R(t, x), loss, start, shapes, R.module, other, x)

    def at(self, theta0: Tensor) -> Problem:
        """Return the same problem started elsewhere."""
        wanted, got = tuple(self.theta0.shape), tuple(theta0.shape)
        expect(wanted == got, "theta0", f"shape {wanted}", got)
        return replace(self, theta0=theta0)

    def push(self, phi: Reparameterization) -> Problem:
        r"""Return the problem in the coordinates :math:`\psi = \phi(\theta)`."""
        probe = self.probe
        return replace(
            self,
            outputs=lambda y: self.outputs(phi.inverse(y)),
            theta0=phi.forward(self.theta0).detach(),
            probe=None if probe is None else (lambda y: probe(phi.inverse(y))),
            module=None,
        )

    def leaves(self) -> list[Tensor]:
        """Return the starting point cut into fresh leaf tensors of the module's shapes."""
        return [q.detach().clone().requires_grad_() for q in self._cut(self.theta0)]

    def point(self, theta: Tensor, rtol: float = 1e-10) -> LocalGeometry:
        """Return the geometry at theta."""
        parts = self.at(theta).leaves()
        z = self.outputs(flatten(parts))
        return LocalGeometry(z, self.loss(z), parts, self.loss.output_metric, rtol)

    def points_in(
        self, maps: Sequence[Reparameterization], ys: Sequence[Tensor]
    ) -> list[LocalGeometry]:
        """Return the geometry at each y in the chart of its map, by one forward pass.

        Args:
            maps: the charts.
            ys: a point in each, (p,).

        Raises:
            ValueError: a point of another shape.

        Cost: one batched forward pass, and p batched tangents for all Jacobians.
        """
        leaf = torch.stack([self.at(y).theta0 for y in ys]).detach().requires_grad_()
        parts = [self._cut(y) for y in leaf]
        back = [f.inverse(flatten(q)) for f, q in zip(maps, parts, strict=True)]
        outputs = torch.func.vmap(self.outputs)(torch.stack(back))
        k, p = leaf.shape
        unit = torch.eye(p).to(leaf)[:, None].expand(p, k, p).reshape(p, -1)
        tangents = Linearization(outputs, {"y": leaf}).jvp(unit)
        found = []
        for z, q, J in zip(outputs, parts, tangents.unbind(1), strict=True):
            found.append(LocalGeometry(z, self.loss(z), q, self.loss.output_metric))
            found[-1].J = J.T
        return found

    def _cut(self, theta: Tensor) -> list[Tensor]:
        pieces = theta.split([s.numel() for s in self.shapes])
        return [q.view(s) for q, s in zip(pieces, self.shapes, strict=True)]
