"""The Dask engine: local workers, or any scheduler by its address.

Results come back through the scheduler and are written by the caller, so workers need
no shared disk. A worker that dies takes its runs with it: they are tried again, the
last time one by one and, if need be, once more than asked, so that only a run that
kills its worker while it flies alone is condemned, never a bystander.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from typing import Any

from geolib.sweep.attempt import Outcome, attempt, describe
from geolib.sweep.engines import Finished, Options, Run, SweepError

SOURCE = "https://github.com/geometry-of-learning/geometry-of-learning"
CONNECT = 20  # seconds for a scheduler to answer
PULSE = 0.5  # seconds between looks at a silent cluster
LOOK = 2.0  # seconds between looks at the workers
FETCH = 5.0  # seconds for results to arrive; those of dead workers do not
STALL = 45  # seconds beyond two time limits after which silence means lost news


def drive_dask(
    run: Run, specs: Mapping[str, Any], options: Options, wanted: Callable[[str], bool]
) -> Iterator[Finished]:
    """See `geolib.sweep.runner.drive`."""
    if not specs:
        return
    with connected(options) as client:
        dask_run = DaskRun(client, run, specs, options, wanted)
        try:
            while dask_run.busy:
                dask_run.submit()
                yield from dask_run.collect()
        except (OSError, CancelledError) as error:  # a closed or silent connection
            raise dask_run.lost() from error
        finally:
            dask_run.cancel()


class DaskRun:
    """The runs that wait, are in flight, or are suspected of killing their worker.

    A run is `waiting`, then `in_flight`; one whose last try ended with its worker joins
    the `suspects`, which are sent one at a time when nothing else is in flight: only a
    run that kills its worker while it flies alone is condemned. `resubmission` counts
    how often lost news made us send runs again, so that Dask's keys stay unique.
    """

    def __init__(
        self,
        client: Any,
        run: Run,
        specs: Mapping[str, Any],
        options: Options,
        wanted: Callable[[str], bool],
    ) -> None:
        self.client, self.run, self.specs = client, run, specs
        self.options, self.wanted = options, wanted
        self.waiting = deque((key, 1) for key in specs)
        self.suspects: deque[tuple[str, int]] = deque()
        self.in_flight: dict[str, tuple[str, int, Any]] = {}
        self.single = False  # what flies, flies alone
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.seen = time.monotonic()
        self.moved = time.monotonic()  # when a run last ended or was sent
        self.looked = time.monotonic()
        self.resubmission = (
            0  # grows when runs are sent again, so that keys stay unique
        )

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.suspects or self.in_flight)

    def submit(self) -> None:
        """Keep enough runs in flight; a suspect only when nothing else flies."""
        threads = sum(self.client.nthreads().values()) if self.waiting else 0
        room = max(128, 8 * threads) - len(self.in_flight)
        batch: list[tuple[str, int]] = []
        while self.waiting and len(batch) < room:
            self._take(self.waiting, batch)
        if not self.in_flight:
            self.single = not batch
        while self.suspects and not (self.waiting or self.in_flight or batch):
            self._take(self.suspects, batch)
        if not batch:
            return
        futures = self.client.map(
            attempt,
            [self.run] * len(batch),
            [self.specs[key] for key, _ in batch],
            limit=self.options.limit,
            hard=True,
            key=[
                f"geolib-sweep-{key}-{tries}-{self.resubmission}"
                for key, tries in batch
            ],
            resources={"GPU": 1} if self.options.gpu else None,
            pure=False,
        )
        self.moved = time.monotonic()
        for (key, tries), future in zip(batch, futures, strict=True):
            self.in_flight[future.key] = (key, tries, future)
            future.add_done_callback(self.events.put)

    def _take(self, source: deque, batch: list) -> None:
        key, tries = source.popleft()
        if self.wanted(key):
            batch.append((key, tries))

    def collect(self) -> Iterator[Finished]:
        """Wait a moment for runs to end; what is final is yielded."""
        ended = []
        try:
            ended.append(self.events.get(timeout=PULSE))
            while True:
                ended.append(self.events.get_nowait())
        except queue.Empty:
            pass
        ended = [future for future in ended if future.key in self.in_flight]
        for future, outcome, died in self._outcomes(ended):
            self.seen = self.moved = time.monotonic()
            key, tries, _ = self.in_flight.pop(future.key)
            if died and not self.single and tries >= self.options.retries:
                self.suspects.append((key, tries + 1))
            elif outcome.error is None or tries > self.options.retries:
                yield Finished(key, outcome, tries)
            else:
                self.waiting.append((key, tries + 1))
        if time.monotonic() - self.looked > LOOK:
            self._alive()
            self._unstick()
            self.looked = time.monotonic()

    def _outcomes(self, ended: list[Any]) -> Iterator[tuple[Any, Outcome, bool]]:
        """What runs came to, and whether it was by their worker's death.

        A result that died with its worker is computed anew by Dask: news of its second
        end is asked for.
        """
        from dask.distributed import KilledWorker

        values = self._values([f for f in ended if f.status == "finished"])
        yield from ((f, v, False) for f in ended if (v := values.get(f.key)))
        for future in ended:
            if values.get(future.key):
                continue
            if future.status == "cancelled":
                raise self.lost()
            if future.status != "error":
                future.add_done_callback(self.events.put)
                continue
            problem = future.exception()
            if isinstance(problem, KilledWorker):
                yield future, Outcome(error=self._death()), True
            else:  # e.g. the function cannot be imported on the worker
                yield future, Outcome(error=describe(problem)), False

    def _values(self, good: list[Any]) -> dict[str, Outcome | None]:
        """The results that can be had now; None for one that cannot."""
        if not good:
            return {}

        async def fetch() -> dict[str, Outcome | None]:
            wanted = {future.key: future for future in good}
            found = self.client.gather(wanted, errors="skip", asynchronous=True)
            whole = asyncio.ensure_future(found)  # Dask does not like it cancelled
            return await asyncio.wait_for(asyncio.shield(whole), FETCH)

        try:
            return self.client.sync(fetch)
        except TimeoutError:
            return {}

    def _death(self) -> str:
        limit = self.options.limit
        past = f", or past its limit of {limit:g} s and deaf to it" if limit else ""
        return f"WorkerDied: the worker was killed (signal, memory{past})"

    def _unstick(self) -> None:
        """Send runs again whose end never came, though each has a time limit.

        A worker's death can swallow the news of a run; every run that flies ends
        within its limit, so silence for much longer means that the news is lost.
        """
        limit = self.options.limit
        if not limit or not self.in_flight or not self.client.nthreads():
            return
        if time.monotonic() - self.moved < 2 * limit + STALL:
            return
        stuck = list(self.in_flight.values())
        self.client.cancel([future for _, _, future in stuck])
        self.in_flight.clear()
        self.resubmission += 1
        self.moved = time.monotonic()
        self.waiting.extend((key, tries) for key, tries, _ in stuck)

    def _alive(self) -> None:
        if self.client.status != "running":
            raise self.lost()
        if self.client.cluster is not None:
            heal(self.client.cluster)
        if self.client.nthreads():
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > self.options.patience:
            raise SweepError(
                f"no worker at {self.options.scheduler} for "
                f"{self.options.patience:g} s; start some and run the same again"
            )

    def lost(self) -> SweepError:
        """The error that says what to do after the scheduler is gone."""
        return SweepError(
            f"the scheduler ({self.options.scheduler}) went away with "
            f"{len(self.in_flight)} runs in flight; what ended is stored, "
            "run the same again to resume"
        )

    def cancel(self) -> None:
        """Call back what still flies; a dead scheduler is no obstacle."""
        if self.in_flight and self.client.status == "running":
            self.client.cancel([future for _, _, future in self.in_flight.values()])


@contextmanager
def connected(options: Options) -> Iterator[Any]:
    """A Dask client, and the local cluster behind it where one is asked for.

    Raises:
        SweepError: Dask is not installed, the address does not answer, or GPU runs
            are asked for on a machine without one.
    """
    try:
        from dask.distributed import Client
    except ImportError:
        raise SweepError(
            "Dask is not installed: pip install 'geometry-of-learning[sweep] @ "
            f"git+{SOURCE}', or use the scheduler 'inline'"
        ) from None
    with ExitStack() as stack:
        if options.scheduler == "local":
            address: Any = stack.enter_context(local_cluster(options))
        else:
            address = options.scheduler
        try:
            client = Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise SweepError(f"no scheduler answers at {address}: {error}") from None
        stack.enter_context(client)
        yield client


@contextmanager
def local_cluster(options: Options) -> Iterator[Any]:
    """One single-threaded worker process a core, or one a GPU that sees only it."""
    import dask
    from dask.distributed import LocalCluster, Nanny, Scheduler, SpecCluster

    gpus = _gpus() if options.gpu else 0
    quiet = {
        "distributed.scheduler.allowed-failures": 0,  # we do the retrying
        "distributed.worker.daemon": False,  # a run may start processes
        # on a busy machine a new worker takes long to start; it is not to be given up
        "distributed.deploy.lost-worker-timeout": "10 minutes",
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(quiet))
        if options.gpu:
            workers = {
                i: {"cls": Nanny, "options": {
                    "nthreads": 1, "resources": {"GPU": 1},
                    "env": {"CUDA_VISIBLE_DEVICES": str(i)}}}
                for i in range(min(options.workers or gpus, gpus))
            }  # fmt: skip
            scheduler = {
                "cls": Scheduler,
                "options": {"dashboard_address": "127.0.0.1:0"},
            }
            cluster: Any = SpecCluster(
                workers=workers, scheduler=scheduler, silence_logs="CRITICAL"
            )
        else:
            cluster = LocalCluster(
                n_workers=options.workers, threads_per_worker=1, processes=True,
                dashboard_address="127.0.0.1:0", silence_logs="CRITICAL",
            )  # fmt: skip
        yield stack.enter_context(cluster)


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
