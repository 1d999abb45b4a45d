"""One way to compare us with a named peer, for every file `bench_*.py`.

    @benchmark("regimes.kernel", bar="<= 1.3", size="n = 1000")
    def kernel() -> Result:
        x = ...
        def theirs():              # imports inside: a missing peer is "not run"
            import neural_tangents
            return lambda: neural_tangents.kernel(x)
        return race(lambda: ours(x), {"neural-tangents": theirs}, within=1e-6)

`race` runs both in one process, on one thread, in turns, and divides CPU times round
by round, so that a busy machine slows both alike.
"""

from __future__ import annotations

import gc
import math
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

from geolib.claims import Bound

Call = Callable[[], Any]
KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)+")
OF = ("ratio", "ours", "agreement")


class DisagreementError(AssertionError):
    """We and the peer do not compute the same thing, so a time says nothing."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over the rounds: medians, and quartiles of the clock in use."""

    cpu: float
    wall: float
    quartiles: tuple[float, float]
    rounds: int
    calls: int

    @classmethod
    def of(
        cls, cpu: list[float], wall: list[float], calls: int, clock: str = "cpu"
    ) -> Timing:
        spread = quartiles(cpu if clock == "cpu" else wall)
        return cls(
            statistics.median(cpu), statistics.median(wall), spread, len(cpu), calls
        )


@dataclass(frozen=True)
class Peer:
    """One peer: its time, our time over its, and how well the results agree."""

    name: str
    version: str | None = None
    value: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    agreement: float | None = None
    timing: Timing | None = None
    not_run: str | None = None


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    Made by `race`, or by hand where the quantity is no time:
    `Result(ours=3e-9, peer=1e-6, peer_name="scipy", unit="error")`.

    Attributes:
        ours: our figure, in `unit`.
        peer: the first peer's figure, or None when it is not there.
        agreement: the error between the two results.
        curve: how the figure grows: `{"x": [...], "x_label": "n", "y_label": "s",
            "series": {"geolib": [...], "peer": [...]}}`; None in a series is a gap.
    """

    ours: float
    peer: float | None = None
    unit: str = "s"
    peer_name: str = "peer"
    agreement: float | None = None
    note: str = ""
    timing: Timing | None = None
    peers: tuple[Peer, ...] = ()
    curve: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.peers and self.peer is not None:
            ratio = self.ours / self.peer if self.peer else math.nan
            one = Peer(
                self.peer_name, version_of(self.peer_name), self.peer, ratio,
                agreement=self.agreement,
            )  # fmt: skip
            object.__setattr__(self, "peers", (one,))

    def figure(self, of: str) -> float | None:
        """The figure a bar is about; None when its peer was not run."""
        if of == "ours":
            return self.ours
        ran = [peer for peer in self.peers if peer.not_run is None]
        if of == "agreement" and not ran:
            return self.agreement
        figures = [getattr(peer, of) for peer in ran]
        return max((f for f in figures if f is not None), default=None)


@dataclass(frozen=True)
class Benchmark:
    """A registered function and what its result must meet."""

    name: str
    run: Callable[[], Result]
    bar: str | None
    of: str
    size: str
    slow: bool
    title: str
    module: str = field(default="")
    gpu: bool = False

    def record(self, result: Result) -> dict[str, Any]:
        """The result as plain data, with its verdict."""
        figure = result.figure(self.of)
        verdict = "measured"
        if self.bar is not None:
            verdict = "not run" if figure is None else "missed"
            if figure is not None and Bound.parse(self.bar).holds(figure):
                verdict = "met"
        plain = asdict(result)
        plain.pop("peer_name"), plain.pop("peer")
        return self.header() | {"verdict": verdict, "figure": figure} | plain

    def header(self) -> dict[str, Any]:
        """What is known of the benchmark before it ran."""
        keys = ("name", "title", "bar", "of", "size")
        return {key: getattr(self, key) for key in keys}


REGISTRY: dict[str, Benchmark] = {}


def benchmark(
    name: str,
    bar: str | None = None,
    *,
    of: str = "ratio",
    size: str = "",
    slow: bool = False,
    title: str = "",
    gpu: bool = False,
) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Register a function that returns a `Result`.

    Args:
        name: dotted, unique: `chapter.what`.
        bar: a bound as in `geolib.claims.Bound`, e.g. `<= 1.3`; None: only measured.
        of: what the bar bounds: `ratio` (our time over the worst peer's), `ours`
            (our own figure) or `agreement`.
        size: the problem's size, as a reader should see it.
        slow: only run when it is named, or with `--slow`.
        title: the row's text; by default the first line of the docstring.
        gpu: needs one; elsewhere it is not run, and what is stored of it stays.

    Raises:
        ValueError: a malformed or repeated name, bar or `of`.
    """
    if not KEY.fullmatch(name):
        raise ValueError(f"name: expected 'chapter.what' in lower case, got {name!r}")
    if of not in OF:
        raise ValueError(f"of: expected one of {OF}, got {of!r}")
    if bar is not None:
        Bound.parse(bar)

    def register(function: Callable[[], Result]) -> Callable[[], Result]:
        if name in REGISTRY and REGISTRY[name].module != function.__module__:
            raise ValueError(f"name: {name!r} is registered twice")
        text = title or (function.__doc__ or name).strip().splitlines()[0].rstrip(".")
        REGISTRY[name] = Benchmark(
            name, function, bar, of, size, slow, text, function.__module__, gpu
        )
        return function

    return register


