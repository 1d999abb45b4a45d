"""How the core solves: the choice of `auto` on a grid, its switch, time and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from benchmarks.bench_core import (
    DAMPING,
    STEP,
    Regression,
    digits,
    images,
    million,
    mlp,
)
from benchmarks.harness import Result, benchmark
from geolib.core import Categorical, PullbackMetric, Realization, normal

LIMIT = 4.0  # CPU seconds that conjugate gradients get at a point of the grid


def problem_of(o: int, p: int, m: int) -> Regression:
    """A network of about p parameters and m / o samples with o outputs."""
    d = 16 if p < 2000 else 64
    hidden = 1
    while hidden * (d + 1) + hidden * (hidden + 1) + (hidden + 1) * o < p:
        hidden += 1
    x = normal((m // o, d), 1, dtype=torch.float32)
    t = normal((m // o, o), 2, dtype=torch.float32)
    return Regression(mlp(d, hidden, hidden, o), x, t)


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gave."""
    gc.collect()
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def wall(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a call, with the GPU waited for, and what it gave."""
    gc.collect()
    torch.cuda.synchronize()
    start = time.perf_counter()
    value = call()
    torch.cuda.synchronize()
    return time.perf_counter() - start, value


def clock_of(problem: Regression) -> Callable[[Callable[[], Any]], tuple[float, Any]]:
    return wall if problem.x.is_cuda else cpu


def alternatives(problem: Regression) -> dict[str, Callable[[], Any]]:
    """Every single method that can be afforded: a dense G only below 3000 parameters,
    conjugate gradients with as many iterations as the limit allows.
    """
    p, m = problem.R.p, problem.t.numel()
    methods = ["woodbury"] + ["cholesky"] * (p <= 3000) + ["nystrom"] * (m >= 256)
    calls: dict[str, Callable] = {k: partial(problem.solve, k) for k in methods}
    clock = clock_of(problem)
    once = clock(partial(problem.solve, "cg", max_iterations=2))[0] / 3
    steps = int(min(1000, LIMIT / once))
    if steps >= 40:
        calls["cg"] = partial(problem.solve, "cg", max_iterations=steps)
    return calls


def compare(problem: Regression, enough: float) -> tuple[dict[str, float], str]:
    """Median seconds of `auto` and each alternative that converged, in turns."""
    clock = clock_of(problem)
    problem_of(1, 10**3, 64).to(problem.x.device.type).solve("woodbury")  # libraries
    calls = alternatives(problem) | {"auto": partial(problem.solve, "auto")}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(7):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            if name not in times:
                continue
            seconds, solution = clock(calls[name])
            times[name].append(seconds)
            if name == "auto":
                chosen = solution.method
            if not solution.converged:
                del times[name]
        if sum(map(sum, times.values())) > enough:
            break
    return {name: statistics.median(v) for name, v in times.items()}, chosen


def grid_result(
    points: list[tuple[int, int, int]], enough: float, device: str = "cpu"
) -> Result:
    """`auto` over the best alternative at each point; the worst ratio is the figure."""
    rows, ratios = [], []
    for o, p, m in points:
        times, chosen = compare(problem_of(o, p, m).to(device), enough)
        auto = times.pop("auto")
        ratios.append(auto / min(times.values()))
        cells = [times.get(k) for k in ("cholesky", "woodbury", "nystrom", "cg")]
        shown = ["" if t is None else f"{1e3 * t:.3g}" for t in cells]
        head = [str(o), f"1e{round(math.log10(p))}", str(m)]
        rows.append([*head, *shown, f"{1e3 * auto:.3g}", chosen, f"{ratios[-1]:.2f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    within = sum(r <= 1.3 for r in ratios)
    columns = ("o", "p", "n o", "cholesky", "woodbury", "nystrom",
               "cg", "auto", "chosen", "auto / best")  # fmt: skip
    return Result(
        max(ratios),
        unit="ratio",
        note=f"At {within} of {len(ratios)} points `auto` takes at most 1.3 times what "
        f"the fastest method takes; the median is {statistics.median(ratios):.2f}. "
        f"Times are median {'wall' if device == 'cuda' else 'CPU'} milliseconds. A "
        "cell is empty where a method cannot be afforded (a dense G above 3000 "
        f"parameters, conjugate gradients above {LIMIT:g} s) or does not "
        "converge.\n\n" + markdown(columns, rows),
    )


def markdown(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    """A pipe table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grid(sizes: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(outputs, parameters, rows) for one and for eight outputs."""
    return [(o, p, m) for o in (1, 8) for p in sizes for m in (32, 256, 1024, 4096)]


@benchmark(
    "core.auto", bar="<= 1.3", of="ours", size="24 points, p = 1e3..1e5, n o = 32..4096"
)
def auto_grid() -> Result:
    """`method="auto"` over the fastest single method: the worst point of a grid"""
    return grid_result(grid((10**3, 10**4, 10**5)), 2.0)


@benchmark(
    "core.auto_large",
    bar="<= 1.3",
    of="ours",
    size="16 points, p = 1e6 and 1e7, n o = 32..4096",
    slow=True,
)
def auto_grid_large() -> Result:
    """`method="auto"` over the fastest single method, for large networks"""
    return grid_result(grid((10**6, 10**7)), 3.0)


@benchmark(
    "core.auto_gpu",
    bar="<= 1.3",
    of="ours",
    size="40 points, p = 1e3..1e7, n o = 32..4096, GPU",
    gpu=True,
)
def auto_grid_gpu() -> Result:
    """`method="auto"` over the fastest single method, on a GPU"""
    return grid_result(grid(tuple(10**k for k in range(3, 8))), 0.3, "cuda")


@benchmark("core.switch", size="p = 1e4, one output, damping 1e-3, n = 64..8192")
def switch() -> Result:
    """The rows of A from which `auto` leaves the layer Gram's direct solve"""
    names = ("woodbury", "nystrom", "cg", "kfac", "auto")
    sizes, series, steps = [64 * 2**i for i in range(8)], {k: [] for k in names}, []
    leaves = math.nan
    for m in sizes:
        problem = problem_of(1, 10**4, m)
        problem.solve("woodbury")
        counts = {}
        for name in names:
            method, options = name, {}
            if name == "kfac":
                method, options = "kfac", {}
            seconds, s = cpu(partial(problem.solve, method, **options))
            series[name].append(1e3 * seconds)
            counts[name] = s.iterations
            if name == "auto" and math.isnan(leaves) and s.iterations:
                leaves = float(m)
        steps.append([str(m), *(str(counts[k]) for k in ("cg", "kfac", "nystrom"))])
    columns = ("rows", "cg", "cg with K-FAC", "nystrom")
    series["cg with K-FAC"] = series.pop("kfac")
    return Result(
        leaves,
        unit="rows",
        note="The table counts iterations to a relative residual of 3.5e-4. K-FAC as a "
        "preconditioner costs more than it saves; 512 landmarks save most.\n\n"
        + markdown(columns, steps),
        curve={"x": sizes, "x_label": "rows of A (n o)", "y_label": "CPU ms",
               "series": series},
    )  # fmt: skip


# ---- time and memory ---------------------------------------------------------------


def _status(key: str) -> float:
    """A memory figure of this process, in MiB."""
    with open("/proc/self/status") as stream:
        line = next(q for q in stream if q.startswith(key))
    return int(line.split()[1]) / 1024


def _watched(call: Callable[[], Any], first: Callable[[], Any], pipe: Any) -> None:
    try:
        first()  # so that libraries are loaded and have their own buffers
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # no freed memory is used again
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")  # the peak so far is forgotten
        before = _status("VmRSS")
        seconds, _ = cpu(call)
        mib = _status("VmHWM") - before
        if seconds < 2:
            seconds = statistics.median(cpu(call)[0] for _ in range(3))
        pipe.send((seconds, mib))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def footprint(
    call: Callable[[], Any], first: Callable[[], Any]
) -> tuple[float, float] | str:
    """CPU seconds, and MiB that the peak grows by; or the error.

    In a forked process, after `first`, which should be the same on a small problem.
    """
    gc.collect()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(False)
    child = context.Process(target=_watched, args=(call, first, there))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return "the process died"
    finally:
        child.join()


def tens() -> Regression:
    """Ten outputs, 9000 parameters, 128 samples."""
    x, t = (normal((128, d), d, dtype=torch.float32) for d in (64, 10))
    return Regression(mlp(64, 64, 64, 10), x, t)


TABLE = {
    "p = 986k, n = 256": million,
    "convolutions, p = 210k, n = 128": images,
    "p = 9k, n = 128, 10 outputs": tens,
    "p = 100k, n = 4096": partial(problem_of, 1, 10**5, 4096),
}


def ways(problem: Regression) -> dict[str, Callable[[], Any]]:
    """All steps of the table."""
    ours = {f"geolib {k}": partial(problem.step, k) for k in ("auto", "woodbury", "cg")}
    return {
        "gradient alone": problem.gradient,
        **ours,
        "geolib landmarks": partial(problem.step, "nystrom"),
        "curvlinops GGN in CG": problem.cg_on_curvlinops,
        "curvlinops K-FAC": problem.kfac_of_curvlinops,
        "nngeometry K-FAC": problem.kfac_of_nngeometry,
    }


Measure = Callable[[str, Callable[[], Any]], tuple[float, float] | str]


def step_table(
    problems: dict[str, Regression], measure: Measure
) -> tuple[float, dict[str, list[str]], str]:
    """The largest time of `auto` in gradients, a row for each way, and what failed.

    Args:
        measure: of a way's name and call, seconds and MiB, or the error.
    """
    cells: dict[str, list[str]] = {}
    notes, worst = [], 0.0
    for title, problem in problems.items():
        plain = 1.0
        for name, call in ways(problem).items():
            found = measure(name, call)
            if isinstance(found, str):
                cells.setdefault(name, []).append("not run")
                notes.append(f"{name}, {title}: {found[:120]}.")
                continue
            seconds, mib = found
            plain = seconds if name == "gradient alone" else plain
            ratio = seconds / plain
            worst = max(worst, ratio if name == "geolib auto" else 0.0)
            text = f"{1e3 * seconds:.3g} ms, {ratio:.3g} x, {mib:.3g} MiB"
            cells.setdefault(name, []).append(text)
            print(title, name, text, file=sys.stderr, flush=True)
    return worst, cells, " ".join(notes)


def table_result(
    worst: float, cells: dict[str, list[str]], note: str, titles: Iterable[str], **more
) -> Result:
    rows = [[name, *texts] for name, texts in cells.items()]
    text = note + "\n\n" + markdown(("step", *titles), rows)
    return Result(worst, unit="gradients", note=text, **more)


@benchmark("core.time_memory", size="one damped step, damping 1e-3, float32")
def time_memory() -> Result:
    """Time and memory of a step: the largest time of `auto`, in gradients"""
    first = ways(problem_of(1, 10**3, 256))
    problems = {title: build() for title, build in TABLE.items()}
    worst, cells, failed = step_table(
        problems, lambda name, call: footprint(call, first[name])
    )
    note = (
        "Each cell has the CPU time, that time in gradients, and by how much the "
        "process's peak of memory grows. The K-FAC steps are approximations. The others "
        "solve the same system: conjugate gradients to 1e-3 on curvlinops, to 3.5e-4 "
        "here. "
    )
    return table_result(worst, cells, note + failed, TABLE)


GPU_TABLE = TABLE | {"p = 10M, n = 256": partial(digits, 3100)}


def on_device(call: Callable[[], Any]) -> tuple[float, float]:
    """Median wall seconds of five calls, and MiB that the device's peak grows by."""
    wall(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = [wall(call)[0] for _ in range(5)]
    mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    return statistics.median(times), mib


def dense_step(problem: Regression) -> torch.Tensor:
    """The same step from a materialised float64 Jacobian."""
    exact = problem.to(problem.x.device, torch.float64)
    L = exact.R.linearize(exact.R.theta0, exact.x)
    J = L.jacobian(chunk=64).flatten(0, 1) / len(exact.x) ** 0.5
    u = (L.outputs - exact.t).flatten() / len(exact.x) ** 0.5
    K = J @ J.mT + DAMPING * torch.eye(len(J), dtype=J.dtype, device=J.device)
    return J.mT @ torch.linalg.solve(K, u)


def error_of_auto(problem: Regression) -> float:
    """Of the float32 step, relative to the dense one."""
    right = dense_step(problem)
    return float((problem.step("auto").double() - right).norm() / right.norm())


def tried(call: Callable[[], Any]) -> tuple[float, float] | str:
    try:
        return on_device(call)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@benchmark(
    "core.time_memory_gpu",
    size="one damped step, damping 1e-3, float32, GPU",
    gpu=True,
)
def time_memory_gpu() -> Result:
    """Time and memory of a step on a GPU: the largest time of `auto`, in gradients"""
    problems = {title: build().to("cuda") for title, build in GPU_TABLE.items()}
    errors = [error_of_auto(problem) for problem in problems.values()]
    worst, cells, failed = step_table(problems, lambda name, call: tried(call))
    cells["error of auto"] = [f"{error:.1e}" for error in errors]
    note = (
        "Each cell has the wall time with the device waited for, that time in "
        "gradients, and by how much the peak of the device's memory grows. All is in "
        "float32 without TF32; the error is that against the step from a materialised "
        "Jacobian in float64 on the same device. "
    )
    return table_result(worst, cells, note + failed, GPU_TABLE, agreement=max(errors))


@benchmark("core.memory", bar="<= 0.2", size=STEP)
def memory() -> Result:
    """Peak memory of the exact step, against the same with J materialised"""
    problem = million()

    def materialised() -> None:
        A = problem.metric.at(problem.R.theta0).rows().dense()
        K = A @ A.mT + DAMPING * torch.eye(len(A))
        A.mT @ torch.linalg.solve(K, problem.t.flatten())

    first = partial(problem_of(1, 10**3, 256).step, "woodbury")
    ours = footprint(partial(problem.step, "woodbury"), first)
    rows = footprint(materialised, first)
    if isinstance(ours, str) or isinstance(rows, str):
        raise RuntimeError(f"{ours} {rows}")
    return Result(ours[1], rows[1], unit="MiB", peer_name="dense rows")


@benchmark(
    "core.product_bandwidth",
    bar=">= 0.3",
    size="p = 1.3e8, batch 64, ten classes, float32, GPU",
    gpu=True,
)
def product_bandwidth() -> Result:
    """Bytes of weights that a Fisher product moves, over the device's copy rate"""
    device = torch.device("cuda")
    R = Realization(mlp(8192, 8192, 8192, 10).to(device))
    v = normal(R.p, 2, dtype=torch.float32).to(device)
    target = torch.empty_like(v)
    copy = 2 * R.p * 4 / on_device(lambda: target.copy_(v))[0]

    def rate(batch: int) -> float:
        x = normal((batch, 8192), 1, dtype=torch.float32).to(device)
        G = PullbackMetric(R, x, Categorical()).at(R.theta0)
        # The weights are read twice (once each way), v once, the result is written.
        return 4 * R.p * 4 / on_device(lambda: G @ v)[0]

    rates = {batch: rate(batch) for batch in (8, 16, 32, 64, 128)}
    torch.backends.cuda.matmul.allow_tf32 = True
    faster = rate(64)
    torch.backends.cuda.matmul.allow_tf32 = False
    note = (
        "The arithmetic grows with the batch and the bytes do not. The share of the "
        "copy rate is "
        + ", ".join(f"{r / copy:.2f} at batch {b}" for b, r in rates.items())
        + f"; with TF32 it is {faster / copy:.2f} at batch 64."
    )
    return Result(
        rates[64] / 1e9, copy / 1e9, unit="GB/s", peer_name="torch copy", note=note
    )
