"""Wrong arguments for every public function: one argument of a good call at a time.

The good calls are those of the doctests: each public function and class has one, and
what its functions and methods are given there is noted as they run. A wrong value is
then put in the place of each argument in turn, and what comes of it has a verdict:

- named: an error of the library's own that names the argument;
- unnamed: an error of the library's own that does not;
- answered: a result without NaN;
- raw: an error from inside torch, numpy, scipy or Python;
- NaN: a result with a NaN where the good call's has none;
- slow: no end within a minute.

Beside the listed values, each seed draws one more for each argument.

`python tests/trust/fuzz.py [NAME ...]` prints the cells that are raw, NaN or slow;
without names it tries everything and writes the counts to `reliability.yml`. `--seeds`
draws from others than the fixed ones.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import doctest
import functools
import inspect
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor, nn

HERE = Path(__file__).parent
STORE = HERE / "reliability.yml"
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import house_rules  # noqa: E402
from trust_functions import own_error  # noqa: E402

from geolib.doors import entrances  # noqa: E402

FACTORY = dataclasses._HAS_DEFAULT_FACTORY  # type: ignore[attr-defined]
VERDICTS = ("named", "unnamed", "answered", "raw", "NaN", "slow")
BAD = ("raw", "NaN", "slow")
STORED = yaml.safe_load(STORE.read_text())
MINUTE, MEMORY = 60, 6 << 30
SEEDS = (1, 2, 3)
# The press and the sweeps start processes and write files; their doors are tried by hand.
ROOMS = [r for r in house_rules.ROOMS if r not in ("press", "sweep")]


def subjects() -> list[str]:
    """All public functions and classes, as room.name; of records callers only read."""
    every = ((r, n, o) for r in ROOMS for n, o in house_rules.public(r).items())
    return [f"{r}.{n}" for r, n, o in every if functions(o)]


@dataclasses.dataclass
class Call:
    """A function with the arguments of a good call, by name."""

    label: str
    fn: Any
    arguments: dict[str, Any]
    me: Any = None  # of a method

    def run(self, **changed: Any) -> Any:
        arguments = {**{k: copied(v) for k, v in self.arguments.items()}, **changed}
        given = inspect.signature(self.fn).parameters.values()
        spread = [p.name for p in given if p.kind is p.VAR_POSITIONAL]
        keywords = [p.name for p in given if p.kind is p.VAR_KEYWORD]
        before = []
        if spread:
            names = [p.name for p in given]
            for name in names[: names.index(spread[0])]:
                before.append(arguments.pop(name))
            before += arguments.pop(spread[0])
        for name in keywords:
            arguments |= arguments.pop(name)
        if self.me is None:
            return self.fn(*before, **arguments)
        me = copied(self.me)
        return me, getattr(me, self.fn.__name__)(*before, **arguments)


def copied(value: Any) -> Any:
    """A deep copy, where there can be one."""
    try:
        return copy.deepcopy(value)
    except Exception:  # a graph, a generator, a handle
        return value


def good_calls(subject: str) -> list[Call]:
    """The first call of each public function of the subject in its own doctest."""
    room, name = subject.split(".")
    obj = house_rules.public(room)[name]
    found: dict[str, Call] = {}

    def note(member: str, fn: Any, held: dict[str, Any]) -> None:
        held = {n: v for n, v in held.items() if v is not FACTORY}
        if member in found or any(isinstance(v, Iterator) for v in held.values()):
            return  # what can be read once only
        first = next(iter(held), "") if inspect.isclass(obj) else ""
        me = held.pop(first) if first in ("self", "cls") else None
        label = subject if member in ("", "__init__") else f"{subject}.{member}"
        if member == "__init__":
            fn, me = obj, None
        found[member] = Call(label, fn, {k: copied(v) for k, v in held.items()}, me)

    examples = doctest.DocTestParser().get_examples(inspect.getdoc(obj) or "")
    with contextlib.ExitStack() as stack:
        for place, named, value in noted(obj, note):
            stack.enter_context(mock.patch.object(place, named, value))
        globs = dict(vars(sys.modules[obj.__module__]))
        for example in examples:
            code = compile(example.source, subject, "single")
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.suppress(Exception),
            ):
                exec(code, globs)
    return list(found.values())


def noted(obj: Any, note: Any) -> Iterator[tuple[Any, str, Any]]:
    """Where the functions stand, and each with its arguments noted when it is called."""

    def noting(member: str, fn: Any) -> Any:
        @functools.wraps(fn)
        def call(*args: Any, **keywords: Any) -> Any:
            with contextlib.suppress(TypeError):
                bound = inspect.signature(fn).bind(*args, **keywords)
                bound.apply_defaults()
                note(member, fn, dict(bound.arguments))
            return fn(*args, **keywords)

        return call

    if inspect.isclass(obj):
        for member, _ in functions(obj):
            place = next(k for k in obj.__mro__ if member in vars(k))
            fn = vars(place)[member]
            call = noting(member, getattr(fn, "__func__", fn))
            yield place, member, call if inspect.isfunction(fn) else type(fn)(call)
        return
    for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "geolib"]:
        for named in [n for n, v in vars(module).items() if v is obj]:
            yield module, named, noting("", obj)


def functions(obj: Any) -> list[tuple[str, Any]]:
    """A function itself, or the constructor and the public methods of a class."""
    if not inspect.isclass(obj):
        return [("", obj)] if inspect.isfunction(obj) else []
    found = {}
    for kind in reversed(obj.__mro__):
        if kind.__module__.startswith("geolib"):
            for name in entrances(kind):
                fn = vars(kind)[name]
                fn = getattr(fn, "__func__", fn)
                if inspect.isfunction(fn):
                    found[name] = fn
    return list(found.items())


# ---- wrong values --------------------------------------------------------------------


def wrong(value: Any) -> dict[str, Any]:
    """Values that are wrong in the place of this one, or at least unusual."""
    found = {"None": None, "string": "text", "list": [], "dict": {}, "number": 7}
    if isinstance(value, nn.Module):
        found |= {"NaN": filled(value, torch.nan), "empty": nn.Sequential()}
        found |= {"shape": nn.Linear(3, 5).double(), "class": type(value)}
    elif isinstance(value, Tensor | np.ndarray):
        found |= wrong_tensor(value)
    elif isinstance(value, bool | np.bool_):
        found = {"None": None, "string": "text", "list": []}
    elif isinstance(value, int | np.integer):
        found |= {"zero": 0, "negative": -3, "huge": 10**15, "fraction": 2.5}
        found |= {"tensor": torch.ones(2), "true": True}
        found |= {"NaN": float("nan"), "inf": float("inf")}
        del found["number"]
    elif isinstance(value, float | np.floating):
        found |= {"zero": 0.0, "negative": -1.0, "huge": 1e200, "tiny": 1e-200}
        found |= {"late": 1e6, "stiff": 1e12, "tensor": torch.ones(2)}
        found |= {"NaN": float("nan"), "inf": float("inf"), "complex": 1j}
        del found["number"]
    elif isinstance(value, str):
        del found["string"]
        found |= {"name": "no such name", "device": "cuda:7", "bytes": b"text"}
    elif isinstance(value, Mapping):
        del found["dict"]
        for key in list(value)[:1]:
            found |= {f"{k} in it": {**value, key: v} for k, v in inner(value[key])}
    elif isinstance(value, list | tuple):
        found |= {"None in it": [*value, None], "string in it": [*value, "text"]}
        if value:
            rest = list(value)[1:]
            found |= {
                f"{k} in it": type_of(value)([v, *rest]) for k, v in inner(value[0])
            }
    if value is None:
        del found["None"]
    return found


def inner(value: Any) -> list[tuple[str, Any]]:
    """NaN, inf and empty in the place of an entry."""
    kept = ("NaN", "inf", "empty", "negative", "shape")
    return [(k, v) for k, v in wrong(value).items() if k in kept]


def type_of(value: Any) -> Callable[[list], Any]:
    return tuple if isinstance(value, tuple) else list


def filled(module: nn.Module, value: float) -> nn.Module:
    """A copy whose first parameter is filled with a value."""
    module = copied(module)
    for p in list(module.parameters())[:1]:
        p.data.fill_(value)
    return module


def wrong_tensor(value: Any) -> dict[str, Any]:
    """Entries, shapes and types."""
    torched = isinstance(value, Tensor)
    t = value.detach().clone() if torched else np.array(value)
    found = {
        "extra axis": t[None],
        "complex": t + 0j,
        "negative": ~t if t.dtype == torch.bool else -t - 1,
    }
    found |= {"column": t[..., None], "boolean": t > 0, "scalar": t.sum()}
    if t.ndim:
        found |= {"one": t[:1], "one of each": t[(slice(1),) * t.ndim]}
        found |= {"empty": t[:0], "shorter": t[..., :-1], "fewer": t[1:]}
        longer = torch.cat if torched else np.concatenate
        found["longer"] = longer([t, t], -1)
    if t.dtype.kind == "f" if not torched else t.is_floating_point():
        for name, number in (("NaN", np.nan), ("inf", np.inf), ("huge", 1e30)):
            bad = copied(t)
            bad[...] = t * number if name == "huge" else t
            if name != "huge" and (t.numel() if torched else t.size):
                bad.reshape(-1)[0] = number
            found[name] = bad
        found["whole"] = t.long() if torched else t.astype(int)
        found["half"] = t.half() if torched else t.astype(np.float16)
        found["late"] = t * 1e6
    if torched:
        found["sparse"] = t.to_sparse()
        found["gradient"] = t.requires_grad_() if t.is_floating_point() else t
    else:
        found["object"] = np.array([None, "text"], dtype=object)
    return found


def drawn(value: Any, seed: int) -> Any:
    """Another value than this one, of a like kind most of the time."""
    rng = np.random.default_rng(seed)
    kind = (
        rng.choice([int, float, Tensor, np.ndarray, list, str])
        if rng.random() < 0.2
        else None
    )
    number = float(rng.choice([-1, 1]) * 10.0 ** rng.uniform(-14, 14))
    if kind is float or (kind is None and isinstance(value, float | np.floating)):
        return number
    if kind is int or (kind is None and isinstance(value, int | np.integer)):
        return int(rng.integers(-5, 200))
    if kind in (Tensor, np.ndarray) or isinstance(value, Tensor | np.ndarray):
        return drawn_tensor(value, rng, kind or type(value))
    if kind is list or isinstance(value, list | tuple):
        entries = list(value) if isinstance(value, list | tuple) else [value]
        return (
            [entries[i] for i in rng.integers(0, max(1, len(entries)), rng.integers(4))]
            if entries
            else [number]
        )
    if isinstance(value, Mapping):
        return dict(list(value.items())[: rng.integers(len(value) + 1)])
    if isinstance(value, nn.Module):
        return nn.Linear(*(int(k) for k in rng.integers(1, 5, 2))).double()
    return str(rng.choice(["auto", "mean", "", "cpu", "full"]))


def drawn_tensor(value: Any, rng: Any, kind: Any) -> Any:
    """Entries of any size and type in a shape that differs in one axis, or in all."""
    shape = list(np.shape(value.detach() if isinstance(value, Tensor) else value))
    if shape and rng.random() < 0.7:
        shape[rng.integers(len(shape))] = int(rng.integers(0, 5))
    else:
        shape = [int(k) for k in rng.integers(1, 5, rng.integers(4))]
    entries = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6)
    types = [np.float16, np.float32, np.float64, np.float64, np.int64, bool, complex]
    array = np.asarray(entries).astype(types[rng.integers(len(types))])
    return array if kind is np.ndarray else torch.as_tensor(array)


# ---- verdicts ------------------------------------------------------------------------


def has_nan(value: Any, depth: int = 4) -> bool:
    """Whether there is a NaN in a result, attributes included."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    if isinstance(value, Tensor):
        dense = value.detach()
        dense = dense.to_dense() if dense.layout != torch.strided else dense
        return bool(torch.isnan(dense).any())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fc" and bool(np.isnan(value).any())
    if isinstance(value, str | int | type) or value is None or depth == 0:
        return False
    if isinstance(value, nn.Module):
        return has_nan(dict(value.state_dict()), 1)
    if isinstance(value, Mapping):
        return any(has_nan(v, depth - 1) for v in value.values())
    if isinstance(value, list | tuple | set):
        return any(has_nan(v, depth - 1) for v in value)
    if getattr(value, "converged", True) is False:
        return False  # it says so
    if type(value).__module__.startswith("geolib"):
        return has_nan(vars(value), depth - 1) if hasattr(value, "__dict__") else False
    return False


