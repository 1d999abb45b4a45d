"""An ensemble of copies: what the losses of a setup are on average, and their scatter.

No limit is taken. A copy has the setup's ratios and its law of weights and data; where
the setup itself is dear, copies are smaller, and two sizes say what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from numpy.typing import ArrayLike

from geolib.core.validation import expect

from .descent import Rule
from .loss_curves import Curves
from .setup import Setup, check_covariance, check_times, first_loss
from .simulate import FlowProblem, run
from .spectral_measures import SpectralMeasure, equal_shares, gaussian_factor

BUDGET = 1.6e10  # operations of one ensemble: about a second on one core
EVALUATIONS = 220  # of the flow while T t runs over [0, 3], about
MEMORY = 100  # operations in the time that a step moves one number of the state
FEWEST, MOST = 24, 512  # copies
LONGEST = 1e5  # evaluations of the flow, or steps
KEPT = 16  # sizes for each leading eigenvalue that a smaller copy keeps as it is
DRAW = 10  # operations, times the rank cubed, for the eigenvalues of a drawn S
BLOCK = 50_000  # numbers of the state that are moved together: they stay in the cache
ENOUGH, SETTLED = 128, 0.002  # copies, and their standard error over the first loss
ROUNDING = 1e-14  # of a loss, where copies do not differ
EDGE = 0.98  # of the copies' largest deviations, what counts as their reach
LEVELS = 8  # of a copy whose samples are few; the error falls exponentially in them
SEED = 20260605  # of the copies, far from the seeds of `simulate`


@dataclass(frozen=True)
class Ensemble:
    """Losses over d of the copies, and what follows for one run of the full size.

    Attributes:
        mean: over the copies.
        scatter: standard deviation of one run of the setup's own size.
        doubt: standard error of `mean`, the error of the integration, and what is left
            of the size of the copies.
        reach: the deviation from the mean, in standard deviations, that all but one
            in fifty copies keep to at all times and in both losses.
        copies: how many there are.
        share: size of a copy over that of the setup.
    """

    mean: Curves
    scatter: Curves
    doubt: Curves
    reach: float
    copies: int
    share: float


def ensemble(
    setup: Setup,
    times: ArrayLike,
    law: SpectralMeasure | None = None,
    population: Annotated[np.ndarray | None, "setup.d setup.d"] = None,
    *,
    target: bool = True,
    rule: Rule | None = None,
    budget: Annotated[float, "0 < budget <= 5e11"] = BUDGET,
) -> Ensemble:
    r"""The losses over d of a setup are averaged over draws of its own law.

    .. math:: \bar L(t) = \frac1m \sum_{j=1}^m L_j(t), \qquad
        (d', h', n') \approx \lambda\,(d, h, n), \quad
        \sigma'^2 = \sigma^2 / \lambda ,

    with the largest :math:`\lambda \le 1` that `budget` allows, and neighbouring whole
    sizes mixed so that h / d and n / d are kept on average. Each :math:`L_j` is the loss
    of a training run, hence never negative. With :math:`\lambda < 1` the mean is
    off by :math:`1 - \lambda` of its change when :math:`\lambda` is halved, about; the
    scatter of one run of the full size is :math:`\lambda` times that of a copy. Of a
    given law a smaller copy keeps the leading eigenvalues, each read with its share of
    the full size; the scatter then is that of few directions, :math:`\sqrt\lambda`
    times a copy's.

    Args:
        setup: the sizes.
        times: (T,) increasing.
        law: spectral law of S, which all copies have; default that of Gaussian data.
        population: (d, d) covariance of the population in the eigenbasis of S, in the
            order of the law's nodes; default the identity.
        target: False for the free flow.
        rule: steps in discrete time instead of the flow; `times` are whole numbers of
            them.
        budget: operations to spend.

    Returns:
        `Ensemble`.

    Raises:
        ValueError: bad times, or an end that takes more than 1e5 evaluations or steps;
            a budget that is not positive, or a rule with which a copy diverges.

    Cost: `budget`, or six copies of the least size, if that is more.

    Source: :eq:`drv-regimes-ensemble`, :eq:`drv-regimes-whole` (derivations).

    Examples:
        >>> answer = ensemble(Setup(20, 10, 40, 0.05), [0.0, 0.1])
        >>> answer.share, answer.copies
        (1.0, 512)
    """
    if population is not None:
        population = check_covariance(population, setup.d)
    problem = _Copies(setup, check_times(times), law, population, target, rule)
    wanted = f"an end within {LONGEST:.0e} evaluations or steps"
    expect(problem.evaluations <= LONGEST, "times", wanted, int(problem.evaluations))
    afford = budget / (FEWEST * problem.evaluations)
    first = problem.run(min(1.0, (afford / problem.cost(setup)) ** (1 / 3)), budget)
    size = first.setup.d / setup.d
    mean, doubt = first.expected
    doubt = doubt + first.errors
    if size < 1:
        half, _ = problem.run(size / 2, budget / 4).expected
        doubt += (1 - size) * np.abs(mean - half)  # the rest, if off by 1 / size
    scatter = first.scatter * (size if law is None else size**0.5)
    parts = Curves(*mean), Curves(*scatter), Curves(*doubt)
    return Ensemble(*parts, first.reach, len(first.losses), size)


def smaller(setup: Setup, share: float) -> Setup:
    """Nearly `share` of all sizes, where rounding to whole numbers moves ratios least.

    Examples:
        >>> smaller(Setup(400, 200, 100, 0.01), 0.25)
        Setup(d=100, h=50, n=25, sigma2=0.04)
    """
    if share >= 1:
        return setup

    def off(d: int) -> float:
        exact = setup.h * d / setup.d, setup.n * d / setup.d
        return sum(abs(np.log(max(1, round(x)) / x)) for x in exact)

    top = max(2, round(share * setup.d))
    d = min(range(top, min(top - 1, max(1, top - top // 4)), -1), key=off)
    h, n = (max(1, round(x * d / setup.d)) for x in (setup.h, setup.n))
    return Setup(d, h, n, setup.kappa / d)


def neighbours(setup: Setup, d: int, samples: bool) -> list[tuple[float, Setup]]:
    r"""Up to three setups of that d, weighted so that h / d and n / d are kept.

    .. math:: \sum_k w_k = 1, \qquad \sum_k w_k\,(h_k, n_k) = \tfrac{d}{d_0}\,(h_0, n_0)

    Without `samples` n is rounded: the law is given.

    Examples:
        >>> [(round(w, 2), s.h, s.n) for w, s in neighbours(Setup(8, 6, 9, 1.0), 5, True)]
        [(0.25, 3, 5), (0.12, 4, 5), (0.62, 4, 6)]
    """
    low, part = [], []
    for size, mixed in ((setup.h, True), (setup.n, samples)):
        exact = max(1.0, size * d / setup.d)
        exact = exact if mixed else round(exact)
        low.append(int(exact + 1e-9))
        part.append(max(0.0, exact - low[-1]))
    edges = [0.0, *sorted(part), 1.0]
    found = []
    for left, right in pairwise(edges):
        if right - left > 1e-9:
            h, n = (size + (right <= p) for size, p in zip(low, part, strict=True))
            found.append((right - left, Setup(d, h, n, setup.kappa / d)))
    return found[::-1]


def corrected(
    runs: np.ndarray, first: np.ndarray, groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The mean (2, T) of runs (m, 2, T) and its standard error, less what the losses at
    time 0 explain.

    Their expectations `first` (2,) are known: what the runs' means miss of them is
    carried on by regression. The means of so many groups were taken apart.
    """
    mean, count = runs.mean(0), len(runs)
    x = runs[:, :, 0] - mean[:, 0]
    flat = (runs - mean).reshape(count, -1)
    slope = np.linalg.lstsq(x, flat, rcond=1e-8)[0]
    left = (flat - x @ slope).std(0, ddof=2 + groups) / count**0.5
    better = mean + ((first - mean[:, 0]) @ slope).reshape(mean.shape)
    return np.maximum(better, 0.0), left.reshape(mean.shape)


@dataclass
class _Runs:
    setup: Setup
    losses: np.ndarray  # (copies, 2, T) over d
    errors: np.ndarray  # (2, T) of the integration
    first: np.ndarray | None  # expected losses at time 0, if it is one of the times
    groups: int  # of copies whose means were taken apart

    @property
    def scatter(self) -> np.ndarray:
        return self.losses.std(0, ddof=self.groups)

    @property
    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and its standard error, `corrected` where copies are many."""
        count = len(self.losses)
        if self.first is None or count < FEWEST:
            return self.losses.mean(0), self.scatter * count**-0.5
        return corrected(self.losses, self.first, self.groups)

    @property
    def reach(self) -> float:
        mean = self.losses.mean(0)
        off = self.scatter + self.errors + ROUNDING * mean
        worst = (np.abs(self.losses - mean) / off).max((1, 2))
        return float(np.quantile(worst, EDGE, method="higher"))


@dataclass
class _Copies:
    """Copies of a setup at any size, in the eigenbasis of S."""

    setup: Setup
    times: np.ndarray
    law: SpectralMeasure | None
    population: np.ndarray | None
    target: bool
    rule: Rule | None = None

    @property
    def evaluations(self) -> float:
        """Of the flow, about; or the steps of the rule."""
        if self.rule is None:
            spread = S.moment(2) / S.moment(1) if (S := self.law) else self.setup.c
            return EVALUATIONS * max(1.0, self.times[-1] * max(1.0, spread) / 3)
        return float(self.rule.steps(self.times)[-1] + 1)

    def rank(self, small: Setup) -> int:
        if self.law is None:
            return min(small.n, small.d)
        return int(np.count_nonzero(equal_shares(self.law, self.law.nodes, small.d)))

    def shape(self, small: Setup) -> tuple[int, int]:
        """Of the weights: few samples see few levels of them only, and the inputs that S
        does not see turn together until h of them are left."""
        rank, h = self.rank(small), min(small.h, small.d)
        moved = self.rule is not None and (self.rule.decay or self.rule.noise)
        if self.population is not None:
            return h, small.d
        if (LEVELS + 1) * rank <= h and not moved:  # what S does not see moves too
            return LEVELS * rank, (LEVELS + 1) * rank
        return h, min(small.d, rank + h)

    def kept(self, small: Setup) -> int:
        """How many leading eigenvalues a copy keeps as they are."""
        h, d = self.shape(small)
        full = small.d == self.setup.d or h < min(small.h, d)
        return 0 if full else min(small.h, small.d) // KEPT

    def shares(self, values: np.ndarray, small: Setup) -> np.ndarray:
        """Values on the law's nodes for a copy: the last as they are, else means."""
        assert self.law is not None
        full, kept = equal_shares(self.law, values, self.setup.d), self.kept(small)
        split = self.setup.d - kept
        order = SpectralMeasure.of_eigenvalues(np.arange(split))
        means = equal_shares(order, full[:split], small.d - kept)
        return np.append(means, full[split:])

    def cost(self, small: Setup) -> float:
        """Operations of one evaluation of the flow."""
        h, d = self.shape(small)
        return (2.0 * d**3 if h >= d else 8.0 * h * h * d) + MEMORY * h * d

    def run(self, share: float, budget: float) -> _Runs:
        """Copies of whole sizes, in the numbers that keep the ratios on average."""
        small = smaller(self.setup, share)
        work = self.evaluations * self.cost(small)
        work += 0 if self.law else DRAW * min(small.n, small.d) ** 3
        count = int(np.clip(budget / work, FEWEST, MOST))
        groups = neighbours(self.setup, small.d, self.law is None)
        parts = [
            self.draw(sizes, max(2, round(weight * count)), len(groups) == 1)
            for weight, sizes in groups
        ]
        weights = [weight for weight, _ in groups]
        means = [losses.mean(0) for losses, _ in parts]
        mean = np.average(means, 0, weights)
        moved = [x + (mean - m) for (x, _), m in zip(parts, means, strict=True)]
        errors = np.concatenate([errors for _, errors in parts]).mean(0)
        first = None
        if self.times[0] == 0:
            first = np.average([self.first(sizes) for _, sizes in groups], 0, weights)
        return _Runs(small, np.concatenate(moved), errors, first, len(groups))

    def draw(self, small: Setup, count: int, stop: bool) -> np.ndarray:
        """Losses and errors (2, copies, 2, T) of so many copies, or of fewer if their
        means are sure before that."""
        rng = np.random.default_rng([SEED, small.d, small.h, small.n])
        size, blocks = max(1, BLOCK // int(np.prod(self.shape(small)))), []
        for done in range(0, count, size):
            blocks.append(self.block(small, min(size, count - done), rng))
            if stop and done + size >= ENOUGH:
                losses = np.concatenate(blocks, 1)[0]
                error = losses.std(0, ddof=1).max(1) / len(losses) ** 0.5
                if (error < SETTLED * losses[:, :, 0].mean(0)).all():
                    break
        return np.concatenate(blocks, 1)

    def first(self, small: Setup) -> np.ndarray:
        """The expected losses (2,) over d at time 0."""
        S = np.ones(1) if self.law is None else self.spectrum(small, None)
        P, seen = self.reading(small, S)
        train = float(seen.mean()) if seen is not None else S.mean()
        population = 1.0 if P is None else float(P.trace()) / small.d
        whole = first_loss(small, float(self.target)) / 2
        return whole * np.array([train, population])

    def block(self, small: Setup, count: int, rng: np.random.Generator) -> np.ndarray:
        """Losses and errors (2, copies, 2, T) over d of so many copies at once."""
        h, d = self.shape(small)
        S = np.stack([self.spectrum(small, rng) for _ in range(count)])
        W = np.stack([self.weights(small, rng) for _ in range(count)])
        W *= np.sqrt(small.sigma2)
        problem = FlowProblem(d, d, S=torch.as_tensor(S[:, -d:]), target=self.target)
        P, seen = self.reading(small, S[0])
        problem.P = None if P is None else P[-d:, -d:]
        problem.seen = None if seen is None else seen[-d:]
        form = "gram" if h >= d and self.rule is None else "covariance"
        how = form, self.rule, 1e-4, 1e-6
        found = run(torch.as_tensor(W), problem, self.times, *how)
        if not np.isfinite(found.train).all():
            raise ValueError(f"rule: copies diverge with {self.rule}; lower its lr")
        population = found.population
        if h < min(small.h, d):
            population = population + _rest(small, W, self.target, rng)[:, None]
        elif self.target:  # inputs that neither data nor latents see
            mass = small.d - d if P is None else float(P[:-d, :-d].trace())
            population = population + mass / 2
        off = (found.train_error, found.population_error)
        return np.array([(found.train, population), off]).swapaxes(1, 2) / small.d

    def spectrum(self, small: Setup, rng: np.random.Generator | None) -> np.ndarray:
        """The eigenvalues of one S, ascending; a given law needs no draw."""
        if self.law is not None:
            return self.shares(self.law.nodes, small)
        assert rng is not None
        X = gaussian_factor(small.d, small.n, rng)
        values = np.linalg.eigvalsh(X.T @ X)[::-1] / small.n
        return np.pad(np.maximum(values, 0.0), (0, small.d - len(values)))[::-1].copy()

    def weights(self, small: Setup, rng: np.random.Generator) -> np.ndarray:
        """Standard normal weights up to a rotation of the latents and, block by block,
        of the inputs that S does not see."""
        h, d = self.shape(small)
        if d == small.d:
            return gaussian_factor(d, small.h, rng).T[:, ::-1].copy()
        if h == min(small.h, d):
            unseen = gaussian_factor(h, small.d - d + h, rng)
            return np.hstack([unseen, rng.standard_normal((h, d - h))])
        r = h // LEVELS
        W = np.zeros((h, d))
        for j in range(LEVELS):
            rows, here, next_ = (slice(i * r, (i + 1) * r) for i in (j, j, j + 1))
            W[rows, here] = gaussian_factor(r, small.h - j * r, rng).T
            W[rows, next_] = gaussian_factor(r, small.d - (j + 1) * r, rng)
        return W[:, ::-1].copy()  # the samples' inputs last, as the eigenvalues are

    def reading(
        self, small: Setup, S: np.ndarray
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The population's covariance, of a smaller copy its diagonal; and what the
        training loss is read with, where directions differ in mass."""
        P, seen = self.population, None
        if self.law is not None and small.d < self.setup.d:
            kept, full = self.kept(small), self.setup.d
            mass = np.full(small.d, (full - kept) / full * small.d / (small.d - kept))
            mass[small.d - kept :] = small.d / full
            if P is not None or kept:
                seen_by = 1.0 if P is None else self.shares(np.diag(P), small)
                P = np.diag(mass * seen_by)
            seen = torch.as_tensor(mass * S) if kept else None
        return None if P is None else torch.as_tensor(P), seen


def _rest(
    setup: Setup, W: np.ndarray, target: bool, rng: np.random.Generator
) -> np.ndarray:
    """What the inputs beyond the levels that are kept add to each population loss.

    They hardly move: it is the loss at the start, in mean and scatter, less that of W.
    """
    goal, (rho, kappa, _) = float(target), setup.ratios
    noise = rho * (1 + rho + kappa) * np.sqrt(2 / (setup.h * setup.d))
    B = W.transpose(0, 2, 1) @ W - goal * np.eye(W.shape[2])
    kept = (B**2).sum((1, 2)).mean() / 2
    start = first_loss(setup, goal) / 2
    return setup.d * (start + noise * rng.standard_normal(len(W))) - kept
