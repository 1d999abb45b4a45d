"""Strata of networks of any layers: units read from the graph, ranks of the Jacobian.

A unit is a row of what writes it and a column of what reads it, whatever is between:
activations, norms in evaluation mode, skip connections. A channel of a convolution is such
a unit, and so is a head of an attention layer. The function is linear in the columns and
smooth in the rows, and that alone makes the strata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geolib.core import Realization, normal
from geolib.core.linearization import Linearization
from geolib.core.validation import expect
from geolib.networks.batch_norm import copy_module
from geolib.networks.channel_graph import LINEAR, ChannelGroup, Slot, all_tensors
from geolib.networks.channel_groups import channel_groups

Proposal = tuple[float, str, tuple[int, ...], int, bool]  # distance to whether off
Directions = tuple[Tensor, Tensor]  # places (m,) and weights (k, m) of k directions
INTO, OUT = ("write", "vector"), ("read",)
AT_ONCE = 2**22  # entries of the directions that are pushed through at a time


def unit_groups(module: nn.Module) -> list[ChannelGroup]:
    """Groups of channels that something reads, and of the heads of attention layers."""
    groups = [g for g in channel_groups(module) if g.named("read")]
    for name, m in module.named_modules():
        if isinstance(m, nn.MultiheadAttention) and m._qkv_same_embed_dim:
            heads, width, known = m.num_heads, m.head_dim, all_tensors(module)
            slots = [
                Slot(f"{name}.{tensor}", axis, outer, width, role, layer)
                for tensor, axis, outer, role, layer in (
                    ("in_proj_weight", 0, 3, "write", name),
                    ("in_proj_bias", 0, 3, "vector", name),
                    ("out_proj.weight", 1, 1, "read", f"{name}.out_proj"),
                )
            ]
            groups.append(ChannelGroup(heads, [s for s in slots if s.tensor in known]))
    return groups


class Tangents:
    """The tangent functions of a module on some data, along few of its parameters.

    The derivatives are those at the weights that the module has when one is first taken.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x, self.held = module, x, all_tensors(module)

    @cached_property
    def R(self) -> Realization:
        """The module as a function of its parameters, read when first asked for."""
        return Realization(self.module)

    @cached_property
    def places(self) -> dict[str, Tensor]:
        """Where each parameter's entries lie in the vector."""
        numbers = torch.arange(self.R.p, dtype=torch.float64).to(self.R.theta0)
        return {k: t.long() for k, t in self.R.unflatten(numbers).items()}

    @cached_property
    def L(self) -> Linearization:
        """J, made when it is first asked for."""
        return self.R.linearize(self.R.theta0, self.x)

    def columns(self, *directions: Directions) -> Tensor:
        """J along directions, (n o, k), so many at a time that memory stays bounded."""
        step, found = max(1, min(8, AT_ONCE // self.R.p)), []
        for at, weights in directions:
            for part in weights.split(step):
                v = self.R.theta0.new_zeros(len(part), self.R.p)
                found.append(self.L.jvp(v.index_add_(1, at, part)).flatten(1).T)
        none = self.R.theta0.new_zeros(self.L.outputs.numel(), 0)
        return torch.cat([none, *found], 1)

    def opened(
        self, group: ChannelGroup, roles: tuple[str, ...], held: dict[str, Tensor]
    ) -> list[tuple[Slot, Tensor]]:
        """A group's tensors as views with its units along the first axis."""
        return [
            (s, t.detach().view(s.opened(t.shape)).movedim(s.axis + 1, 0))
            for s in group.slots
            if s.role in roles and (t := held.get(s.tensor)) is not None
        ]


def reach(module: nn.Module, x: Tensor, samples: int) -> dict[str, Tensor]:
    """How much the outputs on the data depend on each parameter; zero where never.

    One backward pass of a random combination for each `samples` data.
    """
    total: dict[str, Tensor] = {}
    for k, part in enumerate(x.split(samples)):
        R = Realization(module)
        L = R.linearize(R.theta0, part)
        u = normal(L.outputs.shape, k).to(L.outputs)
        for name, g in R.unflatten(L.vjp(u).abs()).items():
            total[name] = total.get(name, 0 * g) + g
    return total


def spreads(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """How far the outputs of each linear layer and convolution spread, by channel."""
    found: dict[str, Tensor] = {}

    def watch(name: str, m: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, __: tuple, y: Tensor) -> None:
            axis = -1 if isinstance(m, nn.Linear) else 1
            found[name] = y.detach().movedim(axis, 0).flatten(1).std(1)

        return m.register_forward_hook(note)

    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, LINEAR)]
    handles = [watch(*layer) for layer in layers]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return found


@dataclass
class Units:
    """The units of one group, in one module, seen on some data.

    `scaled` says that a unit can be scaled anywhere: its length does not count then.
    """

    tangents: Tangents
    group: ChannelGroup
    probes: int
    rtol: float
    scaled: bool = False

    def moved(self, x: Tensor | None = None) -> Units:
        """The same units in a copy of the module, which may be written to before use."""
        T = self.tangents
        twin = Tangents(copy_module(T.module), T.x if x is None else x)
        return replace(self, tangents=twin)

    def opened(self, roles: tuple[str, ...]) -> list[tuple[Slot, Tensor]]:
        """The group's tensors, see `Tangents.opened`."""
        return self.tangents.opened(self.group, roles, self.tangents.held)

    def rows(self, roles: tuple[str, ...]) -> Tensor:
        """All numbers of each unit, (width, k)."""
        return torch.cat([t.flatten(1) for _, t in self.opened(roles)], 1).double()

    def views(self, roles: tuple[str, ...], unit: int) -> list[Tensor]:
        """What belongs to a unit, to be written to."""
        return [t[unit] for _, t in self.opened(roles)]

    def mixes(self, m: int) -> Tensor:
        """All of m directions, or of many `probes` random ones, alike for all units."""
        like = self.tangents.R.theta0
        if m <= self.probes:
            return torch.eye(m).to(like)
        return normal((self.probes, m), m).to(like)

    def into(
        self, unit: int, own: tuple[int, ...] = (), roles: tuple[str, ...] = INTO
    ) -> list[Directions]:
        """Directions in what a unit is made of; the own weights of some units are one."""
        found, held = [], dict(self.opened(roles))
        for s, at in self.tangents.opened(self.group, roles, self.tangents.places):
            m = at[unit].numel()
            C = self.mixes(m) if s.role == "write" else torch.eye(m).to(held[s])
            if m > len(C):
                C = torch.cat([C, *(held[s][k].reshape(1, -1) for k in own)])
            found.append((at[unit].flatten(), C))
        return found

    def out(self, unit: int, own: tuple[int, ...] = ()) -> list[Directions]:
        """Directions in the columns of a unit, as in `into`."""
        found = []
        for s, at in self.tangents.opened(self.group, OUT, self.tangents.places):
            place = at[unit].flatten(1)
            C = self.readings(s, own, kernel=True)
            found.append((place.flatten(), C.flatten(1)))
        return found

    def biases(self, own: tuple[int, ...] = ()) -> list[Directions]:
        """Directions of the biases of what reads the units, those of `out` among them."""
        found, places = [], self.tangents.places
        for s, _ in self.opened(OUT):
            name = "bias".join(s.tensor.rsplit("weight", 1))
            if name in places and name != s.tensor:
                C = self.readings(s, own, kernel=False)
                found.append((places[name], C))
        return found

    def readings(self, slot: Slot, own: tuple[int, ...], kernel: bool) -> Tensor:
        """Weights (k, m) on the outputs of a reader, or (k, m, r) on all its entries."""
        t = dict(self.opened(OUT))[slot]
        width, m, r = len(t), t.shape[1], t[0, 0].numel()
        held = t.reshape(width, m, r).to(self.tangents.R.theta0)
        if m * r <= self.probes:
            return self.mixes(m * r).view(-1, m, r) if kernel else self.mixes(m)
        C, parts = self.mixes(m), held[list(own)]
        g = normal(r, r).to(held) if r > 1 else held.new_ones(1)
        if kernel:
            return torch.cat([C[:, :, None] * g, parts])
        return torch.cat([C, parts.sum(2)])

    def rank(self, base: Tensor, *columns: Tensor) -> tuple[int, float]:
        """Rank of columns of the Jacobian beyond those of `base`, and the gap after it.

        What `base` spans is taken out first: deep layers contract the data, and their
        columns are nearly that of a bias.
        """
        J = torch.cat(columns, 1)
        before = J.norm(dim=0)
        if base.shape[1]:
            size = base.norm(dim=0)
            base = base / size.clamp_min(1e-12 * float(size.max()) + 1e-300)
            U, s, _ = torch.linalg.svd(base, full_matrices=False)
            U = U[:, : zeros_by_gap(s, self.rtol)[0]] * bool(size.any())
            for _ in range(2):  # the second time for what rounding left
                J = J - U @ (U.T @ J)
        norms = torch.maximum(J.norm(dim=0), 1e-6 * before)
        if not bool((J.norm(dim=0) > 1e-12 * float(before.max())).any()):
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


def relative_distances(W: Tensor, sign: int) -> Tensor:
    """Distances of all rows from the rows times a sign, over their root mean square."""
    squares = (W * W).sum(1)
    scale = ((squares[:, None] + squares) / 2).sqrt()
    apart = torch.cdist(W, sign * W, compute_mode="donot_use_mm_for_euclid_dist")
    return apart / scale.clamp_min(torch.finfo(W.dtype).tiny)


def proposals(
    units: Units, near: float, reached: dict[str, Tensor], spread: dict[str, Tensor]
) -> list[Proposal]:
    """Units and pairs within `near` of a stratum, by their weights; nearest first."""
    W, V, rows = (units.rows(roles) for roles in (INTO, OUT, ("write",)))
    # a norm over the channels sees what a unit says even where nothing reads it
    roles = OUT if units.group.mixed else (*OUT, *INTO)
    seen = units.tangents.opened(units.group, roles, reached)
    quiet = torch.stack([t.flatten(1).amax(1) == 0 for _, t in seen]).all(0).tolist()
    found: list[Proposal] = [
        (0.0, "dormant unit", (i,), 1, True) for i in range(len(W)) if quiet[i]
    ]
    tiny = torch.finfo(W.dtype).tiny
    if units.scaled:
        W = W / W.norm(dim=1, keepdim=True).clamp_min(tiny)
    layers = units.group.named("write")
    plain = {s.layer for s in units.group.slots if s.role == "vector"} <= set(layers)
    for sign in (1, -1) if plain else (1,):
        apart = relative_distances(W, sign)
        for i, j in (apart < near).nonzero().tolist():
            # two that are off lose all, but share only what a norm sees of them
            off = quiet[i] and not units.group.mixed
            if i < j and quiet[i] == quiet[j] and (sign > 0 or not off):
                found.append((float(apart[i, j]), "overlap", (i, j), sign, off))
    drive = rows.norm(dim=1)
    if set(layers) <= set(spread):  # on these data
        drive = torch.stack([spread[name] for name in layers]).norm(dim=0)
    for kind, size in (("dead output", V.norm(dim=1)), ("constant unit", drive)):
        relative = size / size.median().clamp_min(tiny)
        for i in (relative < near).nonzero()[:, 0].tolist():
            if not (quiet[i] and units.group.mixed):
                found.append((float(relative[i]), kind, (i,), 1, quiet[i]))
    return sorted(found)


def moved_onto(units: Units, kind: str, at: tuple[int, ...], sign: int) -> Units:
    """The units of a copy of the module whose weights lie on a stratum."""
    units = units.moved()
    if kind == "overlap":
        c = 1.0
        if units.scaled:
            i, j = units.rows(INTO)[list(at)].norm(dim=1)
            c = float(j / i)
        for a, b in zip(*(units.views(INTO, i) for i in at), strict=True):
            a.add_(b, alpha=sign / c).div_(2)
            b.copy_(sign * c * a)
    elif kind != "dormant unit":
        roles = OUT if kind == "dead output" else ("write",)
        for t in units.views(roles, at[0]):
            t.zero_()
    return units


def shared(units: Units, i: int, j: int) -> tuple[int, int, float]:
    """How many directions the tangent functions of two units share: theory, measure, gap.

    Beyond those of the biases of the layers that read them. On an overlap these are the
    columns, and all of a unit where the columns of the two are parallel.
    """
    own, T = (i, j), units.tangents
    B = T.columns(*units.biases(own))
    first, last = (T.columns(*units.out(k, own)) for k in own)
    one = torch.cat([first, T.columns(*units.into(i, own))], 1)
    two = torch.cat([last, T.columns(*units.into(j, own))], 1)
    (r_i, a), (r_j, b) = units.rank(B, one), units.rank(B, two)
    both, c = units.rank(B, one, two)
    v_i, v_j = units.rows(OUT)[[i, j]]
    s = torch.linalg.svdvals(torch.stack([v_i, v_j]))
    # a norm over the channels sees all: only equal ones can be exchanged
    rest = (v_i - v_j).norm() if units.group.mixed else s[-1] if len(v_i) > 1 else 0.0
    off = not (first.any() or last.any())  # nor does what reads them tell them apart
    all_of_it = off or bool(rest <= 1e-9 * s[0])
    theory = r_i if all_of_it else units.rank(B, first)[0]
    return theory, r_i + r_j - both, min(a, b, c)


def redrawn(
    units: Units, roles: tuple[str, ...], i: int, x: Tensor | None = None
) -> Units:
    """The same units after random weights were given to one of them."""
    free = units.moved(x)
    for k, t in enumerate(free.views(roles, i)):
        t.copy_(normal(t.shape, 1000 * i + k))
    return free


def opposite(units: Units, i: int, j: int) -> tuple[int, int, float]:
    """As `shared`, of opposite units; the theory is what random opposite ones share."""
    free = redrawn(units, INTO, i)
    for a, b in zip(free.views(INTO, i), free.views(INTO, j), strict=True):
        b.copy_(-a)
    return shared(free, i, j)[1], *shared(units, i, j)[1:]


def dormant(units: Units, *at: int) -> tuple[int, int, float]:
    """All that units lose on which nothing depends: directions, zeros among them, the gap."""
    into = () if units.group.mixed else INTO
    V = [d for k in at for d in units.out(k) + units.into(k, roles=into)]
    moved = units.tangents.columns(*V).abs().amax(0)
    return len(moved), int((moved == 0).sum()), math.inf


def lost(units: Units, kind: str, i: int) -> tuple[int, int, float]:
    """How many directions a unit loses on its stratum: in theory, measured, the gap.

    Against the same unit with other weights. A constant unit adds to the biases of the
    layers that read it, where they have any.
    """
    T = units.tangents
    cut = kind == "dead output"
    # that a unit is constant may lie in the data: against random ones
    x = T.x if cut or not T.x.is_floating_point() else normal(T.x.shape, 0).to(T.x)
    free = redrawn(units, OUT if cut else ("write",), i, x)
    counts, gap = [], math.inf
    for u in (free, units):
        V = u.into(i) if cut else u.out(i) + u.into(i, roles=("vector",))
        B = u.tangents.columns(*([] if cut else u.biases()))
        rank, gap = u.rank(B, u.tangents.columns(*V))
        counts.append(rank)
    before, here = counts
    return before if cut or units.biases() else 1, before - here, gap


def unexplained(T: Tangents, samples: int, rtol: float) -> tuple[int, float]:
    """Deficit of the whole Jacobian of a module whose units are not known, and the gap.

    On as many times `samples` data as give an output for each parameter.
    """
    R, some = T.R, T.R(T.R.theta0, T.x[:samples]).numel()
    L = R.linearize(R.theta0, T.x[: samples * (R.p // some + 1)])
    wanted = f"at least {R.p} outputs, for the parameters of a module of no known graph"
    rows = L.outputs.numel()
    expect(rows >= R.p, "data", wanted, f"{rows} outputs")
    J = L.jacobian().reshape(rows, R.p)
    s = torch.linalg.svdvals(J / J.norm(dim=0).clamp_min(1e-300))
    rank, gap = zeros_by_gap(s, rtol)
    return R.p - rank, gap
