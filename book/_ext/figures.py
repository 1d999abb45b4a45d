"""What the press adds to a notebook's figures: versions for dark pages and for phones.

It is run in the notebook's kernel. A figure is then shown with its texts set as mathematics, none
smaller than can be read on the page, and beside its PNG lies the same figure for dark pages, and
one of each kind as wide as a phone, its panels under one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from textwrap import fill
from typing import Any
from warnings import catch_warnings

import numpy as np

from geolib.plotting import COLORS, PAPER

NIGHT = "application/x-night+png"
NARROW = "application/x-narrow+json"
AT_NIGHT = {
    PAPER: "#15181d", "#dddddd": "#363c45", COLORS["ink"]: "#ececec", COLORS["grey"]: "#a3a3a3",
    COLORS["blue"]: "#5cb3ee", COLORS["orange"]: "#ff8a47", COLORS["green"]: "#35c79b",
    COLORS["pink"]: "#e79ac4", COLORS["sky"]: "#8fd0f7", COLORS["gold"]: "#f2b73f",
}  # fmt: skip
GREEK = (
    "alpha beta gamma delta epsilon eta theta kappa lambda mu nu xi pi rho sigma tau"
)
TEX = {w: w for w in GREEK.split()} | {"eps": "varepsilon", "inf": "infty"}
COLORED = ("facecolor", "edgecolor", "color", "markerfacecolor", "markeredgecolor")
COLUMN = 735  # pixels of a page's text: a wider figure is shown smaller
SMALLEST = 12  # pixels of a letter as it is shown: nine points
PHONE = 3.4  # inches of a figure on a phone
PIECE = re.compile(
    r"log(\d+)|(?<![\w'])([a-zA-Z]+?)(\d?)(?:\^(\d|\([^()]*\)))?(?![\w'])"
)


def start() -> None:
    """Begin in the kernel that this runs in."""
    from IPython import get_ipython

    install(get_ipython().display_formatter)


def install(shown: Any) -> None:
    """Let a kernel's display formatter show both versions of every figure."""
    png = shown.formatters["image/png"]

    def both(figure: Any, include: Any = None, exclude: Any = None) -> Any:
        from IPython.core.pylabtools import retina_figure

        set_the_texts(figure)
        day = retina_figure(figure)
        png.for_type(type(figure), lambda f: day)  # it is asked next
        with at_night(figure):
            night, _ = retina_figure(figure, base64=True)
        with catch_warnings(action="ignore"):  # of a layout that is not the final one
            narrow: dict[str, Any] = {"stacked": make_narrow(figure)}
            narrow["day"], _ = retina_figure(figure, base64=True)
            with at_night(figure):
                narrow["night"], _ = retina_figure(figure, base64=True)
        return {NIGHT: night, NARROW: narrow}, {}

    shown.mimebundle_formatter.for_type_by_name("matplotlib.figure", "Figure", both)


def mathematical(text: str) -> str:
    """A label as mathematics: Greek letters, single letters, indices and powers.

    Examples:
        >>> mathematical("shift mu0"), mathematical("log10 KL"), mathematical("a row")
        ('shift $\\mu_{0}$', '$\\log_{10}$ KL', 'a row')
    """
    if "$" in text:
        return text

    def piece(m: re.Match[str]) -> str:
        base, word, index, power = m.groups()
        if base:
            return rf"$\log_{{{base}}}$"
        letter = len(word) == 1 and (word.islower() or bool(index or power))
        if word not in TEX and (not letter or (word in "as" and text != word)):
            return m[0]
        name = rf"\{TEX[word]}" if word in TEX else word
        low = f"_{{{index}}}" if index else ""
        high = f"^{{{power.strip('()')}}}" if power else ""
        return f"${name}{low}{high}$"

    return PIECE.sub(piece, text)


