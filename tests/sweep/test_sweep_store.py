"""Names of runs, the store, one try, and the in-process engine."""

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as workers see it

from sweep_cases import Spec, run

from geolib.sweep import Options, Store, Sweep, grid, keep, measured, run_sweep
from geolib.sweep.engines import SweepError, TimeLimitError, attempt, deadline
from geolib.sweep.store import canonical, key_of

INLINE = Options("inline", retries=1)


def sweep_of(*specs: Spec, name: str = "test") -> Sweep:
    return Sweep(name, run, {"small": lambda: specs})


# ---- names ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    width: int


@dataclass(frozen=True)
class Rich:
    rate: float
    layers: tuple[int, ...] = (8, 8)
    inner: Inner = Inner(3)
    extra: dict | None = None


def test_canonical_json_does_not_depend_on_how_it_was_written():
    a = Rich(1, (8, 8), Inner(3), {"b": 1, "a": 2})
    b = Rich(rate=np.float64(1.0), layers=[8, 8], extra={"a": 2, "b": np.int64(1)})
    assert canonical(a) == canonical(b)
    assert canonical(a) == (
        '{"extra":{"a":2,"b":1},"inner":{"width":3},"layers":[8,8],"rate":1.0}'
    )


def test_keys_tell_specs_sweeps_and_versions_apart():
    keys = {
        key_of(Rich(1.0), "a"),
        key_of(Rich(1.5), "a"),
        key_of(Rich(1.0), "b"),
        key_of(Rich(1.0), "a", 2),
    }
    assert len(keys) == 4
    assert (
        key_of(Rich(1.0), "a") == "7b2fd50bcf009bca642c85cb68a8be2b"
    )  # a store outlives a session


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (3, TypeError, "expected a dataclass instance"),
        (Rich, TypeError, "expected a dataclass instance"),
        (Rich(float("nan")), ValueError, "rate: nan"),
        (Rich(1.0, extra={1: 2}), TypeError, "extra: the keys"),
        (Rich(1.0, extra={"a": object()}), TypeError, r"extra\.a: object has no JSON"),
    ],
)
def test_what_can_name_no_run_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        canonical(spec)


def test_grid_refuses_unknown_fields():
    with pytest.raises(TypeError, match="speed"):
        grid(Spec, n=[1], speed=[1])


def test_grid_keeps_strings_whole():
    assert [s.what for s in grid(Spec, n=1, what="square")] == ["square"]


# ---- store ---------------------------------------------------------------------------

GOOD = {"status": "done", "spec": {"n": 1}, "record": {"value": 1}}
BAD = {"status": "failed", "spec": {"n": 1}, "error": "E"}


