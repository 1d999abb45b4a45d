"""Expectation-maximization, the natural gradient and their hybrid for full mixtures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from geolib.core.validation import expect, require_finite
from geolib.stratifolds.descent import natural_step


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

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return self.means.shape[1]

    def __post_init__(self) -> None:
        a, m, S = self.weights, self.means, self.covariances
        K = len(a)
        shapes = tuple(m.shape), tuple(S.shape)
        fits = m.ndim == 2 and len(m) == K and shapes[1] == (*m.shape, m.shape[1])
        wanted = f"shapes ({K}, d) and ({K}, d, d)"
        expect(fits, "means, covariances", wanted, shapes)
        for name in ("weights", "means", "covariances"):
            require_finite(name, getattr(self, name))
        if not bool((a >= 0).all()) or abs(float(a.sum()) - 1) > 1e-6:
            raise ValueError("weights: expected numbers in [0, 1] that sum to 1")
        even = torch.allclose(S, S.mT, atol=1e-6 * float(S.abs().max()))
        if not even or bool(torch.linalg.cholesky_ex(S)[1].any()):
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

    def whiten(self, x: Annotated[Tensor, "real n self.d"]) -> tuple[Tensor, Tensor]:
        """Whitened residuals (K, d, n) and log of the weighted densities (K, n)."""
        x = x.to(self.means.dtype)
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

    def expectation(
        self, x: Annotated[Tensor, "real n self.d"]
    ) -> tuple[float, Tensor, Tensor]:
        """One pass: mean log density, whitened residuals, responsibilities (K, n)."""
        y, log_f = self.whiten(x)
        top = log_f.amax(0)
        r = log_f.sub_(top).exp_()
        total = r.sum(0)
        return float((total.log() + top).mean()), y, r.div_(total)

    def log_likelihood(self, x: Annotated[Tensor, "real n self.d"]) -> float:
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
        collapsed: components that have become as thin as a point or a plane, whose
            likelihood has no bound; with one the fit is not `converged`.
    """

    mixture: GaussianMixture
    log_likelihood: tuple[float, ...]
    iterations: int
    converged: bool
    rejected: int = 0
    collapsed: tuple[int, ...] = ()


KINDS = "full", "tied", "diag", "spherical", "fixed"


def check_fit(x: Tensor, start: GaussianMixture) -> None:
    """Refuse data that cannot determine a mixture, or do not fit the start."""
    fits = x.ndim == 2 and len(x) >= 2
    wanted = "shape (n >= 2, d); one point has no maximum-likelihood mixture"
    expect(fits, "data", wanted, tuple(x.shape))
    d, got = x.shape[1], start.means.shape[1]
    expect(d == got, "start", f"means in {d} dimensions like the data", got)


def kmeans_start(
    x: Annotated[Tensor, "real n d"],
    n_components: int,
    *,
    reg_covar: float = 0.0,
    seed: int = 0,
) -> GaussianMixture:
    r"""A first iterate is drawn by k-means++ and given the clusters' own moments.

    .. math:: P(c_{k+1} = x_n) \propto \min_{j \le k} |x_n - c_j|^2

    Each point belongs to its nearest centre. Weights and means are those of the
    clusters; all share the covariance within clusters, so that a cluster of one point
    has one too.

    Args:
        x: (n, d) data.
        n_components: number K of components.
        reg_covar: added to the diagonal of the covariance.
        seed: of the draws, by NumPy.

    Raises:
        ValueError: there are fewer distinct points than components, or all lie in a
            plane around their centres.

    Cost: n K d.
    Source: Arthur and Vassilvitskii 2007.

    Examples:
        >>> x = torch.tensor([[0.0], [0.2], [5.0], [5.2]]).double()
        >>> start = kmeans_start(x, 2)
        >>> [round(m, 6) for m in sorted(start.means.flatten().tolist())]
        [0.1, 5.1]
        >>> start.weights.tolist()
        [0.5, 0.5]
    """
    import numpy as np

    x = x.detach()
    distinct = len(torch.unique(x, dim=0))
    wanted = f"1 to {distinct}, the number of distinct points to start from"
    expect(1 <= n_components <= distinct, "n_components", wanted, n_components)
    rng = np.random.default_rng(seed)
    centres = x[rng.integers(len(x))][None]
    for _ in range(n_components - 1):
        far = torch.cdist(x, centres).amin(1).square().double().cpu().numpy()
        centres = torch.cat([centres, x[rng.choice(len(x), p=far / far.sum())][None]])
    own = torch.cdist(x, centres).argmin(1)
    member = torch.nn.functional.one_hot(own, n_components).to(x)
    count = member.sum(0)
    means = member.T @ x / count[:, None]
    rest = x - means[own]
    within = rest.T @ rest / len(x) + reg_covar * torch.eye(x.shape[1]).to(x)
    whole = not torch.linalg.cholesky_ex(within)[1]
    span = f"span all {x.shape[1]} dimensions"
    wanted = f"points around {n_components} centres that {span}"
    expect(whole, "data", wanted, "a singular covariance within clusters")
    return GaussianMixture(count / len(x), means, within.expand(n_components, -1, -1))


