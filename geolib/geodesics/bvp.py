"""Geodesics between two given networks: minimise the energy over the bends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geolib.geodesics.path import Basis, LegendreBasis, Path, SineBasis, check_ends
from geolib.geodesics.space import Space

NODES = 16  # Gauss nodes per segment of a deterministic search
STATUS_INPUTS = 1024  # inputs that the final check of stationarity looks at


@dataclass(frozen=True)
class Geodesic:
    """What `geodesic` found, with its status.

    Attributes:
        path: the curve.
        energies: energy at each step (on that step's inputs and times).
        passes: gradient evaluations times inputs: the compute that was paid.
        stationarity: length of the energy's gradient at the end over that at the
            start, both on all inputs and the same fine grid.
        converged: whether `stationarity` is below the asked tolerance.
        message: one sentence about how the search ended.
    """

    path: Path
    energies: list[float]
    passes: int
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
    return _energy(space(points, rows), points, times, space.ridge)


def _energy(phi: Tensor, points: Tensor, times: Tensor, ridge: float) -> Tensor:
    square = phi.diff(dim=0).flatten(1).square().sum(1)
    if ridge:
        square = square + ridge * points.diff(dim=0).square().sum(1)
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
    times :math:`t_i = (i + u_i)/n`, so that no point of the curve stays unseen.
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

    Cost: steps * (segments - 1) * batch passes for `adam`.

    Source: own derivation; sine basis and jitter against "knot cheating".

    Examples:
        >>> from geolib.geodesics.surfaces import sphere
        >>> a, b = torch.tensor([[0.0, 0.5], [1.5, 0.5]], dtype=torch.float64)
        >>> found = geodesic(sphere(), a, b, basis=SineBasis(8), optimizer="lbfgs")
        >>> found.converged
        True
    """
    check_ends(a, b, distinct=True)
    _check_options(segments, steps, batch, lr, optimizer)
    if basis is None:
        basis = SineBasis(4) if optimizer == "adam" else LegendreBasis(16)
    if start is None:
        start = torch.zeros(basis.size, a.numel(), dtype=a.dtype, device=a.device)
    path = Path(a, b, basis, start.clone())
    straight = Path(a, b, basis, torch.zeros_like(start))
    before = _stationary_norm(space, straight, segments, optimizer)
    if optimizer == "lbfgs":
        path, energies, passes = _lbfgs(space, path, NODES * segments, steps)
    else:
        search = _Search(space, path, segments, jitter, batch, seed, checkpoint)
        path, energies, passes = search.run(steps, lr)
    if not bool(torch.isfinite(path.control).all()):  # type: ignore[arg-type]
        message = "the energy left the finite numbers; lower lr"
        dead = replace(path, control=start, converged=False)
        return Geodesic(dead, energies, passes, math.inf, False, message)
    after = _stationary_norm(space, path, segments, optimizer)
    ratio = after / before if before > 0 else 0.0
    # a curve that is already a geodesic starts with a zero gradient
    converged = ratio <= tol or after <= 1e-9
    message = (
        f"gradient fell to {ratio:.1e} of that of the straight line "
        f"({'within' if converged else 'above'} the asked {tol:g})"
    )
    path = replace(path, converged=converged)
    return Geodesic(path, energies, passes, ratio, converged, message)


def _check_options(
    segments: int, steps: int, batch: int, lr: float, optimizer: str
) -> None:
    if segments < 2:
        raise ValueError(f"segments: expected at least 2, got {segments}")
    if steps < 1 or batch < 1:
        raise ValueError(f"steps, batch: expected at least 1, got {steps}, {batch}")
    if not lr > 0:
        raise ValueError(f"lr: expected a positive number, got {lr}")
    if optimizer not in ("adam", "lbfgs"):
        raise ValueError(f"optimizer: expected 'adam' or 'lbfgs', got {optimizer!r}")


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

    def run(self, steps: int, lr: float) -> tuple[Path, list[float], int]:
        control = self.path.control.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([control], lr=lr)
        energies = []
        for step in range(steps):
            adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            adam.zero_grad()
            energies.append(self.gradient(control, *self.draw()))
            adam.step()
        path = replace(self.path, control=control.detach())
        passes = steps * (self.segments - 1) * self.batch
        if self.ends is None:
            passes += steps * 2 * self.batch
        return path, energies, passes

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

    def gradient(self, control: Tensor, t: Tensor, rows: Tensor | None) -> float:
        """Add the energy's gradient to `control.grad` and return the energy."""
        inner = t[1:-1]
        bends = self.path.basis.values(inner)
        line = self.path.a + inner[:, None] * (self.path.b - self.path.a)
        if not self.checkpoint:
            points = line + bends @ control
            energy = self.energy(self.map_inner(points, rows), points, t, rows)
            energy.backward()
            return energy.item()
        points = (line + bends @ control.detach()).requires_grad_(True)
        with torch.no_grad():
            phi = torch.cat([self.map_inner(p[None], rows) for p in points])
        phi.requires_grad_(True)
        energy = self.energy(phi, points, t, rows)
        to_phi, to_points = torch.autograd.grad(
            energy, (phi, points), allow_unused=True
        )
        total = torch.zeros_like(line) if to_points is None else to_points
        for k, point in enumerate(points.detach()):
            leaf = point[None].requires_grad_(True)
            out = self.map_inner(leaf, rows)
            total[k] += torch.autograd.grad(out, leaf, to_phi[k : k + 1])[0][0]
        control.grad = bends.T @ total
        return energy.item()

    def map_inner(self, points: Tensor, rows: Tensor | None) -> Tensor:
        return self.space(points, rows)

    def energy(self, phi: Tensor, points: Tensor, t: Tensor, rows) -> Tensor:
        a, b = self.path.a[None], self.path.b[None]
        if self.ends is not None:
            ends = self.ends if rows is None else self.ends[:, rows]
            ends = ends.flatten(1) / math.sqrt(ends.shape[1])
            first, last = ends[:1], ends[1:]
        else:
            with torch.no_grad():
                first, last = self.space(a, rows), self.space(b, rows)
        weights = torch.cat([a, points, b])
        return _energy(torch.cat([first, phi, last]), weights, t, self.space.ridge)


def _quadrature(space, path: Path, nodes: int) -> Tensor:
    """Energy by Gauss quadrature of the squared speed."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    t = torch.from_numpy((x + 1) / 2).to(path.a)
    rule = torch.from_numpy(weights / 2).to(path.a)
    return 0.5 * (rule * space.speed2(path(t), path.velocity(t))).sum()


def _lbfgs(space, path: Path, nodes: int, steps: int) -> tuple[Path, list[float], int]:
    """Deterministic minimisation of the quadrature."""
    control = path.control.detach().clone().requires_grad_(True)  # type: ignore[union-attr]
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
        energy = _quadrature(space, replace(path, control=control), nodes)
        energy.backward()
        energies.append(energy.item())
        return energy

    solver.step(closure)
    found = replace(path, control=control.detach())
    return found, energies, len(energies) * nodes * space.size


def _stationary_norm(space: Space, path: Path, segments: int, optimizer: str) -> float:
    """Norm of the energy's gradient in the coefficients, on a fixed fine grid."""
    control = path.control.detach().clone().requires_grad_(True)  # type: ignore[union-attr]
    curve = replace(path, control=control)
    if optimizer == "lbfgs":
        energy = _quadrature(space, curve, NODES * segments)
    else:
        rows = None
        if space.size > STATUS_INPUTS:  # evenly spread over the inputs
            rows = torch.linspace(0, space.size - 1, STATUS_INPUTS).long()
        t = curve.times(4 * segments + 1)
        energy = difference_energy(space, curve(t), t, rows)
    return torch.autograd.grad(energy, control)[0].norm().item()
