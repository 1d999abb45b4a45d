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

Twin = tuple[str, int, int]
NIGHT = "application/x-night+png"
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
        twins: by the name of a picture that of its dark version, and its size.
    """

    def both(m: re.Match[str]) -> str:
        before, source, name, after = m.groups()
        if name not in twins:
            return m[0]
        twin, wide, high = twins[name]
        night = source.replace(name, twin)
        size = f'width="{wide}" height="{high}" '  # its place is kept until it comes
        return "".join(
            _shown(f'<img {size}{before.lstrip()}src="{place}"{after}>', kind)
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
    """Write the dark version of each figure beside it; name and size, by the light one's."""
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
            twins[picture.stem] = (night.stem, wide // 2, high // 2)
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
