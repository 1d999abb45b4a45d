"""Pages that the press writes: the ledger's, marks on what is not whole, numbers of claims.

In a page of `book/`, `{measured}`key`` becomes the number found, linked to its check (`{number}`
bare), and `{picture}`name`` the path of the figure of that name out of the executed notebook.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page_cells import ALL_CHECKS, GLUED, quoted, staged
from page_checks import anchor, found, kind, sentence, typeset
from page_gpu import DeviceLedger

from geolib.files import write_changed
from geolib.press.build import Build, Page
from geolib.press.ledger import Ledger
from geolib.tables import html_table, human

COLUMNS = ("Claim", "Found", "Bound", "Verdict", "Data", "Device")
GATE = re.compile(r"\{(exercise|solution|proof)-(start|end)\}")
MEASURED = re.compile(r"\{(measured|number)\}`([^`]+)`")
PICTURE = re.compile(r"\{picture\}`([^`]+)`")
BLANK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 9"><text x="1" y="5" '
    'font-size="1">not drawn in this build</text></svg>'
)


def ledger_page(ledger: Ledger, gpu: DeviceLedger | None = None) -> str:
    """The ledger as HTML for `book/claims.md`: a table a chapter, linked to cells.

    With the ledger of a GPU run each row has what was measured there in a last column.
    One device for all rows is named above the tables instead of in each row.
    """
    devices = sorted({r["device"] for r in ledger.rows} - {""})
    about = f"{ledger.summary}. Profile: {ledger.profile}."
    heads: tuple[str, ...] = COLUMNS
    if len(devices) == 1:
        about += f" Device: {devices[0]}."
        heads = COLUMNS[:-1]
    parts = [f'<p>{html.escape(about)}</p><div class="ledger-filter"></div>']
    if gpu is not None:
        parts.append(f"<p>{html.escape(gpu.sentence)}</p>")
        heads = (*heads, f"On {gpu.about['device']}")
    chapters = list(dict.fromkeys(r["notebook"].split("/")[0] for r in ledger.rows))
    verdicts, counts = list(dict.fromkeys(r["verdict"] for r in ledger.rows)), []
    for chapter in chapters:
        rows = [r for r in ledger.rows if r["notebook"].startswith(chapter + "/")]
        rows.sort(key=lambda r: r["verdict"] == "holds")  # exceptions first
        title = chapter.replace("_", " ").capitalize()
        many = [str(sum(r["verdict"] == v for r in rows)) for v in verdicts]
        counts.append(("", [f'<a href="#ledger-{chapter}">{title}</a>', *many]))
        body = [_row(r, gpu, "Device" in heads) for r in rows]
        table = html_table(heads, body, "", "ledger sortable", f"Claims: {title}")
        parts.append(f'<h2 id="ledger-{chapter}">{title}</h2>{table}')
    return "\n".join([html_table(["Chapter", *verdicts], counts), *parts])


def _row(
    r: dict[str, Any], gpu: DeviceLedger | None, device: bool
) -> tuple[str, list[str]]:
    data = html.escape(", ".join(r.get("data", [])))
    notes = (r["paper"] and f"Paper: {r['paper']}", r["reason"])
    small = "".join(f"<br><small>{human(n)}</small>" for n in notes if n)
    say = human if r["text"] == r["key"] else sentence
    text = f'<a href="{_link(r)}">{say(r["text"])}</a>{small}'
    cells = [text, found(r), typeset(r["bound"]), _badge(r["verdict"]), data]
    cells += [html.escape(r["device"])] if device else []
    if gpu is not None:
        there = gpu.entries.get(r["key"])
        cells.append(f"{found(there)} {_badge(there['verdict'])}" if there else "")
    tags = f'data-verdict="{r["verdict"]}" data-page="{r["notebook"]}"'
    return f'{tags} data-data="{data}"', cells


def _link(r: dict[str, Any]) -> str:
    """Where a claim is stated; its page where it was not reached."""
    place = "" if r["measured"] is None else f"#{anchor(r['key'])}"
    return f"../chapters/{r['notebook']}.html{place}"


def _badge(verdict: str) -> str:
    if verdict == "holds":
        return '<span class="verdict-holds" role="img" aria-label="holds">✓</span>'
    return f'<span class="claim-verdict verdict-{kind(verdict)}">{verdict}</span>'


def banner(title: str, text: str) -> str:
    """A warning in MyST that shows any text as it is."""
    body = html.escape(text).replace("`", "&#96;").replace("\n", " ")
    return (
        "```{raw} html\n"
        '<div class="admonition danger press-mark">'
        f'<p class="admonition-title">{html.escape(title)}</p><p>{body}</p></div>\n```'
    )


def marked_page(build: Build, page: Page) -> str:
    """The notebook of a page that is not whole: what there is, under a banner."""
    import nbformat

    title = "This page is not whole"
    if page.path is None or not page.content["cells"]:
        mark = banner(title, page.about)
        text = f"# {page.notebook.title}\n\n{mark}"
        head = nbformat.v4.new_markdown_cell(text, id="mark")
        return nbformat.writes(nbformat.v4.new_notebook(cells=[head])) + "\n"
    nb = nbformat.reads(page.path.read_text("utf-8"), as_version=4)
    text = page.about
    if page.state == "failed":
        last = nb.metadata.get("geolib", {}).get("last")
        nb.cells = nb.cells[: last + 1] if isinstance(last, int) else nb.cells
        nb = staged(nb, f"{page.notebook.page}.md")
        text += " What follows on this page was not reached."
        _without_the_machine(nb, str(build.root))
    ends = [nb.cells.pop()] if nb.cells[-1]["id"] == ALL_CHECKS else []
    _close_gates(nb)
    nb.cells += ends
    _spare_the_glue(nb)
    _put_on_top(nb, banner(title, text))
    return nbformat.writes(nb) + "\n"


def _without_the_machine(nb: Any, root: str) -> None:
    """Errors without their traceback: its paths are the building machine's."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                line = f"{output.ename}: {output.evalue}".replace(root, ".")
                output.traceback, output.evalue = [line], line


