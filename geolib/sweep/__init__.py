"""Many runs of one function, here or on a cluster, each stored once.

    @dataclass(frozen=True)
    class Spec:
        seed: int
        width: int

    sweep = Sweep("demo", run, {"small": lambda: grid(Spec, seed=range(3), width=8)})
    run_sweep(sweep, "small", Store("results"))          # skips what is stored
    Store("results").table("demo")                       # as a pandas data frame

The engine is this process, Dask workers on this machine, or any Dask scheduler by its
address; the code of a sweep does not know which.
"""

from geolib.sweep.engines import Options, SweepError
from geolib.sweep.reading import means, sweep_rows
from geolib.sweep.runner import Report, Sweep, collect, run_sweep
from geolib.sweep.spec import canonical, grid, key_of
from geolib.sweep.store import Store

__all__ = [
    "Options",
    "Report",
    "Store",
    "Sweep",
    "SweepError",
    "canonical",
    "collect",
    "grid",
    "key_of",
    "means",
    "run_sweep",
    "sweep_rows",
]
