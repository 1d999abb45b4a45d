"""`geolib run --scheduler`: notebooks executed by the workers of a Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import cell, without_cost

from geolib.press import Build
from geolib.press.pool import Settings, press

pytest.importorskip("distributed", reason="the extra `sweep` is not installed")
pytestmark = [pytest.mark.press, pytest.mark.slow]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers on loopback: `(address, workers)`."""
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m"]

    def start(*arguments):
        return subprocess.Popen(
            [*command, *arguments, "--no-dashboard"], start_new_session=True, **quiet
        )

    scheduler = start(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
        "--scheduler-file", str(file),
    )  # fmt: skip
    wait_for(lambda: file.exists() and file.read_text().strip().endswith("}"))
    address = json.loads(file.read_text())["address"]
    workers = [
        start("distributed.cli.dask_worker", address, "--nthreads", "1")
        for _ in range(2)
    ]
    yield address, workers
    for process in [*workers, scheduler]:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def run(notebooks, address, **settings):
    chosen = Settings("small", "cpu", jobs=2, scheduler=address, **settings)
    return press(notebooks, chosen, report=lambda line: None)


def test_the_page_is_the_same_as_when_made_here(book, cluster):
    a = book.add("demo/01-a", cell("print(6 * 7)", "nbval-check-output"))
    b = book.add("demo/02-b", cell("1 / 0"))
    done = run([a, b], cluster[0])
    assert [o.status for o in done] == ["ok", "failed"]
    assert done[1].cell is not None
    assert "ZeroDivisionError" in done[1].error
    there = without_cost(Build(a.root, "small").stage(a))
    here = press([a], Settings("small", "cpu", force=True), report=lambda line: None)
    assert [o.status for o in here] == ["ok"]
    assert without_cost(Build(a.root, "small").stage(a)) == there


def test_a_notebook_survives_the_death_of_its_worker(book, cluster, tmp_path):
    mark = tmp_path / "mark"
    source = (
        "import os, pathlib, signal, time\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "first = not mark.exists()\n"
        "mark.write_text(str(os.getpid()))\n"
        "time.sleep(60 if first else 0)\n"
        "print('done')"
    )
    a = book.add("demo/01-a", cell(source))
    code = (
        "import os, sys, time, pathlib, signal\n"
        "mark = pathlib.Path(sys.argv[1])\n"
        "while not mark.exists(): time.sleep(0.05)\n"
        "def parent(pid):\n"
        "    return int(pathlib.Path(f'/proc/{pid}/stat').read_text()"
        ".rsplit(')', 1)[1].split()[1])\n"
        "time.sleep(0.2)\n"
        "press_worker = parent(int(mark.read_text()))\n"
        "os.kill(parent(press_worker), signal.SIGKILL)\n"
    )
    killer = subprocess.Popen([sys.executable, "-c", code, str(mark)])
    done = run([a], cluster[0])
    killer.wait(timeout=10)
    assert [o.status for o in done] == ["ok"]
    assert "done" in Build(a.root, "small").stage(a).read_text()


def test_no_scheduler_is_one_clear_failure(book, monkeypatch):
    from geolib.sweep import cluster as module

    monkeypatch.setattr(module, "CONNECT", 2)
    a = book.add("demo/01-a", cell("print(1)"))
    (outcome,) = run([a], "tcp://127.0.0.1:9")
    assert outcome.status == "failed"
    assert "no scheduler answers at tcp://127.0.0.1:9" in outcome.error
