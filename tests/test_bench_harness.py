"""The benchmark harness: fair timing, honest verdicts, nothing lost."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is run from the repository, not installed

from benchmarks import harness, render, run  # noqa: E402
from benchmarks.harness import (  # noqa: E402
    DisagreementError,
    Result,
    benchmark,
    race,
    relative_error,
)


def spin(seconds: float) -> None:
    """Use so much CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(harness, "REGISTRY", {})
    monkeypatch.setattr(run, "REGISTRY", harness.REGISTRY)
    return harness.REGISTRY


# ---- race --------------------------------------------------------------------------


def test_ratio_is_our_cpu_time_over_theirs():
    result = race(
        lambda: spin(0.01), {"numpy": lambda: lambda: spin(0.02)}, rounds=3, least=0.02
    )
    (peer,) = result.peers
    assert peer.ratio == pytest.approx(0.5, rel=0.15)
    assert result.ours == pytest.approx(0.01, rel=0.2)
    assert peer.version == np.__version__
    assert peer.ratio_quartiles[0] <= peer.ratio <= peer.ratio_quartiles[1]
    assert result.timing.rounds == 3


def test_waiting_is_wall_time_and_not_cpu_time():
    result = race(lambda: time.sleep(0.02), rounds=3, least=0.01)
    assert result.timing.wall > 0.019
    assert result.ours == result.timing.cpu < 0.01
    assert race(lambda: time.sleep(0.02), rounds=3, clock="wall").ours > 0.019


def test_time_of_children_counts():
    burn = (
        "import time\nend=time.process_time()+.1\nwhile time.process_time()<end: pass"
    )
    call = [sys.executable, "-S", "-c", burn]
    result = race(lambda: subprocess.run(call, check=True) and None, rounds=3)
    assert result.ours > 0.1


def test_rounds_alternate():
    order = []
    race(
        lambda: order.append("us"),
        {"peer": lambda: lambda: order.append("them")},
        rounds=4,
        least=1e-9,
    )
    timed = order[4:]  # one call of each for its value, one to count repeats
    assert timed == ["us", "them", "them", "us"] * 2


def test_missing_peer_is_reported_and_others_run():
    def absent():
        import no_such_library_at_all  # noqa: F401

    peers = {"no-such-library": absent, "numpy": lambda: lambda: 1.0}
    result = race(lambda: 1.0, peers, rounds=3, least=1e-4)
    assert [p.name for p in result.peers] == ["numpy", "no-such-library"]
    assert "no_such_library_at_all" in result.peers[1].not_run
    assert result.peers[0].ratio > 0


def test_a_peer_that_breaks_for_another_reason_is_not_hidden():
    def broken():
        raise RuntimeError("set-up failed")

    with pytest.raises(RuntimeError, match="set-up failed"):
        race(lambda: 1.0, {"numpy": broken}, rounds=3)


@pytest.mark.parametrize("theirs", [1.1, float("nan")])
def test_disagreement_gives_no_time(theirs):
    with pytest.raises(DisagreementError, match="numpy: error"):
        race(lambda: 1.0, {"numpy": lambda: lambda: theirs}, within=1e-6)


def test_agreement_is_the_worst_peers():
    peers = {"a": lambda: lambda: 2.0, "b": lambda: lambda: 4.0}
    result = race(lambda: 2.0, peers, rounds=3, least=1e-4)
    assert result.agreement == 0.5


def test_a_curve_has_the_figure_of_every_size_and_the_row_that_of_the_last():
    def at(n):
        return Result(ours=float(n), peer=2.0 * n, peer_name="numpy")

    result = harness.grow((1, 10), at, "n", "errors")
    assert (result.ours, result.peers[0].ratio) == (10.0, 0.5)
    assert result.curve == {
        "x": [1, 10], "x_label": "n", "y_label": "errors",
        "series": {"geolib": [1.0, 10.0], "numpy": [2.0, 20.0]},
    }  # fmt: skip