def collapsed(covariances: Tensor, x: Tensor) -> tuple[int, ...]:
    """Return the components that are thinner than a millionth of the data's spread.

    Examples:
        >>> S = torch.tensor([1.0, 1e-13]).double()[:, None, None]
        >>> collapsed(S, torch.tensor([[0.0], [2.0]]).double())
        (1,)
    """
    spread = x.var(0, correction=0).sum()
    least = torch.linalg.eigvalsh(covariances)[:, 0]
    return tuple(torch.nonzero(~(least > 1e-12 * spread))[:, 0].tolist())


def _gain(trace: list[float]) -> float:
    return trace[-1] - trace[-2]


def em_fit(
    x: Annotated[Tensor, "real n d"],
    start: GaussianMixture | int,
    *,
    covariance_type: Annotated[str, KINDS] = "full",
    reg_covar: float = 0.0,
    max_iter: int = 1000,
    seed: int = 0,
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
        start: first iterate, or a number of components (`kmeans_start`).
        covariance_type: "full", "tied" (one matrix for all), "diag", "spherical" or
            "fixed" (not updated).
        reg_covar: added to the diagonal of each new covariance, in squared units of
            the data. With it no component collapses, and the end is no longer a
            maximum of the likelihood, which may fall on the way.
        max_iter: largest number of iterations.
        seed: of the k-means++ start.
        tol: stop when the mean log-likelihood gains less.
        target: stop when it reaches this value.
        rate: stop when a pass gains more than this share of what the last one gained.
            EM converges linearly, at the rate of the missing information, so this is
            where it has become slow.

    Raises:
        ValueError: the data have the wrong shape, are not finite or fewer than two
            points, `covariance_type` is unknown, or `reg_covar` negative.

    Cost: n K d^2 an iteration.
    Source: Dempster, Laird, Rubin 1977.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = em_fit(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> fit.mixture.means.item(), round(fit.mixture.covariances.item(), 6)
        (2.0, 2.666667)
    """
    if isinstance(start, int):
        start = kmeans_start(x, start, reg_covar=reg_covar, seed=seed)
    check_fit(x, start)
    current, trace, converged = start, [], False
    thin: tuple[int, ...] = ()
    d = x.shape[1]
    for it in range(max_iter + 1):
        value, y, r = current.expectation(x)
        trace.append(value)
        reached = target is not None and trace[-1] >= target
        small = it > 0 and (abs(_gain(trace)) if reg_covar else _gain(trace)) < tol
        slow = rate is not None and it > 1 and _gain(trace) > rate * _gain(trace[:-1])
        if reached or small or slow or it == max_iter:
            converged = reached or small
            break
        mass = r.mean(1).clamp_min(torch.finfo(r.dtype).tiny)  # of no point at all
        share = y * r[:, None]
        L = torch.linalg.cholesky(current.covariances)
        shift = share.mean(2) / mass[:, None]
        means = current.means + torch.einsum("kij,kj->ki", L, shift)
        S = current.covariances
        if covariance_type != "fixed":
            second = share @ y.transpose(1, 2) / len(x)
            second = second / mass[:, None, None]
            second = second - shift[:, :, None] * shift[:, None]
            S = L @ second @ L.transpose(1, 2)
            S = _shaped((S + S.transpose(1, 2)) / 2, mass, covariance_type)
            S = S + reg_covar * torch.eye(d, dtype=S.dtype, device=S.device)
            if thin := collapsed(S, x):
                break
        current = GaussianMixture(mass / mass.sum(), means, S)
    return MixtureFit(current, tuple(trace), len(trace) - 1, converged, 0, thin)


def _shaped(S: Tensor, mass: Tensor, kind: str) -> Tensor:
    """Covariances of the components, (K, d, d), as the kind of mixture has them."""
    if kind == "tied":
        return torch.einsum("k,kij->ij", mass, S).expand_as(S)
    if kind == "full":
        return S
    variances = S.diagonal(dim1=1, dim2=2)
    if kind == "spherical":
        variances = variances.mean(1, keepdim=True).expand_as(variances)
    return torch.diag_embed(variances)


def whitened_step(current: GaussianMixture, step: Tensor) -> GaussianMixture:
    r"""A step given in the whitened coordinates of the current iterate.

    .. math:: \log a_k \leftarrow \log a_k + \delta_a,\quad
              m_k \leftarrow m_k + L_k\delta_m,\quad
              \Sigma_k \leftarrow L_k (I + \tfrac12 \delta_S)^2 L_k^\top

    Args:
        current: with :math:`\Sigma_k = L_k L_k^\top`.
        step: (P,) log weights of all components but the first, shifts, shapes (lower
            triangles of symmetric matrices).

    Cost: O(K d^3).
    Source: :eq:`drv-stratifolds-whitened` (derivations).
    """
    K, d = current.means.shape
    L = torch.linalg.cholesky(current.covariances)
    logits = current.weights.log()
    logits = logits + torch.cat([torch.zeros_like(step[:1]), step[: K - 1]])
    shift = step[K - 1 : K - 1 + K * d].reshape(K, d)
    shapes = step[K - 1 + K * d :].reshape(K, -1)
    S = torch.einsum("kq,qab->kab", shapes, _symmetric_basis(d, L))
    root = L @ (torch.eye(d, dtype=L.dtype, device=L.device) + S / 2)
    cov = root @ root.transpose(1, 2)
    means = current.means + torch.einsum("kij,kj->ki", L, shift)
    cov = (cov + cov.transpose(1, 2)) / 2
    return GaussianMixture(torch.softmax(logits, 0), means, cov)


def _symmetric_basis(d: int, like: Tensor) -> Tensor:
    """Symmetric matrices with one free entry each, (d(d+1)/2, d, d)."""
    i, j = torch.tril_indices(d, d)
    E = torch.zeros(len(i), d, d, dtype=like.dtype, device=like.device)
    q = torch.arange(len(i))
    E[q, i, j] = E[q, j, i] = 1
    return E


def score_and_information(
    current: GaussianMixture, y: Tensor, r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Score, Fisher matrix and observed information in whitened coordinates.

    .. math:: g = \overline{s}, \qquad F = \overline{s s^\top}, \qquad
              -\nabla^2 \bar\ell = \overline{\textstyle\sum_k r_k C_k}
              - \Bigl(\overline{\textstyle\sum_k r_k s_k s_k^\top} - F\Bigr),
              \qquad s = \textstyle\sum_k r_k s_k

    :math:`s_k` and :math:`C_k` are the score and the observed information of a point
    whose label is known to be k; the bracket is the information that is missing with
    the labels. EM uses the first term alone.

    Args:
        current: the mixture.
        y: (K, d, n) whitened residuals.
        r: (K, n) responsibilities.

    Returns:
        g (P,), F (P, P) and the negative Hessian of the mean log-likelihood (P, P) in
        the coordinates of `whitened_step`.

    Cost: n P^2.
    Source: Louis 1982; :eq:`drv-stratifolds-louis` (derivations).
    """
    K, d, n = y.shape
    weights, basis = current.weights, _symmetric_basis(d, y)
    # What a labelled point says: (1, y, (y^T E y - tr E)/2), about weight, shift, shape
    quadratic = torch.einsum("qij,kin,kjn->kqn", basis, y, y)
    shape = 0.5 * (quadratic - torch.einsum("qii->q", basis)[:, None])
    features = torch.cat([torch.ones_like(y[:, :1]), y, shape], 1)
    weighted = features * r[:, None]
    moments = weighted @ features.transpose(1, 2) / n
    covariance = (y * r[:, None]) @ y.transpose(1, 2) / n

    about_weights = (r - weights[:, None])[1:]
    about_shifts = weighted[:, 1 : 1 + d].reshape(K * d, n)
    about_shapes = weighted[:, 1 + d :].reshape(-1, n)
    score = torch.cat([about_weights, about_shifts, about_shapes])
    fisher = score @ score.T / n

    labelled, squares = torch.zeros_like(fisher), torch.zeros_like(fisher)
    free = weights[1:]
    labelled[: K - 1, : K - 1] = torch.diag(free) - torch.outer(free, free)
    label = torch.eye(K, dtype=y.dtype, device=y.device)[:, 1:] - free
    for k in range(K):
        own = _coordinates_of(k, K, d)
        both = torch.cat([torch.arange(K - 1), own])
        # the score of label k is linear in the features
        linear = torch.block_diag(label[k][:, None], torch.eye(len(own)).to(y))
        squares[both[:, None], both] += linear @ moments[k] @ linear.T
        labelled[own[:, None], own] = _labelled(
            basis, moments[k, 0, 0], moments[k, 0, 1 : 1 + d], covariance[k]
        )
    return score.mean(1), fisher, labelled - (squares - fisher)


def _coordinates_of(k: int, K: int, d: int) -> Tensor:
    """Where component k's shift and shape stand among all coordinates."""
    q = d * (d + 1) // 2
    shift = K - 1 + k * d + torch.arange(d)
    return torch.cat([shift, K - 1 + K * d + k * q + torch.arange(q)])


def _labelled(E: Tensor, mass: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""Observed information of one component's points, were their labels known.

    Second order of :math:`-\log N` in `whitened_step`'s coordinates u, S:
    :math:`\tfrac12 a|u|^2 + u^\top S m_1 + \tfrac38\,\mathrm{tr}(S M_2 S)
    - \tfrac18 a\,\mathrm{tr} S^2`.
    """
    d = len(first)
    C = torch.zeros(d + len(E), d + len(E), dtype=E.dtype, device=E.device)
    C[:d, :d] = mass * torch.eye(d, dtype=E.dtype, device=E.device)
    C[:d, d:] = torch.einsum("qab,b->aq", E, first)
    C[d:, :d] = C[:d, d:].T
    shapes = 0.75 * torch.einsum("qab,bc,pca->qp", E, second, E)
    shapes = shapes - 0.25 * mass * torch.einsum("qab,pba->qp", E, E)
    C[d:, d:] = (shapes + shapes.T) / 2
    return C


def _at_rest(g: Tensor, F: Tensor, tol: float) -> bool:
    """Whether the step without damping would gain no more than tol; at most it is 1/2."""
    return 0.5 * float(g @ _direction(g, F, None, 1e-9)) <= max(tol, 1e-8)


def natural_fit(
    x: Annotated[Tensor, "real n d"],
    start: GaussianMixture,
    *,
    information: Annotated[str, ("fisher", "observed")] = "fisher",
    max_iter: int = 200,
    tol: float = 1e-9,
    target: float | None = None,
    damping: Annotated[float, "damping > 0"] = 1e-3,
    reach: float = 1.0,
) -> MixtureFit:
    r"""A damped natural gradient fits data with the mixture's own information.

    .. math:: \delta = (G + \lambda\,\mathrm{diag}F)^{-1}\,\overline{s}, \qquad
              G = F \ \text{ or } \ {-\nabla^2\bar\ell}

    EM is the same step with the information of the *labelled* data, which is block
    diagonal and too large where components overlap: there EM crawls, and this does not.
    The damping grows when a step would lower the likelihood and shrinks otherwise.

    Args:
        x: (n, d) data.
        start: first iterate; all weights positive.
        information: "fisher", or "observed": the observed information wherever it is
            positive definite and F elsewhere. With it the end game is Newton's.
        max_iter: largest number of passes over the data.
        tol: stop when the mean log-likelihood gains less.
        target: stop when it reaches this value.
        damping: first :math:`\lambda`.
        reach: no whitened coordinate moves further than this in one step.

    Raises:
        ValueError: as `em_fit`, a weight of the start is zero, or `information` is
            unknown.

    Cost: n (K d^2 + P^2) an iteration.
    Source: Amari 1998 with Levenberg's damping; :eq:`drv-stratifolds-louis`
    (derivations).

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = natural_fit(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> round(fit.mixture.means.item(), 3), round(fit.mixture.covariances.item(), 3)
        (2.0, 2.667)
    """
    check_fit(x, start)
    weights = start.weights
    expect(bool((weights > 0).all()), "start", "positive weights", weights.tolist())
    current, rejected, converged = start, 0, False
    value, y, r = current.expectation(x)
    trace, passes = [value], 1
    g, F, H = score_and_information(current, y, r)
    while passes < max_iter:
        if target is not None and trace[-1] >= target:
            break
        step = _direction(g, F, H if information == "observed" else None, damping)
        step = step * min(1.0, reach / float(step.abs().max().clamp_min(1e-300)))
        trial = whitened_step(current, step)
        value, y, r = trial.expectation(x)
        passes += 1
        if not value >= trace[-1]:
            rejected, damping = rejected + 1, damping * 10
            if damping > 1e12:
                converged = _at_rest(g, F, tol)  # or a step of no use at all
                break
            continue
        current, damping = trial, max(damping / 5, 1e-9)
        trace.append(value)
        if collapsed(current.covariances, x):
            break
        if trace[-1] - trace[-2] < tol and _at_rest(g, F, tol):
            converged = True
            break
        g, F, H = score_and_information(current, y, r)
    reached = target is not None and trace[-1] >= target
    thin = collapsed(current.covariances, x)
    converged = (converged or reached) and not thin
    return MixtureFit(current, tuple(trace), passes, converged, rejected, thin)


def _direction(g: Tensor, F: Tensor, H: Tensor | None, damping: float) -> Tensor:
    """The damped step; the observed information only where it is positive definite."""
    # Levenberg's scaling; the floor keeps an eliminated component solvable
    D = damping * torch.diag(F.diagonal() + 1e-12 * F.diagonal().max())
    if H is not None:
        root, bad = torch.linalg.cholesky_ex(H + D)
        if not bool(bad):
            return torch.cholesky_solve(g[:, None], root)[:, 0]
    return natural_step((F + D)[None], g[None], 1e-14)[0]


def fit_mixture(
    x: Annotated[Tensor, "real n d"],
    start: GaussianMixture | int,
    *,
    max_iter: int = 500,
    reg_covar: float = 0.0,
    seed: int = 0,
    tol: float = 1e-9,
    target: float | None = None,
    rate: float = 0.5,
) -> MixtureFit:
    r"""The hybrid fit is EM while EM is fast, then uses the observed information.

    .. math:: \bar\ell_{t+1} - \bar\ell_t > \rho\,(\bar\ell_t - \bar\ell_{t-1})
              \quad\Rightarrow\quad \text{switch}

    Well-separated components are EM's case: a few cheap passes end it. Near overlap
    its rate tends to one, and the second-order steps of `natural_fit` take over.

    Args:
        x: (n, d) data.
        start: first iterate, all weights positive, or a number of components
            (`kmeans_start`).
        max_iter: largest number of passes over the data, of both parts together.
        reg_covar: as in `em_fit`. There is no second-order part then, since its end
            would be another one.
        seed: of the k-means++ start.
        tol: stop when the mean log-likelihood gains less.
        target: stop when it reaches this value.
        rate: the rate :math:`\rho` of EM from which on it counts as slow.

    Raises:
        ValueError: as `em_fit` and `natural_fit`.

    Cost: as `em_fit`, then as `natural_fit`.
    Source: :eq:`drv-stratifolds-em-rate` (derivations).

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> start = GaussianMixture(one, one[None], one[None, None])
        >>> fit = fit_mixture(torch.tensor([[0.0], [2.0], [4.0]]).double(), start)
        >>> round(fit.mixture.covariances.item(), 6), fit.converged
        (2.666667, True)
    """
    first = em_fit(
        x,
        start,
        reg_covar=reg_covar,
        max_iter=max_iter,
        seed=seed,
        tol=tol,
        target=target,
        rate=None if reg_covar else rate,
    )
    left = max_iter - first.iterations
    if first.converged or first.collapsed or left <= 1:
        return first
    last = natural_fit(
        x, first.mixture, information="observed", max_iter=left, tol=tol, target=target
    )
    trace = first.log_likelihood + last.log_likelihood[1:]
    passes = first.iterations + last.iterations
    return replace(last, log_likelihood=trace, iterations=passes)
