"""Location mixtures of unit Gaussians on the line: density, divergence, Fisher matrix.

Natural parameters of a mixture of K are rows (a_1..a_K, c_1..c_K): the weights and
locations of its mixing measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds.charts import Chart
from geolib.stratifolds.strata import Charts, Draw, Stratifold, Stratum

LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Grid:
    r"""A uniform grid gives integrals over the line by the trapezoid rule.

    .. math:: \int g(x)\,dx \approx h \sum_j g(x_j)

    For Gaussian-like integrands it converges faster than any power of the step: with
    the defaults the error of a KL divergence is rounding error.

    Args:
        reach: the grid covers ``[-reach, reach]``.
        step: spacing h.

    Source: :eq:`drv-stratifolds-trapezoid` (derivations).

    Examples:
        >>> g = Grid()
        >>> x = g.nodes()
        >>> round(float((torch.exp(-x * x / 2)).sum() * g.step) ** 2, 12)
        6.28318530718
    """

    reach: float = 11.0
    step: float = 0.25

    def nodes(self, like: Tensor | None = None) -> Tensor:
        """The nodes, shape (q,), with the dtype and device of `like`."""
        count = round(2 * self.reach / self.step) + 1
        x = torch.linspace(-self.reach, self.reach, count, dtype=torch.float64)
        return x if like is None else x.to(like)


def check_mixture(natural: Tensor, name: str = "natural") -> None:
    """Refuse what is not finite rows of K weights followed by K locations."""
    shape = tuple(natural.shape)
    fits = len(shape) == 2 and shape[1] % 2 == 0 and shape[0] and shape[1]
    expect(fits, name, "shape (batch, 2K), K weights then K locations", shape)


def gaussian_densities(natural: Tensor, x: Tensor) -> Tensor:
    """Unit Gaussian densities at `x` around each location: (b, K, q)."""
    c = natural[:, natural.shape[1] // 2 :, None]
    return torch.exp(-0.5 * (x - c) ** 2 - LOG_ROOT_TAU)


def mixture_density(
    natural: Annotated[Tensor, "b A"], x: Annotated[Tensor, "real q"]
) -> Tensor:
    r"""The density of a location mixture.

    .. math:: p(x) = \sum_k a_k\, \varphi(x - c_k)

    Args:
        natural: (b, 2K) weights :math:`a_k`, then locations :math:`c_k`.
        x: (q,) points.

    Returns:
        (b, q) densities.

    Raises:
        ValueError: `natural` is malformed or not finite.

    Cost: b K q exponentials.
    Source: :eq:`drv-stratifolds-models` (derivations).

    Examples:
        >>> one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> round(float(mixture_density(one, torch.zeros(1, dtype=torch.float64))), 4)
        0.3989
    """
    check_mixture(natural)
    K = natural.shape[1] // 2
    return torch.einsum("bk,bkq->bq", natural[:, :K], gaussian_densities(natural, x))


def mixture_fisher(natural: Tensor, grid: Grid | None = None) -> Tensor:
    r"""The Fisher matrix of a location mixture in its natural parameters.

    .. math:: F(\alpha) = \int \frac{\partial p\,\partial p^\top}{p}

    Args:
        natural: (b, 2K).
        grid: quadrature for the line.

    Returns:
        (b, 2K, 2K) matrices; they do not depend on any teacher.
    """
    grid = grid or Grid()
    x = grid.nodes(natural)
    f = gaussian_densities(natural, x)
    p = torch.einsum("bk,bkq->bq", natural[:, : f.shape[1]], f)
    return _fisher(natural, x, grid.step / p, f, f.new_empty(*natural.shape, len(x)))


def _fisher(natural: Tensor, x: Tensor, mass: Tensor, f: Tensor, D: Tensor) -> Tensor:
    """The Fisher matrix by f (b, K, q) = dp/da and the mass over p (b, q), in room D."""
    a, c = natural[..., None].chunk(2, 1)
    by_weight, by_location = D.chunk(2, 1)
    torch.mul(f, torch.sqrt(mass)[:, None], out=by_weight)
    torch.sub(x, c, out=by_location).mul_(a).mul_(by_weight)
    return D @ D.transpose(1, 2)


@dataclass
class MixtureKL:
    r"""The Kullback-Leibler divergence from a teacher, with gradient and metric.

    .. math:: L(\alpha) = \int q \log\frac{q}{p_\alpha}, \qquad
              F(\alpha) = \int \frac{\partial p\,\partial p^\top}{p}

    Both integrals are taken on a uniform grid, where they are exact to rounding. With
    `data` the same class is the mean negative log-likelihood relative to the teacher.

    Args:
        teacher: (2K*,) natural parameters of the truth q.
        grid: quadrature for the line.
        data: (n,) observations; if given, q is replaced by their empirical law.

    Raises:
        ValueError: the teacher is no probability density, or there are fewer than two
            data.

    Cost: b K q exponentials a call.
    Source: :eq:`drv-stratifolds-kl` (derivations).

    Examples:
        >>> kl = MixtureKL(torch.tensor([1.0, 0.5], dtype=torch.float64))
        >>> loss, grad, _ = kl.evaluate(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        >>> round(float(loss), 6), round(float(grad[0, 1]), 6)   # m^2/2 and -m
        (0.125, -0.5)
    """

    teacher: Annotated[Tensor, "real A"]
    grid: Grid = field(default_factory=Grid)
    data: Tensor | None = None

    def __post_init__(self) -> None:
        truth = self.teacher.reshape(1, -1)
        check_mixture(truth, "teacher")
        weights = truth[0, : truth.shape[1] // 2]
        good = bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) <= 1e-9
        wanted = "weights that are >= 0 and sum to 1"
        expect(good, "teacher", wanted, weights.tolist())
        if self.data is None:
            points = self.grid.nodes(self.teacher)
            q = mixture_density(truth, points)[0]
            mass = self.grid.step * q
            # q log q -> 0 where q underflows
            log_q = torch.log(q.clamp_min(torch.finfo(q.dtype).tiny))
        else:
            points = torch.as_tensor(self.data).to(self.teacher).reshape(-1)
            check_data(points)
            mass = torch.full_like(points, 1 / len(points))
            log_q = torch.log(mixture_density(truth, points)[0])
        self._points, self._mass = points, mass
        base = torch.exp(-0.5 * points**2 - LOG_ROOT_TAU)
        self._base = base
        self._scratch: dict[int, Tensor] = {}
        self._powers = torch.stack([points, torch.ones_like(points)])
        self._moments = torch.stack([mass, mass * points])
        self._offset = (mass * log_q).sum() - (mass * torch.log(base)).sum()

    def _room(self, which: int, like: Tensor) -> Tensor:
        """Scratch memory kept between calls: fresh pages would cost more than exp."""
        have, need = self._scratch.get(which), like.numel() * len(self._points)
        if have is None or have.numel() < need:
            have = self._scratch[which] = like.new_empty(need)
        return have[:need].reshape(*like.shape, -1)

    def _ratio(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x - c)/phi(x) for each component, and p(x)/phi(x)."""
        a, c = natural.chunk(2, 1)
        # (c, -c^2/2) against (x, 1): one product of matrices, one pass over memory
        left = torch.stack([c, -0.5 * c * c], -1).reshape(-1, 2)
        f = torch.mm(left, self._powers, out=self._room(0, left[:, 0])).exp_()
        f = f.reshape(*c.shape, -1)
        return f, torch.mul(a[..., None], f, out=self._room(1, c)).sum(1)

    def value(self, natural: Tensor) -> Tensor:
        """The divergence only, (b,); differentiable by autograd."""
        K = natural.shape[1] // 2
        c = natural[:, K:, None]
        f = torch.exp(c * self._points - 0.5 * c**2)
        p = torch.einsum("bk,bkq->bq", natural[:, :K], f)
        return self._offset - torch.log(p) @ self._mass

    def evaluate(
        self, natural: Annotated[Tensor, "real b A"], fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, 2K) and, if asked for, Fisher matrix (b, 2K, 2K)."""
        natural = natural.detach()
        even, wanted = natural.shape[1] % 2 == 0, "K weights, K places"
        expect(even, "natural", wanted, natural.shape)
        a, c = natural.chunk(2, 1)
        f, p = self._ratio(natural)
        loss = self._offset - torch.log(p) @ self._mass
        shares = torch.mul(f, torch.reciprocal(p)[:, None], out=self._room(1, c))
        d_a, first = (self._moments @ shares.reshape(-1, shares.shape[2]).T).neg_()
        d_a, first = d_a.reshape(a.shape), first.reshape(a.shape)
        gradient = torch.cat([d_a, a * (first - c * d_a)], 1)
        if not fisher or self.data is not None:
            return loss, gradient, self.fisher(natural) if fisher else None
        mass = self.grid.step * self._base / p  # f and p are relative to the base
        room = self._room(2, natural)
        return loss, gradient, _fisher(natural, self._points, mass, f, room)

    def fisher(self, natural: Tensor) -> Tensor:
        """The Fisher matrix in natural parameters, (b, 2K, 2K)."""
        return mixture_fisher(natural, self.grid)


def mixture_stratifold(
    name: str, chart: Chart, strata: tuple[Stratum, ...], draw: Draw, charts: Charts
) -> Stratifold:
    """A mixture as a stratifold: the loss is the divergence from a teacher."""

    def objective(theta: Tensor) -> MixtureKL:
        return MixtureKL(chart.embed(theta[None])[0])

    return Stratifold(name, chart, strata, objective, mixture_fisher, draw, charts)


def check_data(points: Tensor) -> None:
    """Refuse data that cannot determine a mixture: empty, one point, or not finite."""
    # one point has no maximum-likelihood mixture
    expect(len(points) >= 2, "data", "at least 2 observations", len(points))
