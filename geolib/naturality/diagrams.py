r"""Commuting squares, drawn; and the heat map of an audit table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geolib.plotting import COLORS

SHADES = {
    "E": COLORS["green"],
    "N": COLORS["sky"],
    "U": COLORS["orange"],
    "?": "#bbbbbb",
    "-": "#eeeeee",
}


def square(
    ax: Any,
    corners: Sequence[str],
    arrows: Sequence[str],
    *,
    note: str = "",
    commutes: bool | None = None,
) -> None:
    """Draw one commuting square on a matplotlib axis.

    Args:
        corners: top left, top right, bottom left, bottom right (TeX is fine).
        arrows: labels of the top, bottom, left and right arrows.
        note: written in the middle.
        commutes: colours the note: green for True, orange for False, grey for None.

    Raises:
        ValueError: not four corners and four arrows.
    """
    if len(corners) != 4 or len(arrows) != 4:
        raise ValueError(
            f"corners, arrows: expected four each, got {len(corners)}, {len(arrows)}"
        )
    places = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]
    for (x, y), label in zip(places, corners, strict=True):
        ax.text(x, y, label, ha="center", va="center", fontsize=12)
    ends = [(0, 1, 0, 0.09), (2, 3, 0, -0.13), (0, 2, -0.06, 0), (1, 3, 0.06, 0)]
    align = ["center", "center", "right", "left"]
    for (i, j, dx, dy), label, ha in zip(ends, arrows, align, strict=True):
        (x0, y0), (x1, y1) = places[i], places[j]
        ax.annotate(
            "",
            xy=(x0 + 0.70 * (x1 - x0), y0 + 0.82 * (y1 - y0)),  # labels are wide
            xytext=(x0 + 0.24 * (x1 - x0), y0 + 0.18 * (y1 - y0)),
            arrowprops={"arrowstyle": "->", "color": COLORS["ink"], "lw": 1.2},
        )
        x, y = x0 + 0.47 * (x1 - x0) + dx, (y0 + y1) / 2 + dy
        ax.text(x, y, label, ha=ha, va="center", fontsize=10, color=COLORS["blue"])
    tint = {True: "green", False: "orange", None: "grey"}[commutes]
    ax.text(0.5, 0.5, note, ha="center", va="center", color=COLORS[tint], fontsize=10)
    ax.set(xlim=(-0.45, 1.45), ylim=(-0.3, 1.25))
    ax.axis("off")


def heat_map(
    ax: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    letters: Sequence[Sequence[str]],
) -> None:
    """Draw verdicts as coloured, lettered cells (colour is never the only sign)."""
    from matplotlib.patches import Rectangle

    for i, line in enumerate(letters):
        for j, text in enumerate(line):
            shade = SHADES.get(text, SHADES["?"])
            ax.add_patch(Rectangle((j, i), 0.96, 0.92, color=shade))
            ax.text(j + 0.48, i + 0.5, text, ha="center", va="center", fontsize=7)
    ax.set_xticks([j + 0.48 for j in range(len(columns))], columns, rotation=40)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7)
    for label in ax.get_xticklabels():
        label.set(ha="right", fontsize=8)
    ax.set(xlim=(-0.05, len(columns)), ylim=(len(rows), -0.05))
    ax.grid(False)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
