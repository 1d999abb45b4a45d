"""What the press says when something is not as it should be: one sentence, no traceback."""

import json
import socket

import pytest
from conftest import cell
from page_marks import ledger_page
from typer.testing import CliRunner

from geolib import files
from geolib.press import Build, PressError, cli
from geolib.press.job import Outcome
from geolib.press.ledger import collect, print_table
from geolib.press.notebook import parameters
from geolib.press.pool import Settings, press
from geolib.press.verdict import settle

PLAIN = "---\nkernelspec: {display_name: Python 3, name: python3}\n---\n# A page\n"


def invoke(monkeypatch, book, *arguments):
    monkeypatch.chdir(book.root)
    return CliRunner().invoke(cli.app, list(arguments))


def says(done, *words, code=1):
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.output
    for word in words:
        assert word in done.output


@pytest.mark.parametrize(
    ("source", "declared"),
    [
        ("n: int = 1", {"n"}),
        ("a, b = 1, 2", {"a", "b"}),
        ("(a, *rest), [c] = (1, 2), [3]", {"a", "rest", "c"}),
        ("n: int", set()),
        ("a = b = 1", {"a", "b"}),
        ("x[0] = 1; y.z = 2", set()),
    ],
)
def test_annotated_and_unpacked_parameters_are_declared(book, source, declared):
    a = book.add("demo/01-a", cell(source, "parameters"), header=PLAIN)
    assert a.declared() == declared


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1\n%matplotlib inline", "line 2: magics and shell escapes"),
        ("%%time\nx = 1", "line 1: magics and shell escapes"),
        ("!ls", "line 1: magics and shell escapes"),
        ("files = !ls", "line 1: magics and shell escapes"),
        ("len?", "line 1: magics and shell escapes"),
        ("x = (1", "line 1: SyntaxError"),
    ],
)
def test_what_is_not_python_is_named_by_notebook_cell_and_line(book, source, why):
    a = book.add("demo/01-a", cell("y = 1"), cell(source))
    (outcome,) = press([a], Settings("small", "cpu"), report=lambda line: None)
    assert outcome.status == "failed"
    assert outcome.cell == 3
    assert outcome.message.startswith(f"demo/01-a, cell 3 `{outcome.source}`: {why}")
    assert Build(book.root, "small").page(a).state == "failed"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("---\nx: [\n---\n# A\n", "Error"),
        ("---\nkernelspec: {display_name: Python 3}\n---\n", "'name' is a required"),
    ],
)
def test_a_header_that_cannot_be_read_fails_that_notebook_alone(book, header, why):
    a = book.add("demo/01-a", header=header)
    a.source.write_bytes(a.source.read_bytes() + b"\xff")
    (outcome,) = press([a], Settings("small", "cpu"), report=lambda line: None)
    assert outcome.status == "failed"
    assert "no MyST notebook" in outcome.error
    assert why in outcome.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demo/01-a: {book: {size: [}}", "this is not YAML"),
        ("- 1\n- 2", "expected a table with names, got list"),
        ("demo/01-a: 3", "demo/01-a: expected a table with names, got int"),
        ("demo/01-a: {book: 3}", "profile book: expected a table with names, got int"),
        (
            "demo/01-a: {book: {size: 2026-01-02}}",
            "size: expected numbers, .* got date",
        ),
        ("1: {}", "expected a table with names"),
        ("2026-13-45", "YAML|expected a table"),
        ("x: !!python/object:os.system {}", "this is not YAML"),
    ],
)
def test_a_broken_table_of_sizes_is_one_sentence(book, text, message):
    a = book.add("demo/01-a", cell("x = 1"))
    book.profiles(text)
    with pytest.raises(PressError, match=message):
        parameters(a, "book", "cpu")


