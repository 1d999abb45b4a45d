"""The interior and the free face: the flow on a truncated free product of chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from geolib.regimes.curves import Curves
from geolib.regimes.integrate import adaptive
from geolib.regimes.law import Law, jacobi, pin_zero
from geolib.regimes.setup import check_times, positive

Word = tuple[tuple[str, int], ...]  # ((letter, level), ...), letters alternate


@dataclass(frozen=True)
class Fock:
    r"""The operators of the infinite-size limit, cut at a depth.

    The initial map A and the sample covariance S are free: they act on the free
    product of two half-lines (the Jacobi matrices of their Marchenko-Pastur laws), and
    the normalised trace of any word in them is a matrix element at the root.

    `A` is (N, N); S is stored by its three entries a row, `columns` and `entries`
    (3, N). `root` (N,) is the vector whose matrix elements are traces over the d
    inputs, or W^T at a latent when `latent` is true.
    """

    A: np.ndarray
    columns: np.ndarray
    entries: np.ndarray
    root: np.ndarray
    latent: bool

    @property
    def S(self) -> np.ndarray:
        """S as a dense matrix (for tests and small depths)."""
        dense = np.zeros_like(self.A)
        rows = np.arange(len(self.root))
        for column, entry in zip(self.columns, self.entries, strict=True):
            np.add.at(dense, (rows, column), entry)
        return dense


def words(depth: int) -> list[Word]:
    """Basis words of total depth at most `depth`, shortest first; () is the root.

    Examples:
        >>> len(words(3)), words(1)
        (15, [(), (('A', 1),), (('S', 1),)])
    """
    found: list[Word] = [()]
    layer: list[Word] = [()]
    for _ in range(depth):
        layer = [w for old in layer for w in _children(old)]
        found += layer
    return found


def _up(word: Word, letter: str) -> Word:
    """The neighbour of `word` one level up its first chain of `letter`."""
    if word and word[0][0] == letter:
        return ((letter, word[0][1] + 1), *word[1:])
    return ((letter, 1), *word)


def _children(word: Word) -> list[Word]:
    return [_up(word, letter) for letter in "AS"]


def fock_space(
    rho: float,
    kappa: float,
    c: float | None = None,
    depth: int = 8,
    *,
    law: Law | None = None,
) -> Fock:
    r"""Build the truncated operators; h < d takes the root at a latent.

    Along a chain of its letter, A has diagonal
    :math:`\rho, \rho+\kappa, \rho+\kappa, \dots` and off-diagonal
    :math:`\sqrt{\rho\kappa}`; S likewise with (1, c), or with the recurrence
    coefficients of any given law, since Gaussian weights are free of every S. Where a
    law has an atom at zero the last diagonal entry of a cut chain is chosen to keep
    the null space. Read at a latent, the root chain starts on the latent's image:
    :math:`W^T f = \sqrt\kappa\, e_1`, with diagonal :math:`\kappa + \rho` from there.

    Args:
        rho, kappa: sigma^2 h and sigma^2 d.
        c: d / n, for isotropic Gaussian data.
        law: the spectral law of S instead of `c`.
        depth: largest total level of a basis word; the size is :math:`2^{D+1} - 1`.

    Raises:
        ValueError: parameters that are not positive, or a depth not in 1..11.

    Source: spec section 4.5 (ours, beyond the paper).

    Examples:
        >>> fock_space(1.0, 1.0, 1.0, 3).A.shape
        (15, 15)
    """
    positive("rho", rho)
    positive("kappa", kappa)
    if not 1 <= depth <= 11:
        raise ValueError(f"depth: expected 1 to 11, got {depth}")
    latent = rho < kappa
    basis = words(depth)
    index = {word: i for i, word in enumerate(basis)}
    size = len(basis)
    chain = {"A": _wishart_chain(rho, kappa, depth), "S": _chain(c, law, depth)}
    matrix = {"A": np.zeros((size, size)), "S": np.zeros((size, size))}
    for letter, M in matrix.items():
        diagonal, off, null = chain[letter]
        for word, i in index.items():
            level = word[0][1] if word and word[0][0] == letter else 0
            if latent and letter == "A" and (not word or word[0][0] == "A"):
                # Seen from a latent, the root stands one step up its chain of A.
                level += 1 if len(word) < 2 else 0
            M[i, i] = diagonal[level]
            j = index.get(_up(word, letter))
            if j is not None:
                M[i, j] = M[j, i] = off[level]
            elif null:
                M[i, i] = pin_zero(diagonal[: level + 1], off[:level])
    A, S = matrix["A"], matrix["S"]
    root = np.zeros(size)
    root[0] = np.sqrt(kappa) if latent else 1.0
    order = np.argsort(S == 0, axis=1, kind="stable")[:, :3]
    entries = np.take_along_axis(S, order, 1)
    return Fock(A, order.T.copy(), entries.T.copy(), root, latent)


def _wishart_chain(
    mean: float, spread: float, depth: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Recurrence coefficients of Marchenko-Pastur's law, and whether it has an atom."""
    diagonal = np.full(depth + 2, mean + spread)
    diagonal[0] = mean
    return diagonal, np.full(depth + 1, np.sqrt(mean * spread)), mean < spread


def _chain(
    c: float | None, law: Law | None, depth: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The same for S."""
    if (c is None) == (law is None):
        raise ValueError("c, law: expected exactly one of the two")
    if law is None:
        return _wishart_chain(1.0, positive("c", c or 0.0), depth)
    null = bool(law.weights[law.nodes <= 1e-12 * law.nodes.max()].sum() > 0)
    return *jacobi(law, depth + 2), null


def fock_curves(
    times: ArrayLike,
    rho: float,
    kappa: float,
    c: float | None = None,
    *,
    law: Law | None = None,
    depth: int = 8,
    target: bool = True,
    rtol: float = 1e-6,
) -> Curves:
    r"""Losses over d in the limit of large sizes with every ratio kept.

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

    Source: spec section 4.5 (ours, beyond the paper).

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
    rows: list[tuple[float, float]] = []

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

    def observe(y: Tensor, dy: Tensor, e: Tensor) -> None:
        A, w = y[0, :, :size], y[0, :, size]
        Sw, Aw = by_s(w[:, None])[:, 0], A @ w
        if space.latent:  # traces of Q and K Q at a latent, w = W^T f
            train = -goal * w @ Sw + Aw @ Sw / 2
            population = -goal * w @ w + Aw @ w / 2
            rows.append((float(train), float(population)))
        else:
            b = Aw - goal * w
            Sb = by_s(b[:, None])[:, 0]
            rows.append((float(b @ Sb) / 2, float(b @ b) / 2))

    start = torch.as_tensor(np.column_stack((space.A, space.root)))[None]
    with torch.no_grad():
        adaptive(flow, start, t.tolist(), observe, rtol=rtol, atol=rtol * 1e-2)
    train, population = np.array(rows).T
    if space.latent:
        eta = rho / kappa
        return Curves(goal / 2 + eta * train, goal / 2 + eta * population)
    return Curves(train, population)
