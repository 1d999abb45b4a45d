"""`connect`: the geodesic between two trained networks, or a cheaper path."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from geolib.core import Realization
from geolib.core.linearization import differentiation
from geolib.core.validation import expect, same_architecture
from geolib.geodesics.embedding import SPACES
from geolib.networks import align as match
from geolib.networks import recalibrate, with_batch_statistics
from geolib.networks.batch_norm import NORMS, copy_module, has_batch_norm
from geolib.networks.rows import PIECE, Rows, as_rows

from .bvp import Geodesic, geodesic
from .curves import labels_of, trained_curve
from .function_space import FunctionSpace
from .measures import Profile, profile
from .path import WeightPath, check_ends

METHODS = ("arc", "geodesic", "line", "curve")


@dataclass(frozen=True)
class Connection:
    """A path between two networks.

    Attributes:
        path: the curve in weight space; its `converged` says how the search ended.
        start, end: the two networks (copies; the second with its units permuted, if
            it was aligned). They are the path's ends, with their own constants.
        x: the inputs that the search saw; BatchNorm statistics are re-estimated on them.
        aligned: whether the second network's units were permuted first.
        statistics: of BatchNorm: `none`, or `re-estimated` between the ends.
        gradient_evaluations: compute paid.
        message: one sentence about how the search ended.
    """

    path: WeightPath
    start: nn.Module
    end: nn.Module
    x: Tensor | Rows
    aligned: bool
    statistics: str
    gradient_evaluations: int
    message: str

    def module(self, t: float) -> nn.Module:
        """The network at time t in [0, 1]; inside, BatchNorm is re-estimated on `x`."""
        expect(0 <= t <= 1, "t", "a time in [0, 1]", t)
        time = torch.tensor([float(t)]).to(self.path.a)
        return self._at(self.path(time)[0])

    def _at(self, w: Tensor) -> nn.Module:
        for net, t in ((self.start, 0.0), (self.end, 1.0)):
            if torch.equal(w, self.path(w.new_tensor([t]))[0]):
                return copy_module(net)
        net = copy_module(self.start)
        Realization(net).load(w)
        if self.statistics == "re-estimated":
            recalibrate(net, self.x)
        return net.eval()

    def profile(self, x: Tensor, y: Tensor, grid: int = 65) -> Profile:
        """Loss and accuracy along the path on given data; see `measures.profile`."""

        def logits(w: Tensor) -> Tensor:
            net = self._at(w)
            return torch.cat([net(part) for part in x.split(PIECE)])

        return profile(self.path, logits, y, grid)

    def plot(self, x: Tensor, y: Tensor, axes: Any = None, grid: int = 65) -> Any:
        """Draw loss and accuracy along the path on given data; see `Profile.plot`."""
        return self.profile(x, y, grid).plot(axes)


@differentiation()
def connect(
    a: nn.Module,
    b: nn.Module,
    data: Any,
    labels: Tensor | np.ndarray | bool | None = None,
    *,
    method: Annotated[str, METHODS] = "arc",
    align: bool | None = None,
    space: Annotated[str, SPACES] = "sphere",
    damping: float = 1e-4,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options,
) -> Connection:
    r"""Connect two trained networks by a path that keeps the function.

    .. math:: \min_W \int_0^1 \mathbb{E}_x\,|\Phi_x(W(t)) - \gamma_x(t)|^2\,dt
              \quad\text{or}\quad \min_W \int_0^1 g_W(\dot W, \dot W)\,dt, \qquad
              W(0) = w_a,\; W(1) = w_b

    `arc` gives the path a geodesic of function space to follow: the shortest path
    :math:`\gamma_x` between the two answers to each input. `geodesic` minimises the
    energy of the path itself. Neither looks at a label.

    Networks with BatchNorm are joined with the statistics of each batch, and every
    network inside the path has its running statistics re-estimated before it is used;
    the ends are the given networks with their own.

    Args:
        a, b: two modules of one architecture, in evaluation mode.
        data: inputs, shape (n, ...), as a tensor, an array, a data set or a
            `DataLoader`.
        labels: for `curve`, which trains on them; True for those that come with `data`.
        method: `arc`; `geodesic`; `line`: straight; `curve`: a Bezier curve trained on
            labels.
        align: permute the hidden units of `b` to match those of `a` first; None does
            where they can be followed through the modules.
        space, damping: of the `FunctionSpace` that the path is measured in.
        transform: applied to each batch of `data`, say from bytes to numbers.
        options: of `geodesics` or `trained_curves`, among them a `callback`.

    Raises:
        ValueError: modules of different architectures, equal or non-finite weights or
            data, frozen parameters or buffers that differ (no path joins them), data
            of another shape than the networks take, BatchNorm in training mode, an
            unknown method, `curve` without labels.

    Source: Raghavan and Thomson 2021 (geodesics); Garipov et al. 2018 (curves);
        Ainsworth et al. 2023 (alignment).

    Examples:
        >>> from geolib.networks import mlp
        >>> a, b = mlp([2, 8, 3], seed=0), mlp([2, 8, 3], seed=1)
        >>> found = connect(a, b, torch.eye(2).double(), steps=20)
        >>> found.module(0.5)(torch.eye(2).double()).shape
        torch.Size([2, 3])
    """
    same_architecture(a, b)
    _same_constants(a, b)
    given = sorted(options) if method == "line" else []
    expect(not given, "options", "none for a straight line", given)
    normed = has_batch_norm(a)
    Realization(a), Realization(b)  # refuses BatchNorm in training mode
    b, aligned = _aligned(a, b, align)
    pure = with_batch_statistics(a) if normed else a
    R = Realization(pure, check=not normed)  # batch statistics do mix the samples
    w_a = R.theta0
    w_b = Realization(with_batch_statistics(b) if normed else b).theta0
    check_ends(w_a, w_b, distinct=True)
    x = as_rows(data, transform, w_a)
    check_shape(R, x[:2])
    if method == "line":
        found = Geodesic(WeightPath(w_a, w_b), [], 0, 1.0, True, "a straight line")
    elif method == "curve":
        known = labels is not None and labels is not False
        expect(known, "labels", "classes, to train a curve on", labels)
        y = labels_of(R, data if labels is True else labels, x)
        found = trained_curve(R, w_a, w_b, x, y, **options)
    elif method == "arc":
        answers = Realization(a), Realization(b)
        found = trained_curve(R, w_a, w_b, x, space=space, ends=answers, **options)
    else:
        S = FunctionSpace(R, x, space, damping)
        found = geodesic(S, w_a, w_b, **options)
    ends = copy_module(a).eval(), copy_module(b).eval()
    how = aligned, "re-estimated" if normed else "none"
    paid = found.gradient_evaluations
    return Connection(found.path, *ends, x, *how, paid, found.message)


def _aligned(a: nn.Module, b: nn.Module, align: bool | None) -> tuple[nn.Module, bool]:
    """The second network in the order of the first, if that is asked for or can be."""
    try:
        return (b, False) if align is False else (match(a, b).module, True)
    except (TypeError, ValueError):
        if align:
            raise
        return b, False


def check_shape(R: Realization, x: Tensor) -> None:
    try:
        R(R.theta0, x)
    except ValueError as error:
        if not str(error).startswith("x: "):
            raise
        raise ValueError(f"data{str(error)[1:]}") from error


def _same_constants(a: nn.Module, b: nn.Module) -> None:
    """Refuse frozen parameters and buffers that differ: all networks share a's.

    BatchNorm's running statistics are re-estimated and may differ.
    """
    own = {f"{n}." if n else "" for n, m in a.named_modules() if isinstance(m, NORMS)}
    moving = ("running_mean", "running_var", "num_batches_tracked")
    skip = {f"{n}{k}" for n in own for k in moving}
    every = a.named_parameters(remove_duplicate=False)  # a tied weight by all names
    skip |= {n for n, p in every if p.requires_grad}
    theirs = b.state_dict()
    for name, t in a.state_dict().items():
        other = theirs.get(name)
        if name in skip or not isinstance(t, Tensor):
            continue
        if other is None or not torch.equal(t, other.to(t)):
            what = f"the constant {name!r} (frozen or a buffer) differs from that of a"
            raise ValueError(f"b: {what}; make it trainable in both, or copy it")
