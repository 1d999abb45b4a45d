"""News of a run can be lost with a worker: then the run is sent again, once."""

import time
from types import SimpleNamespace

from geolib.sweep import cluster
from geolib.sweep.attempt import Outcome
from geolib.sweep.engines import Options


class DeafClient:
    """A cluster whose first wave of runs never reports; later ones end at once."""

    status = "running"

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

    def gather(self, futures):
        return [Outcome(record=f.key) for f in futures]

    def cancel(self, futures):
        self.cancelled += [f.key for f in futures]


def test_silence_beyond_the_limit_sends_the_runs_again(monkeypatch):
    monkeypatch.setattr(cluster, "PULSE", 0.01)
    monkeypatch.setattr(cluster, "STALL", 0.1)
    client = DeafClient()
    options = Options("tcp://nowhere:1", limit=0.05)
    flight = cluster.Flight(client, len, {"a": 1, "b": 2}, options, lambda key: True)
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
    options = Options("tcp://nowhere:1", limit=None)
    flight = cluster.Flight(client, len, {"a": 1}, options, lambda key: True)
    flight.submit()
    for _ in range(5):
        assert list(flight.collect()) == []
    assert client.cancelled == []
