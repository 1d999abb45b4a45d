"""Strata of networks of any layers: channels read from the graph, ranks of the Jacobian.

A channel is a row of what writes it and a column of what reads it, whatever is between:
convolutions, norms in evaluation mode, activations, skip connections. A head of an
attention layer is such a unit too. The function is linear in the columns and smooth in
the rows, and that alone makes the strata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.core.validation import expect
from geolib.networks.batch_norm import copy_module
from geolib.networks.channel_graph import ChannelGroup, Slot, all_tensors
from geolib.networks.channel_groups import channel_groups

Proposal = tuple[float, str, tuple[int, ...], int]


def unit_groups(module: nn.Module) -> list[ChannelGroup]:
    """Groups of channels that something reads, and of the heads of attention layers."""
    groups = [g for g in channel_groups(module) if g.named("read")]
    for name, m in module.named_modules():
        if isinstance(m, nn.MultiheadAttention) and m._qkv_same_embed_dim:
            heads, width = m.num_heads, m.head_dim
            slots = [
                Slot(f"{name}.in_proj_weight", 0, 3, width, "write", name),
                Slot(f"{name}.in_proj_bias", 0, 3, width, "vector", name),
                Slot(
                    f"{name}.out_proj.weight", 1, 1, width, "read", f"{name}.out_proj"
                ),
            ]
            known = all_tensors(module)
            groups.append(ChannelGroup(heads, [s for s in slots if s.tensor in known]))
    return groups


@dataclass
class Units:
    """The units of one group, in one module, seen on some data.

    The derivatives are those at the weights that the module has when this is made.
    """

    module: nn.Module
    group: ChannelGroup
    x: Tensor
    probes: int
    rtol: float

    def __post_init__(self) -> None:
        self.R = Realization(self.module)
        self.L = self.R.linearize(self.R.theta0, self.x)
        numbers = torch.arange(self.R.p, dtype=torch.float64)
        self.places = {k: t.long() for k, t in self.R.unflatten(numbers).items()}

    def opened(self, roles: tuple[str, ...], held: dict[str, Tensor]) -> list[Tensor]:
        """The group's tensors as views with its units along the first axis."""
        slots = [s for s in self.group.slots if s.role in roles and s.tensor in held]
        whole = [(held[s.tensor].detach(), s) for s in slots]
        return [t.view(s.opened(t.shape)).movedim(s.axis + 1, 0) for t, s in whole]

    def rows(self, roles: tuple[str, ...]) -> Tensor:
        """All numbers of each unit, (width, k)."""
        held = self.opened(roles, all_tensors(self.module))
        return torch.cat([t.flatten(1) for t in held], 1)

    def views(self, roles: tuple[str, ...], unit: int) -> list[Tensor]:
        """What belongs to a unit, to be written to."""
        return [t[unit] for t in self.opened(roles, all_tensors(self.module))]

    def directions(self, roles: tuple[str, ...], unit: int) -> Tensor:
        """Directions in some of a unit's parameters, (k, p), alike for all units.

        Few parameters are taken one by one, of many `probes` random combinations.
        """
        held = [t[unit].flatten() for t in self.opened(roles, self.places)]
        at = torch.cat(held) if held else torch.zeros(0).long()
        if len(at) <= self.probes:
            return self.along(at)
        rng = torch.Generator().manual_seed(len(at))
        return self.along(at, torch.randn(self.probes, len(at), generator=rng).double())

    def biases(self) -> Tensor:
        """Directions of the biases of the layers that read the units, (k, p)."""
        names = [f"{name}.bias" for name in self.group.named("read")]
        held = [self.places[n] for n in names if n in self.places]
        return self.along(torch.cat(held) if held else torch.zeros(0).long())

    def along(self, at: Tensor, weights: Tensor | None = None) -> Tensor:
        """Directions with these weights at these places, by default one at each."""
        weights = (
            torch.eye(len(at), dtype=torch.float64) if weights is None else weights
        )
        zero = torch.zeros(len(weights), self.R.p, dtype=torch.float64)
        return zero.index_add(1, at, weights)

    def rank(self, *directions: Tensor) -> tuple[int, float]:
        """Rank of the Jacobian along directions, and the gap after it."""
        V = torch.cat(directions)
        if not len(V):
            return 0, math.inf
        J = self.L.jvp(V).flatten(1).T
        norms = J.norm(dim=0)
        if not bool(norms.any()):
            return 0, math.inf
        s = torch.linalg.svdvals(J / norms.clamp_min(1e-12 * float(norms.max())))
        return zeros_by_gap(s, self.rtol)


