"""The exact evidence of a model on a grid, whatever the number of data.

The nodes are even in the logarithm, since a posterior near a singular set has structure on
all scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geolib.core.validation import expect
from geolib.stratifolds import Grid
from geolib.stratifolds.mixture_kl import check_mixture


@dataclass(frozen=True)
class EvidenceCurve:
    r"""The exact evidence of a model falls as the number of data grows.

    .. math:: Z(n) = \int e^{-nK(\theta)}\,\varphi(\theta)\,d\theta, \qquad
              -\frac{d\log Z}{d\log n} = n\langle K\rangle_n
              = \lambda - \frac{m-1}{\log n} + o\Bigl(\frac1{\log n}\Bigr)

    :math:`\lambda` is the learning coefficient, or real log canonical threshold
    (RLCT), and m its multiplicity.

    Attributes:
        n: (N,) sample sizes.
        log_z: (N,) log evidence.
        local: (N,) the local slope :math:`n\langle K\rangle_n`, the learning
            coefficient that a sampler at this n would report.
    """

    n: Tensor
    log_z: Tensor
    local: Tensor

    def fit(self, multiplicity: int | None = None) -> tuple[float, float]:
        r"""Least squares for :math:`\log Z = c - \lambda\log n + (m-1)\log\log n`.

        Args:
            multiplicity: hold m at this value; None fits it too.

        Returns:
            The learning coefficient :math:`\lambda` and m.
        """
        log_n = torch.log(self.n)
        target = self.log_z
        columns = [torch.ones_like(log_n), -log_n]
        if multiplicity is None:
            columns.append(torch.log(log_n))
        else:
            target = target - (multiplicity - 1) * torch.log(log_n)
        X = torch.stack(columns, 1)
        c = torch.linalg.lstsq(X, target[:, None]).solution[:, 0]
        m = float(c[2]) + 1 if multiplicity is None else float(multiplicity)
        return float(c[1]), m


def evidence_curve(
    K: Tensor,
    log_mass: Tensor,
    n: Tensor,
) -> EvidenceCurve:
    r"""The evidence of a model whose divergence is known on a grid.

    .. math:: Z(n) = \sum_g \mathrm{mass}_g\,e^{-nK_g}

    Args:
        K: (G,) divergences from the truth, >= 0.
        log_mass: (G,) log prior mass of each node (normalised here).
        n: (N,) sample sizes.

    Raises:
        ValueError: the shapes differ, or K is negative or not finite.

    Cost: N G.
    Source: Watanabe 2009; :eq:`drv-stratifolds-evidence` (derivations).

    Examples:
        >>> theta, log_mass = log_axis(1.0, 400)
        >>> n = torch.logspace(4, 8, 9, dtype=torch.float64)
        >>> curve = evidence_curve(theta**2, log_mass, n)
        >>> round(curve.fit(multiplicity=1)[0], 3)      # K = t^2: lambda = 1/2
        0.5
    """
    expect(bool((K >= 0).all()), "K", "divergences >= 0", float(K.min()))
    same = K.shape == log_mass.shape
    expect(same, "K, log_mass", "tensors of one shape", (K.shape, log_mass.shape))
    log_mass = log_mass - torch.logsumexp(log_mass, 0)
    log_z, local = [], []
    for size in n:
        log_w = log_mass - size * K
        z = torch.logsumexp(log_w, 0)
        log_z.append(z)
        local.append((torch.exp(log_w - z) * K).sum() * size)
    return EvidenceCurve(n, torch.stack(log_z), torch.stack(local))


def log_axis(
    high: float,
    count: int,
    low: float = 1e-9,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    r"""Nodes on (0, high], evenly spaced in the logarithm, and their log masses.

    .. math:: \int_0^{h} g(t)\,dt \approx \sum_i g(e^{u_i})\,e^{u_i}\,\Delta u

    A posterior near a singular set has structure on all scales down to
    :math:`n^{-1/2}`, so an even grid in t would need far more nodes.

    Args:
        high: end of the interval.
        count: number of nodes.
        low: first node; below it the density is taken as constant.

    Raises:
        ValueError: not 0 < low < high, or there are fewer than 2 nodes.

    Source: :eq:`drv-stratifolds-logaxis` (derivations).

    Examples:
        >>> t, log_mass = log_axis(2.0, 2000)
        >>> round(float((t**2 * log_mass.exp()).sum()), 3)     # 8/3
        2.667
    """
    expect(0 < low < high, "low, high", "0 < low < high", (low, high))
    u = torch.linspace(math.log(low), math.log(high), count, dtype=dtype)
    mass = u + math.log(float(u[1] - u[0]))
    # trapezoid end, plus the stretch (0, low]
    mass[0] = u[0] + math.log(0.5 * float(u[1] - u[0]) + 1)
    mass[-1] = mass[-1] + math.log(0.5)
    return torch.exp(u), mass


def divergence_from_null(
    natural: Tensor, grid: Grid | None = None, chunk: int = 500
) -> Tensor:
    r"""The divergence KL(N(0,1) || p) to full relative accuracy, however small.

    .. math:: K = \int q\,(r - \log(1+r)), \qquad
              r = \frac pq - 1 = \sum_k a_k\,(e^{c_k x - c_k^2/2} - 1)

    Differences of logarithms lose all digits below 1e-16; here r comes from `expm1`
    and for small r the integrand from its series, so K is accurate down to 1e-30.

    Args:
        natural: (b, 2K) weights summing to 1, then locations.
        grid: quadrature.
        chunk: rows at a time; few enough to stay in a processor's cache.

    Raises:
        ValueError: `natural` is malformed or not finite.

    Cost: b K q exponentials.
    Source: :eq:`drv-stratifolds-null` (derivations).

    Examples:
        >>> tiny = torch.tensor([[0.5, 0.5, -1e-5, 1e-5]], dtype=torch.float64)
        >>> K = divergence_from_null(tiny)          # v^2/4 with v = 1e-10
        >>> round(float(K) * 1e20, 4)
        0.25
    """
    check_mixture(natural)
    grid = grid or Grid()
    x = grid.nodes(natural)
    q = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * grid.step
    out = []
    for part in natural.split(chunk):
        a, c = part[..., None].chunk(2, 1)
        exponent = c * x - 0.5 * c * c
        r = (a * torch.expm1(exponent)).sum(1)
        series = r * r * (0.5 - r * (1 / 3 - r * (0.25 - r * (0.2 - r / 6))))
        log_p, far = torch.log1p(r), r < -0.5
        rows = far.any(1)
        if bool(rows.any()):  # 1 + r would round to 0: sum the positive terms instead
            p = (a[rows] * torch.exp(exponent[rows])).sum(1)
            log_p[rows] = torch.where(far[rows], p.log(), log_p[rows])
        out.append(torch.where(r.abs() < 1e-3, series, r - log_p) @ q)
    return torch.cat(out)
