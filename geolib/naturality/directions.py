r"""First-order rules: the velocity that each algorithm prescribes at a point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geolib.naturality.point import Point, flatten, unflatten

Direction = Callable[[Point], Tensor]


def gradient(q: Point) -> Tensor:
    r"""Gradient flow, :math:`-g`."""
    return -q.g


def normalized(q: Point) -> Tensor:
    r"""The gradient's direction, :math:`-g/|g|`."""
    return -q.g / q.g.norm()


def sign(q: Point) -> Tensor:
    r"""Sign flow, :math:`-\mathrm{sign}(g)`; also Adam's and RMSProp's limit."""
    return -q.g.sign()


def natural(q: Point) -> Tensor:
    r"""The natural gradient :math:`-F^+g`."""
    return -q.solve(q.g)


def damped(strength: float) -> Direction:
    r"""Identity-damped natural gradient :math:`-(F + \lambda I)^{-1}g`."""
    return lambda q: -q.solve(q.g, strength)


def hessian(q: Point) -> Tensor:
    r"""The Hessian of the loss: :math:`F + \langle d\ell, D^2f\rangle`.

    Holds when the metric is the loss's own Fisher metric in natural parameters,
    where the loss's Hessian on outputs is W.
    """
    return q.F + q.curvature(q.dl)


def newton(q: Point) -> Tensor:
    r"""Newton's direction :math:`-H^{-1}g`."""
    return -torch.linalg.solve(hessian(q), q.g)


def covariant_hessian(q: Point) -> Tensor:
    r"""The covariant Hessian :math:`H - \Gamma^kg_k` of the metric's connection.

    .. math:: H_{cov} = J^T(W - [\,\cdot\,\cdot, Jn])J
        + \langle d\ell - WJn, D^2f\rangle, \qquad n = F^+g .
    """
    Jn = q.jvp(q.solve(q.g))
    H = q.F + q.curvature(q.dl - q.weigh(Jn))
    third = q.geometry.christoffel
    if third is not None:
        n, c = q.z.shape
        eye = torch.eye(c, dtype=q.z.dtype, device=q.z.device)
        K = torch.stack([third(q.z, e.expand(n, c), Jn) for e in eye], dim=1) / n
        J = q.J.view(n, c, -1)
        H = H - torch.einsum("nip,nij,njq->pq", J, K, J)
    return H


def covariant_newton(q: Point) -> Tensor:
    r"""Newton's direction with the covariant Hessian."""
    return -torch.linalg.solve(covariant_hessian(q), q.g)


def empirical(q: Point) -> Tensor:
    r"""The empirical Fisher :math:`\frac1n\sum g_ig_i^T` in place of F."""
    n, c = q.z.shape
    rows = n * torch.einsum("ncp,nc->np", q.J.view(n, c, -1), q.dl)
    return -torch.linalg.lstsq(rows.T @ rows / n, q.g[:, None]).solution[:, 0]


def diagonal(q: Point) -> Tensor:
    r"""The diagonal of F in place of F."""
    return -q.g / (q.A * q.A).sum(0)


def marquardt(strength: float) -> Direction:
    r"""Levenberg-Marquardt with its scaling: :math:`F + \lambda\,\mathrm{diag}F`."""

    def direction(q: Point) -> Tensor:
        d = torch.diag((q.A * q.A).sum(0))
        return -torch.linalg.solve(q.F + strength * d, q.g)

    return direction


def _slices(q: Point) -> list[slice]:
    ends = torch.tensor([t.numel() for t in q.params]).cumsum(0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def block(q: Point) -> Tensor:
    r"""F with only the blocks of one parameter tensor each."""
    out = torch.empty_like(q.g)
    for s in _slices(q):
        A = q.A[:, s]
        out[s] = -torch.linalg.solve(A.T @ A, q.g[s])
    return out


def kronecker(q: Point) -> Tensor:
    r"""Each block replaced by the Kronecker product of its partial traces.

    .. math:: F_l \approx \frac{\mathrm{tr}_{in}F_l \otimes \mathrm{tr}_{out}F_l}
        {\mathrm{tr} F_l} .
    """
    steps = []
    grads = unflatten(q.g, q.params)
    for s, g in zip(_slices(q), grads, strict=True):
        G = g.reshape(g.shape[0], -1) if g.ndim > 1 else g.reshape(1, -1)
        A = q.A[:, s].view(-1, *G.shape)
        rows = torch.einsum("kai,kbi->ab", A, A)
        cols = torch.einsum("kai,kaj->ij", A, A)
        X = torch.linalg.solve(rows, G)
        steps.append(-torch.linalg.solve(cols, X.T).T * rows.trace())
    return flatten(steps)


def polar(G: Tensor) -> Tensor:
    r"""The orthogonal factor :math:`UV^T` of a matrix."""
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ Vh


def _matrices(q: Point) -> list[Tensor]:
    return [
        g.reshape(g.shape[0], -1) if g.ndim > 1 else g.reshape(1, -1)
        for g in unflatten(q.g, q.params)
    ]


def muon(q: Point) -> Tensor:
    r"""Muon without memory: the exact polar factor of every matrix."""
    return flatten([-polar(G) for G in _matrices(q)])


def root(S: Tensor, power: float) -> Tensor:
    """A power of a positive semi-definite matrix, zero on its kernel."""
    w, U = torch.linalg.eigh(S)
    keep = w > 1e-14 * w[-1]
    return (U * torch.where(keep, torch.where(keep, w, 1.0) ** power, 0.0)) @ U.T


def shampoo(accumulator: float = 0.1) -> Direction:
    r"""Shampoo with power -1/4 at a frozen accumulator :math:`aI + GG^T`."""

    def direction(q: Point) -> Tensor:
        out = []
        for G in _matrices(q):
            eye = [torch.eye(k, dtype=G.dtype, device=G.device) for k in G.shape]
            L = root(accumulator * eye[0] + G @ G.T, -0.25)
            R = root(accumulator * eye[1] + G.T @ G, -0.25)
            out.append(-L @ G @ R)
        return flatten(out)

    return direction


DIRECTIONS: dict[str, Direction] = {
    "gradient": gradient,
    "normalized": normalized,
    "sign": sign,
    "natural": natural,
    "damped": damped(0.1),
    "newton": newton,
    "covariant-newton": covariant_newton,
    "empirical": empirical,
    "diagonal": diagonal,
    "marquardt": marquardt(0.1),
    "block": block,
    "kronecker": kronecker,
    "muon": muon,
    "shampoo": shampoo(),
}
