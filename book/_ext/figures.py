"""What the press adds to a notebook's figures: a dark version, mathematics in labels.

It is run in the notebook's kernel. A figure is then shown with its texts set as mathematics, none
smaller than can be read on the page, and beside its PNG lies the same figure for dark pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from geolib.plotting import COLORS, PAPER

NIGHT = "application/x-night+png"
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
        return {NIGHT: night}, {}

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


@contextmanager
def at_night(figure: Any) -> Iterator[None]:
    """Inside the block a figure has the colours of a dark page; afterwards its own.

    What is drawn over a picture or a table of cells keeps its colours.
    """
    changed = list(_swap(figure, ("facecolor",)))
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
    for name in names:
        value = getattr(artist, f"get_{name}", lambda: None)()
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
