"""The README's strip: of each chapter's figure on the landing page the half that tells it.

python book/_ext/strip.py _build/book/html book/_static/overview.png
"""

from __future__ import annotations

import sys
from pathlib import Path

FIGURES = {  # and which part of it is taken: from the left, from the right, or all
    "fig-geodesics-barrier": "right",
    "fig-stratifolds-trap": "left",
    "fig-regimes-prism": "all",
    "fig-naturality-paths": "left",
    "fig-invstab-answer": "right",
}
HIGH, GAP = 330, 12
PAPER = "#fbfbf8"


def strip(site: Path, target: Path) -> None:
    """Put five figures of a rendered site side by side."""
    from PIL import Image

    parts = []
    for name, part in FIGURES.items():
        figure = Image.open(site / "_images" / f"{name}.png").convert("RGB")
        half = figure.width // 2
        left, right = {"left": (0, half), "right": (half, figure.width)}.get(
            part, (0, figure.width)
        )
        piece = figure.crop((left, 0, right, figure.height))
        wide = round(piece.width * HIGH / piece.height)
        parts.append(piece.resize((wide, HIGH), Image.Resampling.LANCZOS))
    width = sum(p.width + GAP for p in parts) - GAP
    whole, at = Image.new("RGB", (width, HIGH), PAPER), 0
    for piece in parts:
        whole.paste(piece, (at, 0))
        at += piece.width + GAP
    whole.save(target, optimize=True)


if __name__ == "__main__":
    strip(Path(sys.argv[1]), Path(sys.argv[2]))
