"""A sweep: a function, grids of specs, and running those that are not stored."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from geolib.sweep.cluster import drive_dask
from geolib.sweep.engines import (
    Finished,
    Options,
    Run,
    SweepError,
    default_scheduler,
    drive_inline,
)
from geolib.sweep.spec import fields_of, key_of
from geolib.sweep.store import Store


def drive(
    run: Run,
    specs: Mapping[str, Any],
    options: Options,
    wanted: Callable[[str], bool] = lambda key: True,
) -> Iterator[Finished]:
    """Run every spec and yield its end as it comes, in any order.

    Args:
        run: the function of one spec; importable on the workers.
        specs: by key.
        options: where and how.
        wanted: asked just before a spec starts; False skips it (someone else has
            stored it meanwhile).

    Raises:
        SweepError: the scheduler cannot be reached or went away, or no worker came.
    """
    if options.scheduler == "inline":
        return drive_inline(run, specs, options, wanted)
    return drive_dask(run, specs, options, wanted)


@dataclass(frozen=True)
class Sweep:
    """Many runs of one function.

    Attributes:
        name: of the sweep and its folder in a store.
        run: `run(spec) -> record`, a module-level function; the record is a dictionary
            of JSON values whose names differ from the spec's.
        grids: for each size (`small`, `book`, `full`) a function that makes the specs.
        version: raise it when `run` starts to mean something else.
        text: one line about it.
    """

    name: str
    run: Run
    grids: Mapping[str, Callable[[], Sequence[Any]]]
    version: int = 1
    text: str = ""

    def specs(self, size: str) -> dict[str, Any]:
        """The specs of a size by key, in the grid's order.

        Raises:
            ValueError: there is no such size.
        """
        if size not in self.grids:
            raise ValueError(
                f"size: {self.name} has {', '.join(self.grids)}; got {size!r}"
            )
        return {key_of(s, self.name, self.version): s for s in self.grids[size]()}


@dataclass
class Report:
    """What a call of `run_sweep` did.

    Attributes:
        total: runs that were asked for.
        stored: of these, those that were stored before.
        done: those that ended well now.
        failed: errors by key, stored failures included.
        retried: those that needed more than one try.
        seconds: that the call took.
    """

    total: int
    stored: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    retried: int = 0
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """One line for a terminal."""
        return (
            f"{self.total} runs: {self.stored} stored before, {self.done} done now, "
            f"{len(self.failed)} failed, {self.retried} retried ({self.seconds:.1f} s)"
        )


def run_sweep(
    sweep: Sweep,
    specs: Mapping[str, Any] | str,
    store: Store,
    options: Options | None = None,
    *,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> Report:
    """Run the specs that are not in the store; each end is stored at once.

    Args:
        sweep: what to run.
        specs: by key, as `Sweep.specs` gives them, or a size.
        store: where results go; anything stored there is skipped, failures too.
        options: where and how to run; default: local Dask workers, or this process
            where Dask is not installed.
        retry_failed: run stored failures again.
        progress: show a bar on stderr; default: on a terminal where `CI` is not set.

    Raises:
        SweepError: the engine failed, or a result cannot be written (disk full);
            what ended before is stored, and the same call resumes.

    Examples:
        >>> import dataclasses, tempfile
        >>> @dataclasses.dataclass(frozen=True)
        ... class Spec:
        ...     n: int
        >>> squares = Sweep("squares", lambda s: {"square": s.n**2},
        ...                 {"small": lambda: [Spec(2), Spec(3)]})
        >>> store = Store(tempfile.mkdtemp())
        >>> run_sweep(squares, "small", store, Options("inline")).done
        2
        >>> sorted(row["square"] for row in store.rows("squares"))
        [4, 9]
    """
    specs = sweep.specs(specs) if isinstance(specs, str) else specs
    options = options or Options(default_scheduler())
    start = time.perf_counter()
    store.tidy(sweep.name)
    held = store.scan(sweep.name)
    skip = {k for k, e in held.items() if e["status"] == "done" or not retry_failed}
    todo = [key for key in specs if key not in skip]
    report = Report(len(specs), stored=len(specs) - len(todo))
    report.failed = {
        k: held[k]["error"]
        for k in specs
        if k in skip and held[k]["status"] == "failed"
    }
    ring = random.Random(os.getpid()).randrange(len(todo) or 1)
    order = todo[ring:] + todo[:ring]  # two sweeps at once meet as late as they can
    ends = drive(
        sweep.run,
        {key: specs[key] for key in order},
        options,
        lambda key: not store.has(sweep.name, key),
    )
    with bar(sweep.name, len(todo), progress) as step:
        for end in ends:
            _keep(sweep, specs[end.key], end, store, report)
            step()
    report.stored = report.total - report.done - len(report.failed)
    report.seconds = time.perf_counter() - start
    return report


def _keep(sweep: Sweep, spec: Any, end: Finished, store: Store, report: Report) -> None:
    fields, error = fields_of(spec), end.outcome.error
    record = json.loads(end.outcome.record or "{}")
    if error is None and (both := sorted(fields.keys() & record.keys())):
        error = f"ValueError: record: {', '.join(both)} are names of the spec"
    entry = {
        "sweep": sweep.name,
        "version": sweep.version,
        "spec": fields,
        "status": "done" if error is None else "failed",
        "tries": end.tries,
        "cpu": end.outcome.cpu,
        "wall": end.outcome.wall,
    }
    entry |= {"record": record} if error is None else {"error": error}
    try:
        store.put(sweep.name, end.key, entry)
    except OSError as problem:
        raise SweepError(
            f"a result could not be written to {store.folder}: {problem.strerror}; "
            "what ended before is stored, make room and run the same again"
        ) from problem
    report.retried += end.tries > 1
    if error is None:
        report.done += 1
        report.failed.pop(end.key, None)
    else:
        report.failed[end.key] = error


def collect(
    sweep: Sweep, size: str, store: Store | None = None
) -> list[dict[str, Any]]:
    """The rows of a size, in the grid's order: read where stored, else computed here.

    For a chapter: the small size is computed in place in seconds, and a sweep run
    beforehand on a cluster is read. Nothing is written. Each row has the fields of its
    spec and of its record.

    Args:
        sweep: what to read or to run.
        size: `small`, `book` or `full`.
        store: default: `GEOLIB_SWEEPS`, else the cache folder.

    Raises:
        SweepError: a run fails here, or is stored as failed.

    Examples:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Spec:
        ...     n: int
        >>> cubes = Sweep("cubes", lambda s: {"cube": s.n**3}, {"small": lambda: [Spec(2)]})
        >>> collect(cubes, "small", Store("no-such-folder"))
        [{'n': 2, 'cube': 8}]
    """
    store = store or Store()
    held = store.scan(sweep.name)
    rows = []
    for key, spec in sweep.specs(size).items():
        entry = held.get(key)
        if entry is not None and entry["status"] == "failed":
            raise SweepError(
                f"{sweep.name}: {fields_of(spec)} failed: {entry['error']}"
            )
        if entry is not None:
            rows.append(entry["spec"] | entry["record"])
            continue
        end = next(drive(sweep.run, {key: spec}, Options("inline", retries=0)))
        if end.outcome.error is not None:
            raise SweepError(f"{sweep.name}: {fields_of(spec)}: {end.outcome.error}")
        rows.append(fields_of(spec) | json.loads(end.outcome.record or "{}"))
    return rows


@contextmanager
def bar(
    name: str, total: int, show: bool | None = None
) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, silent under `CI` or away from a terminal."""
    if show is None:
        show = sys.stderr.isatty() and not os.environ.get("CI")
    if not show or not total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as live:
        task = live.add_task(name, total=total)
        yield lambda: live.advance(task)
