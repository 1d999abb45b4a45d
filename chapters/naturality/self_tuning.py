r"""How long a natural step is: a trust region, and damping by the reduction ratio."""

from __future__ import annotations

import math
from typing import Any

from averaged_curvature import AveragedCurvature
from torch import Tensor

from geolib.core import JacobianFactors

SHIFT = 0.2  # a ratio from a fresh batch is low, and is taken so much higher
FIRST = 30.0  # the damping of the first step
RANGE = (1e-4, 1e4)
FACTOR = 3.0  # the damping changes by at most so much at a step
MEMORY = 0.8  # of the average loss
WORSE = 3.0  # a loss above so many averages undoes the last step


class SelfTuning:
    r"""The displacement of one step, and what it learns from the next gradient.

    .. math:: d = (\bar F + \lambda M)^{-1}(\lambda\mu M d_- - g), \qquad
        \tfrac12 d^T \bar F d \le \delta\sigma^2, \qquad
        \rho = \frac{d^T(g + g_+)}{d^T(2g + \bar F d)} .

    d minimises the quadratic model with a spring to :math:`\mu d_-`, the step before,
    a vector: momentum where the damping is large, and none where the model is trusted.
    :math:`\rho` compares the decrease that the gradients at both ends of the last step
    tell (the trapezoid rule; the next gradient :math:`g_+` is there anyway, and knows
    nothing of the old batch) with the model's, and
    :math:`\lambda` is multiplied by :math:`1 - (2\rho - 0.6)^3`, within a factor of three.
    :math:`\sigma^2` is the average squared residual, 1 for a likelihood. A step after
    which the loss is three times its average is undone.

    Args:
        trust: :math:`\delta`.
        momentum: :math:`\mu`.
        interval: steps from one curvature to the next.
    """

    def __init__(self, trust: float, momentum: float, interval: int) -> None:
        for name, value, top in (("trust", trust, math.inf), ("momentum", momentum, 1)):
            if not 0 <= value < top or (name == "trust" and value == 0):
                raise ValueError(
                    f"{name}: expected a number in (0, {top}), got {value}"
                )
        if interval < 1:
            raise ValueError(f"interval: expected at least 1 step, got {interval}")
        self.trust, self.momentum, self.interval = trust, momentum, interval
        self.curvature: AveragedCurvature | None = None
        self.damping, self.count = FIRST, 0
        self.loss: float | None = None
        self.last: Tensor | None = None
        self.slopes, self.ratio = (0.0, 0.0), 1.0

    @property
    def due(self) -> bool:
        """Whether the next step wants the curvature of its batch."""
        if self.count < self.interval or self.count % self.interval == 0:
            return True
        assert self.curvature is not None
        ratio = self.damping / self.curvature.damping
        return not 1 / FACTOR < ratio < FACTOR

    def judge(self, g: Tensor, loss: float) -> bool:
        """Compare the last step with its model; whether it stands."""
        mean = loss if self.loss is None else self.loss
        if self.last is None and not math.isfinite(loss):
            raise ValueError(
                f"closure: expected a finite loss at the start, got {loss}"
            )
        bad = not math.isfinite(loss) or loss > WORSE * mean
        if self.last is not None:
            at_end = float(g @ self.last)
            bad = bad or not math.isfinite(at_end)
            start, model = self.slopes
            if bad or start + model >= 0:
                self.ratio = -1.0 if bad else 0.5
            else:
                self.ratio = (start + at_end) / (start + model)
            factor = 1 - (2 * max(-1.0, min(self.ratio + SHIFT, 2.0)) - 1) ** 3
            factor = max(1 / FACTOR, min(factor, FACTOR))
            self.damping = max(RANGE[0], min(self.damping * factor, RANGE[1]))
        if bad and self.last is not None:
            return False
        self.loss = MEMORY * mean + (1 - MEMORY) * loss
        return True

    def learn(
        self, rows: JacobianFactors, exact: bool, loose: Tensor | None = None
    ) -> None:
        """Take the curvature of a batch into the average."""
        if self.curvature is None:
            self.curvature = AveragedCurvature(exact)
        self.curvature.add(rows, loose)
        self.curvature.factorise(self.damping)

    def propose(self, g: Tensor, unit: float) -> Tensor:
        """The displacement, (p,), in float64.

        Args:
            g: the gradient, (p,), in float64.
            unit: :math:`\\sigma^2`.
        """
        C = self.curvature
        assert C is not None
        force = -g
        if self.last is not None:
            force = force + C.damping * self.momentum * C.metric(self.last)
        d = C.solve(force)
        length = 0.5 * float(d @ C.product(d))
        d = d * min(1.0, math.sqrt(self.trust * unit / max(length, 1e-300)))
        self.count += 1
        return d

    def remember(self, g: Tensor, d: Tensor | None) -> None:
        """Keep the displacement that was made, with its slopes at both ends."""
        self.last = d
        if d is not None:
            assert self.curvature is not None
            start = float(g @ d)
            self.slopes = start, start + float(d @ self.curvature.product(d))

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        kept = ("damping", "count", "loss", "last", "slopes")
        curvature = None if self.curvature is None else self.curvature.state()
        return {**{k: getattr(self, k) for k in kept}, "curvature": curvature}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave; the next step takes its curvature anew."""
        for k in ("damping", "count", "loss", "last", "slopes"):
            setattr(self, k, state[k])
        self.curvature = None
        if (kept := state["curvature"]) is not None:
            self.curvature = AveragedCurvature(kept["exact"])
            self.curvature.count = kept["count"]
            self.curvature.averages = [t.clone() for t in kept["averages"]]
