"""Which way of solving is the cheapest: an estimate from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geolib.core.metric import Metric


@dataclass(frozen=True)
class Problem:
    """What the estimate is made from: p parameters, m = n r rows."""

    p: int
    m: int

    @classmethod
    def of(cls, G: Metric) -> Problem:
        _, _, local = next(G.batches())
        return cls(G.p, G.n * local.rank)


def choose(problem: Problem) -> tuple[str, str | None]:
    """The method and the preconditioner."""
    if problem.p <= problem.m:
        return "cholesky", None
    if problem.m <= 4096:
        return "kernel", None
    return "cg", None
