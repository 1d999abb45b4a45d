"""What the pages of `book/` show of the run: numbers of claims and pictures of chapters.

`{measured}`key`` in a page becomes the number found, linked to its check; `{picture}`name``
becomes the path of the figure of that name, taken from the executed notebook.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geolib.files import write_whole

from .build import Page
from .ledger import Ledger
from .verdict import anchor, found, kind

MEASURED = re.compile(r"\{measured\}`([^`]+)`")
PICTURE = re.compile(r"\{picture\}`([^`]+)`")
KINDS = {"image/svg+xml": "svg", "image/png": "png"}
BLANK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 9"><text x="1" y="5" '
    'font-size="1">not drawn in this build</text></svg>'
)


def filled(text: str, ledger: Ledger, pages: list[Page], folder: Path) -> str:
    """The text of a page of `book/` with its numbers; its pictures go into `folder`."""
    rows = {r["key"]: r for r in ledger.rows}
    text = MEASURED.sub(lambda m: _number(rows.get(m[1])), text)
    if not PICTURE.search(text):
        return text
    drawn = {name: picture for page in pages for name, picture in _drawn(page)}

    def place(m: re.Match[str]) -> str:
        suffix, data = drawn.get(m[1], ("svg", BLANK.encode()))
        file = folder / f"{m[1]}.{suffix}"
        if not file.exists() or file.read_bytes() != data:
            write_whole(file, data)
        return f"{folder.name}/{file.name}"

    return PICTURE.sub(place, text)


def _number(row: dict[str, Any] | None) -> str:
    if row is None or row["measured"] is None:
        return "(not reached)"
    link = f"../chapters/{row['notebook']}.html#{anchor(row['key'])}"
    style = f' class="verdict-{kind(row["verdict"])}"'
    return f'<a{style} href="{link}">{found(row)}</a>'


def _drawn(page: Page) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """The named figures of a page: `(name, (suffix, data))`."""
    for cell in page.content.get("cells", []):
        figure = cell.get("metadata", {}).get("mystnb", {}).get("figure", {})
        for output in cell.get("outputs", []):
            for mime, suffix in KINDS.items():
                data = output.get("data", {}).get(mime)
                if data and "name" in figure:
                    text = "".join(data)
                    png = mime == "image/png"
                    raw = base64.b64decode(text) if png else text.encode()
                    yield figure["name"], (suffix, raw)
                    break
