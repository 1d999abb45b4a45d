"""The book's extension: what it lists on an API page, and what it must not touch."""

import ast
import html
import importlib.util
import io
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "networks", "data", "stratifolds", "naturality", "geodesics",
         "regimes", "inverse_stability", "press", "sweep", "claims")  # fmt: skip


@pytest.fixture(scope="module")
def bookext():
    spec = importlib.util.spec_from_file_location(
        "bookext", ROOT / "book/_ext/bookext.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spared(bookext, text):
    lines = text.split("\n")
    bookext.spare_the_bars(None, "function", "f", None, {}, lines)
    return "\n".join(lines)


def test_prose_is_escaped(bookext):
    assert spared(bookext, "the norm |x| of a * b, x_") == (
        r"the norm \|x\| of a \* b, x\_"
    )
    assert spared(bookext, "an *emphasis* and **strong** stay") == (
        "an *emphasis* and **strong** stay"
    )
    assert spared(bookext, ".. note:: a |b|\n   and |c|") == (
        ".. note:: a \\|b\\|\n   and \\|c\\|"
    )
    lines = [":raises ValueError: x is |a|, or\n    `y` is not.", "", "Source: ours."]
    bookext.spare_the_bars(None, "function", "f", None, {}, lines)
    assert lines == [
        r":raises ValueError: x is \|a\|, or", "    `y` is not.", "", "Source: ours."
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        ".. math:: |x| * y_ = 1",
        ".. math:: |x|\n\n    |y| * z_",
        ".. math::\n    :label: a\n\n    |x|\n\n    y_*",
        "a role :math:`|x| * y_` in a line",
        "a role :math:`|x| *\n|y|_` over two lines",
        "code ``a | b`` and `a | b`",
        ">>> a | b\n{1 | 2}",
        "    >>> f(*a)\n    array|x_|",
        ".. code-block:: python\n\n    a | b",
        "as in::\n\n    a | b",
    ],
)
def test_formulas_and_code_are_left_alone(bookext, text):
    assert spared(bookext, text) == text


