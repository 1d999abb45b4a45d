"""What a sweep costs beyond its runs: seconds a spec, and how that grows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Result, benchmark, clocks, race
from geolib.sweep import Options, Store, Sweep, run_sweep


@dataclass(frozen=True)
class Nothing:
    """A run that does nothing."""

    n: int


def trivial(spec: Nothing) -> dict[str, Any]:
    """The square of a number: no work, so that all time is overhead."""
    return {"value": spec.n**2}


def through_store(n: int, scheduler: str) -> int:
    """Run n trivial specs into a fresh store; how many are there afterwards."""
    sweep = Sweep("trivial", trivial, {"small": lambda: map(Nothing, range(n))})
    with tempfile.TemporaryDirectory() as folder:
        report = run_sweep(sweep, "small", Store(folder), Options(scheduler))
    return report.done


@benchmark("sweep.overhead", bar="<= 4", size="1000 specs, 2 workers")
def overhead() -> Result:
    """A thousand trivial runs through the store, beside bare task submission"""
    from dask.distributed import Client, LocalCluster

    n = 1000
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        silence_logs="CRITICAL",
    ) as cluster:
        address = cluster.scheduler_address

        def dask():
            client = Client(address, set_as_default=False)

            def bare() -> int:
                specs = [Nothing(i) for i in range(n)]
                return len(client.gather(client.map(trivial, specs, pure=False)))

            return bare

        return race(
            lambda: through_store(n, address),
            {"distributed map": dask},
            within=0.0,
            rounds=3,
            clock="wall",
            note="The peer keeps no result on disk and does not survive a killed "
            "client. Wall time, since the workers are other processes.",
        )


@benchmark("sweep.growth", bar="<= 0.01", of="ours", size="10000 specs, 2 workers")
def growth() -> Result:
    """Overhead a run, cluster start included, as the number of runs grows"""
    sizes = [100, 1_000, 10_000]
    series: dict[str, list[float]] = {"local": [], "inline": []}
    for n in sizes:
        for scheduler, seconds in series.items():
            begin = clocks()[0]
            through_store(n, scheduler)
            seconds.append((clocks()[0] - begin) / n)
    curve = {
        "x": sizes,
        "x_label": "number of runs",
        "y_label": "CPU seconds a run",
        "series": {"Dask workers": series["local"], "in process": series["inline"]},
    }
    return Result(
        series["local"][-1],
        curve=curve,
        note="CPU time of client, scheduler and workers; one pass.",
    )
