"""Figures that move, in a real browser: they show what their notebook computed."""

import base64
import io
import json
import math
import os
import re
from pathlib import Path

import browser
import numpy as np
import pytest
import test_site_pages as site
from PIL import Image

from geolib.plotting import moving, panels, shades

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
THEME = {"text-base": "#222", "link": "#0a56b8", "border": "#767676"}
THEME = "".join(f"--pst-color-{name}:{color};" for name, color in THEME.items())
pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(
        browser.executable() is None and not os.environ.get("CI"),
        reason="NO BROWSER: no Chromium found, so figures were NOT tested in one",
    ),
]


def sample():
    """One figure with all kinds of panels and layers; numbers no two of which agree."""
    by, grid = ["a", "b"], [(a, b) for a in range(4) for b in range(3)]
    turned = [
        {"name": n, "label": n, "values": list(range(-60, 61, 10)), "start": 6}
        for n in ("turn", "tilt")
    ]
    square = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    plane = {
        "title": "plane", "drag": by, "x": {"range": [0, 3], "label": "a"},
        "y": {"range": [0, 0.3], "label": "b"},
        "layers": [
            {"type": "heat", "box": [0, 3, 0, 0.3], "columns": 2, "by": ["a"],
             "data": [shades(np.array([0, 1, a / 3, math.nan]), 0, 1) for a in range(4)]},
            {"type": "line", "by": by, "color": "blue", "label": "ray",
             "data": [[[0, 0], [a + b / 10, b / 10]] for a, b in grid]},
            {"type": "ellipse", "color": "green", "by": ["b"],
             "data": [[[1, 0.1], [0.1 * b, 0], [0, 0.02]] for b in (1, 2, 3)]}],
    }  # fmt: skip
    curve = {
        "title": "curve", "x": {"range": [1, 1e4], "label": "h", "log": True},
        "y": {"range": [1e-6, 1], "label": "e", "log": True},
        "layers": [{"type": "points", "by": by, "color": ["blue", "orange"] * 6,
                    "data": [[[10**a, 0.1 ** (b + 1)], [5, 0]] for a, b in grid]}],
    }  # fmt: skip
    solid = {
        "title": "solid", "space": {"centre": [0.5, 0.5, 0], "radius": 1},
        "layers": [{"type": "faces", "lit": {"by": ["a"], "data": [[], ["s"]] * 2},
                    "data": [{"name": "s", "color": "pink", "points": square}]},
                   {"type": "text", "words": ["x"], "data": [[0, 0, 0.2]]}],
    }  # fmt: skip
    table = {
        "title": "cells", "table": by, "hint": "Filter",
        "layers": [{"type": "cells", "colors": {"E": "#56b4e9", "U": "#e8915c"},
                    "order": "EU", "data": ["UE"[(a + b) % 2] for a, b in grid]}],
    }  # fmt: skip
    words = {"a": ["one", "two", "three", "four"], "b": ["p", "q", "r"]}
    controls = [
        {"name": "a", "label": "the first", "values": [0, 1, 2, 3], "start": 1,
         "play": True, "shown": words["a"]},
        {"name": "b", "label": "the second", "values": [0, 0.1, 0.2], "start": 0,
         "shown": words["b"]}]  # fmt: skip
    readouts = [
        {"label": "sum:", "by": by, "data": [a + b / 7 for a, b in grid]},
        {"label": "small:", "by": ["b"], "data": [1e-7, math.inf, -2.5]},
    ]
    data = {"controls": controls + turned, "readouts": readouts}
    figures = []
    for group in ([plane, curve], [solid, table]):
        still, ax = panels()
        ax.plot([0, 1])
        figures.append(moving(data | {"panels": group}, still, "a still picture of it"))
    return figures


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        running = browser.start(p)
        yield running
        running.close()


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """The sample on a page of its own, far below the fold."""
    file = tmp_path_factory.mktemp("figures") / "index.html"
    figures = "".join(f"<p>text</p>{f._repr_html_()}" for f in sample())
    file.write_text(
        '<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Figures</title>'
        f"<style>:root{{{THEME}}}</style><style>{(STATIC / 'figures.css').read_text()}</style>"
        '<body style="margin:0"><main><h1>Figures</h1><div style="height:3000px"></div>'
        f"{figures}</main><script>{(STATIC / 'figures.js').read_text()}</script>"
    )
    return file.as_uri()


