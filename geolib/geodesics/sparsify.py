"""`sparsify`: a sparse network from any module, along the invariant path."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import custom_from_mask

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.geodesics.embedding import SPACES
from geolib.networks import recalibrate, with_batch_statistics
from geolib.networks.batch_norm import has_batch_norm
from geolib.networks.channel_groups import check_orders
from geolib.networks.rows import PIECE, Rows, as_rows, part_of
from geolib.networks.sequential import check_weights
from geolib.networks.training import Meter

from .connect import check_shape
from .curves import labels_of
from .function_space import FunctionSpace
from .magnitude_masks import matrices
from .sparse_path import (
    Chooser,
    MetricMask,
    adaptive_mask,
    kept_outputs,
    label_loss,
    sparse_path,
    trained_path,
)
from .structured import choose_units, removable_units, shrink, unit_mask, unit_scores

SCORED = 1024  # inputs that whole units are scored on, and most that are held out


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` returns.

    Attributes:
        module: a new module; with `structured` one with fewer units.
        mask: which weights of the given module were kept, shape (p,).
        sparsity: share of zeros among its matrices (the units' share if structured).
        drift: root mean square change of the outputs of the returned module, in the
            metric's units, on inputs that no step saw.
        spread: the least that a constant function would drift there.
        gradient_evaluations: compute paid; see `geolib.networks.Meter`.
        converged: whether the function was kept: a drift of at most `tol` spreads.
        message: one sentence about how it ended.
    """

    module: nn.Module
    mask: Tensor
    sparsity: float
    drift: float
    spread: float
    gradient_evaluations: int
    converged: bool
    message: str

    def prune(self, module: nn.Module) -> nn.Module:
        """Put weights and masks into a dense module, as `torch.nn.utils.prune` has them.

        Training goes on under the masks; torch's `prune.remove` makes them permanent.
        """
        R = Realization(module)
        module.load_state_dict(self.module.state_dict())
        for name, keep in R.unflatten(self.mask.double()).items():
            layer, _, own = name.rpartition(".")
            if keep.ndim >= 2:
                custom_from_mask(module.get_submodule(layer), own, keep.bool())
        return module


