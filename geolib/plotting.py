"""The one figure style: legible on light and dark pages, colour-blind safe."""

import base64
import io
import json
import math
from html import escape
from typing import Any

from geolib.files import need

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
# Opaque: a transparent figure loses its axis labels on a dark page.
PAPER = "#fbfbf8"


def use_style() -> None:
    """Set matplotlib's defaults for every figure of the book; call once a notebook."""
    need("matplotlib", "book")
    import matplotlib as mpl
    from cycler import cycler

    cycle = [c for n, c in COLORS.items() if n not in ("ink", "grey")]
    ink, cycled = COLORS["ink"], cycler(color=cycle)
    mpl.rc("figure", figsize=(6.4, 3.6), dpi=110, facecolor=PAPER)
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("axes", facecolor=PAPER, edgecolor=ink, grid=True, prop_cycle=cycled)
    mpl.rc("axes", titlesize=10, titlelocation="left")
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", color="#dddddd", linewidth=0.6)
    mpl.rc("axes3d", **{f"{a}axis.panecolor": "#dddddd80" for a in "xyz"})
    mpl.rc("lines", linewidth=1.8)
    mpl.rc("legend", frameon=False)
    mpl.rc("image", cmap=SEQUENTIAL)


def panels(
    rows: int = 1, cols: int = 1, width: float = 6.4, height: float = 3.4
) -> Any:
    """A figure and its axes in the book's style; `height` (inches) is one row's."""
    need("matplotlib", "book")
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
FIGURE = """<div class="moving" style="{shape}"><div class="moving-stage">
<img class="moving-still" alt="{alt}" src="data:image/png;base64,{still}"></div>
<div class="moving-controls" hidden>{sliders}<p class="moving-told">{told}</p></div>
<script type="application/json">{data}</script></div>"""
SLIDER = """<div><label><span>{label}</span><input type="range" name="{name}" min="0"
max="{last}" value="{start}" autocomplete="off"></label><output>–</output>{button}</div>"""
TOLD = "<span>{} <output data-readout>–</output></span>"


def moving(data: dict[str, Any], still: Any, alt: str) -> Any:
    """A figure that moves has sliders that choose among states that were computed.

    Outside the book, without JavaScript and in print the still picture stands for it.

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
    from IPython.display import HTML

    sizes = {c["name"]: len(c["values"]) for c in data["controls"]}
    parts = [layer for panel in data["panels"] for layer in panel["layers"]]
    parts += [layer["lit"] for layer in parts if "lit" in layer]
    for part in (*parts, *data.get("readouts", [])):
        count = math.prod(sizes[name] for name in part.get("by", ()))
        if "by" in part and len(part["data"]) != count:
            found = len(part["data"])
            raise ValueError(f"data by {part['by']}: expected {count}, got {found}")
    data = json.loads(
        json.dumps(data, default=lambda array: array.tolist()),
        parse_float=lambda number: float(f"{float(number):.4g}"),
        parse_constant=lambda _: None,  # JSON has no NaN
    )
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    if len(text) > LIMIT:
        raise ValueError(f"data: expected at most {LIMIT} bytes, got {len(text)}")
    picture = io.BytesIO()
    still.savefig(picture, format="png", dpi=110)
    plt.close(still)
    wide = [panel.get("shape", 1.2) for panel in data["panels"]]
    high = [1 / p.get("narrow", w) for p, w in zip(data["panels"], wide, strict=True)]
    # Shares whose sum is below one would leave room unused.
    fr = ["fr ".join(f"{9 * size:.3g}" for size in sizes) for sizes in (wide, high)]
    told = (TOLD.format(escape(r["label"])) for r in data.get("readouts", []))
    html = FIGURE.format(
        shape=f"--wide:{sum(wide)};--tall:{1 / sum(high)};"
        f"--columns:{fr[0]}fr;--rows:{fr[1]}fr",
        still=base64.b64encode(picture.getvalue()).decode(),
        sliders="".join(map(_slider, data["controls"])),
        told="".join(told),
        alt=escape(alt),
        data=text,
    )
    return HTML(html)


def shades(values: Any, low: float, high: float) -> str:
    """An array as one letter a value, for a `heat` layer; a blank where it is none."""
    places = [(v - low) / (high - low) * 35 for v in values.ravel().tolist()]
    return "".join(
        " " if math.isnan(p) else LEVELS[round(min(max(p, 0), 35))] for p in places
    )


def _slider(control: dict[str, Any]) -> str:
    play = '<button type="button">Play</button>' if control.get("play") else ""
    last = len(control["values"]) - 1
    return SLIDER.format(
        **control | {"label": escape(control["label"])}, last=last, button=play
    )
