"""Location mixtures of unit Gaussians on the line, as vectors of weighted atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Grid:
    r"""A uniform grid for integrals over the line.

    .. math:: \int g(x)\,dx \approx h \sum_j g(x_j)

    For Gaussian-like integrands the trapezoid rule converges faster than any power of
    the step: with the defaults the error of a KL divergence is rounding error.

    Args:
        reach: the grid covers ``[-reach, reach]``.
        step: spacing h.

    Source: Euler-Maclaurin; spec pitfall 1. Cost: none.

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


def check_atoms(atoms: Tensor, name: str = "atoms") -> None:
    """Refuse atoms that are not finite rows of K weights followed by K locations."""
    if atoms.ndim != 2 or atoms.shape[1] % 2:
        raise ValueError(
            f"{name}: expected shape (batch, 2K), K weights then K locations; "
            f"got {tuple(atoms.shape)}"
        )
    if not bool(torch.isfinite(torch.view_as_real(atoms + 0j)).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def bells(atoms: Tensor, x: Tensor) -> Tensor:
    """Unit Gaussian densities at `x` centred on each atom: (b, K, q)."""
    c = atoms[:, atoms.shape[1] // 2 :, None]
    return torch.exp(-0.5 * (x - c) ** 2 - LOG_ROOT_TAU)


def density(atoms: Tensor, x: Tensor) -> Tensor:
    r"""The mixture density.

    .. math:: p(x) = \sum_k a_k\, \varphi(x - c_k)

    Args:
        atoms: (b, 2K) weights :math:`a_k`, then locations :math:`c_k`.
        x: (q,) points.

    Returns:
        (b, q) densities.

    Raises:
        ValueError: malformed or non-finite `atoms`.

    Source: definition. Cost: b K q exponentials.

    Examples:
        >>> one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> round(float(density(one, torch.zeros(1, dtype=torch.float64))), 4)
        0.3989
    """
    check_atoms(atoms)
    K = atoms.shape[1] // 2
    return torch.einsum("bk,bkq->bq", atoms[:, :K], bells(atoms, x))


@dataclass
class MixtureKL:
    r"""The Kullback-Leibler divergence from a teacher, its gradient and metric.

    .. math:: L(\alpha) = \int q \log\frac{q}{p_\alpha}, \qquad
              F(\alpha) = \int \frac{\partial p\,\partial p^\top}{p}

    Both integrals are taken on a uniform grid, where they are exact to rounding. With
    `data` the same class is the mean negative log-likelihood relative to the teacher.

    Args:
        teacher: (2K*,) atoms of the truth q.
        grid: quadrature for the line.
        data: (n,) observations; if given, q is replaced by their empirical law.

    Raises:
        ValueError: a teacher that is no probability density, or fewer than two points.

    Source: definition; gradients by the chain rule. Cost: b K q exponentials a call.

    Examples:
        >>> kl = MixtureKL(torch.tensor([1.0, 0.5], dtype=torch.float64))
        >>> loss, grad, _ = kl.evaluate(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        >>> round(float(loss), 6), round(float(grad[0, 1]), 6)   # m^2/2 and -m
        (0.125, -0.5)
    """

    teacher: Tensor
    grid: Grid = field(default_factory=Grid)
    data: Tensor | None = None

    def __post_init__(self) -> None:
        q_atoms = self.teacher.reshape(1, -1)
        check_atoms(q_atoms, "teacher")
        weights = q_atoms[0, : q_atoms.shape[1] // 2]
        if bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-9:
            raise ValueError(
                "teacher: expected weights that are >= 0 and sum to 1, "
                f"got {weights.tolist()}"
            )
        self._x = self.grid.nodes(self.teacher)
        x = self._x
        if self.data is None:
            q = density(q_atoms, x)[0]
            self._points, self._mass = x, self.grid.step * q
            # q log q -> 0 where q underflows
            log_q = torch.log(q.clamp_min(torch.finfo(q.dtype).tiny))
        else:
            points = torch.as_tensor(self.data).to(self.teacher).reshape(-1)
            check_data(points)
            self._points = points
            self._mass = torch.full_like(points, 1 / len(points))
            log_q = torch.log(density(q_atoms, points)[0])
        self._entropy = (self._mass * log_q).sum()
        self._base = torch.exp(-0.5 * self._points**2 - LOG_ROOT_TAU)
        self._scratch: Tensor | None = None
        ones = torch.ones_like(self._points)
        self._powers = torch.stack([self._points, ones])
        self._weighted = torch.stack([self._mass, self._mass * self._points], -1)
        self._offset = self._entropy - (self._mass * torch.log(self._base)).sum()

    def _room(self, left: Tensor) -> Tensor:
        """Scratch memory kept between calls: fresh pages would cost more than exp."""
        need = (len(left), len(self._points))
        if self._scratch is None or len(self._scratch) < need[0]:
            self._scratch = torch.empty(need, dtype=left.dtype, device=left.device)
        return self._scratch[: need[0]]

    def _ratio(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x - c)/phi(x) for each atom, and p(x)/phi(x)."""
        K = atoms.shape[1] // 2
        c = atoms[:, K:]
        # (c, -c^2/2) against (x, 1): one product of matrices, one pass over memory
        left = torch.stack([c, -0.5 * c * c], -1).reshape(-1, 2)
        f = torch.mm(left, self._powers, out=self._room(left)).exp_()
        f = f.reshape(*c.shape, -1)
        return f, torch.bmm(atoms[:, None, :K], f)[:, 0]

    def value(self, atoms: Tensor) -> Tensor:
        """The divergence only, (b,); differentiable by autograd."""
        p = torch.einsum(
            "bk,bkq->bq",
            atoms[:, : atoms.shape[1] // 2],
            torch.exp(
                atoms[:, atoms.shape[1] // 2 :, None] * self._points
                - 0.5 * atoms[:, atoms.shape[1] // 2 :, None] ** 2
            ),
        )
        return self._offset - torch.log(p) @ self._mass

    def evaluate(
        self, atoms: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, 2K) and, if asked for, Fisher matrix (b, 2K, 2K)."""
        K = atoms.shape[1] // 2
        a, c = atoms[:, :K], atoms[:, K:]
        f, p = self._ratio(atoms)
        loss = self._offset - torch.log(p) @ self._mass
        weights = torch.reciprocal(p)[..., None] * self._weighted
        moments = torch.bmm(f, weights)
        d_a = -moments[..., 0]
        d_c = -a * (moments[..., 1] - c * moments[..., 0])
        gradient = torch.cat([d_a, d_c], 1)
        return loss, gradient, self.fisher(atoms) if fisher else None

    def fisher(self, atoms: Tensor) -> Tensor:
        """The Fisher matrix in atom coordinates, (b, 2K, 2K)."""
        K = atoms.shape[1] // 2
        f = bells(atoms, self._x)
        p = torch.einsum("bk,bkq->bq", atoms[:, :K], f)
        slope = atoms[:, :K, None] * (self._x - atoms[:, K:, None]) * f
        D = torch.cat([f, slope], 1) * torch.sqrt(self.grid.step / p)[:, None, :]
        return D @ D.transpose(1, 2)


def check_data(points: Tensor) -> None:
    """Refuse data that cannot determine a mixture: empty, one point, or not finite."""
    if len(points) < 2:
        raise ValueError(
            f"data: expected at least 2 observations, got {len(points)}; "
            "one point has no maximum-likelihood mixture"
        )
    if not bool(torch.isfinite(points).all()):
        raise ValueError("data: expected finite numbers, got NaN or infinity")
