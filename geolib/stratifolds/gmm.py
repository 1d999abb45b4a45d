"""Full Gaussian mixtures in any dimension: EM, and a damped natural gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.descent import natural_step


@dataclass(frozen=True)
class GaussianMixture:
    r"""A mixture of K Gaussians in d dimensions.

    .. math:: p(x) = \sum_k a_k\,N(x;\, m_k, \Sigma_k)

    Attributes:
        weights: (K,) positive, summing to 1.
        means: (K, d).
        covariances: (K, d, d) symmetric positive definite.

    Raises:
        ValueError: weights, shapes or covariances that are not as stated.

    Source: definition. Cost: none.
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
        p = self.weights.double().numpy()
        which = torch.as_tensor(rng.choice(len(p), n, p=p / p.sum()))
        z = torch.as_tensor(rng.standard_normal((n, self.means.shape[1])))
        L = torch.linalg.cholesky(self.covariances)
        noise = torch.einsum("nij,nj->ni", L[which], z.to(L))
        return self.means[which] + noise

    def whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened residuals (K, d, n) and log of the weighted densities (K, n)."""
        L = torch.linalg.cholesky(self.covariances)
        inverse = torch.linalg.inv(L)
        y = inverse @ x.T - (inverse @ self.means[..., None])
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        tiny = torch.finfo(x.dtype).tiny
        constant = self.weights.clamp_min(tiny).log() - log_det
        constant = constant - x.shape[1] / 2 * math.log(2 * math.pi)
        log_f = (y * y).sum(1).mul_(-0.5).add_(constant[:, None])
        return y, log_f

    def log_likelihood(self, x: Tensor) -> float:
        """Mean log density of the data."""
        return float(torch.logsumexp(self.whiten(x)[1], 0).mean())


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


def _check(x: Tensor, start: GaussianMixture) -> None:
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"data: expected shape (n >= 2, d), got {tuple(x.shape)}; "
            "one point has no maximum-likelihood mixture"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("data: expected finite numbers, got NaN or infinity")
    if x.shape[1] != start.means.shape[1]:
        raise ValueError(
            f"start: expected means in {x.shape[1]} dimensions like the data, got "
            f"{start.means.shape[1]}"
        )


def em_fit(
    x: Tensor,
    start: GaussianMixture,
    *,
    covariance: str = "full",
    steps: int = 1000,
    tol: float = 1e-9,
    target: float | None = None,
) -> MixtureFit:
    r"""Expectation-maximization for data.

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

    Raises:
        ValueError: data of the wrong shape, not finite or fewer than two points, or an
            unknown `covariance`.

    Source: Dempster, Laird, Rubin 1977. Cost: n K d^2 an iteration.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = em_fit(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> fit.mixture.means.item(), round(fit.mixture.covariances.item(), 6)
        (2.0, 2.666667)
    """
    _check(x, start)
    if covariance not in ("full", "tied", "fixed"):
        raise ValueError(
            f"covariance: expected 'full', 'tied' or 'fixed', got {covariance!r}"
        )
    current, trace, converged = start, [], False
    d = x.shape[1]
    for it in range(steps + 1):
        y, log_f = current.whiten(x)
        log_p = torch.logsumexp(log_f, 0)
        trace.append(float(log_p.mean()))
        reached = target is not None and trace[-1] >= target
        small = it > 0 and trace[-1] - trace[-2] < tol
        if reached or small or it == steps:
            converged = reached or small
            break
        r = log_f.sub_(log_p).exp_()
        mass = r.mean(1)
        L = torch.linalg.cholesky(current.covariances)
        shift = torch.einsum("kn,kdn->kd", r, y) / (len(x) * mass[:, None])
        means = current.means + torch.einsum("kij,kj->ki", L, shift)
        S = current.covariances
        if covariance != "fixed":
            second = (y * r[:, None]) @ y.transpose(1, 2) / len(x)
            second = second / mass[:, None, None]
            second = second - shift[:, :, None] * shift[:, None]
            S = L @ second @ L.transpose(1, 2)
            if covariance == "tied":
                S = torch.einsum("k,kij->ij", mass, S).expand(len(mass), d, d)
            S = (S + S.transpose(1, 2)) / 2
        current = GaussianMixture(mass / mass.sum(), means, S)
    return MixtureFit(current, tuple(trace), len(trace) - 1, converged)


def _scores(r: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Per-point scores in whitened coordinates, (n, P)."""
    K, d, n = y.shape
    logits = (r - weights[:, None])[1:]
    shifts = (r[:, None] * y).reshape(K * d, n)
    i, j = torch.tril_indices(d, d)
    # S is symmetric: an off-diagonal entry acts twice
    products = y[:, i] * y[:, j] - (i == j).to(y)[:, None]
    factor = torch.where(i == j, 0.5, 1.0).to(y)
    shapes = (r[:, None] * products * factor[:, None]).reshape(-1, n)
    return torch.cat([logits, shifts, shapes]).T


def _move(current: GaussianMixture, step: Tensor) -> GaussianMixture:
    """Apply a step given in the whitened coordinates of the current iterate."""
    K, d = current.means.shape
    L = torch.linalg.cholesky(current.covariances)
    logits = current.weights.log()
    logits = logits + torch.cat([torch.zeros_like(step[:1]), step[: K - 1]])
    shift = step[K - 1 : K - 1 + K * d].reshape(K, d)
    i, j = torch.tril_indices(d, d)
    S = torch.zeros_like(L)
    S[:, i, j] = step[K - 1 + K * d :].reshape(K, -1)
    S[:, j, i] = S[:, i, j]
    root = L @ (torch.eye(d, dtype=L.dtype, device=L.device) + S / 2)
    cov = root @ root.transpose(1, 2)
    means = current.means + torch.einsum("kij,kj->ki", L, shift)
    cov = (cov + cov.transpose(1, 2)) / 2
    return GaussianMixture(torch.softmax(logits, 0), means, cov)


def natural_fit(
    x: Tensor,
    start: GaussianMixture,
    *,
    steps: int = 200,
    tol: float = 1e-9,
    target: float | None = None,
    damping: float = 1e-3,
    fisher_rows: int = 20000,
    reach: float = 1.0,
) -> MixtureFit:
    r"""A damped natural gradient for data, with the mixture's own Fisher matrix.

    .. math:: \delta = (F + \lambda\,\mathrm{diag}F)^{-1}\,\overline{s}, \qquad
              F = \overline{s s^\top}, \quad
              m_k \leftarrow m_k + L_k\delta_m,\quad
              \Sigma_k \leftarrow L_k (I + \tfrac12 \delta_S)^2 L_k^\top

    EM is the same step with the Fisher matrix of the *labelled* data, which is block
    diagonal and too large where components overlap: there EM crawls, and this does not.
    The damping grows when a step would lower the likelihood and shrinks otherwise.

    Args:
        x: (n, d) data.
        start: first iterate; all weights positive.
        steps: largest number of passes over the data.
        tol: stop when the mean log-likelihood gains less.
        target: stop when it reaches this value.
        damping: first :math:`\lambda`.
        fisher_rows: F is averaged over an even subsample of about this size.
        reach: no whitened coordinate moves further than this in one step.

    Raises:
        ValueError: as `em_fit`, or a start with a zero weight.

    Source: Amari's natural gradient with Levenberg's damping; whitened coordinates
    ours. Cost: n K d^2 + fisher_rows P^2 an iteration.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = natural_fit(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> round(fit.mixture.means.item(), 3), round(fit.mixture.covariances.item(), 3)
        (2.0, 2.667)
    """
    _check(x, start)
    if not bool((start.weights > 0).all()) or damping <= 0:
        raise ValueError("start, damping: expected positive weights and damping")
    stride = max(1, len(x) // fisher_rows)
    current, lam, rejected, converged = start, damping, 0, False
    y, log_f = current.whiten(x)
    log_p = torch.logsumexp(log_f, 0)
    trace, passes = [float(log_p.mean())], 1
    g, F = _metric(current, y, log_f, log_p, stride)
    while passes < steps:
        if target is not None and trace[-1] >= target:
            converged = True
            break
        # Levenberg's scaling; the floor keeps an eliminated component solvable
        D = torch.diag(F.diagonal() + 1e-12 * F.diagonal().max())
        step = natural_step((F + lam * D)[None], g[None], 1e-14)[0]
        step = step * min(1.0, reach / float(step.abs().max().clamp_min(1e-300)))
        trial = _move(current, step)
        y, log_f = trial.whiten(x)
        log_p = torch.logsumexp(log_f, 0)
        passes += 1
        value = float(log_p.mean())
        if not value >= trace[-1]:
            rejected, lam = rejected + 1, lam * 10
            if lam > 1e12:
                converged = True  # no ascent direction is left at this precision
                break
            continue
        gain = value - trace[-1]
        current, lam = trial, max(lam / 5, 1e-9)
        trace.append(value)
        if gain < tol:
            converged = True
            break
        g, F = _metric(current, y, log_f, log_p, stride)
    return MixtureFit(current, tuple(trace), passes, converged, rejected)


def _metric(
    current: GaussianMixture, y: Tensor, log_f: Tensor, log_p: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Mean score over all points and the Fisher matrix over every stride-th point."""
    r = (log_f - log_p).exp_()
    _, d, n = y.shape
    logits = (r.mean(1) - current.weights)[1:]
    shifts = torch.einsum("kn,kdn->kd", r, y).flatten() / n
    second = (y * r[:, None]) @ y.transpose(1, 2) / n
    second = (
        second - torch.eye(d, dtype=y.dtype, device=y.device) * r.mean(1)[:, None, None]
    )
    i, j = torch.tril_indices(d, d)
    shapes = second[:, i, j] * torch.where(i == j, 0.5, 1.0).to(y)
    g = torch.cat([logits, shifts, shapes.flatten()])
    part = _scores(r[:, ::stride], y[:, :, ::stride], current.weights)
    return g, part.T @ part / len(part)
