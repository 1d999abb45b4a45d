"""What only an extra installs: without it one sentence says what is absent, and how to get it."""

import re
import sys

import pytest
from conftest import SWEEP
from typer.testing import CliRunner

from geolib.files import MissingExtra
from geolib.plotting import panels, use_style
from geolib.press.cli import app
from geolib.sweep import Store


@pytest.fixture
def geolib(tmp_path, monkeypatch):
    """Call the command in a folder with one sweep, with one module not installed."""
    (tmp_path / "mine.py").write_text(SWEEP)
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    monkeypatch.setenv("GEOLIB_SWEEPS", str(tmp_path / "store"))

    def call(absent, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, absent, None)
        return CliRunner().invoke(app, arguments)

    return call


def told(absent, extra):
    return re.escape(f"{absent} is not installed: pip install ") + (
        rf"'geometry-of-learning\[{extra}\] @ git\+https://\S+'"
    )


def test_without_dask_a_sweep_runs_in_the_process_of_the_command(geolib):
    done = geolib("distributed", "sweep", "mine.py:MINE")
    assert done.exit_code == 0, done.stderr
    assert "3 runs: 0 stored before, 3 done now, 0 failed" in done.stdout
    assert done.stderr == "without Dask the runs go one by one in this process\n"


@pytest.mark.parametrize(
    ("absent", "extra", "arguments"),
    [
        ("distributed", "sweep", ["sweep", "mine.py:MINE", "--scheduler", "local"]),
        ("pandas", "sweep", ["sweep", "mine.py:MINE", "--export", "out.csv"]),
        ("jupytext", "book", ["run"]),
    ],
)
def test_a_command_names_the_extra_in_one_line(geolib, absent, extra, arguments):
    done = geolib(absent, *arguments)
    assert done.exit_code == 1
    assert re.match("geolib: " + told(absent, extra), done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("absent", "extra", "call"),
    [
        ("matplotlib", "book", panels),
        ("matplotlib", "book", use_style),
        ("pandas", "sweep", lambda: Store("none").table("none")),
    ],
)
def test_a_function_names_the_extra(monkeypatch, absent, extra, call):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra, match=told(absent, extra)):
        call()
