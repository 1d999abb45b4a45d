"""Full Gaussian mixtures in any dimension, and expectation-maximization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.bump import check_finite


@dataclass(frozen=True)
class GaussianMixture:
    r"""A mixture of K Gaussians lives in d dimensions.

    .. math:: p(x) = \sum_k a_k\,N(x;\, m_k, \Sigma_k)

    Attributes:
        weights: (K,) positive, summing to 1.
        means: (K, d).
        covariances: (K, d, d) symmetric positive definite.

    Raises:
        ValueError: weights, shapes or covariances are not as stated.

    Source: :eq:`drv-stratifolds-gmm` (derivations).

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> standard = GaussianMixture(one, 0 * one[None], one[None, None])
        >>> round(standard.log_likelihood(0 * one[None]), 4)      # -log sqrt(2 pi)
        -0.9189
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        a, m, S = self.weights, self.means, self.covariances
        K = len(a)
        if m.ndim != 2 or len(m) != K or S.shape != (K, m.shape[1], m.shape[1]):
            raise ValueError(
                f"means, covariances: expected shapes ({K}, d) and ({K}, d, d), got "
                f"{tuple(m.shape)} and {tuple(S.shape)}"
            )
        if not bool((a >= 0).all()) or abs(float(a.sum()) - 1) > 1e-6:
            raise ValueError("weights: expected numbers in [0, 1] that sum to 1")
        if bool(torch.linalg.cholesky_ex(S)[1].any()):
            raise ValueError("covariances: expected positive definite matrices")

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n points, (n, d), drawn by NumPy."""
        import numpy as np

        rng = np.random.default_rng(seed)
        p = self.weights.double().cpu().numpy()
        which = torch.as_tensor(rng.choice(len(p), n, p=p / p.sum()))
        z = torch.as_tensor(rng.standard_normal((n, self.means.shape[1])))
        L = torch.linalg.cholesky(self.covariances)
        noise = torch.einsum("nij,nj->ni", L[which], z.to(L))
        return self.means[which] + noise

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened residuals (K, d, n) and log of the weighted densities (K, n)."""
        L = torch.linalg.cholesky(self.covariances)
        inverse = torch.linalg.inv(L)
        centre = (inverse @ self.means[..., None]).reshape(-1, 1)
        # one product for all components: (K d, d) against (d, n)
        y = torch.addmm(centre, inverse.reshape(len(centre), -1), x.T, beta=-1)
        y = y.reshape(*self.means.shape, -1)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        tiny = torch.finfo(x.dtype).tiny
        constant = self.weights.clamp_min(tiny).log() - log_det
        constant = constant - x.shape[1] / 2 * math.log(2 * math.pi)
        log_f = (y * y).sum(1).mul_(-0.5).add_(constant[:, None])
        return y, log_f

    def expectation(self, x: Tensor) -> tuple[float, Tensor, Tensor]:
        """One pass: mean log density, whitened residuals, responsibilities (K, n)."""
        y, log_f = self.whiten(x)
        top = log_f.amax(0)
        r = log_f.sub_(top).exp_()
        total = r.sum(0)
        return float((total.log() + top).mean()), y, r.div_(total)

    def log_likelihood(self, x: Tensor) -> float:
        """Mean log density of the data."""
        return self.expectation(x)[0]


@dataclass(frozen=True)
class MixtureFit:
    """A fit and how it got there.

    Attributes:
        mixture: the last iterate.
        log_likelihood: mean log density after each accepted iteration.
        iterations: passes over the data (each one evaluation of all densities).
        converged: whether the gain per iteration fell below `tol`.
        rejected: natural steps that would have lowered the likelihood.
    """

    mixture: GaussianMixture
    log_likelihood: tuple[float, ...]
    iterations: int
    converged: bool
    rejected: int = 0


def check_fit(x: Tensor, start: GaussianMixture) -> None:
    """Refuse data that cannot determine a mixture, or do not fit the start."""
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"data: expected shape (n >= 2, d), got {tuple(x.shape)}; "
            "one point has no maximum-likelihood mixture"
        )
    check_finite(x, "data")
    if x.shape[1] != start.means.shape[1]:
        raise ValueError(
            f"start: expected means in {x.shape[1]} dimensions like the data, got "
            f"{start.means.shape[1]}"
        )


def _gain(trace: list[float]) -> float:
    return trace[-1] - trace[-2]


def em_fit(
    x: Tensor,
    start: GaussianMixture,
    *,
    covariance: str = "full",
    steps: int = 1000,
    tol: float = 1e-9,
    target: float | None = None,
    rate: float | None = None,
) -> MixtureFit:
    r"""EM (expectation-maximization) fits a Gaussian mixture to data.

    .. math:: r_{kn} = \frac{a_k N(x_n; m_k, \Sigma_k)}{p(x_n)},\quad
              a_k = \bar r_k,\quad m_k = \frac{\overline{r_k x}}{a_k},\quad
              \Sigma_k = \frac{\overline{r_k (x-m_k)(x-m_k)^\top}}{a_k}

    Args:
        x: (n, d) data.
        start: first iterate.
        covariance: "full", "tied" (one matrix for all) or "fixed" (not updated).
        steps: largest number of iterations.
        tol: stop when the mean log-likelihood gains less.
        target: stop when it reaches this value.
        rate: stop when a pass gains more than this share of what the last one gained.
            EM converges linearly, at the rate of the missing information, so this is
            where it has become slow.

    Raises:
        ValueError: the data have the wrong shape, are not finite or fewer than two
            points, or `covariance` is unknown.

    Cost: n K d^2 an iteration.
    Source: Dempster, Laird, Rubin 1977.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = em_fit(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> fit.mixture.means.item(), round(fit.mixture.covariances.item(), 6)
        (2.0, 2.666667)
    """
    check_fit(x, start)
    if covariance not in ("full", "tied", "fixed"):
        raise ValueError(
            f"covariance: expected 'full', 'tied' or 'fixed', got {covariance!r}"
        )
    current, trace, converged = start, [], False
    d = x.shape[1]
    for it in range(steps + 1):
        value, y, r = current.expectation(x)
        trace.append(value)
        reached = target is not None and trace[-1] >= target
        small = it > 0 and _gain(trace) < tol
        slow = rate is not None and it > 1 and _gain(trace) > rate * _gain(trace[:-1])
        if reached or small or slow or it == steps:
            converged = reached or small
            break
        mass, share = r.mean(1), y * r[:, None]
        L = torch.linalg.cholesky(current.covariances)
        shift = share.mean(2) / mass[:, None]
        means = current.means + torch.einsum("kij,kj->ki", L, shift)
        S = current.covariances
        if covariance != "fixed":
            second = share @ y.transpose(1, 2) / len(x)
            second = second / mass[:, None, None]
            second = second - shift[:, :, None] * shift[:, None]
            S = L @ second @ L.transpose(1, 2)
            if covariance == "tied":
                S = torch.einsum("k,kij->ij", mass, S).expand(len(mass), d, d)
            S = (S + S.transpose(1, 2)) / 2
        current = GaussianMixture(mass / mass.sum(), means, S)
    return MixtureFit(current, tuple(trace), len(trace) - 1, converged)
