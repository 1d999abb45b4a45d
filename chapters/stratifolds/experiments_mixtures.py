"""The second paper's contest: mixtures in relative coordinates against their rivals.

geolib sweep stratifold-contest --size full --publish

All methods work on batches of starts of one weighted sample: the nodes of an exact
quadrature for the near-overlapping pairs, the rows of a table for real data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geolib.data import load
from geolib.stratifolds import kmeans_start
from geolib.sweep import Sweep

SEPARATIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
TABLES = {  # name: components; four principal components, at most 300 rows
    "uci/iris": 3,
    "uci/wine": 3,
    "uci/wheat-seeds": 3,
    "digits": 5,
    "uci/banknote_authentication": 2,
    "uci/glass": 3,
    "uci/pima-indians-diabetes": 3,
    "uci/ionosphere": 3,
    "uci/abalone": 3,
    "uci/winequality-white": 3,
}
RATES = tuple(10 ** (k / 2) for k in range(-6, 4))  # 0.001 to 31.6, all methods alike
TUNING, SEEDS = (100, 101, 102), tuple(range(10))
GAP = 0.1  # least relative distance in the relative chart, below every separation
PRIOR = 1.0  # rows of unit covariance that each component of a table is given


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
        known: the covariances are the identity and stay so.
        prior: weight of the unit covariance that each component is given.
        floor: the loss of the truth, where there is one.
        scale: the loss of the best single Gaussian above it.
    """

    x: Tensor
    q: Tensor
    K: int
    known: bool = False
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
        d = y.shape[2]
        up = inverted(L).mT
        parts = [
            (r - log_a.exp()[..., None])[:, 1:],
            ((up @ y) * r[:, :, None]).flatten(1, 2),
        ]
        eye = torch.eye(d, dtype=y.dtype)
        if not self.known:
            i, j = torch.tril_indices(d, d)
            turn = torch.einsum("bkac,bkcn,bkdn->bkadn", up, y, y) - up[..., None]
            lower = turn[:, :, i, j] * r[:, :, None]
            size = torch.where(i == j, L[:, :, i, j], 1.0)
            parts.append((lower * size[..., None]).flatten(1, 2))
        s = torch.cat(parts, 1)
        g = -s @ self.q
        if self.prior:
            pull = up @ (eye - up.mT @ up)  # of tr(S^-1)/2 + log det L
            g[:, -lower[0, :, :, 0].numel() :] += (
                self.prior * pull[:, :, i, j] * size
            ).flatten(1)
        return s, g

    def m_step(self, r: Tensor, state: Mixture) -> Mixture:
        """The maximum for known shares, with the prior's part in the covariances."""
        rq = r * self.q
        mass = rq.sum(-1)
        m = rq @ self.x / mass[..., None]
        if self.known:
            return Mixture(mass.log(), m, state.L)
        rest = self.x - m[:, :, None]
        S = torch.einsum("bkn,bkni,bknj->bkij", rq, rest, rest)
        S = S + self.prior * torch.eye(m.shape[-1], dtype=m.dtype)
        S = S / (mass + self.prior)[..., None, None]
        return Mixture(mass.log(), m, torch.linalg.cholesky_ex(S)[0])