TOC = "format: jb-book\nroot: book/intro\n"
EXTENSION = "sphinx: {extra_extensions: "
PART = TOC + "parts:\n  - chapters: "
GONE = "No such file or directory"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("_toc.yml", "a: [", "this is not YAML"),
        ("_toc.yml", "- x", "expected a table with names, got list"),
        ("_toc.yml", b"\xff\xfe", "expected UTF-8 text"),
        ("_toc.yml", "", "'root' key not found"),
        ("_toc.yml", "root: 3", "'docname' must be <class 'str'>"),
        ("_toc.yml", "format: novel\nroot: book/intro", "not recognised: 'novel'"),
        ("_toc.yml", TOC + "defaults: 3", "'int' object is not a mapping"),
        ("_toc.yml", TOC + "color: blue", "Unknown keys found: {'color'}"),
        ("_toc.yml", PART + "[book/intro]", "not a mapping type @ '/parts/0/chapters"),
        ("_toc.yml", PART + "[{file: a/b}]", "no page 'a/b': expected a/b.md"),
        ("_toc.yml", "root: book/none", "no page 'book/none'"),
        ("_config.yml", "a: [", "this is not YAML"),
        ("_config.yml", "title: [a]", "title: ['a'] is not of type 'string'"),
        ("_config.yml", "html: {favicon: 3}", "html: favicon: 3 is not of type"),
        ("_config.yml", "sphinx: 3", "sphinx: 3 is not of type 'object'"),
        (
            "_config.yml",
            EXTENSION + "[sphinx.ext.none]}",
            "no module 'sphinx.ext.none'",
        ),
        ("_config.yml", EXTENSION + "[none.at.all]}", "no module 'none.at.all'"),
        ("_config.yml", None, GONE),
    ],
)
@pytest.mark.parametrize("command", ["html", "book"])
def test_settings_that_cannot_be_used_are_named(
    book, monkeypatch, name, text, why, command
):
    """One sentence on standard error and code 2, before anything runs or is rendered."""
    book.add("demo/01-a", cell("x = 1"))
    for file, content in (
        ("_toc.yml", TOC),
        ("_config.yml", ""),
        ("book/intro.md", ""),
    ):
        (book.root / file).parent.mkdir(exist_ok=True)
        (book.root / file).write_text(content)
    if text is None:
        (book.root / name).unlink()
    else:
        raw = text if isinstance(text, bytes) else text.encode()
        (book.root / name).write_bytes(raw)
    done = invoke(monkeypatch, book, command, "--profile", "small")
    says(done, f"geolib: {name}: ", why, code=2)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (book.root / "_build" / "small").exists()


def test_outside_a_checkout_it_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["run"])
    says(done, "needs a checkout of the book")
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "book", "html"])
def test_a_book_that_does_not_say_how_its_pages_look(book, monkeypatch, command):
    book.add("demo/01-a", cell("x = 1"))
    for file in ("_config.yml", "book/intro.md"):
        (book.root / file).write_text("")
    module = "page_site" if command == "html" else "page_cells"
    (book.root / "book" / "_ext" / f"{module}.py").unlink()
    done = invoke(monkeypatch, book, command, "--profile", "small")
    says(done, f"{module}.py, which makes the pages of a book")
    assert not (book.root / "_build" / "small").exists()


def test_a_build_folder_that_is_a_file_is_one_sentence(book, monkeypatch):
    book.add("demo/01-a", cell("x = 1"))
    (book.root / "_build").write_text("mine")
    done = invoke(monkeypatch, book, "run")
    says(done, "geolib: cannot write below", "_build")


def test_a_scheduler_without_a_protocol_runs_nothing(book, monkeypatch):
    book.add("demo/01-a", cell("x = 1"))
    done = invoke(monkeypatch, book, "run", "--scheduler", "localhost:8786")
    says(done, "scheduler: expected an address such as tcp://host:8786")


def test_a_port_that_cannot_be_served_is_named(book, monkeypatch):
    site = Build(book.root, "book").site
    site.mkdir(parents=True)
    (site / "index.html").write_text("x")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        for port in (busy.getsockname()[1], 70000):
            done = invoke(monkeypatch, book, "serve", "--port", str(port))
            says(done, f"port {port} cannot be served")