def verdict(call: Call, name: str, value: Any, known: bool) -> tuple[str, str]:
    """What comes of a wrong value, and the error's words. `known`: NaN in the good call."""
    try:
        result = call.run(**{name: value})
        return ("NaN" if has_nan(result) and not known else "answered"), ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}".split("\n")[0][:160]
        if not own_error(error) and not told(error):
            return "raw", said
        return ("named" if name in str(error) else "unnamed"), said


def told(error: BaseException) -> bool:
    """Whether a line of geolib raised an error that says how a run ended."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames and (house_rules.PACKAGE in Path(frames[-1].filename).parents)
    raised = ours and (frames[-1].line or "").startswith("raise ")
    return bool(raised) and isinstance(
        error, RuntimeError | MemoryError | ArithmeticError
    )


def values(good: Any, seeds: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """The wrong values of an argument, each under its name."""
    yield from wrong(good).items()
    for seed in seeds:
        yield f"drawn {seed}", drawn(good, seed)


def tried(
    subject: str, seeds: Sequence[int], send: Callable[[tuple], None], skip: int
) -> None:
    """All cells of one subject, in order; each is announced and then answered."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(tempfile.mkdtemp())
    count = 0
    for call in good_calls(subject):
        torch.manual_seed(0)
        try:
            known = has_nan(call.run())
        except Exception as error:
            if call.me is None:  # a method may need what its class does before it
                send(("broken", call.label, "", f"{type(error).__name__}: {error}"))
            continue
        given = inspect.signature(call.fn).parameters
        for name, good in call.arguments.items():
            if given[name].kind is inspect.Parameter.VAR_KEYWORD:
                continue
            for kind, value in values(good, seeds):
                count += 1
                if count > skip:
                    send(("start", call.label, name, kind))
                    with contextlib.redirect_stdout(io.StringIO()):
                        found = verdict(call, name, value, known)
                    send((*found, None, None))
    send(("end", "", "", ""))


