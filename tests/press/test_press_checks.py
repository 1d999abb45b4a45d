"""How a page shows its claims: a quiet line for those that hold, the others in full."""

import re

import nbformat
import pytest
from page_cells import parts, staged
from page_checks import checks_box, checks_table, typeset

from geolib.claims import MIMETYPE, Claim
from geolib.press import Ledger
from geolib.press.verdict import settle


def entry(key, measured, bound, **more):
    return settle(
        {
            "key": key,
            "text": f"sentence of {key}",
            "measured": measured,
            "bound": bound,
            **more,
        }
    )


def page(*cells, prose=""):
    """An executed notebook of cells, each `(source, [claims])`."""
    nb = nbformat.v4.new_notebook()
    for source, claims in cells:
        outputs = [
            nbformat.v4.new_output(
                "display_data",
                {"text/plain": c["key"]},
                metadata={MIMETYPE: c},
            )
            for c in claims
        ]
        nb.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs))
    nb.cells += [nbformat.v4.new_markdown_cell(prose)] if prose else []
    return staged(nb, "page.md")


def shown(cell):
    return [h for o in cell.outputs if (h := o.get("data", {}).get("text/html"))]


def test_the_text_of_a_page_stands_on_eight_claims_and_the_end_holds_the_others():
    """Those that the prose quotes come first, then a paper's, then as they come."""
    claims = [entry(f"demo.{k}", 1.0, "<= 2", shown="1") for k in "abcdefghijkl"]
    claims[10] |= {"paper": "a bound of 3"}
    nb = page(("claim('demo.a')", claims), prose="It is {glue:text}`demo.l`.")
    (html,) = shown(nb.cells[0])
    said = re.findall(r'<p class="check" id="claim-demo-(.)"', html)
    assert said == [*"abcdef", "k", "l"]
    end = nb.cells[-1].source
    assert re.findall(r'id="claim-demo-(.)"', end) == [*"ghij"]
    assert re.findall(r'href="#claim-demo-(.)"', end) == said
    assert end.count("<details") == 1


def test_a_line_says_its_sentence_and_what_was_found():
    number = entry("demo.a", 1, "<= 2", shown="1", paper="at most 4")
    yes = entry("demo.b", True, "is True", shown="True")
    html = checks_box([number, yes], {"demo.a", "demo.b"})
    assert "Sentence of demo.a" in html
    assert "(1; bound ≤ 2)" in html
    assert "Paper: at most 4" in html
    told = re.sub("<[^>]*>", "", html.replace("</p>", "\n"))
    assert told.splitlines() == [
        "Sentence of demo.a (1; bound ≤ 2). Paper: at most 4.",
        "Sentence of demo.b.",
    ]
    assert "bound" not in html[html.index("Sentence of demo.b") :]


def test_a_baseline_that_wins_is_open_and_has_a_look_of_its_own():
    lost = entry("demo.lost", -2, "<= 0", shown="-2", rival="distillation")
    assert lost["verdict"] == "a baseline wins"
    assert entry("demo.lost", 2, "<= 0", rival="distillation")["verdict"] == "FAILS"
    html = checks_box([lost], set())
    assert 'class="claim claim-loses" id="claim-demo-lost"' in html
    assert "Better here: distillation." in html
    assert "a baseline wins" in html
    assert Ledger("small", [lost]).summary.endswith(
        "1 won by a baseline (shown as such)"
    )


def test_what_does_not_hold_is_open_and_begins_with_the_paper():
    differs = entry(
        "demo.em",
        3,
        ">= 2",
        paper="EM is never trapped",
        reproduces=False,
        reason="it is",
    )
    broken = entry("demo.broken", 3, "<= 2")
    html = checks_box([entry("demo.a", 1, "<= 2"), differs, broken], set())
    assert "<details" not in html
    assert "demo-a" not in html
    assert html.index("Paper: EM is never trapped") < html.index(
        "Found: sentence of demo.em"
    )
    assert html.index("Found: sentence of demo.em") < html.index("not reproduced")
    assert "claim-fails" in html
    assert "claim-differs" in html


