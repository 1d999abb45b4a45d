"""Networks of two signed units: loss, charts that cross their overlap, and surgery.

The chapter's model of a network: its loss is known in closed form, its strata by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import unwrap
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from geolib.core.validation import expect, require_finite
from geolib.networks.erf_kernel import ErfKernel
from geolib.stratifolds.charts import (
    AffineChart,
    Chart,
    Coordinates,
    check_theta,
    real_part,
)
from geolib.stratifolds.strata import (
    Charts,
    Draw,
    Stratifold,
    Stratum,
    coordinate_stratum,
)
from geolib.stratifolds.surgery import Reentry, best_reentry, splits


class RBFKernel:
    r"""The overlap of Gaussian bumps on the line, by Lebesgue measure.

    .. math:: k(a, b) = \frac{1}{\sqrt\pi}\int e^{-(x-a)^2/2} e^{-(x-b)^2/2}\,dx
              = e^{-(a-b)^2/4}

    Entire in a and b, so complex-conjugate centres are allowed.

    Source: :eq:`drv-stratifolds-rbf` (derivations).

    Examples:
        >>> RBFKernel()(torch.zeros(1), torch.tensor([2.0]))
        tensor(0.3679)
    """

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b) for a, b of shape (..., 1); the others are its derivatives."""
        return torch.exp(-((a - b) ** 2)[..., 0] / 4)

    def d1(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a - b) / 2 * self(a, b)[..., None]

    def d12(self, a: Tensor, b: Tensor) -> Tensor:
        d = (a - b)[..., None]
        return (0.5 - d * d / 4) * self(a, b)[..., None, None]

    def d11(self, a: Tensor, b: Tensor) -> Tensor:
        return -self.d12(a, b)


class ComplexErf(ErfKernel):
    """`ErfKernel` of complex pairs of units too, which the package's door refuses."""

    __call__ = unwrap(ErfKernel.__call__)
    d1, d12 = unwrap(ErfKernel.d1), unwrap(ErfKernel.d12)
    d11 = unwrap(ErfKernel.d11)


Kernel = RBFKernel | ErfKernel


