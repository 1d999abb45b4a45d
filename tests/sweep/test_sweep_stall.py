"""News of a run can be lost with a worker: then the run is sent again, once."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as workers see it

from sweep_cases import Spec, run

from geolib.sweep import Options, cluster
from geolib.sweep.engines import Outcome
from geolib.sweep.runner import drive


class DeafClient:
    """A cluster whose first wave of runs never reports; later ones end at once."""

    status, cluster = "running", None

    def __init__(self):
        self.waves, self.cancelled = [], []

    def nthreads(self):
        return {"worker": 1}

    def map(self, function, runs, specs, *, key, **kwargs):
        self.waves.append(key)
        return [SimpleNamespace(key=name, silent=len(self.waves) == 1) for name in key]

    def cancel(self, futures):
        self.cancelled += [f.key for f in futures]


class Ends:
    """Dask's `as_completed`, for the futures of that cluster."""

    def __init__(self):
        self.ready = []

    def update(self, futures):
        self.ready += [(f, Outcome(record=f.key)) for f in futures if not f.silent]

    def has_ready(self):
        return bool(self.ready)

    def next_batch(self, block):
        batch, self.ready = self.ready, []
        return batch


def flight_of(client, specs, options):
    return cluster.DaskRun(client, Ends(), len, specs, options, lambda key: True)


def test_silence_beyond_the_limit_sends_the_runs_again(monkeypatch):
    monkeypatch.setattr(cluster, "PULSE", 0.01)
    monkeypatch.setattr(cluster, "STALL", 0.1)
    client = DeafClient()
    options = Options("tcp://nowhere:1", limit=0.05)
    flight = flight_of(client, {"a": 1, "b": 2}, options)
    done, end = [], time.monotonic() + 20
    while flight.busy:
        assert time.monotonic() < end, "the runs were never sent again"
        flight.submit()
        done += flight.collect()
    assert sorted(f.key for f in done) == ["a", "b"]
    assert [f.tries for f in done] == [1, 1]
    assert client.cancelled == client.waves[0]
    assert len(client.waves) == 2
    assert set(client.waves[0]).isdisjoint(client.waves[1])


def test_without_a_time_limit_silence_is_patience(monkeypatch):
    monkeypatch.setattr(cluster, "PULSE", 0.01)
    monkeypatch.setattr(cluster, "STALL", 0.0)
    client = DeafClient()
    flight = flight_of(client, {"a": 1}, Options("tcp://nowhere:1", limit=None))
    flight.submit()
    for _ in range(5):
        assert list(flight.collect()) == []
    assert client.cancelled == []


@pytest.mark.slow
def test_a_result_lost_with_its_worker_is_waited_for_and_no_dead_scheduler(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="no extra `sweep`")
    options = Options("local", workers=2, limit=60)
    asked, whole = [], distributed.Future._result

    async def lost_once(future, *arguments, **named):
        """Kill the worker that holds the first result, before it is fetched."""
        if not asked:
            asked.append(future.key)
            client = future.client
            held = await client.scheduler.who_has(keys=[future.key])
            (address,) = held[future.key]
            for nanny in client.cluster.workers.values():
                if nanny.worker_address == address:
                    os.kill(nanny.pid, signal.SIGKILL)
        return await whole(future, *arguments, **named)

    monkeypatch.setattr(distributed.Future, "_result", lost_once)
    specs = {f"k{n}": Spec(n) for n in range(4)}
    ends = list(drive(run, specs, options))
    assert asked
    assert sorted(e.key for e in ends) == sorted(specs)
    assert all(e.outcome.error is None for e in ends)


@pytest.mark.slow
def test_a_local_worker_that_is_gone_for_good_is_replaced():
    pytest.importorskip("distributed", reason="the extra `sweep` is not installed")
    with cluster.local_cluster(Options("local", workers=1)) as made:
        (nanny,) = made.workers.values()
        made.sync(nanny.close)
        cluster.heal(made)
        end = time.monotonic() + 60
        while not any(n.status.name == "running" for n in made.workers.values()):
            assert time.monotonic() < end, "no new worker came"
            time.sleep(0.05)
        assert nanny not in made.workers.values()
