"""Signed networks of few units with a closed-form population loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, check_theta
from geolib.stratifolds.kernels import Kernel


def split_units(atoms: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Atoms (b, K(1+n)) to output weights (b, K) and input weights (b, K, n)."""
    v, w = atoms[:, :units], atoms[:, units:]
    return v, w.reshape(len(atoms), units, -1)


@dataclass
class UnitLoss:
    r"""Half the squared distance between two networks, in closed form.

    .. math:: L = \tfrac12\Bigl\| \sum_i v_i\,\sigma(w_i, \cdot)
              - \sum_j v^*_j\,\sigma(w^*_j, \cdot)\Bigr\|^2
              = \tfrac12 c^\top K c

    where c stacks v and -v*, and K is the kernel of all units. All formulas are
    bilinear, without conjugation, so complex-conjugate pairs of units are valid.

    Args:
        kernel: inner product of units.
        teacher_v: (K*,) true output weights.
        teacher_w: (K*, n) true input weights.
        units: number of units K of the student.

    Raises:
        ValueError: teacher weights of unequal length or not finite.

    Source: definition; derivatives by the chain rule. Cost: b (K + K*)^2 n^2.

    Examples:
        >>> from geolib.stratifolds import RBFKernel
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> loss = UnitLoss(RBFKernel(), one, 0 * one[:, None], units=1)
        >>> loss.value(torch.zeros(1, 2, dtype=torch.float64))
        tensor([0.5000], dtype=torch.float64)
    """

    kernel: Kernel
    teacher_v: Tensor
    teacher_w: Tensor
    units: int = 2

    def __post_init__(self) -> None:
        v, w = self.teacher_v, self.teacher_w
        if w.ndim != 2 or v.shape != w.shape[:1]:
            raise ValueError(
                "teacher_w: expected shape (units, n) with one row for each of "
                f"{len(v)} output weights, got {tuple(w.shape)}"
            )
        if not bool(torch.isfinite(v).all() and torch.isfinite(w).all()):
            raise ValueError("teacher: expected finite weights")

    def _all(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        v, w = split_units(atoms, self.units)
        b = len(atoms)
        tv = -self.teacher_v.to(v.dtype).expand(b, -1)
        tw = self.teacher_w.to(w.dtype).expand(b, -1, -1)
        return torch.cat([v, tv], 1), torch.cat([w, tw], 1)

    def value(self, atoms: Tensor) -> Tensor:
        """The loss only, (b,)."""
        c, w = self._all(atoms)
        K = self.kernel(w[:, :, None], w[:, None])
        L = 0.5 * torch.einsum("bi,bij,bj->b", c, K, c)
        return L.real if L.is_complex() else L

    def evaluate(
        self, atoms: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, A), Gauss-Newton matrix (b, A, A) if asked for."""
        c, w = self._all(atoms)
        own_v, own_w = split_units(atoms, self.units)
        k = self.kernel(own_w[:, :, None], w[:, None])
        d_v = torch.einsum("bij,bj->bi", k, c)
        slope = self.kernel.d1(own_w[:, :, None], w[:, None])
        d_w = own_v[..., None] * torch.einsum("bijn,bj->bin", slope, c)
        loss = self.value(atoms)
        gradient = torch.cat([d_v, d_w.flatten(1)], 1)
        return loss, gradient, self.fisher(atoms) if fisher else None

    def fisher(self, atoms: Tensor) -> Tensor:
        """The Gauss-Newton matrix in atom coordinates, (b, A, A)."""
        v, w = split_units(atoms, self.units)
        b, K, n = w.shape
        left, right = w[:, :, None], w[:, None]
        F = torch.empty(b, K * (1 + n), K * (1 + n), dtype=w.dtype, device=w.device)
        F[:, :K, :K] = self.kernel(left, right)
        cross = self.kernel.d1(left, right) * v[:, :, None, None]  # (b, i, j, n)
        F[:, K:, :K] = cross.permute(0, 1, 3, 2).reshape(b, K * n, K)
        F[:, :K, K:] = F[:, K:, :K].transpose(1, 2)
        outer = (v[:, :, None] * v[:, None])[..., None, None]
        block = (self.kernel.d12(left, right) * outer).permute(0, 1, 3, 2, 4)
        F[:, K:, K:] = block.reshape(b, K * n, K * n)
        return F


class RawUnits(Chart):
    r"""Output and input weights of K units, as they are.

    .. math:: \theta = (v_1, \dots, v_K;\ w_1, \dots, w_K)

    Source: definition. Cost: none.

    Examples:
        >>> RawUnits(2, 1).names
        ('v0', 'v1', 'w0_0', 'w1_0')
    """

    def __init__(self, units: int = 2, n: int = 1) -> None:
        self.units, self.n = units, n
        w = [f"w{i}_{a}" for i in range(units) for a in range(n)]
        self.names = (*(f"v{i}" for i in range(units)), *w)

    def atoms(self, eta: Tensor) -> Tensor:
        return eta

    def jacobian(self, eta: Tensor) -> Tensor:
        eye = torch.eye(eta.shape[1], dtype=eta.dtype, device=eta.device)
        return eye.expand(len(eta), -1, -1)

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, self.units * (1 + self.n))
        return theta


def overlap_coordinates(theta: Tensor) -> tuple[Tensor, ...]:
    r"""Two units seen from their overlap stratum.

    .. math:: V = v_1 + v_2,\quad z = v_2/V,\quad b = (1-z)w_1 + z w_2,\quad
              d = w_2 - w_1,\quad u = z(1-z)|d|^2

    Args:
        theta: (B, 2 + 2n) two units.

    Returns:
        V (B,), z (B,), b (B, n), d (B, n), u (B,). Not finite where V = 0: the central
        chart ends there (spec pitfall 6).

    Source: spec 1.5. Cost: O(B n).

    Examples:
        >>> V, z, b, d, u = overlap_coordinates(torch.tensor([[1.0, 1.0, 0.0, 2.0]]))
        >>> float(V), float(z), float(b), float(u)
        (2.0, 0.5, 1.0, 1.0)
    """
    v, w = split_units(theta, 2)
    V = v.sum(1)
    z = v[:, 1] / V
    b = (1 - z)[:, None] * w[:, 0] + z[:, None] * w[:, 1]
    d = w[:, 1] - w[:, 0]
    return V, z, b, d, z * (1 - z) * (d * d).sum(1)


class CentralUnits(Chart):
    r"""Two units by total weight, centre and signed spread.

    .. math:: D = \sqrt{s^2 + 4u},\quad z = \tfrac12(1 - s/D),\quad
              w_{1,2} = b \mp \tfrac12 (D \mp s)\,e

    The spread u may have any sign: the flow crosses u = 0, where raw weights are
    trapped. For :math:`s^2 + 4u < 0` the units are a complex-conjugate pair and the
    network stays real. Singular at V = 0.

    Args:
        n: input dimension, 1 or 2; in the plane the direction e is an angle.

    Raises:
        ValueError: an input dimension other than 1 or 2.

    Source: our construction, spec 1.5. Cost: autograd Jacobian, O(b n).

    Examples:
        >>> CentralUnits(1).atoms(torch.tensor([[2.0, 1.0, 1.0, 0.0]])).real
        tensor([[1., 1., 0., 2.]])
    """

    def __init__(self, n: int = 1) -> None:
        if n not in (1, 2):
            raise ValueError(f"n: expected input dimension 1 or 2, got {n}")
        self.n = n
        self.names = ("V", "b", "u", "s") if n == 1 else ("V", "b0", "b1", "u", "s", "e")

    def _direction(self, eta: Tensor) -> Tensor:
        if self.n == 1:
            return torch.ones_like(eta[:, :1])
        return torch.stack([eta[:, 5].cos(), eta[:, 5].sin()], 1)

    def _root(self, eta: Tensor) -> Tensor:
        square = eta[:, self.n + 2] ** 2 + 4 * eta[:, self.n + 1] + 1e-12
        return torch.sqrt(square + 0j)

    def atoms(self, eta: Tensor) -> Tensor:
        n = self.n
        V, b, s = eta[:, 0], eta[:, 1 : 1 + n], eta[:, n + 2]
        D, e = self._root(eta), self._direction(eta)
        z = (1 - s / D) / 2
        w1 = b - ((D - s) / 2)[:, None] * e
        w2 = b + ((D + s) / 2)[:, None] * e
        return torch.cat([torch.stack([V * (1 - z), V * z], 1), w1, w2], 1)

    def jacobian(self, eta: Tensor) -> Tensor:
        n, B = self.n, len(eta)
        V, s = eta[:, 0], eta[:, n + 2]
        D, e = self._root(eta), self._direction(eta)
        z, D_u, D_s = (1 - s / D) / 2, 2 / D, s / D
        z_u, z_s = s * D_u / (2 * D**2), -(1 - D_s**2) / (2 * D)
        J = torch.zeros(B, 2 + 2 * n, eta.shape[1], dtype=D.dtype, device=eta.device)
        iu, js = n + 1, n + 2
        J[:, 0, 0], J[:, 1, 0] = 1 - z, z
        J[:, 0, iu], J[:, 1, iu] = -V * z_u, V * z_u
        J[:, 0, js], J[:, 1, js] = -V * z_s, V * z_s
        for a in range(n):
            J[:, 2 + a, 1 + a] = J[:, 2 + n + a, 1 + a] = 1
            J[:, 2 + a, iu] = -D_u / 2 * e[:, a]
            J[:, 2 + n + a, iu] = D_u / 2 * e[:, a]
            J[:, 2 + a, js] = (1 - D_s) / 2 * e[:, a]
            J[:, 2 + n + a, js] = (1 + D_s) / 2 * e[:, a]
        if n == 2:
            turn = torch.stack([-e[:, 1], e[:, 0]], 1)
            J[:, 2:4, 5] = -((D - s) / 2)[:, None] * turn
            J[:, 4:6, 5] = ((D + s) / 2)[:, None] * turn
        return J

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2 + 2 * self.n)
        V, z, b, d, u = overlap_coordinates(theta)
        if not bool(torch.isfinite(u).all()):
            raise ValueError("theta: the central chart needs v1 + v2 != 0 in every row")
        size = d.norm(dim=1) if self.n == 2 else d[:, 0]
        parts = [V[:, None], b, u[:, None], ((1 - 2 * z) * size)[:, None]]
        if self.n == 2:
            parts.append(torch.atan2(d[:, 1], d[:, 0])[:, None])
        return torch.cat(parts, 1)

    def push(self, eta: Tensor) -> Tensor:
        """Raw weights; NaN where the units are a complex pair."""
        atoms = self.atoms(eta)
        real = (atoms.imag.abs() < 1e-12).all(1, keepdim=True)
        return torch.where(real, atoms.real, torch.nan)


class PronyUnits(Chart):
    r"""Two units on the line by moments and symmetric functions.

    .. math:: M_0 = v_1 + v_2,\quad M_1 = v_1 w_1 + v_2 w_2,\quad
              S = w_1 + w_2,\quad P = w_1 w_2

    A polynomial map of the raw weights; global, and the network is analytic in it when
    the unit is an entire function of its weight (error function, Gaussian bump; not
    tanh). :math:`S^2 < 4P` is a complex-conjugate pair.

    Source: our construction, spec 1.5. Cost: O(b).

    Examples:
        >>> c = PronyUnits()
        >>> theta = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
        >>> c.lift(theta)
        tensor([[-1.0000, -5.5000,  3.5000,  1.5000]], dtype=torch.float64)
    """

    names = ("M0", "M1", "S", "P")

    @staticmethod
    def _parts(eta: Tensor) -> tuple[Tensor, ...]:
        M0, M1, S, P = eta.unbind(1)
        r = torch.sqrt(S * S - 4 * P + 1e-12 + 0j)
        w1, w2 = (S + r) / 2, (S - r) / 2
        return M0 + 0j, M1 + 0j, r, w1, w2

    def atoms(self, eta: Tensor) -> Tensor:
        M0, M1, r, w1, w2 = self._parts(eta)
        return torch.stack([(M1 - M0 * w2) / r, (M0 * w1 - M1) / r, w1, w2], 1)

    def jacobian(self, eta: Tensor) -> Tensor:
        M0, M1, r, w1, w2 = self._parts(eta)
        v1, v2 = (M1 - M0 * w2) / r, (M0 * w1 - M1) / r
        S = eta[:, 2] + 0j
        r_S, r_P = S / r, -2 / r
        w1_S, w1_P, w2_S, w2_P = (1 + r_S) / 2, r_P / 2, (1 - r_S) / 2, -r_P / 2
        J = torch.zeros(len(eta), 4, 4, dtype=r.dtype, device=eta.device)
        J[:, 0, 0], J[:, 0, 1], J[:, 1, 0], J[:, 1, 1] = -w2 / r, 1 / r, w1 / r, -1 / r
        J[:, 0, 2], J[:, 0, 3] = (
            (-M0 * w2_S - v1 * r_S) / r,
            (-M0 * w2_P - v1 * r_P) / r,
        )
        J[:, 1, 2], J[:, 1, 3] = (M0 * w1_S - v2 * r_S) / r, (M0 * w1_P - v2 * r_P) / r
        J[:, 2, 2], J[:, 2, 3], J[:, 3, 2], J[:, 3, 3] = w1_S, w1_P, w2_S, w2_P
        return J

    def lift(self, theta: Tensor) -> Tensor:
        check_theta(theta, 4)
        v1, v2, w1, w2 = theta.unbind(1)
        return torch.stack([v1 + v2, v1 * w1 + v2 * w2, w1 + w2, w1 * w2], 1)

    def push(self, eta: Tensor) -> Tensor:
        """Raw weights; NaN where the units are a complex pair."""
        atoms = self.atoms(eta)
        real = (atoms.imag.abs() < 1e-12).all(1, keepdim=True)
        return torch.where(real, atoms.real, torch.nan)
