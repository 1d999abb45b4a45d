"""The table of modules and functions on the site is what happens, cell by cell."""

import re
import warnings

import pytest
import torch
import trust_modules
from trust_expected import TABLE, cells, refusal
from trust_functions import FUNCTIONS, outcome
from trust_modules import BUILD, DATA, make
from trust_pages import PAGES, ROOT

# One cell of each function, and of each module, in the fast layer.
DIAGONAL = {(list(BUILD)[3 * k % 19], f) for k, f in enumerate(FUNCTIONS)}
DIAGONAL |= {("loader of x", "solve nystrom"), ("generator", "dense")}


def marked(cell):
    """Where a cell is tried: what `torch.compile` touches is dear."""
    if cell[0] == "compiled" and cell[1] not in ("jvp", "solve cg"):
        return [pytest.mark.data]
    quick = cell in DIAGONAL and cell[1] not in ("audit", "learning_coefficient")
    return [] if quick else [pytest.mark.slow]


CELLS = [pytest.param(*c, id=f"{c[1]}-{c[0]}", marks=marked(c)) for c in cells()]


@pytest.mark.parametrize(("row", "function"), CELLS)
def test_a_cell_is_what_the_table_says(row, function):
    declared = refusal(row, function)
    with warnings.catch_warnings():
        for text in (".*performance drop", "The .grad attribute", ".*jit.script"):
            warnings.filterwarnings("ignore", message=text)
        found, said = outcome(row, function)
    assert found == ("refused" if declared else "right"), said
    if declared:
        assert re.search(declared["says"], said), said


@pytest.mark.parametrize("shift", [7, 20, 33])
@pytest.mark.parametrize(
    ("row", "function"),
    [("bfloat16", f"solve {m}") for m in ("cg", "auto", "kfac", "woodbury")]
    + [("lenet", "find_strata"), ("post-norm transformer", "find_strata")],
)
def test_cells_that_were_wrong_on_other_data(row, function, shift, monkeypatch):
    monkeypatch.setattr(trust_modules, "OTHER", shift)
    trust_modules.difference_jacobian.cache_clear()
    assert outcome(row, function) == ("right", "")
    trust_modules.difference_jacobian.cache_clear()


# What compares with a quadrature or a rank is made for the table's own data.
MADE = [c for c in cells() if c[1] not in ("find_strata", "learning_coefficient")]


@pytest.mark.data
@pytest.mark.parametrize(("row", "function"), MADE)
def test_other_data(row, function, monkeypatch):
    """The cells on other data."""
    monkeypatch.setattr(trust_modules, "OTHER", 7)
    trust_modules.difference_jacobian.cache_clear()
    declared = refusal(row, function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, said = outcome(row, function)
    trust_modules.difference_jacobian.cache_clear()
    assert found == ("refused" if declared else "right"), said


def test_the_table_names_what_there_is():
    assert [*TABLE["modules"], *TABLE["data"]] == list(BUILD)
    assert list(TABLE["data"]) == list(DATA)
    assert list(TABLE["functions"]) == list(FUNCTIONS)
    known = set(cells())
    for entry in TABLE["refused"]:
        assert entry["because"].endswith(".")
        for row in entry["modules"]:
            for function in entry["functions"]:
                assert (row, function) in known


@pytest.mark.data
def test_a_module_compiled_by_the_default_backend():
    """The other cells stop after the tracing, which is where the trouble is."""
    from trust_functions import jvp

    case = make("relu mlp")
    compiled = torch.compile(case.module)
    jvp("relu mlp", type(case)(compiled, case.x, case.y, case.dim, case.whole))


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_what_was_declared_and_measured(page):
    text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    assert text == PAGES[page](), "run `python tests/trust/trust_pages.py`"