def test_a_figure_measured_by_hand_is_a_row_with_its_verdict(registry):
    benchmark("a.seconds", "<= 900", of="ours")(lambda: None)
    benchmark("a.ratio", "<= 2")(lambda: None)
    row = run.by_hand(["a.seconds"], 801.0, "Fresh clone, quiet machine.")
    assert (row["verdict"], row["ours"], row["unit"]) == ("met", 801.0, "s")
    assert row["note"].startswith("Fresh clone")
    assert row["machine"]
    assert run.by_hand(["a.seconds"], 901.0, "")["verdict"] == "missed"
    for names, message in ((["a.ratio"], "about a ratio"), ([], "full name of one")):
        with pytest.raises(SystemExit, match=message):
            run.by_hand(names, 1.0, "")


def test_relative_error_refuses_other_shapes():
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 0.5
    with pytest.raises(DisagreementError, match="shapes differ"):
        relative_error(np.zeros(2), np.zeros((2, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="rounds: expected at least 3, got 2"):
        race(lambda: 1, rounds=2)
    with pytest.raises(ValueError, match="clock"):
        race(lambda: 1, clock="sun")


# ---- registry and verdicts -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Upper"}, "name: expected"),
        ({"name": "a.b", "bar": "about 3"}, "bound: expected"),
        ({"name": "a.b", "of": "speed"}, "of: expected"),
    ],
)
def test_malformed_registration(registry, arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark(**arguments)


def test_same_name_from_two_files(registry):
    def first(): ...
    def second(): ...

    second.__module__ = "elsewhere"
    benchmark("a.b")(first)
    with pytest.raises(ValueError, match="registered twice"):
        benchmark("a.b")(second)


@pytest.mark.parametrize(
    ("bar", "of", "result", "verdict"),
    [
        ("<= 1.3", "ratio", Result(ours=1.0, peer=1.0), "met"),
        ("<= 1.3", "ratio", Result(ours=3.0, peer=1.0), "missed"),
        ("<= 1.3", "ratio", Result(ours=float("nan"), peer=1.0), "missed"),
        ("<= 1.3", "ratio", Result(ours=1.0), "not run"),
        ("<= 1", "ours", Result(ours=0.5), "met"),
        ("<= 1e-9", "agreement", Result(ours=1.0, peer=1.0, agreement=1e-3), "missed"),
        (None, "ratio", Result(ours=1.0), "measured"),
    ],
)
def test_verdict(registry, bar, of, result, verdict):
    benchmark("a.b", bar, of=of)(lambda: result)
    assert registry["a.b"].record(result)["verdict"] == verdict


def test_the_worst_peer_is_what_the_bar_bounds(registry):
    peers = (harness.Peer("a", ratio=0.5), harness.Peer("b", ratio=2.0))
    benchmark("a.b", "<= 1.3")(lambda: None)
    record = registry["a.b"].record(Result(ours=1.0, peers=peers))
    assert (record["figure"], record["verdict"]) == (2.0, "missed")


# ---- whole runs, in processes of their own -------------------------------------

CASES = '''
import os, time
import numpy as np
from benchmarks.harness import Result, benchmark, race

@benchmark("demo.fine", bar="<= 100", size="n = 1")
def fine() -> Result:
    """A fine comparison"""
    curve = {"x": [1, 10], "x_label": "n", "y_label": "seconds",
             "series": {"geolib": [1.0, 2.0], "numpy": [2.0, None]}}
    def absent():
        import no_such_library_at_all
    peers = {"numpy": lambda: (lambda: np.ones(3)), "no-such-library": absent}
    return race(lambda: np.ones(3), peers, within=1e-12, rounds=3, least=1e-3,
                note="A note.", curve=curve)

@benchmark("demo.threads")
def threads() -> Result:
    """Threads"""
    import torch
    return Result(float(torch.get_num_threads() * int(os.environ["OMP_NUM_THREADS"])))

@benchmark("demo.other")
def other() -> Result:
    """Not the same"""
    return race(lambda: 1.0, {"numpy": lambda: (lambda: 2.0)}, within=1e-3)

@benchmark("demo.raises")
def raises() -> Result:
    """Raises"""
    raise RuntimeError("on purpose")

@benchmark("demo.dies")
def dies() -> Result:
    """Dies"""
    os._exit(3)

@benchmark("demo.hangs", slow=True)
def hangs() -> Result:
    """Hangs"""
    time.sleep(60)

@benchmark("demo.slow", slow=True)
def slow() -> Result:
    """Slow"""
    return Result(1.0)
'''


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.run", "--folder", str(folder)]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run over good, broken, dying and hanging benchmarks."""
    folder = tmp_path_factory.mktemp("repo") / "benchmarks"
    folder.mkdir()
    (folder / "bench_demo.py").write_text(CASES)
    (folder / "bench_broken.py").write_text("import no_such_library_at_all\n")
    done = start(folder)
    rows = json.loads((folder / "results.json").read_text())
    return done, {row["name"]: row for row in rows}, folder


@pytest.mark.slow
def test_every_fate_is_recorded(whole):
    done, rows, _ = whole
    assert done.returncode == 1
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "broken.import": "failed",
        "demo.fine": "met",
        "demo.threads": "measured",
        "demo.other": "disagrees",
        "demo.raises": "failed",
        "demo.dies": "failed",
    }
    assert rows["demo.raises"]["error"] == "RuntimeError: on purpose"
    assert rows["demo.dies"]["error"] == "process ended with code 3 and no record"
    assert rows["demo.threads"]["ours"] == 1  # one thread in torch and in BLAS