def test_a_wrong_argument_of_a_chapters_command_is_one_sentence(book, monkeypatch):
    asked = ("predict", "--data", "nowhere.csv", "--hidden", "3")
    sentence = "geolib: data: expected a file that is there, got 'nowhere.csv'"
    says(invoke(monkeypatch, book, *asked), sentence, code=2)


def test_an_unknown_profile_is_named_by_every_command(book, monkeypatch):
    for command in ("run", "html", "book", "serve", "claims"):
        book.add("demo/01-a", cell("x = 1"))
        done = invoke(monkeypatch, book, command, "--profile", "medium")
        says(done, "profile: expected one of")


def test_a_thread_that_stumbles_fails_its_notebook_and_goes_on(book, monkeypatch):
    from geolib.press import pool

    seen = []

    def stumble(self, n, progress):
        seen.append(n.name)
        if n.name == "demo/01-a":
            raise KeyError("odd")
        return Outcome(n.name, "ok")

    monkeypatch.setattr(pool._Pool, "_one", stumble)
    notebooks = [book.add(f"demo/0{i}-a", cell("x = 1")) for i in (1, 2, 3)]
    done = press(notebooks, Settings("small", "cpu"), report=lambda line: None)
    assert [o.status for o in done] == ["failed", "ok", "ok"]
    assert "KeyError: 'odd'" in done[0].error
    assert len(seen) == 3


def test_a_source_that_vanishes_during_the_run_fails_alone(book, monkeypatch):
    from geolib.press import pool

    gone, kept = book.add("demo/01-gone"), book.add("demo/02-kept")
    monkeypatch.setattr(pool, "_check_data", lambda *_: gone.source.unlink())
    monkeypatch.setattr(pool.Job, "run", lambda job, *_: Outcome(job.name, "failed"))
    done = press([gone, kept], Settings("small", "cpu"), report=lambda line: None)
    assert "could not be read: No such file or directory" in done[0].error
    assert done[1].error == ""


def entry(**changed):
    fields = {
        "key": "demo.a", "text": "a", "measured": 9, "shown": "9", "bound": "<= 2",
        "holds": True, "verdict": "holds", "paper": "[/b]", "reproduces": True,
        "reason": None,
    }  # fmt: skip
    return fields | changed


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "FAILS"),
        ({"bound": "<= 10"}, "holds"),
        ({"bound": "<= 10", "reproduces": False}, "not reproduced"),
        ({"bound": "at most 10"}, "FAILS"),
        ({"bound": None}, "FAILS"),
        ({"measured": None}, "FAILS"),
        ({"measured": "nine"}, "FAILS"),
        ({"measured": float("inf"), "bound": ">= 2"}, "FAILS"),
        ({"measured": float("nan"), "bound": ">= 2"}, "FAILS"),
    ],
)
def test_a_verdict_is_computed_from_number_and_bound(changed, verdict):
    assert settle(entry(**changed))["verdict"] == verdict


def put(build, notebook, **changed):
    """A staged page with one claim, as a run would leave it."""
    output = {"output_type": "display_data", "data": {}}
    output["metadata"] = {"geolib.claim": entry(**changed)}
    code = {"cell_type": "code", "source": "", "metadata": {}, "outputs": [output]}
    nb = {"cells": [code], "metadata": {"geolib": {"device": "cpu"}}}
    build.keep(build.stage(notebook), json.dumps(nb), build.inputs(notebook), [])
    return build.stage(notebook)


def test_the_ledger_trusts_neither_verdicts_nor_pages(book, monkeypatch, capsys):
    build = Build(book.root, "small")
    a = book.add("demo/01-a", cell("x = 1"))
    path = put(build, a, bound="<= 10")
    assert build.page(a).state == "whole"
    assert collect(build, [a]).is_valid
    text = path.read_text()
    path.write_text(text.replace('"measured": 9', '"measured": 8'))
    assert build.page(a).state == "altered"
    assert not collect(build, [a]).is_valid
    path.write_text(text)
    a.source.write_text(a.source.read_text() + "\nMore.\n")
    assert build.page(a).state == "stale"
    assert "changed after it was executed" in collect(build, [a]).marked["demo/01-a"]
    for damage in ("", "{", '{"cells": 3, "metadata": {}}', '{"cells": [3]}'):
        path.write_text(damage)
        assert build.page(a).state == "absent"
    put(build, a)
    found = collect(build, [a])
    assert [r["key"] for r in found.failed] == ["demo.a"]
    print_table(found)
    assert "[/b]" in capsys.readouterr().out
    done = invoke(monkeypatch, book, "claims", "--profile", "small", "--check")
    says(done, "1 failed (demo.a)")


