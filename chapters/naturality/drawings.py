r"""Drawings: commuting squares, the table of verdicts, and the table that moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


from stored_audits import consensus, letters

from geolib.plotting import COLORS


SHADES = {
    "E": "#2fbf95",
    "N": "#56b4e9",
    "U": "#e8915c",
    "?": "#d9d9d9",
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
    cells: Sequence[Sequence[str]],
    size: float = 8,
) -> None:
    """Draw verdicts as coloured, lettered cells (colour is never the only sign).

    Args:
        ax: a matplotlib axis.
        rows, columns: their names.
        cells: a letter for each, row by row.
        size: of the letters, in points.
    """
    from matplotlib.patches import Rectangle

    for i, line in enumerate(cells):
        for j, text in enumerate(line):
            shade = SHADES.get(text, SHADES["?"])
            ax.add_patch(Rectangle((j, i), 0.96, 0.92, color=shade))
            ax.text(j + 0.48, i + 0.5, text, ha="center", va="center", fontsize=size)
    ax.set_xticks([j + 0.48 for j in range(len(columns))], columns, rotation=40)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=size)
    for label in ax.get_xticklabels():
        label.set(ha="right", fontsize=size, rotation_mode="anchor")
    ax.set(xlim=(-0.05, len(columns)), ylim=(len(rows), -0.05))
    ax.grid(False)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def moving_table(
    table: dict[str, Any], names: Sequence[str], families: Sequence[str]
) -> dict[str, Any]:
    """The audit as a table to sort and filter, with the defects of the chosen cell."""
    by, about = ["optimizer", "family"], table["about"]
    steps = [about["horizon"] / k for k in about["counts"]]
    pairs = [(n, f) for n in names for f in families]
    seeds = list(table["cells"])

    def curve(seed: str, name: str, family: str) -> list[list[float]]:
        cell = table["cells"][seed].get(name, {}).get(family, {"values": []})
        return [
            [h, max(v, 1e-17)]
            for h, v in zip(steps, cell["values"], strict=False)
            if v is not None and math.isfinite(v)
        ]

    lines = [
        {"type": "line", "by": by, "color": color, "label": f"problem {seed}",
         "data": [curve(seed, *pair) for pair in pairs]}
        for seed, color in zip(seeds, ("blue", "orange", "green"), strict=False)
    ]  # fmt: skip
    words = [letters(consensus(table, *pair)) for pair in pairs]
    verdicts = [", ".join(sorted(consensus(table, *pair))) for pair in pairs]
    controls = [
        {"name": name, "label": name, "values": list(range(len(shown))),
         "shown": list(shown), "start": start}
        for name, shown, start in (("optimizer", names, 0), ("family", families, 7))
    ]  # fmt: skip
    return {
        "controls": controls,
        "panels": [
            {"title": "verdicts", "shape": 1.0, "table": by,
             "hint": "Filter by name or verdict",
             "layers": [{"type": "cells", "data": words, "colors": SHADES,
                         "order": "ENU?-"}]},
            {"title": "the defect of the chosen cell", "shape": 0.7, "narrow": 1.2,
             "x": {"range": [steps[-1] / 1.3, steps[0] * 1.3], "label": "step h",
                   "log": True, "ticks": steps[::2]},
             "y": {"range": [1e-17, 10], "label": "defect", "log": True},
             "layers": lines},
        ],
        "readouts": [{"label": "verdict:", "by": by, "data": verdicts}],
    }  # fmt: skip
