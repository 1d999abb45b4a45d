"""A book in which pages fail is rendered all the same, marked, and ends with code 1."""

import re

import pytest

pytestmark = [pytest.mark.press, pytest.mark.slow]


@pytest.fixture
def site(mini_book):
    """Where the mini book was rendered."""
    return mini_book[0]


@pytest.fixture
def story(mini_book):
    """What each command said and showed, see `mini.pressed`."""
    return mini_book[1]


def marks(text):
    return re.findall(r'press-mark">.*?</div>', text, re.S)


def test_the_command_renders_counts_and_ends_with_code_1(site, story):
    text = story["first"]["text"]
    assert story["first"]["code"] == 1, text
    assert story["first"]["rendered"]
    last = text.strip().splitlines()
    assert str(site / "index.html") in last[-2]
    assert "3 of 4 notebooks are not whole" in last[-1]
    assert "1 failed (demo.broken)" in last[-1]
    assert "1 missing (demo.later)" in last[-1]
    assert "Traceback" not in text


def test_each_broken_page_is_shown_up_to_there_under_a_banner(site, story):
    pages = story["first"]["pages"]
    assert marks(pages["chapters/demo/01-whole"]) == []
    claim = pages["chapters/demo/02-claim"]
    assert "ClaimFailed: demo.broken" in marks(claim)[0]
    assert "claim-fails" in claim
    assert "(not reached)" in claim
    assert "never said" not in claim
    raised = pages["chapters/demo/03-raises"]
    assert "ValueError: no &#96;such&#96; &lt;thing&gt;" in marks(raised)[0]
    assert "cell 4" in marks(raised)[0]
    assert "before" in raised
    assert str(site) not in raised
    magic = pages["chapters/demo/04-magic"]
    assert "cell 3 `%matplotlib inline`".replace("`", "&#96;") in marks(magic)[0]


def test_the_ledger_says_what_broke_and_what_was_not_reached(story):
    assert story["first"]["rows"] == {
        "demo.kept": "holds", "demo.broken": "FAILS", "demo.later": "not reached",
    }  # fmt: skip
    page = story["first"]["pages"]["book/claims"]
    for mark in ('aria-label="holds"', ">FAILS<", ">not reached<"):
        assert mark in page


def test_the_landing_page_counts_them(story):
    (mark,) = marks(story["first"]["pages"]["book/intro"])
    assert "3 of 4 notebooks are not whole" in mark
    assert "demo/02-claim" in mark


def test_strict_refuses_and_leaves_the_site_alone(story):
    strict = story["strict"]
    assert strict["code"] == 1
    assert "html --strict refuses" in strict["text"]
    assert "demo/03-raises" in strict["text"]
    assert not strict["rendered"]


def test_a_page_that_was_never_executed_says_so_and_a_stale_one_too(story):
    second = story["second"]
    assert second["code"] == 1
    assert "5 of 5 notebooks are not whole" in second["text"]
    new = second["pages"]["chapters/demo/05-new"]
    assert "was not executed" in marks(new)[0]
    assert "The page five" in new
    stale = marks(second["pages"]["chapters/demo/01-whole"])[0]
    assert "changed after it was executed" in stale


def test_nothing_changed_renders_nothing(story):
    assert story["second"]["rendered"]
    assert story["again"]["code"] == 1
    assert not story["again"]["rendered"]


def test_an_odd_table_of_contents_is_said_and_leaves_the_site_alone(story):
    odd = story["odd"]
    assert odd["code"] == 2
    assert "geolib: _toc.yml: doc validation" in odd["text"]
    assert "'docname' must be" in odd["text"]
    assert "Traceback" not in odd["text"]
    assert not odd["rendered"]