def test_a_key_covers_the_modules_that_the_run_imported_and_no_others(book):
    build = Build(book.root, "small")
    a = book.add("demo/01-a", cell("x = 1"))
    used = ["__init__.py", "claims.py", "regimes/__init__.py"]
    build.keep(build.stage(a), '{"cells": [], "metadata": {}}', build.inputs(a), used)
    assert build.is_fresh(a)
    for name, fresh in (
        ("geodesics/__init__.py", True), ("claims.py", False),
        ("regimes/__init__.py", False),
    ):  # fmt: skip
        later = Build(book.root, "small")
        later.code[name] = "changed"
        assert later.is_fresh(a) is fresh
    gone = Build(book.root, "small")
    del gone.code["claims.py"]
    assert not gone.is_fresh(a)
    assert not build.is_fresh(a, "Some GPU")


def test_a_failure_of_an_older_text_does_not_win_over_a_good_page(book):
    build = Build(book.root, "small")
    a = book.add("demo/01-a", cell("x = 1"))
    put(build, a, bound="<= 10")
    text = a.source.read_text()
    a.source.write_text(text.replace("x = 1", "x = 1 / 0"))
    build.keep(
        build.failed(a),
        '{"cells": [], "metadata": {}}',
        build.inputs(a),
        None,
        error="broke",
    )
    assert build.page(a).state == "failed"
    a.source.write_text(text)
    assert build.page(a).state == "whole"
    done = press([a], Settings("small", "cpu"), report=lambda line: None)
    assert [o.status for o in done] == ["skipped"]
    assert not build.failed(a).exists()


@pytest.mark.parametrize(
    "odd",
    [
        {"measured": "nine"},
        {"measured": None, "shown": None},
        {"measured": [1], "bound": 2},
        {"key": 3, "text": None, "paper": 7},
    ],
)
def test_odd_claims_and_damaged_pages_are_failures_that_every_command_can_show(
    book, monkeypatch, odd
):
    build = Build(book.root, "small")
    a, b = book.add("demo/01-a"), book.add("demo/02-b")
    put(build, a, **odd)
    put(build, b)
    build.stage(b).write_bytes(b"\xff{")
    found = collect(build, [a, b])
    assert [r["verdict"] for r in found.rows] == ["FAILS"]
    assert list(found.marked) == ["demo/02-b"]
    assert "FAILS" in ledger_page(found)
    done = invoke(monkeypatch, book, "claims", "--profile", "small", "--check")
    says(done, "demo/02-b: This notebook was not executed.", "1 failed")


@pytest.mark.parametrize(
    ("command", "file"), [("run", "last.json"), ("claims", "claims.json")]
)
def test_a_disk_that_is_full_at_the_summary(book, monkeypatch, command, file):
    real = files.os.replace

    def full(source, target):
        if str(target).endswith(file):
            raise OSError(28, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    done = invoke(monkeypatch, book, command, "--profile", "small")
    says(done, "geolib: No space left on device: ", file)


def test_the_version(book, monkeypatch):
    assert "geolib 0." in invoke(monkeypatch, book, "--version").output


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant():
    """Also one that a chapter brings along."""
    from typer.testing import CliRunner

    from geolib.press.cli import app

    for typed, meant in (("audti", "audit"), ("clams", "claims")):
        said = CliRunner().invoke(app, [typed])
        assert said.exit_code == 2
        assert f"Did you mean '{meant}'?" in said.output
