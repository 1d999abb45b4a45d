"""The zoo: models with known learning coefficients, strata and waiting times, in one table.

Each published coefficient stands beside an integral that is exact to rounding and, where the
ideal is one of monomials, a polyhedron (`geolib sweep zoo`).

In the regression models the output weights have a standard normal prior and the truth
is zero, so they can be integrated out: with N outputs of covariance G(a) in the other
weights a, Z(n) = E_a det(I + n G(a))^(-N/2). The Boltzmann machine and the hidden Markov
model have flat priors and exact divergences. At most four dimensions are left, on
logarithmic axes, and evidences can be had up to n = 10^30.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
import torch
import zoo_dynamics
from evidence import divergence_from_null, evidence_curve, log_axis
from scipy.optimize import linprog
from scipy.special import logsumexp

DATA = 10_000  # of the sampler, which is at n beta = DATA/log DATA
NEAR = DATA / math.log(DATA) * np.array([0.99, 1.01])
SIZES = np.concatenate([np.logspace(10, 30, 21), NEAR])


@dataclass(frozen=True)
class Case:
    """A model with its published coefficient, and log Z(n) at the sizes n.

    Where its divergence is equivalent to a sum of squares of monomials, `polyhedron` is
    the coefficient by their Newton polyhedron.
    """

    name: str
    known: float
    multiplicity: int
    log_z: np.ndarray
    polyhedron: float | None = None
    family: str = ""
    source: str = ""
    sizes: np.ndarray = field(default_factory=lambda: SIZES)

    @property
    def measured(self) -> float:
        """The slope of log Z in log n, the known power of log n being divided out."""
        x = np.log(self.sizes[:-2])
        y = self.log_z[:-2] - (self.multiplicity - 1) * np.log(x)
        # 1/log n is the next term of an expansion with a logarithm
        terms = [np.ones_like(x), -x]
        if self.multiplicity > 1:
            terms.append(1 / x)
        return float(np.linalg.lstsq(np.stack(terms, 1), y, rcond=None)[0][1])

    @property
    def local(self) -> float:
        """What the coefficient is at the sampler's n beta: the slope there."""
        return float(-np.diff(self.log_z[-2:])[0] / np.diff(np.log(NEAR))[0])


def log_nodes(high: float, count: int, low: float = 1e-36) -> tuple[np.ndarray, ...]:
    """Nodes of (0, high], even in the logarithm, and the logs of their masses."""
    u = np.linspace(math.log(low), math.log(high), count)
    mass = u + math.log(u[1] - u[0])
    mass[[0, -1]] -= math.log(2)
    return u, mass


def newton(exponents: Sequence[Sequence[int]]) -> float:
    """The coefficient of a sum of squares of monomials, by a linear program.

    Half of 1/tau for the least tau with (tau, ..., tau) in the polyhedron.
    """
    E = np.array(exponents, dtype=float)  # one row a monomial
    columns = np.concatenate([E.T, -np.ones((E.shape[1], 1))], 1)
    cost, ones = np.eye(len(E) + 1)[-1], np.ones((1, len(E) + 1))
    ones[0, -1] = 0
    found = linprog(cost, columns, np.zeros(E.shape[1]), ones, [1.0])
    return 1 / (2 * float(found.x[-1]))


def reduced_rank(M: int, N: int, H: int) -> tuple[float, int]:
    """Aoyagi and Watanabe's coefficient for y = BAx of true rank zero."""
    if M + H < N:
        return H * M / 2, 1
    if N + H < M:
        return H * N / 2, 1
    if M + N < H:
        return M * N / 2, 1
    odd = (M + N + H) % 2
    square = -(H**2) - M**2 - N**2 + 2 * (H * M + H * N + M * N)
    return (square + odd) / 8, 1 + odd


def wishart_evidence(M: int, N: int, H: int, count: int) -> np.ndarray:
    """log Z(n) for y = BAx, by the density of the eigenvalues of A A^T."""
    small, large = sorted((M, H))
    u, mass = log_nodes(80.0, count)
    grids = np.meshgrid(*[u] * small, indexing="ij")
    log_p = sum(
        np.meshgrid(*[mass] * small, indexing="ij"),
        sum((large - small - 1) / 2 * g - np.exp(g) / 2 for g in grids),
    )
    with np.errstate(divide="ignore"):
        for i in range(small):
            for j in range(i):
                log_p = log_p + np.log(np.abs(np.exp(grids[i]) - np.exp(grids[j])))
    log_p = log_p - logsumexp(log_p)
    return np.array(
        [
            logsumexp(log_p - N / 2 * sum(np.log1p(n * np.exp(g)) for g in grids))
            for n in SIZES
        ]
    )


