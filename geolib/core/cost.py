r"""Which way of solving is the cheapest: an estimate from shapes alone.

Costs are in multiply-adds of a large matrix product. The weights say how much slower
other work is on the machines measured (factorising, moving memory, calling Python);
only their rough ratios matter, because the methods differ by factors, not per cents,
almost everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geolib.core.rows import by_positions

FACTORISE = 2.6  # Cholesky, for each of its operations
MOVE = 40.0  # reading or writing one number in a long sweep
CALL = 1.0e6  # one operation of the framework, however small
EAGER = 12  # iterations of conjugate gradients before their first forecast
PROBE = 0.25  # share of the direct cost that those may waste


@dataclass(frozen=True)
class Problem:
    """What the estimate is made from.

    Attributes:
        p, n, o, r: parameters, samples, outputs and roots for each sample.
        layers: (groups, positions, fan-in, fan-out) of each use of a linear layer.
        loose: number of parameters outside those layers.
        batches: whether the samples come in more than one batch.
    """

    p: int
    n: int
    o: int
    r: int
    layers: tuple[tuple[int, int, int, int], ...] = ()
    loose: int = 0
    batches: bool = False

    @property
    def m(self) -> int:
        """Number of rows of A."""
        return self.n * self.r

    @property
    def forward(self) -> float:
        """One pass through the layers for all samples."""
        layers = sum(g * t * d * a for g, t, d, a in self.layers)
        return self.n * (layers + self.loose) + CALL * (5 + 4 * len(self.layers))

    def factor(self) -> float:
        """Building the factored rows."""
        pulls = self.forward * self.r * (0.5 + 3.0 * bool(self.loose))
        numbers = sum(g * t * (d + self.r * a) for g, t, d, a in self.layers)
        return pulls + MOVE * (self.n * numbers + self.m * self.loose)

    def kernel(self) -> float:
        """Forming K, factorising it, solving and refining."""
        m, n = float(self.m), float(self.n)
        total = 0.0
        for g, t, d, a in self.layers:
            if t == 1:
                total += g * (m * m * a + n * n * d) / 2 + 2 * MOVE * m * m / 2
            elif by_positions(self.r, t, d, a):
                pairs = (n * t) ** 2 * d + (m * t) ** 2 * (a + 2 * MOVE)
                total += g * pairs / 2
            else:
                total += g * (m * t * d * a + m * m * d * a / 2)
        total += m * m * self.loose / 2
        total += FACTORISE * m**3 / 6 + 4 * MOVE * m * m
        return self.factor() + total + self.forward + CALL * 12 * len(self.layers)

    def cholesky(self) -> float:
        """Forming G, factorising it and solving."""
        p, m = float(self.p), float(self.m)
        form = m * p * p + 4 * MOVE * m * p
        return self.factor() + form + FACTORISE * p**3 / 6 + 4 * MOVE * p * p

    def product(self) -> float:
        """One product with G, the way that is taken."""
        return self.product_by_rows() if by_rows(self) else self.product_by_graph()

    def product_by_rows(self) -> float:
        """A^T (A v) by the factored rows."""
        layers = sum(g * t * d * a for g, t, d, a in self.layers)
        pulled = sum(g * t * a for g, t, d, a in self.layers)
        moved = 2 * self.m * (pulled + self.loose) + 8 * self.p
        return 2 * self.n * layers + MOVE * moved + CALL * (4 + 8 * len(self.layers))

    def product_by_graph(self) -> float:
        """J^T M J v by automatic differentiation."""
        return 3 * self.forward + MOVE * 10 * self.p + CALL * 12 * len(self.layers)


LARGEST = 1 << 29  # numbers that one matrix may hold


def by_rows(problem: Problem) -> bool:
    """Whether products by the factored rows fit in memory and are cheaper."""
    numbers = sum(g * t * (d + problem.r * a) for g, t, d, a in problem.layers)
    size = problem.n * numbers + problem.m * problem.loose
    if problem.batches or size > LARGEST:
        return False
    return problem.product_by_rows() < problem.product_by_graph()


def feasible(problem: Problem, method: str) -> bool:
    """Whether the matrix of a direct method fits in memory."""
    side = problem.p if method == "cholesky" else problem.m
    return side**2 + problem.m * problem.loose <= LARGEST


def direct_method(problem: Problem) -> tuple[str, float]:
    """The cheaper of the two direct methods and its cost."""
    kernel, dense = problem.kernel(), problem.cholesky()
    return ("kernel", kernel) if kernel <= dense else ("cholesky", dense)


def worth_a_try(problem: Problem, damping: float) -> bool:
    """Whether a few iterations cost little beside the best direct method.

    Without damping they find the pseudo-inverse only for a g in G's range, so they
    are the last resort then.
    """
    if not feasible(problem, direct_method(problem)[0]):
        return True
    return damping > 0 and EAGER * problem.product() < PROBE * direct_method(problem)[1]


class Patience:
    """Stops conjugate gradients when a direct solve is forecast to be cheaper.

    The forecast extends the mean rate at which the residual has shrunk so far.
    """

    def __init__(self, problem: Problem, tol: float) -> None:
        self.budget = direct_method(problem)[1]
        self.product = problem.product()
        self.tol = tol

    def __call__(self, steps: int, residual: float) -> bool:
        """Whether to go on after `steps` iterations with that relative residual."""
        if steps < EAGER or steps % 4:
            return True
        shrunk = math.log(max(1 / residual, 1 + 1e-9))
        missing = math.log(max(residual / self.tol, 1.0))
        ahead = steps * missing / shrunk
        return ahead * self.product < self.budget
