"""A book in which pages fail is rendered all the same, marked, and ends with code 1."""

import json
import re
import time

import mini
import pytest

pytestmark = [pytest.mark.press, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The failing mini book: `(code, output, site)`."""
    if not (mini.ROOT / "node_modules" / "mathjax").is_dir():
        pytest.skip("MathJax is not installed: `npm ci` was not run")
    return mini.rendered(tmp_path_factory.mktemp("a 'b' {c}"))


def html(made, name):
    text = (made[2] / f"{name}.html").read_text()
    return text[text.index("<article") :]


def marks(text):
    return re.findall(r'press-mark">.*?</div>', text, re.S)


def test_the_command_renders_counts_and_ends_with_code_1(made):
    code, text, site = made
    assert code == 1, text
    assert (site / "index.html").is_file()
    last = text.strip().splitlines()
    assert str(site / "index.html") in last[-2]
    assert "3 of 4 notebooks are not whole" in last[-1]
    assert "1 failed (demo.broken)" in last[-1]
    assert "1 missing (demo.later)" in last[-1]
    assert "Traceback" not in text


def test_each_broken_page_is_shown_up_to_there_under_a_banner(made):
    assert marks(html(made, "chapters/demo/01-whole")) == []
    claim = html(made, "chapters/demo/02-claim")
    assert "ClaimFailed: demo.broken" in marks(claim)[0]
    assert "claim-fails" in claim
    assert "(not reached)" in claim
    assert "never said" not in claim
    raised = html(made, "chapters/demo/03-raises")
    assert "ValueError: no &#96;such&#96; &lt;thing&gt;" in marks(raised)[0]
    assert "cell 4" in marks(raised)[0]
    assert "before" in raised
    assert str(made[2]) not in raised
    magic = html(made, "chapters/demo/04-magic")
    assert "cell 3 `%matplotlib inline`".replace("`", "&#96;") in marks(magic)[0]


def test_the_ledger_says_what_broke_and_what_was_not_reached(made):
    page = html(made, "book/claims")
    rows = {
        r["key"]: r["verdict"]
        for r in json.loads((made[2].parents[1] / "claims.json").read_text())["rows"]
    }
    assert rows == {
        "demo.kept": "holds", "demo.broken": "FAILS", "demo.later": "not reached",
    }  # fmt: skip
    for verdict in ("holds", "FAILS", "not reached"):
        assert f">{verdict}</span>" in page


def test_the_landing_page_counts_them(made):
    (mark,) = marks(html(made, "book/intro"))
    assert "3 of 4 notebooks are not whole" in mark
    assert "demo/02-claim" in mark


def test_strict_refuses_and_leaves_the_site_alone(made):
    index = made[2] / "index.html"
    before = index.stat().st_mtime_ns
    code, text = mini.geolib(
        made[2].parents[2], "html", "--profile", "small", "--strict"
    )
    assert code == 1
    assert "html --strict refuses" in text
    assert "demo/03-raises" in text
    assert index.stat().st_mtime_ns == before


def test_a_page_that_was_never_executed_says_so_and_a_stale_one_too(made):
    root = made[2].parents[2]
    source = root / "chapters" / "demo"
    new = source / "05-new.md"
    new.write_text(mini.page("five", mini.cell("z = 1")))
    toc = root / "_toc.yml"
    toc.write_text(toc.read_text() + "      - file: chapters/demo/05-new\n")
    whole = source / "01-whole.md"
    whole.write_text(whole.read_text() + "\nOne more word.\n")
    code, text = mini.geolib(root, "html", "--profile", "small")
    assert code == 1
    assert "5 of 5 notebooks are not whole" in text
    assert "was not executed" in marks(html(made, "chapters/demo/05-new"))[0]
    assert "The page five" in html(made, "chapters/demo/05-new")
    stale = marks(html(made, "chapters/demo/01-whole"))[0]
    assert "changed after it was executed" in stale


def test_nothing_changed_takes_no_time(made):
    root = made[2].parents[2]
    mini.geolib(root, "html", "--profile", "small")
    begin = time.monotonic()
    mini.geolib(root, "html", "--profile", "small")
    assert time.monotonic() - begin < 20  # Sphinx alone takes longer on a busy machine
