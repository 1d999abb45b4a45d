"""What runs inside a notebook's kernel: a bound on what it prints, and its imports."""

import json
import resource
import sys
import threading
from pathlib import Path
from runpy import run_path

LIMIT = 4_000_000  # characters that one notebook may print: pages hold far less
PACKAGE = Path(__file__).parents[1]
FIGURES = "book/_ext/figures.py"
_printed = 0


class OutputLimitError(RuntimeError):
    """A notebook printed more than a page can hold."""


def start() -> bool:
    """Bound what this process may print, and let the book draw its figures its own way."""
    for figures in [f for p in Path.cwd().parents for f in p.glob(FIGURES)]:
        run_path(str(figures))["start"]()
    for stream in (sys.stdout, sys.stderr):
        stream.write = _bounded(stream.write)  # type: ignore[method-assign]
    return True


def _bounded(write):  # type: ignore[no-untyped-def]
    def bounded(text: str) -> int:
        global _printed
        _printed += len(text)
        if _printed <= LIMIT:
            return write(text)
        # Other threads carry what child processes print: they go on, unheard.
        if threading.current_thread() is threading.main_thread():
            raise OutputLimitError(f"the notebook printed over {LIMIT // 10**6} MB")
        return len(text)

    return bounded


def report() -> str:
    """As JSON: the files of geolib that were imported, whether too much was printed,
    and the cost: processor seconds, and the most memory that was held, in MB.

    The press's own modules are left out: they are here because it looks.
    """
    ours = (m for n, m in list(sys.modules.items()) if f"{n}.".startswith("geolib."))
    files = {Path(f) for m in ours if (f := getattr(m, "__file__", None))}
    names = {f.relative_to(PACKAGE).as_posix() for f in files if PACKAGE in f.parents}
    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = used.ru_maxrss >> (20 if sys.platform == "darwin" else 10)  # bytes, or kB
    cost = {"seconds": round(used.ru_utime + used.ru_stime, 1), "memory": memory}
    overflow = _printed > LIMIT
    inside = sorted(n for n in names if not n.startswith("press/"))
    return json.dumps({"modules": inside, "overflow": overflow, "cost": cost})