def test_a_success_replaces_a_failure(tmp_path):
    store = Store(tmp_path)
    store.put("s", "k", BAD)
    assert store.scan("s")["k"]["status"] == "failed"
    assert not store.has("s", "k")
    store.put("s", "k", GOOD)
    assert store.scan("s")["k"]["status"] == "done"
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["k.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "other"}', "\xff"])
def test_a_damaged_file_counts_as_absent_and_is_run_again(tmp_path, damage):
    store, sweep = Store(tmp_path), sweep_of(Spec(3))
    (key,) = sweep.specs("small")
    run_sweep(sweep, "small", store, INLINE)
    store.path("test", key).write_bytes(damage.encode("latin-1"))
    assert store.scan("test") == {}
    with pytest.raises(KeyError):
        store.rows("test", [key])
    assert run_sweep(sweep, "small", store, INLINE).done == 1
    assert store.rows("test", [key])[0]["value"] == 9


def test_results_of_two_versions_are_never_in_one_table(tmp_path):
    store = Store(tmp_path)
    for key, value, version in (("a", 1, 1), ("b", 2, 2), ("c", 3, 2)):
        store.put("s", key, GOOD | {"record": {"value": value}, "version": version})
    assert [row["value"] for row in store.rows("s")] == [2, 3]
    assert list(store.table("s")["value"]) == [2, 3]
    assert [row["value"] for row in store.rows("s", version=1)] == [1]
    assert [row["value"] for row in store.rows("s", ["a", "c"])] == [1, 3]
    assert store.rows("s", version=7) == []


def test_readers_never_see_a_fragment(tmp_path):
    store = Store(tmp_path)
    big = GOOD | {"record": {"v": list(range(20_000))}}
    stop, broken = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                text = store.path("s", "k").read_text()
            except FileNotFoundError:
                continue
            try:
                json.loads(text)
            except ValueError:
                broken.append(text[:20])

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(30):
        store.put("s", "k", big)
    stop.set()
    thread.join()
    assert broken == []


def test_old_fragments_of_killed_writers_are_removed(tmp_path):
    (tmp_path / "s").mkdir()
    for name, age in ((".old.tmp", 2 * 86_400), (".new.tmp", 0)):
        (tmp_path / "s" / name).write_text("{")
        os.utime(tmp_path / "s" / name, (time.time() - age,) * 2)
    store = Store(tmp_path)
    store.tidy("s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == [".new.tmp"]
    assert store.scan("s") == {}


def test_table_parquet_and_sql_agree(tmp_path):
    store = Store(tmp_path)
    sweep = sweep_of(*(Spec(n) for n in range(5)))
    run_sweep(sweep, "small", store, INLINE)
    runs = store.table("test")
    assert sorted(runs["value"]) == [0, 1, 4, 9, 16]
    import duckdb
    import pandas as pd

    asked = duckdb.sql("select n, value from runs where n > 2 order by n").df()
    assert asked.to_dict("list") == {"n": [3, 4], "value": [9, 16]}
    path = tmp_path / "t.parquet"
    runs.to_parquet(path)
    back = pd.read_parquet(path).sort_values("n")
    assert back["value"].tolist() == [0, 1, 4, 9, 16]


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOLIB_SWEEPS", str(tmp_path / "here"))
    assert Store().folder == tmp_path / "here"
    monkeypatch.delenv("GEOLIB_SWEEPS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().folder == tmp_path / "cache/geolib/sweeps"


# ---- full disk -----------------------------------------------------------------------


def check_full(store: Store, sweep: Sweep, fill, free) -> None:
    """Fill the disk in mid-sweep: a clear error, nothing half-written, then resume."""
    half = dict(list(sweep.specs("small").items())[:2])
    run_sweep(sweep, half, store, INLINE)
    before = {p.name: p.read_bytes() for p in (store.folder / "test").iterdir()}
    fill()
    try:
        with pytest.raises(SweepError, match="could not be written"):
            run_sweep(sweep, "small", store, INLINE)
        after = {p.name: p.read_bytes() for p in (store.folder / "test").iterdir()}
        assert after == before  # no fragment, nothing lost
    finally:
        free()
    report = run_sweep(sweep, "small", store, INLINE)
    assert (report.stored, report.done) == (2, 3)


BULKY = tuple(Spec(n) for n in range(5))


def test_disk_full_at_the_rename(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    real = os.replace
    check_full(
        Store(tmp_path),
        sweep_of(*BULKY),
        lambda: monkeypatch.setattr(os, "replace", full),
        lambda: monkeypatch.setattr(os, "replace", real),
    )


def test_disk_full_while_writing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so the write itself fails, as on a full disk
    check_full(
        Store(tmp_path),
        sweep_of(*BULKY),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
    )


def test_a_truly_full_file_system(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    filler = tmp_path / "filler"

    def fill():
        with open(filler, "wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(b"x" * 4096)
        assert os.statvfs(tmp_path).f_bavail == 0

    try:
        check_full(Store(tmp_path / "store"), sweep_of(*BULKY), fill, filler.unlink)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- one try -------------------------------------------------------------------------


def test_a_good_try_converts_numpy_values():
    outcome = attempt(run, Spec(4))
    assert outcome.error is None
    record = json.loads(outcome.record)
    assert record["value"] == 16
    assert record["draws"] == np.random.default_rng(4).normal(size=3).tolist()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("raises", "ZeroDivisionError: poison 4\n"),
        ("exit", "SystemExit: 3"),
        ("unsendable", "Unsendable\n"),
        ("no dictionary", "TypeError: run: expected a dictionary, got list"),
        ("no json", "TypeError: record: function has no JSON form"),
    ],
)
def test_a_bad_try_becomes_text(what, error):
    outcome = attempt(run, Spec(4, what))
    assert outcome.record is None
    assert outcome.error.startswith(error)


def test_limit_interrupts_sleep_and_loops_in_the_main_thread():
    for spec in (Spec(1, pause=30.0), Spec(1, "busy")):
        start = time.perf_counter()
        outcome = attempt(run, spec, limit=0.2)
        assert outcome.error.startswith("TimeLimitError: past its limit of 0.2 s")
        assert time.perf_counter() - start < 5


def in_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_limit_in_another_thread_stops_a_loop():
    got = []
    in_thread(lambda: got.append(attempt(run, Spec(1, "busy"), limit=0.2)))
    assert got[0].error.startswith("TimeLimitError: past its limit of 0.2 s")


def test_limit_never_strikes_after_the_body_has_ended():
    late = []

    def body():
        for _ in range(300):
            try:
                with deadline(0.001):
                    time.sleep(0.001)
            except TimeLimitError:
                pass
            try:
                sum(range(500))
            except TimeLimitError:
                late.append(1)

    in_thread(body)
    assert late == []


def test_alarm_of_the_caller_is_given_back():
    import signal

    before = signal.getsignal(signal.SIGALRM)
    with deadline(5.0):
        assert signal.getsignal(signal.SIGALRM) != before
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


# ---- in-process engine ---------------------------------------------------------------


def test_resume_skips_what_is_stored(tmp_path):
    marks, store = tmp_path / "marks", Store(tmp_path / "store")
    marks.mkdir()
    specs = [Spec(n, folder=str(marks)) for n in range(4)]
    first = run_sweep(sweep_of(*specs[:2]), "small", store, INLINE)
    again = run_sweep(sweep_of(*specs), "small", store, INLINE)
    assert (first.done, again.stored, again.done) == (2, 2, 2)
    assert len(list(marks.iterdir())) == 4  # each ran once
    assert run_sweep(sweep_of(*specs), "small", store, INLINE).done == 0


def test_a_raising_spec_is_retried_then_recorded_while_others_go_on(tmp_path):
    marks, store = tmp_path / "marks", Store(tmp_path / "store")
    marks.mkdir()
    folder = str(marks)
    specs = [Spec(0, "raises", folder=folder), Spec(1, "once", folder=folder), Spec(2)]
    sweep = sweep_of(*specs)
    report = run_sweep(sweep, "small", store, Options("inline", retries=2))
    assert (report.done, len(report.failed), report.retried) == (2, 1, 2)
    entries = {e["spec"]["n"]: e for e in store.scan("test").values()}
    assert entries[0]["error"].startswith("ZeroDivisionError: poison 0")
    assert (entries[0]["tries"], entries[1]["tries"], entries[2]["tries"]) == (3, 2, 1)
    assert len(list(marks.glob("0-*"))) == 3

    skipped = run_sweep(sweep, "small", store, INLINE)
    assert (skipped.stored, len(skipped.failed)) == (2, 1)
    assert len(list(marks.glob("0-*"))) == 3  # a stored failure is not run again
    run_sweep(sweep, "small", store, INLINE, retry_failed=True)
    assert len(list(marks.glob("0-*"))) == 5


def test_a_record_must_not_hide_the_spec(tmp_path):
    report = run_sweep(sweep_of(Spec(1, "clash")), "small", Store(tmp_path), INLINE)
    (error,) = report.failed.values()
    assert error == "ValueError: record: n are names of the spec"


def test_nan_is_a_result(tmp_path):
    store = Store(tmp_path)
    run_sweep(sweep_of(Spec(1, "nan")), "small", store, INLINE)
    assert np.isnan(store.table("test")["value"]).all()


def test_two_sweeps_of_one_name_differ_by_version(tmp_path):
    store = Store(tmp_path)
    one = Sweep("test", run, {"small": lambda: [Spec(1)]}, version=1)
    two = Sweep("test", run, {"small": lambda: [Spec(1)]}, version=2)
    assert run_sweep(one, "small", store, INLINE).done == 1
    assert run_sweep(two, "small", store, INLINE).done == 1


def test_what_is_stored_and_what_is_computed_are_the_same_rows(tmp_path):
    marks, store = tmp_path / "marks", Store(tmp_path / "store")
    marks.mkdir()
    specs = [Spec(n, folder=str(marks)) for n in (5, 3, 4)]
    sweep = sweep_of(*specs)
    run_sweep(sweep_of(specs[1]), "small", store, INLINE)
    run_sweep(sweep, "small", store, INLINE)
    rows = store.rows("test", sweep.specs("small"))  # in the grid's order
    assert [(r["n"], r["value"]) for r in rows] == [(5, 25), (3, 9), (4, 16)]
    assert len(list(marks.glob("3-*"))) == 1
    assert len(store.scan("test")) == 3
    run_sweep(sweep, "small", Store(tmp_path / "none"), INLINE)
    assert rows == Store(tmp_path / "none").rows("test", sweep.specs("small"))
    poison = run_sweep(sweep_of(Spec(1, "raises")), "small", store, INLINE)
    assert [e.split(":")[0] for e in poison.failed.values()] == ["ZeroDivisionError"]


# ---- two sweeps on one store ---------------------------------------------------------

RIVAL = """
import sys, time
from geolib.sweep import Store
with Store(sys.argv[1]).claims("test") as claim:
    print(claim(sys.argv[2]), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def rival(store, key):
    """Another process that has claimed a run, until it ends or is killed."""
    done = subprocess.Popen(
        [sys.executable, "-c", RIVAL, str(store.folder), key],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.stdout.readline() == "True\n"
    try:
        yield done
    finally:
        done.kill()
        done.communicate()


def test_a_run_that_another_process_is_at_is_left_to_it_and_its_end_is_read(tmp_path):
    marks, store = tmp_path / "marks", Store(tmp_path / "store")
    marks.mkdir()
    sweep = sweep_of(*(Spec(n, folder=str(marks)) for n in range(3)))
    keys = list(sweep.specs("small"))
    fine = {"status": "done", "spec": {"n": 0}, "record": {"value": 7}}
    bad = {"status": "failed", "spec": {"n": 1}, "error": "theirs"}
    with rival(store, keys[0]), rival(store, keys[1]):
        with store.claims("test") as claim:
            assert [claim(key) for key in keys] == [False, False, True]
        late = threading.Timer(
            0.7,
            lambda: [store.put("test", keys[0], fine), store.put("test", keys[1], bad)],
        )
        late.start()
        report = run_sweep(sweep, "small", store, INLINE)
        late.join()
    assert (report.stored, report.done) == (1, 1)
    assert report.failed == {keys[1]: "theirs"}
    assert [p.name.split("-")[0] for p in marks.iterdir()] == ["2"]  # ours alone


def test_a_claim_ends_with_its_process_and_the_run_is_taken_over(tmp_path):
    store, sweep = Store(tmp_path), sweep_of(Spec(3))
    (key,) = sweep.specs("small")
    with rival(store, key) as other:
        threading.Timer(0.7, other.kill).start()
        start = time.monotonic()
        assert run_sweep(sweep, "small", store, INLINE).done == 1
        assert time.monotonic() - start >= 0.6
    assert store.rows("test", [key])[0]["value"] == 9


def test_a_disk_without_locks_grants_every_claim(tmp_path, monkeypatch):
    def unable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unable)
    with Store(tmp_path).claims("test") as claim:
        assert claim("k")


# ---- what is kept beside a chapter ---------------------------------------------------


def test_kept_results_are_added_by_key_one_to_a_line(tmp_path):
    path = tmp_path / "measured" / "demo.json"
    keep(path, {"b": {"x": 0.1}, "a": [1, None]}, {"date": "then"})
    found = keep(path, {"c": 2, "b": {"x": 0.2}}, {"date": "now"})
    assert found.entries == {"a": [1, None], "b": {"x": 0.2}, "c": 2}
    assert found.about == {"date": "now"}
    assert '"b": {"x": 0.2},' in path.read_text().splitlines()


@pytest.mark.parametrize("damage", ["", "[]", '{"entries": {}}', '{"about": 1}'])
def test_a_damaged_table_is_an_error_and_no_empty_one(tmp_path, damage):
    path = tmp_path / "demo.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match="no table of measured results"):
        measured(path)


def test_bad_options_are_named(tmp_path):
    for arguments, message in (
        ({"retries": -1}, "retries"),
        ({"workers": 0}, "workers"),
        ({"limit": 0.0}, "limit"),
        ({"scheduler": "localhost"}, "scheduler: expected 'inline'"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**arguments)
    with pytest.raises(ValueError, match="size: test has small; got 'huge'"):
        run_sweep(sweep_of(), "huge", Store(tmp_path), INLINE)


def test_progress_is_silent_under_ci_and_off_a_terminal(tmp_path, capsys, monkeypatch):
    run_sweep(sweep_of(Spec(1)), "small", Store(tmp_path), INLINE)
    assert capsys.readouterr().err == ""
    run_sweep(sweep_of(Spec(2)), "small", Store(tmp_path), INLINE, progress=True)
    assert "1/1" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run_sweep(sweep_of(Spec(3)), "small", Store(tmp_path), INLINE)
    assert capsys.readouterr().err == ""


def test_no_heavy_import_before_it_is_needed():
    code = (
        "import sys, geolib.sweep\n"
        "heavy = ('dask', 'distributed', 'pandas', 'duckdb', 'rich', 'torch')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["record"].update(value=2),
        lambda e: e["spec"].update(seed=9),
        lambda e: e.pop("status"),
        lambda e: e.pop("record"),
        lambda e: e.update(status="odd"),
        lambda e: e.update(sum="0"),
    ],
)
def test_an_entry_that_was_changed_counts_as_absent(tmp_path, change):
    store = Store(tmp_path)
    store.put(
        "demo", "k", {"status": "done", "spec": {"seed": 0}, "record": {"value": 1}}
    )
    path = store.path("demo", "k")
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    assert not store.has("demo", "k")
    assert store.scan("demo") == {}
    assert store.rows("demo") == []


def test_an_entry_of_before_there_were_sums_is_read(tmp_path):
    store = Store(tmp_path)
    store.put(
        "demo", "k", {"status": "done", "spec": {"seed": 0}, "record": {"value": 1}}
    )
    path = store.path("demo", "k")
    entry = json.loads(path.read_text())
    del entry["sum"]
    path.write_text(json.dumps(entry))
    assert store.rows("demo") == [{"seed": 0, "value": 1}]


def test_what_another_version_measured_is_not_kept(tmp_path):
    file = tmp_path / "kept.json"
    keep(file, {"a": 1.0}, {"version": 1})
    assert keep(file, {"b": 2.0}, {"version": 1}).entries == {"a": 1.0, "b": 2.0}
    assert keep(file, {"b": 3.0}, {"version": 2}).entries == {"b": 3.0}
