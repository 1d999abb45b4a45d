"""Every Python example of the README runs as it stands and prints what stands under it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOUND = re.findall(
    r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?",
    (ROOT / "README.md").read_text(),
    re.S,
)
EXAMPLES = [code for code, _ in FOUND]
# Torch is loaded once; each example then gets a process and a `__main__` to itself.
PROCESSES = """
import json, os, sys, time, traceback
import torch
start, total = time.process_time(), 0
for i in range(10**7):
    total += i * i
print(time.process_time() - start, flush=True)
for number, code in enumerate(json.loads(sys.stdin.read())):
    child = os.fork()
    if child == 0:
        output = os.open(f"{number}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        ended = 1
        try:
            exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            ended = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(ended)
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


def test_six_examples_show_their_output():
    assert sum(bool(output) for _, output in FOUND) >= 6


@pytest.mark.slow
def test_every_example_runs_without_a_warning_and_prints_what_is_shown(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROCESSES],
        input=json.dumps(EXAMPLES),
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    loop, *ended = [line.split() for line in done.stdout.splitlines()]
    # Ten seconds of a machine that takes .75 s for the loop; a busy one takes thrice that.
    slowness = max(1.0, float(loop[0]) / 0.75)
    printed = [(tmp_path / f"{i}.txt").read_text() for i in range(len(EXAMPLES))]
    for (code, shown), (rc, seconds), text in zip(FOUND, ended, printed, strict=True):
        assert rc == "0", f"{code}\n{text}"
        assert text.strip(), code
        assert text == (shown or text)
        assert float(seconds) < 10 * slowness, code


def test_the_two_commands_are_targets_of_the_makefile():
    text, rules = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{target}:.*## ", rules, re.M), target


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lets_python_keep_what_it_compiled():
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    probe = ["make", "--silent", "--eval", "probe: ; @env", "probe"]
    done = subprocess.run(probe, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "OMP_NUM_THREADS=1" in done.stdout, done.stderr
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def test_ci_runs_both_commands_in_a_clone_and_hides_nothing():
    script = (ROOT / ".ci" / "run").read_text()
    wanted = ["apt-get install", 'git clone -q "$checkout"', 'HOME=$scratch/home',
              "unset GEOLIB_DATA", '"make test" make test', '"make book" make book',
              '"the wheel alone" wheel', '"make test-data" env']  # fmt: skip
    places = [script.index(step) for step in wanted]
    assert places == sorted(places)
    assert "set -euo pipefail" in script
    assert "|| true" not in script
    assert "shared/data" not in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_the_sweep_of_the_readme_runs_from_its_file(tmp_path):
    (code,) = [c for c in EXAMPLES if c.startswith("# my_sweep.py\n")]
    (tmp_path / "my_sweep.py").write_text(code)
    store = {"GEOLIB_SWEEPS": str(tmp_path / "store"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "geolib", "sweep", "my_sweep.py:SWEEP"]
    done = subprocess.run(
        [*command, "--scheduler", "inline"],
        cwd=tmp_path, env=os.environ | store, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "6 runs: 0 stored before, 6 done now, 0 failed" in done.stdout


def test_the_wheel_is_tried_on_every_example_that_the_readme_prints():
    text = (ROOT / "README.md").read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    for command in ("audit", "sweep", "data"):
        assert re.search(rf"^geolib {command} ", shell, re.M), command
