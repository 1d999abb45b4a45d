"""The last touches on a written page: its stamp, figures for dark pages, words kept together."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

Twin = tuple[str, int, int, tuple[float, ...]]
NIGHT = "application/x-night+png"
# Shares of a figure's width. Narrower than a panel is a column of names; than the last
# piece a bar of colours, which stays where it is; than a gap the space between words.
PANEL, LAST, GAP = 0.18, 0.25, 0.008
TOLD = re.compile(r'(<span class="pasted-text)(">[^<\d+−∞-]|">[^<]{12})')
STAMP = re.compile(r'<span class="stamp">.*?</span>', re.S)
# The theme's script says "auto" until its last file has come, and code moves then.
GUESSED = 'dataset.theme = localStorage.getItem("theme") || "auto";'
KNOWN = """dataset.theme = { light: "light", dark: "dark" }[document.documentElement.dataset.mode]
      || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");"""
INLINE = r'<span class="math notranslate nohighlight">[^<]*</span>'
# A formula and the sign behind it, or an open bracket before it, stay on one line.
TOGETHER = re.compile(
    rf'(?<!<span class="whole">)(?<!<span class="whole">[(\[])'
    rf"([(\[]?{INLINE}[.,;:?!)\]]+|[(\[]{INLINE})"
)
PICTURE = re.compile(
    r'<img(?![^>]*class="by-)([^>]*?)src="([^"]*_images/([^"/]+)\.png)"([^>]*)>'
)


def finished(page: str, up: str, mark: str, twins: dict[str, Twin]) -> str:
    """A page with its stamp, and with both versions of its figures.

    Args:
        page: the HTML.
        up: the way from its folder to the site's.
        mark: of what commit it is, and when that was made.
        twins: by the name of a picture that of its dark version, its size, and where
            its panels end.
    """

    def both(m: re.Match[str]) -> str:
        before, source, name, after = m.groups()
        if name not in twins:
            return m[0]
        twin, wide, high, cuts = twins[name]
        night = source.replace(name, twin)
        size = f'width="{wide}" height="{high}" '  # its place is kept until it comes
        return "".join(
            _in_panels(
                _shown(f'<img {size}{before.lstrip()}src="{place}"{after}>', kind),
                (wide, high),
                () if "sd-card" in m[0] else cuts,
            )
            for place, kind in ((source, "by-day"), (night, "by-night"))
        )

    cite = f'<a href="{up}book/reproduce.html#how-to-cite">how to cite it</a> · '
    page = page.replace(GUESSED, KNOWN)
    page = STAMP.sub(f'<span class="stamp">{mark}{cite}</span>', page)
    page = TOLD.sub(r"\1 told\2", page)
    page = TOGETHER.sub(r'<span class="whole">\1</span>', page)
    return PICTURE.sub(both, page)


def _shown(image: str, kind: str) -> str:
    """An image of one kind of page, which loads when it is shown."""
    if 'class="' in image:
        image = image.replace('class="', f'class="{kind} ', 1)
    else:
        image = image.replace("<img", f'<img class="{kind}"', 1)
    return image.replace("<img", '<img loading="lazy"', 1)


def _in_panels(image: str, size: tuple[int, int], cuts: tuple[float, ...]) -> str:
    """An image as often as it has panels: on a phone each shows one, else the first all."""
    if not cuts:
        return image
    shown, (wide, high) = "", size
    for k, (left, right) in enumerate(pairwise((0.0, *cuts, 1.0))):
        part = right - left
        look = (
            f"--at: {left / (1 - part):.2%}; --shape: {part * wide / high:.3f}; "
            f"--most: {1.15 * part * wide:.0f}px"
        )
        name = "panel more" if k else "panel"
        copy = image.replace('class="', f'style="{look}" class="{name} ', 1)
        shown += copy.replace("<img", '<img aria-hidden="true"', 1) if k else copy
    return shown


def _cuts(picture: Path) -> tuple[float, ...]:
    """Where the panels of a picture that stand side by side end, in shares of its width."""
    from PIL import Image

    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L"))
    inked = pixels != pixels[0, 0]
    edges = np.flatnonzero(np.diff(inked.any(0), prepend=False, append=False))
    lefts, rights, wide = edges[::2], edges[1::2], inked.shape[1]
    apart = lefts[1:] - rights[:-1] > GAP * wide  # a gap between letters is none
    lefts, rights = lefts[np.r_[True, apart]], rights[np.r_[apart, True]]
    cuts = []
    for left, right in zip(lefts[:-1], rights[:-1], strict=True):
        if rights[-1] - right < LAST * wide or right - left < PANEL * wide:
            continue
        along, half = np.cumsum(inked[:, left:right], 1), (right - left) // 2
        if (along[:, half:] - along[:, :-half]).max() == half:  # a line, not letters
            cuts.append(float(right / wide + GAP / 2))
    return tuple(cuts)


def stamp(root: Path) -> str:
    """The commit and its date; nothing where the folder is no checkout."""
    command = ["git", "-C", str(root), "log", "-1", "--format=%h %cs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    commit, date = done.stdout.split()
    commit = os.environ.get("GITHUB_SHA", commit)[:10]
    return f"commit {commit} of {date} · "


def lay_out_the_twins(source: Path, site: Path) -> dict[str, Twin]:
    """Write the dark version of each figure beside it; name, size, cuts by the light one's."""
    nights = dict(_nights(source / "chapters"))
    twins = {}
    for picture in sorted(site.glob("_images/*.png")):
        drawn = source / "book" / "_figures" / picture.name  # the name is the author's
        name = _digest(drawn.read_bytes()) if drawn.exists() else picture.stem
        if name in nights:
            night = picture.with_stem(f"{picture.stem}-night")
            night.write_bytes(nights[name])
            # Width and height stand at fixed places of a PNG; it has two pixels for one.
            wide, high = struct.unpack(">II", nights[name][16:24])
            cuts = _cuts(picture)
            twins[picture.stem] = (night.stem, wide // 2, high // 2, cuts)
    return twins


def _nights(chapters: Path) -> Iterator[tuple[str, bytes]]:
    """The figures' dark versions, by the digest of the light one: its name on the site."""
    for path in chapters.rglob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for data in (o.get("data", {}) for o in cell.get("outputs", [])):
                if NIGHT in data and "image/png" in data:
                    day, night = (_bytes(data[k]) for k in ("image/png", NIGHT))
                    yield _digest(day), night


def _bytes(data: str | list[str]) -> bytes:
    return base64.b64decode("".join(data))


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()
