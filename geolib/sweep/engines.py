"""How an engine runs and what it yields; the in-process engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .attempt import Outcome, attempt

Run = Callable[[Any], dict[str, Any]]
# Asked just before a spec starts: whether to run it; None where another sweep is at it,
# so that it is asked again later.
Wanted = Callable[[str], bool | None]
PULSE = 0.5  # seconds between looks at what does not speak by itself


class SweepError(RuntimeError):
    """The engine itself failed (no scheduler, no worker); what is stored stays."""


@dataclass(frozen=True)
class Try:
    """The `number`-th try at one spec; `alone` if nothing else may fly beside it."""

    key: str
    number: int = 1
    alone: bool = False

    def again(self, alone: bool = False) -> Try:
        """The try that follows this one."""
        return replace(self, number=self.number + 1, alone=alone)


@dataclass(frozen=True)
class Finished:
    """The end of one spec, after `tries` tries."""

    key: str
    outcome: Outcome
    tries: int


@dataclass(frozen=True)
class Options:
    """How an engine runs.

    Attributes:
        scheduler: `inline` (this process), `local` (Dask workers on this machine) or
            the address of a Dask scheduler, `tcp://host:8786`.
        workers: number of local workers; default: one a core (one a GPU).
        retries: further tries after one that failed.
        limit: seconds for one try.
        gpu: each run occupies one GPU: it goes to workers that offer the resource
            `GPU`, one at a time.
        patience: seconds without any worker after which the engine gives up.

    Raises:
        ValueError: a negative number of retries, no workers, a limit that is not
            positive, or a scheduler that is neither a word nor an address.
    """

    scheduler: str = "local"
    workers: int | None = None
    retries: int = 2
    limit: float | None = None
    gpu: bool = False
    patience: float = 300.0

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries: expected 0 or more, got {self.retries}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {self.workers}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit: expected positive seconds, got {self.limit}")
        if self.scheduler not in ("inline", "local") and "://" not in self.scheduler:
            raise ValueError(
                "scheduler: expected 'inline', 'local' or an address like "
                f"'tcp://host:8786', got {self.scheduler!r}"
            )


def drive_inline(
    run: Run, specs: Mapping[str, Any], options: Options, wanted: Wanted
) -> Iterator[Finished]:
    """One spec after the other in this process; a spec that failed goes to the end."""
    waiting, elsewhere = deque(map(Try, specs)), 0
    while waiting:
        one = waiting.popleft()
        mine = wanted(one.key)
        if mine is None:
            waiting.append(one)
            elsewhere += 1
            if elsewhere >= len(waiting):  # nothing is left but what others are at
                time.sleep(PULSE)
            continue
        elsewhere = 0
        if not mine:
            continue
        outcome = attempt(run, specs[one.key], options.limit)
        if outcome.error is not None and one.number <= options.retries:
            waiting.append(one.again())
        else:
            yield Finished(one.key, outcome, one.number)
