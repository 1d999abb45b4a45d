"""Fault injection: whatever dies, nothing is lost, nothing half-written is staged."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, cell, new_book, without_cost

from geolib import files
from geolib.press import Build
from geolib.press.pool import Settings, press

pytestmark = [pytest.mark.press, pytest.mark.slow]

SMALL = Settings(profile="small", device="cpu")
GOOD = cell("print('good')")


def run(notebooks, settings=SMALL, report=lambda line: None):
    return press(notebooks, settings, report=report)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Two pages that were pressed once; each test leaves them whole."""
    book = new_book(tmp_path_factory.mktemp("staged"))
    pages = [book.add("demo/01-a", GOOD), book.add("demo/02-b", GOOD)]
    run(pages, Settings(profile="small", device="cpu", jobs=2))
    return pages


def start_press(book, *extra):
    """The real command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "geolib",
        "run",
        "--device",
        "cpu",
        *extra,
    ]
    return subprocess.Popen(
        command,
        cwd=book.root,
        env=dict(os.environ, PYTHONPATH=str(ROOT), CI="true"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited state never came"
        time.sleep(0.05)


def test_the_command_ends_with_code_1_and_names_the_failure(book):
    book.add("demo/01-bad", cell("raise OSError('no such thing')"))
    process = start_press(book)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "FAILED demo/01-bad, cell 2" in text
    assert "no such thing" in text
    assert "_build/small/failed/demo/01-bad.ipynb" in text


def test_a_mended_notebook_leaves_no_partial_behind(book):
    a = book.add("demo/01-a", cell("1 / 0"))
    run([a])
    a.source.write_text(a.source.read_text().replace("1 / 0", "1 / 1"))
    assert run([a])[0].status == "ok"
    assert not (Build(book.root, "small").folder / "failed/demo/01-a.ipynb").exists()


def test_a_hanging_cell_ends_at_its_time_limit(book):
    a = book.add("demo/01-a", cell("import time\ntime.sleep(600)"))
    outcome = run([a], Settings(profile="small", device="cpu", timeout=3))[0]
    assert outcome.status == "failed"
    assert "time limit" in outcome.error
    assert "import time" in outcome.source


def test_sigkill_of_the_press_loses_nothing_and_leaves_no_orphan(book):
    a = book.add("demo/01-a", GOOD)
    mark = book.root / "started"
    b = book.add(
        "demo/02-b",
        cell(
            f"import os, pathlib, time\np = pathlib.Path({str(mark)!r})\n"
            "first = not p.exists()\np.write_text(str(os.getpid()))\n"
            "time.sleep(60 if first else 0)"
        ),
    )
    process = start_press(book)
    wait_for(mark.exists)
    wait_for(lambda: mark.read_text() != "")
    process.kill()
    process.communicate()
    kernel = int(mark.read_text())
    wait_for(lambda: not _alive(kernel), 20)
    assert Build(a.root, "small").stage(a).exists()
    assert not Build(b.root, "small").stage(b).exists()
    again = start_press(book)
    text = again.communicate(timeout=120)[0]
    assert again.returncode == 0
    assert "1 executed, 1 unchanged, 0 failed" in text


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split(")")[1].split()[0] != "Z"


def test_an_interrupted_press_stops_its_workers(book):
    mark = book.root / "started"
    book.add(
        "demo/01-a",
        cell(
            f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text("
            "str(os.getpid()))\ntime.sleep(60)"
        ),
    )
    process = start_press(book)
    wait_for(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    wait_for(lambda: not _alive(int(mark.read_text())), 20)


def test_a_full_disk_fails_that_notebook_and_keeps_the_old_page(staged, monkeypatch):
    a, b = staged
    old = Build(a.root, "small").stage(a).read_bytes()
    a.source.write_text(a.source.read_text().replace("good", "better"))
    real = os.replace

    def full(source, target):
        if str(target).endswith("01-a.ipynb"):
            raise OSError(28, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    outcome = run([a, b])[0]
    assert outcome.status == "failed"
    assert "No space left" in outcome.error
    assert Build(a.root, "small").stage(a).read_bytes() == old
    assert [p.name for p in Build(a.root, "small").stage(a).parent.glob(".*")] == []
    monkeypatch.undo()
    assert [o.status for o in run([a, b])] == ["ok", "skipped"]


def test_a_truly_full_disk(tmp_path):
    """A write past the file-size limit of the process: the kernel's own refusal."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from geolib.files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "target = Path(sys.argv[1])\n"
        "try:\n    write_whole(target, 'x' * 5000)\n"
        "except OSError as e:\n    print('refused', e.errno)\n"
    )
    target = tmp_path / "page"
    target.write_text("old")
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


def test_a_stage_that_cannot_be_written_is_reported(book):
    a = book.add("demo/01-a", GOOD)
    b = book.add("other/01-b", GOOD)
    blocked = Build(a.root, "small").stage(a).parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")  # holds for root too
    first, second = run([a, b])
    assert first.status == "failed"
    assert "could not be written" in first.error
    assert second.status == "ok"


@pytest.mark.parametrize("damage", [b"", b"{", b"garbage \xff"])
def test_a_corrupt_staged_file_is_noticed_and_made_again(staged, damage):
    a = staged[0]
    stage = Build(a.root, "small").stage(a)
    whole = without_cost(stage)
    stage.write_bytes(damage)
    assert run([a])[0].status == "ok"
    assert without_cost(stage) == whole


def test_a_corrupt_key_file_is_not_trusted(staged):
    a = staged[0]
    Build(a.root, "small").stage(a).with_suffix(".key.json").write_text("[1")
    assert run([a])[0].status == "ok"
    assert run([a])[0].status == "skipped"


def test_two_presses_at_once_execute_each_notebook_once(book):
    log = book.root / "log"
    for i in (1, 2):
        book.add(
            f"demo/0{i}-n",
            cell(f"with open({str(log)!r}, 'a') as f:\n    f.write('{i}')"),
        )
    first, second = start_press(book), start_press(book)
    texts = [p.communicate(timeout=180)[0] for p in (first, second)]
    assert [p.returncode for p in (first, second)] == [0, 0], texts
    assert sorted(log.read_text()) == ["1", "2"]
    assert sum("0 executed, 2 unchanged" in t for t in texts) == 1
    assert sum("another press is at work" in t for t in texts) == 1