def inverted(L: Tensor) -> Tensor:
    """The inverses of triangular factors; of singular ones, no error but infinities."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype).expand_as(L)
    return torch.linalg.solve_triangular(L, eye, upper=False)


# Charts: standard coordinates are the logits, means, and log-Cholesky factors


def _triangle(L: Tensor) -> Tensor:
    i, j = torch.tril_indices(*L.shape[-2:])
    flat = L[..., i, j]
    return torch.where(i == j, flat.abs().log(), flat).flatten(1)


def _factor(flat: Tensor, K: int, d: int) -> Tensor:
    i, j = torch.tril_indices(d, d)
    flat = flat.reshape(len(flat), K, -1)
    flat = torch.where(i == j, flat.exp(), flat)
    place = torch.zeros(len(i), d, d, dtype=flat.dtype)
    place[torch.arange(len(i)), i, j] = 1.0
    return torch.einsum("bkq,qij->bkij", flat, place)


def encode(state: Mixture, known: bool) -> Tensor:
    """Standard coordinates (b, Q)."""
    parts = [(state.log_a - state.log_a[:, :1])[:, 1:], state.m.flatten(1)]
    return torch.cat(parts if known else [*parts, _triangle(state.L)], 1)


def decode(eta: Tensor, K: int, d: int, known: bool) -> Mixture:
    """The mixtures of standard coordinates."""
    logits = torch.cat([torch.zeros_like(eta[:, :1]), eta[:, : K - 1]], 1)
    m = eta[:, K - 1 : K - 1 + K * d].reshape(-1, K, d)
    L = torch.eye(d, dtype=eta.dtype).expand(len(eta), K, d, d)
    if not known:
        L = _factor(eta[:, K - 1 + K * d :], K, d)
    return Mixture(torch.log_softmax(logits, 1), m, L)


def from_relative(eta: Tensor, K: int, d: int, known: bool) -> Mixture:
    """Component k stands in the frame of the first: m_1 + L_1 delta_k, L_1 Lambda_k."""
    log_a, m, L = decode(eta, K, d, known)
    first, others = L[:, :1], m[:, 1:]
    moved = m[:, :1] + (first @ others[..., None])[..., 0]
    m = torch.cat([m[:, :1], moved], 1)
    return Mixture(log_a, m, torch.cat([first, first @ L[:, 1:]], 1))


def to_relative(state: Mixture, known: bool, gap: float = GAP) -> Tensor:
    """Coordinates in the frame of the first component, kept at the gap from it."""
    log_a, m, L = state
    back = inverted(L[:, :1])
    delta = (back @ (m[:, 1:] - m[:, :1])[..., None])[..., 0]
    size = delta.norm(dim=-1, keepdim=True)
    delta = delta * (gap / size.clamp_min(1e-300)).clamp_min(1.0)
    L = torch.cat([L[:, :1], back @ L[:, 1:]], 1)
    return encode(Mixture(log_a, torch.cat([m[:, :1], delta], 1), L), known)


def from_moduli(eta: Tensor, K: int, d: int, known: bool) -> Mixture:
    """Two known-variance components by mean, spread and skew (b, v, s)."""
    b, v, s = eta.unbind(1)
    D = torch.sqrt(s * s + 4 * v.clamp_min(0) + 1e-20)
    w = torch.stack([(1 + s / D) / 2, (1 - s / D) / 2], 1)
    m = torch.stack([b - (D - s) / 2, b + (D + s) / 2], 1)[..., None]
    return Mixture(w.clamp_min(1e-300).log(), m, torch.ones_like(m)[..., None])


def to_moduli(state: Mixture, known: bool) -> Tensor:
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
        passes: evaluations until the loss was at most the target, infinite if never.
        best: least loss so far.
    """

    def __init__(self, task: Task, chart: str, start: Mixture, target: Tensor) -> None:
        self.task, self.target = task, target
        d = task.x.shape[-1]
        here, there = CHARTS[chart]
        self.state = lambda eta: here(eta, task.K, d, task.known)
        self.coordinates = lambda state: there(state, task.known)
        self.eta = self.coordinates(start)
        self.passes = torch.full((len(target),), math.inf, dtype=target.dtype)
        self.best = self.passes.clone()
        self.count = 0

    def look(self, eta: Tensor) -> tuple[Tensor, Mixture, Tensor, Tensor]:
        """One pass over the data at these coordinates."""
        state = self.state(eta)
        loss, r, y = self.task.evaluate(state)
        loss = torch.where(loss.isfinite(), loss, math.inf)
        self.count += 1
        first = (loss <= self.target) & self.passes.isinf()
        self.passes = torch.where(first, float(self.count), self.passes)
        self.best = torch.minimum(self.best, loss)
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
            return encode(self.state(e), self.task.known)

        if not natural:
            return loss, torch.func.vjp(standard, eta)[1](g)[0]
        J = torch.func.vmap(torch.func.jacfwd(lambda e: standard(e[None])[0]))(eta)
        s = J.transpose(1, 2) @ s
        return loss, (g[:, None] @ J)[:, 0], (s * self.task.q) @ s.transpose(1, 2)

    def kept(self, eta: Tensor) -> Tensor:
        """Coordinates after the chart's own restrictions: a gap, a spread >= 0."""
        return self.coordinates(self.state(eta))

    def running(self, budget: int) -> bool:
        return self.count < budget and bool(self.passes.isinf().any())


