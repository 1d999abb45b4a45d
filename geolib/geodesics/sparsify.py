"""`sparsify`: a sparse network from any module, along the invariant path."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.geodesics.checks import check_positive
from geolib.geodesics.masks import check_level, matrices
from geolib.geodesics.sparse_path import Sparse, sparse_path
from geolib.geodesics.structured import (
    choose_units,
    joints,
    shrink,
    unit_mask,
    unit_scores,
)


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` returns.

    Attributes:
        module: a new module; with `structured` one with fewer units.
        keep: which weights of the given module were kept, shape (p,).
        level: share of zeros among its matrices (the units' share if structured).
        drift: root mean square change of the outputs, in the metric's units.
        passes: compute paid; see `geolib.geodesics.train.Meter`.
        converged: whether the outputs came back after the last cut.
        message: one sentence about how it ended.
    """

    module: nn.Module
    keep: Tensor
    level: float
    drift: float
    passes: int
    converged: bool
    message: str


def sparsify(
    module: nn.Module,
    data: Tensor,
    level: float,
    *,
    structured: bool = False,
    steps: int = 40,
    batch: int = 256,
    mu: float = 1e-4,
    space: str = "sphere",
    seed: int = 0,
) -> Sparsified:
    r"""Make a network sparse along a path that keeps its function; see `sparse_path`.

    .. math:: \min_{w} |\Phi(w) - \Phi(w_0)|^2 \quad\text{with a share `level` of } w
              \text{ zero, the zeros chosen on the way}

    Args:
        module: any `nn.Module` in evaluation mode; `structured` needs a `Sequential`
            of linear, convolution, BatchNorm, activation and pooling layers.
        data: inputs, no labels, shape (n, ...).
        level: share of zeros in [0, 1) among the entries of matrices and filters; with
            `structured` the share of hidden units (neurons, filters) removed.
        structured: remove whole units and return a smaller, faster module.
        steps: more steps, smaller cuts.
        mu: damping; raise it if outputs grow.

    Raises:
        ValueError: a level outside [0, 1), non-finite weights or data, BatchNorm in
            training mode, a module whose units cannot be removed.
        RuntimeError: the outputs left the finite numbers.

    Cost: 11 * steps * batch passes.

    Source: Raghavan and Thomson 2021; see `sparse_path`.

    Examples:
        >>> from geolib.geodesics import mlp
        >>> net = mlp([4, 16, 3])
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> small = sparsify(net, x, 0.5, structured=True, steps=4).module
        >>> small[1].weight.shape
        torch.Size([8, 4])
    """
    check_level(level)
    check_positive(steps=steps, batch=batch, mu=mu)
    R = Realization(module)
    _check(R, data)
    rows = data[torch.linspace(0, len(data) - 1, min(len(data), 1024)).long()]
    options = {"steps": steps, "batch": batch, "mu": mu, "space": space, "seed": seed}
    options["trace"] = False
    twin = copy.deepcopy(module)
    if not structured:
        found = sparse_path(R, R.theta0, data, level, **options)  # type: ignore[arg-type]
        Realization(twin).load(found.weights)
        mine = matrices(R)
        reached = 1 - found.keep[mine].to(torch.float64).mean().item()
        return _result(twin, found, reached)
    chain = joints(module)
    writer = Realization(twin)
    kept: list[Tensor] = []

    def choose(w: Tensor, share: float, _rows: Tensor) -> Tensor:
        writer.load(w)
        kept[:] = choose_units(unit_scores(twin, rows), share)  # type: ignore[arg-type]
        return unit_mask(R, kept)

    found = sparse_path(R, R.theta0, data, level, choose=choose, **options)  # type: ignore[arg-type]
    writer.load(found.weights)
    units = sum(j.units for j in chain)
    reached = 1 - sum(int(k.sum()) for k in kept) / units
    return _result(shrink(twin, kept), found, reached)  # type: ignore[arg-type]


def _result(module: nn.Module, found: Sparse, reached: float) -> Sparsified:
    # the cuts end at 7/10 of the steps; the rest repairs
    last_cut = found.drifts[int(0.7 * len(found.drifts)) - 1]
    drift = found.drifts[-1]
    converged = drift <= 1.05 * last_cut
    message = (
        f"drift {drift:.3g} at the end, {last_cut:.3g} at the last cut"
        f"{'' if converged else ': still growing, give it more steps'}"
    )
    return Sparsified(
        module, found.keep, reached, drift, found.passes, converged, message
    )


def _check(R: Realization, data: Tensor) -> None:
    if not isinstance(data, Tensor) or len(data) == 0:
        raise ValueError("data: expected a tensor of inputs with at least one row")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("data: expected finite inputs, got NaN or inf")
    if not bool(torch.isfinite(R.theta0).all()):
        raise ValueError("module: expected finite weights, got NaN or inf")
