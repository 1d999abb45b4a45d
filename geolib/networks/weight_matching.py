"""Weight matching ("git re-basin"): permute one network's channels to meet another's.

Two networks with the same weights up to the order of their hidden units are the same
function. Weight matching finds the order in which the weights are closest.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from geolib.networks.sequential import (
    Stage,
    channel_vectors,
    read_stages,
    to_numpy,
    weight_blocks,
)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A copy of the second network with its channels in the order of the first.

    Attributes:
        module: the permuted copy, the same function as the second network.
        permutations: for each hidden stage, the channel of the second network that
            answers channel 0, 1, ... of the first.
        distance: 2-norm of the difference of all weights, after alignment.
        before: the same before alignment.
        max_distance: largest absolute difference of a weight after alignment.
        sweeps: passes over the layers until nothing changed.
        converged: whether the last pass changed nothing. Each pass lowers the
            distance; the end is a local optimum, the global one is NP-hard in general.
    """

    module: nn.Sequential
    permutations: tuple[np.ndarray, ...]
    distance: float
    before: float
    max_distance: float
    sweeps: int
    converged: bool


def align(module_a: nn.Module, module_b: nn.Module, max_sweeps: int = 100) -> Alignment:
    r"""Match hidden channels layer by layer with linear assignments.

    .. math:: \min_{P_1, \dots, P_{L-1}} \sum_l \bigl\|W^a_l - P_l W^b_l P_{l-1}^T
        \bigr\|_F^2 + \|v^a_l - P_l v^b_l\|^2

    with v the biases and batch-norm vectors; block coordinate descent, each step an
    exact assignment, started from a forward pass (incoming weights alone) and from a
    backward pass (outgoing weights alone); the better end is returned. Permutations
    only: bring both networks to one scale first (`canonicalize`) where scales differ.

    Args:
        module_a: the reference, `nn.Sequential` of Linear, Conv2d, BatchNorm (eval),
            ReLU, pooling and Flatten.
        module_b: a network of the same architecture; it is not changed.
        max_sweeps: bound on the passes; `converged` says whether it was reached.

    Raises:
        TypeError, ValueError: as `read_stages`, or two
            different architectures.

    Cost: one assignment, O(width^3), and two Gram matrices a layer and pass.

    Source: weight matching, Ainsworth, Hayase and Srinivasa 2023, algorithm 1.

    Examples:
        >>> a = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> b = deepcopy(a)
        >>> b[0].weight.data, b[0].bias.data = a[0].weight.flip(0), a[0].bias.flip(0)
        >>> b[2].weight.data = a[2].weight.flip(1)
        >>> align(a, b).distance
        0.0
    """
    (_, stages_a), (_, stages_b) = read_stages(module_a), read_stages(module_b)
    _same_architecture(stages_a, stages_b)
    a, b = _Weights(stages_a), _Weights(stages_b)
    identity = [np.arange(s.width) for s in stages_a[:-1]]
    before = a.distance(b, identity)
    runs = [_descend(a, b, start, max_sweeps) for start in _starts(a, b)]
    order, sweeps, converged = min(runs, key=lambda run: a.distance(b, run[0]))
    if before <= a.distance(b, order):  # never worse than doing nothing
        order = identity
    module = deepcopy(module_b)
    permute_channels(read_stages(module)[1], order)
    return Alignment(
        module,  # type: ignore[arg-type]
        tuple(order),
        a.distance(b, order),
        before,
        max(float(np.abs(gap).max()) for gap in a.gaps(b, order)),
        sweeps,
        converged,
    )


class _Weights:
    """Weight blocks and per-channel vectors of a network, float64."""

    def __init__(self, stages: list[Stage]) -> None:
        self.blocks = weight_blocks(stages)
        self.vectors = [
            np.column_stack(
                [np.zeros(s.width), *map(to_numpy, channel_vectors(s).values())]
            )
            for s in stages
        ]

    def __len__(self) -> int:
        return len(self.blocks)

    def permuted(self, n: int, order: list[np.ndarray]) -> np.ndarray:
        """Block n with both its axes in the given order."""
        block = self.blocks[n]
        if n > 0:
            block = block[:, order[n - 1]]
        return block[order[n]] if n < len(order) else block

    def gaps(self, other: _Weights, order: list[np.ndarray]) -> list[np.ndarray]:
        """Differences of all weights."""
        found = []
        for n in range(len(self)):
            vectors = other.vectors[n]
            if n < len(order):
                vectors = vectors[order[n]]
            found += [self.blocks[n] - other.permuted(n, order)]
            found += [self.vectors[n] - vectors]
        return found

    def distance(self, other: _Weights, order: list[np.ndarray]) -> float:
        """2-norm of all differences."""
        return float(np.sqrt(sum((g**2).sum() for g in self.gaps(other, order))))