def test_the_page_ends_with_all_its_checks_each_linked_to_its_place():
    nb = page(
        ("claim('demo.a')", [entry("demo.a", 1, "<= 2")]),
        ("claim('demo.b')", [entry("demo.b", 9, "<= 2")]),
    )
    text = nb.cells[-1].source
    named = set(
        re.findall(
            r'id="(claim-[^"]+)"', "".join(h for c in nb.cells[:2] for h in shown(c))
        )
    )
    assert "<details" in text
    assert (
        set(re.findall(r'href="#(claim-[^"]+)"', text))
        == named
        == {"claim-demo-a", "claim-demo-b"}
    )
    assert "FAILS" in text
    assert "All checks" not in page(("x = 1", [])).cells[-1].source


CELL = """\
walk = run(1)
# of the walk
ratio = walk.a / walk.b
print(f"{ratio:.2f}")
claim("demo.a", "x",
      measured=ratio)
@cached
def more(): return run(walk)
"""


def test_claims_and_prints_are_folded_with_what_only_they_use():
    """Nothing is lost or moved: the runs of a cell, one after the other, are the cell."""
    runs = parts(CELL, used=set(), library={"run"})
    assert [shown for _, shown in runs] == [True, False, True]
    assert "".join(text + "\n" for text, _ in runs) == CELL
    assert runs[1][0].startswith("# of the walk\nratio")
    assert runs[2][0].startswith("@cached")
    assert parts(CELL, used={"ratio"}, library={"run"})[0][0].endswith("walk.b")
    assert (
        parts(CELL.replace("walk.a", "run(2)"), set(), {"run"})[0][0].count("run") == 2
    )


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("claim('demo.a', 'x', measured=1)", [False]),
        ("for a in b:\n    print(a)\n    claim(a)", [False]),
        ("for a in b:\n    c = a\n    claim(c)", [False]),
        ("for a in b:\n    c = f(a)\n    claim(c)", [False]),
        ("for a in b:\n    print(a)\n    more.append(a)", [False]),
        ("for a in b:\n    print(a)\n    more.append(f(a))", [True]),
        ("print('head')\nx = f(1)\nprint(x)\nclaim(x)", [True, False]),
        ("claim(x)\nx = 1", [False]),
        ("claim(x)\nx = f(1)", [False, True]),
        ("from geolib.core import Realization\nimport torch\nuse_style()", [False]),
        ("x = 1", [False]),
        ("x = [\n1,\n2,\n3,\n]", [True]),
        ("x = f(1); claim(x)\ny = f(2)", [True]),
        ("x = g(1); claim(x)\ny = f(2)", [False, True]),
        ("claim(x); y = f(1)", [True]),
        ("d[0] = f(1)\nclaim(d)", [True, False]),
        ("a = b = 2\nclaim(a)", [False]),
        ("x = (", [True]),
        ("# a remark", [True]),
        ("rows = [a]\nshow(rows, 'caption')", [False]),
        ("x = f(1)\nshow([x], 'caption')", [True, False]),
        ("x = f(\n\n" + "1,\n" * 13 + ")", [True]),
        ("x = f(\n" + "1,\n" * 14 + ")", [False]),
        ("x = f(1)\ny = f'{x:.2f}'", [False]),
        ("x = f(1)\ny = f'{x}'", [True]),
        ("x = f.measured('a')\ny = 2", [False]),
        ("x = measured('a')\ny = [\n1,\n2,\n3,\n]", [False]),
        ("x = f.measured('a')\ny = f(x)", [True]),
    ],
)
def test_what_is_shown_of_a_cell(source, shown):
    assert [s for _, s in parts(source, set(), {"f"})] == shown


def test_a_cell_that_states_claims_is_cut_and_its_code_unfolds_with_their_line():
    one = [entry("demo.a", 1, "<= 2")]
    head = ("from geolib.core import run", [])
    _, idea, checks, rest, *_ = page(head, (CELL, one), ("x = walk", [])).cells
    assert idea.source == "walk = run(1)"
    assert idea.outputs == checks.outputs == []
    assert rest.source.startswith("@cached")
    assert 'id="claim-demo-a"' in rest.outputs[0].data["text/html"]
    only, _ = page(("claim('demo.a', 'x < y', measured=1)", one)).cells
    assert "remove-input" in only.metadata["tags"]
    box = only.outputs[0].data["text/html"]
    assert box.index("Sentence of") < box.index("<details") < box.index("x &lt; y")