def product_evidence(dims: Sequence[int], count: int) -> np.ndarray:
    """log Z(n) for a product of norms: the tensor of outer product of normal vectors."""
    *rest, last = dims
    log_r, log_p = np.zeros(1), np.zeros(1)
    for d in rest:  # |a|^2 is chi-square with d degrees of freedom
        u, mass = log_nodes(80.0, count)
        log_r = (log_r[:, None] + u).ravel()
        log_p = (log_p[:, None] + mass + d / 2 * u - np.exp(u) / 2 - u).ravel()
    log_p = log_p - logsumexp(log_p)
    return np.array(
        [
            logsumexp(log_p - last / 2 * np.logaddexp(0, np.log(n) + log_r))
            for n in SIZES
        ]
    )


def odd_units_evidence(count: int) -> np.ndarray:
    """log Z(n) for two units b_1 s(a_1 x) + b_2 s(a_2 x) with s(t) = t + t^3.

    In orthonormal x and x^3 the covariance is that of (a, a^3). By symmetry
    0 < a_2 = r a_1 with a flat prior, r near 0 and near 1 on logarithmic nodes.
    """
    u, mass = log_nodes(1.0, count, 1e-20)
    v, near = log_nodes(0.5, count, 1e-20)
    log_r = np.concatenate([v, np.log1p(-np.exp(v))])
    gap = np.concatenate([np.log1p(-np.exp(2 * v)), v + np.log(2 - np.exp(v))])
    log_p = (2 * u + mass - u)[:, None] + np.concatenate([near, near])
    log_p = log_p - logsumexp(log_p)
    a = u[:, None]
    trace = np.exp(2 * a) * (1 + np.exp(2 * log_r))
    trace = trace + np.exp(6 * a) * (1 + np.exp(6 * log_r))
    log_det = 2 * (4 * a + log_r + gap)  # (a_1 a_2 (a_1^2 - a_2^2))^2
    return np.array(
        [
            logsumexp(
                log_p - np.logaddexp(np.log1p(n * trace), 2 * np.log(n) + log_det) / 2
            )
            for n in SIZES
        ]
    )


def divergence(r: np.ndarray) -> np.ndarray:
    """KL(q || q (1 + r)) for the values r that q takes alike, along the first axis."""
    series = r * r * (0.5 - r * (1 / 3 - r / 4))
    return np.where(np.abs(r) < 1e-4, series, r - np.log1p(r)).mean(0)


