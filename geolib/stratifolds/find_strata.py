"""Which singular strata of its parameter space a trained network is close to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from geolib.core.linearization import differentiation
from geolib.networks.batch_norm import copy_module
from geolib.stratifolds.channel_strata import (
    Tangents,
    Units,
    dormant,
    lost,
    moved_onto,
    opposite,
    proposals,
    reach,
    relative_distances,
    shared,
    spreads,
    unexplained,
    unit_groups,
)
from geolib.stratifolds.everywhere import Symmetry, is_scaled, symmetries
from geolib.stratifolds.hidden_layers import HiddenLayer, check_inputs


@dataclass(frozen=True)
class UnitStratum:
    r"""A stratum of a network lies near its present weights; this is the evidence.

    ==============  =====================================  =========================
    kind            where                                  deficit of the rank
    ==============  =====================================  =========================
    overlap         :math:`w_i = \pm w_j`                  m, or m + q if v_i and v_j
                                                           are parallel
    dead output     :math:`v_i = 0`                        q
    constant unit   :math:`w_i = 0` up to the bias         m + 1
    dormant unit    nothing depends on it on the data      m + q
    ==============  =====================================  =========================

    A unit is a neuron, a channel or a head of attention, m the number of directions
    tested of its outgoing weights, q that of the incoming ones (at most `probes` each,
    and the units' own weights). Directions in which a unit can be moved *anywhere*, as a
    ReLU unit can be scaled, are in no deficit: they are `Strata.everywhere`. An overlap of
    opposite units is a stratum where the activation is odd, a sigmoid (if a bias takes
    the constant), or where :math:`\sigma(a) - \sigma(-a)` is a ramp and v_i, v_j are
    parallel; what is predicted is what random opposite units share. A stratum of units
    that are dormant is named beside these, with all that its units lose.

    Attributes:
        kind: as in the table.
        layer: index of the hidden layer (of the group of units); -1 for the whole module.
        units: the unit, or the two units.
        sign: -1 for an overlap of opposite weights (odd activations and sigmoids).
        distance: relative distance of the present weights from the stratum.
        predicted: deficit from theory.
        deficit: deficit measured with the weights moved onto the stratum.
        gap: ratio of the singular values on both sides of that cut.
    """

    kind: str
    layer: int
    units: tuple[int, ...]
    sign: int
    distance: float
    predicted: int
    deficit: int
    gap: float

    @property
    def verified(self) -> bool:
        """Whether the measured deficit is the predicted one, with a clear gap.

        A larger deficit means a deeper stratum (two kinds at once); it counts.
        """
        return self.deficit >= self.predicted and self.gap > 1e3

    def __str__(self) -> str:
        if self.kind == "unexplained":
            return f"whole module: rank deficit {self.deficit}, unexplained"
        pair = ", ".join(map(str, self.units))
        mark = "verified" if self.verified else "NOT verified"
        sign = " (opposite)" if self.sign < 0 else ""
        return (
            f"layer {self.layer}: {self.kind} of {pair}{sign}, distance "
            f"{self.distance:.3g}, rank deficit {self.deficit} "
            f"(predicted {self.predicted}), {mark}"
        )


class Strata(list[UnitStratum]):
    """The strata near a network's weights, and the symmetries that it has everywhere.

    Attributes:
        everywhere: what changes no output at any weights, on all strata and off them.
            It is no evidence of a stratum.
    """

    def __init__(
        self, found: Iterable[UnitStratum] = (), everywhere: Iterable[Symmetry] = ()
    ) -> None:
        super().__init__(found)
        self.everywhere = tuple(everywhere)


def canonical_pair(
    layer: HiddenLayer, i: int, j: int, sign: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Both units in comparable form: signs aligned, and norms for ReLU-like units.

    .. math:: v\,\sigma(w\cdot h) = (sv)\,\sigma(sw\cdot h) \ \text{(odd)}, \qquad
              = (v/c)\,\sigma(cw\cdot h) \ \text{(homogeneous)}

    Returns:
        w_i, v_i, w_j, v_j of two units that compute what they computed before.
    """
    W, V = layer.incoming(), layer.outgoing()
    w_i, v_i, w_j, v_j = W[i], V[i], sign * W[j], sign * V[j]
    if layer.homogeneous:
        n_i, n_j = w_i.norm(), w_j.norm()
        if n_i > 0 and n_j > 0:
            mean = torch.sqrt(n_i * n_j)
            w_i, v_i = w_i * mean / n_i, v_i * n_i / mean
            w_j, v_j = w_j * mean / n_j, v_j * n_j / mean
    return w_i, v_i, w_j, v_j


def merged_unit(
    w_i: Tensor, v_i: Tensor, w_j: Tensor, v_j: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The merged unit: total output weight and weighted mean of the incoming ones.

    .. math:: V = v_i + v_j,\quad b = (1-z)w_i + z w_j,\quad
              z = \frac{\langle v_j, V\rangle}{|V|^2} \ \text{clipped to } [-1, 2]

    For one output this keeps the function to second order in the distance; for
    several outputs to first order only in the part of v_i, v_j along V.
    """
    V = v_i + v_j
    size = (V * V).sum()
    z = ((v_j * V).sum() / size).clamp(-1, 2) if size > 0 else 0.5
    return V, (1 - z) * w_i + z * w_j


def overlap_distances(layer: HiddenLayer) -> tuple[Tensor, Tensor]:
    r"""The relative distances of all pairs of units, and the signs that attain them.

    .. math:: d_{ij} = \frac{|w_i \mp w_j|}{\sqrt{(|w_i|^2 + |w_j|^2)/2}}

    The distance of two unrelated units is about 1.4. Opposite weights count as equal
    where the activation is odd, lengths do not count where it is homogeneous.

    Args:
        layer: one of `hidden_layers`.

    Returns:
        Distances (width, width), infinite on the diagonal, and signs (width, width).

    Source: :eq:`drv-stratifolds-distance` (derivations).

    Examples:
        >>> from geolib.stratifolds import hidden_layers
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
        >>> _ = net[0].bias.data.zero_()
        >>> distance, sign = overlap_distances(hidden_layers(net)[0])
        >>> float(distance[0, 1]), float(sign[0, 1])
        (0.0, -1.0)
    """
    W = layer.incoming()
    if layer.homogeneous:
        W = W / W.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    direct = relative_distances(W, 1)
    crossed = relative_distances(W, -1) if layer.odd else direct
    sign = torch.where(crossed < direct, -1.0, 1.0).to(direct)
    direct = torch.minimum(direct, crossed)
    direct.fill_diagonal_(float("inf"))
    return direct, sign


@differentiation()
def find_strata(
    module: nn.Module,
    data: Tensor,
    *,
    near: Annotated[float, "near > 0"] = 0.1,
    limit: int = 20,
    probes: Annotated[int, "2 <= probes <= 10**6"] = 8,
    samples: int = 128,
    rtol: Annotated[float, "0 <= rtol < 1"] = 1e-9,
) -> Strata:
    r"""Propose the strata near a network's weights and verify each by rank deficit.

    .. math:: \operatorname{rank}\,\frac{\partial f}
              {\partial(w_i, v_i, w_j, v_j, \gamma)} = \text{full} - \text{deficit}

    The weights propose (two units close, an output weight small, a unit constant on the
    data); a float64 copy is moved onto the proposed stratum and the rank of the tangent
    functions of the units concerned is measured there.

    Args:
        module: any whose graph `torch.fx` can trace: perceptrons, convolutions, norms
            in evaluation mode, attention, skip connections. Where units have several
            writers (a residual stream, a layer that is applied twice), a stratum of the
            rows of one writer alone is not seen.
            Of a module that cannot be traced, or whose units cannot be followed (through
            a concatenation, heads cut by hand, a weight used transposed), only the deficit
            of the whole Jacobian is said, as "unexplained". It is not changed.
        data: (n, ...) inputs, of the module's dtype and device, or integers.
        near: report strata within this relative distance.
        limit: at most so many, the nearest.
        probes: directions tested of a unit's incoming weights, and of its outgoing ones.
        samples: rows of `data` used for the ranks, and so many at a time otherwise.
        rtol: singular values count as zero from the widest gap on that lies below rtol
            times the largest.

    Returns:
        Strata by growing distance; empty when the network is in general position. Its
        `everywhere` names the symmetries of every weight: scales that a reader or a norm
        undoes, bases of linear units and of attention's queries, keys and values, shifts
        that a softmax or a norm undoes, dead directions.

    Raises:
        TypeError, ValueError: a norm or dropout is in training mode, weights are
            computed from others, a parameter is not finite, the data are empty, a single
            point or not finite, or the dtypes differ; or a module of no known graph has
            more parameters than the data give outputs.

    Cost: three backward passes of the data, some products of the Jacobian with a vector a
    layer, and some 6 `probes` of them on `samples` data a candidate. No Jacobian is held: of
    memory a few copies of the module and of the activations of `samples` data.
    Source: :eq:`drv-stratifolds-deficits` (derivations).

    Examples:
        >>> from geolib.core import init_
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        >>> _ = init_(net, seed=0, bias_scale=0.5)
        >>> with torch.no_grad():
        ...     _ = net[0].weight[2].copy_(-net[0].weight[1])
        ...     _ = net[0].bias[2].copy_(-net[0].bias[1])
        >>> x = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(20, 2)
        >>> x[:, 1] = x[:, 1] ** 2
        >>> for s in find_strata(net, x): print(s)
        layer 0: overlap of 1, 2 (opposite), distance 0, rank deficit 4 (predicted 4),
        verified
    """
    twin = copy_module(module).double()
    check_inputs(data, module)
    x = data.double() if data.is_floating_point() else data
    try:
        groups = unit_groups(twin)
    except TypeError:
        groups = []
    if not groups:  # of no known units: only the whole deficit can be said
        deficit, gap = unexplained(Tangents(twin, x), samples, rtol)
        whole = UnitStratum("unexplained", -1, (), 1, 0.0, 0, deficit, gap)
        return Strata([whole] * (deficit > 0))
    spread = spreads(twin, x[:samples])
    reached = reach(twin, x, samples)
    everywhere = symmetries(twin, x, reached, samples)
    tangents = Tangents(twin, x[:samples])
    seen = [
        Units(tangents, group, probes, rtol, is_scaled(group, everywhere))
        for group in groups
    ]
    nearest = sorted(
        (c, k) for k, u in enumerate(seen) for c in proposals(u, near, reached, spread)
    )
    found = []
    for (distance, kind, at, sign, quiet), k in nearest[:limit]:
        units = moved_onto(seen[k], kind, at, sign)
        if quiet:
            said = dormant(units, *at)
        elif kind == "overlap":
            said = (shared if sign > 0 else opposite)(units, *at)
        else:
            said = lost(units, kind, *at)
        if sign > 0 or said[0]:  # opposite units of most activations share nothing
            found.append(UnitStratum(kind, k, at, sign, distance, *said))
    return Strata(found, everywhere)
