"""Races of mixtures: many runs at once, of one method, in one chart, on one sample.

A method is a function of a `Race` that makes one step of all its runs; what it remembers
between steps lies in the race's `memory`, a row for each run, so that runs which have
ended can be taken out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

GAP = 0.1  # least relative distance in the relative chart, below every separation
LOOK = 20  # steps between looks for runs that have ended


class Mixture(NamedTuple):
    """A batch: log weights (b, K), means (b, K, d), Cholesky factors (b, K, d, d)."""

    log_a: Tensor
    m: Tensor
    L: Tensor


@dataclass(frozen=True)
class Task:
    """A weighted sample, what is fitted to it, and the loss of its truth.

    Attributes:
        x: (n, d) points; or (b, 1, n, d), a sample for each run, for `natural` only.
        q: (n,) their weights, of sum 1.
        K: number of components.
        kind: of the covariances: "known" (the identity), "full", "diagonal" or
            "spherical".
        prior: weight of the unit covariance that each component is given.
        floor: the loss of the truth, where there is one.
        scale: the loss of the best single Gaussian above it.
    """

    x: Tensor
    q: Tensor
    K: int
    kind: str = "full"
    prior: float = 0.0
    floor: float = 0.0
    scale: float = 1.0

    def evaluate(self, state: Mixture) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: loss (b,), responsibilities (b, K, n), whitened rows (b, K, d, n)."""
        log_a, m, L = state
        inverse = inverted(L)
        y = inverse @ self.x.mT - inverse @ m[..., None]
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_f = (log_a - log_det)[..., None] - 0.5 * (y * y).sum(2)
        log_p = torch.logsumexp(log_f, 1)
        loss = -log_p @ self.q + self.x.shape[-1] / 2 * math.log(2 * math.pi)
        spread = 0.5 * (inverse**2).sum((-1, -2)) + log_det
        loss = loss + self.prior * spread.sum(1) - self.floor
        return loss, (log_f - log_p[:, None]).exp(), y

    def scores(self, state: Mixture, r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (b, Q, n) in the standard chart, and the gradient of the loss (b, Q)."""
        log_a, _, L = state
        up = inverted(L).mT
        z = up @ y
        parts = [
            (r - log_a.exp()[..., None])[:, 1:],
            (z * r[:, :, None]).flatten(1, 2),
        ]
        if self.kind == "known":
            s = torch.cat(parts, 1)
            return s, -s @ self.q
        i, j = places(self.kind, y.shape[2])
        size = torch.where(i == j, L[:, :, i, j], 1.0)
        lower = z[:, :, i] * y[:, :, j] - up[:, :, i, j, None]
        lower = lower * size[..., None] * r[:, :, None]
        # of the prior's term, tr(S^-1)/2 + log det L for each component
        pull = size * (up - up @ up.mT @ up)[:, :, i, j]
        if self.kind == "spherical":
            lower, pull = lower.sum(2, keepdim=True), pull.sum(2, keepdim=True)
        s = torch.cat([*parts, lower.flatten(1, 2)], 1)
        g = -s @ self.q
        g[:, -pull[0].numel() :] += self.prior * pull.flatten(1)
        return s, g

    def m_step(self, r: Tensor, state: Mixture) -> Mixture:
        """The maximum for known shares, with the prior's part in the covariances."""
        rq = r * self.q
        mass = rq.sum(-1)
        m = rq @ self.x / mass[..., None]
        if self.kind == "known":
            return Mixture(mass.log(), m, state.L)
        rest = self.x - m[:, :, None]
        S = (rest * rq[..., None]).mT @ rest
        S = S + self.prior * torch.eye(m.shape[-1], dtype=m.dtype)
        S = restricted(S / (mass + self.prior)[..., None, None], self.kind)
        return Mixture(mass.log(), m, torch.linalg.cholesky_ex(S)[0])


def restricted(S: Tensor, kind: str) -> Tensor:
    """The likeliest covariances of a kind for these scatter matrices."""
    if kind == "full":
        return S
    diagonal = S.diagonal(dim1=-2, dim2=-1)
    if kind == "spherical":
        diagonal = diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    return torch.diag_embed(diagonal)


def inverted(L: Tensor) -> Tensor:
    """The inverses of triangular factors; of singular ones, no error but infinities."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype).expand_as(L)
    return torch.linalg.solve_triangular(L, eye, upper=False)


# Charts: standard coordinates are the logits, means, and log-Cholesky factors


def places(kind: str, d: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the free entries of a Cholesky factor."""
    if kind == "full":
        i, j = torch.tril_indices(d, d)
        return i, j
    i = torch.arange(d)
    return i, i


def _triangle(L: Tensor, kind: str) -> Tensor:
    i, j = places(kind, L.shape[-1])
    flat = L[..., i, j]
    flat = torch.where(i == j, flat.abs().log(), flat)
    return (flat[..., :1] if kind == "spherical" else flat).flatten(1)


def _factor(flat: Tensor, K: int, d: int, kind: str) -> Tensor:
    i, j = places(kind, d)
    flat = flat.reshape(len(flat), K, -1)
    flat = torch.where(i == j, flat.exp(), flat)  # a spherical one spreads to all
    place = torch.zeros(len(i), d, d, dtype=flat.dtype)
    place[torch.arange(len(i)), i, j] = 1.0
    return (flat @ place.flatten(1)).unflatten(-1, (d, d))


def encode(state: Mixture, kind: str) -> Tensor:
    """Standard coordinates (b, Q)."""
    parts = [(state.log_a - state.log_a[:, :1])[:, 1:], state.m.flatten(1)]
    known = kind == "known"
    return torch.cat(parts if known else [*parts, _triangle(state.L, kind)], 1)


def decode(eta: Tensor, K: int, d: int, kind: str) -> Mixture:
    """The mixtures of standard coordinates."""
    logits = torch.cat([torch.zeros_like(eta[:, :1]), eta[:, : K - 1]], 1)
    m = eta[:, K - 1 : K - 1 + K * d].reshape(-1, K, d)
    L = torch.eye(d, dtype=eta.dtype).expand(len(eta), K, d, d)
    if kind != "known":
        L = _factor(eta[:, K - 1 + K * d :], K, d, kind)
    return Mixture(torch.log_softmax(logits, 1), m, L)


def from_relative(eta: Tensor, K: int, d: int, kind: str) -> Mixture:
    """Component k stands in the frame of the first: m_1 + L_1 delta_k, L_1 Lambda_k."""
    log_a, m, L = decode(eta, K, d, kind)
    first, others = L[:, :1], m[:, 1:]
    moved = m[:, :1] + (first @ others[..., None])[..., 0]
    m = torch.cat([m[:, :1], moved], 1)
    return Mixture(log_a, m, torch.cat([first, first @ L[:, 1:]], 1))


def to_relative(state: Mixture, kind: str, gap: float = GAP) -> Tensor:
    """Coordinates in the frame of the first component, kept at the gap from it."""
    log_a, m, L = state
    back = inverted(L[:, :1])
    delta = (back @ (m[:, 1:] - m[:, :1])[..., None])[..., 0]
    size = delta.norm(dim=-1, keepdim=True)
    delta = delta * (gap / size.clamp_min(1e-300)).clamp_min(1.0)
    L = torch.cat([L[:, :1], back @ L[:, 1:]], 1)
    return encode(Mixture(log_a, torch.cat([m[:, :1], delta], 1), L), kind)


def from_moduli(eta: Tensor, K: int, d: int, kind: str) -> Mixture:
    """Two known-variance components by mean, spread and skew (b, v, s)."""
    b, v, s = eta.unbind(1)
    D = torch.sqrt(s * s + 4 * v.clamp_min(0) + 1e-20)
    w = torch.stack([(1 + s / D) / 2, (1 - s / D) / 2], 1)
    m = torch.stack([b - (D - s) / 2, b + (D + s) / 2], 1)[..., None]
    return Mixture(w.clamp_min(1e-300).log(), m, torch.ones_like(m)[..., None])


def to_moduli(state: Mixture, kind: str) -> Tensor:
    w, (m1, m2) = state.log_a.exp()[:, 1], state.m[..., 0].unbind(1)
    d = m2 - m1
    return torch.stack([m1 + w * d, w * (1 - w) * d * d, (1 - 2 * w) * d], 1)


CHARTS: dict[str, tuple[Callable[..., Mixture], Callable[..., Tensor]]] = {
    "standard": (decode, encode),
    "relative": (from_relative, to_relative),
    "moduli": (from_moduli, to_moduli),
    "gap 0.5": (from_relative, partial(to_relative, gap=0.5)),
    "gap 1": (from_relative, partial(to_relative, gap=1.0)),
}


class Race:
    """A batch of runs in one chart, each to its target.

    Attributes:
        rows: which runs are still in the batch.
        passes: of every run, evaluations until the loss was at most the target,
            infinite if never.
        best: of every run, the least loss so far.
        ends: of every run, its coordinates when it left the batch.
        memory: what the method remembers, a row for each run that is in the batch.
    """

    def __init__(
        self, task: Task, chart: str, start: Mixture, target: Tensor, rate: Tensor
    ) -> None:
        self.task, self.target, self.rate = task, target, rate
        d = task.x.shape[-1]
        here, there = CHARTS[chart]
        self.standard = chart == "standard"
        self.state = lambda eta: here(eta, task.K, d, task.kind)
        self.coordinates = lambda state: there(state, task.kind)
        self.eta = self.coordinates(start)
        self.ends = self.eta.clone()
        self.passes = torch.full((len(target),), math.inf, dtype=target.dtype)
        self.best = self.passes.clone()
        self.rows = torch.arange(len(target))
        self.memory: dict[str, Tensor] = {}
        self.count = 0

    def look(self, eta: Tensor) -> tuple[Tensor, Mixture, Tensor, Tensor]:
        """One pass over the data at these coordinates."""
        state = self.state(eta)
        loss, r, y = self.task.evaluate(state)
        loss = torch.where(loss.isfinite(), loss, math.inf)
        self.count += 1
        first = (loss <= self.target[self.rows]) & self.passes[self.rows].isinf()
        self.passes[self.rows[first]] = float(self.count)
        self.best[self.rows] = torch.minimum(self.best[self.rows], loss)
        return loss, state, r, y

    def em(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss at these coordinates, and where EM goes from there."""
        loss, state, r, _ = self.look(eta)
        return loss, self.coordinates(self.task.m_step(r, state))

    def slope(self, eta: Tensor, natural: bool = False) -> tuple[Tensor, ...]:
        """Loss and gradient in the chart, and the Fisher matrix if `natural`."""
        loss, state, r, y = self.look(eta)
        s, g = self.task.scores(state, r, y)

        def standard(e: Tensor) -> Tensor:
            return encode(self.state(e), self.task.kind)

        if not natural:
            return loss, g if self.standard else torch.func.vjp(standard, eta)[1](g)[0]
        F = (s * self.task.q) @ s.mT
        if self.standard:
            return loss, g, F
        eye = torch.eye(eta.shape[1], dtype=eta.dtype)

        def column(e: Tensor) -> Tensor:
            return torch.func.jvp(standard, (eta,), (e.expand_as(eta),))[1]

        J = torch.func.vmap(column, out_dims=2)(eye)  # of every run at once
        return loss, (g[:, None] @ J)[:, 0], J.mT @ F @ J

    def kept(self, eta: Tensor) -> Tensor:
        """Coordinates after the chart's own restrictions: a gap, a spread >= 0."""
        return self.coordinates(self.state(eta))

    def run(
        self,
        rule: Rule,
        budget: int,
        hopeless: Hopeless | None = None,
        still: float = -1.0,
    ) -> None:
        """Steps of a rule until all runs have ended or the budget is spent.

        Args:
            rule: makes one step of all runs.
            budget: passes.
            hopeless: of the race, which of all its runs need not go on.
            still: a run that gains less than this between two looks has ended.
        """
        steps, before = 0, self.best.clone()
        while self.count < budget and len(self.rows):
            rule(self)
            steps += 1
            if steps % LOOK == 0:
                on = self.passes[self.rows].isinf() & self.eta.isfinite().all(1)
                on &= (before - self.best)[self.rows] >= still
                before = self.best.clone()
                if hopeless is not None:
                    on &= ~hopeless(self)[self.rows]
                self.keep(on)
        self.ends[self.rows] = self.eta

    def keep(self, on: Tensor) -> None:
        """Take all other runs out of the batch."""
        if self.task.x.ndim > 2 or bool(on.all()):
            return
        self.ends[self.rows] = self.eta
        self.rows, self.eta, self.rate = self.rows[on], self.eta[on], self.rate[on]
        self.memory = {name: value[on] for name, value in self.memory.items()}


Rule = Callable[[Race], None]
Hopeless = Callable[[Race], Tensor]


def em(race: Race) -> None:
    """Expectation-maximization."""
    race.eta = race.em(race.eta)[1]


def over_relaxed(race: Race) -> None:
    """EM's steps made longer by 1 + rate as long as the loss falls (adaptive)."""
    memory = race.memory
    if not memory:
        memory["factor"] = torch.ones_like(race.rate)
        memory["loss"], memory["goal"] = race.em(race.eta)
    goal, loss, factor = memory["goal"], memory["loss"], memory["factor"]
    trial = race.eta + factor[:, None] * (goal - race.eta)
    now, then = race.em(trial)
    good = now <= loss
    # a step that was too long is taken back, and EM's own is made
    race.eta = torch.where(good[:, None], trial, race.eta)
    memory["goal"] = torch.where(good[:, None], then, goal)
    memory["loss"] = torch.where(good, now, loss)
    memory["factor"] = torch.where(good, factor * (1 + race.rate), 1.0)


def squarem(race: Race) -> None:
    """Varadhan and Roland's S3, with a look back; three passes a cycle."""
    loss, one = race.em(race.eta)
    _, two = race.em(one)
    r, v = one - race.eta, two - 2 * one + race.eta
    size = r.norm(dim=1) / v.norm(dim=1).clamp_min(1e-300)
    a = size.clamp_min(1.0)[:, None]
    far = race.eta + 2 * a * r + a * a * v
    now, on = race.em(far)
    race.eta = torch.where((now <= loss)[:, None], on, two)


def momentum(race: Race, beta: float = 0.9) -> None:
    """Heavy-ball descent."""
    speed = race.memory.get("speed", torch.zeros_like(race.eta))
    speed = beta * speed - race.rate[:, None] * race.slope(race.eta)[1]
    race.memory["speed"] = speed
    race.eta = race.kept(race.eta + speed)


def descent(race: Race) -> None:
    """Gradient descent."""
    momentum(race, 0.0)


def adam(race: Race) -> None:
    """Adam with its usual constants."""
    zero = torch.zeros_like(race.eta)
    g, t = race.slope(race.eta)[1], race.memory.get("t", zero[:, :1]) + 1
    first = 0.9 * race.memory.get("first", zero) + 0.1 * g
    second = 0.999 * race.memory.get("second", zero) + 0.001 * g * g
    race.memory = {"t": t, "first": first, "second": second}
    step = first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    race.eta = race.kept(race.eta - race.rate[:, None] * step)


def natural(race: Race) -> None:
    """Natural gradient with Levenberg's damping; no coordinate moves beyond `rate`."""
    memory = race.memory
    if "F" not in memory:
        memory["damping"] = torch.full_like(race.rate, 1e-3)
        loss, g, F = race.slope(race.eta, natural=True)
        memory |= {"loss": loss, "g": g, "F": F}
    loss, g, F, damping = (memory[k] for k in ("loss", "g", "F", "damping"))
    D = F.diagonal(dim1=1, dim2=2)
    D = D + 1e-12 * D.amax(1, keepdim=True)
    root = torch.linalg.cholesky_ex(F + torch.diag_embed(damping[:, None] * D))[0]
    step = torch.cholesky_solve(g[..., None], root)[..., 0]
    longest = step.abs().amax(1).clamp_min(1e-300)
    trial = race.kept(race.eta - step * (race.rate / longest).clamp_max(1.0)[:, None])
    now, g2, F2 = race.slope(trial, natural=True)
    good = now <= loss
    race.eta = torch.where(good[:, None], trial, race.eta)
    memory["g"] = torch.where(good[:, None], g2, g)
    memory["F"] = torch.where(good[:, None, None], F2, F)
    memory["loss"] = torch.where(good, now, loss)
    memory["damping"] = torch.where(good, (damping / 5).clamp_min(1e-9), damping * 10)


def hybrid(race: Race, phase: int = 20) -> None:
    """Twenty passes of EM, then the natural gradient."""
    (em if race.count < phase else natural)(race)


def split_merge(race: Race, phase: int = 100) -> None:
    """EM; then the most alike pair is merged and the worst component is split.

    A phase of EM decides whether that is kept; after a failure a run is EM's.
    """
    hopeful = race.memory.get("hopeful", torch.ones_like(race.rate) > 0)
    if race.count < phase or not bool(hopeful.any()):
        em(race)
        return
    loss, state, r, _ = race.look(race.eta)
    before = race.eta
    moved = race.coordinates(_regrouped(race.task, state, r))
    race.eta = torch.where(hopeful[:, None], moved, before)
    for _ in range(phase):
        em(race)
    now = race.look(race.eta)[0]
    good = now < loss
    race.memory["hopeful"] = hopeful & good & ((loss - now) > 1e-8)
    race.eta = torch.where(good[:, None], race.eta, before)


def _regrouped(task: Task, state: Mixture, r: Tensor) -> Mixture:
    """The most alike pair as one component, the least certain of the rest as two."""
    log_a, m, L = (t.clone() for t in state)
    rq = r * task.q.sqrt()
    unit = rq / rq.norm(dim=-1, keepdim=True)
    alike = (unit @ unit.transpose(1, 2)).triu(1)
    for row in range(len(m)):
        i, j = divmod(int(alike[row].argmax()), task.K)
        rest = [k for k in range(task.K) if k not in (i, j)]
        doubt = -(r[row] * task.q * r[row].clamp_min(1e-300).log()).sum(-1)
        k = max(rest, key=lambda c: float(doubt[c] / log_a[row, c].exp()))
        a = log_a[row].exp()
        both = a[i] + a[j]
        mean = (a[i] * m[row, i] + a[j] * m[row, j]) / both
        S = L[row] @ L[row].transpose(-1, -2)
        gap = m[row, i] - m[row, j]
        joint = (a[i] * S[i] + a[j] * S[j]) / both
        joint = joint + a[i] * a[j] / both**2 * torch.outer(gap, gap)
        values, vectors = torch.linalg.eigh(S[k])
        shift = 0.5 * values[-1].sqrt() * vectors[:, -1]
        m[row, i], m[row, j], m[row, k] = mean, m[row, k] + shift, m[row, k] - shift
        L[row, i] = torch.linalg.cholesky(restricted(joint, task.kind))
        L[row, j] = L[row, k]
        log_a[row, i] = both.log()
        log_a[row, j] = log_a[row, k] = (a[k] / 2).log()
    return Mixture(log_a, m, L)
