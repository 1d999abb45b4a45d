"""News of a run can be lost with a worker: then the run is sent again, once."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from geolib.sweep import Options, cluster
from geolib.sweep.attempt import Outcome


class DeafClient:
    """A cluster whose first wave of runs never reports; later ones end at once."""

    status, cluster = "running", None

    def __init__(self):
        self.waves, self.cancelled = [], []

    def nthreads(self):
        return {"worker": 1}

    def map(self, function, runs, specs, *, key, **kwargs):
        self.waves.append(key)
        silent = len(self.waves) == 1
        return [self.future(name, silent) for name in key]

    def future(self, name, silent):
        made = SimpleNamespace(key=name, status="finished")
        made.add_done_callback = lambda call: None if silent else call(made)
        return made

    def sync(self, function):
        return asyncio.run(function())

    async def gather(self, futures, errors, asynchronous):
        return {name: Outcome(record=name) for name in futures}

    def cancel(self, futures):
        self.cancelled += [f.key for f in futures]


def test_silence_beyond_the_limit_sends_the_runs_again(monkeypatch):
    monkeypatch.setattr(cluster, "PULSE", 0.01)
    monkeypatch.setattr(cluster, "STALL", 0.1)
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    client = DeafClient()
    options = Options("tcp://nowhere:1", limit=0.05)
    flight = cluster.DaskRun(client, len, {"a": 1, "b": 2}, options, lambda key: True)
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
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    client = DeafClient()
    options = Options("tcp://nowhere:1", limit=None)
    flight = cluster.DaskRun(client, len, {"a": 1}, options, lambda key: True)
    flight.submit()
    for _ in range(5):
        assert list(flight.collect()) == []
    assert client.cancelled == []


class LosingClient(DeafClient):
    """A cluster that loses each result with its worker, once, and computes it anew."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def future(self, name, silent):
        made = SimpleNamespace(key=name, status="lost", listeners=0)

        def listen(call):
            made.listeners += 1
            if made.listeners == 2:
                made.status = "finished"
            call(made)

        made.add_done_callback = listen
        return made

    async def gather(self, futures, errors, asynchronous):
        self.asked += futures
        if len(self.asked) == 1:  # and then it does not answer in time
            await asyncio.sleep(1.0)
        return {name: Outcome(record=name) for name in futures}


def test_a_result_lost_with_its_worker_is_waited_for_and_no_dead_scheduler(monkeypatch):
    monkeypatch.setattr(cluster, "PULSE", 0.01)
    monkeypatch.setattr(cluster, "FETCH", 0.05)
    client = LosingClient()
    flight = cluster.DaskRun(
        client, len, {"a": 1}, Options("tcp://x:1"), lambda key: True
    )
    done, end = [], time.monotonic() + 20
    while flight.busy:
        assert time.monotonic() < end, "the second end was never heard of"
        flight.submit()
        done += flight.collect()
    assert [(f.key, f.tries) for f in done] == [("a", 1)]
    assert len(client.waves) == 1  # Dask computes it again, we do not
    assert len(client.asked) == 2


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
