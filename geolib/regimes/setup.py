"""The sizes of a linear autoencoder and the ratios that decide its regime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from geolib.core.validation import expect


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

    d: Annotated[int, "d >= 1"]
    h: Annotated[int, "h >= 1"]
    n: Annotated[int, "n >= 1"]
    sigma2: Annotated[float, "0 < sigma2 <= 1e50"]

    @classmethod
    def from_ratios(
        cls,
        d: int,
        *,
        eta: Annotated[float, "eta > 0"] = 1.0,
        c: float = 1.0,
        kappa: float = 1.0,
    ) -> Setup:
        """The setup of size `d` with h / d, d / n and sigma^2 d near what was asked.

        Examples:
            >>> Setup.from_ratios(64, eta=0.5, c=2, kappa=1)
            Setup(d=64, h=32, n=32, sigma2=0.015625)
        """
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


def first_loss(setup: Setup, goal: float = 1.0) -> float:
    """Twice the expected loss at time 0 over the trace of S or of the population; with
    0 for its goal that of the free flow.

    Examples:
        >>> first_loss(Setup(1, 1, 1, 1.0))  # E (1 - w^2)^2 with E w^4 = 3
        2.0
    """
    rho, kappa, _ = setup.ratios
    return goal - 2 * goal * rho + rho * (rho + kappa + setup.sigma2)


def check_times(times: ArrayLike, name: str = "times") -> np.ndarray:
    """Times as a float64 vector: finite, from 0 or later, strictly increasing.

    Examples:
        >>> check_times([0.0, 2.0, 1.0])
        Traceback (most recent call last):
        ...
        geolib.files.ArgumentError: times: expected finite numbers that
        increase from 0 or later, got [0.0, 2.0, 1.0]
    """
    t = np.atleast_1d(np.asarray(times, dtype=np.float64))
    fits = t.ndim == 1 and t.size and t[0] >= 0 and t[-1] < np.inf
    wanted = "finite numbers that increase from 0 or later"
    expect(fits and (np.diff(t) > 0).all(), name, wanted, t.tolist())
    return t


def check_covariance(P: ArrayLike, d: int, name: str = "population") -> np.ndarray:
    """A covariance of d coordinates as float64: symmetric, no eigenvalue below zero.

    Examples:
        >>> check_covariance([[-1.0]], 1)
        Traceback (most recent call last):
        ...
        geolib.files.ArgumentError: population: expected a symmetric matrix, no
        eigenvalue below zero, got [[-1.0]]
    """
    P = np.asarray(P, dtype=np.float64)
    expect(P.shape == (d, d), name, f"shape {(d, d)}", P.shape)
    least, most = np.linalg.eigvalsh(P)[[0, -1]]
    fits = least >= -1e-9 * most and np.allclose(P, P.T, atol=1e-6 * most)
    expect(fits, name, "a symmetric matrix, no eigenvalue below zero", P.tolist())
    return P
