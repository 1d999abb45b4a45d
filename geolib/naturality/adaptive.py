r"""Adam and AdaGrad made natural: scalars for squares, transport for averages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geolib.naturality.base import PointOptimizer, positive
from geolib.naturality.point import Point


class NaturalAdam(PointOptimizer):
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

    Source: the paper announces a simple way to make algorithms natural (abstract, v);
        its body was not available, and this construction is this chapter's own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        connection: bool = True,
        **options: Any,
    ) -> None:
        for k, b in enumerate(betas):
            if not 0 <= b < 1:
                raise ValueError(f"betas[{k}]: expected a number in [0, 1), got {b}")
        positive("eps", eps, zero=True)
        self.connection = connection
        super().__init__(params, lr, betas=tuple(betas), eps=eps, **options)

    def update(self, q: Point) -> Tensor:
        mem, (b1, b2) = self.memory, self.options["betas"]
        m = mem.get("m", torch.zeros_like(q.g))
        s = mem.get("s", q.g.new_zeros(()))
        t = int(mem.get("t", 0)) + 1
        m = b1 * m + (1 - b1) * q.g
        s = b2 * s + (1 - b2) * torch.dot(q.g, self.solve(q, q.dl))
        u = self.solve(q, m)
        scale = (s / (1 - b2**t)).clamp(min=0).sqrt() + self.options["eps"]
        dx = -self.options["lr"] * u / (1 - b1**t) / scale
        if self.connection:
            m = q.transport(m, u, dx)
        mem["m"], mem["s"], mem["t"] = m, s, t
        return dx


class NaturalAdaGrad(PointOptimizer):
    r"""AdaGrad with the accumulated squared length of the gradient.

    .. math:: s \leftarrow s + g^TF^{+}g, \qquad
        x \leftarrow x - h\,\frac{F^{+}g}{\sqrt{s} + \epsilon} .

    Args:
        initial: the accumulator's initial value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        initial: float = 0.0,
        eps: float = 1e-10,
        **options: Any,
    ) -> None:
        positive("initial", initial, zero=True)
        positive("eps", eps, zero=True)
        super().__init__(params, lr, initial=initial, eps=eps, **options)

    def update(self, q: Point) -> Tensor:
        n = self.solve(q, q.dl)
        s = self.memory.get("s", q.g.new_tensor(self.options["initial"]))
        s = s + torch.dot(q.g, n)
        self.memory["s"] = s
        return -self.options["lr"] * n / (s.sqrt() + self.options["eps"])
