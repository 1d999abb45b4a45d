"""Weight matching ("git re-basin"): permute one network's channels to meet another's.

Two networks with the same weights up to the order of their hidden units are the same
function. Weight matching finds the order in which the weights are closest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from geolib.core.validation import same_architecture
from geolib.networks.channel_graph import ChannelGroup, Slot, all_tensors
from geolib.networks.channel_groups import channel_groups, permute_channels

EQUAL = 1e-6  # relative distance below which no second start is tried


@dataclass(frozen=True, eq=False)
class Alignment:
    """A copy of the second network with its channels in the order of the first.

    Attributes:
        module: the permuted copy, the same function as the second network.
        permutations: for each group of hidden channels (see `channel_groups`), the
            channel of the second network that answers channel 0, 1, ... of the first.
        distance: 2-norm of the difference of all weights, after alignment.
        before: the same before alignment.
        max_distance: largest absolute difference of a weight after alignment.
        sweeps: passes over the layers until nothing changed; none where a start was
            already the same up to rounding and an answer is wanted quickly.
        converged: whether the last pass changed nothing, or no more than `tol`. Each
            pass lowers the distance; the end is a local optimum, the global one is
            NP-hard in general.
    """

    module: nn.Module
    permutations: tuple[np.ndarray, ...]
    distance: float
    before: float
    max_distance: float
    sweeps: int
    converged: bool


def align(
    module_a: nn.Module, module_b: nn.Module, max_sweeps: int = 100, tol: float = 0.0
) -> Alignment:
    r"""Match hidden channels group by group with linear assignments.

    .. math:: \min_{P} \sum_W \bigl\|W^a - P_{\text{out}} W^b P_{\text{in}}^T
        \bigr\|_F^2 + \|v^a - P v^b\|^2

    with v the biases and norm vectors and one permutation for all layers that a skip
    connection ties together; block coordinate descent, each step an exact assignment,
    started from a forward pass (incoming weights alone) and from a backward pass
    (outgoing weights alone); the better end is returned. Permutations only: bring both
    networks to one scale first (`canonicalize`) where scales differ.

    Args:
        module_a: the reference: any network that `channel_groups` can read.
        module_b: a network of the same architecture; it is not changed.
        max_sweeps: bound on the passes; `converged` says whether it was reached.
        tol: for a quick answer: a pass that lowers the squared distance by no more than
            this part of it is the last, and only the nearer of both starts is used.

    Raises:
        TypeError, ValueError: as `channel_groups`, or two different architectures.

    Cost: one assignment, O(width^3), and two Gram matrices a group and pass.

    Source: weight matching, Ainsworth, Hayase and Srinivasa 2023, algorithm 1.

    Examples:
        >>> a = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> b = deepcopy(a)
        >>> b[0].weight.data, b[0].bias.data = a[0].weight.flip(0), a[0].bias.flip(0)
        >>> b[2].weight.data = a[2].weight.flip(1)
        >>> align(a, b).distance
        0.0
    """
    groups = channel_groups(module_a)
    same_architecture(module_a, module_b, "module_a, module_b")
    if [g.slots for g in groups] != [g.slots for g in channel_groups(module_b)]:
        raise ValueError("module_b: expected the connections of module_a, got others")
    match = Matching(module_a, module_b, groups)
    identity = [np.arange(g.width) for g in groups]
    runs, starts, equal = [], [], EQUAL * match.size  # below: one network in two orders
    for start in match.starts():
        starts.append((match.distance(start), start))
        if starts[-1][0] <= equal:
            break
    if tol:
        starts = [min(starts, key=lambda pair: pair[0])]
    for gap, start in starts:
        done = tol > 0 and gap <= equal
        runs.append((start, 0, True) if done else match.descend(start, max_sweeps, tol))
        if match.distance(runs[-1][0]) <= equal:
            break
    order, sweeps, converged = min(runs, key=lambda run: match.distance(run[0]))
    before = match.distance(identity)
    if before <= match.distance(order):  # never worse than doing nothing
        order = identity
    module = deepcopy(module_b)
    permute_channels(module, order)
    gaps = [np.abs(gap).max() for gap in match.gaps(order) if gap.size]
    distance, top = match.distance(order), float(max(gaps, default=0.0))
    return Alignment(module, tuple(order), distance, before, top, sweeps, converged)


class Matching:
    """Two networks as arrays, float64, with the axes that permutations act on."""

    def __init__(self, a: nn.Module, b: nn.Module, groups: list[ChannelGroup]) -> None:
        self.groups = groups
        self.a, self.b = _arrays(a), _arrays(b)
        self.size = math.sqrt(sum(float((t**2).sum()) for t in self.a.values()))
        # of each tensor: the group and the slot of every axis that is permuted
        self.axes: dict[str, list[tuple[int, Slot]]] = {name: [] for name in self.a}
        for k, group in enumerate(groups):
            for slot in group.slots:
                self.axes[slot.tensor].append((k, slot))

    def permuted(self, name: str, order: list[np.ndarray], but: Slot | None = None):
        """A tensor of b with its axes in the given orders, all but one axis."""
        t = self.b[name]
        for k, slot in self.axes[name]:
            if slot is not but:
                shape = t.shape
                t = np.take(t.reshape(slot.opened(shape)), order[k], slot.axis + 1)
                t = t.reshape(shape)
        return t

    def gaps(self, order: list[np.ndarray]) -> list[np.ndarray]:
        """Differences of all weights."""
        return [t - self.permuted(name, order) for name, t in self.a.items()]

    def distance(self, order: list[np.ndarray]) -> float:
        """2-norm of all differences."""
        return math.sqrt(sum(float((gap**2).sum()) for gap in self.gaps(order)))

    def similarity(
        self,
        k: int,
        order: list[np.ndarray],
        roles: tuple[str, ...],
        known: set[int] | None = None,
    ) -> np.ndarray:
        """Inner products of channel i of a with channel j of b, shape (width, width).

        Args:
            roles: the slots that count.
            known: the groups whose order is settled; tensors with an axis of another
                are left out.
        """
        total = np.zeros((self.groups[k].width,) * 2)
        for slot in self.groups[k].slots:
            others = {g for g, s in self.axes[slot.tensor] if s is not slot}
            if slot.role not in roles or (known is not None and not others <= known):
                continue
            mine = by_channel(self.a[slot.tensor], slot)
            total += mine @ by_channel(self.permuted(slot.tensor, order, slot), slot).T
        return total

    def starts(self) -> Iterator[list[np.ndarray]]:
        """One order from the incoming weights alone, one from the outgoing ones."""
        count = len(self.groups)
        for roles, plan in (
            (("write", "vector"), range(count)),
            (("read",), reversed(range(count))),
        ):
            order = [np.arange(g.width) for g in self.groups]
            known: set[int] = set()
            for k in plan:
                similarity = self.similarity(k, order, roles, known)
                if similarity.any():
                    order[k] = _assign(similarity, self.groups[k].blocks)
                known.add(k)
            yield order

    def descend(
        self, order: list[np.ndarray], max_sweeps: int, tol: float
    ) -> tuple[list[np.ndarray], int, bool]:
        """One exact assignment a group, again and again, until nothing changes."""
        order, square = list(order), self.distance(order) ** 2
        roles = ("write", "vector", "read")
        for sweep in range(1, max_sweeps + 1):
            gained = 0.0
            for k, group in enumerate(self.groups):
                similarity = self.similarity(k, order, roles)
                rows = np.arange(len(similarity))
                found = _assign(similarity, group.blocks)
                gain = similarity[rows, found].sum() - similarity[rows, order[k]].sum()
                if gain > 1e-12 * np.abs(similarity).max():
                    trial = [*order[:k], found, *order[k + 1 :]]
                    held = [[g for g, _ in on] for on in self.axes.values()]
                    twice = any(on.count(k) > 1 for on in held)
                    if twice and self.distance(trial) >= self.distance(order):
                        continue  # a square matrix of one group: the gain is linearised
                    order, gained = trial, gained + 2 * gain
            square -= gained
            if gained <= tol * square:
                return order, sweep, True
        return order, max_sweeps, False


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {
        name: t.detach().to("cpu", torch.float64).numpy()
        for name, t in all_tensors(module).items()
        if t.is_floating_point()
    }


def by_channel(t: np.ndarray, slot: Slot) -> np.ndarray:
    """One row of entries for each channel."""
    opened = np.moveaxis(t.reshape(slot.opened(t.shape)), slot.axis + 1, 0)
    return opened.reshape(len(opened), -1)


def _assign(similarity: np.ndarray, blocks: int = 1) -> np.ndarray:
    """The best order of the channels; blocks move whole, and are ordered within."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    if blocks == 1:
        return linear_sum_assignment(similarity, maximize=True)[1]
    size = len(similarity) // blocks
    parts = similarity.reshape(blocks, size, blocks, size).swapaxes(1, 2)
    inner = [[_assign(part) for part in row] for row in parts]
    rows = np.arange(size)
    value = [
        [part[rows, order].sum() for part, order in zip(*pair, strict=True)]
        for pair in zip(parts, inner, strict=True)
    ]
    outer = _assign(np.array(value))
    return np.concatenate([j * size + inner[i][j] for i, j in enumerate(outer)])
