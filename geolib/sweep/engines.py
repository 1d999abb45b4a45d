"""One try at one spec, wherever it runs, and the engine that runs them in this process."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from geolib.files import expect

Run = Callable[[Any], dict[str, Any]]
# Asked just before a spec starts: whether to run it; None where another sweep is at it,
# so that it is asked again later.
Wanted = Callable[[str], bool | None]
PULSE = 0.5  # seconds between looks at what does not speak by itself
HARD_EXIT = 86


class TimeLimitError(Exception):
    """A run went past its time limit."""


@dataclass(frozen=True)
class Outcome:
    """How one try ended: `record` is JSON text when it ended well, else `error`."""

    record: str | None = None
    error: str | None = None
    cpu: float = 0.0
    wall: float = 0.0


def attempt(
    run: Callable[[Any], dict[str, Any]],
    spec: Any,
    limit: float | None = None,
    hard: bool = False,
) -> Outcome:
    """Call `run(spec)` once; whatever it raises becomes text, whatever it returns JSON.

    Args:
        run: returns a dictionary of JSON values (NumPy values are converted).
        limit: seconds after which `TimeLimitError` is raised inside `run`.
        hard: end the whole process when `run` ignores that (a worker's nanny
            starts another); only for a process that may be lost.
    """
    wall, cpu = time.perf_counter(), time.thread_time()
    record = error = None
    try:
        with deadline(limit, hard):
            value = run(spec)
        if not isinstance(value, dict):
            raise TypeError(f"run: expected a dictionary, got {type(value).__name__}")
        record = json.dumps(value, default=_numbers)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # SystemExit too: it must not end a worker
        error = describe(problem)
    return Outcome(record, error, time.thread_time() - cpu, time.perf_counter() - wall)


def describe(problem: BaseException) -> str:
    """An exception as text: its type and message, then the last frames."""
    try:
        head = f"{type(problem).__name__}: {problem}"
    except Exception:  # an exception whose own text raises
        head = type(problem).__name__
    for f in traceback.extract_tb(problem.__traceback__)[-3:]:
        head += f"\n  in {f.name}, {os.path.basename(f.filename)}:{f.lineno}"
    return head


@contextmanager
def deadline(limit: float | None, hard: bool = False) -> Iterator[None]:
    """Raise `TimeLimitError` in the body after `limit` seconds.

    In the main thread an alarm interrupts even a sleeping call; in another thread (a
    Dask worker's) the error is delivered at the next Python instruction, and with
    `hard` the process ends if that does not come within the grace period.

    Raises:
        ValueError: the limit is not positive.
    """
    if limit is None:
        yield
        return
    expect(limit > 0, "limit", "a positive number of seconds", limit)
    main = threading.current_thread() is threading.main_thread()
    with _alarm(limit) if main else _watch(limit, hard):
        yield


@contextmanager
def _alarm(limit: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeLimitError(f"past its limit of {limit:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _watch(limit: float, hard: bool) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    over = threading.Event()
    guard = threading.Lock()

    def watch() -> None:
        if over.wait(limit):
            return
        with guard:
            if not over.is_set():
                raise_in(thread, ctypes.py_object(TimeLimitError))
        if hard and not over.wait(max(2.0, 0.25 * limit)):
            print(f"geolib.sweep: limit of {limit:g} s ignored", file=sys.stderr)
            os._exit(HARD_EXIT)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except TimeLimitError as problem:
        raise TimeLimitError(f"past its limit of {limit:g} s") from problem
    finally:
        try:
            with guard:
                over.set()
                raise_in(thread, None)  # one still on its way must not come later
        finally:  # it may strike just here; the process must not end for that
            over.set()


def _numbers(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, tensors
        return value.tolist()
    raise TypeError(f"record: {type(value).__name__} has no JSON form")


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
        workers, limit = (1 if k is None else k for k in (self.workers, self.limit))
        expect(self.retries >= 0, "retries", "0 or more", self.retries)
        expect(workers >= 1, "workers", "1 or more", workers)
        expect(limit > 0, "limit", "positive seconds", limit)
        known = self.scheduler in ("inline", "local") or "://" in self.scheduler
        wanted = "'inline', 'local' or an address like 'tcp://host:8786'"
        expect(known, "scheduler", wanted, self.scheduler)


def drive_inline(
    run: Run, specs: Mapping[str, Any], options: Options, wanted: Wanted
) -> Iterator[Finished]:
    """One spec after the other in this process; a spec that failed goes to the end."""
    waiting, elsewhere = deque(map(Try, specs)), 0
    while waiting:
        one = waiting.popleft()
        mine = wanted(one.key)
        elsewhere = elsewhere + 1 if mine is None else 0
        if mine is None:
            waiting.append(one)
            if elsewhere >= len(waiting):  # nothing is left but what others are at
                time.sleep(PULSE)
        elif mine:
            outcome = attempt(run, specs[one.key], options.limit)
            if outcome.error is not None and one.number <= options.retries:
                waiting.append(one.again())
            else:
                yield Finished(one.key, outcome, one.number)
