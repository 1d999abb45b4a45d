"""Symmetries that a network has at all weights: scales, shifts, bases, dead directions.

Each is a field of directions in the parameters. It is named if no output moves along it
at random weights, which lie on no stratum; few samples are enough to see that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from geolib.core.random import normal
from geolib.networks.batch_norm import copy_module
from geolib.networks.channel_graph import INSTANCE, LINEAR, ChannelGroup
from geolib.networks.channel_groups import channel_groups

from .channel_strata import INTO, OUT, Tangents, reach

FEW, DRAWS = 16, 2  # samples, and random weights at which a dead direction is dead
SCALES = ("scale of a unit, undone by its reader", "basis of linear units")
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MIXED = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, *INSTANCE)
Field = list[tuple[str, Tensor]]  # changes of tensors, by name


@dataclass(frozen=True)
class Symmetry:
    """Directions along which no output moves, at any weights.

    Attributes:
        name: what it is.
        layers: the layers whose parameters change.
        dimension: how many directions, at each point.
    """

    name: str
    layers: tuple[str, ...]
    dimension: int

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.layers)} ({self.dimension} dimensions)"


class RandomWeights:
    """A module at random weights, its norms exact (their eps zero), on few samples."""

    def __init__(self, module: nn.Module, x: Tensor, seed: int = 0) -> None:
        self.module = copy_module(module)
        for m in self.module.modules():
            if isinstance(m, MIXED) and m.eps is not None:
                m.eps = 0.0
        with torch.no_grad():
            for k, (name, t) in enumerate(self.module.named_parameters()):
                draw = normal(t.shape, 1000 * seed + k).to(t)
                scale = (t.numel() / len(t)) ** -0.5 if t.ndim > 1 else 0.5
                t.copy_(scale * draw + (t.ndim < 2 and name.endswith("weight")))
        self.T, self.modules = (
            Tangents(self.module, x),
            dict(self.module.named_modules()),
        )
        self.held = {
            k: t.detach() for k, t in self.T.held.items() if k in self.T.places
        }

    def push(self, field: Field) -> float:
        """How far the outputs move along a field."""
        v = self.T.R.theta0.new_zeros(self.T.R.p)
        for name, change in field:
            v[self.T.places[name].flatten()] += change.flatten()
        return float(self.T.L.jvp(v).norm())

    def still(self, field: Field) -> bool:
        """Whether the outputs rest along a field, and not along a random one beside it."""
        beside = [
            (n, normal(t.shape, 777 + k).to(t) * t.norm())
            for k, (n, t) in enumerate(field)
        ]
        return bool(field) and self.push(field) <= 1e-9 * self.push(beside)

    def mixed(self, group: ChannelGroup, roles: tuple[str, ...], M: Tensor) -> Field:
        """The units of a group replaced by their combinations, to first order."""
        found = []
        for s, t in self.T.opened(group, roles, self.held):
            change = torch.zeros_like(self.held[s.tensor])
            opened = change.view(s.opened(change.shape)).movedim(s.axis + 1, 0)
            opened.copy_(torch.tensordot(M, t, 1))
            found.append((s.tensor, change))
        return found

    def read(self, group: ChannelGroup, shift: Tensor) -> Field:
        """What a shift of the units adds to the biases of their readers; or nothing."""
        found = []
        for s, t in self.T.opened(group, OUT, self.held):
            bias = "bias".join(s.tensor.rsplit("weight", 1))
            if bias not in self.held:
                return []
            found.append((bias, torch.tensordot(shift, t.flatten(2).sum(2), 1)))
        return found


def part(group: ChannelGroup, into: Sequence[str], out: Sequence[str]) -> ChannelGroup:
    """A group with the slots of some layers that make it, and some that read it."""
    known = {role: into if role in INTO else out for role in (*INTO, *OUT)}
    return replace(group, slots=[s for s in group.slots if s.layer in known[s.role]])


def of_units(F: RandomWeights, group: ChannelGroup) -> Iterator[Symmetry]:
    """Changes of units that those who read them undo, and sums that they do not see."""
    w, writers, readers = group.width, group.named("write"), group.named("read")
    norms = [n for n in group.named("vector") if n not in writers]
    A = normal((w, w), 1).to(F.T.R.theta0)
    d, shift = A.diagonal().diag(), A[0]
    kinds = [(SCALES[1], A, w * w), (SCALES[0], d, w)]
    sets, done = [(writers, readers)], set[str]()
    if norms:
        kinds = kinds[1:]
        sets = [([n], [r]) for n in norms for r in readers]
        sets += [([n], readers) for n in norms] + [(norms, readers)] * (len(norms) > 1)
    for into, out in sets:
        if not done.isdisjoint(into) or not out:
            continue
        g, layers = part(group, into, out), (*into, *out)
        for name, M, dimension in kinds:
            if F.still(F.mixed(g, INTO, M) + F.mixed(g, OUT, -M.T)):
                done |= set(into)
                yield Symmetry(name, layers, dimension)
                break
        undone, bias = F.read(g, -shift), f"{into[0]}.bias"
        if undone and bias in F.held and F.still([(bias, shift), *undone]):
            yield Symmetry("shift of a unit, undone by its readers", layers, w)
        if isinstance(F.modules[into[0]], nn.LayerNorm) and len(out) == 1:
            yield from unseen_sum(F, g, into[0], out[0])


def unseen_sum(
    F: RandomWeights, group: ChannelGroup, norm: str, reader: str
) -> Iterator[Symmetry]:
    """A LayerNorm's outputs add to zero before they are scaled."""
    ((slot, t),) = F.T.opened(group, OUT, F.held)
    scale, bias = F.held[f"{norm}.weight"], F.held.get(f"{norm}.bias", torch.zeros(1))
    a, k = normal(t.shape[1], 5).to(t), "bias".join(slot.tensor.rsplit("weight", 1))
    field = [(slot.tensor, a[:, None] / scale)]
    if k in F.held:
        field.append((k, -a * (bias / scale).sum()))
    if t[0, 0].numel() == 1 and F.still(field):
        yield Symmetry("sum of a norm's outputs, which is zero", (norm, reader), len(a))


