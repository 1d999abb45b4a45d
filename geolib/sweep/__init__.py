"""Many runs of one function, here or on a cluster, each stored once.

    @dataclass(frozen=True)
    class Spec:
        seed: int
        width: int

    sweep = Sweep("demo", run, {"small": lambda: grid(Spec, seed=range(3), width=8)})
    run_sweep(sweep, "small", Store("results"))          # skips what is stored
    Store("results").table("demo")                       # as a pandas data frame

The engine is this process, Dask workers on this machine, or any Dask scheduler by its
address; the code of a sweep does not know which. What a chapter measured once is kept
beside it in the same form, and `measured` reads it.
"""

from geolib.files import exported as _exported
from .engines import Options as Options
from .registry import find as find, sweep_rows as sweep_rows
from .runner import Sweep as Sweep, run_sweep as run_sweep
from .store import Store as Store, grid as grid, keep as keep
from .store import means as means, measured as measured


__all__ = _exported(globals())