def test_folded_pieces_in_a_row_are_one_unless_the_first_has_outputs():
    sources = ["import numpy", "import torch", "x = 1", "y = 2"]
    drawn = nbformat.v4.new_output("display_data", {"text/plain": "a figure"})
    for outputs, whole in (([], [0]), ([drawn], [0, 2])):
        cells = [nbformat.v4.new_code_cell(s) for s in sources]
        cells[1].outputs = outputs
        made = staged(nbformat.v4.new_notebook(cells=cells), "page.md").cells
        ends = [*whole[1:], len(sources)]
        wanted = [sources[i:j] for i, j in zip(whole, ends, strict=True)]
        assert [c.source.split("\n\n") for c in made] == wanted


def test_the_code_of_claims_goes_into_the_folded_code_that_follows():
    one, claims = [entry("demo.a", 1, "<= 2")], "claim('demo.a', 'x < y', measured=1)"
    checks, drawn = page((claims, one), ("import numpy", [])).cells[:2]
    assert drawn.source == f"{claims}\n\nimport numpy"
    assert checks.source  # or the site shows no output of it
    assert "Sentence of" in shown(checks)[0]
    assert "<details" not in shown(checks)[0]
    checks, *_ = page((claims, one), prose="And so on.").cells
    assert "<details" in shown(checks)[0]


def test_bounds_have_the_digits_that_a_person_reads():
    written = {
        "<= 1e-9": "≤ 10⁻⁹",
        "in [0.99, 1.000000001]": "in [0.99, 1 + 10⁻⁹]",
        "== 2.82842712475 +- 1e-9": "= 2.8284 ± 10⁻⁹",
        ">= 0.999999999999": "≥ 1 − 10⁻¹²",
        "== -1.128375 +- 2e-6": "= -1.1284 ± 2·10⁻⁶",
        "is True": "yes",
        ">= 1e3": "≥ 1000",
        "== 101376": "= 101376",
        "<= 0.025": "≤ 0.025",
    }
    assert {b: typeset(b) for b in written} == written


def test_a_boolean_reads_as_a_word():
    claim = Claim("demo.a", "it does", True, "True", "is True", True)
    assert "<td>yes</td><td>yes</td>" in checks_table([settle(claim.to_dict())], set())


def test_a_row_names_the_data_that_had_been_read(monkeypatch):
    from page_marks import ledger_page

    from geolib import claims, files
    from geolib.data import load

    published = []
    monkeypatch.setattr(claims, "publish", lambda line, data: published.append(data))
    monkeypatch.setattr(files, "DATA_READ", {})
    monkeypatch.setattr(claims, "DATA_READ", {})
    claims.claim("demo.a", "before", measured=1, bound="== 1")
    monkeypatch.undo()
    monkeypatch.setattr(claims, "publish", lambda line, data: published.append(data))
    load("digits", train=5)
    claims.claim("demo.b", "after", measured=1, bound="== 1")
    before, after = (p[MIMETYPE]["data"] for p in published)
    assert before == []
    assert "digits" in after
    row = settle(published[1][MIMETYPE]) | {"notebook": "demo/01", "device": "cpu"}
    assert 'data-data="' in ledger_page(Ledger("small", [row]))
    assert "digits" in ledger_page(Ledger("small", [row]))


def test_pages_of_the_book_show_numbers_and_pictures_of_the_run(tmp_path):
    import base64

    from page_marks import filled

    from geolib.press.build import Page

    row = entry("demo.a", 0.25, "<= 1", shown="0.25") | {
        "notebook": "demo/01",
        "device": "",
    }
    drawn = {
        "cells": [
            {
                "metadata": {"mystnb": {"figure": {"name": "fig-a"}}},
                "outputs": [
                    {"data": {"image/png": base64.b64encode(b"bytes").decode()}}
                ],
            }
        ]
    }
    page = Page(None, "whole", None, drawn)
    text = "{measured}`demo.a` {number}`demo.a` {measured}`demo.b` "
    text += "![a]({picture}`fig-a`) ![b]({picture}`fig-b`)"
    got = filled(text, Ledger("small", [row]), [page], tmp_path / "_figures")
    assert (
        '<a class="verdict-holds" href="../chapters/demo/01.html#claim-demo-a">0.25</a>'
        in got
    )
    assert " <b>0.25</b> (not reached)" in got
    assert "![a](_figures/fig-a.png)" in got
    assert (tmp_path / "_figures" / "fig-a.png").read_bytes() == b"bytes"
    assert "![b](_figures/fig-b.svg)" in got
    assert b"not drawn" in (tmp_path / "_figures" / "fig-b.svg").read_bytes()