def em(race: Race, rate: Tensor, budget: int) -> None:
    """Expectation-maximization."""
    while race.running(budget):
        race.eta = race.em(race.eta)[1]


def over_relaxed(race: Race, rate: Tensor, budget: int) -> None:
    """EM's steps made longer by 1 + rate as long as the loss falls (adaptive)."""
    factor = torch.ones_like(rate)
    loss, goal = race.em(race.eta)
    while race.running(budget):
        trial = race.eta + factor[:, None] * (goal - race.eta)
        now, then = race.em(trial)
        good = now <= loss
        # a step that was too long is taken back, and EM's own is made
        race.eta = torch.where(good[:, None], trial, race.eta)
        goal = torch.where(good[:, None], then, goal)
        loss = torch.where(good, now, loss)
        factor = torch.where(good, factor * (1 + rate), 1.0)


def squarem(race: Race, rate: Tensor, budget: int) -> None:
    """Varadhan and Roland's S3, with a look back; three passes a cycle."""
    while race.running(budget):
        loss, one = race.em(race.eta)
        _, two = race.em(one)
        r, v = one - race.eta, two - 2 * one + race.eta
        size = r.norm(dim=1) / v.norm(dim=1).clamp_min(1e-300)
        a = size.clamp_min(1.0)[:, None]
        far = race.eta + 2 * a * r + a * a * v
        now, on = race.em(far)
        race.eta = torch.where((now <= loss)[:, None], on, two)


def momentum(race: Race, rate: Tensor, budget: int, beta: float = 0.9) -> None:
    """Heavy-ball descent."""
    speed = torch.zeros_like(race.eta)
    while race.running(budget):
        speed = beta * speed - rate[:, None] * race.slope(race.eta)[1]
        race.eta = race.kept(race.eta + speed)


def descent(race: Race, rate: Tensor, budget: int) -> None:
    """Gradient descent."""
    momentum(race, rate, budget, 0.0)


def adam(race: Race, rate: Tensor, budget: int) -> None:
    """Adam with its usual constants."""
    first = second = torch.zeros_like(race.eta)
    t = 0
    while race.running(budget):
        g, t = race.slope(race.eta)[1], t + 1
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        size = (second / (1 - 0.999**t)).sqrt() + 1e-8
        step = first / (1 - 0.9**t) / size
        race.eta = race.kept(race.eta - rate[:, None] * step)


def natural(race: Race, rate: Tensor, budget: int) -> None:
    """Natural gradient with Levenberg's damping; no coordinate moves beyond `rate`."""
    damping = torch.full_like(rate, 1e-3)
    loss, g, F = race.slope(race.eta, natural=True)
    while race.running(budget):
        D = F.diagonal(dim1=1, dim2=2)
        D = D + 1e-12 * D.amax(1, keepdim=True)
        root = torch.linalg.cholesky_ex(F + torch.diag_embed(damping[:, None] * D))[0]
        step = torch.cholesky_solve(g[..., None], root)[..., 0]
        longest = step.abs().amax(1).clamp_min(1e-300)
        trial = race.kept(race.eta - step * (rate / longest).clamp_max(1.0)[:, None])
        now, g2, F2 = race.slope(trial, natural=True)
        good = now <= loss
        race.eta = torch.where(good[:, None], trial, race.eta)
        g = torch.where(good[:, None], g2, g)
        F = torch.where(good[:, None, None], F2, F)
        loss = torch.where(good, now, loss)
        damping = torch.where(good, (damping / 5).clamp_min(1e-9), damping * 10)


def hybrid(race: Race, rate: Tensor, budget: int) -> None:
    """Twenty passes of EM, then the natural gradient."""
    em_phase(race, 20)
    natural(race, rate, budget)


def split_merge(race: Race, rate: Tensor, budget: int, phase: int = 100) -> None:
    """EM; then the most alike pair is merged and the worst component is split.

    A phase of EM decides whether that is kept; after a failure a run is EM's.
    """
    em_phase(race, min(phase, budget))
    hopeful = torch.ones(len(rate), dtype=torch.bool)
    while race.running(budget):
        loss, state, r, _ = race.look(race.eta)
        before = race.eta
        moved = race.coordinates(_regrouped(race.task, state, r))
        race.eta = torch.where(hopeful[:, None], moved, before)
        em_phase(race, min(race.count + phase, budget))
        now = race.look(race.eta)[0]
        good = now < loss
        hopeful = hopeful & good & ((loss - now) > 1e-8)
        race.eta = torch.where(good[:, None], race.eta, before)
        if not bool(hopeful.any()):
            em(race, rate, budget)