@pytest.mark.slow
def test_no_host_name_and_no_path_is_stored(whole):
    _, _, folder = whole
    text = (folder / "results.json").read_text()
    assert os.uname().nodename not in text
    assert str(folder) not in text
    assert str(ROOT) not in text
    assert '"cpu"' in text
    assert '"torch"' in text


@pytest.mark.slow
def test_the_page_shows_every_row(whole):
    _, _, folder = whole
    page = (folder.parent / "book/benchmarks.md").read_text()
    assert "A fine comparison" in page
    assert f"numpy {np.__version__}" in page
    assert "not run: No module named 'no_such_library_at_all'" in page
    assert "<small>no-such-library</small>" in page
    assert "**disagrees**: numpy: error 0.5" in page
    assert "RuntimeError: on purpose" in page
    plot = folder.parent / "book/_static/benchmarks/demo-fine.svg"
    assert "_static/benchmarks/demo-fine.svg" in page
    first = plot.read_bytes()
    render.write_beside(folder / "results.json")
    assert plot.read_bytes() == first
    summary = page.index("| part |")
    rows = page[page.index("\n\n", summary) :].splitlines()
    assert any(line.startswith("|") for line in rows)
    for line in rows:
        if line.startswith("|"):
            assert line.count(" | ") == len(render.COLUMNS) - 1


@pytest.mark.slow
def test_a_rerun_of_one_keeps_the_others_and_slow_needs_its_name(whole):
    _, rows, folder = whole
    assert start(folder, "demo.slow").returncode == 1  # bench_broken.py still fails
    start(folder, "demo.hangs", "--limit", "0.3")  # a slow one has ten times as long
    after = {r["name"]: r for r in run.load(folder / "results.json")}
    assert set(after) == set(rows) | {"demo.slow", "demo.hangs"}
    assert after["demo.hangs"]["error"] == "no end after 3 s"
    assert after["demo.slow"]["cost"] > 0
    every = ["demo.fine", "demo.raises", "demo.slow", "demo.new"]
    failed_or_new = run.missing(every, folder / "results.json")
    assert failed_or_new == ["demo.raises", "demo.new"]
    assert "no benchmark 'nothing'" in start(folder, "nothing").stderr


