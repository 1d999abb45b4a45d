"""The press: skipping, parameters, staging, pairs."""

import json
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import cell, new_book

from geolib.press import Build, PressError
from geolib.press.ledger import collect
from geolib.press.notebook import discover, parameters
from geolib.press.pool import Settings, press, refresh
from geolib.sweep import Store, keep

pytestmark = pytest.mark.press

CLAIM = cell(
    'from geolib.claims import claim, quote\n_ = claim("demo.n", "n is small", '
    'measured=size, bound="<= 9")',
    "nbval-check-output",
)
SMALL = Settings(profile="small", device="cpu")
PLAIN = "---\nkernelspec: {display_name: Python 3, name: python3}\n---\n# A page\n"


def run(notebooks, settings=SMALL):
    return press(notebooks, settings, report=lambda line: None)


ALONE = cell('claim("demo.m", "m", measured=size, bound="<= 9")\nquote("demo.s", 1)')


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    """One press for tests that only look: `(build, outcomes, notebooks)`."""
    book = new_book(tmp_path_factory.mktemp("pressed"))
    a = book.add(
        "demo/01-a", CLAIM, cell("import sys; print('x', file=sys.stderr)"), ALONE
    )
    b = book.add(
        "demo/02-b", CLAIM, cell("if size > 5:\n    claim('demo.big', '', m=1)")
    )
    notebooks = [a, b, book.add("demo/03-c", cell("x = 3"))]
    outcomes = run(notebooks, Settings(profile="small", device="cpu", jobs=3))
    return Build(book.root, "small"), outcomes, notebooks


def test_an_unchanged_notebook_is_not_run_again_and_a_changed_one_is(book):
    a, b = book.add("demo/01-a", CLAIM), book.add("demo/02-b", cell("x = 1"))
    assert [o.status for o in run([a, b])] == ["ok", "ok"]
    assert [o.status for o in run([a, b])] == ["skipped", "skipped"]
    b.source.write_text(b.source.read_text().replace("x = 1", "x = 2"))
    assert [o.status for o in run([a, b])] == ["skipped", "ok"]
    forced = Settings(profile="small", device="cpu", force=True)
    assert [o.status for o in run([a], forced)] == ["ok"]


def test_new_parameters_and_new_data_run_it_again(book):
    a = book.add("demo/01-a", CLAIM)
    settings = Settings(profile="book", device="cpu")
    assert run([a], settings)[0].status == "ok"
    book.profiles("demo/01-a: {book: {size: 5}}\n")
    assert run([a], settings)[0].status == "ok"
    assert collect(Build(book.root, "book"), [a]).rows[0]["measured"] == 5
    (a.source.parent / "table.json").write_text("{}")
    assert run([a], settings)[0].status == "ok"
    assert run([a], settings)[0].status == "skipped"


def test_what_is_published_runs_its_readers_again_and_a_store_does_not(
    book, monkeypatch, tmp_path
):
    monkeypatch.setenv("GEOLIB_SWEEPS", str(tmp_path / "store"))
    reader = 'from geolib.sweep import sweep_rows\nprint(sweep_rows("mine"))'
    a = book.add("demo/01-a", cell(reader))
    (a.source.parent / "experiments.py").write_text('MINE = Sweep("mine")\n')
    assert run([a])[0].status == "ok"
    assert "[]" in Build(a.root, "small").stage(a).read_text()
    entry = {"status": "done", "version": 1, "spec": {"d": 77}, "record": {}}
    Store().put("mine", "k", entry)
    assert run([a])[0].status == "skipped"
    keep(a.source.parent / "measured" / "mine.json", {"k": {"d": 77}}, {})
    assert run([a])[0].status == "ok"
    assert "{'d': 77}" in Build(a.root, "small").stage(a).read_text()
    assert run([a])[0].status == "skipped"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demo/01-a: {book: {sise: 5}}", "undeclared parameter sise"),
        ("demo/07-z: {book: {size: 5}}", "no notebook 'demo/07-z'"),
        ("demo/01-a: {huge: {size: 5}}", "expected 'book' and 'full'"),
    ],
)
def test_a_wrong_profile_is_refused_before_anything_runs(book, text, message):
    a = book.add("demo/01-a", CLAIM)
    book.profiles(text)
    with pytest.raises(PressError, match=re.escape(message)):
        run([a], Settings(profile="book", device="cpu"))
    assert not Build(a.root, "book").stage(a).exists()


def test_unknown_profile_device_and_chapter_are_named(book):
    a = book.add("demo/01-a", CLAIM)
    with pytest.raises(PressError, match="profile: expected one of"):
        Build(a.root, "medium")
    with pytest.raises(PressError, match="device: expected auto, cpu or cuda"):
        run([a], Settings(device="tpu"))
    with pytest.raises(
        PressError, match="no chapter or notebook 'dmeo'.*did you mean demo"
    ):
        discover(book.root, ["dmeo"])


def test_cuda_without_a_device_is_one_clear_error(book):
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a CUDA device there is no such error to see")
    a = book.add("demo/01-a", CLAIM)
    with pytest.raises(PressError, match="cuda was asked for"):
        run([a], Settings(device="cuda"))


