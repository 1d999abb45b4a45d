r"""From a linearization and an output metric to the factored matrix A of `rows`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geolib.core.jacobian_factors import Block, DenseBlock, JacobianFactors, LayerBlock
from geolib.core.linear_calls import LinearCall, leave_out
from geolib.core.linearization import Linearization, Rerun, differentiation
from geolib.core.output_metrics import LocalMetric
from geolib.core.validation import Inputs, map_inputs, take

PROBE = 3  # samples used to check that a layer's leading axis is the samples'


def factored_jacobian(
    L: Linearization, local: LocalMetric, scale: float = 1.0, trusted: bool = False
) -> JacobianFactors:
    """The rows `scale * S^T J` of a batch, layer by layer where that is exact.

    With `trusted` the recorded layers are taken as they are, and all other parameters
    are left out: what K-FAC reads where BatchNorm mixes the samples.

    Cost: one backward pass for each root, without the weights' gradients, and one
    per row for the parameters that no linear layer holds (batched by `vmap`).
    """
    n, r = L.outputs.shape[0], local.rank
    seeds = scale * _roots(L.outputs, local)
    groups = _by_weight(L.linear_calls() if trusted else certified_calls(L))
    places = L.places
    blocks: list[Block] = []
    held: set[str] = set()
    calls = [u for group in groups.values() for u in group]
    deltas = dict(zip(map(id, calls), _pull(L, calls, seeds), strict=True))
    for weight, group in groups.items():
        bias = _common_bias(group, calls)
        x = torch.cat([u.inputs() for u in group], dim=2)
        delta = torch.cat([u.cotangents(deltas[id(u)]) for u in group], dim=3)
        where = None if bias is None else places[bias]
        blocks.append(LayerBlock(x, delta, places[weight], where))
        held |= {weight} if bias is None else {weight, bias}
    rest = [name for name in L.leaves if name not in held]
    if rest and not trusted:
        index = torch.cat(
            [torch.arange(places[q].start, places[q].stop) for q in rest]
        ).to(L.outputs.device)
        blocks.append(DenseBlock(_sample_rows(L, rest, seeds), index))
    return JacobianFactors(blocks, n, r, L.p, L.outputs)


def join_samples(parts: list[JacobianFactors]) -> JacobianFactors:
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
    return JacobianFactors(blocks, n, first.r, first.p, first.like)


def certified_calls(L: Linearization) -> list[LinearCall]:
    """The exact calls whose leading axis is known to be the samples'.

    Length alone does not tell: a layer inside attention sees (positions, samples).
    So, once for each realization, the first samples are run alone and only one of
    their outputs is pulled back: it may reach that sample's slice and no other.
    """
    calls = L.linear_calls()
    bad = _mixed(calls)
    if not calls or L.outputs.shape[0] == 1:
        return leave_out(calls, bad)
    signature = tuple((u.weight, u.kind) for u in calls)
    if L.again is None:  # no model to probe
        return []
    known = L.again.certificates
    if signature not in known:
        verdicts = _probe(L, L.again, signature)
        if verdicts is None:
            return []
        known[signature] = verdicts
    bad |= {
        u.weight for u, fine in zip(calls, known[signature], strict=True) if not fine
    }
    return leave_out(calls, bad)


def _probe(L: Linearization, again: Rerun, signature: tuple) -> list[bool] | None:
    count = min(PROBE, L.outputs.shape[0])
    small = again.linearize(L.leaves, take(again.x, slice(0, count)))
    calls = small.linear_calls()
    if tuple((u.weight, u.kind) for u in calls) != signature:
        return None
    u = torch.zeros_like(small.outputs)
    ramp = torch.arange(1, u.shape[1] + 1, dtype=u.dtype, device=u.device)
    u[0] = torch.cos(ramp)
    return [
        bool((d[0] != 0).any()) and not bool((d[1:] != 0).any())
        for d in small.pull_to(calls, u)
    ]


def _by_weight(calls: list[LinearCall]) -> dict[str, list[LinearCall]]:
    """The calls of each weight; their positions are then simply joined."""
    groups: dict[str, list[LinearCall]] = defaultdict(list)
    for use in calls:
        groups[use.weight].append(use)
    return groups


def _mixed(calls: list[LinearCall]) -> set[str]:
    """Weights that are used with different numbers of groups."""
    groups: dict[str, set[int]] = defaultdict(set)
    for use in calls:
        groups[use.weight].add(use.sizes[0])
    return {w for w, found in groups.items() if len(found) > 1}


def _common_bias(group: list[LinearCall], calls: list[LinearCall]) -> str | None:
    """The bias that all of a weight's calls have and no other use has."""
    names = {u.bias for u in group}
    if len(names) > 1:
        return None
    (name,) = names
    outside = [u for u in calls if u.bias == name and u.weight != group[0].weight]
    return None if outside else name


def _roots(z: Tensor, local: LocalMetric) -> Tensor:
    """The columns of all S_i, shape (r, n, o)."""
    unit = torch.eye(local.rank, dtype=z.dtype, device=z.device)
    return local.root(unit[:, None, :].expand(-1, z.shape[0], -1)).contiguous()


def _pull(L: Linearization, calls: list[LinearCall], seeds: Tensor) -> list[Tensor]:
    """Output gradients of each use, shape (n, r, ...)."""
    if not calls:
        return []
    if len(seeds) == 1:
        return [d.unsqueeze(1) for d in L.pull_to(calls, seeds[0])]
    return [d.transpose(0, 1) for d in L.pull_to(calls, seeds)]


def _sample_rows(L: Linearization, names: list[str], seeds: Tensor) -> Tensor:
    """Rows of S^T J for the named parameters, shape (n, r, q), sample by sample."""
    if L.again is None:
        return _looped_rows(L, names, seeds)
    run, x = L.again.run, L.again.x
    moving = {n: L.leaves[n].detach() for n in names}
    fixed = {n: t.detach() for n, t in L.leaves.items() if n not in moving}
    roots = seeds.permute(1, 0, 2)

    def measured(part: dict[str, Tensor], x, S: Tensor) -> Tensor:
        x = map_inputs(lambda t: t.unsqueeze(0), x)
        return S @ run({**fixed, **part}, x).reshape(-1)

    rows = torch.func.vmap(
        torch.func.jacrev(measured), in_dims=(None, _sample_axes(x), 0), chunk_size=256
    )
    try:
        with differentiation():
            J = rows(moving, x, roots)
            r, n = seeds.shape[:2]
            found = torch.cat([J[q].reshape(n, r, -1) for q in names], dim=-1)
            v = torch.zeros_like(L.theta)
            for q in names:
                v[L.places[q]] = 1.0
            sums = torch.einsum("rno,no->nr", seeds, L.jvp(v))
    except (RuntimeError, ValueError):  # an operation that vmap cannot batch
        return _looped_rows(L, names, seeds)
    # vmap in vmap has been seen to mix its two axes, where they are equally long
    gap, slack = (found.sum(-1) - sums).norm(), torch.finfo(sums.dtype).eps ** 0.5
    return found if gap <= slack * found.norm() else _looped_rows(L, names, seeds)


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
