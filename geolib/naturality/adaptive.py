r"""Adam and AdaGrad made natural: scalars for squares, transport for averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from geolib.naturality.geometric_optimizer import GeometricOptimizer, State
from geolib.naturality.local_geometry import LocalGeometry


class NaturalAdam(GeometricOptimizer):
    r"""Adam with every Euclidean object replaced by a tensor.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \qquad
        s \leftarrow \beta_2 s + (1-\beta_2)\, g^TF^{+}g,

    .. math:: \Delta x = -h\,\frac{F^{+}\hat m}{\sqrt{\hat s} + \epsilon}, \qquad
        m \leftarrow m + [\,\cdot\,\Delta x, F^{+}m] .

    The elementwise second moment becomes the squared length of the gradient, a
    scalar; the average of covectors is carried along by parallel transport (left out
    with `connection=False`).

    Args:
        betas, eps: as in Adam.
        connection: whether the average is carried along.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a beta outside [0, 1), or a negative eps.

    Source: :eq:`drv-naturality-adam` (derivations); this chapter's own construction.

    Examples:
        >>> x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> opt = NaturalAdam([x], lr=0.5, eps=0.0)
        >>> def closure():
        ...     z = x.view(2, 1)
        ...     return z, 0.25 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> [round(v, 6) for v in x.tolist()]  # a step of length h sqrt 2 in F = I/2
        [2.575736, 3.434315]
    """

    tags: ClassVar[Mapping[str, str]] = {"m": "covector", "s": "scalar"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        betas: Annotated[tuple[float, float], "0 <= betas < 1"] = (0.9, 0.999),
        eps: Annotated[float, "0 <= eps < inf"] = 1e-8,
        connection: bool = True,
        **options: Any,
    ) -> None:
        self.connection = connection
        super().__init__(params, lr, betas=tuple(betas), eps=eps, **options)

    def _velocity(self, u: Tensor, s: Tensor) -> Tensor:
        """The velocity of an average with raised index u and a squared length s."""
        return -u / (s.clamp(min=0).sqrt() + self.options["eps"])

    def velocity(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> Tensor:
        return self._velocity(self.solve(q, s["m"]), s["s"])

    def initial(self, q: LocalGeometry) -> State:
        return {"m": torch.zeros_like(q.g), "s": q.g.new_zeros(())}

    def rate(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> State:
        h = self.options["lr"]
        tau = [-h / math.log(b) for b in self.options["betas"]]
        u = self.solve(q, s["m"])
        dx = self._velocity(u, s["s"])
        m = (q.g - s["m"]) / tau[0]
        if self.connection:
            m = q.transport(m, u, dx)
        length = torch.dot(q.g, self.natural_gradient(q))
        return {"x": dx, "m": m, "s": (length - s["s"]) / tau[1]}

    def update(self, q: LocalGeometry) -> Tensor:
        mem, (b1, b2) = self.memory, self.options["betas"]
        start = self.initial(q)
        t = int(mem.get("t", 0)) + 1
        m = b1 * mem.get("m", start["m"]) + (1 - b1) * q.g
        length = torch.dot(q.g, self.natural_gradient(q))
        s = b2 * mem.get("s", start["s"]) + (1 - b2) * length
        u = self.solve(q, m)
        corrected = self._velocity(u / (1 - b1**t), s / (1 - b2**t))
        dx = self.options["lr"] * corrected
        if self.connection:
            m = q.transport(m, u, dx)
        mem["m"], mem["s"], mem["t"] = m, s, t
        return dx


class NaturalAdaGrad(GeometricOptimizer):
    r"""AdaGrad with the accumulated squared length of the gradient.

    .. math:: s \leftarrow s + g^TF^{+}g, \qquad
        x \leftarrow x - h\,\frac{F^{+}g}{\sqrt{s} + \epsilon} .

    Args:
        initial: the accumulator's initial value.
        eps: added to its root.
        (others): see `GeometricOptimizer`.

    Raises:
        ValueError: a negative `initial` or `eps`.

    Source: :eq:`drv-naturality-adam` (derivations); this chapter's own construction.

    Examples:
        >>> x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        >>> opt = NaturalAdaGrad([x], lr=0.5, eps=0.0)
        >>> def closure():
        ...     z = 7 * x.view(1, 1)
        ...     return z, 0.5 * (z**2).sum()
        >>> loss = opt.step(closure)
        >>> round(x.item(), 6)  # a first step has length h in the metric F = 49
        2.928571
    """

    tags: ClassVar[Mapping[str, str]] = {"s": "scalar"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        initial: Annotated[float, "0 <= initial < inf"] = 0.0,
        eps: Annotated[float, "0 <= eps < inf"] = 1e-10,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, initial=initial, eps=eps, **options)

    def initial(self, q: LocalGeometry) -> State:
        return {"s": q.g.new_tensor(self.options["initial"])}

    def gains(self) -> tuple[float, float]:
        return 1.0, 1.0  # a sum, not an average: s = O(1/h) when lr = sqrt(h)

    def velocity(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> Tensor:
        return -self.natural_gradient(q) / (s["s"].sqrt() + self.options["eps"])

    def drive(self, q: LocalGeometry, s: Annotated[State, "tags"]) -> State:
        return {"s": torch.dot(q.g, self.natural_gradient(q))}
