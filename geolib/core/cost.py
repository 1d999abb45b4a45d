"""Which way of solving is the cheapest: an estimate from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What the estimate is made from: p parameters, n samples, o outputs, rank r."""

    p: int
    n: int
    o: int
    r: int

    @property
    def m(self) -> int:
        """Number of rows of A."""
        return self.n * self.r


def choose(problem: Problem) -> tuple[str, str | None]:
    """The method and the preconditioner."""
    if problem.p <= problem.m:
        return "cholesky", None
    if problem.m <= 4096:
        return "kernel", None
    return "cg", None
