"""The interior and the free face: the flow on a truncated free product of chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from geolib.regimes.descent import Rule, descend
from geolib.regimes.loss_curves import Curves, follow
from geolib.regimes.setup import check_times
from geolib.regimes.spectral_measures import (
    SpectralMeasure,
    covariance_law,
    jacobi,
    marchenko_pastur,
    reweighted,
)

BAND = 4  # entries of a row of S: a tilted chain couples its first three vectors


def chain(law: SpectralMeasure, levels: int) -> np.ndarray:
    r"""A factor F of the operator :math:`F F^T` of a law on a half-line, lower triangular.

    Without an atom at zero the operator is the Jacobi matrix. With mass p there the
    first vector is :math:`e = \sqrt p\,q + \sqrt{1-p}\,y_0`, a unit vector q of the null
    space and one of the range; the basis is e, then
    :math:`\sqrt{1-p}\,q - \sqrt p\,y_0`, then the vectors :math:`y_1, y_2, \dots` of the
    law without its atom, so that rows that are cut off leave the atom as it is.

    Examples:
        >>> coin = SpectralMeasure(np.array([0.0, 4.0]), np.array([0.5, 0.5]))
        >>> chain(coin, 2).round(3).tolist()
        [[1.414], [-1.414]]
    """
    p = float(law.weights[law.nodes == 0].sum())
    if p == 0:
        return np.linalg.cholesky(_tridiagonal(law, levels))
    if p > 1 - 1e-12:
        return np.zeros((1, 0))
    inner = _tridiagonal(reweighted(law, law.nodes > 0), max(1, levels - 1))
    factor = np.vstack([np.zeros(len(inner)), np.linalg.cholesky(inner)])
    tilt = np.sqrt([[p, 1 - p], [1 - p, p]]) * [[1, 1], [1, -1]]
    factor[:2] = tilt @ factor[:2]
    return factor


def _tridiagonal(law: SpectralMeasure, levels: int) -> np.ndarray:
    diagonal, off = jacobi(law, min(levels, np.unique(law.nodes).size))
    return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)


# How the two laws look from each root: from a vector of unit length, whose matrix
# elements are normalised traces over all inputs or over a part of them.
Seen = Callable[[SpectralMeasure], SpectralMeasure]
ROOTS: dict[str, tuple[Seen, Seen]] = {
    "input": (lambda A: A, lambda S: S),
    "row space": (lambda A: reweighted(A, A.nodes > 0), lambda S: S),
    "kernel": (lambda A: reweighted(A, A.nodes == 0), lambda S: S),
    "sample": (lambda A: A, lambda S: reweighted(S, S.nodes)),
    "data span": (lambda A: A, lambda S: reweighted(S, S.nodes > 0)),
    "unseen": (lambda A: A, lambda S: reweighted(S, S.nodes == 0)),
}


@dataclass(frozen=True)
class FockSpace:
    r"""The operators of the infinite-size limit, cut at a depth; vertex 0 is the root.

    The initial map A and the sample covariance S are free: they act on the free
    product of two half-lines (the Jacobi matrices of their laws), and the normalised
    trace of any word in them is a matrix element at the root.

    Attributes:
        W: (R, N), with A = W^T W.
        columns, entries: (4, N), the entries of each row of S.
    """

    W: np.ndarray
    columns: np.ndarray
    entries: np.ndarray


def fock_space(
    rho: float,
    kappa: float,
    c: float | None = None,
    depth: Annotated[int, "1 <= depth <= 11"] = 6,
    *,
    law: SpectralMeasure | None = None,
    root: Annotated[str, ROOTS] = "input",
) -> FockSpace:
    r"""The truncated operators A and S are built, as they are seen from one root.

    .. math:: \varphi(w(A, S)) = \langle 0 | w(A, S) | 0 \rangle

    From an input the two chains at the root are those of both laws. From a vector of
    the row space or of the kernel of W the root's chain of A has the law without its
    atom at zero, or only the atom; from one sample the root's chain of S has the law
    :math:`x\,\mu(dx)`, and so on. Every other chain is that of the full law.

    Args:
        rho, kappa: sigma^2 h and sigma^2 d.
        c: d / n, for isotropic Gaussian data.
        depth: largest total level of a vertex; the size is :math:`2^{D+1} - 1`, less
            where a root sees one chain only.
        law: the spectral law of S instead of `c`, since Gaussian weights are free of
            every S.
        root: `input`, `row space`, `kernel`, `sample`, `data span` or `unseen`.

    Returns:
        `FockSpace`: the weights `W` and the rows of S.

    Raises:
        ValueError: parameters that are not a depth not in 1..11, an unknown
            root, or one of an empty space.

    Cost: :math:`4^{D+1}` numbers of memory.

    Source: :eq:`drv-regimes-fock` and :eq:`drv-regimes-roots` (derivations), after Nica
    and Speicher 2006.

    Examples:
        >>> fock_space(1.0, 1.0, 1.0, 3).W.shape
        (15, 15)
    """
    of_A = marchenko_pastur(rho, kappa)
    of_S = covariance_law(c, law)
    laws = dict(zip("AS", (of_A, of_S), strict=True))
    seen = dict(zip("AS", ROOTS[root], strict=True))
    usual = {k: chain(law, depth + 1) for k, law in laws.items()}
    try:
        first = {k: chain(seen[k](law), depth + 1) for k, law in laws.items()}
    except ValueError:
        raise ValueError(
            f"root: {root!r} is an empty space at these rho, kappa, c"
        ) from None
    size, copies = _free_product(depth, usual, first)
    weights, S = [], np.zeros((size, size))
    for letter, factor, vertices in copies:
        part = factor[: len(vertices)]
        if letter == "S":
            S[np.ix_(vertices, vertices)] = part @ part.T
        else:
            rows = np.zeros((part.shape[1], size))
            rows[:, vertices] = part.T
            weights.append(rows[part.any(0)])
    order = np.argsort(S == 0, axis=1, kind="stable")[:, :BAND]
    entries = np.take_along_axis(S, order, 1)
    return FockSpace(np.vstack(weights), order.T.copy(), entries.T.copy())


def _free_product(
    depth: int, usual: dict[str, np.ndarray], first: dict[str, np.ndarray]
) -> tuple[int, list[tuple[str, np.ndarray, list[int]]]]:
    """The number of vertices, and the chains with the vertices on each.

    At every vertex of a chain of one letter a chain of the other begins; the levels of
    a vertex along the chains from the root add up to its depth.
    """
    copies = []
    size, begin = 1, [(letter, 0, 0, line) for letter, line in first.items()]
    for letter, base, level, line in begin:  # grows on the way
        room = min(len(line) - 1, depth - level)
        above = range(size, size + room)
        size += room
        copies.append((letter, line, [base, *above]))
        other = "S" if letter == "A" else "A"
        begin += [(other, v, level + j, usual[other]) for j, v in enumerate(above, 1)]
    return size, copies


def fock_curves(
    times: ArrayLike,
    rho: float,
    kappa: float,
    c: float | None = None,
    *,
    law: SpectralMeasure | None = None,
    depth: int = 6,
    target: bool = True,
    rule: Rule | None = None,
    rtol: Annotated[float, "1e-14 <= rtol < 1"] = 1e-6,
) -> Curves:
    r"""The losses over d in the limit of large sizes with every ratio kept.

    .. math:: A' = -(C A + A C), \qquad C = S B + B S, \qquad B = A - 1 ,

    read as squares at the smallest of the spaces. With h, n >= d that is one input,

    .. math:: L_{train}/d = \tfrac12 \langle B S B \rangle_e , \qquad
        L_{pop}/d = \tfrac12 \langle B^2 \rangle_e .

    For h < d these are y in the row space of W and g in its kernel, both carried along,

    .. math:: L_{train}/d = \frac12 \frac{k}{k + l}
        + \frac\eta2 \langle B S B \rangle_y , \quad
        L_{pop}/d = \frac{1-\eta}{2} + \frac\eta2 \langle B^2 \rangle_y , \quad
        l = \eta \langle S \rangle_y , \; k = (1 - \eta) \langle S \rangle_g ,

    where k + l is tr S / d = 1 but for the cut. For n below both, one sample r gives
    :math:`L_{train}/d = \tfrac12 \langle B^2 \rangle_r`, and the span of the data and
    its complement the population loss. No loss can be negative.

    Args:
        times: (T,) increasing.
        rho, kappa: sigma^2 h and sigma^2 d.
        c, law: d / n, or the spectral law of S instead.
        depth: of the space; the difference of two depths measures the error.
        target: False for the free flow; B is then A.
        rule: steps in discrete time instead of the flow. For h < d and many samples
            one input is then the root, where the cut errs more.
        rtol: tolerance of the integration.

    Returns:
        `Curves` of losses over d.

    Raises:
        ValueError: bad times, parameters or depth, or times between steps of a rule.

    Cost: one to three products of (2^{D+1})^3 an evaluation, at one to three roots;
    about 2 s at depth 6.

    Source: :eq:`drv-regimes-fock-flow`, :eq:`drv-regimes-roots` (derivations), beyond
    the paper.

    Examples:
        >>> start = fock_curves([0.0], 1.0, 1.0, 1.0, depth=2)
        >>> round(float(start.train[0]), 12)
        0.5
    """
    t, of_S = check_times(times), covariance_law(c, law)
    eta = rho / kappa
    goal, mean = float(target), of_S.moment(1)
    seen = float(of_S.weights[of_S.nodes > 0].sum())

    def at(root: str, turns: bool = False) -> np.ndarray:
        space = fock_space(rho, kappa, depth=depth, law=of_S, root=root)
        return _elements(t, space, goal, turns, rule, rtol)

    if seen < min(eta, 1.0) - 1e-9:
        inside, outside = at("data span")[1], at("unseen")[1]
        population = seen * inside + (1 - seen) * outside
        return Curves(mean * at("sample")[1] / 2, population / 2)
    if eta >= 1 or rule is not None:
        train, population = at("input")[:2]
        return Curves(train / 2, population / 2)
    row, kernel = at("row space", turns=True), at("kernel", turns=True)
    l, k = eta * row[2], (1 - eta) * kernel[2]
    left_out = goal * mean * k / (k + l)
    return Curves((left_out + eta * row[0]) / 2, (goal * (1 - eta) + eta * row[1]) / 2)


def _elements(
    t: np.ndarray,
    space: FockSpace,
    goal: float,
    turns: bool,
    rule: Rule | None,
    rtol: float,
) -> np.ndarray:
    r"""Along W' = -W C: the elements of BSB, B^2 and, in a flow, S at the root's
    vector, (3, T) or (2, T).

    With `turns` the vector v keeps its place relative to the row space of W, whose
    projector is P: :math:`v' = (M - M^T) v`, :math:`M = P C (1 - P)`.
    """
    columns = torch.as_tensor(space.columns)
    entries = torch.as_tensor(space.entries)[:, :, None]

    def by_s(B: Tensor) -> Tensor:
        """S B from the few entries of each row of S."""
        parts = (e * B[k] for k, e in zip(columns, entries, strict=True))
        return sum(parts, torch.zeros_like(B))

    def pull(W: Tensor) -> Tensor:
        B = W.T @ W
        B.diagonal().sub_(goal)
        N = by_s(B)
        return N + N.T

    def flow(y: Tensor) -> Tensor:
        W, v = y[0, :-1], y[0, -1]
        C = pull(W)
        out = torch.zeros_like(y)
        out[0, :-1] = -W @ C
        if turns:
            factor = torch.linalg.cholesky(W @ W.T)

            def project(x: Tensor) -> Tensor:
                return W.T @ torch.cholesky_solve(W @ x[:, None], factor)[:, 0]

            inside = project(v)
            up, down = project(C @ (v - inside)), C @ inside
            out[0, -1] = up - down + project(down)
        return out

    def read(y: Tensor, *_: Tensor) -> list[Tensor]:
        W, v = y[0, :-1], y[0, -1][:, None]
        b = W.T @ (W @ v) - goal * v
        pairs = (b, by_s(b)), (b, b), (v, by_s(v))
        return [(one * other).sum()[None] for one, other in pairs]

    root = torch.eye(1, space.W.shape[1], dtype=torch.float64)[None]
    if rule is not None:  # the root stands still, and no gradient is at it
        law = SimpleNamespace(
            flow=lambda W: -W @ pull(W[0]),
            losses=lambda W, *_: read(torch.cat((W, root), 1)),
        )
        return np.vstack(descend(law, torch.as_tensor(space.W)[None], rule, t))
    start = torch.cat((torch.as_tensor(space.W)[None], root), 1)
    options = {"rtol": rtol, "atol": rtol * 1e-2, "max_steps": 2000}
    return np.array(follow(flow, start, t, read, **options)[0])[:, :, 0].T
