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
from pathlib import Path
from typing import Any, NamedTuple

NIGHT = "application/x-night+png"
NARROW = "application/x-narrow+json"
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


# Where a caption says which of two panels it speaks of.
SIDE = re.compile(
    r"(\b(?:Left|Right)(?=[:,]))|((?<=\()(?:left|right)(?=\)))|((?<=; )right(?=,))"
)
STACKED = re.compile(
    r'(class="(?:side-by-side|moving)"(?:(?!</figure>).)*?<figcaption>)(.*?)(?=</figcaption>)',
    re.S,
)
ABOVE = {"left": "above", "right": "below", "Left": "Above", "Right": "Below"}


# How an annotation says a range, axes or words: the reader wants these alone.
ANNOTATED = re.compile(r"<em>Annotated</em><em>\[</em>(.*?)<em>\]</em>(?=\)|<em> \| )")

# NumPy's ArrayLike is written out in full.
ARRAY_LIKE = re.compile(
    r"<em>_Buffer</em>.*?<em>bytes</em><em> \| </em><em>str</em><em>\]</em>"
)


class Picture(NamedTuple):
    """Name and size of a figure's other version."""

    name: str
    wide: int
    high: int


class Twin(NamedTuple):
    """The other versions of a figure: for dark pages, and for phones of both kinds."""

    night: Picture
    narrow: Picture | None = None
    stacked: bool = False  # on a phone, panels that stand side by side


def finished(page: str, up: str, mark: str, twins: dict[str, Twin]) -> str:
    """A page with its stamp, and with both versions of its figures.

    Args:
        page: the HTML.
        up: the way from its folder to the site's.
        mark: of what commit it is, and when that was made.
        twins: by the name of a picture that of its dark version, and its size.
    """

    def both(m: re.Match[str]) -> str:
        before, source, name, after = m.groups()
        if name not in twins:
            return m[0]
        twin = twins[name]
        night = source.replace(name, twin.night.name)
        size = f'width="{twin.night.wide}" height="{twin.night.high}" '  # kept free
        both = "".join(
            _shown(f'<img {size}{before.lstrip()}src="{place}"{after}>', kind)
            for place, kind in ((source, "by-day"), (night, "by-night"))
        )
        if not twin.narrow or "sd-card" in m[0]:  # a card shows a half of its own
            return both
        both = re.sub(r"<img .*?>", lambda i: _on_phones(i[0], twin.narrow), both)
        return f'<span class="side-by-side">{both}</span>' if twin.stacked else both

    cite = f'<a href="{up}book/reproduce.html#how-to-cite">how to cite it</a> · '
    page = page.replace(GUESSED, KNOWN)
    page = STAMP.sub(f'<span class="stamp">{mark}{cite}</span>', page)
    page = TOLD.sub(r"\1 told\2", page)
    page = ARRAY_LIKE.sub("<em>ArrayLike</em>", page)
    page = ANNOTATED.sub(lambda m: m[1].replace("'", ""), page)
    page = TOGETHER.sub(r'<span class="whole">\1</span>', page)
    page = PICTURE.sub(both, page)
    return STACKED.sub(lambda m: m[1] + SIDE.sub(_where, m[2]), page)


def _where(m: re.Match[str]) -> str:
    """The word for a panel's place, on wide screens and on phones."""
    return f'<span class="if-wide">{m[0]}</span><span class="if-narrow">{ABOVE[m[0]]}</span>'


def _on_phones(image: str, narrow: Picture) -> str:
    """An image with the version that a phone shows in its place."""
    source = re.search(r'src="([^"]*/)[^"]*"', image)
    name = narrow.name + "-night" * ("by-night" in image)
    return (
        f'<picture><source media="(max-width: 600px)" srcset="{source[1]}{name}.png" '
        f'width="{narrow.wide}" height="{narrow.high}">{image}</picture>'
    )


def _shown(image: str, kind: str) -> str:
    """An image of one kind of page, which loads when it is shown."""
    if 'class="' in image:
        image = image.replace('class="', f'class="{kind} ', 1)
    else:
        image = image.replace("<img", f'<img class="{kind}"', 1)
    return image.replace("<img", '<img loading="lazy"', 1)


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
    """Write the other versions of each figure beside it; what they are, by the light one's."""
    others = dict(_others(source / "chapters"))
    twins = {}
    for picture in sorted(site.glob("_images/*.png")):
        drawn = source / "book" / "_figures" / picture.name  # the name is the author's
        name = _digest(drawn.read_bytes()) if drawn.exists() else picture.stem
        if name in others:
            night, narrow = others[name]
            dark = _written(picture.with_stem(f"{picture.stem}-night"), night)
            twins[picture.stem] = Twin(dark)
            if narrow:
                phone = picture.with_stem(f"{picture.stem}-narrow")
                day = _written(phone, _bytes(narrow["day"]))
                _written(
                    phone.with_stem(f"{phone.stem}-night"), _bytes(narrow["night"])
                )
                twins[picture.stem] = Twin(dark, day, narrow["stacked"])
    return twins


def _written(path: Path, png: bytes) -> Picture:
    """Write a picture; width and height stand at fixed places, and it has two pixels for one."""
    path.write_bytes(png)
    wide, high = struct.unpack(">II", png[16:24])
    return Picture(path.stem, wide // 2, high // 2)


def _others(chapters: Path) -> Iterator[tuple[str, tuple[bytes, dict[str, Any]]]]:
    """The figures' other versions, by the digest of the light one: its name on the site."""
    for path in chapters.rglob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for data in (o.get("data", {}) for o in cell.get("outputs", [])):
                if NIGHT in data and "image/png" in data:
                    day, night = (_bytes(data[k]) for k in ("image/png", NIGHT))
                    yield _digest(day), (night, data.get(NARROW, {}))


def _bytes(data: str | list[str]) -> bytes:
    return base64.b64decode("".join(data))


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()
