"""A canonical form of deep ReLU networks."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from geolib.inverse_stability.collinear import TOLERANCE, parallel_classes, unit_rows
from geolib.inverse_stability.gauge import Gauge, fold_batch_norm
from geolib.networks.channel_groups import channel_groups
from geolib.networks.sequential import Stage, read_stages, to_numpy, weight_blocks


@dataclass(frozen=True, eq=False)
class Canonical:
    """A network in canonical form, and what was done to reach it.

    Attributes:
        module: the new network; the given one is not changed.
        folded: batch normalizations absorbed into their linear layers.
        dropped: channels removed because they never act.
        merged: channels removed because another is positively parallel.
        sweeps: passes of the balancing.
        converged: whether the last pass changed no log-scale by more than 1e-14.
        energy: sum of squared weights (biases of hidden channels included) after
            folding and reduction, before and after balancing.
    """

    module: nn.Module
    folded: int
    dropped: int
    merged: int
    sweeps: int
    converged: bool
    energy: tuple[float, float]


def canonicalize(
    module: nn.Module,
    *,
    reduce: bool = True,
    sort: bool = True,
    tol: float = TOLERANCE,
    max_sweeps: int = 2000,
) -> Canonical:
    r"""Choose one network among those that differ by permutation and positive scaling.

    Batch normalization (eval) is folded; channels that never act are dropped; channels
    with positively parallel (w, b) are merged; then the scales of all hidden channels
    minimize the energy

    .. math:: \min_{s > 0} \sum_l \bigl\|S_l W_l S_{l-1}^{-1}\bigr\|_F^2
        + \|S_l b_l\|^2

    which is convex in log s and minimal where every channel's incoming and outgoing
    2-norms are equal; finally channels are sorted by that norm. Channels that a skip
    connection adds share their scales and their order. The function is the same to
    rounding. Two networks that differ by permutations and positive rescalings
    of channels have the same form. Sorting is unstable under noise: compare networks
    that differ by more than a gauge with `align`.

    Args:
        module: Linear and convolution layers, BatchNorm (eval) after them, ReLU,
            pooling, Flatten, Dropout (eval) and sums, in any order that `torch.fx` can
            trace.
        reduce: whether to drop and merge channels, in an `nn.Sequential` without skip
            connections; without it widths are kept, so that two networks of one
            architecture stay comparable by `align`.
        sort: whether to order channels by norm, largest first.
        tol: largest entrywise difference of unit rows (w, b) that count as parallel.
        max_sweeps: bound on the balancing; `converged` says whether it was reached.

    Returns:
        a `Canonical`: the new network, and what was folded, dropped and merged.

    Raises:
        TypeError: a layer or function of another kind, by name.
        ValueError: training mode; a BatchNorm elsewhere; a chain of linear layers
            without ReLU between them; a tolerance outside [0, 1); no sweep allowed.

    Cost: linear in the number of weights, plus a pass over (out, in) matrices a sweep.

    Source: :eq:`drv-inverse_stability-canonical` (derivations); balancing by coordinate
    descent as in Stock et al. 2019.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     for p in net.parameters():
        ...         _ = p.fill_(1.0)
        >>> form = canonicalize(net.eval())
        >>> form.merged, form.module[0].weight.shape
        (1, torch.Size([1, 1]))
    """
    folded, count = fold_batch_norm(module)
    dropped = merged = 0
    channel_groups(folded)  # refuses what does not fit together
    if reduce and (read := read_stages(folded)):
        head, stages = read
        chain = _Chain(stages, tol)
        chain.reduce()
        folded = _rebuild(head, stages, chain)
        dropped, merged = chain.dropped, chain.merged
    gauge = Gauge(folded)
    before = gauge.energy()
    sweeps, converged = gauge.balance(max_sweeps)
    if sort:
        gauge.sort()
    energy = before, gauge.energy()
    return Canonical(folded, count, dropped, merged, sweeps, converged, energy)


class _Chain:
    """Weights (out, in, entries) and biases of all stages of a chain."""

    def __init__(self, stages: list[Stage], tol: float) -> None:
        self.stages, self.tol = stages, tol
        self.W = weight_blocks(stages)
        self.b = [np.zeros(s.width) for s in stages]
        for n, bias in enumerate(s.linear.bias for s in stages):
            self.b[n] = self.b[n] if bias is None else to_numpy(bias)
        self.dropped = self.merged = 0

    def reduce(self) -> None:
        """Drop and merge until nothing changes: one removal can cause another."""
        kinds = self._fold_constant, self._drop, self._merge
        while any([one(n) for n in range(len(self.W) - 1) for one in kinds]):
            pass

    def _drop(self, n: int) -> bool:
        """Channels whose ReLU is never positive, or that nobody reads."""
        w, b = self.W[n], self.b[n]
        silent = ~w.any(axis=(1, 2))
        if n > 0:  # inputs are ReLU outputs, hence non-negative
            silent = (w <= 0).all(axis=(1, 2))
        dead = (silent & (b <= 0)) | ~self.W[n + 1].any(axis=(0, 2))
        if dead.all():
            dead[0] = False  # a layer keeps one channel, a zero one
            rest = self.W[n][0].any() or self.b[n][0] or self.W[n + 1][:, 0].any()
            self.W[n][0], self.b[n][0], self.W[n + 1][:, 0] = 0.0, 0.0, 0.0
            if len(dead) == 1:
                return bool(rest)
        self.dropped += int(dead.sum())
        self._keep(n, np.flatnonzero(~dead))
        return bool(dead.any())

    def _fold_constant(self, n: int) -> bool:
        """Move a constant channel into the next bias, where it stays constant there.

        Zero padding would make it visible at the border, so padded layers keep it.
        """
        if _pads(self.stages[n + 1].linear) or any(map(_pads, self.stages[n].tail)):
            return False
        constant = ~self.W[n].any(axis=(1, 2)) & (self.b[n] > 0)
        reads = self.W[n + 1].any(axis=(0, 2))
        fold = np.flatnonzero(constant & reads)
        self.b[n + 1] += self.W[n + 1][:, fold].sum(axis=2) @ self.b[n][fold]
        self.W[n + 1][:, fold] = 0.0
        return bool(len(fold))

    def _merge(self, n: int) -> bool:
        rows = np.column_stack([self.W[n].reshape(len(self.W[n]), -1), self.b[n]])
        live = np.flatnonzero(rows.any(axis=1))
        if not len(live):
            return False
        size = np.abs(rows).max(axis=1)
        labels, _ = parallel_classes(unit_rows(rows[live]), self.tol)
        first = live[np.unique(labels, return_index=True)[1]]
        extra = np.setdiff1d(live, first)
        if not len(extra):
            return False
        owner = first[labels[np.searchsorted(live, extra)]]
        ratio = size[extra] / size[owner]
        for i, j, r in zip(extra, owner, ratio, strict=True):
            self.W[n + 1][:, j] += r * self.W[n + 1][:, i]
        self.merged += len(extra)
        self._keep(n, np.setdiff1d(np.arange(len(rows)), extra))
        return True

    def _keep(self, n: int, index: np.ndarray) -> None:
        self.W[n], self.b[n] = self.W[n][index], self.b[n][index]
        self.W[n + 1] = self.W[n + 1][:, index]


def _pads(layer: nn.Module) -> bool:
    """Whether the layer mixes zeros from outside the image into its average or sum."""
    mixes = isinstance(layer, nn.Conv2d | nn.AvgPool2d)
    return mixes and layer.padding not in (0, (0, 0), "valid")


def _rebuild(
    head: list[nn.Module], stages: list[Stage], chain: _Chain
) -> nn.Sequential:
    layers = list(head)
    for stage, w, b in zip(stages, chain.W, chain.b, strict=True):
        layers += [_linear(stage, w, b), *stage.tail]
    return deepcopy(nn.Sequential(*layers)).eval()


@torch.no_grad()
def _linear(stage: Stage, w: np.ndarray, b: np.ndarray) -> nn.Module:
    """A copy of the stage's layer with these weights; channels may have gone."""
    old = stage.linear
    new = deepcopy(old)
    shape = (len(w), w.shape[1] * w.shape[2])
    if isinstance(new, nn.Conv2d):
        new.out_channels, new.in_channels = w.shape[:2]
        shape = (*w.shape[:2], *new.kernel_size)
    else:
        new.out_features, new.in_features = shape
    values = torch.from_numpy(np.ascontiguousarray(w.reshape(shape)))
    new.weight = nn.Parameter(values.to(old.weight))
    if old.bias is not None or b.any():
        new.bias = nn.Parameter(torch.from_numpy(b).to(old.weight))
    return new
