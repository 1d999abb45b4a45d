"""One try at one spec, wherever it runs: caught, timed, limited, plain to send."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    frames = traceback.extract_tb(problem.__traceback__)[-3:]
    where = [
        f"  in {f.name}, {os.path.basename(f.filename)}:{f.lineno}" for f in frames
    ]
    return "\n".join([head, *where])


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
    if not limit > 0:
        raise ValueError(f"limit: expected a positive number of seconds, got {limit}")
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
