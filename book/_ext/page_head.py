"""What stands at the head of a chapter's page, and links from its prose to the API."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

CHAPTERS = "chapters/"
ASKED = ("Learn:", "Need:", "Do:")
A_MINUTE = 200  # words, read with the formulas between them
CALLED = re.compile(r"(?:geolib\.[\w.]+\.|\w+\.)?([A-Za-z]\w+)(?:\.\w+)?(?:\(.*\))?")
WITH_ITS_OWN = (nodes.title, nodes.reference, addnodes.pending_xref)


def open_the_page(app: Sphinx, doctree: nodes.document) -> None:
    """Learn, need and do in a line each, and what the page takes: measured, not typed."""
    name = app.env.docname
    head = next(
        (p for p in doctree.findall(nodes.paragraph) if p.astext().startswith(ASKED)),
        None,
    )
    if head is None or not name.startswith(CHAPTERS):
        return
    box, line = nodes.container(classes=["page-head"]), nodes.paragraph()
    for child in head.children:
        if child.astext() in ASKED:
            line = nodes.paragraph()
            box += line
            line += nodes.strong(text=child.astext()[:-1])
        else:
            line += child
    words = sum(len(p.astext().split()) for p in doctree.findall(nodes.paragraph))
    cost = json.loads(Path(app.env.doc2path(name)).read_text())["metadata"]
    text = time_and_memory(words, cost.get("geolib", {}).get("cost"))
    box += nodes.paragraph("", "", nodes.strong(text="Time"), nodes.Text(f" {text}"))
    head.parent.replace(head, box)


def time_and_memory(words: int, cost: dict[str, float] | None) -> str:
    """One sentence on how long a page is read and run, to a rough figure.

    Examples:
        >>> time_and_memory(3100, {"seconds": 23.4, "memory": 812})
        '16 minutes to read; the code ran in 23 s on one core, with 0.8 GB of memory.'
    """
    read = f"{max(1, round(words / A_MINUTE))} minutes to read"
    if not cost:
        return f"{read}."
    seconds, memory = float(f"{cost['seconds']:.2g}"), cost["memory"] / 1000
    run = f"ran in {seconds:g} s on one core, with {memory:.1f} GB of memory"
    return f"{read}; the code {run}."


def link_the_names(doctree: nodes.document, places: dict[str, str]) -> None:
    """Let each public name that stands as code in prose lead to its entry.

    Args:
        doctree: the page, which is changed.
        places: by name where it comes in, `geolib.room.name`.
    """
    for code in list(doctree.findall(nodes.literal)):
        m = CALLED.fullmatch(code.astext())
        place = places.get(m[1]) if m else None
        if place is None or isinstance(code.parent, WITH_ITS_OWN):
            continue
        link = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=place, refexplicit=True
        )
        code.parent.replace(code, link)
        link += code


def names_of(doors: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    """Where each name comes in, of those that only one door has.

    Args:
        doors: by package what it exports, by the module that defines it.
    """
    found: dict[str, set[str]] = {}
    for package, groups in doors.items():
        for name in (n for names in groups.values() for n in names):
            found.setdefault(name, set()).add(f"{package}.{name}")
    return {name: places.pop() for name, places in found.items() if len(places) == 1}
