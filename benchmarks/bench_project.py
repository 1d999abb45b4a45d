"""The whole project: import time, and the commands a newcomer types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Result, benchmark, race

ROOT = Path(__file__).resolve().parent.parent


def fresh(statement: str) -> None:
    """Run a statement in a new interpreter, with compiled files as usual."""
    usual = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT, env=usual)


CHAPTERS = ("stratifolds", "naturality", "geodesics", "regimes", "inverse_stability")


def imports(*modules: str) -> Result:
    """Race importing modules of ours against importing torch."""

    def torch():
        import torch  # noqa: F401  (absent: not run)

        return lambda: fresh("import torch")

    statement = "; ".join(f"import {module}" for module in modules)
    note = "CPU time of the interpreter's whole life, start and end included."
    return race(lambda: fresh(statement), {"torch": torch}, note=note)


@benchmark("project.import", bar="<= 1.2", size="new interpreter each time")
def import_core() -> Result:
    """`import geolib, geolib.core`, against `import torch`"""
    return imports("geolib", "geolib.core")


@benchmark("project.import_all", bar="<= 1.2", size="new interpreter each time")
def import_all() -> Result:
    """`geolib` with all five chapters, against `import torch`"""
    return imports("geolib.core", *(f"geolib.{chapter}" for chapter in CHAPTERS))


def make(target: str, folder: Path) -> float:
    """Wall seconds of one `make` there, with bundled data only.

    Raises:
        RuntimeError: make failed; the end of its output is in the message.
    """
    start = time.perf_counter()
    done = subprocess.run(
        ["make", target],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "GEOLIB_DATA"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"make {target}: {done.stdout[-400:]}")
    return time.perf_counter() - start


def clone(into: str) -> Path:
    """A clone of the last commit, as a newcomer has it."""
    folder = Path(into) / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


@benchmark("project.make_book_cold", bar="<= 480", of="ours", size="fresh clone",
           slow=True)  # fmt: skip
def make_book_cold() -> Result:
    """`make book` in a fresh clone, setting the environment up included"""
    with tempfile.TemporaryDirectory() as scratch:
        seconds = make("book", clone(scratch))
    return Result(seconds, note="One run, wall time; downloads depend on the network.")


@benchmark("project.make_book_warm", bar="<= 4", of="ours", size="nothing changed",
           slow=True)  # fmt: skip
def make_book_warm() -> Result:
    """A second `make book` with nothing changed"""
    make("book", ROOT)
    seconds = sorted(make("book", ROOT) for _ in range(3))
    return Result(seconds[1], note="Median of three runs, wall time.")


@benchmark("project.page_after_text", bar="<= 25", of="ours", size="one notebook",
           slow=True)  # fmt: skip
def page_after_text() -> Result:
    """`make book` after a change of one notebook's text, less the notebook's own run"""
    with tempfile.TemporaryDirectory() as scratch:
        folder = clone(scratch)
        make("book", folder)
        seconds = []
        for n in range(3):
            source = folder / "chapters" / "regimes" / "02-prism.md"
            source.write_text(source.read_text() + f"\nA sentence, number {n}.\n")
            seconds.append(make("book", folder) - alone(folder, "regimes/02-prism"))
    return Result(sorted(seconds)[1], note="Median of three, wall time.")


def alone(folder: Path, notebook: str) -> float:
    """Wall seconds to execute one notebook once more, without rendering."""
    command = [str(folder / ".venv/bin/geolib"), "run", notebook, "--force"]
    start = time.perf_counter()
    subprocess.run([*command, "--profile", "book"], cwd=folder, check=True)
    return time.perf_counter() - start


@benchmark("project.render", bar="<= 90", of="ours", size="all pages", slow=True)
def render() -> Result:
    """Rendering alone: all pages of the site, from executed notebooks"""
    make("book", ROOT)
    seconds = []
    for _ in range(3):
        for built in ("sphinx", "html", "sphinx.key", "html.key"):
            path = ROOT / "_build" / "book" / built
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        start = time.perf_counter()
        subprocess.run([str(ROOT / ".venv/bin/geolib"), "html", "--profile", "book"],
                       cwd=ROOT, check=True)  # fmt: skip
        seconds.append(time.perf_counter() - start)
    return Result(sorted(seconds)[1], note="Median of three, wall time.")


@benchmark("project.make_test", bar="<= 720", of="ours", size="all layers", slow=True)
def make_test() -> Result:
    """`make test`: linters, types, tests, notebooks, browser"""
    with tempfile.TemporaryDirectory() as scratch:
        folder = clone(scratch)
        make("setup", folder)
        shutil.rmtree(folder / "_build", ignore_errors=True)
        seconds = make("test", folder)
    return Result(seconds, note="One run in a fresh clone, after `make setup`.")


@benchmark("project.make_test_fast", bar="<= 75", of="ours", size="quick layer",
           slow=True)  # fmt: skip
def make_test_fast() -> Result:
    """`make test-fast`: linters, types and the quick unit tests"""
    return Result(make("test-fast", ROOT), note="One run, wall time.")
