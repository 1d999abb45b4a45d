"""The interior and the free face: the flow on a truncated free product of chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from geolib.regimes.loss_curves import Curves, follow
from geolib.regimes.setup import check_times, positive
from geolib.regimes.spectral_measures import SpectralMeasure, jacobi, pin_zero

# A vertex of the free product: ((letter, level), ...), letters alternate, the first is
# the chain on which the vertex stands and how far up; () is the root.
Vertex = tuple[tuple[str, int], ...]
# Recurrence coefficients of a law, and whether a cut of its chain must keep a null space.
Chain = tuple[np.ndarray, np.ndarray, bool]


@dataclass(frozen=True)
class FockSpace:
    r"""The operators of the infinite-size limit, cut at a depth.

    The initial map A and the sample covariance S are free: they act on the free
    product of two half-lines (the Jacobi matrices of their Marchenko-Pastur laws), and
    the normalised trace of any word in them is a matrix element at the root.

    Attributes:
        A: (N, N).
        columns, entries: (3, N), the three entries of each row of S.
        root: (N,) vector whose matrix elements are traces over the d inputs, or W^T at
            a latent when `latent` is true.
        latent: whether the root is a latent (h < d).
    """

    A: np.ndarray
    columns: np.ndarray
    entries: np.ndarray
    root: np.ndarray
    latent: bool


def vertices(depth: int) -> list[Vertex]:
    """Vertices of total depth at most `depth`, nearest first; () is the root.

    Examples:
        >>> len(vertices(3)), vertices(1)
        (15, [(), (('A', 1),), (('S', 1),)])
    """
    found: list[Vertex] = [()]
    layer: list[Vertex] = [()]
    for _ in range(depth):
        layer = [_up(old, letter) for old in layer for letter in "AS"]
        found += layer
    return found


def _level(vertex: Vertex, letter: str) -> int:
    """How far up a chain of `letter` the vertex stands: 0 where a chain begins."""
    return vertex[0][1] if vertex and vertex[0][0] == letter else 0


def _up(vertex: Vertex, letter: str) -> Vertex:
    """The neighbour one level up the chain of `letter` through the vertex."""
    level = _level(vertex, letter)
    return ((letter, level + 1), *vertex[1 if level else 0 :])


def _on_root_chain(vertex: Vertex, letter: str) -> bool:
    """Whether the chain of `letter` through the vertex begins at the root."""
    return vertex == () or (len(vertex) == 1 and vertex[0][0] == letter)


def fock_space(
    rho: float,
    kappa: float,
    c: float | None = None,
    depth: int = 8,
    *,
    law: SpectralMeasure | None = None,
) -> FockSpace:
    r"""The truncated operators A and S are built; for h < d the root is a latent.

    Along a chain of its letter, A has diagonal
    :math:`\rho, \rho+\kappa, \rho+\kappa, \dots` and off-diagonal
    :math:`\sqrt{\rho\kappa}`; S likewise with (1, c), or with the recurrence
    coefficients of any given law, since Gaussian weights are free of every S. Where a
    law has an atom at zero the last diagonal entry of a cut chain is chosen to keep
    the null space. Read at a latent, the root chain starts on the latent's image:
    :math:`W^T f = \sqrt\kappa\, e_1`, with diagonal :math:`\kappa + \rho` from there.

    .. math:: \varphi(w(A, S)) = \langle 0 | w(A, S) | 0 \rangle

    Args:
        rho, kappa: sigma^2 h and sigma^2 d.
        c: d / n, for isotropic Gaussian data.
        depth: largest total level of a vertex; the size is :math:`2^{D+1} - 1`.
        law: the spectral law of S instead of `c`.

    Returns:
        `FockSpace` with the matrices `A` and `S` and the vector `root`.

    Raises:
        ValueError: parameters that are not positive, or a depth not in 1..11.

    Cost: :math:`4^{D+1}` numbers of memory.

    Source: :eq:`drv-regimes-fock` (derivations), after Nica and Speicher 2006.

    Examples:
        >>> fock_space(1.0, 1.0, 1.0, 3).A.shape
        (15, 15)
    """
    positive("rho", rho)
    positive("kappa", kappa)
    if not 1 <= depth <= 11:
        raise ValueError(f"depth: expected 1 to 11, got {depth}")
    latent = rho < kappa
    index = {vertex: i for i, vertex in enumerate(vertices(depth))}
    A = _free_operator("A", index, _wishart_chain(rho, kappa, depth), latent)
    S = _free_operator("S", index, _chain(c, law, depth), False)
    root = np.zeros(len(index))
    root[0] = np.sqrt(kappa) if latent else 1.0
    order = np.argsort(S == 0, axis=1, kind="stable")[:, :3]
    entries = np.take_along_axis(S, order, 1)
    return FockSpace(A, order.T.copy(), entries.T.copy(), root, latent)


def _free_operator(
    letter: str, index: dict[Vertex, int], chain: Chain, latent: bool
) -> np.ndarray:
    """The tridiagonal matrix of a law, copied along every chain of its letter.

    Read at a latent f, the chain of A through the root starts one step below it, as
    the root is W^T f: the levels of that chain are one higher.
    """
    diagonal, off, has_null_space = chain
    M = np.zeros((len(index), len(index)))
    for vertex, i in index.items():
        level = _level(vertex, letter)
        if latent and _on_root_chain(vertex, letter):
            level += 1
        M[i, i] = diagonal[level]
        j = index.get(_up(vertex, letter))
        if j is not None:
            M[i, j] = M[j, i] = off[level]
        elif has_null_space:
            M[i, i] = pin_zero(diagonal[: level + 1], off[:level])
    return M


def _wishart_chain(mean: float, spread: float, depth: int) -> Chain:
    """Recurrence coefficients of Marchenko-Pastur's law, and whether it has an atom."""
    diagonal = np.full(depth + 2, mean + spread)
    diagonal[0] = mean
    return diagonal, np.full(depth + 1, np.sqrt(mean * spread)), mean < spread