@differentiation()
def sparsify(
    module: nn.Module,
    data: Any,
    sparsity: float,
    *,
    structured: bool = False,
    steps: int = 40,
    batch: int = 256,
    damping: float = 1e-4,
    iterations: int = 9,
    space: Annotated[str, SPACES] = "sphere",
    labels: Tensor | np.ndarray | bool | None = None,
    lr: float = 3e-3,
    tol: float = 0.5,
    transform: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[int, float], object] | None = None,
    seed: int = 0,
) -> Sparsified:
    r"""Make a network sparse along a path that keeps its function, or on labels.

    .. math:: \min_{w} |\Phi(w) - \Phi(w_0)|^2 \quad\text{or}\quad \min_w L(w)
              \quad\text{with a share } s \text{ of } w \text{ zero, the zeros chosen on the way}

    Without labels this is the walk of `sparse_path`. With labels the network is trained
    on them while weights go: those first that Adam's own metric says cost least.
    BatchNorm normalises each batch by its own statistics on the way, since the running
    ones are the dense network's; those of the result are estimated anew. A tenth of the
    inputs, at most 1024, are held out to judge the result.

    Args:
        module: any `nn.Module` in evaluation mode; `structured` needs one whose
            channels can be followed through it (`channel_groups`).
        data: inputs, shape (n, ...), as a tensor, an array, a data set or a
            `DataLoader`, with or without labels.
        sparsity: share s of zeros in [0, 1) among the entries of matrices and filters;
            with `structured` the share of hidden units (neurons, filters) removed.
        structured: remove whole units and return a smaller, faster module.
        steps: more steps, smaller cuts.
        batch: inputs of a step.
        damping: of the solves, at least; it is raised where steps do not pay.
        iterations: most conjugate-gradient steps of a solve.
        space: where outputs are compared; see `embed`.
        labels: classes, shape (n,), or True for those that come with `data`.
        lr: with labels, the rate of Adam until the last weight has been dropped.
        tol: the drift, in units of `spread`, up to which the function counts as kept.
        transform: applied to each batch of `data`, say from bytes to numbers.
        callback: called after each step with its number and the drift on its batch, or
            the loss.
        seed: of the order of the inputs.

    Raises:
        ValueError: a sparsity outside [0, 1), non-finite weights or data, BatchNorm in
            training mode, a module whose units cannot be removed, parametrized
            weights, labels that do not fit.
        RuntimeError: the outputs left the finite numbers.

    Cost: (iterations + 4) * steps * batch gradient evaluations, with labels as many
        steps of Adam; memory of one batch and a few networks.

    Source: Raghavan and Thomson 2021; see `sparse_path` and `trained_path`.

    Examples:
        >>> from geolib.networks import mlp
        >>> net = mlp([4, 16, 3])
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> small = sparsify(net, x, 0.5, structured=True, steps=4).module
        >>> small[1].weight.shape
        torch.Size([8, 4])
    """
    for name, layer in module.named_modules():
        check_weights(name, layer)  # zeros of others are not zeros of its weights
    labels = None if labels is False else labels
    dense = Realization(module)
    x = as_rows(data, transform, dense.theta0)
    check_shape(dense, x[:2])
    normed = has_batch_norm(module)
    R = Realization(with_batch_statistics(module), check=False) if normed else dense
    used, held = _held_out(len(x), seed)
    S, meter = FunctionSpace(R, part_of(x, used, dense.theta0), space), Meter()
    twin = copy.deepcopy(module)
    kept: list[Tensor] = []
    choose = MetricMask(S, meter) if labels is None else adaptive_mask(R)
    if structured:
        choose = _unit_chooser(dense, twin, x, kept)
    plan: dict[str, Any] = {"batch": batch, "seed": seed, "callback": callback}
    if labels is None:
        plan |= {"damping": damping, "iterations": iterations, "steps": steps}
        target = kept_outputs(S, dense, dense.theta0)
        found = sparse_path(
            S, R.theta0, sparsity, choose=choose, target=target, trace=False, **plan
        )
    else:
        y = labels_of(dense, data if labels is True else labels, x)[used]
        plan |= {"lr": lr, "steps": steps * (iterations + 4)}
        found = trained_path(R, S.x, R.theta0, sparsity, choose, label_loss(y), **plan)
    Realization(twin).load(found.weights)
    if normed:
        recalibrate(twin, x)
    flags = torch.cat(kept) if structured else found.weights[matrices(R)] != 0
    reached = 1 - flags.to(torch.float64).mean().item()
    twin = shrink(twin, kept) if structured else twin
    drift, spread = _judged(S, module, twin, part_of(x, held, dense.theta0))
    converged = drift <= tol * spread
    message = (
        f"drift {drift:.3g} on {len(held)} inputs that no step saw, where the best "
        f"constant drifts {spread:.3g}"
        f"{'' if converged else f': the function was not kept to tol = {tol:g}'}"
    )
    paid = found.gradient_evaluations + meter.gradient_evaluations
    judged = drift, spread, paid, converged, message
    return Sparsified(twin, found.mask, reached, *judged)


def _held_out(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for the steps and rows to judge by: all of them for both where few."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    count = min(SCORED, size // 10)
    return (order[count:], order[:count]) if count > 1 else (order, order)


@torch.no_grad()
def _judged(
    S: FunctionSpace, dense: nn.Module, small: nn.Module, x: Rows
) -> tuple[float, float]:
    """Drift and spread of the embedded outputs of two modules as they are used."""
    R, T = Realization(dense), Realization(small)
    parts = list(x.split(PIECE))
    old = torch.cat([S.embed(R(R.theta0, part)) for part in parts])
    new = torch.cat([S.embed(T(T.theta0, part)) for part in parts])
    drift = (new - old).square().sum(1).mean().sqrt()
    return drift.item(), (old - old.mean(0)).square().sum(1).mean().sqrt().item()


def _unit_chooser(
    R: Realization, twin: nn.Module, data: Tensor | Rows, kept: list[Tensor]
) -> Chooser:
    """Drop whole units by their scores; the flags of the last cut are left in `kept`."""
    units, count = sum(g.width for g in removable_units(twin)), -1
    writer, normed = Realization(twin), has_batch_norm(twin)
    rows = torch.linspace(0, len(data) - 1, min(len(data), SCORED)).long()
    x = data[rows]
    check_orders(twin, x)

    def choose(w: Tensor, sparsity: float, *_: object) -> Tensor:
        nonlocal count
        if count == (count := round(sparsity * units)):  # what is gone stays gone
            return unit_mask(R, kept)
        writer.load(w)
        if normed:  # the running statistics are those of older weights
            recalibrate(twin, x)
        kept[:] = choose_units(unit_scores(twin, x), sparsity)
        return unit_mask(R, kept)

    return choose