def race(
    ours: Call,
    peers: Mapping[str, Callable[[], Call]] | None = None,
    *,
    agree: Callable[[Any, Any], float] | None = None,
    within: float | None = None,
    rounds: int = 7,
    least: float = 0.05,
    clock: str = "cpu",
    note: str = "",
    curve: Mapping[str, Any] | None = None,
) -> Result:
    """Time `ours` against each peer, in turns, after one untimed call of each.

    Args:
        ours: called with nothing; its value is compared with the peers'.
        peers: name (its first word is the distribution) to a function that imports,
            sets up and returns the call to time; an `ImportError` there means
            "not run".
        agree: error between our value and a peer's; default `relative_error`, or
            nothing where both calls return None.
        within: the largest error allowed; None: the error is only reported.
        rounds: timed rounds, at least 3; each repeats a short call until `least`
            seconds have passed.
        clock: `cpu` (of this process and its children) or `wall` (for a GPU; then
            the calls must wait for the device).

    Raises:
        DisagreementError: an error is above `within`, or NaN.
        ValueError: fewer than 3 rounds or an unknown clock.
    """
    if rounds < 3:
        raise ValueError(f"rounds: expected at least 3, got {rounds}")
    if clock not in ("cpu", "wall"):
        raise ValueError(f"clock: expected 'cpu' or 'wall', got {clock!r}")
    calls: dict[str, Call] = {"": ours}
    absent: list[Peer] = []
    for name, prepare in (peers or {}).items():
        try:
            calls[name] = prepare()
        except ImportError as error:
            absent.append(Peer(name, not_run=str(error)))
    values = {name: call() for name, call in calls.items()}
    errors = {
        name: _agreed(name, values[""], value, agree or relative_error, within)
        for name, value in values.items()
        if name
    }
    del values
    gc.collect()
    gc.freeze()  # what is there already is not looked through before every round
    try:
        samples, repeats = _rounds(calls, rounds, least)
    finally:
        gc.unfreeze()
    times = {
        name: Timing.of(*samples[name], calls=repeats[name], clock=clock)
        for name in calls
    }
    pick = 0 if clock == "cpu" else 1
    found = []
    for name in errors:
        pairs = zip(samples[""][pick], samples[name][pick], strict=True)
        ratios = [mine / max(theirs, 1e-12) for mine, theirs in pairs]
        found.append(
            Peer(name, version_of(name), getattr(times[name], clock),
                 statistics.median(ratios), quartiles(ratios), errors[name],
                 times[name])
        )  # fmt: skip
    worst = max((e for e in errors.values() if e is not None), default=None)
    return Result(
        getattr(times[""], clock), found[0].value if found else None,
        agreement=worst, note=note, timing=times[""], peers=(*found, *absent),
        curve=curve,
    )  # fmt: skip


def grow(
    sizes: Sequence[int],
    measure: Callable[[int], Result],
    x_label: str,
    y_label: str = "CPU seconds",
) -> Result:
    """Measure at every size: the largest one's result, with the curve of all."""
    found = [measure(size) for size in sizes]
    series: dict[str, list[float | None]] = {
        "geolib": [result.ours for result in found]
    }
    for i, peer in enumerate(found[-1].peers):
        series[peer.name] = [result.peers[i].value for result in found]
    curve = {"x": list(sizes), "x_label": x_label, "y_label": y_label, "series": series}
    return replace(found[-1], curve=curve)


def relative_error(ours: Any, theirs: Any) -> float:
    """The largest entrywise difference over the peer's largest entry.

    Raises:
        DisagreementError: the shapes differ.
    """
    import numpy as np

    a, b = (np.asarray(getattr(v, "detach", lambda v=v: v)()) for v in (ours, theirs))
    if a.shape != b.shape:
        raise DisagreementError(f"shapes differ: {a.shape} and {b.shape}")
    scale = float(np.max(np.abs(b), initial=0.0))
    return float(np.max(np.abs(a - b), initial=0.0)) / (scale or 1.0)


def version_of(name: str) -> str | None:
    """The installed version of the distribution that a peer's name starts with."""
    try:
        return metadata.version(name.split()[0])
    except (metadata.PackageNotFoundError, ValueError, IndexError):
        return None


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _agreed(
    name: str, mine: Any, theirs: Any, agree: Callable, within: float | None
) -> float | None:
    if mine is None and theirs is None and within is None:
        return None
    error = float(agree(mine, theirs))
    if within is not None and not error <= within:
        raise DisagreementError(f"{name}: error {error:.3g} is above {within:.3g}")
    return error


def clocks() -> tuple[float, float]:
    """CPU seconds of this process and its ended children, and wall seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return cpu, time.perf_counter()


def _timed(call: Call, repeats: int) -> tuple[float, float]:
    """CPU and wall seconds a call."""
    gc.collect()
    gc.disable()
    try:
        cpu, wall = clocks()
        for _ in range(repeats):
            call()
        after = clocks()
    finally:
        gc.enable()
    return (after[0] - cpu) / repeats, (after[1] - wall) / repeats


def _rounds(
    calls: Mapping[str, Call], rounds: int, least: float
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, int]]:
    """Times of every call in every round; the order is reversed from round to round."""
    repeats = {}
    for name, call in calls.items():
        once = _timed(call, 1)[1]
        repeats[name] = max(1, min(10_000, math.ceil(least / max(once, 1e-7))))
    samples: dict[str, tuple[list[float], list[float]]] = {n: ([], []) for n in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            cpu, wall = _timed(calls[name], repeats[name])
            samples[name][0].append(cpu)
            samples[name][1].append(wall)
    return samples, repeats
