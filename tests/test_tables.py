"""Tables: what is printed, what stands on the page, and how numbers are written."""

import re

import pytest

from geolib import tables
from geolib.tables import html_table, human, show, text_table

ROWS = [
    {"path": "line <1>", "test": "97.5 +- 0.3", "time": 12, "same": True},
    {"path": "arc", "test": "98.25", "time": 2.5},
]


def test_a_table_is_printed_with_its_numbers_on_the_right(capsys):
    show(ROWS, "Two paths", highest=["test"], lowest=["time"])
    assert capsys.readouterr().out.splitlines() == [
        "Two paths",
        "path             test  time  same",
        "line <1>  97.5 +- 0.3    12  yes",
        "arc             98.25   2.5",
    ]


@pytest.mark.parametrize("text", [None, "", "-", "one", "x 2"])
def test_a_column_with_a_word_stands_on_the_left(text):
    lines = text_table([["a"], ["10"], [text or ""]]).splitlines()
    assert lines[0] == (" a" if not text else "a")


def test_on_the_page_the_best_are_bold_and_texts_are_escaped(monkeypatch):
    pages = []
    monkeypatch.setattr(tables, "publish", lambda text, html: pages.append(html))
    show([*ROWS, {"time": "2.5"}], "Two <paths>", highest=["test"], lowest=["time"])
    (page,) = pages
    assert re.findall("<b>(.*?)</b>", page) == ["98.25", "2.5", "2.5"]
    assert "line &lt;1&gt;" in page
    assert "97.5 ± 0.3" in page
    assert "<caption>Two &lt;paths&gt;</caption>" in page
    assert page.count("<tr>") == 4


def test_a_row_has_its_attributes_and_the_box_a_name():
    page = html_table(["a"], [('id="x"', ["<i>1</i>"])], kind="ledger", about="the <a>")
    assert '<tr id="x"><td><i>1</i></td></tr>' in page
    assert 'aria-label="the &lt;a&gt;"' in page
    assert "<caption>" not in page


@pytest.mark.parametrize(
    ("plain", "written"),
    [
        ("ab_1e-9 b3", "ab_1e-9 b3"),
        ("find_strata of pie", "find_strata of pie"),
        ("eps^(1/2), sigma^2", "ε<sup>1/2</sup>, σ<sup>2</sup>"),
        ("|g|_1 * k^-1 < sqrt(mu1)", "|g|<sub>1</sub> · k<sup>-1</sup> &lt; √(μ1)"),
        ("0.12345678 and 12345678", "0.12346 and 12345678"),
        ("3e4 < 1e5", "3·10⁴ &lt; 10⁵"),
        ("a -> b == c", "a → b = c"),
        ("version 1.2.3", "version 1.2.3"),
    ],
)
def test_words_are_left_alone_and_numbers_are_written_for_people(plain, written):
    assert human(plain) == written
