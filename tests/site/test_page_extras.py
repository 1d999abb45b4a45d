"""What the book adds to a page: both versions of a figure, links to words, its stamp."""

import base64
import importlib
import io
import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from geolib.plotting import COLORS, PAPER, panels, use_style

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def extension():
    """A function that imports a module of the book's extension."""
    folder = str(ROOT / "book" / "_ext")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture
def figure():
    with plt.rc_context():
        use_style()
        made, (left, right) = panels(1, 2, width=8)
        left.plot([0, 1], [0, 1], label="eps = 0.1")
        left.plot([0, 1], [1, 0], color=COLORS["ink"], label="mu")
        left.plot([0.2, 0.8], [0.3, 0.3], "o", color=COLORS["blue"])
        made.legend(*left.get_legend_handles_labels(), loc="outside upper center")
        left.fill_between([0, 1], 0.2, 0.4, color=COLORS["green"], alpha=0.3)
        left.legend(fontsize=6)
        right.pcolormesh(np.eye(3))
        right.plot([0, 3], [0, 3], color="black")
        right.text(1, 1, "E", fontsize=5)
        right.set_title("sigma^2")
        solid = made.add_axes([0.8, 0.1, 0.2, 0.2], projection="3d")
        solid.plot_surface(
            *np.meshgrid([0, 1], [0, 1]), np.eye(2), color=COLORS["blue"]
        )
        solid.scatter([0], [0], [0], color=COLORS["ink"])
        left.annotate("", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
        right.annotate("", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
        left.scatter([], [])  # as an empty legend entry
        made.canvas.draw()
        yield made
    plt.close(made)


@pytest.mark.parametrize(
    ("text", "typeset"),
    [
        ("shift mu0", r"shift $\mu_{0}$"),
        ("log10 KL", r"$\log_{10}$ KL"),
        ("n^(3/4)", "$n^{3/4}$"),
        ("f(0.5)", "$f$(0.5)"),
        ("time t", "time $t$"),
        ("a row of K-FAC, E", "a row of K-FAC, E"),
        ("neuron's", "neuron's"),
        (r"$\mu$ and mu", r"$\mu$ and mu"),
        ("a", "$a$"),
        ("VGG11, adam-eps-1", r"VGG11, adam-$\varepsilon$-1"),
    ],
)
def test_labels_are_set_as_mathematics(extension, text, typeset):
    assert extension("figures").mathematical(text) == typeset


def test_no_letter_is_under_nine_points_as_it_is_shown(extension, figure):
    figures = extension("figures")
    figures.set_the_texts(figure)
    shown = figures.COLUMN / (
        figure.get_figwidth() * figure.dpi
    )  # it is wider than that
    texts = [t for t in figure.findobj(plt.Text) if t.get_text()]
    points = [t.get_fontsize() * figure.dpi / 96 * shown for t in texts]
    assert min(points) == pytest.approx(9)
    assert r"$\sigma^{2}$" in {t.get_text() for t in texts}


def test_a_dark_figure_has_dark_ground_light_lines_and_the_heat_map_as_it_was(
    extension, figure
):
    left, right, _ = figure.axes
    shades = right.collections[0].get_facecolor().copy()
    before = drawn(figure)
    with extension("figures").at_night(figure):
        dark(left, right, shades, figure)
        assert drawn(figure).mean() < 0.5 * before.mean()
    assert np.array_equal(drawn(figure), before)


def drawn(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)


def light(color):
    return sum(plt.matplotlib.colors.to_rgb(color)) / 3


def dark(left, right, shades, figure):
    for ground in (figure.get_facecolor(), left.get_facecolor(), right.get_facecolor()):
        assert light(ground) < 0.15
    assert light(left.lines[1].get_color()) > 0.85
    assert to_hex(left.lines[0].get_color()) != COLORS["blue"].lower()
    assert light(left.texts[0].arrow_patch.get_edgecolor()) > 0.85
    for axis in (axis for part in figure.axes[2:] for axis in part._axis_map.values()):
        assert light(axis.pane.get_facecolor()) < 0.3 < light(axis.line.get_color())
        assert light(axis._axinfo["grid"]["color"]) < 0.3
    band = left.collections[0].get_facecolor()[0]
    assert band[3] == pytest.approx(0.3)
    assert to_hex(band) != COLORS["green"].lower()
    words = [t for g in (left.get_legend(), *figure.legends) for t in g.get_texts()]
    for label in (*left.get_xticklabels(), left.title, *words):
        assert light(label.get_color()) > 0.85
    # What lies on the heat map is seen against the same colours as before.
    assert np.array_equal(right.collections[0].get_facecolor(), shades)
    assert light(right.lines[0].get_color()) == 0
    assert light(right.texts[0].get_color()) == 0
    assert light(right.texts[1].arrow_patch.get_edgecolor()) == 0
    assert PAPER not in {to_hex(a.get_facecolor()) for a in figure.axes}


def test_a_kernel_shows_the_light_figure_and_the_dark_one_beside_it(extension, figure):
    from IPython.core.formatters import DisplayFormatter

    figures = extension("figures")
    shown = DisplayFormatter()
    figures.install(shown)
    data, size = shown.format(figure)
    night = base64.b64decode(data[figures.NIGHT])
    assert data["image/png"][:4] == night[:4] == b"\x89PNG"
    means = [
        plt.imread(io.BytesIO(p))[..., :3].mean() for p in (data["image/png"], night)
    ]
    assert means[0] > 0.7 > means[1]
    assert size["image/png"]["width"] > 700  # half of its pixels: sharp on fine screens
    narrow = data[figures.NARROW]
    assert narrow["stacked"]
    seen = [
        plt.imread(io.BytesIO(base64.b64decode(narrow[k]))) for k in ("day", "night")
    ]
    assert seen[0][..., :3].mean() > 0.7 > seen[1][..., :3].mean()
    high, wide, _ = seen[0].shape
    assert wide < 0.6 * 2 * size["image/png"]["width"] < 1.2 * high


def test_on_a_phone_panels_stand_under_one_another_and_keep_what_they_say(extension):
    figures = extension("figures")
    with plt.rc_context():
        use_style()
        made, (left, right) = panels(1, 2, width=7)
        left.barh([0, 1], [1, 2])
        left.set_yticks([0, 1], ["natural gradient with a metric", "Adam"])
        right.barh([0, 1], [2, 1])
        right.set_yticks([0, 1], ["", ""])
        right.set_xticks([0, 1], ["a long name of a tick", "another name as long"])
        right.set_title("a title that is far too long for the width of a phone's page")
        names = [f"the {n} method of them all" for n in ("first", "second", "third")]
        made.legend(left.patches + right.patches[:1], names, ncols=3,
                    loc="outside upper center")  # fmt: skip
        right.errorbar([1], [1], [0.2], fmt="s", label="sigma^2, measured")
        right.legend()
        figures.set_the_texts(made)
        figures._set_above(made, right.get_legend())
        marks = [h.get_marker() for h in made.legends[-1].findobj(plt.Line2D)]
        assert "s" in marks
        letters = {t.get_fontsize() for t in made.findobj(plt.Text) if t.get_text()}
        assert figures.make_narrow(made)
        made.canvas.draw()
    upper, lower = left.get_window_extent(), right.get_window_extent()
    assert upper.y0 > lower.y1
    assert upper.x0 == pytest.approx(lower.x0, abs=2)
    assert [t.get_text() for t in right.get_yticklabels()] == [
        "natural gradient\nwith a metric",
        "Adam",
    ]
    seen = made.get_tightbbox()
    assert seen.width <= figures.PHONE + 0.1
    assert "\n" in right.get_title(loc="left") + right.get_title()
    aslant = [t.get_rotation() for t in right.get_xticklabels()]
    assert aslant == [35, 35]
    later = {t.get_fontsize() for t in made.findobj(plt.Text) if t.get_text()}
    assert min(later) >= min(letters)
    plt.close(made)


def test_the_site_shows_each_version_on_its_own_kind_of_page(extension, tmp_path):
    finish = extension("page_finish")
    site, source = tmp_path / "html", tmp_path / "source"
    (site / "_images").mkdir(parents=True)
    (source / "chapters/a").mkdir(parents=True)
    (source / "book/_figures").mkdir(parents=True)
    day, night = b"light", b"\x89PNG" + bytes(12) + bytes([0, 0, 1, 0, 0, 0, 0, 90])
    name = sha256(day).hexdigest()
    (site / "_images" / f"{name}.png").write_bytes(b"light, in fewer colours")
    (site / "_images" / "fig-a.png").write_bytes(day)
    (source / "book/_figures/fig-a.png").write_bytes(day)
    (site / "_images" / "other.png").write_bytes(b"no twin")
    data = {
        "image/png": base64.b64encode(day).decode(),
        finish.NIGHT: base64.b64encode(night).decode(),
        finish.NARROW: {"stacked": True}
        | dict.fromkeys(("day", "night"), base64.b64encode(night).decode()),
    }
    cells = [{"cell_type": "markdown"}, {"outputs": [{"data": data}, {"text": "x"}]}]
    (source / "chapters/a/01.ipynb").write_text(json.dumps({"cells": cells}))
    twins = finish.lay_out_the_twins(source, site)
    dark = {s: finish.Picture(f"{s}-night", 128, 45) for s in (name, "fig-a")}
    phone = {s: finish.Picture(f"{s}-narrow", 128, 45) for s in (name, "fig-a")}
    assert twins == {s: finish.Twin(dark[s], phone[s], True) for s in (name, "fig-a")}
    assert (site / "_images" / f"{name}-narrow-night.png").read_bytes() == night
    assert (site / "_images" / "fig-a-night.png").read_bytes() == night
    page = '<img alt="b" class="c" src="../_images/fig-a.png" />'
    page += '<img alt="o" src="_images/other.png" />'
    page += "<figcaption>Left: one, (right) two; left of a line.</figcaption>"
    page += '<img class="sd-card-img" src="_images/fig-a.png" />'
    done = finish.finished(page, "../", "", twins)
    assert (
        '<img loading="lazy" width="128" height="45" alt="b" class="by-day c" '
        'src="../_images/fig-a.png" />' in done
    )
    assert 'class="by-night c" src="../_images/fig-a-night.png"' in done
    assert '<img alt="o" src="_images/other.png" />' in done
    assert (
        '<source media="(max-width: 600px)" srcset="../_images/fig-a-narrow.png"'
        in done
    )
    assert 'srcset="../_images/fig-a-narrow-night.png" width="128"' in done
    assert done.count("<source") == 2  # a card has none
    word = '<span class="if-wide">{}</span><span class="if-narrow">{}</span>'
    said = word.format("Left", "Above") + ": one, (" + word.format("right", "below")
    assert said + ") two; left of a line." in done
    moving = '<div class="moving"></div><figcaption>Left: a.</figcaption></figure>'
    assert word.format("Left", "Above") in finish.finished(moving, "", "", {})
    one = '<div class="moving"></div></figure><figcaption>Left: a.</figcaption>'
    assert finish.finished(one, "", "", {}) == one
    assert finish.finished(done, "../", "", twins) == done  # a page is finished once


def test_a_formula_stays_on_a_line_with_the_sign_behind_it(extension):
    finish = extension("page_finish")
    math = '<span class="math notranslate nohighlight">\\(x\\)</span>'
    done = finish.finished(f"<p>if {math}, or ({math}) and {math} then</p>", "", "", {})
    assert done == (
        f'<p>if <span class="whole">{math},</span> or <span class="whole">({math})</span>'
        f" and {math} then</p>"
    )
    assert finish.finished(done, "", "", {}) == done


def test_words_that_a_page_quotes_are_no_louder_than_its_own(extension):
    finish = extension("page_finish")
    quoted = '<span class="pasted-text">{}</span>'
    for text, quiet in (("2026-11-25 on x86_64, torch", True), ("not converged", True),
                        ("0.97", False), ("-1.2", False), ("10⁻⁶", False)):  # fmt: skip
        done = finish.finished(quoted.format(text), "", "", {})
        assert ("told" in done) is quiet, text


def test_the_stamp_names_the_commit_and_its_date(extension, tmp_path, monkeypatch):
    finish = extension("page_finish")
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    assert finish.stamp(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    mark = finish.stamp(tmp_path)
    assert re.fullmatch(r"commit [0-9a-f]{7,} of \d{4}-\d\d-\d\d · ", mark)
    page = finish.finished('<span class="stamp"></span>', "../../", mark, {})
    assert mark in page
    assert 'href="../../book/reproduce.html#how-to-cite"' in page


def test_the_first_use_of_a_word_leads_to_the_glossary(extension):
    from docutils.core import publish_doctree

    head = extension("page_head")
    terms = head.terms_of("```\nstratum\n  A piece.\n\njet\n  A value.\n```")
    tree = publish_doctree(
        "A jet\n=====\n\n``jet`` and *jets* of strata, a jet, a stratum. Ajet\n\nA jet."
    )
    head.link_the_words(tree, terms)
    linked = [n.astext() for n in tree.findall(head.addnodes.pending_xref)]
    assert linked == ["jets", "strata"]
    assert tree.children[0].astext() == "A jet"
    assert "jet and jets of strata, a jet, a stratum. Ajet" in tree.astext()


def test_a_chapter_opens_with_what_was_found(extension, tmp_path):
    head = extension("page_head")
    (tmp_path / "book").mkdir()
    found = '# Found\n\n## One two\n\nSays. <a href="../chapters/x.html">1</a>\n\n'
    found += ":::{figure} _figures/f.png\n:::\n\n## Three\n\nElse.\n"
    (tmp_path / "book/found.md").write_text(found)
    noted = []
    app = SimpleNamespace(
        srcdir=tmp_path, env=SimpleNamespace(note_dependency=noted.append)
    )
    cells = [
        {"cell_type": "markdown", "source": "# A\n\n*Learn:* b\n\n## The question\n\nc"}
    ]
    source = [json.dumps({"cells": cells})]
    for name in ("chapters/one_two/02-x", "book/one", "chapters/none/01-x"):
        before = list(source)
        head.open_the_chapter(app, name, source)
        assert source == before
    head.open_the_chapter(app, "chapters/one_two/01-x", source)
    text = json.loads(source[0])["cells"][0]["source"]
    parts = ["*Learn:*", "## What we found", "Says.", 'href="../../chapters/x.html"',
             "{figure} ../../book/_figures/f.png", "## The question"]  # fmt: skip
    assert [text.index(p) for p in parts] == sorted(text.index(p) for p in parts)
    assert "Else." not in text
    assert str(tmp_path / "book/found.md") in noted


def test_every_page_of_a_chapter_says_where_the_thread_goes(extension):
    head = extension("page_head")
    pages = {p.relative_to(ROOT / "chapters").with_suffix("").as_posix()
             for p in ROOT.glob("chapters/*/[0-9]*.md")}  # fmt: skip
    assert set(head.threads()) | {"start/01-five-questions"} == pages
    for text in head.threads().values():
        for place in re.findall(r"{doc}`[^<]*<([^>]+)>`", text):
            assert (ROOT / f"{place[1:]}.md").exists(), place
    app = SimpleNamespace(env=SimpleNamespace(note_dependency=lambda name: None))
    for ends in ([], [{"id": "all-checks"}]):
        source = [json.dumps({"cells": [{"id": "a"}, *ends]})]
        head.end_the_page(app, "chapters/regimes/01-model", source)
        made = [c["id"] for c in json.loads(source[0])["cells"]]
        assert made == ["a", "thread", *(c["id"] for c in ends)]


# Pages that draw less than four figures so far: the numbers may rise, not fall.
FEW_FIGURES = {
    "geodesics/03-sparsification": 3, "geodesics/05-at-scale": 3,
    "naturality/03-making-natural": 3,
    "naturality/04-projections": 3, "naturality/05-efficiency": 2, "regimes/01-model": 2,
    "regimes/02-prism": 3, "stratifolds/03-plateaus": 3, "stratifolds/04-networks": 2,
    "stratifolds/05-bayes": 3, "stratifolds/06-identifiability": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("chapters/*/[0-9]*.md")), ids=lambda p: p.stem
)
def test_every_page_of_a_chapter_says_what_it_asks_and_draws_it(page):
    text = page.read_text()
    head = text.split("\n## ", 1)[0]
    assert re.findall(r"^\*(Learn|Need|Do):\*", head, re.M) == ["Learn", "Need", "Do"]
    drawn = len(re.findall(r"^    name: fig-", text, re.M))
    assert drawn >= FEW_FIGURES.get(f"{page.parent.name}/{page.stem}", 4)


def entries():
    """The bibliography: `(key, fields)`."""
    text = (ROOT / "book" / "references.bib").read_text()
    for key, body in re.findall(r"^@\w+\{([^,]+),\n(.*?)^\}", text, re.M | re.S):
        yield key, dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, re.M))


