"""The installed wheel, with no extras and outside of any checkout; see `.ci/run`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

BIN = Path(os.environ["ALONE"])
README = (Path(__file__).parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
FILES = {code.split()[1]: code for code in PYTHON if re.match(r"# \w+\.py\n", code)}
# What the README prints as commands of `geolib` itself; a cluster is not at hand.
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("geolib ") and "tcp://" not in line and "fetch" not in line
]


def run(*command, code=0):
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = dict(os.environ, PATH=path, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_it_is_the_wheel_that_runs():
    where = run(BIN / "python", "-c", "import geolib; print(geolib.__file__)")
    assert str(BIN.parent) in where.stdout


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_example(code):
    assert run(BIN / "python", "-c", code).stdout.strip()


@pytest.mark.parametrize("line", COMMANDS)
def test_command_as_printed(line):
    for name, code in FILES.items():
        Path(name).write_text(code)
    assert run("bash", "-c", line).stdout.strip()


def test_without_a_checkout_the_chapters_sweeps_are_said_to_be_elsewhere():
    said = run("geolib", "sweep").stdout.strip()
    assert len(said.splitlines()) == 1
    assert "live in a checkout" in said
    assert "no sweep 'phase-map'" in run("geolib", "sweep", "phase-map", code=1).stderr


def test_the_readme_shows_audit_sweep_and_data():
    shown = {line.split()[1] for line in COMMANDS}
    assert {"audit", "sweep", "data"} <= shown


def test_version():
    assert re.search(r"\d+\.\d+", run("geolib", "--version").stdout)


@pytest.mark.parametrize("module", [["geolib", "data"], ["geolib.data"]])
def test_data_as_a_module(module):
    assert "digits" in run(BIN / "python", "-m", *module, "list").stdout


def test_the_press_says_in_one_line_what_it_needs():
    said = run("geolib", "run", code=1).stderr.strip()
    assert len(said.splitlines()) == 1
    assert "no book here" in said
