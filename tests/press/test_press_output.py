"""What cells and their children print or end with, and files that are not as written."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, cell, new_book
from typer.testing import CliRunner

from geolib.press import Build, cli
from geolib.press.notebook import Notebook
from geolib.press.pool import Settings, press

# How each notebook ends; the last one runs well, after all the others.
CELLS = {
    "01-exit": ["import sys\nsys.exit()"],
    "02-huge": [
        "for i in range(200_000):\n    print('a line of some length, number', i)"
    ],
    "03-at-once": ["print('x' * 50_000_000)"],
    "04-worker": ["import os\nos.kill(os.getppid(), 9)"],
    "05-kernel": ["import os, signal\nos.kill(os.getpid(), 9)"],
    "06-raises": ["x = 1", "y = x / 0\nz = 2", "w = 3"],
    "07-full": [
        'from geolib.claims import claim\n_ = claim("demo.n", "n", measured=2, bound="<= 9")',
        "class OutOfMemoryError(RuntimeError): ...\nraise OutOfMemoryError('no room')",
    ],
    "08-child": [
        "import subprocess\n"
        "for line in ('{', '{\"name\": 1}', '{\"started\": 9}'):\n"
        "    subprocess.run(['sh', '-c', 'echo \"$0\"; echo \"$0\" >&2', line])"
    ],
}


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    """One press of a little book for several tests."""
    book = new_book(tmp_path_factory.mktemp("book"))
    notebooks = [book.add(f"demo/{n}", *map(cell, c)) for n, c in CELLS.items()]
    settings = Settings("small", "cpu", jobs=2)
    outcomes = press(notebooks, settings, report=lambda line: None)
    return Build(book.root, "small"), dict(zip(CELLS, outcomes, strict=True))


@pytest.fixture
def failed(pressed):
    """`failed(name)`: the outcome and partial notebook of a run that must have failed."""
    build, outcomes = pressed

    def look(name):
        notebook = Notebook(build.root, f"demo/{name}")
        assert outcomes[name].status == "failed"
        assert not build.stage(notebook).exists()
        return outcomes[name], build.failed(notebook)

    return look


@pytest.mark.press
@pytest.mark.slow
class TestOneBook:
    def test_a_raising_cell_is_named_and_what_ended_before_is_kept(self, failed):
        outcome, partial = failed("06-raises")
        assert outcome.cell == 3
        assert outcome.message.startswith(
            "demo/06-raises, cell 3 `y = x / 0`: ZeroDivisionError"
        )
        assert nbformat.read(partial, as_version=4).cells

    def test_the_others_go_on(self, pressed):
        assert pressed[1]["08-child"].status == "ok", pressed[1]["08-child"].message

    def test_a_cell_that_exits_is_a_failure(self, failed):
        outcome, _ = failed("01-exit")
        assert "SystemExit" in outcome.error
        assert "a cell must not end the kernel" in outcome.error

    def test_a_killed_kernel_is_reported(self, failed):
        outcome, _ = failed("05-kernel")
        assert "kernel died" in outcome.error
        assert "import os, signal" in outcome.source

    def test_a_worker_that_dies_without_a_word_is_a_failure(self, failed):
        outcome, _ = failed("04-worker")
        assert "the worker process ended with code -9" in outcome.error

    def test_a_full_device_is_answered_with_advice_and_loses_nothing(self, failed):
        outcome, partial = failed("07-full")
        assert "cell 3" in outcome.message
        assert "OutOfMemoryError: no room" in outcome.error
        assert "give the notebook smaller sizes" in outcome.error
        assert "demo.n" in partial.read_text()  # what ended before is kept

    def test_lines_of_a_child_process_are_no_report(self, pressed):
        build, outcomes = pressed
        assert outcomes["08-child"].name == "demo/08-child"
        assert build.page(Notebook(build.root, "demo/08-child")).state == "whole"

    @pytest.mark.parametrize("name", ["02-huge", "03-at-once"])
    def test_output_without_end_is_bounded(self, failed, name):
        from geolib.press.kernel import LIMIT

        outcome, partial = failed(name)
        assert "the notebook printed" in outcome.error
        assert partial.stat().st_size < 2 * LIMIT


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root may write everywhere; for root `_build` as a file stands for this",
)
def test_a_read_only_checkout_is_one_sentence(book, monkeypatch):
    book.add("demo/01-a", cell("x = 1"))
    monkeypatch.chdir(book.root)
    book.root.chmod(0o500)
    try:
        done = CliRunner().invoke(cli.app, ["run"])
    finally:
        book.root.chmod(0o700)
    assert done.exit_code == 1
    assert "geolib: cannot write below" in done.output
    assert "Traceback" not in done.output


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [False, True])
def test_the_report_of_an_audit_goes_into_a_missing_folder_or_says_why_not(
    tmp_path, blocked
):
    if blocked:
        (tmp_path / "missing").write_text("a file where a folder should be")
    target = tmp_path / "missing" / "report.json"
    little = ["--model", "mlp:2", "--samples", "6", "--families", "affine"]
    done = CliRunner().invoke(
        cli.app, ["audit", "torch.optim.SGD", *little, "--json", str(target)]
    )
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.output
    assert target.is_file() is not blocked
    assert done.exit_code == int(blocked), done.output
    assert ("missing" in done.output) or not blocked


def compared(root):
    """Exit code and output of nbval with our plugin, in a checkout of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "nbval_recorded"]
    command += ["-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--nbval-lax", "--nbval-current-env", "chapters"]
    done = subprocess.run(
        command,
        cwd=root,
        env=dict(os.environ, PYTHONPATH=str(root / "tests")),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_an_altered_reference_is_caught_by_the_comparison(tmp_path):
    code = nbformat.v4.new_code_cell("print(6 * 7)", execution_count=1)
    code.metadata["tags"] = ["nbval-check-output"]
    code.outputs = [nbformat.v4.new_output("stream", name="stdout", text="42\n")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = nbformat.v4.new_notebook(cells=[code], metadata={"kernelspec": kernel})
    pair = tmp_path / "chapters" / "demo" / "01-a.ipynb"
    stage = tmp_path / "_build" / "small" / "stage" / "chapters" / "demo"
    for folder in (pair.parent, stage, tmp_path / "tests"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "nbval_recorded.py", tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    text = nbformat.writes(nb)
    pair.write_text(text)
    (stage / "01-a.reference").write_text(text)
    rc, said = compared(tmp_path)
    assert rc == 0, said
    (stage / "01-a.reference").write_text(text.replace("42", "43"))
    rc, said = compared(tmp_path)
    assert rc == 1, said
    assert "43" in said
