"""The one figure style: legible on light and dark pages, colour-blind safe."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette without its yellow, which is too faint on paper white.
COLORS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
    "gold": "#E69F00",
    "ink": "#222222",
    "grey": "#777777",
}
SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"
# Opaque: a transparent figure loses its axis labels on a dark page.
PAPER = "#fbfbf8"


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the book; call once a notebook."""
    import matplotlib as mpl
    from cycler import cycler

    cycle = [c for n, c in COLORS.items() if n not in ("ink", "grey")]
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "axes.edgecolor": COLORS["ink"],
            "axes.prop_cycle": cycler(color=cycle),
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": SEQUENTIAL,
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    except (ImportError, AttributeError):  # not inside a notebook
        pass


def panels(
    rows: int = 1, cols: int = 1, width: float = 6.4, height: float = 3.4
) -> Any:
    """A figure and its axes in the book's style; `height` (inches) is one row's."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, cols, figsize=(width, rows * height), squeeze=True)


def slope_guide(ax: Any, x: Any, y0: float, slope: float, label: str) -> None:
    """Draw the power law y0 (x/x[0])^slope as a thin reference line."""
    y = [y0 * (xi / x[0]) ** slope for xi in x]
    ax.plot(x, y, color=COLORS["grey"], lw=0.9, ls=":")
    ax.annotate(label, (x[-1], y[-1]), color=COLORS["grey"], fontsize=8)
