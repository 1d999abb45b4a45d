"""`geolib bench [NAME ...]`: every benchmark in a process of its own.

Results go to `benchmarks/results.json` after each benchmark (a rerun of some replaces
only those rows), and the page `book/benchmarks.md` is written from them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import REGISTRY, DisagreementError, Result
from benchmarks.machine import accelerator, machine, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
MARK = "BENCHMARK-RECORD "
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
              "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")  # fmt: skip


def discover(folder: Path = HERE) -> list[dict[str, Any]]:
    """Import every `bench_*.py`; a record for each file that cannot be imported."""
    broken = []
    for path in sorted(folder.glob("bench_*.py")):
        try:
            _import(path)
        except Exception as error:  # one broken file must not hide the others
            reason = f"{type(error).__name__}: {error}"
            name = f"{path.stem.removeprefix('bench_')}.import"
            broken.append({"name": name, "verdict": "failed", "error": reason})
    return broken


def _import(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmarks.{path.stem}", path)
    if spec is None or spec.loader is None or spec.name in sys.modules:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise


def measure(name: str, folder: Path = HERE) -> dict[str, Any]:
    """Run one benchmark in this process, on one thread; its record."""
    discover(folder)
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(1)
    case = REGISTRY[name]
    about = {"machine": machine(), "versions": versions()}
    try:
        return case.record(case.run()) | about
    except DisagreementError as error:
        return case.header() | about | {"verdict": "disagrees", "error": str(error)}
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return case.header() | about | {"verdict": "failed", "error": reason}


def spawn(name: str, limit: float, folder: Path = HERE) -> dict[str, Any]:
    """Run one benchmark in a process of its own; its record whatever happens.

    `cost` is the CPU time of that process and its children, in seconds.
    """
    before = children_seconds()
    record = _spawned(name, limit, folder)
    return record | {"cost": round(children_seconds() - before, 1)}


def children_seconds() -> float:
    """CPU seconds of all ended children of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _spawned(name: str, limit: float, folder: Path) -> dict[str, Any]:
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
    command = [sys.executable, "-m", "benchmarks.run", "--one", name]
    command += ["--folder", str(folder)]
    header = REGISTRY[name].header()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=limit,
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return header | {"verdict": "failed", "error": f"no end after {limit:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    reason = f"process ended with code {done.returncode} and no record"
    return header | {"verdict": "failed", "error": reason}


def store(records: list[dict[str, Any]], path: Path = RESULTS) -> None:
    """Merge records into the file by name; written to another name, then renamed."""
    known = {row["name"]: row for row in load(path)}
    known |= {row["name"]: row for row in records}
    rows = [known[name] for name in sorted(known)]
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as stream:
        json.dump(rows, stream, indent=1, sort_keys=True)
        stream.write("\n")
    os.chmod(partial, 0o644)
    os.replace(partial, path)


def load(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The stored records; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def forget(path: Path, known: set[str]) -> None:
    """Drop the stored rows of benchmarks that are no more."""
    rows = load(path)
    if any(row["name"] not in known for row in rows):
        path.unlink()
        store([row for row in rows if row["name"] in known], path)


def line(record: dict[str, Any]) -> str:
    """One line about a record, for the terminal."""
    if "error" in record:
        return f"{record['verdict']:10} {record['name']}: {record['error']}"
    peers = ", ".join(
        f"{peer['name']} not run"
        if peer["not_run"]
        else f"{peer['ratio']:.3g} x {peer['name']}"
        for peer in record["peers"]
    )
    tail = f" (bar {record['bar']} on {record['of']})" if record["bar"] else ""
    value = f"{record['ours']:.3g} {record['unit']}"
    return f"{record['verdict']:10} {record['name']}: {value}; {peers}{tail}"


def select(names: list[str], slow: bool) -> list[str]:
    """Names as given, and all of a chapter; slow ones only by name or with `slow`.

    Raises:
        SystemExit: a name that matches nothing.
    """
    if not names:
        return sorted(n for n, case in REGISTRY.items() if slow or not case.slow)
    chosen: set[str] = set()
    for wanted in names:
        inside = [n for n in REGISTRY if n.startswith(f"{wanted}.")]
        found = [n for n in inside if slow or not REGISTRY[n].slow]
        found += [wanted] if wanted in REGISTRY else []
        if not found:
            raise SystemExit(f"no benchmark {wanted!r}; known: {sorted(REGISTRY)}")
        chosen.update(found)
    return sorted(chosen)


def missing(names: list[str], path: Path) -> list[str]:
    """Those of the names without a stored figure, in their order."""
    held = {row["name"] for row in load(path) if "error" not in row}
    return [name for name in names if name not in held]


def without_gpu(names: list[str], path: Path) -> list[str]:
    """The names to run here; those that need an absent GPU are said, and stay stored."""
    needy = [n for n in names if REGISTRY[n].gpu]
    if not needy or accelerator() is not None:
        return names
    reason = {"verdict": "not run", "error": "no CUDA device here"}
    absent = [REGISTRY[n].header() | reason for n in needy]
    new = missing(needy, path)
    store([row for row in absent if row["name"] in new], path)
    for row in absent:
        print(line(row), flush=True)
    return [n for n in names if n not in needy]


def by_hand(names: list[str], figure: float, note: str) -> dict[str, Any]:
    """The record of a row whose figure was measured elsewhere, e.g. `time make test`.

    Raises:
        SystemExit: not exactly one row, or one whose bar is about a ratio.
    """
    if len(names) != 1 or names[0] not in REGISTRY:
        raise SystemExit("--record: expected the full name of one benchmark")
    case = REGISTRY[names[0]]
    if case.bar is not None and case.of != "ours":
        raise SystemExit(f"--record: {case.name} is about a {case.of}, not a figure")
    text = note or "Measured by hand, one run, wall time."
    about = {"machine": machine(), "versions": versions()}
    return case.record(Result(figure, note=text)) | about


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; 1 when one failed, disagreed or missed its bar."""
    parser = argparse.ArgumentParser(
        prog="geolib bench", epilog="Example: geolib bench core --missing"
    )
    parser.add_argument("names", nargs="*", help="names or chapters; default: all")
    parser.add_argument("--slow", action="store_true", help="also the slow ones")
    parser.add_argument(
        "--missing", action="store_true", help="only those without a stored result"
    )
    parser.add_argument(
        "--record", type=float, metavar="FIGURE",
        help="store a figure for the one named row that was measured by hand",
    )  # fmt: skip
    parser.add_argument("--note", default="", help="how a recorded figure was taken")
    parser.add_argument("--list", action="store_true", help="only list the names")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=HERE, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        record = measure(chosen.one, chosen.folder)
        print(MARK + json.dumps(record, default=float), flush=True)
        return 0
    records = discover(chosen.folder)
    if chosen.list:
        print("\n".join(sorted(REGISTRY)))
        return 0
    from benchmarks.render import write_beside

    path = chosen.folder / RESULTS.name
    if not chosen.names:
        forget(path, {row["name"] for row in records} | set(REGISTRY))
    store(records, path)
    for row in records:
        print(line(row), flush=True)
    if chosen.record is not None:
        store([by_hand(chosen.names, chosen.record, chosen.note)], path)
        write_beside(path)
        return 0
    wanted = select(chosen.names, chosen.slow)
    if chosen.missing:
        wanted = missing(wanted, path)
    wanted = without_gpu(wanted, path)
    for name in wanted:
        limit = chosen.limit * (10 if REGISTRY[name].slow else 1)
        records.append(spawn(name, limit, chosen.folder))
        store(records[-1:], path)
        print(line(records[-1]), flush=True)
    write_beside(path)
    total = sum(r.get("cost", 0.0) for r in records)
    print(f"{len(wanted)} benchmarks, {total / 60:.1f} minutes of CPU time")
    bad = [r for r in records if r["verdict"] in ("failed", "disagrees", "missed")]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
