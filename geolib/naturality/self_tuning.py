r"""How long a natural step is: a trust region, and damping by the reduction ratio."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from geolib.core import JacobianFactors
from geolib.core.validation import expect
from geolib.naturality.averaged_curvature import AveragedCurvature

SHIFT = 0.2  # a ratio from a fresh batch is low, and is taken so much higher
FIRST = {True: 30.0, False: 100.0}  # the damping of the first step: exact F, K-FAC
RANGE = (1e-4, 1e4)
FACTOR = 3.0  # the damping changes by at most so much at a step
REUSED = 1.5  # a Cholesky factor serves while the damping is within this factor
MEMORY = 0.8  # of the average loss
WORSE = 3.0  # a loss above so many averages undoes the last step,
BLAME = 0.5  # if its slope along that step is this share of it
EARLY = {True: 1 / 3, False: 2.0}  # steps to the next curvature, over those made
MOST = {True: 1, False: 3}  # and at most so many intervals
KEPT_SLOPE = 0.3  # K-FAC: the share of a step's slope that is to be left at its end,
RECENT = 0.8  # averaged with this memory;
GAIN = 0.1  # the damping follows the share by so much of its logarithm,
FALL, RISE = 0.1, 1.0  # falls by so much at most, and grows like this power of time


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
    Where K-FAC's metric stands for F there are more parameters than a batch tells of, and
    :math:`\rho` is full of its noise: :math:`\lambda` then follows the share of the
    slope that is left at the end of a step, :math:`d^Tg_+ / d^Tg`, which falls to zero
    when steps go around the minimum. Below 0.3 it raises :math:`\lambda`, like
    the number of steps at most; the rate of all steps together is
    :math:`1 / (1 + (1 - \mu)\lambda)`.
    :math:`\sigma^2` is the average squared residual, 1 for a likelihood. Of a squared
    loss :math:`\ell` the batch's own curvature is at least
    :math:`d^TF_bd \ge (g^Td)^2 / 2\ell` (Cauchy and Schwarz), and the length of d is
    taken to be no less. A step after which the loss is three times its average is undone,
    if it still rises along that step.

    Args:
        trust: :math:`\delta`.
        momentum: :math:`\mu`.
        interval: most steps from one curvature to the next.
    """

    KEPT = ("damping", "count", "fresh", "loss", "last", "slopes", "carried", "left")

    def __init__(
        self,
        trust: float = 0.05,
        momentum: float = 0.9,
        interval: int = 10,
    ) -> None:
        self.trust, self.momentum, self.interval = trust, momentum, interval
        self.curvature: AveragedCurvature | None = None
        self.damping, self.count, self.fresh = FIRST[True], 0, 0
        self.loss: float | None = None
        self.last: Tensor | None = None
        self.carried: Tensor | None = None  # M d of the last step
        self.slopes, self.ratio, self.left = (0.0, 0.0), 1.0, 1.0

    @property
    def due(self) -> bool:
        """Whether the next step wants the curvature of its batch."""
        return self.count >= self.fresh

    def judge(self, g: Tensor, loss: float) -> bool:
        """Compare the last step with its model; whether it stands."""
        mean = loss if self.loss is None else self.loss
        if self.last is None:
            wanted = "a finite loss at the start"
            expect(math.isfinite(loss), "closure", wanted, loss)
        bad, seen = False, min(loss, WORSE * mean)
        if self.last is not None:
            at_end = float(g @ self.last)
            # where the last step is to blame, the loss still rises along it
            bad = not math.isfinite(at_end) or not math.isfinite(loss)
            bad = bad or (loss > seen and at_end > BLAME * loss)
            start, model = self.slopes
            if bad or start + model >= 0:
                self.ratio = -1.0 if bad else 0.5
            else:
                self.ratio = (start + at_end) / (start + model)
            factor = 1 - (2 * max(-1.0, min(self.ratio + SHIFT, 2.0)) - 1) ** 3
            factor = max(1 / FACTOR, min(factor, FACTOR))
            if not (bad or self.curvature is None or self.curvature.exact):
                left = max(-1.0, min(at_end / start, 1.0)) if start < 0 else 0.0
                self.left += (1 - RECENT) * (left - self.left)
                change = min(GAIN * (KEPT_SLOPE - self.left), RISE / (self.count + 10))
                factor = math.exp(max(change, -FALL))
            self.damping = max(RANGE[0], min(self.damping * factor, RANGE[1]))
            if bad:
                return False
        self.loss = MEMORY * mean + (1 - MEMORY) * seen
        return True

    def learn(
        self, rows: JacobianFactors, exact: bool, loose: Tensor | None = None
    ) -> None:
        """Take the curvature of a batch into the average."""
        if self.curvature is None:
            self.curvature = AveragedCurvature(exact)
            self.damping *= FIRST[exact] / FIRST[True]
        self.curvature.add(rows, loose)
        self.curvature.factorise(self.damping)
        most = MOST[exact] * self.interval
        self.fresh = self.count + max(1, min(most, int(EARLY[exact] * self.count)))
        if self.last is not None:
            self.carried = self.curvature.metric(self.last)

    def propose(self, g: Tensor, unit: float, known: float | None = None) -> Tensor:
        r"""The displacement, (p,).

        Args:
            g: the gradient, (p,).
            unit: :math:`\sigma^2`.
            known: a squared loss, which bounds how little of this batch's curvature
                lies along d, as the average may not know of it.
        """
        C = self.curvature
        assert C is not None
        if not 1 / REUSED <= self.damping / C.damping <= REUSED:
            C.factorise(self.damping)
        force = -g
        if self.carried is not None:
            force = force.add(self.carried, alpha=C.damping * self.momentum)
        d = C.solve(force)
        carried = C.metric(d) if C.exact else force / (1 + C.damping)
        forward = force.sub(carried, alpha=C.damping)  # F d
        length = 0.5 * float(d @ forward)
        if known is not None:
            length = max(length, float(g @ d) ** 2 / (4 * known))
        cut = min(1.0, math.sqrt(self.trust * unit / max(length, 1e-300)))
        self.count += 1
        self.carried, self.forward = carried * cut, forward * cut
        return d * cut

    def remember(self, g: Tensor, d: Tensor | None, changed: bool = False) -> None:
        """Keep the displacement that was made, with its slopes at both ends.

        Args:
            g: the gradient, (p,).
            d: the displacement, None for one that was undone.
            changed: whether it is another than the one proposed.
        """
        self.last = d
        if d is None:
            self.carried = None
            return
        if changed and (C := self.curvature) is not None:
            self.carried, self.forward = C.metric(d), C.product(d)
        start = float(g @ d)
        self.slopes = start, start + float(d @ self.forward)

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        C = self.curvature
        kept = {k: getattr(self, k) for k in self.KEPT}
        return {**kept, "curvature": None if C is None else C.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        for k in self.KEPT:
            setattr(self, k, state[k])
        C = state["curvature"]
        self.curvature = None if C is None else AveragedCurvature.restored(C)
