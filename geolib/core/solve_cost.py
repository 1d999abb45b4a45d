r"""Which way of solving is the cheapest: an estimate from shapes alone.

Costs are in multiply-adds of a large matrix product. The weights say how much slower
other work is on the machines measured (factorising, moving memory, calling Python);
only their rough ratios matter, because the methods differ by factors, not per cents,
almost everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geolib.core.jacobian_factors import by_positions

# All constants are in multiply-adds of a large matrix product, measured in float32 with
# OpenBLAS and MKL on the x86 machines of benchmarks/machine.py by timing each kind of
# work alone and dividing by the time of a multiply-add. See :eq:`drv-core-cost`.
# a multiply-add of the factorisation; an entry of the matrix
CHOLESKY_COST = (2.3, 370.0)
GRAM_OPERATION = 1.25  # a multiply-add of K's layer Grams, which are products of strips
GRAM_ENTRY = 240.0  # an entry of K: fetched, added to and mirrored, layer after layer
MOVE = 40.0  # reading or writing one number in a long sweep through memory
SWEEP = 20.0  # one number of a matrix that is multiplied by a single vector
CALL = 1.0e6  # one operation of the framework, however small: Python and dispatch
GPU_CALL = 2.0e9  # the same on a GPU, whose multiply-adds are 2000 times faster

# What may be risked: shares of a direct solve's cost, and sizes of samples.
PROBE = 0.2  # share of a direct solve's cost that may be spent on finding a better way
SAMPLE = 256  # rows of A, at most, whose Gram matrix tells about the spectrum
COUNTS = (128, 256, 512, 1024)  # numbers of rows a Nystrom sample may have

# Iterations taken over Chebyshev's bound on them, as measured on the points of
# benchmarks/bench_core_solve.py: the bound knows only the spectrum's ends, so plain CG
# needs about half of it; behind the preconditioner what is left is flat, and it is met.
CG_FACTOR, NYSTROM_FACTOR = 0.5, 1.0


@dataclass(frozen=True)
class ProblemSize:
    """The sizes that the estimate is made from.

    Attributes:
        p, n, o, r: parameters, samples, outputs and roots for each sample.
        layers: (groups, positions, fan-in, fan-out) of each use of a linear layer.
        loose: number of parameters outside those layers.
        batches: whether the samples come in more than one batch.
        call: the cost of one operation of the framework, `GPU_CALL` on a GPU.
    """

    p: int
    n: int
    o: int
    r: int
    layers: tuple[tuple[int, int, int, int], ...] = ()
    loose: int = 0
    batches: bool = False
    call: float = CALL

    @property
    def m(self) -> int:
        """Number of rows of A."""
        return self.n * self.r

    @property
    def sample(self) -> int:
        """Number of samples whose rows tell about the spectrum."""
        return max(1, min(self.n, min(SAMPLE, self.m // 8) // self.r))

    @property
    def forward(self) -> float:
        """One pass through the layers for all samples."""
        layers = sum(g * t * d * a for g, t, d, a in self.layers)
        return self.n * (layers + self.loose) + self.call * (5 + 4 * len(self.layers))

    def factor(self) -> float:
        """Building the factored rows."""
        pulls = self.forward * self.r * (0.5 + 3.0 * bool(self.loose))
        numbers = sum(g * t * (d + self.r * a) for g, t, d, a in self.layers)
        return 2 * pulls + MOVE * (self.n * numbers + self.m * self.loose)

    def gram(self, left: float, right: float) -> float:
        """A B^T for `left` and `right` rows."""
        total, r = left * right * self.loose, self.r
        for g, t, d, a in self.layers:
            if t == 1 or by_positions(r, t, d, a):
                total += g * left * right * t**2 * (a + d / r**2 + 2 * MOVE)
            else:
                total += g * d * a * (left * right + t * (left + right))
        return GRAM_OPERATION * total + self.call * 6 * len(self.layers)

    def kernel(self) -> float:
        """Forming K, factorising it, solving and refining."""
        m = float(self.m)
        gram = self.gram(m, m) / 2 + GRAM_ENTRY * m * m
        return self.factor() + gram + cholesky_cost(m) + self.forward

    def cholesky(self) -> float:
        """Forming G, factorising it and solving."""
        p, m = float(self.p), float(self.m)
        form = m * p * p + 4 * MOVE * m * p
        return self.factor() + form + cholesky_cost(p)

    def product(self) -> float:
        """One product with G, the way that is taken."""
        return self.product_by_rows() if by_rows(self) else self.product_by_graph()

    def product_by_rows(self) -> float:
        """A^T (A v) by the factored rows."""
        layers = sum(g * t * d * a for g, t, d, a in self.layers)
        pulled = sum(g * t * a for g, t, d, a in self.layers)
        moved = 2 * self.m * (pulled + self.loose) + 8 * self.p
        calls = self.call * (4 + 8 * len(self.layers))
        return 2 * self.n * layers + MOVE * moved + calls

    def product_by_graph(self) -> float:
        """J^T M J v by automatic differentiation."""
        return 3 * self.forward + MOVE * 10 * self.p + self.call * 12 * len(self.layers)

    def nystrom(self, k: int) -> float:
        """Setting up the preconditioner that k rows of A give."""
        m = float(self.m)
        passes = 2 if self.batches else 1
        return passes * self.factor() + self.gram(m, k) + m * k * (2 * k + MOVE) + k**3

    def nystrom_step(self, k: int, formed: bool) -> float:
        """One iteration with them, with K formed before or not."""
        m = float(self.m)
        apart = self.product() * (1.4 if self.batches else 1.0)
        return (SWEEP * m * m if formed else apart) + SWEEP * 2 * k * m + self.call * 12


def cholesky_cost(side: float) -> float:
    """Cholesky's factorisation, solving with it twice and a few products."""
    slope, area = CHOLESKY_COST
    return slope * side**3 / 6 + (area + 8 * SWEEP) * side**2


