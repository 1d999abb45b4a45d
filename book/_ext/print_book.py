"""The whole book as one PDF: its pages one after the other, printed by a browser.

python book/_ext/print_book.py _build/book/html book.pdf
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ARTICLE = re.compile(r"<article\b.*?</article>", re.S)
HEAD = re.compile(r"<head>.*?</head>", re.S)
NEXT = re.compile(r'class="right-next"\s+href="([^"]+)"')
FIRST = re.compile(r'url=([^"#]+)')
PLACE = re.compile(r'\b(id|href|src)="([^"]*)"')
NIGHT = re.compile(r'<img [^>]*class="by-night[^>]*>')
MOVED = re.compile(r'<script type="application/json">.*?</script>', re.S)
# A formula or table that is wider than the paper is set smaller. What only a reader at a
# screen can unfold is left out, and solutions are shown.
FORM = """<style>@page { size: A4; margin: 16mm } body { width: 178mm; margin: 0; display: block }
article { break-before: page; padding: 0; counter-reset: table }
figure, .sd-card, .claim, .table-box:not(.ledger), .cell_output { break-inside: avoid }
h1, h2, h3, caption { break-after: avoid }
pre { white-space: pre-wrap !important; overflow: hidden }
.toggle-hidden .admonition-title ~ * { visibility: visible !important; opacity: 1 !important;
  height: auto !important; margin: revert !important }
details:not([open]), section[id$=":all-checks-of-this-page"], button:not(th button),
.moving-controls, a.headerlink, .ledger-filter { display: none !important }</style>
<script>addEventListener("load", async () => {
  const waiting = () => document.querySelector(".math") && !window.MathJax?.startup?.promise;
  for (let i = 0; i < 2000 && waiting(); i++) // its parts are loaded one by one
    await new Promise((done) => setTimeout(done, 50));
  await window.MathJax?.startup?.promise;
  for (const e of document.querySelectorAll('mjx-container[display="true"], .table-box, table')) {
    const part = e.clientWidth / e.scrollWidth;
    if (part < 1) e.style.zoom = 0.98 * part;
  }
  document.body.dataset.ready = "yes";
})</script>"""
PRINT = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
PRINT += ["--generate-pdf-document-outline", "--virtual-time-budget=600000"]


def browser() -> str:
    """The path of a Chromium.

    Raises:
        SystemExit: there is none; with the reason.
    """
    names = (os.environ.get("GEOLIB_CHROMIUM", ""), "chromium", "chromium-browser")
    found = next((path for n in names if n and (path := shutil.which(n))), None)
    if found is None:
        raise SystemExit("pdf: no Chromium found; set GEOLIB_CHROMIUM to its path")
    return found


def print_book(site: Path, target: Path) -> int:
    """Print a rendered site; links between its pages lead to places of the PDF.

    Args:
        site: the folder with `index.html`.
        target: the PDF.

    Returns:
        How many pages of the site it holds.

    Raises:
        SystemExit: there is no site or no browser, or printing failed.
    """
    if not (site / "index.html").is_file():
        raise SystemExit(f"pdf: no site in {site}: run `geolib html` first")
    pages = in_order(site)
    document = site.resolve().with_name("print.html")
    document.write_text(joined(site, pages), "utf-8")
    command = [
        browser(),
        *PRINT,
        f"--print-to-pdf={target.resolve()}",
        document.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not target.is_file():
        raise SystemExit(f"pdf: the browser could not print: {done.stderr[-300:]}")
    return len(pages)


def in_order(site: Path) -> list[str]:
    """The pages as their links to the next one chain them."""
    m = FIRST.search((site / "index.html").read_text("utf-8"))
    pages = [m[1] if m else "index.html"]
    while m := NEXT.search((site / pages[-1]).read_text("utf-8")):
        pages.append(posixpath.join(posixpath.dirname(pages[-1]), m[1]))
        pages[-1] = posixpath.normpath(pages[-1])
    return pages


def joined(site: Path, pages: list[str]) -> str:
    """One document of all pages; what they load is found in the site beside it."""
    texts = {page: (site / page).read_text("utf-8") for page in pages}
    bodies = [_placed(ARTICLE.search(t), page, site.name) for page, t in texts.items()]
    rich = max(texts, key=lambda page: "mathjax/startup.js" in texts[page])
    head = _placed(HEAD.search(texts[rich]), rich, site.name)
    head = head.replace("</head>", f"{FORM}</head>")
    body = "\n".join(bodies)
    return f'<!DOCTYPE html>\n<html lang="en" data-theme="light">{head}<body>{body}</body></html>'


def _placed(found: re.Match[str] | None, page: str, folder: str) -> str:
    """A part of a page with its names and links as they are in the whole."""
    if found is None:
        return ""

    def place(m: re.Match[str]) -> str:
        kind, value = m[1], m[2]
        if kind == "id":
            return f'id="{page}:{value}"'
        if re.match(r"[a-z]+:|//", value):
            return m[0]
        path, _, name = value.partition("#")
        where = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        where = where if path else page
        if kind == "href" and where.endswith(".html"):
            return f'href="#{where}:{name}"'
        return f'{kind}="{folder}/{where}"'

    plain = NIGHT.sub("", MOVED.sub("", found[0])).replace(' loading="lazy"', "")
    text = PLACE.sub(place, plain)
    return text.replace("<article", f'<article id="{page}:"', 1)


if __name__ == "__main__":
    count = print_book(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {count} pages of the site")