def set_the_texts(figure: Any) -> None:
    """Mathematics in all labels, and letters of nine points at the size shown."""
    from matplotlib.text import Text

    wide = figure.get_figwidth() * figure.dpi
    least = SMALLEST * 72 / figure.dpi / min(1, COLUMN / wide)
    for text in figure.findobj(Text):
        text.set_text(mathematical(text.get_text()))
        text.set_fontsize(max(text.get_fontsize(), least))


def make_narrow(figure: Any) -> bool:
    """Draw a figure for a phone: its panels one under the other, its letters as they are.

    Returns:
        Whether panels that stood side by side no longer do.
    """
    drawn = [a for a in figure.axes if a.get_subplotspec()]
    if not drawn:
        return False
    rows, columns = drawn[0].get_subplotspec().get_gridspec().get_geometry()
    beside = 1 if columns < 4 else 2
    wide, high = figure.get_size_inches()
    share = PHONE / beside / (wide / columns)
    down = -(-rows * columns // beside)
    each = max(high / rows * min(0.95, max(share, 0.75)), 2.4 / beside)
    figure.set_size_inches(PHONE, down * each)
    grid = figure.add_gridspec(down, beside)
    for axes in drawn:
        spec = axes.get_subplotspec()
        place = spec.rowspan.start * columns + spec.colspan.start
        _say_what_others_said(axes, drawn)
        names = [t.get_text() for t in axes.get_yticklabels()]
        room = 0.7 * each * figure.dpi / max(1, len(names)) > 30  # pixels of two lines
        if room and max(map(len, names), default=0) > 20 and "$" not in "".join(names):
            axes.set_yticks(axes.get_yticks(), [fill(name, 18) for name in names])
        axes.set_subplotspec(grid[divmod(place, beside)])
    inside = drawn[0].get_legend()
    for legend in [
        *figure.legends,
        *[inside] * (len(drawn) == 1 and inside is not None),
    ]:
        _set_above(figure, legend)
    _fit_the_words(figure)
    return columns > 1 and beside == 1


def _say_what_others_said(axes: Any, drawn: Sequence[Any]) -> None:
    """Ticks and label of an axis that the panel had from the one beside or under it."""
    for name, side in (("x", "labelbottom"), ("y", "labelleft")):
        shared = getattr(axes, f"get_shared_{name}_axes")()
        family = [a for a in drawn if shared.joined(a, axes)]
        if len(family) > 1 and getattr(axes, f"{name}axis").get_visible():
            axes.tick_params(axis=name, **{side: True})
            said = [text for a in family if (text := getattr(a, f"get_{name}label")())]
            getattr(axes, f"set_{name}label")(said[0] if said else "")
    names = [t.get_text() for t in drawn[0].get_yticklabels()]
    same = np.array_equal(axes.get_yticks(), drawn[0].get_yticks())
    if same and any(names) and not any(t.get_text() for t in axes.get_yticklabels()):
        axes.set_yticks(axes.get_yticks(), names)


def _set_above(figure: Any, legend: Any) -> None:
    """A legend above the panels: where it fitted into a wide one it would hide lines now."""
    names = [t.get_text() for t in legend.get_texts()]
    title = legend.get_title().get_text() or None
    how = {"loc": "outside upper left", "fontsize": legend._fontsize, "title": title}
    # Of an error bar the legend keeps a line alone: its marks are asked of the panels.
    said = [pair for a in figure.axes for pair in zip(*a.get_legend_handles_labels())]  # noqa: B905
    known = {mathematical(name): handle for handle, name in said}
    handles = [
        known.get(n, h) for n, h in zip(names, legend.legend_handles, strict=True)
    ]
    columns = max(2, legend._ncols)
    for fewer in range(columns, 0, -1):
        legend.remove()
        legend = figure.legend(handles, names, ncols=fewer, **how)
        figure.canvas.draw()
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width:
            break
    figure.set_size_inches(PHONE, figure.get_figheight() + box.height / figure.dpi)


def _fit_the_words(figure: Any) -> None:
    """Long titles and labels on more lines; names of ticks that touch stand aslant."""
    for axes in figure.axes:
        across = axes.xaxis.label, *(getattr(axes, t) for t in ("title", "_left_title"))
        for text in across:
            if "$" not in text.get_text():
                text.set_text(fill(text.get_text(), 40))
    figure.canvas.draw()
    for axes in (a for a in figure.axes if a.name != "3d"):
        names = [t for t in axes.get_xticklabels() if t.get_text() and t.get_visible()]
        boxes = [t.get_window_extent() for t in names]
        gaps = [t.get_transform().transform(t.get_position())[0] for t in names]
        tight = min((abs(b - a) for a, b in pairwise(gaps)), default=99) < 24
        touch = any(a.x1 > b.x0 for a, b in pairwise(boxes))
        if touch and (tight or not any(t.get_rotation() for t in names)):
            for text in names:
                text.set(ha="right", va="center" if tight else "top")
                text.set(rotation=90 if tight else 35, rotation_mode="anchor")


@contextmanager
def at_night(figure: Any) -> Iterator[None]:
    """Inside the block a figure has the colours of a dark page; afterwards its own.

    What is drawn over a picture or a table of cells keeps its colours.
    """
    changed = list(_swap(figure, ("facecolor",)))
    for artist in (a for top in (*figure.legends, *figure.texts) for a in _parts(top)):
        changed += _swap(artist)
    for axes in figure.axes:
        full = bool(axes.images) or len(axes.patches) > 40
        full |= any(np.ndim(c.get_array()) > 1 for c in axes.collections)
        inner = [*axes.lines, *axes.collections, *axes.texts, *axes.patches]
        over = {a for top in inner for a in _parts(top)} if full else set()
        for artist in _parts(axes):
            if artist not in over and artist is not axes:
                changed += _swap(artist)
    grids = [axis._axinfo["grid"] for a in figure.axes for axis in _in_space(a)]
    days = [grid["color"] for grid in grids]
    for grid in grids:
        grid["color"] = _at_night(grid["color"])
    yield
    for artist, name, value in reversed(changed):
        getattr(artist, f"set_{name}")(value)
    for grid, day in zip(grids, days, strict=True):
        grid["color"] = day


def _in_space(axes: Any) -> list[Any]:
    """The three axes of a picture in space, of which each has a pane behind it."""
    return list(axes._axis_map.values()) if hasattr(axes, "get_zlim") else []


def _parts(top: Any) -> list[Any]:
    """An artist and all in it, with what `findobj` misses: arrows, panes and their lines."""
    parts = top.findobj()
    parts += [a for p in parts if (a := getattr(p, "arrow_patch", None))]
    return parts + [a for axis in _in_space(top) for a in (axis.pane, axis.line)]


def _swap(
    artist: Any, names: Sequence[str] = COLORED
) -> Iterator[tuple[Any, str, Any]]:
    """Give an artist the colours of the night; which one it had, by name."""
    if getattr(artist, "get_array", lambda: None)() is not None:
        return  # it is coloured by its values
    # A marker that has no colour of its own says its line's: all are asked first.
    values = [getattr(artist, f"get_{name}", lambda: None)() for name in names]
    for name, value in zip(names, values, strict=True):
        if value is None or (name == "color" and hasattr(artist, "get_facecolor")):
            continue
        many = not isinstance(value, str) and np.ndim(value) > 1
        swapped = [_at_night(v) for v in value] if many else _at_night(value)
        getattr(artist, f"set_{name}")(swapped)
        yield artist, name, value


def _at_night(color: Any) -> Any:
    """The colour on a dark page; one that the style does not know stays, dark grey turns."""
    from matplotlib.colors import to_hex, to_rgba

    if isinstance(color, str) and color in ("none", "auto"):
        return color
    *rgb, alpha = to_rgba(color)
    known = {k.lower(): v for k, v in AT_NIGHT.items()}.get(to_hex(rgb))
    if known:
        return to_rgba(known, alpha)
    if max(rgb) - min(rgb) < 0.05 and max(rgb) < 0.5:
        return (*(1 - 0.8 * c for c in rgb), alpha)
    return (*rgb, alpha)