def zeros_by_gap(s: Tensor, rtol: float) -> tuple[int, float]:
    """Rank at the widest gap below rtol, and that gap; infinite where nothing is small.

    Deep layers contract the data, and singular values trail off before the zeros
    begin, which rounding holds at 1e-16.
    """
    small = min(int((s <= rtol * s[0]).sum()), len(s) - 1)
    kept = s.clamp_min(1e-16 * float(s[0]) + 1e-300).log()
    drops = [float(kept[-k - 1] - kept[-k]) for k in range(1, small + 1)]
    if not drops:
        return len(s), math.inf
    return len(s) - 1 - drops.index(max(drops)), math.exp(max(drops))


INTO, OUT = ("write", "vector"), ("read",)


def proposals(units: Units, near: float) -> list[Proposal]:
    """Units and pairs within `near` of a stratum, by their weights; nearest first."""
    W, V, rows = (units.rows(roles).double() for roles in (INTO, OUT, ("write",)))
    # one direction at a time: a vector of the size of the weights for each unit is much
    quiet = [
        not bool(units.L.jvp(units.directions(OUT, i).sum(0)).any())
        for i in range(len(W))
    ]
    found: list[Proposal] = [
        (0.0, "dormant unit", (i,), 1) for i in range(len(W)) if quiet[i]
    ]
    layers = units.group.named("write")
    plain = {s.layer for s in units.group.slots if s.role == "vector"} <= set(layers)
    squares = (W * W).sum(1)
    scale = ((squares[:, None] + squares) / 2).sqrt().clamp_min(1e-300)
    for sign in (1, -1) if plain else (1,):
        apart = torch.cdist(W, sign * W, compute_mode="donot_use_mm_for_euclid_dist")
        for i, j in (apart / scale < near).nonzero().tolist():
            if i < j and not (quiet[i] or quiet[j]):
                found.append((float((apart / scale)[i, j]), "overlap", (i, j), sign))
    for kind, part in (("dead output", V), ("constant unit", rows)):
        size = part.norm(dim=1)
        relative = size / size.median().clamp_min(1e-300)
        for i in (relative < near).nonzero()[:, 0].tolist():
            if not quiet[i]:
                found.append((float(relative[i]), kind, (i,), 1))
    return sorted(found)


def moved_onto(units: Units, kind: str, at: tuple[int, ...], sign: int) -> Units:
    """The units of a copy of the module whose weights lie on a stratum."""
    units = replace(units, module=copy_module(units.module))
    if kind == "overlap":
        pairs = zip(*(units.views(INTO, i) for i in at), strict=True)
        for a, b in pairs:
            a.add_(b, alpha=sign).div_(2)
            b.copy_(sign * a)
    elif kind != "dormant unit":
        roles = OUT if kind == "dead output" else ("write",)
        for t in units.views(roles, at[0]):
            t.zero_()
    return replace(units)  # with the derivatives there


