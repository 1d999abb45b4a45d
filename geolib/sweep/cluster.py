"""The Dask engine: local workers, or any scheduler by its address.

Dask sends runs, notices their ends and fetches their results. What is added here answers
failures that it leaves open (docs/adr/0014): a run that kills its worker must not
condemn those that were beside it, and no lost news may hold a sweep up for ever.
"""

import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from geolib.files import MissingExtra, need

from . import engines
from .engines import PULSE, Finished, Options, Outcome, Run, SweepError, Try, Wanted

CONNECT = 20  # seconds for a scheduler to answer
TICK = 0.02  # seconds between looks for runs that have ended
STALL = 45  # seconds beyond two time limits after which silence means lost news


def drive_dask(
    run: Run, specs: Mapping[str, Any], options: Options, wanted: Wanted
) -> Iterator[Finished]:
    """See `geolib.sweep.runner.drive`."""
    if not specs:
        return
    with connected(options) as client:
        from dask.distributed import as_completed

        ends = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        dask_run = DaskRun(client, ends, run, specs, options, wanted)
        try:
            while dask_run.busy:
                dask_run.submit()
                yield from dask_run.collect()
        except (OSError, CancelledError) as error:  # a closed or silent connection
            raise dask_run.lost() from error
        finally:
            dask_run.cancel()


@dataclass
class DaskRun:
    """The runs of a sweep on their way through a cluster, by their state.

    ::

        waiting --submit--> in_flight --ended well, or failed once too often--> finished
           ^                   |  |
           +-- failed ---------+  +-- worker died at the last try --> suspects
           +-- silent too long +                                         |
                               in_flight, alone <--submit, nothing flies-+

    A worker takes down all runs that it holds, so a death says little about each. Only
    a suspect flies alone; if its worker dies then, it was the run, and it has failed.
    """

    client: Any
    ends: Any
    run: Run
    specs: Mapping[str, Any]
    options: Options
    wanted: Wanted

    def __post_init__(self) -> None:
        self.waiting = deque(map(Try, self.specs))
        self.suspects: deque[Try] = deque()
        self.in_flight: dict[str, tuple[Try, Any]] = {}  # by Dask's key
        self.moved = time.monotonic()  # when a run was last sent or ended
        self.manned = time.monotonic()  # when there last was a worker
        self.looked = 0.0  # when the cluster was last looked at
        self.threads = 0  # that it had then

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.suspects or self.in_flight)

    def submit(self) -> None:
        """Keep enough runs in flight; a suspect only when nothing else flies."""
        batch: list[Try] = []
        if not any(one.alone for one, _ in self.in_flight.values()):
            batch = self._taken(max(128, 8 * self.threads) - len(self.in_flight))
        if not batch:
            if not self.suspects or self.in_flight:
                return
            batch = [self.suspects.popleft()]
        futures = self.client.map(
            engines.attempt,
            [self.run] * len(batch),
            [self.specs[one.key] for one in batch],
            limit=self.options.limit,
            hard=True,
            # Dask takes two runs of one key for one: each sending has a key of its own
            key=[f"geolib-sweep-{one.key}-{uuid.uuid4().hex}" for one in batch],
            resources={"GPU": 1} if self.options.gpu else None,
            pure=False,
        )
        for one, future in zip(batch, futures, strict=True):
            self.in_flight[future.key] = one, future
        self.ends.update(futures)
        self.moved = time.monotonic()

    def _taken(self, room: int) -> list[Try]:
        """At most `room` tries that wait and are wanted now."""
        batch: list[Try] = []
        for _ in range(len(self.waiting)):
            if len(batch) >= room:
                break
            one = self.waiting.popleft()
            mine = self.wanted(one.key)
            if mine is not False:
                (self.waiting if mine is None else batch).append(one)
        return batch

    def collect(self) -> Iterator[Finished]:
        """Wait a moment for runs to end; what is final is yielded."""
        until = time.monotonic() + PULSE
        while not self.ends.has_ready() and time.monotonic() < until:
            time.sleep(TICK)
        for future, result in self.ends.next_batch(block=False):
            if future.key not in self.in_flight:  # it was called back
                continue
            one, _ = self.in_flight.pop(future.key)
            self.moved = time.monotonic()
            outcome, died = self._outcome(result)
            if died and not one.alone and one.number >= self.options.retries:
                self.suspects.append(one.again(alone=True))
            elif outcome.error is None or one.number > self.options.retries:
                yield Finished(one.key, outcome, one.number)
            else:
                self.waiting.append(one.again())
        if time.monotonic() - self.looked > PULSE:
            self._look_at_cluster()

    def _outcome(self, result: Any) -> tuple[Outcome, bool]:
        """What a run came to, and whether it was by its worker's death."""
        from dask.distributed import KilledWorker

        if isinstance(result, Outcome):
            return result, False
        if isinstance(result, BaseException):  # cancelled, and not by us
            raise self.lost()
        _, problem, _ = result
        if not isinstance(problem, KilledWorker):  # it cannot be imported there
            return Outcome(error=engines.describe(problem)), False
        limit = self.options.limit
        past = f", or past its limit of {limit:g} s and deaf to it" if limit else ""
        error = f"WorkerDied: the worker was killed (signal, memory{past})"
        return Outcome(error=error), True

    def _look_at_cluster(self) -> None:
        """Replace workers, notice that there are none, send silent runs again.

        Every run that flies ends within its limit; silence for much longer means that
        its end was lost with a worker.
        """
        if self.client.status != "running":
            raise self.lost()
        if self.client.cluster is not None:
            heal(self.client.cluster)
        self.threads = sum(self.client.nthreads().values())
        self.looked = now = time.monotonic()
        limit, patience = self.options.limit, self.options.patience
        if self.threads:
            self.manned = now
        elif now - self.manned > patience:
            where = f"at {self.options.scheduler} for {patience:g} s"
            raise SweepError(f"no worker {where}; start some and run the same again")
        if limit and self.threads and now - self.moved > 2 * limit + STALL:
            self.cancel()
            self.waiting.extend(one for one, _ in self.in_flight.values())
            self.in_flight.clear()

    def lost(self) -> SweepError:
        """The error that says what to do after the scheduler is gone."""
        gone = f"({self.options.scheduler}) went away with {len(self.in_flight)} runs"
        what = "in flight; what ended is stored, run the same again to resume"
        return SweepError(f"the scheduler {gone} {what}")

    def cancel(self) -> None:
        """Call back what still flies; a dead scheduler is no obstacle."""
        if self.in_flight and self.client.status == "running":
            self.client.cancel([future for _, future in self.in_flight.values()])