def test_a_notebook_that_uses_no_device_is_a_cpus_wherever_it_is_asked_for(book):
    idle = book.add("demo/01-a", CLAIM)
    busy = book.add("demo/02-b", cell("print(device)"))
    assert [n.device("cuda") for n in (idle, busy)] == ["cpu", "cuda"]
    assert [n.device("cpu") for n in (idle, busy)] == ["cpu", "cpu"]
    assert parameters(busy, "small", busy.device("cuda")) == {"device": "cuda"}
    assert parameters(idle, "small", idle.device("cuda")) == {}


def test_an_absent_data_set_is_named_before_anything_runs(book, monkeypatch, tmp_path):
    monkeypatch.setenv("GEOLIB_DATA", str(tmp_path / "empty"))
    a = book.add("demo/01-a", cell('name = "digits"', "parameters"), header=PLAIN)
    b = book.add("demo/02-b", cell("x = 1"))
    book.profiles("demo/01-a: {book: {name: mnist}}\n")
    with pytest.raises(PressError) as refused:
        run([b, a], Settings(profile="book", device="cpu"))
    text = str(refused.value)
    assert "demo/01-a needs mnist (name = mnist)" in text
    assert "geolib data fetch mnist" in text
    assert not Build(book.root, "book").stage(b).exists()


def test_two_parameter_cells_are_refused(book):
    a = book.add("demo/01-a", cell("size = 3", "parameters"))
    with pytest.raises(PressError, match="one cell tagged 'parameters', got 2"):
        run([a])


def test_the_staged_page_holds_no_path_time_or_random_id(pressed):
    build, _, notebooks = pressed
    text = build.stage(notebooks[0]).read_text()
    nb = nbformat.reads(text, as_version=4)
    assert str(build.root) not in text
    assert "start_time" not in text
    assert not any(c.metadata.get("papermill") for c in nb.cells)
    *own, checks = [c["id"] for c in nb.cells]
    # By place; a cell that was joined with the next is gone.
    assert own == sorted({*own})
    assert all(re.fullmatch(r"cell-\d{3}", name) for name in own)
    assert checks == "all-checks"
    assert not any(
        o.get("name") == "stderr" for c in nb.cells for o in c.get("outputs", [])
    )


def test_a_claim_becomes_a_box_a_glue_value_and_a_row(pressed):
    build, _, notebooks = pressed
    outputs = nbformat.read(build.stage(notebooks[1]), as_version=4).cells[-3].outputs
    assert 'id="claim-demo-n"' in outputs[0].data["text/html"]
    assert outputs[1].metadata.scrapbook.name == "demo.n"
    ledger = collect(build, notebooks[:1])
    assert ledger.is_valid
    assert ledger.rows[0]["measured"] == 2
    assert ledger.summary == "2 claims: 2 hold"


def test_a_claim_that_did_not_run_is_missing_and_a_key_used_twice_is_named(pressed):
    build, _, notebooks = pressed
    ledger = collect(build, notebooks)
    assert ledger.missing == ["demo.big"]
    assert ledger.repeated == ["demo.n"]
    assert not ledger.is_valid


def test_a_failed_claim_is_in_the_ledger_and_not_on_the_stage(book):
    a = book.add("demo/01-a", CLAIM.replace("<= 9", "<= 1"))
    outcome = run([a])[0]
    assert outcome.status == "failed"
    assert "ClaimFailed" in outcome.error
    assert [r["key"] for r in collect(Build(book.root, "small"), [a]).failed] == [
        "demo.n"
    ]
    assert not Build(a.root, "small").stage(a).exists()


def test_the_pair_keeps_outputs_of_checked_cells_only_and_repeats(book):
    a = book.add("demo/01-a", cell("print('noise')"), CLAIM)
    refresh([a])
    first = a.pair.read_text()
    nb = json.loads(first)
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    assert [len(c["outputs"]) for c in code] == [0, 0, 1]
    assert list(code[2]["outputs"][0]["data"]) == ["text/plain"]
    assert all(c["execution_count"] for c in code)
    assert str(book.root) not in first
    refresh([a], force=True)
    assert a.pair.read_text() == first


def test_jobs_run_side_by_side_and_report_in_the_order_given(pressed):
    build, outcomes, notebooks = pressed
    assert [o.name for o in outcomes] == [n.name for n in notebooks]
    assert {o.status for o in outcomes} == {"ok"}
    assert not list((build.folder / "work").rglob("*.ipynb"))


def test_a_stream_that_the_kernel_cut_in_pieces_is_one_in_the_pair():
    from geolib.press.pair import reference

    cut = [
        nbformat.v4.new_output("stream", name="stdout", text=t) for t in ("a\n", "b\n")
    ]
    checked = nbformat.v4.new_code_cell("print('a')", outputs=cut)
    checked.metadata["tags"] = ["nbval-check-output"]
    nb = nbformat.v4.new_notebook(cells=[checked])
    assert [o.text for o in reference(nb).cells[0].outputs] == ["a\nb\n"]


def test_where_nothing_changed_nothing_heavy_is_imported(book):
    """The seconds of a second `make book`: keys are compared without the libraries."""
    a = book.add("demo/01-a", CLAIM)
    assert run([a])[0].status == "ok"
    heavy = (
        "torch",
        "papermill",
        "nbclient",
        "nbformat",
        "jupytext",
        "sphinx",
        "numpy",
    )
    code = (
        "import sys\n"
        "from geolib.press.cli import app\n"
        "try: app(['run', '--device', 'cpu'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=book.root, capture_output=True, text=True
    )
    first, second = done.stdout.splitlines()
    assert first == "0 executed, 1 unchanged, 0 failed (profile small)", done.stderr
    assert second == "[]"