def shared(units: Units, i: int, j: int) -> tuple[int, int, float]:
    """How many directions the tangent functions of two units share: theory, measure, gap.

    Beyond those of the biases of the layers that read them. On an overlap these are the
    columns, and all of a unit where the columns of the two are parallel.
    """
    B, one, two = (
        units.biases(),
        *(torch.cat([units.directions(r, k) for r in (OUT, INTO)]) for k in (i, j)),
    )
    (r_B, _), (r_i, a), (r_j, b) = units.rank(B), units.rank(one, B), units.rank(two, B)
    both, c = units.rank(one, two, B)
    v_i, v_j = units.rows(OUT).double()[[i, j]]
    s = torch.linalg.svdvals(torch.stack([v_i, v_j]))
    # a norm over the channels sees all: only equal ones can be exchanged
    rest = (v_i - v_j).norm() if units.group.mixed else s[-1] if len(v_i) > 1 else 0.0
    all_of_it = bool(rest <= 1e-9 * s[0])
    theory = r_i if all_of_it else units.rank(units.directions(OUT, i), B)[0]
    return theory - r_B, r_i + r_j - r_B - both, min(a, b, c)


def lost(units: Units, kind: str, i: int) -> tuple[int, int, float]:
    """How many directions a unit loses on its stratum: in theory, measured, the gap.

    Against the same unit with other weights. A constant unit adds to the biases of the
    layers that read it, where they have any.
    """
    if kind == "dead output":
        V, B = units.directions(INTO, i), units.biases()[:0]
    else:
        roles = (OUT, ("vector",)) if kind == "constant unit" else (OUT, INTO)
        V, B = torch.cat([units.directions(r, i) for r in roles]), units.biases()
    if kind == "dormant unit":
        # a norm over the channels sees what a unit says even where nothing reads it
        V = units.directions(OUT, i) if units.group.mixed else V
        moved = units.L.jvp(V).flatten(1).abs().amax(1)
        return len(V), int((moved == 0).sum()), math.inf
    free = replace(units, module=copy_module(units.module))
    rng = torch.Generator().manual_seed(i)
    for t in free.views(OUT if kind == "dead output" else ("write",), i):
        t.copy_(torch.randn(t.shape, generator=rng, dtype=t.dtype))
    free = replace(free)  # with the derivatives there
    r_B, _ = units.rank(B)
    before = free.rank(V, B)[0] - r_B
    here, gap = units.rank(V, B)
    theory = before if kind == "dead output" or len(B) else 1
    return theory, before - (here - r_B), gap


def unexplained(module: nn.Module, x: Tensor, rtol: float) -> tuple[int, float]:
    """Deficit of the whole Jacobian of a module whose units are not known, and the gap."""
    R = Realization(module)
    L = R.linearize(R.theta0, x)
    wanted = f"at least {R.p} outputs, for the parameters of a module of no known graph"
    rows = L.outputs.numel()
    expect(rows >= R.p, "data", wanted, f"{rows} outputs")
    J = L.jacobian().reshape(rows, R.p)
    s = torch.linalg.svdvals(J / J.norm(dim=0).clamp_min(1e-300))
    rank, gap = zeros_by_gap(s, rtol)
    return R.p - rank, gap


def channel_strata(
    module: nn.Module, x: Tensor, near: float, limit: int, probes: int, rtol: float
) -> list[tuple]:
    """What a `UnitStratum` says of each stratum that is near, the nearest first."""
    try:
        groups = unit_groups(module)
    except TypeError:
        groups = []
    if not groups:  # of no known units: only the whole deficit can be said
        deficit, gap = unexplained(module, x, rtol)
        return [("unexplained", -1, (), 1, 0.0, 0, deficit, gap, 0.0)] * (deficit > 0)
    seen = [Units(module, group, x, probes, rtol) for group in groups]
    nearest = sorted((c, k) for k, u in enumerate(seen) for c in proposals(u, near))
    found = []
    for (distance, kind, at, sign), k in nearest[:limit]:
        units = moved_onto(seen[k], kind, at, sign)
        said = shared(units, *at) if kind == "overlap" else lost(units, kind, *at)
        if sign > 0 or said[1]:
            found.append((kind, k, at, sign, distance, *said, distance))
    return found
