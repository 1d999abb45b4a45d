"""A sweep: a function, grids of specs, and running those that are not stored."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .cluster import drive_dask
from .engines import Finished, Options, Run, SweepError, Wanted, drive_inline
from .store import Store, fields_of, key_of


def default_scheduler() -> str:
    """`local` where Dask is installed, else `inline`."""
    return "local" if importlib.util.find_spec("distributed") else "inline"


def drive(
    run: Run,
    specs: Mapping[str, Any],
    options: Options,
    wanted: Wanted = lambda key: True,
) -> Iterator[Finished]:
    """Run every spec and yield its end as it comes, in any order.

    Args:
        run: the function of one spec; importable on the workers.
        specs: by key.
        options: where and how.
        wanted: asked just before a spec starts; False skips it (someone else has
            stored it meanwhile), None has it asked again later.

    Raises:
        SweepError: the scheduler cannot be reached or went away, or no worker came.
    """
    engine = drive_inline if options.scheduler == "inline" else drive_dask
    return engine(run, specs, options, wanted)


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
        kept_as: of a run's key and its row, the file in the chapter's folder `measured`
            where it is published, its key there and its figures; default: the file of
            the sweep, the same key, the whole row.
        about: what the file of published runs says beside when it was measured.
    """

    name: str
    run: Run
    grids: Mapping[str, Callable[[], Sequence[Any]]]
    version: int = 1
    text: str = ""
    kept_as: Callable[[str, dict[str, Any]], tuple[str, str, Any]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def specs(self, size: str) -> dict[str, Any]:
        """The specs of a size by key, in the grid's order.

        Raises:
            ValueError: there is no such size.
        """
        if size not in self.grids:
            sizes = ", ".join(self.grids)
            raise ValueError(f"size: {self.name} has {sizes}; got {size!r}")
        return {key_of(s, self.name, self.version): s for s in self.grids[size]()}

    def entry(self, key: str, row: dict[str, Any]) -> tuple[str, str, Any]:
        """Where a run is published: the file, the key in it, and the figures."""
        return self.kept_as(key, row) if self.kept_as else (self.name, key, row)


@dataclass
class Report:
    """What a call of `run_sweep` did."""

    total: int  # runs that were asked for
    done: int = 0  # those that ended well now
    failed: dict[str, str] = field(default_factory=dict)  # by key, stored ones included
    retried: int = 0  # those that needed more than one try
    seconds: float = 0.0

    @property
    def stored(self) -> int:
        """Runs that were stored before, or by another sweep meanwhile."""
        return self.total - self.done - len(self.failed)

    @property
    def line(self) -> str:
        """One line for a terminal."""
        stored = f"{self.total} runs: {self.stored} stored before, {self.done} done now"
        failed = f"{len(self.failed)} failed, {self.retried} retried"
        return f"{stored}, {failed} ({self.seconds:.1f} s)"


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

    Two sweeps on one store share the work: a run that another process is at is left to
    it, and taken over if that process ends without a result.

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
    held = {k: e for k, e in store.scan(sweep.name).items() if k in specs}
    failed = {k: e["error"] for k, e in held.items() if e["status"] == "failed"}
    again = failed if retry_failed else {}
    todo = {k: s for k, s in specs.items() if k not in held or k in again}
    report = Report(len(specs), failed={} if retry_failed else failed)
    live = bar(sweep.name, len(todo), progress)
    with store.claims(sweep.name) as claim, live as step:

        def wanted(key: str) -> bool | None:
            mine, entry = claim(key), store.get(sweep.name, key)
            if entry is None or entry == held.get(key):
                return mine or None
            if entry["status"] == "failed":  # another sweep's, meanwhile
                report.failed[key] = entry["error"]
            step()
            return False

        for end in drive(sweep.run, todo, options, wanted):
            _keep(sweep, specs[end.key], end, store, report)
            step()
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
        what = f"a result could not be written to {store.folder}: {problem.strerror}"
        hint = "what ended before is stored, make room and run the same again"
        raise SweepError(f"{what}; {hint}") from problem
    report.retried += end.tries > 1
    if error is None:
        report.done += 1
    else:
        report.failed[end.key] = error


@contextmanager
def bar(name: str, total: int, show: bool | None = None) -> Iterator[Callable]:
    """A progress bar on stderr, silent under `CI` or away from a terminal.

    Yields a function to be called after each step, or with what is being done now.
    """
    if show is None:
        show = sys.stderr.isatty() and not os.environ.get("CI")
    if not (show and total):
        yield lambda doing="": None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as live:
        task = live.add_task(name, total=total)
        yield lambda doing="": live.update(
            task, advance=not doing, description=doing or name
        )