def test_what_needs_an_absent_gpu_keeps_its_stored_figure(
    registry, tmp_path, monkeypatch, capsys
):
    for name, gpu in (("demo.old", True), ("demo.new", True), ("demo.cpu", False)):
        benchmark(name, gpu=gpu)(lambda: Result(ours=1.0))
    path = tmp_path / "results.json"
    run.store([{"name": "demo.old", "ours": 2.0}], path)
    monkeypatch.setattr(run, "accelerator", lambda: None)
    assert run.without_gpu(list(registry), path) == ["demo.cpu"]
    rows = {r["name"]: r for r in run.load(path)}
    assert rows["demo.old"]["ours"] == 2.0
    assert rows["demo.new"]["verdict"] == "not run"
    assert "no CUDA device here" in render.page(list(rows.values())[:1])
    assert "demo.old: no CUDA device here" in capsys.readouterr().out
    monkeypatch.setattr(run, "accelerator", lambda: "Some GPU")
    assert run.without_gpu(list(registry), path) == list(registry)


def test_store_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    run.store([{"name": "a.b", "verdict": "met"}], path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        run.store([{"name": "a.c", "verdict": "met"}], path)
    assert [r["name"] for r in run.load(path)] == ["a.b"]


def test_removed_benchmarks_are_forgotten(tmp_path):
    path = tmp_path / "results.json"
    run.store([{"name": "a.b"}, {"name": "a.c"}], path)
    run.forget(path, {"a.c"})
    assert [r["name"] for r in run.load(path)] == ["a.c"]


def test_units_are_readable():
    assert render._quantity(0.0025, "s") == "2.5 ms"
    assert render._quantity(3.1e-7, "s") == "0.31 µs"
    assert render._quantity(0.25, "error") == "0.25"
    assert render._quantity(1.19, "ratio") == "1.19 times"
    assert render._quantity(1879.2, "MiB") == "1,879 MiB"


def test_the_committed_page_is_that_of_the_committed_results():
    if not run.RESULTS.exists():
        pytest.skip("no results are committed yet")
    assert (ROOT / "book/benchmarks.md").read_text() == render.page(run.load())


def test_every_benchmark_file_imports_without_its_peers(registry):
    assert run.discover() == []


def test_the_command_stands_before_the_benchmarks_of_a_checkout(
    registry, tmp_path, monkeypatch, capsys
):
    from typer.testing import CliRunner

    from geolib.press.cli import app

    monkeypatch.setattr(run, "discover", lambda folder: [])
    benchmark("demo.one", size="1")(lambda: Result(1.0))
    monkeypatch.chdir(ROOT / "chapters")
    assert CliRunner().invoke(app, ["bench", "--list"]).output == "demo.one\n"
    shown = CliRunner().invoke(app, ["bench", "--help"]).output
    assert "usage: geolib bench" in shown
    assert "Example: geolib bench" in shown
    monkeypatch.chdir(tmp_path)
    outside = CliRunner().invoke(app, ["bench"])
    assert outside.exit_code == 1
    assert outside.stderr.startswith(
        "geolib: no book here: this command needs a checkout"
    )
    assert len(outside.stderr.splitlines()) == 1
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "chapters").mkdir()
    assert "has no benchmarks" in CliRunner().invoke(app, ["bench"]).stderr


def test_the_stored_notes_are_sentences_and_no_title_leans_on_the_row_above():
    for row in run.load():
        told = (row.get("note") or "").partition("\n\n|")[0].strip()
        assert not told or re.match("[A-Z0-9`]", told)
        assert not told or (told.endswith(".") and not re.search(r"\[\d", told))
        assert not row.get("title", "").startswith("The same")


def test_the_page_opens_with_one_screen_and_folds_the_long_tables():
    page = (ROOT / "book/benchmarks.md").read_text()
    first, rest = page.split("## How it is measured")
    assert len(first.splitlines()) < 40
    assert "overview.svg" in first
    assert "**Not met:**" in first
    assert rest.count(":::{dropdown}") == sum(
        "\n\n|" in (row.get("note") or "") for row in run.load()
    )