def _chain(c: float | None, law: SpectralMeasure | None, depth: int) -> Chain:
    """The same for S."""
    if (c is None) == (law is None):
        raise ValueError("c, law: expected exactly one of the two")
    if law is None:
        return _wishart_chain(1.0, positive("c", c or 0.0), depth)
    atom = law.weights[law.nodes <= 1e-12 * law.nodes.max()].sum() > 0
    return *jacobi(law, depth + 2), bool(atom)


def fock_curves(
    times: ArrayLike,
    rho: float,
    kappa: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    depth: int = 8,
    target: bool = True,
    rtol: float = 1e-6,
) -> Curves:
    r"""The losses over d in the limit of large sizes with every ratio kept.

    .. math:: A' = -(C A + A C), \qquad C = S (A - 1) + (A - 1) S , \\
        L_{train}/d = \tfrac12 \langle 0 | S (1 - A)^2 | 0 \rangle , \qquad
        L_{pop}/d = \tfrac12 \langle 0 | (1 - A)^2 | 0 \rangle ,

    and for h < d, with :math:`w = W^T f` carried along as :math:`w' = -C w`,

    .. math:: L_{train}/d = \tfrac12 + \eta\,[ -w^T S w + \tfrac12 w^T A S w ] .

    The Taylor series at time 0 is that of the planar expansion to order depth - 1.

    Args:
        times: (T,) increasing.
        rho, kappa: sigma^2 h and sigma^2 d.
        c, law: d / n, or the spectral law of S instead.
        depth: of the space; the error falls with it, slowest for h < d at late times.
        target: False for the free flow; the losses are then
            :math:`\tfrac12 \phi(S A^2)` and :math:`\tfrac12 \phi(A^2)`.
        rtol: tolerance of the integration.

    Returns:
        `Curves` of losses over d.

    Raises:
        ValueError: bad times, parameters or depth.

    Cost: one product of (2^{D+1})^3 an evaluation; about 3 s at depth 8.

    Source: :eq:`drv-regimes-fock-flow` and :eq:`drv-regimes-latent` (derivations),
    beyond the paper.

    Examples:
        >>> start = fock_curves([0.0], 1.0, 1.0, 1.0, depth=2)
        >>> round(float(start.train[0]), 12)
        0.5
    """
    t = check_times(times)
    space = fock_space(rho, kappa, c, depth, law=law)
    columns = torch.as_tensor(space.columns)
    entries = torch.as_tensor(space.entries)[:, :, None]
    size = len(space.root)
    goal = 1.0 if target else 0.0

    def by_s(B: Tensor) -> Tensor:
        """S B from the three entries of each row of S."""
        out = entries[0] * B[columns[0]]
        for column, entry in zip(columns[1:], entries[1:], strict=True):
            out += entry * B[column]
        return out

    def flow(y: Tensor) -> Tensor:
        B = y[0, :, :size].clone()
        B.diagonal().sub_(goal)
        N = by_s(B)
        D = (N + N.T) @ y[0]  # C A beside C w
        out = D.neg()
        out[:, :size] -= D[:, :size].T
        if not space.latent:
            out[:, size:] = 0.0  # the root itself stands still
        return out[None]

    def losses(y: Tensor, dy: Tensor, e: Tensor) -> tuple[float, float]:
        A, w = y[0, :, :size], y[0, :, size]
        Sw, Aw = by_s(w[:, None])[:, 0], A @ w
        if space.latent:  # traces of Q and K Q at a latent, w = W^T f
            train = -goal * w @ Sw + Aw @ Sw / 2
            population = -goal * w @ w + Aw @ w / 2
            return float(train), float(population)
        b = Aw - goal * w
        return float(b @ by_s(b[:, None])[:, 0]) / 2, float(b @ b) / 2

    start = torch.as_tensor(np.column_stack((space.A, space.root)))[None]
    rows, _ = follow(flow, start, t, losses, rtol=rtol, atol=rtol * 1e-2)
    train, population = np.array(rows).T
    if space.latent:
        eta = rho / kappa
        return Curves(goal / 2 + eta * train, goal / 2 + eta * population)
    return Curves(train, population)
