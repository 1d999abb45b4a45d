"""A notebook that lies alone in an empty folder, as on Colab, and the cell that helps it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "reproduce.md").read_text().split("## On Colab", 1)[1]
# Each notebook gets a process to itself, in the folder that the page's cell goes to; what
# all of them need is loaded once. There every import of the notebook is made.
ALONE = """
import ast, json, os, sys, traceback
import matplotlib.pyplot, torch
from geolib import data, geodesics, inverse_stability, naturality, regimes, stratifolds

for path in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            os.chdir(sys.argv[1].replace("geodesics", path.split("/")[-2]))
            sys.path.insert(0, "")  # as in a kernel
            cells = [c for c in json.load(open(path))["cells"] if c["cell_type"] == "code"]
            code = ast.parse("\\n".join("".join(c["source"]) for c in cells))
            code.body = [s for s in code.body if isinstance(s, (ast.Import, ast.ImportFrom))]
            exec(compile(code, path, "exec"), {})
            ended = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(ended)
    print(path, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """An empty folder in which the first line of the cell has been run."""
    folder = tmp_path_factory.mktemp("colab")
    (line,) = re.findall(r"^!(git clone .*)$", PAGE, re.M)
    address = re.search(r"https://\S+", line)[0]
    here = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": address,
            "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf"}  # fmt: skip
    subprocess.run(line, shell=True, cwd=folder, check=True, env=os.environ | here)
    return folder


def test_the_cell_installs_the_package_with_what_its_pages_need(clone):
    (place, extra) = re.search(
        r'^%pip install .*"(\S+)\[(\w+)\]"$', PAGE, re.M
    ).groups()
    text = (clone / place / "pyproject.toml").read_text()
    assert 'name = "geometry-of-learning"' in text
    assert re.search(rf"^{extra} = \[", text, re.M)


@pytest.mark.slow
def test_every_notebook_finds_the_modules_and_results_beside_it(clone):
    place = re.search(r"^%cd (\S+)$", PAGE, re.M)[1]
    paths = sorted(map(str, ROOT.glob("chapters/*/[0-9]*.ipynb")))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, place, *paths],
        cwd=clone, env=os.environ | {"PYTHONPATH": str(clone / "book")},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    ended = [line for line in done.stdout.splitlines() if line.startswith(str(ROOT))]
    assert ended == [f"{path} 0" for path in paths], done.stderr
    for path in paths:
        page = Path(path)
        code = json.dumps(json.loads(page.read_text())["cells"])
        for name in re.findall(r'open\(\\"([^"\\]+)\\"', code):
            assert (clone / "book/chapters" / page.parent.name / name).is_file(), name