@contextmanager
def connected(options: Options) -> Iterator[Any]:
    """A Dask client, and the local cluster behind it where one is asked for.

    Raises:
        SweepError: Dask is not installed, the address does not answer, or GPU runs
            are asked for on a machine without one.
    """
    try:
        need("distributed", "sweep")
    except MissingExtra as gap:
        raise SweepError(f"{gap}, or use the scheduler 'inline'") from None
    from dask.distributed import Client

    with ExitStack() as stack:
        address: Any = options.scheduler
        if address == "local":
            address = stack.enter_context(local_cluster(options))
        try:
            client = Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise SweepError(f"no scheduler answers at {address}: {error}") from None
        yield stack.enter_context(client)


@contextmanager
def local_cluster(options: Options) -> Iterator[Any]:
    """One single-threaded worker process a core, or one a GPU that sees only it."""
    import dask
    from dask.distributed import LocalCluster, Nanny, Scheduler, SpecCluster

    quiet = {
        "distributed.scheduler.allowed-failures": 0,  # we do the retrying
        "distributed.worker.daemon": False,  # a run may start processes
        # on a busy machine a new worker takes long to start; it is not to be given up
        "distributed.deploy.lost-worker-timeout": "10 minutes",
    }
    here = {"dashboard_address": "127.0.0.1:0"}
    with dask.config.set(quiet):
        if options.gpu:
            gpus = _gpus()
            workers = {
                i: {"cls": Nanny, "options": {
                    "nthreads": 1, "resources": {"GPU": 1}, "host": "127.0.0.1",
                    "env": {"CUDA_VISIBLE_DEVICES": str(i)}}}
                for i in range(min(options.workers or gpus, gpus))
            }  # fmt: skip
            scheduler = {"cls": Scheduler, "options": {**here, "host": "127.0.0.1"}}
            made: Any = SpecCluster(workers, scheduler, silence_logs="CRITICAL")
        else:
            made = LocalCluster(
                n_workers=options.workers, threads_per_worker=1, processes=True,
                silence_logs="CRITICAL", **here,
            )  # fmt: skip
        with made:
            yield made


def heal(cluster: Any) -> None:
    """Start the local workers that are gone for good: their nannies gave up.

    A nanny ends when its worker dies while it is starting, as it may when the first
    run it is sent kills it.
    """
    for name, nanny in list(cluster.workers.items()):
        if nanny.status.name in ("closed", "failed"):
            cluster.workers.pop(name, None)
    if len(cluster.workers) < len(cluster.worker_spec):
        cluster.scale(len(cluster.worker_spec))


def _gpus() -> int:
    import torch

    if not torch.cuda.is_available():
        raise SweepError("gpu: torch sees no CUDA device on this machine")
    return torch.cuda.device_count()
