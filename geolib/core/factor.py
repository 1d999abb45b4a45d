r"""From a linearization and an output metric to the factored matrix A of `rows`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geolib.core.inputs import Inputs, map_inputs, num_samples, take
from geolib.core.layers import Use, leave_out
from geolib.core.linearization import Linearization
from geolib.core.output_metrics import LocalMetric
from geolib.core.rows import Block, DenseBlock, LayerBlock, Rows

PROBE = 3  # samples used to check that a layer's leading axis is the samples'


def factor(L: Linearization, local: LocalMetric, scale: float = 1.0) -> Rows:
    """The rows `scale * S^T J` of a batch, layer by layer where that is exact.

    Cost: one backward pass for each root, without the weights' gradients, and one
    per row for the parameters that no linear layer holds (batched by `vmap`).
    """
    n, r = L.outputs.shape[0], local.rank
    seeds = scale * _roots(L.outputs, local)
    groups = _by_weight(certified_uses(L))
    places = L.places
    blocks: list[Block] = []
    held: set[str] = set()
    uses = [u for group in groups.values() for u in group]
    deltas = dict(zip(map(id, uses), _pull(L, uses, seeds), strict=True))
    for weight, group in groups.items():
        bias = _common_bias(group, uses)
        x = torch.cat([u.inputs() for u in group], dim=2)
        delta = torch.cat([u.cotangents(deltas[id(u)]) for u in group], dim=3)
        where = None if bias is None else places[bias]
        blocks.append(LayerBlock(x, delta, places[weight], where))
        held |= {weight} if bias is None else {weight, bias}
    rest = [name for name in L.R.names if name not in held]
    if rest:
        index = torch.cat(
            [torch.arange(places[q].start, places[q].stop) for q in rest]
        ).to(L.theta.device)
        blocks.append(DenseBlock(_sample_rows(L, rest, seeds), index))
    return Rows(blocks, n, r, L.p, L.outputs)


def join(parts: list[Rows]) -> Rows:
    """The rows of several batches of one data set, as one object."""
    if len(parts) == 1:
        return parts[0]
    n, first = sum(q.n for q in parts), parts[0]
    blocks: list[Block] = []
    for column in zip(*(q.blocks for q in parts), strict=True):
        if all(isinstance(b, LayerBlock) for b in column):
            x = torch.cat([b.x for b in column], dim=1)
            delta = torch.cat([b.delta for b in column])
            blocks.append(LayerBlock(x, delta, column[0].weight, column[0].bias))
        else:
            rows = torch.cat([b.rows for b in column])
            blocks.append(DenseBlock(rows, column[0].index))
    return Rows(blocks, n, first.r, first.p, first.like)


def certified_uses(L: Linearization) -> list[Use]:
    """The exact uses whose leading axis is known to be the samples'.

    Length alone does not tell: a layer inside attention sees (positions, samples).
    So, once for each realization, the first samples are run alone and only one of
    their outputs is pulled back: it may reach that sample's slice and no other.
    """
    uses = L.linear_uses()
    bad = _mixed(uses)
    if not uses or L.outputs.shape[0] == 1:
        return leave_out(uses, bad)
    signature = tuple((u.weight, u.kind) for u in uses)
    known = L.R.__dict__.setdefault("_certificates", {})
    if signature not in known:
        verdicts = _probe(L, signature)
        if verdicts is None:
            return []
        known[signature] = verdicts
    bad |= {
        u.weight for u, fine in zip(uses, known[signature], strict=True) if not fine
    }
    return leave_out(uses, bad)


def _probe(L: Linearization, signature: tuple) -> list[bool] | None:
    count = min(PROBE, L.outputs.shape[0])
    small = L.R.linearize(L.theta, take(L.x, slice(0, count)))
    uses = small.linear_uses()
    if tuple((u.weight, u.kind) for u in uses) != signature:
        return None
    u = torch.zeros_like(small.outputs)
    ramp = torch.arange(1, u.shape[1] + 1, dtype=u.dtype, device=u.device)
    u[0] = torch.cos(ramp)
    return [
        bool((d[0] != 0).any()) and not bool((d[1:] != 0).any())
        for d in small.pull_to(uses, u)
    ]


def _by_weight(uses: list[Use]) -> dict[str, list[Use]]:
    """The uses of each weight; their positions are then simply joined."""
    groups: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        groups[use.weight].append(use)
    return groups


def _mixed(uses: list[Use]) -> set[str]:
    """Weights that are used with different numbers of groups."""
    groups: dict[str, set[int]] = defaultdict(set)
    for use in uses:
        groups[use.weight].add(use.sizes[0])
    return {w for w, found in groups.items() if len(found) > 1}


def _common_bias(group: list[Use], uses: list[Use]) -> str | None:
    """The bias that all of a weight's uses have and no other use has."""
    names = {u.bias for u in group}
    if len(names) > 1:
        return None
    (name,) = names
    outside = [u for u in uses if u.bias == name and u.weight != group[0].weight]
    return None if outside else name


def _roots(z: Tensor, local: LocalMetric) -> Tensor:
    """The columns of all S_i, shape (r, n, o)."""
    unit = torch.eye(local.rank, dtype=z.dtype, device=z.device)
    return local.root(unit[:, None, :].expand(-1, z.shape[0], -1)).contiguous()


def _pull(L: Linearization, uses: list[Use], seeds: Tensor) -> list[Tensor]:
    """Output gradients of each use, shape (n, r, ...)."""
    if not uses:
        return []
    if len(seeds) == 1:
        return [d.unsqueeze(1) for d in L.pull_to(uses, seeds[0])]
    return [d.transpose(0, 1) for d in L.pull_to(uses, seeds)]


def _sample_rows(L: Linearization, names: list[str], seeds: Tensor) -> Tensor:
    """Rows of S^T J for the named parameters, shape (n, r, q), sample by sample."""
    named = L.R.unflatten(L.theta)
    moving = {q: named[q] for q in names}
    fixed = {q: t for q, t in named.items() if q not in moving}
    roots = seeds.permute(1, 0, 2)

    def measured(part: dict[str, Tensor], x, S: Tensor) -> Tensor:
        x = map_inputs(lambda t: t.unsqueeze(0), x)
        return S @ L.R.evaluate({**fixed, **part}, x)[0]

    axes = _sample_axes(L.x)
    rows = torch.func.vmap(
        torch.func.jacrev(measured), in_dims=(None, axes, 0), chunk_size=256
    )
    try:
        J = rows(moving, L.x, roots)
    except (RuntimeError, ValueError):  # an operation that vmap cannot batch
        return _looped_rows(L, names, seeds)
    r = seeds.shape[0]
    return torch.cat([J[q].reshape(num_samples(L.x), r, -1) for q in names], dim=-1)


def _sample_axes(x: Inputs) -> Any:
    """For `vmap`: axis 0 of each tensor that has one."""

    def axis(t: Any) -> int | None:
        return 0 if isinstance(t, Tensor) and t.ndim else None

    if isinstance(x, Tensor):
        return axis(x)
    if isinstance(x, Mapping):
        return {k: axis(v) for k, v in x.items()}
    return tuple(map(axis, x))


def _looped_rows(L: Linearization, names: list[str], seeds: Tensor) -> Tensor:
    """The same by one backward pass a row, for modules that `vmap` cannot take."""
    n = seeds.shape[1]
    rows = []
    for i in range(n):
        alone = torch.zeros_like(seeds)
        alone[:, i] = seeds[:, i]
        rows.append(torch.stack([L.vjp_to(names, u) for u in alone]))
    return torch.stack(rows)