def test_what_follows_a_formula_is_prose_again(bookext):
    text = "a |b|\n\n.. math:: |x|\n\nand |c|\n\n>>> |d|\n\n|e|"
    assert spared(bookext, text) == (
        "a \\|b\\|\n\n.. math:: |x|\n\nand \\|c\\|\n\n>>> |d|\n\n\\|e\\|"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_page_lists_the_door_and_nothing_else(bookext, room):
    module = importlib.import_module(f"geolib.{room}")
    listed = [n for names in bookext.door(f"geolib.{room}").values() for n in names]
    assert len(listed) == len(set(listed))
    if hasattr(module, "__all__"):
        assert sorted(listed) == sorted(module.__all__)


def test_source_links_name_the_lines_of_the_definition(bookext):
    place = bookext.source_place("geolib.claims", "claim")
    file, lines = place.split("#L")
    first, last = (int(n.strip("L")) for n in lines.split("-"))
    text = (ROOT / file).read_text().splitlines()[first - 1 : last]
    assert text[0].startswith("def claim(")
    ast.parse("\n".join(text))
    for module, name in (
        ("geolib.claims", "none_such"), ("geolib.claims", "MIMETYPE"),
        ("geolib.data", "json.loads"), ("no_such_module", "x"),
    ):  # fmt: skip
        assert bookext.source_place(module, name) is None


@pytest.mark.parametrize(
    ("css", "left"),
    [
        ("a{x:1} .b{x:2} .c .b{x:3} .c,a:hover{x:4}", "a{x:1}.b{x:2}a:hover{x:4}"),
        ("@media print{.c{x:1}} @media print{.c,.b{x:1}}", "@media print{.b{x:1}}"),
        (".b:not(.c,.d){x:1} .b:is(.c){x:2}", ".b:not(.c,.d){x:1}.b:is(.c){x:2}"),
        ('.b{x:"}.c{"}.c{x:"{"} a{y:1}', '.b{x:"}.c{"}a{y:1}'),
        ("/* .b{ */.c{x:1} /*! licence */ a{y:1}", "/*! licence */a{y:1}"),
        (
            "@import url(q.css);@font-face{x:1}.c{x:1}",
            "@import url(q.css);@font-face{x:1}",
        ),
        (r".b\:c{x:1} .b-c{x:1} .b[title='.c']{x:1}", ".b[title='.c']{x:1}"),
    ],
)
def test_a_style_sheet_keeps_what_can_match(bookext, css, left):
    import page_weight

    assert page_weight.purged(css, {"b"}) == left


def test_a_page_loses_scripts_and_marks_that_change_nothing(bookext):
    import page_weight

    page = (
        '<link rel="preload" as="script" href="_static/scripts/bootstrap.js?d=1" />'
        '<script src="_static/scripts/bootstrap.js?d=1"></script><script src="a.js"></script>'
        '<span class="n"><span class="pre">f</span></span><span class="k">if</span>'
    )
    assert page_weight.lighter(page) == (
        '<script src="a.js"></script>f<span class="k">if</span>'
    )


def drawn(colors, mode="RGB"):
    """A PNG of random pixels of so many colours."""
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (colors, len(mode)))
    picture = palette[rng.integers(0, colors, (40, 60))].astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def pixels(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"), float)


@pytest.mark.parametrize("colors", [60, 250])
def test_a_figure_keeps_its_colours_and_loses_weight(bookext, tmp_path, colors):
    import page_weight

    png = drawn(colors)
    figure = tmp_path / "html" / "_images" / "a.png"
    figure.parent.mkdir(parents=True)
    for _ in range(2):  # the second time from what was kept
        figure.write_bytes(png)
        page_weight.lighten_figures(tmp_path / "html")
        light = figure.read_bytes()
        assert len(light) < 0.8 * len(png)
        assert np.abs(pixels(light) - pixels(png)).mean() < 1.5
    assert len(list((tmp_path / "figures").iterdir())) == 1


def test_a_figure_with_a_clear_ground_or_already_light_stays_as_it_was(bookext):
    import page_weight

    for png in (drawn(9, "RGBA"), page_weight.in_few_colors(drawn(9))):
        assert page_weight.in_few_colors(png) == png


def rows(bookext, tex):
    """The lines in which a displayed formula is set."""
    import formulas

    found = formulas.in_lines(tex)
    head, tail = r"\begin{gathered} ", r" \end{gathered}"
    return found.removeprefix(head).removesuffix(tail).split(" \\\\\n")


def test_a_formula_that_is_too_wide_has_a_line_for_each_statement(bookext):
    long = "x" * 30
    assert rows(bookext, r"a, \qquad b, \quad c") == [r"a, \qquad b, \quad c"]
    assert rows(bookext, rf"{long}, \qquad {long}") == [f"{long},", long]
    assert rows(bookext, rf"{long} \quad b \qquad {long}") == [rf"{long} \quad b", long]
    for whole in (
        rf"\bigl\{{{long} \quad {long}\bigr\}}", rf"\left({long} \qquad {long}\right)",
        rf"\text{{{long}\quad}} {long}", rf"{long} \qquad a \\ {long}", long * 3,
        rf"\begin{{cases}} {long} & \quad {long} \\ b \end{{cases}}",
    ):  # fmt: skip
        assert rows(bookext, whole) == [whole]


def read(text, **metadata):
    """A page of a chapter as docutils reads it, opened by the extension."""
    import page_head
    from docutils.core import publish_doctree

    tree = publish_doctree(text)
    with tempfile.NamedTemporaryFile("w", suffix=".ipynb") as file:
        file.write(json.dumps({"metadata": metadata}))
        file.flush()
        env = SimpleNamespace(
            docname="chapters/a/01-b", doc2path=lambda name: file.name
        )
        page_head.open_the_page(SimpleNamespace(env=env), tree)
    return tree


def test_a_page_opens_with_what_it_asks_and_takes(bookext):
    text = (
        "Title\n=====\n\n*Learn:* much. *Need:* a pen.\n*Do:* it.\n\n" + "word " * 790
    )
    cost = {"seconds": 23.44, "memory": 812}
    lines = [
        p.astext() for p in read(text, geolib={"cost": cost}).children[-2].children
    ]
    assert [" ".join(line.split()) for line in lines] == [
        "Learn much.", "Need a pen.", "Do it.",
        "Time about 4 minutes to read; the code ran in 23 s on one core, with 0.8 GB of memory.",
    ]  # fmt: skip
    assert "Time about 4 minutes to read." in read(text).astext()
    assert "minutes" not in read("A page without such a head.").astext()


def test_names_of_functions_in_prose_lead_to_their_entries(bookext):
    import page_head
    from docutils.core import publish_doctree

    places = page_head.names_of({
        "geolib.a": {"geolib.a.x": ["walk", "twice", "b"]}, "geolib.b": {"": ["twice"]},
    })  # fmt: skip
    assert places == {"walk": "geolib.a.walk"}
    tree = publish_doctree(
        "``walk`` ``a.walk(x, y)`` ``walk.x`` ``twice`` ``walks`` ``steps=3``"
    )
    page_head.link_the_names(tree, places)
    (paragraph,) = tree.children
    linked = [n.astext() for n in paragraph.children if n.tagname == "pending_xref"]
    assert linked == ["walk", "a.walk(x, y)", "walk.x"]
    assert paragraph.astext() == "walk a.walk(x, y) walk.x twice walks steps=3"


def docstrings():
    """All docstrings of the package, spaces removed."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in (ROOT / "geolib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield "".join((ast.get_docstring(node) or "").split())


@pytest.mark.site
def test_formulas_of_the_reference_are_those_of_the_docstrings():
    """A stray backslash renders without an error, as another formula."""
    import test_site_pages

    if test_site_pages.SITE is None:
        pytest.skip("NO SITE: run `geolib html` first")
    written, found, strays = "\n".join(docstrings()), 0, []
    for page in (test_site_pages.SITE / "book/api").glob("*.html"):
        for _, inner in re.findall(
            r'<(div|span) class="math[^"]*"[^>]*>(.*?)</\1>', page.read_text(), re.S
        ):
            formula = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
            # MathJax's brackets, Sphinx's wrapping and the line breaks of `formulas.py`
            # are not the author's.
            formula = re.sub(r"^\\[\[(]|\\[\])]$|\\(begin|end)\{\w+\}", " ", formula)
            formula = re.sub(r"\\\\$", " ", formula, flags=re.M)
            found += 1
            for stray in re.findall(r".{0,6}\\[*_|].{0,6}", formula):
                if "".join(stray.split()) not in written:
                    strays.append((page.name, formula))
    assert found > 50
    assert strays == []


def moving_figure(bookext, folder, **options):
    (folder / "chapters").mkdir(exist_ok=True)
    figures = [f'{bookext.MOVES} style="">{n}</div>' for n in "ab"]
    outputs = [{"data": {"text/html": [f]}} for f in (*figures, "<p>no figure</p>")]
    cells = [{"cell_type": "markdown"}, *({"outputs": [o]} for o in outputs)]
    (folder / "chapters" / "x.ipynb").write_text(json.dumps({"cells": cells}))
    noted = []
    env = SimpleNamespace(srcdir=folder, note_dependency=noted.append)
    name = options.pop("name", "chapters/x")
    asked = SimpleNamespace(env=env, arguments=[name], options=options)
    (node,) = bookext.MovingFigure.run(asked)
    assert noted == [str(folder / f"{name}.ipynb")]
    return node


def test_a_figure_is_shown_on_another_page_than_its_own(bookext, tmp_path):
    assert moving_figure(bookext, tmp_path).astext().endswith(">a</div>")
    assert moving_figure(bookext, tmp_path, number=2).astext().endswith(">b</div>")
    for missing in ({"number": 3}, {"name": "chapters/none"}):
        text = moving_figure(bookext, tmp_path, **missing).astext()
        assert text == "This figure's page could not be made."


def test_only_pages_with_a_figure_that_moves_load_the_script(bookext):
    loaded = []
    app = SimpleNamespace(
        add_js_file=lambda name, **how: loaded.append((name, how)),
        add_css_file=loaded.append,
    )
    bookext.where_it_moves(app, "p", "t", {"body": "<p>still</p>"}, None)
    bookext.where_it_moves(app, "p", "t", {}, None)
    assert loaded == []
    bookext.where_it_moves(app, "p", "t", {"body": bookext.MOVES + ">"}, None)
    assert loaded == [("figures.js", {"loading_method": "defer"}), "figures.css"]
