"""The sizes of a linear autoencoder and the ratios that decide its regime."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Setup:
    r"""A weight-tied linear autoencoder has two sizes, n samples and a start scale.

    .. math:: \rho = \sigma^2 h, \qquad \kappa = \sigma^2 d, \qquad c = d / n,
        \qquad \eta = h / d .

    The weights are :math:`W \in R^{h \times d}`, :math:`W_{ij} \sim N(0, \sigma^2)`;
    the data are n standard normal vectors of length d.

    Args:
        d: input dimension.
        h: latent dimension (width).
        n: number of training samples.
        sigma2: variance of one initial weight.

    Raises:
        ValueError: a size below one or not whole, or a variance that is not positive.

    Source: Golikov, Gusev and Yarotsky 2026; :eq:`eq-regimes-ratios`.

    Examples:
        >>> Setup(d=100, h=50, n=400, sigma2=0.01).ratios
        (0.5, 1.0, 0.25)
    """

    d: int
    h: int
    n: int
    sigma2: float

    def __post_init__(self) -> None:
        for name in ("d", "h", "n"):
            size = getattr(self, name)
            if isinstance(size, bool) or int(size) != size or size < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {size!r}")
            object.__setattr__(self, name, int(size))
        if not (math.isfinite(self.sigma2) and self.sigma2 > 0):
            raise ValueError(
                f"sigma2: expected a positive, finite variance, got {self.sigma2!r}"
            )

    @classmethod
    def from_ratios(
        cls, d: int, *, eta: float = 1.0, c: float = 1.0, kappa: float = 1.0
    ) -> Setup:
        """The setup of size `d` with h / d, d / n and sigma^2 d near what was asked.

        Examples:
            >>> Setup.from_ratios(64, eta=0.5, c=2, kappa=1)
            Setup(d=64, h=32, n=32, sigma2=0.015625)
        """
        for name, value in (("eta", eta), ("c", c), ("kappa", kappa)):
            positive(name, value)
        return cls(d, max(1, round(eta * d)), max(1, round(d / c)), kappa / d)

    @property
    def rho(self) -> float:
        """Mean eigenvalue of the initial map: sigma^2 h."""
        return self.sigma2 * self.h

    @property
    def kappa(self) -> float:
        """Squared length of one initial row: sigma^2 d."""
        return self.sigma2 * self.d

    @property
    def c(self) -> float:
        """Inputs per sample: d / n."""
        return self.d / self.n

    @property
    def eta(self) -> float:
        """Width per input: h / d."""
        return self.h / self.d

    @property
    def ratios(self) -> tuple[float, float, float]:
        """The triple (rho, kappa, c)."""
        return self.rho, self.kappa, self.c

    @property
    def rate(self) -> float:
        r"""The fast rate T of the flow: curves are functions of order one of T t.

        .. math:: T = \max(1, \kappa, \rho) \max(1, c)
        """
        return max(1.0, self.kappa, self.rho) * max(1.0, self.c)

    def times(self, count: int = 41, window: float = 3.0) -> np.ndarray:
        """`count` equally spaced times with T t running over [0, window]."""
        return np.linspace(0.0, window / self.rate, count)


def positive(name: str, value: float) -> float:
    """`value`, or a `ValueError` that names the argument."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive, finite number, got {value!r}")
    return float(value)


def check_times(times: ArrayLike) -> np.ndarray:
    """Times as a float64 vector: finite, from 0 or later, strictly increasing.

    Examples:
        >>> check_times([0.0, 2.0, 1.0])
        Traceback (most recent call last):
        ...
        ValueError: times: expected increasing values; entry 2 is 1.0 after 2.0
    """
    t = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if t.ndim != 1 or t.size == 0:
        raise ValueError(f"times: expected a non-empty vector, got shape {t.shape}")
    if not np.isfinite(t).all():
        raise ValueError("times: expected finite values, got NaN or infinity")
    if t[0] < 0:
        raise ValueError(f"times: expected a start at 0 or later, got {t[0]}")
    bad = np.flatnonzero(np.diff(t) <= 0)
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"times: expected increasing values; entry {i + 1} is {t[i + 1]} "
            f"after {t[i]}"
        )
    return t