def split_units(theta: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Weights (b, K(1+n)) to output weights (b, K) and input weights (b, K, n)."""
    v, w = theta[:, :units], theta[:, units:]
    return v, w.reshape(len(theta), units, -1)


def overlap_coordinates(theta: Tensor) -> tuple[Tensor, ...]:
    r"""Two units seen from their overlap stratum.

    .. math:: V = v_1 + v_2,\quad z = v_2/V,\quad b = (1-z)w_1 + z w_2,\quad
              d = w_2 - w_1,\quad u = z(1-z)|d|^2

    Args:
        theta: (B, 2 + 2n) two units.

    Returns:
        V (B,), z (B,), b (B, n), d (B, n), u (B,). They are not finite where V = 0,
        the end of the central chart.

    Source: :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> V, z, b, d, u = overlap_coordinates(torch.tensor([[1.0, 1.0, 0.0, 2.0]]))
        >>> float(V), float(z), float(b), float(u)
        (2.0, 0.5, 1.0, 1.0)
    """
    width = theta.shape[-1]
    fits = theta.ndim == 2 and len(theta) and width >= 4 and width % 2 == 0
    expect(fits, "theta", "shape (B, 2 + 2n)", tuple(theta.shape))
    v, w = split_units(theta, 2)
    V = v.sum(1)
    z = v[:, 1] / V
    b = (1 - z)[:, None] * w[:, 0] + z[:, None] * w[:, 1]
    d = w[:, 1] - w[:, 0]
    return V, z, b, d, z * (1 - z) * (d * d).sum(1)


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
        ValueError: teacher weights are of unequal length or not finite.

    Cost: b (K + K*)^2 n^2.
    Source: :eq:`drv-stratifolds-unitloss` (derivations).

    Examples:
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
        require_finite("teacher_v", v)
        require_finite("teacher_w", w)
        if w.ndim != 2 or v.shape != w.shape[:1]:
            raise ValueError(
                "teacher_w: expected shape (units, n) with one row for each of "
                f"{len(v)} output weights, got {tuple(w.shape)}"
            )
        self._own = v @ self.kernel(w[:, None], w) @ v  # the teacher's squared norm

    def _all(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """Output and input weights of all units, the teacher's with a minus sign."""
        v, w = split_units(natural, self.units)
        b = len(natural)
        tv = -self.teacher_v.to(v.dtype).expand(b, -1)
        tw = self.teacher_w.to(w.dtype).expand(b, -1, -1)
        return torch.cat([v, tv], 1), torch.cat([w, tw], 1)

    def value(self, natural: Tensor) -> Tensor:
        """The loss only, (b,)."""
        c, w = self._all(natural)
        K = self.kernel(w[:, :, None], w[:, None])
        return real_part(0.5 * torch.einsum("bi,bij,bj->b", c, K, c))

    def evaluate(
        self, natural: Tensor, fisher: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss (b,), gradient (b, A), Gauss-Newton matrix (b, A, A) if asked for."""
        c, w = self._all(natural)
        v, own = split_units(natural, self.units)
        k = self.kernel(own[:, :, None], w[:, None])
        d_v = (k @ c[..., None])[..., 0]
        cross = (k[:, :, self.units :] @ c[:, self.units :, None])[..., 0]
        loss = real_part(0.5 * ((v * (d_v + cross)).sum(1) + self._own))
        slope = self.kernel.d1(own[:, :, None], w[:, None])
        d_w = v[..., None] * (slope * c[:, None, :, None]).sum(2)
        gradient = torch.cat([d_v, d_w.flatten(1)], 1)
        F = unit_fisher(self.kernel, natural, self.units) if fisher else None
        return loss, gradient, F


def unit_fisher(kernel: Kernel, natural: Tensor, units: int = 2) -> Tensor:
    """The Gauss-Newton matrix in the weights of some units, (b, A, A)."""
    v, w = split_units(natural, units)
    b, K, n = w.shape
    left, right = w[:, :, None], w[:, None]
    F = torch.empty(b, K * (1 + n), K * (1 + n), dtype=w.dtype, device=w.device)
    F[:, :K, :K] = kernel(left, right)
    cross = kernel.d1(left, right) * v[:, :, None, None]  # (b, i, j, n)
    F[:, K:, :K] = cross.permute(0, 1, 3, 2).reshape(b, K * n, K)
    F[:, :K, K:] = F[:, K:, :K].transpose(1, 2)
    outer = (v[:, :, None] * v[:, None])[..., None, None]
    block = (kernel.d12(left, right) * outer).permute(0, 1, 3, 2, 4)
    F[:, K:, K:] = block.reshape(b, K * n, K * n)
    return F


class RawUnits(AffineChart):
    r"""The weights of K units as they are.

    .. math:: \theta = (v_1, \dots, v_K;\ w_1, \dots, w_K)

    Args:
        units: number of units K.
        n: input dimension.

    Examples:
        >>> RawUnits(2, 1).names
        ('v0', 'v1', 'w0_0', 'w1_0')
    """

    def __init__(self, units: int = 2, n: int = 1) -> None:
        w = [f"w{i}_{a}" for i in range(units) for a in range(n)]
        names = (*(f"v{i}" for i in range(units)), *w)
        super().__init__(names, np.eye(len(names)).tolist())


class ComplexUnits(Chart):
    """A chart whose units may be a complex-conjugate pair, while the network is real."""

    def embed(self, eta: Coordinates) -> Tensor:
        return self.linearize(eta)[0]

    def jacobian(self, eta: Coordinates) -> Tensor:
        return self.linearize(eta)[1]

    def from_chart(self, eta: Coordinates) -> Tensor:
        """Raw weights; NaN where the units are a complex pair."""
        natural = self.embed(eta)
        real = (natural.imag.abs() < 1e-12).all(1, keepdim=True)
        return torch.where(real, natural.real, torch.nan)


class CentralUnits(ComplexUnits):
    r"""The central chart writes two units by total weight, centre and signed spread.

    .. math:: D = \sqrt{s^2 + 4u},\quad z = \tfrac12(1 - s/D),\quad
              w_{1,2} = b \mp \tfrac12 (D \mp s)\,e

    The spread u may have any sign: the flow crosses u = 0, where raw weights are
    trapped. For :math:`s^2 + 4u < 0` the units are a complex-conjugate pair and the
    network stays real. The chart is singular at V = 0.

    Args:
        n: input dimension, 1 or 2; in the plane the direction e is an angle.

    Raises:
        ValueError: the input dimension is not 1 or 2.

    Source: :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> CentralUnits(1).embed(torch.tensor([[2.0, 1.0, 1.0, 0.0]])).real
        tensor([[1., 1., 0., 2.]])
    """

    def __init__(self, n: int = 1) -> None:
        expect(n in (1, 2), "n", "1 <= n <= 2", n)
        self.n = n
        self.names = (
            ("V", "b", "u", "s") if n == 1 else ("V", "b0", "b1", "u", "s", "e")
        )

    def linearize(self, eta: Coordinates) -> tuple[Tensor, Tensor]:
        n = self.n
        V, b, u, s = eta[:, :1], eta[:, 1 : 1 + n], eta[:, n + 1, None], eta[:, n + 2]
        e = turn = torch.ones_like(V)
        if n == 2:
            sin, cos = eta[:, 5].sin(), eta[:, 5].cos()
            e, turn = torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)
        s = s[:, None]
        D = torch.sqrt(s**2 + 4 * u + 1e-12 + 0j)
        z, D_u, D_s = (1 - s / D) / 2, 2 / D, s / D
        z_u, z_s = s * D_u / (2 * D**2), -(1 - D_s**2) / (2 * D)
        low, high = (D - s) / 2, (D + s) / 2
        natural = torch.cat([V * (1 - z), V * z, b - low * e, b + high * e], 1)
        by_V = torch.cat([1 - z, z, torch.zeros_like(z).expand(-1, 2 * n)], 1)
        by_b = torch.eye(n).repeat(2, 1).to(natural)
        by_b = torch.cat([torch.zeros_like(by_b[:2]), by_b]).expand(len(eta), -1, -1)
        by_u = torch.cat([-V * z_u, V * z_u, -D_u / 2 * e, D_u / 2 * e], 1)
        along = (1 - D_s) / 2 * e, (1 + D_s) / 2 * e
        by_s = torch.cat([-V * z_s, V * z_s, *along], 1)
        columns = [by_V[..., None], by_b, by_u[..., None], by_s[..., None]]
        if n == 2:
            by_e = torch.cat([0 * z, 0 * z, -low * turn, high * turn], 1)
            columns.append(by_e[..., None])
        return natural, torch.cat(columns, 2)

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 2 + 2 * self.n)
        V, z, b, d, u = overlap_coordinates(theta)
        if not bool(torch.isfinite(u).all()):
            raise ValueError("theta: the central chart needs v1 + v2 != 0 in every row")
        size = d.norm(dim=1) if self.n == 2 else d[:, 0]
        parts = [V[:, None], b, u[:, None], ((1 - 2 * z) * size)[:, None]]
        if self.n == 2:
            parts.append(torch.atan2(d[:, 1], d[:, 0])[:, None])
        return torch.cat(parts, 1)


class PronyUnits(ComplexUnits):
    r"""The Prony chart writes two units on the line by moments and symmetric functions.

    .. math:: M_0 = v_1 + v_2,\quad M_1 = v_1 w_1 + v_2 w_2,\quad
              S = w_1 + w_2,\quad P = w_1 w_2

    A polynomial map of the raw weights; global, and the network is analytic in it when
    the unit is an entire function of its weight (error function, Gaussian bump; not
    tanh). :math:`S^2 < 4P` is a complex-conjugate pair.

    Source: :eq:`drv-stratifolds-prony` (derivations).

    Examples:
        >>> c = PronyUnits()
        >>> theta = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
        >>> c.to_chart(theta)
        tensor([[-1.0000, -5.5000,  3.5000,  1.5000]], dtype=torch.float64)
    """

    names = ("M0", "M1", "S", "P")

    def linearize(self, eta: Coordinates) -> tuple[Tensor, Tensor]:
        M0, M1, S, P = (eta + 0j).unbind(1)
        r = torch.sqrt(S * S - 4 * P + 1e-12)
        w1, w2 = (S + r) / 2, (S - r) / 2
        v1, v2 = (M1 - M0 * w2) / r, (M0 * w1 - M1) / r
        r_S, r_P, zero = S / r, -2 / r, torch.zeros_like(r)
        w1_S, w1_P, w2_S, w2_P = (1 + r_S) / 2, r_P / 2, (1 - r_S) / 2, -r_P / 2
        rows = [
            [-w2 / r, 1 / r, (-M0 * w2_S - v1 * r_S) / r, (-M0 * w2_P - v1 * r_P) / r],
            [w1 / r, -1 / r, (M0 * w1_S - v2 * r_S) / r, (M0 * w1_P - v2 * r_P) / r],
            [zero, zero, w1_S, w1_P],
            [zero, zero, w2_S, w2_P],
        ]
        J = torch.stack([torch.stack(row, 1) for row in rows], 1)
        return torch.stack([v1, v2, w1, w2], 1), J

    def to_chart(self, theta: Tensor) -> Tensor:
        check_theta(theta, 4)
        v1, v2, w1, w2 = theta.unbind(1)
        return torch.stack([v1 + v2, v1 * w1 + v2 * w2, w1 + w2, w1 * w2], 1)


def _silent_units(n: int, draw: Draw, odd: bool) -> list[Stratum]:
    """Unit i contributes nothing: its output weight or its input weights vanish."""
    P = 2 + 2 * n
    strata = [
        # without output the n input weights are free ...
        coordinate_stratum(f"dead output of unit {i + 1}", P - n, P, {i: 0.0}, draw)
        for i in (0, 1)
    ]
    if odd:  # ... and without input only the output weight is
        for i in (0, 1):
            zero = {2 + i * n + a: 0.0 for a in range(n)}
            name = f"zero input of unit {i + 1}"
            strata.append(coordinate_stratum(name, P - 1, P, zero, draw))
    return strata


def _overlap(n: int, sign: int, draw: Draw) -> Stratum:
    """Both units alike, w1 = w2, or w1 = -w2 where the activation is odd."""
    P = 2 + 2 * n

    def flip(theta: Tensor) -> Tensor:
        out = theta.clone()
        out[:, 1] *= sign
        out[:, 2 + n :] *= sign
        return out

    def merge(theta: Tensor) -> Tensor:
        b = overlap_coordinates(flip(theta))[2]
        return torch.cat([theta[:, :2], b, sign * b], 1)

    def apart(theta: Tensor) -> Tensor:
        z = overlap_coordinates(flip(theta))[1]
        N = torch.zeros(len(theta), P, n, dtype=theta.dtype, device=theta.device)
        for a in range(n):
            N[:, 2 + a, a], N[:, 2 + n + a, a] = -z, sign * (1 - z)
        return N

    def overlapping(rng: np.random.Generator, count: int) -> np.ndarray:
        out = draw(rng, count)
        out[:, 2 + n :] = sign * out[:, 2 : 2 + n]
        return out

    def separation(theta: Tensor) -> Tensor:
        w = split_units(theta, 2)[1]
        return (w[:, 1] - sign * w[:, 0]).norm(dim=1)

    name = "overlap w1 = w2" if sign > 0 else "overlap w1 = -w2"
    return Stratum(name, 1 + n, P - n, separation, merge, apart, overlapping)


def two_unit_network(kind: str = "rbf", n: int = 1) -> Stratifold:
    r"""A network of two signed units, singular on overlap and without an output.

    .. math:: f(x) = v_1\,\sigma(w_1, x) + v_2\,\sigma(w_2, x), \qquad
              \Sigma = \{w_1 = w_2\} \cup \{v_1 = 0\} \cup \{v_2 = 0\}

    The error function is odd: there w1 = -w2 and w_i = 0 are singular as well.
    Resolutions: "moduli" (`PronyUnits` on the line, `CentralUnits` in the plane),
    and "central" and "prony" by name; `PairSurgery` leaves the weights as they are.

    Args:
        kind: "rbf" (Gaussian bumps on the line) or "erf".
        n: input dimension, 1 for "rbf", 1 or 2 for "erf".

    Raises:
        ValueError: the kind or the dimension is unknown.

    Source: :eq:`eq-stratifolds-net`; :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> S = two_unit_network()
        >>> theta = torch.tensor([[1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 0.5, 0.5],
        ...                       [0.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
        >>> S.rank(theta).tolist()
        [4, 2, 3]
    """
    if kind not in ("rbf", "erf") or n not in (1, 2) or (kind == "rbf" and n == 2):
        raise ValueError(
            f"kind, n: expected 'rbf' with n = 1, or 'erf' with n = 1 or 2; "
            f"got {kind!r}, {n}"
        )
    odd = kind == "erf"
    kernel: Kernel = ComplexErf() if odd else RBFKernel()

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        v = rng.normal(size=(count, 2))
        return np.concatenate([v, rng.uniform(-2, 2, (count, 2 * n))], 1)

    strata = [_overlap(n, sign, draw) for sign in ((1, -1) if odd else (1,))]
    strata += _silent_units(n, draw, odd)

    def objective(theta: Tensor) -> UnitLoss:
        v, w = split_units(theta[None], 2)
        return UnitLoss(kernel, v[0], w[0])

    def information(natural: Tensor) -> Tensor:
        return unit_fisher(kernel, natural)

    central: Chart = CentralUnits(n)
    prony = {"prony": PronyUnits()} if n == 1 else {}
    charts: Charts = {
        "central": central,
        "moduli": prony.get("prony", central),
        **prony,
    }
    name, raw = f"two {kind} units, {n}-D", RawUnits(2, n)
    ordered = tuple(sorted(strata, key=lambda stratum: stratum.rank))
    return Stratifold(name, raw, ordered, objective, information, draw, charts)


@dataclass
class PairSurgery:
    r"""Surgery retracts a pair onto its overlap stratum and re-enters where loss falls.

    .. math:: L(V, b, U) = L(V, b, 0) + \tfrac12\langle A, U\rangle + O(|U|^{3/2}),
              \qquad A = V\,E[(f - f^*)\,\sigma''(b\cdot x)\,x x^\top],
              \quad U = z(1-z)\,d d^\top

    With A's eigenpair :math:`(\lambda, e)`: a negative :math:`\lambda` is entered with
    both units between (z = 1/2, u > 0), a positive one with a unit of opposite sign
    outside (z = 3/2, u < 0). The move is kept only where the loss does not rise.

    Args:
        objective: population loss.
        eps: collar; a pair is operated on when :math:`|u| < \varepsilon`.
        u_min: spread at re-entry; None tries geometric sizes up to `eps`.

    Raises:
        ValueError: `eps` is not positive.

    Cost: one kernel Hessian and a few losses.
    Source: :eq:`drv-stratifolds-split` (derivations); A is the splitting matrix of
    Wu, Wang, Liu 2019.

    Examples:
        >>> from two_units import two_unit_network
        >>> loss = two_unit_network().objective(torch.tensor([1.0, 1.0, -1.0, 1.0]))
        >>> pair = torch.tensor([[1.8, -0.3, 0.0, 0.02]])    # z outside [0, 1]: bound
        >>> after = PairSurgery(loss)(pair, loss.value(pair))
        >>> bool(loss.value(after) < loss.value(pair))
        True
    """

    objective: UnitLoss
    eps: Annotated[float, "0 < eps < inf"] = 0.1
    u_min: float | None = None

    @property
    def width(self) -> int:
        """The number 2 + 2n of weights of two units."""
        return 2 + 2 * self.objective.teacher_w.shape[1]

    def matrix(self, theta: Annotated[Tensor, "real B self.width"]) -> Tensor:
        """The splitting matrix A at the retraction of each row, (B, n, n)."""
        V, _, b, _, _ = overlap_coordinates(theta)
        loss = self.objective
        teacher = loss.teacher_w.expand(len(theta), -1, -1)
        points = torch.cat([b[:, None], teacher], 1)
        c = torch.cat([V[:, None], -loss.teacher_v.expand(len(theta), -1)], 1)
        H = loss.kernel.d11(b[:, None], points)
        return V[:, None, None] * torch.einsum("bj,bjnm->bnm", c, H)

    def __call__(
        self,
        theta: Annotated[Tensor, "real B self.width"],
        value: Annotated[Tensor, "B"],
    ) -> Tensor:
        """The weights (B, 2 + 2n) after surgery, given them and their losses (B,)."""
        V, _, b, _, u = overlap_coordinates(theta)
        inside = torch.isfinite(u) & (u.abs() < self.eps) & (V.abs() > 1e-8)
        out, rows = theta.clone(), inside.nonzero()[:, 0]
        if not len(rows):
            return out
        lam, E = torch.linalg.eigh(self.matrix(theta[rows]))
        sizes = [self.u_min] if self.u_min else [self.eps * 4.0**-k for k in range(4)]

        def gaps(z: float) -> Iterator[Tensor]:
            for size in sizes:
                yield torch.sqrt(u[rows].abs().clamp_min(size) / abs(z * (1 - z)))

        def weights(trial: Reentry) -> Tensor:
            return torch.cat([trial.v1, trial.v2, trial.w1, trial.w2], 1)

        ends = lam[:, [0, -1]], E[:, :, [0, -1]]
        trials = splits(V[rows, None], b[rows], *ends, gaps)
        best, _ = best_reentry(
            trials, lambda trial: self.objective.value(weights(trial)), value[rows]
        )
        for k, trial in enumerate(best):
            if trial is not None:
                out[rows[k]] = weights(trial)[k]
        return out


def on_plateau(
    theta: Annotated[Tensor, "real B P"], eps: Annotated[float, "0 < eps < inf"] = 0.1
) -> Tensor:
    r"""Which two-unit networks sit in the collar of the overlap stratum.

    .. math:: |u| = |z(1-z)|\,|w_1 - w_2|^2 < \varepsilon

    Args:
        theta: (B, 2 + 2n) raw weights.
        eps: width of the collar in u.

    Returns:
        (B,) booleans.

    Source: :eq:`drv-stratifolds-central` (derivations).

    Examples:
        >>> on_plateau(torch.tensor([[1.0, 1.0, 0.0, 0.1], [1.0, 1.0, 0.0, 2.0]]))
        tensor([ True, False])
    """
    u = overlap_coordinates(theta)[4]
    return torch.isfinite(u) & (u.abs() < eps)
