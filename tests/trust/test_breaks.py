"""A broken certificate or guard is seen: key lines are broken one at a time.

`reliability.yml` lists them, each with the test that fails once the line is broken.
"""

import os
import shutil
import subprocess
import sys

import pytest
from fuzz import ROOT, STORED

BREAKS = STORED["breaks"]


@pytest.mark.parametrize("name", BREAKS)
def test_the_line_is_there_once(name):
    entry = BREAKS[name]
    assert (ROOT / entry["file"]).read_text().count(entry["line"]) == 1
    path, _, node = entry["seen by"].partition("::")
    assert f"def {node}(" in (ROOT / path).read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package, its chapters and tests, to break things in."""
    place = tmp_path_factory.mktemp("broken")
    for folder in ("geolib", "chapters", "tests"):
        skipped = shutil.ignore_patterns("__pycache__", "*.ipynb")
        shutil.copytree(ROOT / folder, place / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


@pytest.mark.data
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_line_is_seen(name, copy):
    entry = BREAKS[name]
    path = copy / entry["file"]
    whole = path.read_text()
    path.write_text(whole.replace(entry["line"], entry["broken"]))
    command = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *command, entry["seen by"]],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    path.write_text(whole)
    assert done.returncode == 1, done.stdout + done.stderr
