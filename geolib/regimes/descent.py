"""Training rules in discrete time: gradient descent and what is added to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from geolib.core.validation import expect


@dataclass(frozen=True)
class Rule:
    r"""A training rule is gradient descent, with momentum, weight decay or denoising.

    .. math:: V \leftarrow \beta V - \alpha \nabla L(W), \qquad W \leftarrow W + V ,
        \qquad L = \tfrac12 tr\, S (1 - A)^2 + \tfrac{s^2}2 tr\, A^2
        + \tfrac\lambda2 |W|^2

    The last two terms are part of what is descended and not of the losses that are
    returned. Times are :math:`t = k \alpha / (1 - \beta)` after k steps, the time of the
    gradient flow that many small steps take.

    Args:
        lr: the learning rate alpha.
        momentum: the factor beta, in [0, 1).
        decay: the weight decay lambda >= 0.
        noise: standard deviation s >= 0 of noise on the inputs (a denoising
            autoencoder); the term above is its mean.

    Raises:
        ValueError: a number outside its range.

    Source: :eq:`drv-regimes-rule` (derivations).

    Examples:
        >>> Rule(0.1, momentum=0.5).steps(np.array([0.0, 0.4])).tolist()
        [0, 2]
    """

    lr: float
    momentum: Annotated[float, "0 <= momentum < 1"] = 0.0
    decay: Annotated[float, "decay >= 0"] = 0.0
    noise: Annotated[float, "noise >= 0"] = 0.0

    @property
    def stride(self) -> float:
        """The time of one step."""
        return self.lr / (1 - self.momentum)

    def steps(self, times: np.ndarray) -> np.ndarray:
        """The numbers of steps at those times.

        Raises:
            ValueError: a time that is not a whole number of steps.
        """
        times = np.asarray(times, dtype=np.float64)
        counts = np.round(times / self.stride)
        off = np.abs(counts * self.stride - times) > 1e-6 * self.stride
        wanted = f"whole numbers of steps of {self.stride:g}"
        expect(not off.any(), "times", wanted, times[off][:1])
        return counts.astype(int)

    def grid(self, times: np.ndarray) -> np.ndarray:
        """The times moved to whole steps, each once."""
        return np.unique(np.round(times / self.stride)) * self.stride


def descend(law: Any, W: Tensor, rule: Rule, times: np.ndarray) -> tuple[Tensor, ...]:
    """Both losses (2, b, T) of a batch of runs, infinite once a run has diverged.

    Args:
        law: the losses and the flow, minus the gradient, with the weights as its state.
        W: (b, h, d) initial weights.
        rule: the steps.
        times: (T,) whole numbers of steps.
    """
    counts = rule.steps(times)
    if W.shape[1] > W.shape[2]:  # latents turn together: W = Q R, and Q stands still
        W = torch.linalg.qr(W, mode="r").R
    V, rows, done = torch.zeros_like(W), [], 0
    with torch.no_grad():
        for count in counts:
            for _ in range(count - done):
                push = law.flow(W) - rule.decay * W
                if rule.noise:
                    push -= 2 * rule.noise**2 * (W @ W.mT) @ W
                V = rule.momentum * V + rule.lr * push
                W = W + V
            done = count
            rows.append(torch.stack(law.losses(W, V, V)[:2]))
    found = torch.stack(rows, -1)
    return tuple(found.nan_to_num(nan=math.inf).where(found.abs() < 1e100, math.inf))
