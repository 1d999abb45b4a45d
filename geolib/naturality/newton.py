r"""Hessians that are tensors and Hessians that are not; Newton's rules and BFGS."""

from __future__ import annotations

import torch
from torch import Tensor

from geolib.naturality.local_geometry import LocalGeometry


def hessian(q: LocalGeometry) -> Tensor:
    r"""Return the Hessian of the loss, :math:`F + \langle d\ell, D^2f\rangle`, (p, p).

    Holds when the metric is the loss's own Fisher metric in natural parameters,
    where the loss's Hessian on outputs is W.

    Source: :eq:`drv-naturality-newton` (derivations).
    """
    return q.F + q.curvature(q.dl)


def newton(q: LocalGeometry) -> Tensor:
    r"""Return Newton's direction :math:`-H^{-1}g`, (p,)."""
    return -torch.linalg.solve(hessian(q), q.g)


def covariant_hessian(q: LocalGeometry) -> Tensor:
    r"""Return the covariant Hessian of the loss, a tensor at every point, (p, p).

    .. math:: H_{cov} = J^T(W - [\,\cdot\,\cdot, Jn])J
        + \langle d\ell - WJn, D^2f\rangle, \qquad n = F^+g .

    Args:
        q: the geometry at a point, with a metric of full rank.

    Source: :eq:`drv-naturality-covariant-hessian` (derivations).

    Examples:
        >>> from geolib.naturality import Problem, affine_mlp, mse, standard_suite
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> P = Problem.of(affine_mlp([1, 2]), x, mse(torch.cat([x, x**2], 1)))
        >>> phi = standard_suite(P.module, P.theta0)["coupling"]
        >>> there = P.push(phi)
        >>> H = covariant_hessian(P.point(P.theta0))
        >>> pushed = phi.push_metric(P.theta0, H)
        >>> bool((covariant_hessian(there.point(there.theta0)) - pushed).norm() < 1e-9)
        True
    """
    Jn = q.jvp(q.solve(q.g))
    H = q.F + q.curvature(q.dl - q.lower(Jn))
    third = q.output_metric.christoffel
    if not q.output_metric.constant:
        n, c = q.z.shape
        eye = torch.eye(c, dtype=q.z.dtype, device=q.z.device)
        K = torch.stack([third(q.z, e.expand(n, c), Jn) for e in eye], dim=1) / n
        J = q.J.view(n, c, -1)
        H = H - torch.einsum("nip,nij,njq->pq", J, K, J)
    return H


def covariant_newton(q: LocalGeometry) -> Tensor:
    r"""Return Newton's direction with the covariant Hessian, (p,)."""
    return -torch.linalg.solve(covariant_hessian(q), q.g)