def flat_evidence(K: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """log Z(n) of divergences at nodes with these log masses."""
    log_p = (log_p + 0 * K).ravel()
    log_p, K = log_p - logsumexp(log_p), K.ravel()
    return np.array([logsumexp(log_p - n * K) for n in SIZES])


def boltzmann_evidence(M: int, count: int) -> np.ndarray:
    """log Z(n) for M = 2 or 3 visible spins and a hidden one without biases, truth 0.

    p(x) = 2^-M (1 + sum of t_i t_j x_i x_j) with t = tanh w, of which 0 < t < 0.9 is
    enough: a change of signs permutes the states.
    """
    u, mass = log_nodes(0.9, count, 1e-17)
    t = np.meshgrid(*[np.exp(u)] * M, indexing="ij")
    log_p = sum(np.meshgrid(*[mass] * M, indexing="ij"))
    signs = (
        [(1,), (-1,)] if M == 2 else [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
    )
    pairs = list(combinations(range(M), 2))
    r = [
        sum(s * t[i] * t[j] for s, (i, j) in zip(row, pairs, strict=True))
        for row in signs
    ]
    return flat_evidence(divergence(np.stack(r)), log_p)


def markov_excess(
    mean: np.ndarray, gap: np.ndarray, share: np.ndarray, memory: np.ndarray
) -> np.ndarray:
    """8 p(x) - 1 for three signs of a stationary two-state chain, the 8 words first.

    The states emit signs of mean s_1 and s_2 = s_1 - gap; `share` is the stationary law
    of state 1, `memory` the second eigenvalue of the transitions, `mean` that of a sign.
    Deviations from a fair coin are carried, not probabilities, so none cancels.
    """
    law = np.stack(np.broadcast_arrays(share, 1 - share))
    s = np.stack(np.broadcast_arrays(mean + (1 - share) * gap, mean - share * gap))
    words = []
    for word in product((1, -1), repeat=3):
        excess = 0 * law
        for x in word:
            moved = memory * excess + (1 - memory) * law * excess.sum(0)
            excess = moved + x * s * (law + moved)
        words.append(excess.sum(0))
    return np.stack(words)


def markov_evidence(count: int) -> np.ndarray:
    """log Z(n) for a two-state hidden Markov chain of signs when the truth is a coin."""
    u, mass = log_nodes(0.2, count, 1e-17)
    v, wide = log_nodes(0.6, count, 1e-12)
    nodes, shares = np.polynomial.legendre.leggauss(6)
    even = (nodes + 1) / 2
    mean, gap, share, memory = np.meshgrid(
        np.concatenate([-np.exp(u), np.exp(u)]), np.exp(v), even, 0.8 * even,
        indexing="ij", sparse=True,
    )  # fmt: skip
    log_p = np.concatenate([mass, mass])[:, None, None, None]
    log_p = log_p + wide[None, :, None, None]
    log_p = log_p + np.log(shares)[:, None] + np.log(shares)
    return flat_evidence(divergence(markov_excess(mean, gap, share, memory)), log_p)


def relu_units_evidence(count: int) -> np.ndarray:
    """log Z(n) for two units b_1 relu(a_1 x) + b_2 relu(a_2 x) of one input.

    Units of one sign of a are one function of x, and share the covariance a_i a_j/2;
    those of opposite signs have none in common. Each happens for half of all a.
    """
    u, mass = log_nodes(80.0, count)

    def mean(degrees: int, n: float) -> float:
        """log E(1 + n r/2)^(-1/2) for r chi-square."""
        log_p = mass + degrees / 2 * u - np.exp(u) / 2 - u
        return logsumexp(
            log_p - logsumexp(log_p) - np.logaddexp(0, np.log(n / 2) + u) / 2
        )

    return np.array(
        [np.logaddexp(mean(2, n), 2 * mean(1, n)) for n in SIZES]
    ) - math.log(2)


def mixture_cases(count: int) -> Iterator[Case]:
    """Both mixtures of the chapter at N(0, 1), with their exact divergences."""
    n, near = torch.logspace(6, 12, 13, dtype=torch.float64), torch.tensor(NEAR)
    n = torch.cat([n, near])
    w, log_w = log_axis(1.0, 2 * count)
    mu, log_mu = log_axis(3.0, 2 * count)
    theta = torch.cartesian_prod(w, mu)
    a, c = theta.unbind(1)
    K = divergence_from_null(torch.stack([1 - a, a, 0 * a, c], 1))
    curve = evidence_curve(K, (log_w[:, None] + log_mu).flatten(), n)
    how = {"family": "mixture", "sizes": n.numpy()}
    yield Case("mixture A", 1 / 2, 2, curve.log_z.numpy(), newton([[1, 1]]),
               source="Yamazaki, Watanabe 2003; proof on the page", **how)  # fmt: skip
    b, log_b = log_axis(3.0, count // 2, 1e-7)
    d, log_d = log_axis(6.0, count // 2, 1e-5)
    w = (torch.arange(12, dtype=torch.float64) + 0.5) / 12
    a, b, d = torch.cartesian_prod(w, torch.cat([-b, b]), d).unbind(1)
    K = divergence_from_null(torch.stack([1 - a, a, b - a * d, b + (1 - a) * d], 1))
    mass = (0 * w)[:, None, None] + torch.cat([log_b, log_b])[:, None] + log_d
    n = torch.cat([n[:7], near])
    curve = evidence_curve(K, mass.flatten(), n)
    how["sizes"] = n.numpy()
    yield Case("mixture B", 3 / 4, 1, curve.log_z.numpy(), newton([[1, 0], [0, 2]]),
               source="Yamazaki, Watanabe 2003; proof on the page", **how)  # fmt: skip


def outer(dims: Sequence[int]) -> list[np.ndarray]:
    """The exponents of the entries of an outer product of vectors."""
    unit = [np.eye(d, dtype=int) for d in dims]
    return [np.concatenate(rows) for rows in product(*unit)]


AOYAGI = "Aoyagi, Watanabe 2005"


def cases(count: int = 240) -> Iterator[Case]:
    """Every model of the zoo."""
    for M in (1, 2, 3):
        for N in (1, 2, 3, 4):
            for H in (1, 2):
                known = reduced_rank(M, N, H)
                name = f"reduced rank {M} -> {H} -> {N}"
                one = newton(outer((M, N))) if H == 1 else None
                yield Case(
                    name, *known, wishart_evidence(M, N, H, count), one,
                    family="reduced rank, matrix factorisation", source=AOYAGI,
                )  # fmt: skip
    shapes = ((1, 1), (2, 2), (2, 3), (1, 2, 3), (2, 2, 3), (1, 1, 1), (2, 2, 2))
    for dims in (*shapes, (1, 1, 1, 1)):
        deep = set(dims) == {1}
        known = min(dims) / 2, dims.count(min(dims))
        name = f"rank-one tensor {' x '.join(map(str, dims))}"
        yield Case(
            f"deep linear, {len(dims)} scalars" if deep else name, *known,
            product_evidence(dims, count if len(dims) < 4 else count // 2),
            newton(outer(dims)), "deep linear network" if deep else "tensor factorisation",
            "Watanabe 2009: a monomial",
        )  # fmt: skip
    yield Case("two odd units (tanh)", 2 / 3, 1, odd_units_evidence(count),
               family="tanh network", source="Watanabe 2009")  # fmt: skip
    yield Case("two ReLU units, one input", 1 / 2, 1, relu_units_evidence(count),
               family="ReLU network", source=f"{AOYAGI}, on each orthant")  # fmt: skip
    for M, *known in ((2, 1 / 2, 2), (3, 3 / 4, 1)):
        squares = [
            [int(k in pair) for k in range(M)] for pair in combinations(range(M), 2)
        ]
        evidence = boltzmann_evidence(M, count // 2)
        yield Case(f"Boltzmann machine {M} x 1", *known, evidence, newton(squares),
                   "Boltzmann machine", "Yamazaki, Watanabe 2005")  # fmt: skip
    # the mean of a sign, and the covariance of neighbours: share, memory, gap squared
    chain = newton([[1, 0], [0, 2]])
    yield Case("hidden Markov, 2 states", 3 / 4, 1, markov_evidence(2 * count // 3), chain,
               "hidden Markov model", "as mixture B, by the same ideal")  # fmt: skip
    yield from mixture_cases(count // 2)


EMPTY = {
    "algebra": "the ideal is no set of monomials",
    "plateau": "ranks and waits are those of the largest model of the family",
    "mixture A": "no plateau: on the line mu = 0 the loss has a slope, at w = 0 it traps",
}


def table(count: int = 160) -> Iterator[dict]:
    """A row a model: strata and ranks, waiting times, coefficients three ways."""
    ranks: dict[str, list[tuple[str, int, int]]] = {}
    for name, *rest in zoo_dynamics.ranks():
        ranks.setdefault(name, []).append(tuple(rest))
    waits = {w.name: w for w in zoo_dynamics.plateaus()}
    for c in cases(count):
        strata, wait = ranks.get(c.name, []), waits.get(c.name)
        why = [EMPTY["algebra"]] * (c.polyhedron is None)
        why += [EMPTY.get(c.name, EMPTY["plateau"])] * (wait is None)
        yield {
            "family": c.family, "model": c.name, "strata": "; ".join(s for s, *_ in strata),
            "rank, theory": ", ".join(str(r) for _, r, _ in strata),
            "rank, measured": ", ".join(str(r) for *_, r in strata),
            "wait": {"log": "log(1/d)", "power": "power of 1/d"}[wait.law] if wait else "",
            "wait, theory": wait and wait.expected, "wait, measured": wait and wait.measured,
            "lambda": c.known, "m": c.multiplicity, "integral": c.measured,
            "algebra": c.polyhedron, "at n": c.local, "source": c.source,
            "empty because": "; ".join(why),
        }  # fmt: skip
