"""The one figure style: legible on light and dark pages, colour-blind safe."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from html import escape
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


# ---- figures that move ---------------------------------------------------------------

LIMIT = 200_000  # bytes of the data of one figure
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Moving:
    """A figure whose sliders choose among states that the notebook has computed.

    Outside the book, without JavaScript and in print the still picture stands for it.

    Attributes:
        data: its JSON.
        still: the picture, as base64 of a PNG.
        alt: what the picture shows, for those who do not see it.
    """

    data: str
    still: str
    alt: str

    def __repr__(self) -> str:
        return "a figure that moves"

    def _repr_html_(self) -> str:
        data = json.loads(self.data)
        shape = [p.get("shape", 1.2) for p in data["panels"]]
        tower = [
            1 / p.get("narrow", s) for p, s in zip(data["panels"], shape, strict=True)
        ]
        tall, wide = 1 / sum(tower), sum(shape)
        columns = " ".join(f"{s}fr" for s in shape)
        rows = " ".join(f"{s:.3g}fr" for s in tower)
        sliders = "".join(map(_slider, data["controls"]))
        told = "".join(
            f"<span>{escape(r['label'])} <output data-readout>–</output></span>"
            for r in data.get("readouts", [])
        )
        return (
            f'<div class="moving" style="--wide:{wide:.3g};--tall:{tall:.3g};'
            f'--columns:{columns};--rows:{rows}"><div class="moving-stage">'
            f'<img class="moving-still" alt="{escape(self.alt)}" '
            f'src="data:image/png;base64,{self.still}"></div>'
            f'<div class="moving-controls" hidden>{sliders}<p class="moving-told">{told}'
            '</p></div><script type="application/json">'
            + self.data.replace("</", "<\\/")
            + "</script></div>"
        )


def moving(data: dict[str, Any], still: Any, alt: str) -> Moving:
    """A figure that moves is made of sliders, panels that depend on them, and numbers.

    Args:
        data: `controls` are sliders, each with a `name`, a `label`, its `values` and
            the number of the one at the `start`. `panels` are planes (`x`, `y` axes),
            spaces (`space`) or tables (`table`), with `layers`; a layer or one of the
            `readouts` has its `data`, and where it moves a list of controls `by`
            which, in the order of `itertools.product`, its data are chosen.
        still: the matplotlib figure that is shown where nothing can move; it is closed.
        alt: what the figure shows, in words.

    Returns:
        The figure, numbers cut to four digits, shown as HTML.

    Raises:
        ValueError: a list that does not fit its controls, or more than 200 kB.
    """
    import matplotlib.pyplot as plt

    sizes = {c["name"]: len(c["values"]) for c in data["controls"]}
    layers = [layer for panel in data["panels"] for layer in panel["layers"]]
    layers += [layer["lit"] for layer in layers if "lit" in layer]
    for part in (*layers, *data.get("readouts", [])):
        count = 1
        for name in part.get("by", ()):
            count *= sizes[name]
        if "by" in part and len(part["data"]) != count:
            raise ValueError(
                f"data by {part['by']}: expected {count}, got {len(part['data'])}"
            )
    text = json.dumps(_rounded(data), separators=(",", ":"), allow_nan=False)
    if len(text) > LIMIT:
        raise ValueError(f"data: expected at most {LIMIT} bytes, got {len(text)}")
    picture = io.BytesIO()
    still.savefig(picture, format="png", dpi=110)
    plt.close(still)
    return Moving(text, base64.b64encode(picture.getvalue()).decode(), alt)


def shades(values: Any, low: float, high: float) -> str:
    """An array as one letter a value, for a `heat` layer; a blank where it is none."""
    import numpy as np

    v = np.asarray(values, float).ravel()
    place = np.clip((v - low) / (high - low), 0, 1) * (len(LEVELS) - 1)
    return "".join(" " if np.isnan(p) else LEVELS[round(float(p))] for p in place)


def _slider(control: dict[str, Any]) -> str:
    play = '<button type="button">Play</button>' if control.get("play") else ""
    return (
        f"<div><label><span>{escape(control['label'])}</span>"
        f'<input type="range" min="0" max="{len(control["values"]) - 1}" '
        f'value="{control["start"]}" autocomplete="off" name="{control["name"]}">'
        f"</label><output>–</output>{play}</div>"
    )


def _rounded(x: Any) -> Any:
    """Arrays as lists, numbers with four digits, and none for what is no number."""
    if isinstance(x, dict):
        return {k: _rounded(v) for k, v in x.items()}
    if hasattr(x, "tolist"):
        x = x.tolist()
    if isinstance(x, list | tuple):
        return [_rounded(v) for v in x]
    if isinstance(x, float):
        short = float(f"{x:.4g}") if abs(x) < float("inf") else None
        return int(short) if short is not None and short == int(short) else short
    return x