def before_norms(F: RandomWeights, group: ChannelGroup) -> Iterator[Symmetry]:
    """Changes of units that a norm undoes."""
    w, writers = group.width, group.named("write")
    c = normal(w, 2).to(F.T.R.theta0)
    for n in group.named("vector"):
        norm = F.modules[n]
        if not isinstance(norm, BATCH) or not norm.affine:
            continue
        mean, var = norm.running_mean, norm.running_var
        if mean is None or var is None:
            continue
        rate = norm.weight.detach() / (var + norm.eps).sqrt()
        for layer in writers:
            b = F.held.get(f"{layer}.bias")
            scale = F.mixed(part(group, [layer], []), ("write",), c.diag())
            scale.append((f"{n}.weight", -c * norm.weight.detach()))
            rest = (f"{n}.bias", -c * rate * mean)
            scale.append(rest if b is None else (f"{layer}.bias", c * (b - mean)))
            shift = [(f"{layer}.bias", c), (f"{n}.bias", -c * rate)] * (b is not None)
            for what, field in (("scale", scale), ("shift", shift)):
                if F.still(field):
                    yield Symmetry(f"{what} before a norm", (layer, n), w)
    counts = {getattr(m, "num_groups", getattr(m, "num_features", 1))
              for m in F.modules.values() if isinstance(m, MIXED)}  # fmt: skip
    blocks = sorted((k for k in counts if w % k == 0), reverse=True)
    alone = False
    for layers in [*([n] for n in writers), writers]:
        if alone and len(layers) == len(writers):
            break  # together only what none has alone
        for k in blocks:
            M = c[:k].repeat_interleave(w // k).diag()
            if F.still(F.mixed(part(group, layers, []), INTO, M)):
                alone = True
                yield Symmetry("scale before a norm", tuple(layers), k)
                break


def of_attention(
    F: RandomWeights, name: str, m: nn.MultiheadAttention
) -> Iterator[Symmetry]:
    """The bases of queries with keys, and of values with what reads them."""
    H, d = m.num_heads, m.head_dim
    M = normal((H, d, d), 3).to(F.T.R.theta0)
    part_of = {
        k: f"{name}.{k}" for k in ("in_proj_weight", "in_proj_bias", "out_proj.weight")
    }

    def changed(*which: tuple[int, Tensor]) -> Field:
        found = []
        for key in ("in_proj_weight", "in_proj_bias"):
            t = F.held.get(part_of[key])
            if t is not None:
                change = torch.zeros_like(t).view(3, H, d, -1)
                for k, N in which:
                    change[k] = N @ t.view(3, H, d, -1)[k]
                found.append((part_of[key], change.view(t.shape)))
        return found

    keys = changed((0, M), (1, -M.mT))
    W = F.held[part_of["out_proj.weight"]].view(-1, H, d)
    values = [
        *changed((2, M)),
        (part_of["out_proj.weight"], -torch.einsum("ehj,hji->ehi", W, M).flatten(1)),
    ]
    for what, field in (
        ("queries and keys", keys),
        ("values and their reader", values),
    ):
        if F.still(field):
            yield Symmetry(f"basis of {what}", (name,), H * d * d)
    bias = F.held.get(part_of["in_proj_bias"])
    if bias is not None:
        change = torch.zeros_like(bias)
        change[2 * H * d :] = M[:, 0].flatten()
        out = W.flatten(1) @ change[2 * H * d :]
        if F.still(
            [(part_of["in_proj_bias"], change), (f"{name}.out_proj.bias", -out)]
        ):
            yield Symmetry("shift of values, undone by their reader", (name,), H * d)


def dead_directions(
    module: nn.Module, x: Tensor, reached: dict[str, Tensor], samples: int
) -> dict[str, Tensor]:
    """Which parameters no output depends on, at these weights and at random ones."""
    twins = [RandomWeights(module, x[:2], 7 + k).module for k in range(DRAWS)]
    seen = [reached, *(reach(twin, x, samples) for twin in twins)]
    tops = [1e-12 * max(float(t.max()) for t in r.values()) for r in seen]
    dead = {}
    for name, t in reached.items():
        none = torch.stack(
            [r[name] <= top for r, top in zip(seen, tops, strict=True)]
        ).all(0)
        if none.ndim > 1:  # a pair of units of which never both are on is no direction
            rows = none.flatten(1).all(1).view(-1, *[1] * (t.ndim - 1))
            none = none & (rows | none.all(0))
        dead[name] = none
    return dead


def symmetries(
    module: nn.Module, x: Tensor, reached: dict[str, Tensor], samples: int
) -> list[Symmetry]:
    """What moves no output at any weights, layer by layer; the data decide what is dead."""
    F = RandomWeights(module, x[:FEW])
    dead = dead_directions(module, x, reached, samples)
    found: list[Symmetry] = []
    for group in channel_groups(module):
        found += [*of_units(F, group), *before_norms(F, group)]
    for name, m in F.modules.items():
        if isinstance(m, nn.MultiheadAttention) and m._qkv_same_embed_dim:
            found += of_attention(F, name, m)
        weight = f"{name}.weight"
        if isinstance(m, LINEAR) and weight in F.held:
            seen = ~dead[weight].all(0)
            shift = [
                (
                    weight,
                    normal(seen.shape, 4).to(F.held[weight]).expand_as(F.held[weight])
                    * seen,
                )
            ]
            size = int(seen.sum())
            if f"{name}.bias" in F.held:
                shift.append((f"{name}.bias", torch.ones_like(F.held[f"{name}.bias"])))
                size += 1
            if F.still(shift):
                after = "shift of all units, undone by a softmax or norm"
                found.append(Symmetry(after, (name,), size))
    for name, t in dead.items():
        if bool(t.any()):
            found.append(Symmetry("dead directions", (name,), int(t.sum())))
    return found


def is_scaled(group: ChannelGroup, everywhere: Iterable[Symmetry]) -> bool:
    """Whether each unit of a group can be scaled at any weights."""
    layers = (*group.named("write"), *group.named("read"))
    return any(s.name in SCALES and s.layers == layers for s in everywhere)
