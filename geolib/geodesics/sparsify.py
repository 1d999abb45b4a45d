"""`sparsify`: a sparse network from any module, along the invariant path."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.geodesics.function_space import FunctionSpace
from geolib.geodesics.magnitude_masks import WARM, check_sparsity, matrices
from geolib.geodesics.sparse_path import (
    Chooser,
    Sparse,
    labelled_reference,
    metric_chooser,
    sparse_path,
)
from geolib.geodesics.structured import (
    choose_units,
    removable_units,
    shrink,
    unit_mask,
    unit_scores,
)
from geolib.networks.channel_groups import check_orders
from geolib.networks.sequential import recomputed
from geolib.networks.training import Meter
from geolib.networks.validation import check_inputs, check_labels, check_positive

SCORED = 1024  # inputs that whole units are scored on


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` returns.

    Attributes:
        module: a new module; with `structured` one with fewer units.
        mask: which weights of the given module were kept, shape (p,).
        sparsity: share of zeros among its matrices (the units' share if structured).
        drift: root mean square change of the outputs, in the metric's units.
        gradient_evaluations: compute paid; see `geolib.networks.Meter`.
        converged: whether the outputs came back after the last cut.
        message: one sentence about how it ended.
    """

    module: nn.Module
    mask: Tensor
    sparsity: float
    drift: float
    gradient_evaluations: int
    converged: bool
    message: str


def sparsify(
    module: nn.Module,
    data: Tensor,
    sparsity: float,
    *,
    structured: bool = False,
    steps: int = 40,
    batch: int = 256,
    damping: float = 1e-4,
    iterations: int = 9,
    space: str = "sphere",
    metric_mask: bool = False,
    labels: Tensor | None = None,
    pull: float = 0.3,
    seed: int = 0,
) -> Sparsified:
    r"""Make a network sparse along a path that keeps its function; see `sparse_path`.

    .. math:: \min_{w} |\Phi(w) - \Phi(w_0)|^2 \quad\text{with a share } s \text{ of } w
              \text{ zero, the zeros chosen on the way}

    Args:
        module: any `nn.Module` in evaluation mode; `structured` needs a `Sequential`
            of linear, convolution, BatchNorm, activation and pooling layers.
        data: inputs, shape (n, ...).
        sparsity: share s of zeros in [0, 1) among the entries of matrices and filters;
            with `structured` the share of hidden units (neurons, filters) removed.
        structured: remove whole units and return a smaller, faster module.
        steps: more steps, smaller cuts.
        batch: inputs of a step.
        damping: of the solves; raise it if outputs grow.
        iterations: most conjugate-gradient steps of a solve.
        space: where outputs are compared; see `embed`.
        metric_mask: zero the weights that the metric says cost least, not the
            smallest ones; better at high sparsity, and four evaluations a step dearer.
        labels: classes, shape (n,); with them the outputs that are kept are first
            moved part of the way to the labels (in the space `sphere`).
        pull: how far, in [0, 1].
        seed: of the order of the inputs.

    Raises:
        ValueError: a sparsity outside [0, 1), non-finite weights or data, BatchNorm in
            training mode, a module whose units cannot be removed, parametrized
            weights, labels that do not fit.
        RuntimeError: the outputs left the finite numbers.

    Cost: (iterations + 2) * steps * batch gradient evaluations.

    Source: Raghavan and Thomson 2021; see `sparse_path`.

    Examples:
        >>> from geolib.networks import mlp
        >>> net = mlp([4, 16, 3])
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> small = sparsify(net, x, 0.5, structured=True, steps=4).module
        >>> small[1].weight.shape
        torch.Size([8, 4])
    """
    check_sparsity(sparsity)
    check_positive(steps=steps, batch=batch, damping=damping, iterations=iterations)
    _refuse_parametrizations(module)
    R = Realization(module)
    check_inputs(data, "data")
    if not bool(torch.isfinite(R.theta0).all()):
        raise ValueError("module: expected finite weights, got NaN or inf")
    if structured and metric_mask:
        raise ValueError("metric_mask: whole units are scored by the metric already")
    S, meter = FunctionSpace(R, data, space), Meter()
    reference = _reference(S, labels, pull)
    twin = copy.deepcopy(module)
    kept: list[Tensor] = []
    choose: Chooser | None = None
    if structured:
        choose = _unit_chooser(R, twin, data, kept)
    elif metric_mask:
        choose = metric_chooser(S, meter)
    found = sparse_path(
        S,
        R.theta0,
        sparsity,
        steps=steps,
        batch=batch,
        damping=damping,
        iterations=iterations,
        seed=seed,
        choose=choose,
        reference=reference,
        trace=False,
    )
    Realization(twin).load(found.weights)
    paid = found.gradient_evaluations + meter.gradient_evaluations
    if not structured:
        reached = 1 - found.mask[matrices(R)].to(torch.float64).mean().item()
        return _result(twin, found, reached, paid)
    reached = 1 - torch.cat(kept).to(torch.float64).mean().item()
    return _result(shrink(twin, kept), found, reached, paid)


def _unit_chooser(
    R: Realization, twin: nn.Module, data: Tensor, kept: list[Tensor]
) -> Chooser:
    """Drop whole units by their scores; the flags of the last cut are left in `kept`."""
    removable_units(twin)
    writer = Realization(twin)
    rows = torch.linspace(0, len(data) - 1, min(len(data), SCORED)).long()
    x = data[rows]
    check_orders(twin, x)

    def choose(w: Tensor, sparsity: float, _rows: Tensor, _step: int) -> Tensor:
        writer.load(w)
        kept[:] = choose_units(unit_scores(twin, x), sparsity)
        return unit_mask(R, kept)

    return choose


def _reference(S: FunctionSpace, labels: Tensor | None, pull: float) -> Tensor | None:
    """The outputs to keep, if they are not those of the dense network."""
    if labels is None:
        return None
    if S.space != "sphere":
        raise ValueError(f"labels: they are points of 'sphere', not of {S.space!r}")
    if not 0 <= pull <= 1:
        raise ValueError(f"pull: expected a share in [0, 1], got {pull!r}")
    w = S.realization.theta0
    check_labels(S.realization(w, S.x[:1]).shape[1], labels, S.size)
    return labelled_reference(S, w, labels, pull)


def _result(module: nn.Module, found: Sparse, reached: float, paid: int) -> Sparsified:
    # the cuts end at WARM of the steps; the rest repairs
    last_cut = found.drifts[int(WARM * len(found.drifts)) - 1]
    drift = found.drifts[-1]
    converged = drift <= 1.05 * last_cut
    message = (
        f"drift {drift:.3g} at the end, {last_cut:.3g} at the last cut"
        f"{'' if converged else ': still growing, give it more steps'}"
    )
    return Sparsified(module, found.mask, reached, drift, paid, converged, message)


def _refuse_parametrizations(module: nn.Module) -> None:
    """Zeros of a raw parameter are not zeros of the weights that the network uses."""
    for name, layer in module.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(layer) or recomputed(layer):
            raise ValueError(
                f"module: layer {name or '(root)'!r} computes its weights from other "
                "parameters (a parametrization), whose zeros are not the weights'; "
                "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
