"""Surgery on a pair of units: merge it on its overlap stratum, re-enter where loss falls.

Rows of a batch are pairs; `CollarSurgery` operates on a pair of a real network, a batch of
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from geolib.core.linearization import differentiation
from geolib.core.validation import expect

from .find_strata import canonical_pair, merged_unit, overlap_distances
from .hidden_layers import HiddenLayer, check_inputs, hidden_layers

Gaps = Callable[[float], Iterable[Tensor]]


@dataclass(frozen=True)
class Reentry:
    """A way back into the top stratum for some merged pairs.

    Attributes:
        move: "split" (incoming weights part along a direction) or "shear".
        useful: (B,) rows for which the second order promises a decrease.
        w1, w2: (B, n) incoming weights of both units.
        v1, v2: (B, m) their outgoing weights.
    """

    move: str
    useful: Tensor
    w1: Tensor
    w2: Tensor
    v1: Tensor
    v2: Tensor


def splits(
    V: Tensor, b: Tensor, lam: Tensor, E: Tensor, gaps: Gaps
) -> Iterator[Reentry]:
    r"""The splits that the splitting matrix recommends.

    .. math:: w_{1,2} = b - z d,\ b + (1-z) d, \qquad v_{1,2} = (1-z)V,\ zV, \qquad
              \Delta L = \tfrac12 z(1-z)\,\langle d, A d\rangle + O(|d|^3)

    A negative eigenvalue is entered with both units between (z = 1/2), a positive one
    with a unit of opposite sign outside (z = 3/2).

    Args:
        V: (B, m) total outgoing weights.
        b: (B, n) common incoming weights.
        lam, E: lowest and highest eigenvalue (B, 2) of A, eigenvectors (B, n, 2).
        gaps: z -> lengths (B,) of d to try.

    Source: :eq:`drv-stratifolds-split` (derivations).
    """
    for end, z in ((0, 0.5), (1, 1.5)):
        useful = lam[:, end] < 0 if z == 0.5 else lam[:, end] > 0
        for gap in gaps(z):
            d = gap[:, None] * E[:, :, end]
            w1, w2 = b - z * d, b + (1 - z) * d
            yield Reentry("split", useful, w1, w2, (1 - z) * V, z * V)


def best_reentry(
    trials: Iterable[Reentry], loss: Callable[[Reentry], Tensor], bound: Tensor
) -> tuple[list[Reentry | None], Tensor]:
    """The trial with the least loss below `bound`, row by row, and that loss.

    Args:
        trials: re-entries of the same B pairs.
        loss: a trial -> its loss (B,).
        bound: (B,) what a trial must fall below.

    Returns:
        B trials, None where there is no such trial, and their losses (`bound` there).
    """
    best: list[Reentry | None] = [None] * len(bound)
    bound = bound.clone()
    for trial in trials:
        value = loss(trial)
        better = trial.useful & (value < bound)
        bound = torch.where(better, value, bound)
        for row in better.nonzero()[:, 0].tolist():
            best[row] = trial
    return best, bound


LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SurgeryRecord:
    """The record of one attempted surgery.

    Attributes:
        step: training step at which it was tried.
        layer, units: where.
        move: "split" along the splitting matrix, "shear" along the cross matrix, or
            "none" where no trial improved the loss.
        distance: relative distance of the pair before.
        before, after: loss before and after (equal when refused).
        accepted: whether the weights were changed.
    """

    step: int
    layer: int
    units: tuple[int, int]
    move: str
    distance: float
    before: float
    after: float
    accepted: bool


def overlap_forms(
    layer: HiddenLayer,
    x: Annotated[Tensor, "real n layer.before.in_features"],
    g: Annotated[Tensor, "real n m"],
    b: Annotated[Tensor, "real d"],
    V: Annotated[Tensor, "real m"],
) -> tuple[Tensor, Tensor]:
    r"""The overlap of two units has two quadratic forms of the loss.

    .. math:: \Delta L = -c^\top B\,d + \tfrac12 z(1-z)\,d^\top A\,d + O(3), \quad
              A = E[\langle V, g\rangle\,\sigma''\,h h^\top],\quad
              B = E[g\,\sigma'\,h^\top]

    for :math:`w_i = b - zd,\ w_j = b + (1-z)d,\ v_i = (1-z)V + c,\ v_j = zV - c`.
    With one output B vanishes at a stationary point, and only A (the splitting matrix)
    is left: the sign of z(1-z) then decides. With several outputs B need not vanish,
    and the overlap is a saddle that can be left by shearing.

    Args:
        layer: the hidden layer.
        x: (n, ...) inputs of the network.
        g: (n, m) derivative of the mean loss in the next linear map's output.
        b: (fan_in + 1,) common incoming weights.
        V: (m,) total outgoing weights.

    Returns:
        A (fan_in + 1, fan_in + 1) and B (m, fan_in + 1).

    Cost: n (fan_in + m) fan_in.
    Source: :eq:`drv-stratifolds-forms` (derivations); A from Wu, Wang, Liu 2019.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> (layer,) = hidden_layers(net)
        >>> x, g, b = torch.ones(3, 1), torch.ones(3, 1) / 3, torch.zeros(2)
        >>> overlap_forms(layer, x, g, b, torch.ones(1))[1]     # tanh' = 1, h = (1, 1)
        tensor([[1., 1.]])
    """
    H = layer.inputs(x)
    expect(b.shape == H.shape[1:], "b", f"shape {tuple(H.shape[1:])}", tuple(b.shape))
    _, d1, d2 = layer.slopes(H @ b)
    A = H.T @ (((g @ V) * d2)[:, None] * H)
    B = g.T @ (d1[:, None] * H)
    return A, B


def extreme_pairs(A: Tensor, dense: int = 128) -> tuple[Tensor, Tensor]:
    """The lowest and the highest eigenpair of a symmetric matrix.

    Large matrices (images have a weight for each pixel) by Lanczos from a fixed start.

    Args:
        A: (n, n) symmetric.
        dense: up to this size the full eigenproblem is solved.

    Returns:
        Eigenvalues (2,) and eigenvectors (n, 2), lowest first.

    Cost: n^3 if dense, some tens of products otherwise.

    Examples:
        >>> extreme_pairs(torch.diag(torch.tensor([1.0, -3.0, 2.0])))[0]
        tensor([-3.,  2.])
    """
    if len(A) <= dense or not bool(A.any()):
        lam, E = torch.linalg.eigh(A)
        return lam[[0, -1]], E[:, [0, -1]]
    from scipy.sparse.linalg import eigsh

    start = torch.ones(len(A), dtype=torch.float64).numpy()
    # a tolerance well below any use of the direction: it is only a guarded trial
    lam, E = eigsh(A.double().cpu().numpy(), k=2, which="BE", v0=start, tol=1e-9)
    return torch.as_tensor(lam).to(A), torch.as_tensor(E).to(A)


@dataclass
class CollarSurgery:
    r"""Collar surgery moves pairs of units off a plateau, and only if the loss falls.

    Every `every` steps, if the loss fell by less than `patience` of itself since the
    last look, the nearest pairs within `eps` are retracted onto their overlap stratum
    and re-entered along the direction in which the second-order forms
    (`overlap_forms`) promise the largest decrease. A move is kept only if the loss on
    (x, y) ends below ``(1 + max_rise)`` times what it was and below every other trial.
    A layer with a frozen parameter that a move would change is left alone.

    Args:
        module: an `nn.Sequential` perceptron; changed in place.
        loss: (outputs, y) -> scalar mean loss.
        x, y: inputs and targets on which surgery is decided.
        eps: collar, as a relative distance of two units' incoming weights.
        every: steps between two looks.
        patience: relative decrease between two looks below which training counts as
            being on a plateau; `float("inf")` operates at every look.
        pairs: at most so many pairs a look.
        max_rise: tolerated relative rise of the loss, 0 by default.

    Attributes:
        log: every `SurgeryRecord`.

    Raises:
        TypeError, ValueError: as `find_strata`, or the loss is no finite scalar.

    Cost: a look costs one loss; an operation one gradient, an eigenproblem of size
    fan_in, and about twelve losses.
    Source: :eq:`drv-stratifolds-forms` (derivations).

    Examples:
        >>> from geolib.core import init_, normal
        >>> net = init_(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), 0)
        >>> x, y = normal((50, 2), 1).float(), normal((50, 1), 2).float()
        >>> surgery = CollarSurgery(net, nn.functional.mse_loss, x, y)
        >>> surgery.step()     # call it after each optimizer step
        []
    """

    module: nn.Module
    loss: LossFunction
    x: Annotated[Tensor, "n ..."]
    y: Annotated[Tensor, "n ..."]
    eps: Annotated[float, "0 < eps < inf"] = 0.1
    every: int = 50
    patience: float = 1e-3
    pairs: int = 4
    max_rise: float = 0.0
    log: list[SurgeryRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers = hidden_layers(self.module)
        check_inputs(self.x, self.module, "x")
        self._count = 0
        self._last = float("inf")
        self._value()  # refuses a loss that does not fit before training starts

    def _value(self) -> float:
        with torch.no_grad():
            value = self.loss(self.module(self.x), self.y)
        if value.ndim or not bool(torch.isfinite(value)):
            raise ValueError(
                f"loss, x, y: expected a finite scalar, got shape {tuple(value.shape)}, "
                f"value {value.mean().item():g}"
            )
        return float(value)

    def step(self) -> list[SurgeryRecord]:
        """Count one training step; operate if it is time and the loss is flat."""
        self._count += 1
        if self._count % self.every:
            return []
        value = self._value()
        flat = value > self._last * (1 - self.patience)
        self._last = value
        if not flat and self.patience != float("inf"):
            return []
        done = self.operate()
        if any(op.accepted for op in done):
            self._last = done[-1].after
        return done

    @differentiation()
    def operate(self) -> list[SurgeryRecord]:
        """Try every pair in the collar now; returns what was tried."""
        tried = []
        for k, layer in enumerate(self.layers):
            touched = (layer.before.weight, layer.before.bias, layer.after.weight)
            if not all(t is None or t.requires_grad for t in touched):
                continue  # a frozen parameter never moves
            distance, sign = overlap_distances(layer)
            order = torch.argsort(distance.flatten()).tolist()
            used: set[int] = set()
            for flat in order:
                i, j = divmod(flat, layer.width)
                if float(distance[i, j]) >= self.eps or len(used) >= 2 * self.pairs:
                    break
                if i < j and not {i, j} & used:
                    used |= {i, j}
                    op = self._pair(k, i, j, int(sign[i, j]), float(distance[i, j]))
                    tried.append(op)
        self.log += tried
        return tried

    def _gradient(self, layer: HiddenLayer) -> Tensor:
        """The derivative of the loss in the next linear map's output, (n, m)."""
        W, H = layer.incoming(), layer.inputs(self.x)
        y = layer.after(layer.sigma(H @ W.T)).detach().requires_grad_(True)
        with torch.enable_grad():
            f = y if layer.tail is None else layer.tail(y)
            (g,) = torch.autograd.grad(self.loss(f, self.y), y)
        return g

    def _pair(
        self, k: int, i: int, j: int, sign: int, distance: float
    ) -> SurgeryRecord:
        layer = self.layers[k]
        before = self._value()
        old = [(u, layer.incoming()[u], layer.outgoing()[u]) for u in (i, j)]
        V, b = merged_unit(*canonical_pair(layer, i, j, sign))
        layer.write(i, b, V / 2)
        layer.write(j, b, V / 2)
        A, B = overlap_forms(layer, self.x, self._gradient(layer), b, V)

        def enter(trial: Reentry) -> None:
            layer.write(i, trial.w1[0], trial.v1[0])
            layer.write(j, trial.w2[0], trial.v2[0])

        def loss(trial: Reentry) -> Tensor:
            enter(trial)
            with torch.no_grad():
                value = self.loss(self.module(self.x), self.y)
            return value.double()[None]

        bound = b.new_tensor([before * (1 + self.max_rise)], dtype=torch.float64)
        (best,), (after,) = best_reentry(_trials(A, B, b, V), loss, bound)
        if best is None:
            for unit, w, v in old:
                layer.write(unit, w, v)
        else:
            enter(best)
        move, end = ("none", before) if best is None else (best.move, float(after))
        where = self._count, k, (i, j)
        return SurgeryRecord(*where, move, distance, before, end, best is not None)


def _trials(A: Tensor, B: Tensor, b: Tensor, V: Tensor) -> Iterator[Reentry]:
    """Re-entries to try: splits by the sign of A's ends, a shear along B's top."""
    lam, E = extreme_pairs((A + A.T) / 2)
    scale = b.norm().clamp_min(1e-12)
    sizes = (1.0, 0.5, 0.25, 0.1)
    gaps = [(size * scale)[None] for size in sizes]
    yield from splits(V[None], b[None], lam[None], E[None], lambda z: gaps)
    U, S, Dt = torch.linalg.svd(B, full_matrices=False)
    for size, gap in zip(sizes, gaps, strict=True):
        d, c = gap * Dt[0], size * V.norm() * U[:, 0]
        w1, w2, v1, v2 = b - d / 2, b + d / 2, V / 2 + c, V / 2 - c
        yield Reentry("shear", S[:1] > 0, w1[None], w2[None], v1[None], v2[None])