# No address could be looked up for these: they are named in full instead.
NO_ADDRESS = {"yamazaki-2005-boltzmann"}


def test_every_paper_has_its_address_and_a_label_of_its_own():
    found = dict(entries())
    assert len(found) > 60
    patterns = {
        "eprint": r"\d{4}\.\d{4,5}",
        "doi": r"10\.\d{4,}/\S+",
        "url": r"https://\S+",
    }
    for key, fields in found.items():
        given = [name for name in patterns if name in fields]
        assert bool(given) != (key in NO_ADDRESS), key
        for name in given:
            assert re.fullmatch(patterns[name], fields[name]), key
    # As they are cited: all names, or the first with others, and the year.
    labels = []
    for fields in found.values():
        names = fields["author"].split(" and ")
        names = names if len(names) < 3 else names[:1]
        labels.append((*(n.split(",")[0] for n in names), fields["year"]))
    assert len(labels) == len(set(labels))


def test_an_annotation_is_shown_as_what_it_says(extension):
    finish = extension("page_finish")
    typed = (
        "(<em>Annotated</em><em>[</em><em>Sequence</em><em>[</em><em>int</em><em>]</em>"
    )
    typed += "<em>, </em><em>'n </em><em>...</em><em>'</em><em>]</em><em> | </em><em>None</em>)"
    shown = "(<em>Sequence</em><em>[</em><em>int</em><em>]</em><em>, </em><em>n </em>"
    shown += "<em>...</em><em></em><em> | </em><em>None</em>)"
    assert finish.finished(typed, "", "", {}) == shown
    plain = "<em>complex</em><em> | </em><em>bytes</em><em> | </em><em>str</em>"
    array = f"<em>_Buffer</em><em> | </em>{plain}<em> | </em><em>_Nested</em>"
    array = f"({array}<em>[</em>{plain}<em>]</em><em> | </em><em>None</em>)"
    assert finish.finished(array, "", "", {}) == (
        "(<em>ArrayLike</em><em> | </em><em>None</em>)"
    )
