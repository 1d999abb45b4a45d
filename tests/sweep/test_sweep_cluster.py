"""The Dask engine under fire: real scheduler and worker processes on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

distributed = pytest.importorskip(
    "distributed", reason="the extra `sweep` is not installed"
)
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # as workers see it

from sweep_cases import Spec, run  # noqa: E402

from geolib.sweep import Options, Store, Sweep, run_sweep  # noqa: E402
from geolib.sweep.engines import SweepError  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1])])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}


def sweep_of(*specs: Spec) -> Sweep:
    return Sweep("test", run, {"small": lambda: specs})


def wait_for(condition, seconds: float = 60.0):
    """The condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{condition} was not met in {seconds} s")


def start(module: str, *arguments: str, **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=ENVIRONMENT | extra,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(*processes: subprocess.Popen) -> None:
    """End processes and what they started."""
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        process.wait(timeout=30)
        if process.stdout:
            process.stdout.close()


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"scheduler-{time.time_ns()}.json"
        self.scheduler = start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
            "--no-dashboard", "--scheduler-file", str(self.file),
        )  # fmt: skip
        self.workers: list[subprocess.Popen] = []
        self.address = wait_for(self._address)

    def _address(self) -> str | None:
        try:
            return json.loads(self.file.read_text())["address"]
        except (OSError, ValueError):
            return None

    def add(self, *arguments: str, **extra: str) -> subprocess.Popen:
        """One worker of one thread, with a nanny that replaces it when it dies."""
        worker = start(
            "distributed.cli.dask_worker", self.address, "--nthreads", "1",
            "--no-dashboard", *arguments, **extra,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        stop(*self.workers, self.scheduler)


@contextmanager
def cluster(folder: Path, workers: int = 2):
    made = Cluster(folder)
    try:
        for _ in range(workers):
            made.add()
        yield made
    finally:
        made.stop()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, and of theirs."""
    found = []
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, entry.read_text().split()):
            found += [child, *children(child)]
    return found


def worker_processes(nanny: subprocess.Popen) -> list[int]:
    """The processes in which a nanny's worker runs its tasks."""
    names = {pid: Path(f"/proc/{pid}/cmdline") for pid in children(nanny.pid)}
    return [p for p, f in names.items() if b"spawn_main" in f.read_bytes()]


def marks(folder: Path) -> Counter:
    """How often each spec was started."""
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    """Where runs leave their marks."""
    made = tmp_path / "marks"
    made.mkdir()
    return made


def serial(specs) -> dict[int, dict]:
    """The plain loop, as JSON would give it back."""
    return {
        s.n: json.loads(json.dumps(run(s), default=lambda v: v.tolist())) for s in specs
    }


def check_equal_to_the_loop(store: Store, specs) -> None:
    rows = {row["n"]: row for row in store.rows("test")}
    expected = serial([Spec(s.n, s.what) for s in specs])
    assert rows.keys() == expected.keys()
    for n, record in expected.items():
        assert {k: rows[n][k] for k in record} == record  # to the last bit


def test_killed_worker_costs_nothing_and_the_result_is_the_loops(tmp_path, folder):
    specs = [Spec(n, pause=0.15, folder=str(folder)) for n in range(40)]
    store, killed = Store(tmp_path / "store"), []
    with cluster(tmp_path) as c:
        sweep = sweep_of(*specs)
        keep = store.put

        def put_and_kill(*arguments):
            keep(*arguments)
            if len(store.scan("test")) == 5 and not killed:
                killed.extend(wait_for(lambda: worker_processes(c.workers[0])))
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        store.put = put_and_kill
        report = run_sweep(sweep, "small", store, Options(c.address))
    assert killed
    assert (report.done, report.failed) == (40, {})
    check_equal_to_the_loop(Store(tmp_path / "store"), specs)


def test_killed_scheduler_is_one_clear_error_and_resume_completes(tmp_path, folder):
    specs = [Spec(n, pause=0.1, folder=str(folder)) for n in range(40)]
    store, sweep = Store(tmp_path / "store"), sweep_of(*specs)
    with cluster(tmp_path) as c:
        keep = store.put

        def put_and_kill(*arguments):
            keep(*arguments)
            if len(store.scan("test")) == 6:
                os.kill(c.scheduler.pid, signal.SIGKILL)

        store.put = put_and_kill
        begin = time.monotonic()
        with pytest.raises(SweepError, match=r"scheduler .* went away"):
            run_sweep(sweep, "small", store, Options(c.address))
        assert time.monotonic() - begin < 60
    store = Store(tmp_path / "store")
    before = set(store.scan("test"))
    assert 6 <= len(before) < 40
    started = marks(folder)
    with cluster(tmp_path) as c:
        report = run_sweep(sweep, "small", store, Options(c.address))
    assert (report.stored, report.done) == (len(before), 40 - len(before))
    held = {store.scan("test")[key]["spec"]["n"] for key in before}
    again = marks(folder) - started
    assert not held & set(again)  # what was stored was not run again
    check_equal_to_the_loop(store, specs)


CLIENT = """
import sys
from sweep_cases import Spec, run
from geolib.sweep import Options, Store, Sweep, run_sweep
from geolib.sweep.engines import SweepError
if __name__ == "__main__":
    store, marks, scheduler, n = sys.argv[1:]
    specs = [Spec(i, pause=0.1, folder=marks) for i in range(int(n))]
    sweep = Sweep("test", run, {"small": lambda: specs})
    report = run_sweep(sweep, "small", Store(store), Options(scheduler, workers=2))
    print(report.line, flush=True)
"""


def client(tmp_path, folder, scheduler: str, n: int = 40) -> subprocess.Popen:
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    command = [sys.executable, str(script), str(tmp_path / "store"), str(folder)]
    return subprocess.Popen(
        [*command, scheduler, str(n)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_client_leaves_no_worker_and_resume_completes(tmp_path, folder, how):
    first = client(tmp_path, folder, "local")
    store = Store(tmp_path / "store")
    try:
        wait_for(lambda: len(store.scan("test")) >= 5)
        family = children(first.pid)
        assert family
        os.kill(first.pid, how)
        first.wait(timeout=30)
        wait_for(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in family))
    finally:
        stop(first)
    held = {e["spec"]["n"] for e in store.scan("test").values()}
    assert 5 <= len(held) < 40
    started = marks(folder)
    second = client(tmp_path, folder, "local")
    output, _ = second.communicate(timeout=120)
    assert f"{len(held)} stored before, {40 - len(held)} done now" in output
    assert not held & set(marks(folder) - started)
    check_equal_to_the_loop(store, [Spec(n) for n in range(40)])


def test_two_sweeps_on_one_store_and_one_scheduler_share_the_work(tmp_path, folder):
    with cluster(tmp_path) as c:
        both = [client(tmp_path, folder, c.address) for _ in range(2)]
        outputs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    store = Store(tmp_path / "store")
    check_equal_to_the_loop(store, [Spec(n) for n in range(40)])
    assert list((tmp_path / "store/test").glob(".*")) == []
    assert max(marks(folder).values()) == 1


def test_two_sweeps_on_one_store_and_two_clusters_do_not_clash(tmp_path, folder):
    both = [client(tmp_path, folder, "local") for _ in range(2)]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    check_equal_to_the_loop(Store(tmp_path / "store"), [Spec(n) for n in range(40)])
    assert list((tmp_path / "store/test").glob(".*")) == []
    assert max(marks(folder).values()) == 1  # a run is claimed by one of them


def test_poison_is_recorded_while_the_others_go_on(tmp_path):
    fine = [Spec(n, pause=0.02) for n in range(20)]
    poison = {
        100: ("raises", "ZeroDivisionError: poison 100"),
        101: ("unsendable", "Unsendable"),
        102: ("exit", "SystemExit: 3"),
        103: ("no json", "TypeError: record"),
        104: ("die", "WorkerDied"),
        105: ("segfault", "WorkerDied"),
        106: ("busy", "TimeLimitError: past its limit of 1 s"),
        107: ("deaf", "WorkerDied"),
    }
    bad = [Spec(n, what) for n, (what, _) in poison.items()]
    store = Store(tmp_path / "store")
    mixed = [s for pair in zip(fine, [*bad, *fine[8:]], strict=False) for s in pair]
    sweep = sweep_of(*dict.fromkeys([*mixed, *fine]))
    options = Options("local", workers=2, retries=1, limit=1.0)
    report = run_sweep(sweep, "small", store, options)
    entries = {e["spec"]["n"]: e for e in store.scan("test").values()}
    assert (report.done, len(report.failed)) == (20, len(bad))
    for n, (_, error) in poison.items():
        assert entries[n]["error"].startswith(error)
        # a third, alone, where the second died with another's worker
        assert entries[n]["tries"] in ((2,) if "Worker" in error else (2, 3))
    assert all(entries[s.n]["status"] == "done" for s in fine)


def test_gpu_runs_go_only_to_workers_that_offer_one(tmp_path):
    specs = [Spec(n, "name", pause=0.05) for n in range(12)]
    with cluster(tmp_path, workers=0) as c:
        c.add(TEST_WORKER="plain")
        c.add("--resources", "GPU=1", TEST_WORKER="gpu")
        with distributed.Client(c.address) as client:  # the first may else do it all
            client.wait_for_workers(2, timeout=60)
        for gpu in (False, True):
            store = Store(tmp_path / f"store-{gpu}")
            run_sweep(sweep_of(*specs), "small", store, Options(c.address, gpu=gpu))
            seen = {row["worker"] for row in store.rows("test")}
            assert seen == ({"gpu"} if gpu else {"plain", "gpu"})


def test_local_gpu_workers_see_one_each(tmp_path, monkeypatch):
    from geolib.sweep import cluster as module

    monkeypatch.setattr(module, "_gpus", lambda: 2)
    specs = [Spec(n, "cuda", pause=0.2) for n in range(8)]
    store = Store(tmp_path)
    run_sweep(sweep_of(*specs), "small", store, Options("local", gpu=True))
    assert {row["seen"] for row in store.rows("test")} == {"0", "1"}


def test_gpu_without_one_is_a_clear_error(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SweepError, match="gpu: torch sees no CUDA device"):
        run_sweep(sweep_of(Spec(1)), "small", Store(tmp_path), Options(gpu=True))


def test_no_scheduler_at_the_address(tmp_path, monkeypatch):
    from geolib.sweep import cluster as module

    monkeypatch.setattr(module, "CONNECT", 2)
    options = Options("tcp://127.0.0.1:9")
    with pytest.raises(SweepError, match="no scheduler answers at tcp://127"):
        run_sweep(sweep_of(Spec(1)), "small", Store(tmp_path), options)


def test_no_worker_ends_after_patience_and_a_late_one_is_used(tmp_path):
    sweep, store = sweep_of(Spec(1), Spec(2)), Store(tmp_path / "store")
    with cluster(tmp_path, workers=0) as c:
        with pytest.raises(SweepError, match="no worker at tcp://"):
            run_sweep(sweep, "small", store, Options(c.address, patience=1.0))
        waiting = client(tmp_path, tmp_path, c.address, n=3)
        time.sleep(3)
        assert waiting.poll() is None
        c.add()
        assert "3 done now" in waiting.communicate(timeout=60)[0]


def test_full_disk_in_mid_sweep_calls_the_runs_back(tmp_path, folder, monkeypatch):
    specs = [Spec(n, pause=0.1, folder=str(folder)) for n in range(60)]
    store, real = Store(tmp_path / "store"), os.replace

    def full_after_five(source, target):
        if str(target).endswith(".json") and len(store.scan("test")) >= 5:
            raise OSError(28, "No space left on device")
        real(source, target)

    with cluster(tmp_path) as c:
        monkeypatch.setattr(os, "replace", full_after_five)
        with pytest.raises(SweepError, match="No space left on device"):
            run_sweep(sweep_of(*specs), "small", store, Options(c.address))
        monkeypatch.setattr(os, "replace", real)
        assert len(store.scan("test")) == 5
        assert list((tmp_path / "store/test").glob(".*")) == []
        time.sleep(1)
        assert len(marks(folder)) < 30  # the rest was cancelled, not computed
        report = run_sweep(sweep_of(*specs), "small", store, Options(c.address))
    assert (report.stored, report.done) == (5, 55)


def test_four_thousand_trivial_specs(tmp_path, record_property):
    """Overhead a spec, and that it does not grow with their number.

    The benchmark `sweep.growth` goes to ten thousand. A growth that would make the last of
    these 2.5 times as dear as the first makes the last of four thousand 1.5 times as dear.
    """
    n, clock, work = 4_000, [], []
    store, specs = Store(tmp_path), [Spec(i) for i in range(n)]
    keep = store.put

    def put(*arguments):
        keep(*arguments)
        begun = time.process_time()
        clock.append(begun)
        json.loads(json.dumps(list(range(1_000))))
        work.append(time.process_time() - begun)

    def cost(first, last):
        """CPU time a spec, and in units of a fixed piece of work done beside it.

        The machine's own speed changes when a neighbour starts; the quotient does not.
        The median over blocks of fifty specs leaves out what happens now and then.
        """
        ends = range(first + 50, last, 50)
        spent = [clock[k] - clock[k - 50] - sum(work[k - 50 : k]) for k in ends]
        return median(spent) / 50, median(spent) / 50 / median(work[first:last])

    store.put = put
    options = Options("local", workers=2)
    report = run_sweep(sweep_of(*specs), "small", store, options)
    assert (report.done, report.failed) == (n, {})
    first, last = cost(0, 1_000), cost(3_000, 4_000)  # without the start of the cluster
    record_property("cpu_per_spec", (first, last))
    assert last[0] < 0.02
    assert last[1] < 1.5 * first[1]
    again = run_sweep(sweep_of(*specs), "small", store, options)
    assert (again.stored, again.done) == (n, 0)
    assert again.seconds < 12
    rows = store.rows("test")
    assert sorted(row["value"] for row in rows) == [i * i for i in range(n)]