def _close_gates(nb: Any) -> None:
    """End directives that were opened before the page broke off."""
    import nbformat

    texts = (c.source for c in nb.cells if c.cell_type == "markdown")
    opened: list[str] = []
    for m in (m for text in texts for m in GATE.finditer(text)):
        opened = [*opened, m[1]] if m[2] == "start" else opened[:-1]
    for k, name in enumerate(reversed(opened)):
        text = f"```{{{name}-end}}\n```"
        nb.cells.append(nbformat.v4.new_markdown_cell(text, id=f"gate-{k}"))


def _spare_the_glue(nb: Any) -> None:
    """Numbers that were never computed are said to be so where the prose quotes them."""
    about = [
        o.get("metadata", {}) for cell in nb.cells for o in cell.get("outputs", [])
    ]
    have = {data["scrapbook"]["name"] for data in about if "scrapbook" in data}

    def word(m: re.Match[str]) -> str:
        return m[0] if quoted(m) in have else "(not reached)"

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = GLUED.sub(word, cell.source)


def _put_on_top(nb: Any, text: str) -> None:
    """Insert after the page's heading."""
    import nbformat

    if not any(c.cell_type == "markdown" for c in nb.cells):
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(id="mark"))
    first = next(c for c in nb.cells if c.cell_type == "markdown")
    first.source = below_the_heading(first.source, text)


def below_the_heading(source: str, text: str) -> str:
    """Put text after the first heading of a page in MyST."""
    m = re.search(r"^# .+$", source, re.MULTILINE)
    at = m.end() if m else 0
    return f"{source[:at]}\n\n{text}\n{source[at:]}".lstrip("\n")


def filled(text: str, ledger: Ledger, pages: list[Page], folder: Path) -> str:
    """The text of a page of `book/` with its numbers; its pictures go into `folder`."""
    rows = {r["key"]: r for r in ledger.rows}
    text = MEASURED.sub(lambda m: _number(rows.get(m[2]), m[1] == "measured"), text)
    if not PICTURE.search(text):
        return text
    drawn = dict(item for page in pages for item in _drawn(page))

    def place(m: re.Match[str]) -> str:
        name = f"{m[1]}.{'png' if m[1] in drawn else 'svg'}"
        write_changed(folder / name, drawn.get(m[1], BLANK.encode()))
        return f"{folder.name}/{name}"

    return PICTURE.sub(place, text)


def _number(row: dict[str, Any] | None, linked: bool) -> str:
    if row is None or row["measured"] is None:
        return "(not reached)"
    if not linked:  # within a link
        return f"<b>{found(row)}</b>"
    return f'<a class="verdict-{kind(row["verdict"])}" href="{_link(row)}">{found(row)}</a>'


def _drawn(page: Page) -> Iterator[tuple[str, bytes]]:
    """The named figures of a page."""
    for cell in page.content.get("cells", []):
        name = cell.get("metadata", {}).get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []):
            if name and (data := output.get("data", {}).get("image/png")):
                yield name, base64.b64decode("".join(data))
