"""Charts of two units that cross the overlap stratum."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.stratifolds.charts import Chart, check_theta
from geolib.stratifolds.two_unit import split_units


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
        self.names = (
            ("V", "b", "u", "s") if n == 1 else ("V", "b0", "b1", "u", "s", "e")
        )

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