def fuzz(
    subject: str, seeds: Sequence[int] = SEEDS, seconds: float = MINUTE
) -> tuple[list[tuple], list[str]]:
    """The cells of a subject, (label, argument, value, verdict, words), and what broke."""
    fork = multiprocessing.get_context("fork")
    cells: list[tuple] = []
    broken: list[str] = []
    while True:
        ours, theirs = fork.Pipe(False)
        child = fork.Process(
            target=tried, args=(subject, seeds, theirs.send, len(cells))
        )
        child.start()
        theirs.close()
        at: tuple | None = None
        try:
            while True:
                if not ours.poll(seconds if at else 5 * MINUTE):
                    raise TimeoutError
                message = ours.recv()
                if message[0] == "end":
                    return cells, broken
                if message[0] == "broken":
                    broken.append(f"{message[1]}: {message[3]}")
                elif message[0] == "start":
                    at = message[1:]
                else:
                    cells.append((*(at or ()), *message[:2]))
                    at = None
        except (TimeoutError, EOFError) as error:
            if at is None:
                return cells, [*broken, f"{subject}: no end of the good call"]
            slow = isinstance(error, TimeoutError)
            cells.append((*at, "slow" if slow else "raw", "" if slow else "died"))
        finally:
            child.kill()
            child.join()
            ours.close()