def em_phase(race: Race, until: int) -> None:
    while race.count < until:
        race.eta = race.em(race.eta)[1]


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
        L[row, i], L[row, j] = torch.linalg.cholesky(joint), L[row, k]
        log_a[row, i] = both.log()
        log_a[row, j] = log_a[row, k] = (a[k] / 2).log()
    return Mixture(log_a, m, L)


METHODS: dict[str, tuple[Callable[..., None], str, bool]] = {  # chart, has a rate
    "EM": (em, "standard", False),
    "EM, relative": (em, "relative", False),
    "SQUAREM": (squarem, "standard", False),
    "over-relaxed EM": (over_relaxed, "standard", True),
    "EM, then natural gradient": (hybrid, "standard", True),
    "split and merge": (split_merge, "standard", False),
    **{
        f"{name}, {chart}": (rule, chart, True)
        for name, rule in (
            ("natural gradient", natural),
            ("Adam", adam),
            ("descent", descent),
            ("momentum", momentum),
        )
        for chart in ("standard", "relative", "moduli")
    },
}


# Tasks and starts


def pair_task(separation: float, known: bool) -> Task:
    """Two unit Gaussians so far apart, weights 0.6 and 0.4, by quadrature."""
    x = torch.linspace(-9, 10, 191, dtype=torch.float64)[:, None]
    log_p = torch.logaddexp(
        math.log(0.6) - 0.5 * x[:, 0] ** 2,
        math.log(0.4) - 0.5 * (x[:, 0] - separation) ** 2,
    )
    q = log_p.exp() / log_p.exp().sum()
    task = Task(x, q, 2, known)
    one = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    means = torch.tensor([[[0.0], [separation]]], dtype=torch.float64)
    truth = Mixture(one.log(), means, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    floor = float(task.evaluate(truth)[0])
    task = Task(x, q, 2, known, floor=floor)
    mean = q @ x[:, 0]
    sd = torch.ones(()) if known else (q @ (x[:, 0] - mean) ** 2).sqrt()
    single = Mixture(one.log(), mean.expand(1, 2, 1), sd.double().expand(1, 2, 1, 1))
    return Task(x, q, 2, known, floor=floor, scale=float(task.evaluate(single)[0]))


def table_task(name: str) -> Task:
    """At most 300 rows of a table by their four first principal components."""
    data = load(name)
    x = torch.tensor(data.x).double().flatten(1)
    x = x[torch.tensor(np.random.default_rng(0).permutation(len(x))[:300])]
    x = x - x.mean(0)
    x = x[:, x.std(0) > 1e-9]
    x = x / x.std(0)
    x = torch.linalg.svd(x, full_matrices=False)[0][:, :4] * len(x) ** 0.5
    n = len(x)
    q = torch.full((n,), 1 / n, dtype=torch.float64)
    return Task(x, q, TABLES[name], prior=PRIOR / n)


def starts(task: Task, kind: str, seeds: Sequence[int]) -> Mixture:
    """k-means++ on 300 rows, or a pair near the overlap."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng([7, seed])
        if kind == "near":
            w, m = rng.uniform(0.2, 0.8), 0.2 + 0.1 * rng.standard_normal(2)
            sd = np.ones(2) if task.known else np.exp(0.05 * rng.standard_normal(2))
            found.append((np.log([w, 1 - w]), m[:, None], sd[:, None, None]))
            continue
        x = task.x
        if task.prior == 0:
            x = x[rng.choice(len(x), 300, p=task.q.numpy())]
            x = x + 0.01 * torch.tensor(rng.standard_normal(x.shape))
        start = kmeans_start(x, task.K, seed=seed)
        L = torch.linalg.cholesky(start.covariances)
        L = torch.eye(x.shape[1]).expand_as(L) if task.known else L
        found.append((start.weights.log(), start.means, L))
    stacked = [torch.stack([torch.as_tensor(f[i]) for f in found]) for i in range(3)]
    return Mixture(*(t.double() for t in stacked))


@cache
def problem(name: str, budget: int) -> tuple[Task, dict[str, tuple[Mixture, Tensor]]]:
    """A task with starts and targets for tuning and for the report."""
    if name in TABLES:
        task, kind = table_task(name), "k-means++"
    else:
        variance, separation, kind = name.split(" | ")
        task = pair_task(float(separation), variance == "known variance")
    sets = {}
    for use, seeds in (("tuning", TUNING), ("report", SEEDS)):
        start = starts(task, kind, seeds)
        target = torch.full((len(seeds),), 1e-3 * task.scale, dtype=torch.float64)
        if name in TABLES:  # as good as EM after four times the budget
            race = Race(task, "standard", start, target - math.inf)
            em_phase(race, 4 * budget)
            target = race.best + 1e-6
        sets[use] = start, target
    return task, sets


@dataclass(frozen=True)
class Spec:
    """One method on one task, all seeds: `task` names a table or a pair."""

    task: str
    method: str
    budget: int = 1500


def tuned(spec: Spec, grid: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """The rate of the fewest passes on the tuning starts, never at the grid's end.

    A grid whose best is at an end is continued there by two more rates, up to a
    rate of 1e-6 or 1e6.
    """
    rule, chart, _ = METHODS[spec.method]
    task, sets = problem(spec.task, spec.budget)
    start, target = sets["tuning"]
    many = Mixture(*(t.repeat(len(grid), *[1] * (t.ndim - 1)) for t in start))
    race = Race(task, chart, many, target.repeat(len(grid)))
    rate = torch.tensor(grid, dtype=torch.float64).repeat_interleave(len(target))
    rule(race, rate, spec.budget)
    passes = race.passes.clamp_max(spec.budget).reshape(len(grid), -1).log().mean(1)
    left = (race.best - race.target).clamp(1e-16, 1e3).reshape(len(grid), -1)
    order = [
        (float(p), float(m)) for p, m in zip(passes, left.log().mean(1), strict=True)
    ]
    best = min(range(len(grid)), key=lambda k: order[k])
    low, high = grid[0], grid[-1]
    if best == 0 and low > 1e-6:
        return tuned(spec, (low / 10, low / 10**0.5, *grid))
    if best == len(grid) - 1 and high < 1e6:
        return tuned(spec, (*grid, high * 10**0.5, high * 10))
    return grid[best], tuple(grid)


def run(spec: Spec) -> dict[str, Any]:
    """Passes to the target for each seed, None where the budget ended first."""
    rule, chart, has_rate = METHODS[spec.method]
    rate, grid = tuned(spec, RATES) if has_rate else (1.0, (0.0, 1.0, 2.0))
    task, sets = problem(spec.task, spec.budget)
    start, target = sets["report"]
    race = Race(task, chart, start, target)
    begin = time.process_time()
    rule(race, torch.full_like(target, rate), spec.budget)
    spent = time.process_time() - begin
    return {
        "rate": float(f"{rate:.3g}") if has_rate else None,
        "interior": grid[0] < rate < grid[-1],
        "passes": [int(p) if math.isfinite(p) else None for p in race.passes.tolist()],
        "left": [float(f"{v:.3g}") for v in (race.best - target).tolist()],
        "ms_a_pass": float(f"{1e3 * spent / race.count:.3g}"),
    }


def pairs(separations: Sequence[float] = SEPARATIONS) -> list[str]:
    """Names of the near-overlapping tasks."""
    return [
        f"{variance} | {separation} | {kind}"
        for variance in ("known variance", "free variance")
        for separation in separations
        for kind in ("near", "k-means++")
    ]


def specs(tasks: Sequence[str], budget: int = 1500) -> list[Spec]:
    """Every method that a task has; an interrupted sweep has some of each task."""
    return [
        Spec(task, method, budget if task not in TABLES else 2 * budget // 5)
        for method in METHODS
        for task in tasks
        if ("moduli" not in method or task.startswith("known"))
        and (method != "split and merge" or TABLES.get(task, 2) > 2)
    ]


CONTEST = Sweep(
    "stratifold-contest",
    run,
    {
        "small": lambda: specs(pairs([1.0])[:1], 200),
        "book": lambda: specs(pairs([0.4, 1.0])),
        "full": lambda: specs([*pairs(), *TABLES]),
    },
    text="Passes to the optimum of mixtures, relative coordinates against their rivals.",
    about={"device": "two shared cores, one thread", "seeds": len(SEEDS)},
)
