"""Are two networks of one architecture the same function, and how far apart are they?"""

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from geolib.core.validation import expect
from geolib.files import imported
from geolib.inverse_stability.canonical import canonicalize
from geolib.inverse_stability.paths import changes
from geolib.networks.channel_graph import LINEAR, Slot
from geolib.networks.channel_groups import channel_groups
from geolib.networks.weight_matching import Matching, align, by_channel

SAME, ROUNDINGS = 1e-10, 8.0  # relative distances of one function, of its dtype
SETTLED, CHUNK = 1e-3, 256  # end of the matching; inputs at once


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distances of two networks, each between two bounds.

    Attributes:
        same: whether the weights agree up to permutation, scaling and rounding.
        distance: 2-norm of the difference of the balanced weights in the best order
            that was found: an upper bound of the gauge distance.
        distance_at_least: a lower bound of it, over all orders of channels.
        relative: `distance` over the 2-norm of the balanced weights of the first.
        outputs_at_least: largest difference of the outputs on the inputs that were
            given; None without inputs.
        outputs_at_most: bound of the difference of the outputs on the box that these
            inputs span (each entry up to its largest size); None without inputs.
        converged: whether both balances and the matching ended, the latter when a pass
            over all channels gained a thousandth of the squared distance or less.
    """

    same: bool
    distance: float
    distance_at_least: float
    relative: float
    outputs_at_least: float | None
    outputs_at_most: float | None
    converged: bool


def compare(
    module_a: nn.Module,
    module_b: nn.Module,
    inputs: Annotated[Tensor | None, "n ..."] = None,
) -> Comparison:
    r"""Compare two networks of one architecture, modulo permutations and scales.

    .. math:: d([\theta], [\theta']) = \min_P \|\bar\theta - P \bar\theta'\|_2, \qquad
        d \ge \Bigl(\sum_k \min_\pi \sum_i \bigl\|\operatorname{sort}(\bar\theta_{k,i})
        - \operatorname{sort}(\bar\theta'_{k,\pi(i)})\bigr\|^2\Bigr)^{1/2}

    with bars for the balanced form (`canonicalize`), P over one permutation for each
    group of channels, and in the bound, for each group k, the weights of channel i in
    order of size. Networks of one function can be farther apart than gauges explain
    (`same` is then False); networks with `same` are one function.

    Args:
        module_a, module_b: networks of one architecture, as for `canonicalize`.
        inputs: a batch on which the functions are compared as well.

    Raises:
        TypeError: as `canonicalize`, and inputs that are no tensor.
        ValueError: as `canonicalize` and `align`; inputs that are empty or not finite.

    Cost: the balance, the matching of `align`, and one assignment a group.

    Source: :eq:`drv-inverse_stability-gauge-distance` (derivations).

    Examples:
        >>> from geolib.inverse_stability import random_gauge
        >>> from geolib.networks import mlp
        >>> net = mlp([2, 8, 1]).double().eval()
        >>> found = compare(net, random_gauge(net, 1), torch.ones(1, 2).double())
        >>> found.same, found.distance_at_least <= found.distance < 1e-12
        (True, True)
    """
    params = [p for m in (module_a, module_b) for p in m.parameters()]
    finite = all(bool(p.detach().isfinite().all()) for p in params)
    expect(finite, "module_a, module_b", "finite weights", "NaN or infinity")
    rounding = max((torch.finfo(p.dtype).eps for p in params), default=0.0)
    nets = [deepcopy(m).cpu().double() for m in (module_a, module_b)]
    forms = [canonicalize(m, reduce=False, sort=False) for m in nets]
    met = align(forms[0].module, forms[1].module, tol=SETTLED)
    first, second = forms[0].module, met.module
    total = float(sum((p.detach() ** 2).sum() for p in first.parameters()) ** 0.5)
    relative = met.distance / total if total else 0.0
    low = high = None
    if inputs is not None:
        low, high = _outputs(nets, first, second, inputs.detach().cpu().double())
    same = relative <= max(SAME, ROUNDINGS * rounding)
    return Comparison(
        same=same,
        distance=met.distance,
        distance_at_least=0.0 if same else _at_least(first, second),
        relative=relative,
        outputs_at_least=low,
        outputs_at_most=high,
        converged=met.converged and all(f.converged for f in forms),
    )


def command(
    first: Annotated[Path, typer.Argument(help="A .safetensors file of weights.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same network.")],
    model: Annotated[
        str, typer.Option(help="What builds the network: package.module:build.")
    ],
    shape: Annotated[
        str, typer.Option(help="Shape of one input, as 3,32,32, to bound the outputs.")
    ] = "",
) -> None:
    """Compare two checkpoints of one network, modulo order and scales of channels.

    Example: geolib compare a.safetensors b.safetensors --model my_nets:build
    """
    try:
        nets = [_loaded(file, model) for file in (first, second)]
        sizes = shape.split(",") if shape else []
        good = all(k.isdigit() and int(k) > 0 for k in sizes)
        expect(good, "shape", "positive numbers as 3,32,32", shape)
        draws = np.random.default_rng(0).uniform(-1, 1, (64, *map(int, sizes)))
        inputs = torch.as_tensor(draws) if sizes else None
        found = compare(nets[0], nets[1], inputs)
    except (ValueError, TypeError, RuntimeError) as error:
        typer.echo(f"geolib compare: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo("the same function" if found.same else "not the same up to a gauge")
    low, high = found.distance_at_least, found.distance
    typer.echo(f"weights apart, at least {low:.3g}, at most {high:.3g}")
    typer.echo(f"relative distance {found.relative:.3g}")
    if inputs is not None:
        seen, most = found.outputs_at_least, found.outputs_at_most
        typer.echo(f"outputs on [-1, 1] apart, at least {seen:.3g}, at most {most:.3g}")


def _loaded(file: Path, model: str) -> nn.Module:
    """What `model` builds, with the weights of a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: expected a .safetensors file ({error})") from error
    net = imported(model, "model", "package.module:build")()
    if not isinstance(net, nn.Module):
        raise ValueError(f"model: {model} built {type(net).__name__}, no module")
    own, other = (
        {k: f"{'float' * t.is_floating_point()} {tuple(t.shape)}" for k, t in d.items()}
        for d in (net.state_dict(), state)
    )
    if wrong := sorted(k for k in own | other if own.get(k) != other.get(k)):
        k = wrong[0]
        raise ValueError(
            f"{file}: {len(wrong)} tensors are not those of {model}; {k}: "
            f"expected {own.get(k, 'nothing')}, got {other.get(k, 'nothing')}"
        )
    net.load_state_dict(state, assign=True)  # in the precision of the file
    return net.eval()


@torch.no_grad()
def _outputs(
    nets: list[nn.Module], first: nn.Module, second: nn.Module, x: Tensor
) -> tuple[float, float]:
    """The difference seen, and the bound on the box, with the rounding of both sums."""
    seen = max(
        float((nets[0](part) - nets[1](part)).abs().max()) for part in x.split(CHUNK)
    )
    (by_a, by_b), least = changes(first, second, x.abs().amax(dim=0))
    # Error of a sum of products: (terms along a path) roundings of the sum of sizes.
    weights = [m.weight for m in first.modules() if isinstance(m, LINEAR)]
    terms = sum(w[0].numel() + 2 for w in weights)
    blur = 2 * terms * torch.finfo(torch.float64).eps * (2 * least + by_a + by_b)
    return seen, float((by_a + by_b + blur).max())


def _at_least(a: nn.Module, b: nn.Module) -> float:
    """The lower bound of the gauge distance; the better of two ways to share tensors."""
    match = Matching(a, b, channel_groups(a))
    return max(_assigned(match, last) for last in (False, True)) ** 0.5


def _assigned(match: Matching, last: bool) -> float:
    """Each tensor counts in one of its groups: there each channel's entries may be in
    any order if another group permutes them, and in their own order if none does."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    total = 0.0
    costs = [np.zeros((g.width, g.width)) for g in match.groups]
    blur = 0.0  # what rounding can have added to the sum
    for name, on in match.axes.items():
        x, y = match.a[name], match.b[name]
        if not on:
            total += float(((x - y) ** 2).sum())
            continue
        k, slot = on[-1 if last else 0]
        rows = [by_channel(v, slot) for v in (x, y)]
        if len(on) > 1:
            rows = [_sorted(v, slot, on[0 if last else -1][1]) for v in (x, y)]
        squares = [(v**2).sum(axis=1) for v in rows]
        costs[k] += squares[0][:, None] + squares[1] - 2 * rows[0] @ rows[1].T
        blur += rows[0].size * sum(float(q.max()) for q in squares)
    for cost in costs:
        i, j = linear_sum_assignment(cost)
        total += float(cost[i, j].sum())
    return max(float(total - 8 * np.finfo(float).eps * blur), 0.0)


def _sorted(t: np.ndarray, slot: Slot, other: Slot) -> np.ndarray:
    """One row a channel of `slot`, sorted along the channels of `other`: all kernel
    entries of two channels move together, so each is sorted by itself."""
    t = np.sort(t.reshape(other.opened(t.shape)), axis=other.axis + 1)
    axis = slot.axis + 2 * (slot.axis > other.axis)
    return by_channel(t, replace(slot, axis=axis))