LARGEST = 1 << 29  # numbers that one matrix may hold: 4 GiB in float64


def by_rows(problem: ProblemSize, steps: float = math.inf) -> bool:
    """Whether `steps` products by the factored rows fit in memory and are cheaper."""
    numbers = sum(g * t * (d + problem.r * a) for g, t, d, a in problem.layers)
    size = problem.n * numbers + problem.m * problem.loose
    if problem.batches or size > LARGEST:
        return False
    saved = problem.product_by_graph() - problem.product_by_rows()
    return saved > 0 and steps * saved > problem.factor()


def feasible(problem: ProblemSize, method: str) -> bool:
    """Whether the matrix of a direct method fits in memory."""
    side = problem.p if method == "cholesky" else problem.m
    return side**2 + problem.m * problem.loose <= LARGEST


def direct_method(problem: ProblemSize) -> tuple[str, float]:
    """The cheaper of the two direct methods and its cost."""
    kernel, dense = problem.kernel(), problem.cholesky()
    return ("woodbury", kernel) if kernel <= dense else ("cholesky", dense)


@dataclass(frozen=True)
class Plan:
    """How to solve.

    Attributes:
        method: of `Metric.solve`.
        cost: of all of it, and `step` of one iteration (0 for a direct method).
        rows: size of the Nystrom sample.
        formed: whether K is formed, so that products with it are its own.
    """

    method: str
    cost: float
    step: float = 0.0
    rows: int = 0
    formed: bool = False


def nystrom_plan(problem: ProblemSize, k: int, steps: float) -> Plan:
    """Nystrom with k rows and so many iterations; K is formed if that pays."""
    m, setup = float(problem.m), problem.nystrom(k)
    step = problem.nystrom_step(k, False)
    apart = Plan("nystrom", setup + steps * step, step, k)
    if problem.batches or not feasible(problem, "woodbury"):
        return apart
    step = problem.nystrom_step(k, True)
    gram = problem.gram(m, m) / 2 + GRAM_ENTRY * m**2
    formed = Plan("nystrom", setup + gram + steps * step, step, k, True)
    return min(apart, formed, key=lambda one: one.cost)


def should_sample_spectrum(problem: ProblemSize, damping: float) -> bool:
    """Whether iterations can pay, so that the spectrum should be looked at.

    Without damping they find the pseudo-inverse only for a g in G's range, so they
    are the last resort then, and plain ones.
    """
    method, cost = direct_method(problem)
    if damping == 0:
        return False
    rows = float(problem.sample * problem.r)
    look = problem.factor() + problem.gram(rows, rows) + 10 * rows**3 + 8 * problem.call
    return not feasible(problem, method) or look < PROBE * cost


def plan(
    problem: ProblemSize, damping: float, tol: float, values: list[float], least: float
) -> Plan:
    """The cheapest way, given what a sample says about the spectrum of K.

    Of a Nystrom sample of k rows it is taken that it settles the k/2 largest eigenvalues.

    Args:
        problem, damping, tol: of the solve.
        values: estimates of the largest eigenvalues, in descending order.
        least: of the least one.
    """
    method, cost = direct_method(problem)
    found = [Plan(method, cost)] if feasible(problem, method) else []
    floor = damping + least
    steps, product = CG_FACTOR * iterations(values[0] / floor, tol), problem.product()
    found.append(Plan("cg", steps * product, product))
    for k in COUNTS:
        if k <= problem.m // 2 and k * problem.m <= LARGEST:
            left = values[min(k // 2, len(values) // 2)]
            steps = NYSTROM_FACTOR * iterations(left / floor, tol)
            found.append(nystrom_plan(problem, k, steps))
    return min(found, key=lambda one: one.cost)


def iterations(spread: float, tol: float) -> float:
    """Chebyshev's bound for conjugate gradients on a spectrum from 1 to 1 + spread.

    Source: :eq:`drv-core-chebyshev` (derivations).
    """
    return 2 + 0.5 * math.sqrt(1 + max(spread, 0.0)) * math.log(2 / tol)


class IterationBudget:
    """Stops conjugate gradients when a direct solve is forecast to be cheaper.

    The forecast extends the mean rate at which the residual has shrunk so far. It is
    not made before a share PROBE of that solve's cost is spent: the first iterations
    often shrink nothing.

    Args:
        problem: what is solved.
        tol: the residual to reach.
        step: the cost of an iteration.
    """

    def __init__(self, problem: ProblemSize, tol: float, step: float) -> None:
        method, self.budget = direct_method(problem)
        self.budget = self.budget if feasible(problem, method) else math.inf
        self.step, self.tol = step, tol

    def __call__(self, steps: int, residual: float) -> bool:
        """Whether to go on after `steps` iterations with that relative residual."""
        if steps * self.step < PROBE * self.budget or steps % 4:
            return True
        left, goal = (math.log(max(r, 1e-300)) for r in (residual, self.tol))
        shrunk, missing = max(-left, 1e-9), max(left - goal, 0.0)
        ahead = steps * missing / shrunk
        return ahead * self.step < self.budget