def pages():
    """The address of every built page with a figure that moves."""
    if site.SITE is None:
        return []
    return [
        n for n in site._pages()
        if '<div class="moving"' in (site.SITE / f"{n}.html").read_text()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def address(document):
    return document


# Figures that come into view stay asleep until `rouse` is called.
ASLEEP = """
const Real = window.IntersectionObserver, asleep = [];
window.IntersectionObserver = class extends Real {
  observe(e) { if (e.matches('.moving')) asleep.push([this, e]); else super.observe(e); }
};
window.rouse = () => { for (const [o, e] of asleep) Real.prototype.observe.call(o, e); };
"""


def opened(chromium, address, view, **options):
    page = browser.context(chromium, view).new_page()
    page.complaints = []
    page.on(
        "console",
        lambda m: page.complaints.append(m.text) if m.type == "error" else None,
    )
    page.on("pageerror", lambda e: page.complaints.append(str(e)))
    if options.get("still"):
        page.add_init_script(ASLEEP)
    page.goto(address, wait_until="networkidle")
    return page


def wake(page):
    for figure in page.query_selector_all(".moving"):
        figure.scroll_into_view_if_needed()
        page.wait_for_function("f => f.classList.contains('moving-on')", arg=figure)


@pytest.fixture(params=list(browser.VIEWS))
def page(request, chromium, address):
    """The page with all of its figures awake."""
    made = opened(chromium, address, request.param)
    wake(made)
    yield made
    assert made.complaints == []
    made.context.close()


def state(figure):
    """The number of the value at which each slider stands."""
    return figure.eval_on_selector_all(
        "input[type=range]",
        "all => Object.fromEntries(all.map(i => [i.name, +i.value]))",
    )


def pick(data, now, part):
    """What a layer or a number has to show in a state."""
    if "by" not in part:
        return part["data"]
    sizes, k = {c["name"]: len(c["values"]) for c in data["controls"]}, 0
    for name in part["by"]:
        k = k * sizes[name] + now[name]
    return part["data"][k]


def placed(axis, value, start, length, up):
    """Where a value lies on an axis, in pixels; none where it has no place."""
    if value is None or (axis.get("log") and value <= 0):
        return None
    f = math.log10 if axis.get("log") else float
    low, high = map(f, axis["range"])
    share = (f(value) - low) / (high - low)
    return start + length * ((1 - share) if up else share)


def check(figure):
    """Numbers and curves are those of the JSON, in the state of the sliders."""
    data = json.loads(figure.query_selector("script").inner_text())
    now = state(figure)
    for part, output in zip(
        data.get("readouts", []), figure.query_selector_all("[data-readout]"),
        strict=True,
    ):  # fmt: skip
        assert json.loads(output.get_attribute("data-value")) == pick(data, now, part)
    for spec, box in zip(
        data["panels"], figure.query_selector_all(".moving-panel"), strict=True
    ):
        if "x" in spec:
            _check_plane(spec, box, lambda part: pick(data, now, part))
        if "space" in spec:
            _check_space(spec, box, data, now)
        for layer in spec["layers"]:
            if "lit" in layer:
                lit = box.query_selector_all("[data-lit=true]")
                faces = sorted(f.get_attribute("data-face") for f in lit)
                assert faces == sorted(pick(data, now, layer["lit"]))
    return data, now


def _check_plane(spec, box, picked):
    svg = box.query_selector("svg")
    left, top, width, height = map(float, svg.get_attribute("data-frame").split(","))
    for i, layer in enumerate(spec["layers"]):
        if layer["type"] == "heat":
            _check_heat(layer, svg.query_selector(f'[data-layer="{i}"]'), picked(layer))
        if layer["type"] not in ("line", "points", "ellipse"):
            continue
        wanted = [
            (x, y)
            for a, b in outline(layer, picked(layer))
            if (x := placed(spec["x"], a, left, width, False)) is not None
            and (y := placed(spec["y"], b, top, height, True)) is not None
        ]
        drawn = svg.query_selector_all(f'[data-layer="{i}"]')
        if layer["type"] != "points":
            text = drawn[0].get_attribute("d") if drawn else ""
            found = [
                (float(a), float(b))
                for a, b in re.findall(r"([-\d.e]+),([-\d.e]+)", text)
            ]
        elif layer.get("mark"):
            continue
        else:
            found = [
                tuple(float(c.get_attribute(k)) for k in ("cx", "cy")) for c in drawn
            ]
        assert len(found) == len(wanted)
        for p, q in zip(found, wanted, strict=True):
            assert p == pytest.approx(q, abs=0.03)


def outline(layer, data):
    """The points of a layer; an ellipse comes as its centre and two half axes."""
    if layer["type"] != "ellipse":
        return data
    angle = np.linspace(0, 2 * np.pi, 61)
    centre, u, v = np.array(data)
    return centre + np.outer(np.cos(angle), u) + np.outer(np.sin(angle), v)


def _check_heat(layer, image, letters):
    """One colour for each letter, one pixel for each place, rows from below."""
    png = base64.b64decode(image.get_attribute("href").split(",", 1)[1])
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    columns, colors = layer["columns"], {}
    rows = len(letters) // columns
    assert picture.size == (columns, rows)
    for k, letter in enumerate(letters):
        found = picture.getpixel((k % columns, rows - 1 - k // columns))
        assert colors.setdefault(letter, found) == found
    assert len({*colors.values()}) == len(colors)


def _check_space(spec, box, data, now):
    """What lies in space is seen from where the two sliders stand."""
    svg = box.query_selector("svg")
    width, height = svg.evaluate("s => [s.clientWidth, s.clientHeight]")
    values = {c["name"]: c["values"][now[c["name"]]] for c in data["controls"]}
    a, b = np.deg2rad([values["turn"], values["tilt"]])
    around = np.array(
        [[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]]
    )
    over = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rate = (min(width, height) / 2 - 8) / spec["space"]["radius"]
    for i, layer in enumerate(spec["layers"]):
        if layer["type"] not in ("line", "points", "ellipse", "text"):
            continue
        points = np.array(outline(layer, pick(data, now, layer)), dtype=float)
        _, x, y = over @ around @ (points - spec["space"]["centre"]).T
        wanted = np.stack([width / 2 + rate * x, height / 2 - rate * y], 1)
        drawn = svg.query_selector_all(f'[data-layer="{i}"]')
        if layer["type"] in ("line", "ellipse"):
            text = drawn[0].get_attribute("d") or drawn[0].get_attribute("points")
            found = re.findall(r"([-\d.e]+),([-\d.e]+)", text)
        else:
            names = ("cx", "cy") if layer["type"] == "points" else ("x", "y")
            found = [[e.get_attribute(n) for n in names] for e in drawn]
        if layer.get("mark") != "star":
            assert np.array(found, dtype=float) == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize(("number", "name"), list(enumerate(pages())))
def test_figures_of_a_page_show_what_it_computed(chromium, number, name):
    """The sample below is tried in all ways and views; a page by keyboard, in one view."""
    view = list(browser.VIEWS)[number % len(browser.VIEWS)]
    with site.served(site.SITE) as url:
        page = opened(chromium, f"{url}/{name}.html", view, still=True)
        the_same_asleep(page)
        by_keyboard(page)
        for other in reversed(browser.VIEWS):
            browser.turn(page, other)
            browser.settle(page)
            away_and_back(page)
        assert page.complaints == []
        page.context.close()


def test_each_slider_moves_by_keyboard_and_shows_what_was_computed(page):
    by_keyboard(page)


DRAWN = """f => [...f.querySelectorAll('.moving-panel svg, [data-readout], [aria-selected]')]
  .map(e => e.outerHTML.replace(/clip-\\d+/g, '') + (e.cellIndex ?? '')).join()"""


def away_and_back(page):
    """Out of sight and back a figure stands as it stood, and each slider still moves it."""
    for figure in page.query_selector_all(".moving"):
        before = state(figure)
        for top in ("document.documentElement.scrollHeight", "0"):
            page.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")
            page.evaluate("() => new Promise(requestAnimationFrame)")
        figure.scroll_into_view_if_needed()
        assert state(figure) == before
        check(figure)
        for slider in figure.query_selector_all("input[type=range]"):
            slider.focus()
            seen = set()
            for key in ("Home", "End", "ArrowLeft"):
                page.keyboard.press(key)
                seen.add(figure.evaluate(DRAWN))
            assert len(seen) > 1, slider.get_attribute("name")
            check(figure)


def by_keyboard(page):
    for figure in page.query_selector_all(".moving"):
        check(figure)
        for slider in figure.query_selector_all("input[type=range]"):
            before = int(slider.input_value())
            slider.focus()
            last = int(slider.get_attribute("max"))
            page.keyboard.press("ArrowLeft" if before == last else "ArrowRight")
            assert int(slider.input_value()) == before + (-1 if before == last else 1)
            assert slider.get_attribute("aria-valuetext")
            check(figure)


def test_points_spaces_and_tables_move_by_mouse(page):
    for figure in page.query_selector_all(".moving"):
        data, before = check(figure)
        for spec, box in zip(
            data["panels"], figure.query_selector_all(".moving-panel"), strict=True
        ):
            box.scroll_into_view_if_needed()
            if "drag" in spec or "space" in spec:
                place = box.query_selector("svg").bounding_box()
                x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
                page.mouse.move(x, y)
                page.mouse.down()
                for dx in (30, 60, 90):
                    page.mouse.move(x + dx, y)
                page.mouse.up()
                moved = "turn" if "space" in spec else spec["drag"][0]
                assert state(figure) != before
                if "space" in spec:
                    assert state(figure)[moved] != before[moved]
            if "table" in spec:
                cells = box.query_selector_all("td")
                cells[-1].click()
                now = state(figure)
                sizes = [len(c["values"]) for c in data["controls"]]
                assert [now[n] for n in spec["table"]] == [s - 1 for s in sizes[:2]]
            _, before = check(figure)


def test_a_table_sorts_filters_and_follows_the_arrows(page):
    tables = page.query_selector_all(".moving-table")
    for around in tables:
        rows = around.query_selector_all("tbody tr")
        first = [r.query_selector("td").inner_text()[0] for r in rows]
        around.query_selector("thead button").click()
        again = around.query_selector_all("tbody tr")
        assert [r.query_selector("td").inner_text()[0] for r in again] == sorted(
            first, key="ENU?-".index
        )
        chosen = around.query_selector("td[tabindex='0']")
        chosen.focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowDown")
        assert around.query_selector("td[aria-selected=true]:focus")
        name = again[0].query_selector("th").inner_text()
        around.evaluate_handle("t => t.parentElement").as_element().query_selector(
            "input[type=search]"
        ).fill(name)
        shown = [r.query_selector("th").inner_text() for r in again if r.is_visible()]
        assert name in shown
        assert all(name.lower() in s.lower() for s in shown)


def test_a_figure_plays(page):
    for button in page.query_selector_all(".moving-controls button"):
        slider = button.evaluate_handle("b => b.parentElement.querySelector('input')")
        slider = slider.as_element()
        button.scroll_into_view_if_needed()
        slider.evaluate("i => { i.value = 0; i.dispatchEvent(new Event('input')); }")
        button.click()
        page.wait_for_function("i => i.value > 0", arg=slider, timeout=3000)
        # in one breath: between two calls a short figure may have come to its end
        stop = "b => { if (b.textContent === 'Stop') b.click(); return b.textContent; }"
        assert button.evaluate(stop) == "Play"


def test_the_page_does_not_move_when_a_figure_wakes(chromium, address):
    for view in browser.VIEWS:
        page = opened(chromium, address, view, still=True)
        the_same_asleep(page)
        page.context.close()


def the_same_asleep(page):
    """The box of a figure is as high asleep as awake, and no wider than the page."""
    page.evaluate(browser.TYPESET)  # until then text and figures wait unseen
    high = "all => all.map(f => Math.round(f.getBoundingClientRect().height))"
    assert page.query_selector(".moving-on") is None
    asleep = page.eval_on_selector_all(".moving", high)
    for image in page.query_selector_all(".moving-still"):
        assert image.is_visible()
        assert image.evaluate("i => i.naturalWidth") > 100
    page.evaluate("rouse()")
    wake(page)
    assert page.eval_on_selector_all(".moving", high) == asleep
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_a_script_and_on_paper_the_still_picture_stands(
    page, chromium, address
):
    page.emulate_media(media="print")
    for figure in page.query_selector_all(".moving"):
        assert figure.query_selector(".moving-still").is_visible()
        assert not figure.query_selector(".moving-controls").is_visible()
        assert not figure.query_selector(".moving-panel").is_visible()
    bare = chromium.new_context(java_script_enabled=False).new_page()
    bare.goto(address)
    for figure in bare.query_selector_all(".moving"):
        assert figure.query_selector(".moving-still").is_visible()
        assert not figure.query_selector(".moving-controls").is_visible()
    bare.context.close()


def test_axe_finds_nothing_in_a_figure(page):
    page.evaluate(site.AXE.read_text())
    found = page.evaluate(
        "async () => (await axe.run({include: [['.moving']]}, {preload: false})).violations"
    )
    assert [(v["id"], v["nodes"][0]["html"][:120]) for v in found] == []


def test_on_a_phone_each_statement_of_a_formula_has_its_line(chromium):
    long = " + ".join("b" * 20)
    formulas = {
        r"\[a = 1, \qquad b = 2\]": r"\[\begin{gathered}a = 1, \\ b = 2\end{gathered}\]",
        r"\[\begin{split}\begin{gathered} a, \\ b \qquad c \end{gathered}\end{split}\]":
            r"\[\begin{gathered} a, \\ b \\ c \end{gathered}\]",
        rf"\[{long} \quad c \quad\text{{or}}\quad d\]":
            rf"\[\begin{{gathered}}{long} \\ c \quad\text{{or}}\quad d\end{{gathered}}\]",
        r"\[a \quad b\]": None,
        r"\[\left\{ a \qquad b \right\}\]": None,
        r"\[\begin{split}a &= 1 \qquad b\\ c &= 2\end{split}\]": None,
    }  # fmt: skip
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    boxes = "".join(f'<div class="math">{tex}</div>' for tex in formulas)
    page.set_content(f"<!doctype html>{boxes.replace('&', '&amp;')}")
    page.add_script_tag(content=(STATIC / "book.js").read_text())
    page.evaluate("oneStatementALine()")
    found = page.locator(".math").all_text_contents()
    expected = [line or tex for tex, line in formulas.items()]
    assert [" ".join(f.split()) for f in found] == [
        " ".join(e.split()) for e in expected
    ]
    page.close()
