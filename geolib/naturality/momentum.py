r"""Momentum that is transported, not merely stored: four definitions, one integrator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor

from geolib.core.validation import expect
from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry


class HeavyBall(GeometricOptimizer):
    r"""Euclidean momentum as a flow: the audit's control.

    .. math:: v \leftarrow e^{-\gamma h}v - h g, \qquad x \leftarrow x + h v .

    No map of states makes it natural beyond rigid motions.

    Args:
        friction: :math:`\gamma`, per unit of time.
        initial: the momentum at the start, flat (p,); zero when None.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a negative friction, or an initial momentum of another shape.

    Source: :eq:`drv-naturality-no-lift-ball` (derivations).

    Examples:
        >>> import torch
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> opt = HeavyBall([x], lr=0.5, friction=0.0)
        >>> def closure():
        ...     z = x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> x.item(), opt.memory["velocity"].item()
        (0.75, -0.5)
    """

    tags: ClassVar[Mapping[str, str]] = {"velocity": "vector"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        friction: float = 1.0,
        initial: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, friction=friction, **options)
        p = sum(t.numel() for t in self.leaves)
        if initial is not None:
            shape = tuple(initial.shape)
            expect(shape == (p,), "initial", f"shape ({p},), as params", shape)
            (slot,) = self.tags
            self.memory[slot] = initial.detach().clone()

    def velocity(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> Tensor:
        return s["velocity"]

    def drive(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> State:
        return {"velocity": -q.g}


class NaturalMomentum(HeavyBall):
    r"""Momentum as a velocity, with its covariant derivative.

    .. math:: v \leftarrow e^{-\gamma h}v - h\,F^{+}\bigl(g + [vv, \cdot\,]\bigr),
        \qquad x \leftarrow x + h v .

    The flow is :math:`\nabla_{\dot x}\dot x = -\gamma\dot x - F^{-1}g`, a damped
    geodesic in a potential: natural as a flow on the tangent bundle. With
    `connection=False` the Christoffel term is left out (the usual "natural gradient
    with momentum"), which is natural under affine maps only.

    Args:
        friction: :math:`\gamma`, per unit of time.
        initial: the velocity at the start, flat (p,); zero when None.
        connection: whether to keep the Christoffel term.
        (others): see `GeometricOptimizer`.

    Cost: one step of `NaturalGradient` and one second derivative of f along v.

    Source: :eq:`drv-naturality-momentum` (derivations).

    Examples:
        >>> import torch
        >>> x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        >>> from geolib.core import Euclidean
        >>> one = torch.ones(1).double()
        >>> opt = NaturalMomentum([x], lr=0.1, initial=one, output_metric=Euclidean())
        >>> def closure():  # f = e^x: without force e^x grows at a constant rate
        ...     z = x.exp().view(1, 1)
        ...     return z, 0.0 * z.sum()
        >>> opt.options["friction"] = 0.0
        >>> loss = opt.step(closure)
        >>> round(opt.memory["velocity"].item(), 6)  # v' = -v^2
        0.9
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        connection: bool = True,
        **o: Any,
    ) -> None:
        self.connection = connection
        super().__init__(params, lr, **o)

    def drive(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> State:
        v, force = s["velocity"], q.dl
        if self.connection:
            force = force + q.christoffel_on_outputs(v, v)
        return {"velocity": -self.solve(q, force)}
