"""The command `geolib sweep` and the registry behind it."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import sweep_cases  # noqa: E402
from chapter_experiments import chapter_module  # noqa: E402
from conftest import SWEEP  # noqa: E402
from sweep_cases import Spec, run  # noqa: E402

from geolib.sweep import (  # noqa: E402
    Store,
    Sweep,
    find,
    measured,
    sweep_rows,
)
from geolib.sweep.cli import sweep as command  # noqa: E402
from geolib.sweep.registry import names  # noqa: E402

FINE = Sweep("fine", run, {"small": lambda: [Spec(1), Spec(2)]}, text="Squares.")
POISON = Sweep("poison", run, {"small": lambda: [Spec(1), Spec(2, "raises")]})


@pytest.fixture
def geolib(tmp_path, monkeypatch):
    """Call the command with arguments; its store lies in the test's folder."""
    monkeypatch.setenv("GEOLIB_SWEEPS", str(tmp_path / "store"))
    monkeypatch.setattr(sweep_cases, "FINE", FINE, raising=False)
    monkeypatch.setattr(sweep_cases, "POISON", POISON, raising=False)
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_run_status_export_and_resume(geolib, tmp_path):
    import pandas as pd

    name = "sweep_cases:FINE"
    assert "0 of 2 done, 0 failed" in geolib(name, "--status").stdout
    first = geolib(name, "--scheduler", "inline")
    assert first.exit_code == 0
    assert "2 runs: 0 stored before, 2 done now, 0 failed" in first.stdout
    assert "2 stored before, 0 done now" in geolib(name, "--scheduler=inline").stdout
    assert "2 of 2 done, 0 failed" in geolib(name, "--status").stdout
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        path = tmp_path / f"out{suffix}"
        assert "2 rows" in geolib(name, "--export", str(path)).stdout
        assert sorted(read(path)["value"]) == [1, 4]


def test_failures_are_listed_and_make_the_code_1(geolib):
    done = geolib("sweep_cases:POISON", "--scheduler", "inline", "--retries", "0")
    assert done.exit_code == 1
    assert "1 done now, 1 failed" in done.stdout
    assert "ZeroDivisionError: poison 2" in done.stderr
    again = geolib(
        "sweep_cases:POISON", "--scheduler=inline", "--retry-failed", "--retries=0"
    )
    assert "1 stored before, 0 done now, 1 failed" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-sweep"], "no sweep 'no-such-sweep'"),
        (["no_such_module:X"], "cannot read no_such_module:X"),
        (["sweep_cases:Spec"], "is a type, not a Sweep"),
        (["sweep_cases:FINE", "--size", "huge"], "size: fine has small; got 'huge'"),
        (["sweep_cases:FINE", "--scheduler", "here"], "scheduler: expected"),
        (["sweep_cases:FINE", "--export", "out.txt"], "export: expected"),
    ],
)
def test_mistakes_are_one_line(geolib, arguments, message):
    done = geolib(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_bare_command_lists_the_chapters_sweeps(geolib):
    done = geolib()
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(names())
    assert {"phase-map", "audit", "singular-starts", "sparsification"} <= set(names())


def test_outside_a_checkout_it_says_in_one_line_where_they_are(
    geolib, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = geolib()
    assert done.exit_code == 0
    assert re.fullmatch(
        r"the sweeps of the chapters live in a checkout .*\n", done.stdout
    )
    asked = geolib("phase-map")
    assert asked.exit_code == 1
    assert "no sweep 'phase-map': the sweeps of the chapters live" in asked.stderr
    assert len(asked.stderr.strip().splitlines()) == 1
    assert "2 done now" in geolib("sweep_cases:FINE", "--scheduler", "inline").stdout


def test_every_sweep_that_a_chapter_makes_is_found_under_its_name():
    made = {
        value.name
        for file in {Path(place.rpartition(":")[0]) for place in names().values()}
        for value in vars(chapter_module(file.parent.name, file.stem)).values()
        if isinstance(value, Sweep)
    }
    assert made == set(names())


@pytest.mark.parametrize("name", names())
def test_a_chapters_sweep_is_well_formed(name, tmp_path):
    found = find(name)
    assert found.name == name
    assert found.text
    assert "full" in found.grids
    sizes = {size: found.specs(size) for size in found.grids}
    # images alone, or one table
    large = name in ("geodesics-vgg", "geodesics-contest", "zoo")
    assert large or len(sizes["small"]) < len(sizes["full"])
    for size, specs in sizes.items():
        assert len(specs) == len(list(found.grids[size]()))  # no spec twice
    assert Store(tmp_path).scan(name) == {}


def test_published_runs_are_rows_beside_the_chapter(geolib, tmp_path, monkeypatch):
    book = tmp_path / "book"
    (book / "chapters" / "demo").mkdir(parents=True)
    (book / "_toc.yml").touch()
    (book / "chapters" / "demo" / "experiments.py").write_text(SWEEP)
    monkeypatch.chdir(book / "chapters" / "demo")
    assert sweep_rows("mine") == []
    nothing = geolib("mine", "--publish")
    assert nothing.exit_code == 1
    assert "stored runs of size small, got mine with 0" in nothing.stderr
    geolib("mine", "--scheduler", "inline")
    assert sweep_rows("mine") == []  # a reader's store is no part of the book
    assert "measured/mine.json" in geolib("mine", "--publish").stdout.replace("\n", "")
    rows = sorted(sweep_rows("mine"), key=lambda r: r["seed"])
    assert rows == [{"seed": n, "twice": 2 * n} for n in range(3)]
    about = measured("measured/mine.json").about
    assert (about["sweep"], about["version"]) == ("mine", 1)
    assert {"date", "torch", "machine"} <= about.keys()


def test_a_sweep_in_a_file_is_run_from_there(geolib, tmp_path):
    path = tmp_path / "my sweep.py"
    path.write_text(SWEEP)
    done = geolib(f"{path}:MINE", "--scheduler", "inline")
    assert "3 runs: 0 stored before, 3 done now" in done.stdout, done.output
    missing = geolib(f"{tmp_path / 'none.py'}:MINE")
    assert missing.exit_code == 1
    assert "cannot read" in missing.stderr


@pytest.mark.slow
def test_what_is_in_a_file_is_sent_to_workers_whole(tmp_path):
    """A name that happens to be importable here may not be importable there."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="no extra `sweep`")
    found = find("phase-map")
    sent = found.run, next(iter(found.specs("small").values()))
    for one in sent:
        with pytest.raises((pickle.PicklingError, ModuleNotFoundError)):
            pickle.dumps(one)
    (tmp_path / "sent").write_bytes(cloudpickle.dumps(sent))
    code = "import pickle; run, spec = pickle.load(open('sent', 'rb')); print(spec.d)"
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "16\n", done.stderr