def _similarity(
    a: _Weights, b: _Weights, n: int, order: list[np.ndarray], sides: str
) -> np.ndarray:
    """Inner products of channel i of a with channel j of b, shape (width, width)."""
    width = len(a.blocks[n])
    total = np.zeros((width, width))
    if "i" in sides:
        block = b.blocks[n] if n == 0 else b.blocks[n][:, order[n - 1]]
        total += a.blocks[n].reshape(width, -1) @ block.reshape(width, -1).T
        total += a.vectors[n] @ b.vectors[n].T
    if "o" in sides:
        mine = a.blocks[n + 1].swapaxes(0, 1).reshape(width, -1)
        block = b.blocks[n + 1]
        if n + 1 < len(order):
            block = block[order[n + 1]]
        total += mine @ block.swapaxes(0, 1).reshape(width, -1).T
    return total


def _starts(a: _Weights, b: _Weights) -> list[list[np.ndarray]]:
    hidden = len(a) - 1
    forward = [np.arange(len(a.blocks[n])) for n in range(hidden)]
    backward = list(forward)
    for n in range(hidden):
        forward[n] = _assign(_similarity(a, b, n, forward, "i"))
    for n in reversed(range(hidden)):
        backward[n] = _assign(_similarity(a, b, n, backward, "o"))
    return [forward, backward]


def _descend(
    a: _Weights, b: _Weights, order: list[np.ndarray], max_sweeps: int
) -> tuple[list[np.ndarray], int, bool]:
    order = list(order)
    for sweep in range(1, max_sweeps + 1):
        changed = False
        for n in range(len(order)):
            similarity = _similarity(a, b, n, order, "io")
            rows = np.arange(len(similarity))
            found = _assign(similarity)
            gain = similarity[rows, found].sum() - similarity[rows, order[n]].sum()
            if gain > 1e-12 * np.abs(similarity).max():
                order[n], changed = found, True
        if not changed:
            return order, sweep, True
    return order, max_sweeps, False


def _assign(similarity: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment  # slow to import

    return linear_sum_assignment(similarity, maximize=True)[1]


@torch.no_grad()
def permute_channels(stages: list[Stage], order: list[np.ndarray]) -> None:
    """Reorder channels in place: rows of a stage, and columns of the next.

    Args:
        stages: as `read_stages` gives them; their tensors are written to.
        order: for each hidden stage, which channel comes first, second, ...

    Source: ours.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> x = torch.ones(1, 1)
        >>> before = net(x)
        >>> permute_channels(read_stages(net)[1], [np.array([1, 0])])
        >>> torch.allclose(net(x), before)
        True
    """
    for n, stage in enumerate(stages):
        weight = stage.linear.weight
        if n > 0:
            blocks = weight.reshape(weight.shape[0], stages[n - 1].width, -1)
            moved = blocks[:, torch.as_tensor(order[n - 1], device=weight.device)]
            weight.copy_(moved.reshape(weight.shape))
        if n < len(order):
            rows = torch.as_tensor(order[n], device=weight.device)
            for tensor in (weight, *channel_vectors(stage).values()):
                tensor.copy_(tensor[rows])


def _same_architecture(a: list[Stage], b: list[Stage]) -> None:
    def describe(stages: list[Stage]) -> list[tuple]:
        return [
            (
                type(s.linear).__name__,
                tuple(s.linear.weight.shape),
                sorted(channel_vectors(s)),
                [type(t).__name__ for t in s.tail],
            )
            for s in stages
        ]

    for x, y in zip(describe(a), describe(b), strict=False):
        if x != y:
            raise ValueError(
                f"module_a, module_b: expected equal architectures, got {x} and {y}"
            )
    if len(a) != len(b):
        raise ValueError(
            f"module_a, module_b: expected equal depth, got {len(a)} and {len(b)}"
        )