def summary(results: dict[str, tuple]) -> dict[str, dict[str, int]]:
    """How many cells of each room have each verdict."""
    counts: dict[str, Counter] = {}
    for subject, (cells, _) in results.items():
        room = counts.setdefault(subject.split(".")[0], Counter())
        room.update(found for *_, found, _ in cells)
    return {r: {v: c[v] for v in VERDICTS} for r, c in counts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--seconds", type=float, default=MINUTE)
    given = parser.parse_args()
    results = {}
    for subject in subjects():
        if not given.names or any(subject.startswith(a) for a in given.names):
            start = time.monotonic()
            cells, broken = results[subject] = fuzz(subject, given.seeds, given.seconds)
            print(f"# {subject}: {time.monotonic() - start:.0f} s", flush=True)
            for line in broken:
                print("BROKEN", line)
            for label, name, kind, found, said in cells:
                if found in BAD:
                    print(f"{found:4} {label}({name}={kind}): {said}", flush=True)
    counts = summary(results)
    print(yaml.safe_dump(counts, sort_keys=False))
    if not given.names and given.seeds == SEEDS:
        STORED["fuzz"] = counts
        for name in STORED["quick"]:
            STORED["quick"][name] = dict(Counter(c[3] for c in results[name][0]))
        STORE.write_text(yaml.safe_dump(STORED, sort_keys=False, allow_unicode=True))
