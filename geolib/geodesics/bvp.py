"""Geodesics between two given networks: minimise the energy over the bends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from geolib.core.linearization import differentiation
from geolib.core.validation import expect
from geolib.networks.training import minimize

from .function_space import Space
from .path import Basis, LegendreBasis, SineBasis, WeightPath, check_ends

NODES = 16  # Gauss nodes per segment of a deterministic search
STATUS_INPUTS = 1024  # inputs that the final check of stationarity looks at


@dataclass(frozen=True)
class Geodesic:
    """What `geodesic` found, with its status.

    Attributes:
        path: the curve.
        energies: energy at each step (on that step's inputs and times).
        gradient_evaluations: what the search paid, times inputs. The check of
            `stationarity` after it is a report on the result, like a score on test
            data, and is not counted.
        stationarity: length of the energy's gradient at the end over that at the
            start, both on all inputs and the same fine grid.
        converged: whether `stationarity` is below the asked tolerance.
        message: one sentence about how the search ended.
    """

    path: WeightPath
    energies: list[float]
    gradient_evaluations: int
    stationarity: float
    converged: bool
    message: str


def passed_on(callback: Callable[[int, float], object]) -> Callable:
    """What `minimize` is to call after each step."""
    return lambda step, value: callback(step + 1, value.sum().item())


@differentiation()
def geodesic(
    space: Space,
    a: Annotated[Tensor, "p"],
    b: Annotated[Tensor, "p"],
    *,
    optimizer: Annotated[str, ("adam", "lbfgs")] = "adam",
    seed: int = 0,
    start: Tensor | None = None,
    **options,
) -> Geodesic:
    r"""The path of least energy from `a` to `b` within a family of bends.

    .. math:: \min_c \tfrac12 \int_0^1 g_{W}(\dot W, \dot W)\,dt, \qquad
              W(t) = (1-t)a + tb + \sum_k \beta_k(t)\,c_k

    `adam`, for networks: each step draws a batch of inputs and new times; see
    `geodesics`, whose options it takes.
    `lbfgs`, for surfaces and small smooth networks: Gauss quadrature of the speed,
    no randomness, machine precision; it takes `basis` (`LegendreBasis(16)` by default),
    `segments` (of sixteen quadrature nodes each), `steps` and `tol`.

    Args:
        optimizer: `adam` or `lbfgs`.
        seed: of all draws.
        start: initial coefficients, shape (basis.size, p); zero by default.
        options: of the search.

    Raises:
        ValueError: ends that no path can join (other sizes, equal, NaN), or options
            out of range.

    Cost: steps * (segments - 1) * batch + 2 * inputs passes for `adam`; with
    `checkpoint` half as many forward passes more.

    Source: own derivation; sine basis and jitter against "knot cheating".

    Examples:
        >>> from geolib.geodesics import FunctionSpace
        >>> from geolib.networks import mlp
        >>> net = mlp([1, 2, 1], activation=torch.nn.Tanh)
        >>> S = FunctionSpace(net, torch.tensor([[0.5], [1.0], [2.0]]).double(), "raw")
        >>> a = S.realization.theta0
        >>> options = {"basis": SineBasis(8), "optimizer": "lbfgs", "steps": 60}
        >>> geodesic(S, a, 1.5 * a, **options).converged
        True
    """
    if optimizer == "lbfgs":
        return _smooth_geodesic(space, a, b, start, **options)
    starts = None if start is None else start[None]
    ends = a[None], b[None]
    return geodesics(space, *ends, seeds=[seed], start=starts, **options)[0]


def geodesics(
    space: Space,
    a: Annotated[Tensor, "pairs p"],
    b: Annotated[Tensor, "pairs p"],
    *,
    seeds: Annotated[Sequence[int], "pairs"],
    basis: Basis | None = None,
    segments: Annotated[int, "2 <= segments <= 10**6"] = 4,
    jitter: bool = True,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-2,
    checkpoint: bool = False,
    tol: float = 0.01,
    start: Tensor | None = None,
    callback: Callable[[int, float], object] | None = None,
) -> list[Geodesic]:
    r"""Search the paths between k pairs of networks side by side.

    .. math:: \min_{c_1, \dots, c_k} \sum_i E(W_{c_i})

    Each path is the one that `geodesic` finds from its seed: no search sees another's
    weights, inputs or times. Small networks cost little arithmetic and much overhead a
    step, which all pairs then pay once. A step draws a batch of inputs for each pair
    and, with `jitter`, new times :math:`t_i = (i + u_i)/n`, :math:`|u_i| \le \frac12`,
    so that no curve can be good at fixed knots and bad between them.

    Args:
        space: in which all paths are measured.
        a, b: the ends, shape (k, p).
        seeds: one for each pair.
        basis: `SineBasis(4)` by default.
        segments: pieces the curve is cut into at each step.
        jitter: draw the times of the cuts.
        steps, batch, lr: as in `geolib.networks.train`.
        checkpoint: recompute each network in the backward pass, one at a time, so
            that memory is that of one network whatever the number of segments.
        tol: `stationarity` below which a result counts as converged.
        start: initial coefficients, shape (k, basis.size, p); zero by default.
        callback: called after each step with its number and the sum of the energies.

    Raises:
        ValueError: as `geodesic`; another number of seeds than pairs.

    Cost: that of k geodesics.

    Source: own derivation; see `geodesic`.

    Examples:
        >>> from geolib.geodesics import FunctionSpace
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> flat = FunctionSpace(net, torch.tensor([[0.0, 1.0]]), "raw", damping=0)
        >>> a, b = torch.zeros(2, 2), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
        >>> found = geodesics(flat, a, b, seeds=[0, 1], steps=5)
        >>> [round(f.energies[-1], 3) for f in found]
        [2.0, 0.5]
    """
    expect(min(seeds, default=0) >= 0, "seeds", "whole numbers >= 0", list(seeds))
    expect(lr <= torch.finfo(a.dtype).max, "lr", f"a number of {a.dtype}", lr)
    basis = SineBasis(4) if basis is None else basis
    start = a.new_zeros(len(a), basis.size, a.shape[1]) if start is None else start
    paths = []
    for u, v, control in zip(a.detach(), b.detach(), start, strict=True):
        check_ends(u, v, distinct=True)
        paths.append(WeightPath(u, v, basis, control.detach().clone()))
    search = _Search(space, paths, segments, jitter, batch, seeds, checkpoint)
    bends, energies, passes = search.run(steps, lr, callback)
    results = []
    for path, control, values in zip(paths, bends, energies, strict=True):
        # the report at the end looks at one path at a time, whatever their number
        alone = _Search(space, [path], segments, False, batch, [0], checkpoint)
        norm = alone.stationary_norm
        results.append(_judged(path, control, values, passes, norm, tol))
    return results


def _smooth_geodesic(
    space: Space,
    a: Tensor,
    b: Tensor,
    start: Tensor | None,
    *,
    basis: Basis | None = None,
    segments: int = 4,
    steps: int = 2000,
    tol: float = 0.01,
) -> Geodesic:
    """The search of `geodesic` without randomness."""
    basis = LegendreBasis(16) if basis is None else basis
    check_ends(a, b, distinct=True)
    start = a.new_zeros(basis.size, a.numel()) if start is None else start
    path = WeightPath(a, b, basis, start)
    x, weights = np.polynomial.legendre.leggauss(NODES * segments)
    t, rule = (torch.from_numpy(r / 2).to(a) for r in (x + 1, weights))

    control = path.control.clone().requires_grad_(True)  # type: ignore[union-attr]
    curve = replace(path, control=control)

    def energy() -> Tensor:
        """By Gauss quadrature of the squared speed."""
        return 0.5 * (rule * space.speed2(curve(t), curve.velocity(t))).sum()

    def norm(bends: Tensor) -> float:
        control.data.copy_(bends)
        return torch.autograd.grad(energy(), control)[0].norm().item()

    plan = {"tolerance_grad": 1e-11, "tolerance_change": 1e-15, "history_size": 30}
    search = {"max_iter": steps, "line_search_fn": "strong_wolfe"}
    solver = torch.optim.LBFGS([control], **plan, **search)  # type: ignore[arg-type]
    energies: list[float] = []

    def closure() -> Tensor:
        solver.zero_grad()
        value = energy()
        value.backward()
        energies.append(value.item())
        return value

    solver.step(closure)  # type: ignore[arg-type]
    found, passes = control.detach().clone(), len(energies) * len(t) * space.size
    return _judged(path, found, energies, passes, norm, tol)


def _judged(
    path: WeightPath,
    bends: Tensor,
    energies: list[float],
    passes: int,
    norm: Callable[[Tensor], float],
    tol: float,
) -> Geodesic:
    """The result of a search, by the norm of the gradient at its bends and at none."""
    if not bool(torch.isfinite(bends).all()):
        message = "the energy left the finite numbers; lower lr"
        dead = replace(path, converged=False)
        return Geodesic(dead, energies, passes, math.inf, False, message)
    before, after = norm(torch.zeros_like(bends)), norm(bends)
    ratio = after / before if before > 0 else 0.0
    # a curve that is already a geodesic starts with a zero gradient
    converged = ratio <= tol or after <= 1e-9
    message = (
        f"gradient fell to {ratio:.1e} of that of the straight line "
        f"({'within' if converged else 'above'} the asked {tol:g})"
    )
    path = replace(path, control=bends, converged=converged)
    return Geodesic(path, energies, passes, ratio, converged, message)


class _Search:
    """Stochastic descent on the energies of k curves side by side.

    Times t are (k, segments + 1), rows of inputs (k, n) or None for all, bends
    (k, m, p); a surface or a network with batch statistics stores no `ends`.
    """

    def __init__(self, space, paths, segments, jitter, batch, seeds, checkpoint):
        self.space, self.segments, self.jitter = space, segments, jitter
        self.checkpoint = checkpoint
        self.batch = min(batch, space.size)
        self.rngs = [np.random.default_rng(s) for s in seeds]
        self.basis = paths[0].basis
        self.start = torch.stack([path.control for path in paths])
        self.a = torch.stack([path.a for path in paths])
        self.b = torch.stack([path.b for path in paths])
        self.ends: list[Tensor] = []
        if getattr(space, "cacheable", False):
            with torch.no_grad():
                for pair in zip(self.a, self.b, strict=True):
                    outputs = [space.embedded(w[None]) for w in pair]
                    self.ends.append(torch.cat(outputs))

    def run(self, steps: int, lr: float, callback) -> tuple[Tensor, list, int]:
        """Bends (k, m, p), the energies of each curve, and what one curve cost."""
        control = self.start.clone().requires_grad_(True)

        def energy(_step: int) -> Tensor:
            value, control.grad = self.gradient(control, *self.draw())
            return value

        after = callback and passed_on(callback)
        values = torch.stack(minimize([control], energy, steps, lr, after=after))
        passes = steps * (self.segments - 1) * self.batch
        # outputs of the ends: once for all inputs, or for each batch anew
        passes += 2 * (self.space.size if self.ends else steps * self.batch)
        return control.detach(), values.T.tolist(), passes

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Times and rows of one step."""
        n = self.segments
        t = np.tile(np.arange(n + 1) / n, (len(self.rngs), 1))
        picks = []
        for inner, rng in zip(t[:, 1:-1], self.rngs, strict=True):
            if self.jitter:
                inner += rng.uniform(-0.5, 0.5, n - 1) / n
            if self.batch < self.space.size:
                picks.append(rng.choice(self.space.size, self.batch, replace=False))
        rows = torch.from_numpy(np.array(picks)).to(self.a.device) if picks else None
        return torch.from_numpy(t).to(self.a), rows

    def gradient(
        self, control: Tensor, t: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The energies (k,), and the gradient in the bends, shape (k, m, p)."""
        ends = self.end_outputs(rows)
        values = self.basis.values(t.flatten()).view(*t.shape, -1)
        damping, total = self.damping_part(control.detach(), t, values)
        if self.checkpoint:
            energy = self.add_one_by_one(total, control.detach(), t, values, rows, ends)
            return energy + damping, total
        line = self.a[:, None] + t[..., None] * (self.b - self.a)[:, None]
        points = line[:, 1:-1] + values[:, 1:-1] @ control
        energy = _output_energy(self.outputs(points, rows), ends, t)
        total += torch.autograd.grad(energy.sum(), control)[0]
        return energy.detach() + damping, total

    def add_one_by_one(self, total, control, t, values, rows, ends) -> Tensor:
        """As `gradient`, with the graph of one network at a time; `total` is added to."""
        places = [(i, j) for i in range(len(t)) for j in range(1, t.shape[1] - 1)]

        def outputs(i: int, j: int) -> tuple[Tensor, Tensor]:
            point = self.a[i] + t[i, j] * (self.b[i] - self.a[i])
            point = (point + values[i, j] @ control[i]).requires_grad_(True)
            own = None if rows is None else rows[i]
            return point, self.space(point[None], own).flatten()

        with torch.no_grad():
            phi = torch.stack([outputs(*place)[1] for place in places])
        phi = phi.view(len(t), -1, phi.shape[1]).requires_grad_(True)
        energy = _output_energy(phi, ends, t)
        (to_phi,) = torch.autograd.grad(energy.sum(), phi)
        for (i, j), direction in zip(places, to_phi.flatten(0, 1), strict=True):
            point, out = outputs(i, j)
            (to_point,) = torch.autograd.grad(out, point, direction)
            for row, bend in zip(total[i], values[i, j], strict=True):
                row.add_(to_point, alpha=bend.item())  # no copy of all rows
        return energy.detach()

    def damping_part(
        self, control: Tensor, t: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Energies in weight space (k,), in closed form, and their gradient.

        With :math:`M = \sum_i \Delta\beta_i \Delta\beta_i^T / \Delta t_i` it is
        :math:`\frac\lambda2 (|b-a|^2 + \langle c, M c\rangle)`: the bends vanish at
        both ends, so they do not meet the straight line. No point is formed.
        """
        damping = self.space.damping
        steps = values.diff(dim=1)
        M = steps.mT @ (steps / t.diff(dim=1)[..., None])
        grad = damping * M @ control
        line = (self.b - self.a).square().sum(1)
        bend = torch.linalg.vecdot(grad.flatten(1), control.flatten(1))
        return 0.5 * (damping * line + bend), grad

    def outputs(self, points: Tensor, rows: Tensor | None) -> Tensor:
        """Embedded outputs at points (k, s, p), shape (k, s, n c)."""
        k, s = points.shape[:2]
        if rows is not None:
            rows = rows[0] if k == 1 else rows.repeat_interleave(s, 0)
        return self.space(points.flatten(0, 1), rows).reshape(k, s, -1)

    def end_outputs(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedded outputs of both ends on the rows, each of shape (k, 1, n c)."""
        if not self.ends:
            with torch.no_grad():
                ends = self.a[:, None], self.b[:, None]
                return self.outputs(ends[0], rows), self.outputs(ends[1], rows)
        own = [slice(None)] * len(self.ends) if rows is None else rows
        kept = torch.stack([e[:, r] for e, r in zip(self.ends, own, strict=True)])
        flat = kept.flatten(2) / math.sqrt(kept.shape[2])
        return flat[:, :1], flat[:, 1:]

    def stationary_norm(self, control: Tensor) -> float:
        """Norm of the energy's gradient in the bends (m, p), on a fixed fine grid."""
        rows, size = None, self.space.size
        if size > STATUS_INPUTS:  # evenly spread over the inputs
            rows = torch.linspace(0, size - 1, STATUS_INPUTS).long()[None]
        pieces = max(min(4 * self.segments, 16), 2 * self.segments)
        t = torch.linspace(0, 1, pieces + 1).to(self.a)[None]
        leaf = control.detach()[None].clone().requires_grad_(True)
        return self.gradient(leaf, t, rows)[1].norm().item()


def _output_energy(phi: Tensor, ends: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    """Energies of the outputs (k, s, n c) at all times, shape (k,), without the damping."""
    joined = torch.cat([ends[0], phi, ends[1]], 1)
    return 0.5 * (joined.diff(dim=1).square().sum(2) / t.diff(dim=1)).sum(1)
