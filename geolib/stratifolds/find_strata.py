"""Which singular strata of its parameter space a trained network is close to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from geolib.core.linearization import differentiation
from geolib.networks.batch_norm import copy_module
from geolib.stratifolds.channel_strata import channel_strata, zeros_by_gap
from geolib.stratifolds.hidden_layers import HiddenLayer, check_inputs, hidden_layers


@dataclass(frozen=True)
class UnitStratum:
    r"""A stratum of a network lies near its present weights; this is the evidence.

    ==============  =====================================  =========================
    kind            where                                  deficit of the rank
    ==============  =====================================  =========================
    overlap         :math:`w_i = \pm w_j`                  m, or m + q if v_i and v_j
                                                           are parallel; for ReLU-like
                                                           units m + 2 or m + q + 1
    dead output     :math:`v_i = 0`                        q
    constant unit   :math:`w_i = 0` up to the bias         m + 1
    dormant unit    :math:`\sigma = \sigma' = 0` on data   m + q
    ==============  =====================================  =========================

    m is the number of outgoing weights of a unit, q the number of independent input
    directions tested (the bias and the units' own weights among them). An overlap of
    opposite units of a sigmoid has the m only if the next layer has a bias. Where
    :math:`\sigma(a) - \sigma(-a)` is a ramp (ReLU, GELU, SiLU), opposite units with
    parallel v_i, v_j lose the ramp and, with biases, a constant.

    In networks of other layers the units are channels, and the heads of attention
    layers. There an overlap's deficit is the number of directions that two units share,
    along at most `probes` outgoing and as many incoming directions of each; those in
    which a unit can be scaled or shifted anywhere are not among them.

    Attributes:
        kind: as in the table.
        layer: index of the hidden layer, or of the group of channels; -1 for the whole
            module.
        units: the unit, or the two units.
        sign: -1 for an overlap of opposite weights (odd activations and sigmoids).
        distance: relative distance of the present weights from the stratum.
        predicted: deficit from the table.
        deficit: deficit measured with the weights moved onto the stratum.
        gap: ratio of the singular values on both sides of that cut.
        near: ratio of the predicted-th smallest singular value to the largest, at the
            *present* weights: 0 on the stratum. Of channels it is the distance.
    """

    kind: str
    layer: int
    units: tuple[int, ...]
    sign: int
    distance: float
    predicted: int
    deficit: int
    gap: float
    near: float

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
    where the activation is odd up to a constant or even up to a ramp, lengths do not
    count where it is homogeneous.

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
    squares = (W * W).sum(1)
    scale = torch.sqrt((squares[:, None] + squares) / 2).clamp_min(
        torch.finfo(W.dtype).tiny
    )
    direct = torch.cdist(W, W, compute_mode="donot_use_mm_for_euclid_dist") / scale
    sign = torch.ones_like(direct)
    if layer.mirror is not None or layer.ramp:
        crossed = torch.cdist(W, -W, compute_mode="donot_use_mm_for_euclid_dist")
        crossed = crossed / scale
        sign = torch.where(crossed < direct, -1.0, 1.0).to(direct)
        direct = torch.minimum(direct, crossed)
    direct.fill_diagonal_(float("inf"))
    return direct, sign


Candidate = tuple[float, str, tuple[int, ...], int]


def candidates(layer: HiddenLayer, x: Tensor, near: float) -> list[Candidate]:
    """Units and pairs whose weights are within `near` of a stratum, nearest first."""
    found: list[Candidate] = []
    distance, sign = overlap_distances(layer)
    W, V, H = layer.incoming(), layer.outgoing(), layer.inputs(x)
    s, d1, _ = layer.slopes(H @ W.T)
    dormant = (s.abs().amax(0) == 0) & (d1.abs().amax(0) == 0)
    for i, j in (distance < near).nonzero().tolist():
        if i < j and not bool(dormant[i] | dormant[j]):
            found.append((float(distance[i, j]), "overlap", (i, j), int(sign[i, j])))
    out = V.norm(dim=1)
    drive = (W[:, :-1] @ H[:, :-1].T).std(1)
    for kind, size in (("dead output", out), ("constant unit", drive)):
        relative = size / size.median().clamp_min(torch.finfo(size.dtype).tiny)
        for i in (relative < near).nonzero()[:, 0].tolist():
            if not bool(dormant[i]):
                found.append((float(relative[i]), kind, (i,), 1))
    found += [(0.0, "dormant unit", (i,), 1) for i in dormant.nonzero()[:, 0].tolist()]
    return sorted(found)


def project_to_stratum(
    layer: HiddenLayer, kind: str, units: tuple[int, ...], sign: int
) -> None:
    """Move a layer's weights onto a stratum, in place."""
    W, V = layer.incoming(), layer.outgoing()
    i = units[0]
    if kind == "overlap":
        j = units[1]
        pair = canonical_pair(layer, i, j, sign)
        _, b = merged_unit(*pair)
        layer.write(i, b, pair[1])
        layer.write(j, sign * b, sign * pair[3])
    elif kind == "dead output":
        layer.write(i, W[i], 0 * V[i])
    elif kind == "constant unit":
        flat = torch.zeros_like(W[i])
        flat[-1] = W[i, -1]
        layer.write(i, flat, V[i])


def pair_singular_values(
    layer: HiddenLayer, units: tuple[int, ...], x: Tensor, probes: int, own: Tensor
) -> tuple[Tensor, int, int]:
    r"""Singular values of the tangent functions of some units' weights, on data.

    .. math:: \frac{\partial f}{\partial v_{ik}} = \sigma_i D_k, \quad
              \frac{\partial f}{\partial w_i}\cdot u = (D v_i)\,\sigma_i'\,(h\cdot u),
              \quad D = \frac{\partial f}{\partial y}

    The incoming weights are tested along the bias, `own` weights of the units on the
    stratum and the `probes` - 1 leading directions of the data only, so that constant pixels do not
    count as deficits and the scaling of a ReLU-like unit always does.
    Columns are normalised, hence scales of layers do not matter.

    Returns:
        Singular values in descending order, q directions, m outgoing weights.
    """
    H = layer.inputs(x)
    mean = H.mean(0)
    _, size, directions = torch.linalg.svd(H - mean, full_matrices=False)
    seen = directions[size > 1e-6 * size[0]]
    basis = seen[: probes - 1]
    own = own @ seen.T @ seen  # what the data see of them
    rest = own - own @ basis.T @ basis
    _, new, more = torch.linalg.svd(rest, full_matrices=False)
    basis = torch.cat([basis, more[new > 1e-6 * own.norm()]])
    Q = [H @ basis.T]
    if layer.before.bias is not None:
        Q.append(H[:, -1:])
    inputs = torch.cat(Q, 1)  # (n, q)
    s, d1, _ = layer.slopes(H @ layer.incoming().T)
    D = _downstream(layer, s)  # (n, o, m)
    V = layer.outgoing()
    n, o, m = D.shape
    columns = []
    for i in units:
        columns.append(D * s[:, i, None, None])
        slope = (D @ V[i]) * d1[:, i, None]
        columns.append(slope[:, :, None] * inputs[:, None, :])
    if layer.after.bias is not None:
        columns.append(D)
    J = torch.cat(columns, 2).reshape(n * o, -1)
    norms = J.norm(dim=0)
    J = J / norms.clamp_min(1e-12 * float(norms.max()))
    return torch.linalg.svdvals(J), inputs.shape[1], m


def _downstream(layer: HiddenLayer, s: Tensor) -> Tensor:
    """The derivative of the outputs in the next linear map's output, (n, o, m)."""
    y = layer.after(s).detach()
    if layer.tail is None:
        return torch.eye(y.shape[1], dtype=y.dtype).to(y).expand(len(y), -1, -1)
    with torch.enable_grad():
        leaf = y.requires_grad_(True)
        f = layer.tail(leaf)
        rows = [
            torch.autograd.grad(f[:, k].sum(), leaf, retain_graph=True)[0]
            for k in range(f.shape[1])
        ]
    return torch.stack(rows, 1)


def _predict(layer: HiddenLayer, c: Candidate, q: int, m: int) -> int:
    _, kind, units, sign = c
    if kind == "overlap":
        _, v_i, _, v_j = canonical_pair(layer, units[0], units[1], sign)
        pair = torch.linalg.svdvals(torch.stack([v_i, v_j]))
        parallel = m == 1 or bool(pair[1] <= 1e-9 * pair[0])
        # v sigma is among the v sigma' h, off strata too
        scaled = 2 * layer.homogeneous
        after = layer.after.bias is not None
        if sign < 0 and layer.mirror is None:  # sigma(a) - sigma(-a) is a ramp
            constant = after and layer.before.bias is not None
            return scaled + parallel * (constant + (not layer.homogeneous))
        shared = m if sign > 0 or layer.odd or after else 0
        return shared + scaled + parallel * (q - layer.homogeneous)
    with_bias = layer.after.bias is not None
    table = {
        "dead output": q,
        "constant unit": m * with_bias + (layer.before.bias is not None),
        "dormant unit": q + m,
    }
    return table[kind]


@differentiation()
def find_strata(
    module: nn.Module,
    data: Tensor,
    *,
    near: Annotated[float, "near > 0"] = 0.1,
    limit: int = 20,
    probes: Annotated[int, "2 <= probes <= 10**6"] = 8,
    samples: int = 256,
    rtol: Annotated[float, "0 <= rtol < 1"] = 1e-9,
) -> list[UnitStratum]:
    r"""Propose the strata near a network's weights and verify each by rank deficit.

    .. math:: \operatorname{rank}\,\frac{\partial f}
              {\partial(w_i, v_i, w_j, v_j, \gamma)} = \text{full} - \text{deficit}

    The weights propose (two units close, an output weight small, a unit constant on the
    data); a float64 copy is moved onto the proposed stratum and the rank of the tangent
    functions of the units concerned is measured there.

    Args:
        module: a perceptron, see `hidden_layers`, or any module whose graph
            `torch.fx` can trace: convolutions, norms in evaluation mode, attention,
            skip connections. Of another module only the deficit of the whole Jacobian
            is said, as "unexplained". It is not changed.
        data: (n, ...) inputs, of the module's dtype and device, or integers.
        near: report strata within this relative distance.
        limit: at most so many, the nearest.
        probes: input directions tested.
        samples: rows of `data` used for the ranks.
        rtol: singular values count as zero from the widest gap on that lies below rtol
            times the largest.

    Returns:
        Strata by growing distance; empty when the network is in general position.

    Raises:
        TypeError, ValueError: a norm or dropout is in training mode, weights are
            computed from others, a parameter is not finite, the data are empty, a single
            point or not finite, or the dtypes differ; or a module of no known graph has
            more parameters than the data give outputs.

    Cost: one small SVD a candidate.
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
    try:
        layers = hidden_layers(twin)
    except (TypeError, ValueError):  # no perceptron
        x = data[:samples].double() if data.is_floating_point() else data[:samples]
        seen = channel_strata(twin, x, near, limit, probes, rtol)
        return [UnitStratum(*evidence) for evidence in seen]
    proposals = [
        (c, k)
        for k, layer in enumerate(layers)
        for c in candidates(layer, data.double(), near)
    ]
    x = data[:samples].double()
    nearest = sorted(proposals)[:limit]
    found = [_verify(module, k, c, x, probes, rtol) for c, k in nearest]
    everywhere = {k: 2 * layer.homogeneous for k, layer in enumerate(layers)}
    return [
        s for s in found if s.kind != "overlap" or s.predicted > everywhere[s.layer]
    ]


def _verify(
    module: nn.Module, k: int, c: Candidate, x: Tensor, probes: int, rtol: float
) -> UnitStratum:
    distance, kind, units, sign = c
    twin = hidden_layers(copy_module(module).double())[k]
    layer = hidden_layers(copy_module(module).double())[k]
    project_to_stratum(twin, kind, units, sign)
    own = twin.incoming()[list(units)]
    there, q, m = pair_singular_values(twin, units, x, probes, own)
    here, _, _ = pair_singular_values(layer, units, x, probes, own)
    predicted = _predict(twin, c, q, m)
    rank, gap = zeros_by_gap(there, rtol)
    deficit = len(there) - rank
    gap = gap if deficit else 0.0
    near = float(here[-predicted] / here[0])
    return UnitStratum(kind, k, units, sign, distance, predicted, deficit, gap, near)
