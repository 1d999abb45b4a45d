"""Geodesics between two given networks: minimise the energy over the bends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geolib.geodesics.function_space import Space
from geolib.geodesics.path import (
    Basis,
    LegendreBasis,
    SineBasis,
    WeightPath,
    check_ends,
)
from geolib.networks.training import minimize
from geolib.networks.validation import check_positive

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


def difference_energy(
    space: Space, points: Tensor, times: Tensor, rows: Tensor | None = None
) -> Tensor:
    r"""Energy of a polygon in function space.

    .. math:: E = \frac12 \sum_i \frac{|\Phi(w_{i+1}) - \Phi(w_i)|^2
              + \lambda |w_{i+1} - w_i|^2}{t_{i+1} - t_i}

    It never exceeds the energy of any curve through the same points, and grows to it
    as the times are refined.

    Args:
        points: weights, shape (k, p).
        times: increasing, shape (k,).
        rows: which inputs to use; None for all.

    Source: standard; the ridge term is the appended map of `FunctionSpace`.

    Examples:
        >>> from geolib.geodesics.surfaces import cylinder
        >>> w = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
        >>> difference_energy(cylinder(), w, torch.tensor([0.0, 1.0])).item()
        4.5
    """
    square = space(points, rows).diff(dim=0).flatten(1).square().sum(1)
    if space.ridge:
        square = square + space.ridge * points.diff(dim=0).square().sum(1)
    return 0.5 * (square / times.diff()).sum()


def geodesic(
    space: Space,
    a: Tensor,
    b: Tensor,
    *,
    basis: Basis | None = None,
    segments: int = 4,
    jitter: bool = True,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-2,
    seed: int = 0,
    optimizer: str = "adam",
    checkpoint: bool = False,
    tol: float = 0.01,
    start: Tensor | None = None,
) -> Geodesic:
    r"""The path of least energy from `a` to `b` within a family of bends.

    .. math:: \min_c \tfrac12 \int_0^1 g_{W}(\dot W, \dot W)\,dt, \qquad
              W(t) = (1-t)a + tb + \sum_k \beta_k(t)\,c_k

    `adam`, for networks: each step draws a batch of inputs and, with `jitter`, new
    times :math:`t_i = (i + u_i)/n`, :math:`|u_i| \le \frac12`, so that the curve cannot
    be good at fixed knots and bad between them.
    `lbfgs`, for surfaces and small smooth networks: Gauss quadrature of the speed,
    no randomness, machine precision.

    Args:
        basis: `SineBasis(4)` by default (`LegendreBasis(16)` for `lbfgs`); for
            comparison `BezierBasis(1)` or the free knots `HatBasis(segments - 1)`.
        segments: pieces the curve is cut into at each step (for `lbfgs`,
            a sixteenth of the quadrature nodes).
        checkpoint: recompute each network in the backward pass, one at a time, so
            that memory is that of one network whatever the number of segments.
        tol: `stationarity` below which the result counts as converged.
        start: initial coefficients, shape (basis.size, p); zero by default.

    Raises:
        ValueError: ends that no path can join (other sizes, equal, NaN), or options
            out of range.

    Cost: steps * (segments - 1) * batch + 2 * inputs passes for `adam`; with
    `checkpoint` half as many forward passes more.

    Source: own derivation; sine basis and jitter against "knot cheating".

    Examples:
        >>> from geolib.geodesics.surfaces import sphere
        >>> a, b = torch.tensor([[0.0, 0.5], [1.5, 0.5]], dtype=torch.float64)
        >>> found = geodesic(sphere(), a, b, basis=SineBasis(8), optimizer="lbfgs")
        >>> found.converged
        True
    """
    check_ends(a, b, distinct=True)
    check_positive(steps=steps, batch=batch, lr=lr, tol=tol)
    if segments < 2:
        raise ValueError(f"segments: expected at least 2, got {segments}")
    if optimizer not in ("adam", "lbfgs"):
        raise ValueError(f"optimizer: expected 'adam' or 'lbfgs', got {optimizer!r}")
    if basis is None:
        basis = SineBasis(4) if optimizer == "adam" else LegendreBasis(16)
    if start is None:
        start = torch.zeros(basis.size, a.numel(), dtype=a.dtype, device=a.device)
    path = WeightPath(a, b, basis, start.clone())
    straight = WeightPath(a, b, basis, torch.zeros_like(start))
    if optimizer == "lbfgs":
        path, energies, passes = _lbfgs(space, path, NODES * segments, steps)

        def norm(curve: WeightPath) -> float:
            return _smooth_norm(space, curve, segments)
    else:
        search = _Search(space, path, segments, jitter, batch, seed, checkpoint)
        path, energies, passes = search.run(steps, lr)

        def norm(curve: WeightPath) -> float:
            return _stationary_norm(search, curve)

    bends = _bends(path)[1].detach()
    if not bool(torch.isfinite(bends).all()):
        message = "the energy left the finite numbers; lower lr"
        dead = replace(path, control=start, converged=False)
        return Geodesic(dead, energies, passes, math.inf, False, message)
    before, after = norm(straight), norm(path)
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
    """Stochastic descent on the energy; one object per call of `geodesic`."""

    def __init__(self, space, path, segments, jitter, batch, seed, checkpoint):
        self.space, self.path, self.segments = space, path, segments
        self.jitter, self.checkpoint = jitter, checkpoint
        self.batch = min(batch, space.size)
        self.rng = np.random.default_rng(seed)
        self.ends: Tensor | None = None
        if getattr(space, "cacheable", False):
            pair = torch.stack([path.a, path.b])
            with torch.no_grad():
                self.ends = torch.cat([space.embedded(w[None]) for w in pair])

    def run(self, steps: int, lr: float) -> tuple[WeightPath, list[float], int]:
        curve, control = _with_leaf(self.path)  # the curve moves with its bends

        def energy(_step: int) -> Tensor:
            value, control.grad = self.gradient(curve, *self.draw())
            return torch.tensor(value, dtype=torch.float64)

        values = [v.item() for v in minimize([control], energy, steps, lr)]
        passes = steps * (self.segments - 1) * self.batch
        # outputs of the ends: once for all inputs, or for each batch anew
        passes += 2 * (steps * self.batch if self.ends is None else self.space.size)
        return curve, values, passes

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Times (segments + 1,) and rows (batch,) of one step."""
        n, a = self.segments, self.path.a
        t = np.arange(n + 1) / n
        if self.jitter:
            t[1:-1] += self.rng.uniform(-0.5, 0.5, n - 1) / n
        rows = None
        if self.batch < self.space.size:
            pick = self.rng.choice(self.space.size, self.batch, replace=False)
            rows = torch.from_numpy(pick).to(a.device)
        return torch.from_numpy(t).to(a), rows

    def gradient(
        self, path: WeightPath, t: Tensor, rows: Tensor | None
    ) -> tuple[float, Tensor]:
        """The energy of a path with a leaf of bends, and the gradient in them (m, p)."""
        ends = self.end_outputs(rows)
        basis, control = _bends(path)
        ridge, total = self.ridge_part(control.detach(), t)
        if not self.checkpoint:
            phi = self.space(path(t[1:-1]), rows)
            energy = _output_energy(phi, ends, t)
            total += torch.autograd.grad(energy, control)[0]
            return energy.item() + ridge, total
        with torch.no_grad():
            phi = torch.cat([self.space(path(s[None]), rows) for s in t[1:-1]])
        energy = _output_energy(phi.requires_grad_(True), ends, t)
        (to_phi,) = torch.autograd.grad(energy, phi)
        for s, direction in zip(t[1:-1].split(1), to_phi.split(1), strict=True):
            point = path(s).detach().requires_grad_(True)
            out = self.space(point, rows)
            (to_point,) = torch.autograd.grad(out, point, direction)
            for row, bend in zip(total, basis.values(s)[0], strict=True):
                row.add_(to_point[0], alpha=bend.item())  # no copy of all rows
        return energy.item() + ridge, total

    def ridge_part(self, control: Tensor, t: Tensor) -> tuple[float, Tensor]:
        r"""Energy in weight space, in closed form, and its gradient.

        With :math:`M = \sum_i \Delta\beta_i \Delta\beta_i^T / \Delta t_i` it is
        :math:`\frac\lambda2 (|b-a|^2 + \langle c, M c\rangle)`: the bends vanish at
        both ends, so they do not meet the straight line. No point is formed.
        """
        ridge = self.space.ridge
        if not ridge:
            return 0.0, torch.zeros_like(control)
        steps = self.path.basis.values(t).diff(dim=0)
        grad = ridge * (steps.T @ (steps / t.diff()[:, None])) @ control
        line = (self.path.b - self.path.a).square().sum().item()
        bend = torch.linalg.vecdot(grad.flatten(), control.flatten()).item()
        return 0.5 * (ridge * line + bend), grad

    def end_outputs(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedded outputs of both ends on the rows, each of shape (1, n c)."""
        if self.ends is None:
            with torch.no_grad():
                a, b = self.path.a[None], self.path.b[None]
                return self.space(a, rows), self.space(b, rows)
        ends = self.ends if rows is None else self.ends[:, rows]
        flat = ends.flatten(1) / math.sqrt(ends.shape[1])
        return flat[:1], flat[1:]


def _output_energy(phi: Tensor, ends: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    """Energy of the outputs at all times, shape (), without the ridge."""
    joined = torch.cat([ends[0], phi.flatten(1), ends[1]])
    return 0.5 * (joined.diff(dim=0).square().sum(1) / t.diff()).sum()


def _quadrature(space, path: WeightPath, nodes: int) -> Tensor:
    """Energy by Gauss quadrature of the squared speed."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    t = torch.from_numpy((x + 1) / 2).to(path.a)
    rule = torch.from_numpy(weights / 2).to(path.a)
    return 0.5 * (rule * space.speed2(path(t), path.velocity(t))).sum()


def _lbfgs(
    space, path: WeightPath, nodes: int, steps: int
) -> tuple[WeightPath, list[float], int]:
    """Deterministic minimisation of the quadrature."""
    curve, control = _with_leaf(path)
    solver = torch.optim.LBFGS(
        [control],
        max_iter=steps,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        history_size=30,
        line_search_fn="strong_wolfe",
    )
    energies: list[float] = []

    def closure() -> Tensor:
        solver.zero_grad()
        energy = _quadrature(space, curve, nodes)
        energy.backward()
        energies.append(energy.item())
        return energy

    solver.step(closure)
    return curve, energies, len(energies) * nodes * space.size


def _stationary_norm(search: _Search, path: WeightPath) -> float:
    """Norm of the energy's gradient in the coefficients, on a fixed fine grid."""
    space, rows = search.space, None
    if space.size > STATUS_INPUTS:  # evenly spread over the inputs
        rows = torch.linspace(0, space.size - 1, STATUS_INPUTS).long()
    pieces = max(min(4 * search.segments, 16), 2 * search.segments)
    t = path.times(pieces + 1)
    return search.gradient(_with_leaf(path)[0], t, rows)[1].norm().item()


def _smooth_norm(space: Space, path: WeightPath, segments: int) -> float:
    """The same for the quadrature."""
    curve, control = _with_leaf(path)
    energy = _quadrature(space, curve, NODES * segments)
    return torch.autograd.grad(energy, control)[0].norm().item()


def _bends(path: WeightPath) -> tuple[Basis, Tensor]:
    """Basis and coefficients of a path that is searched: it has both."""
    assert path.basis is not None
    assert path.control is not None
    return path.basis, path.control


def _with_leaf(path: WeightPath) -> tuple[WeightPath, Tensor]:
    """The same path with a copy of its bends that gradients can be taken in."""
    control = _bends(path)[1].detach().clone().requires_grad_(True)
    return replace(path, control=control), control
