"""What stands at the head of a chapter's page; links to where names and words are explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

CHAPTERS = "chapters/"
THREAD = Path(__file__).with_name("thread.yml")
ASKED = ("Learn:", "Need:", "Do:")
A_MINUTE = 200  # words, read with the formulas between them
CALLED = re.compile(r"([A-Za-z]\w*(?:\.\w+)*)(?:\(.*\))?")
WITH_ITS_OWN = (nodes.title, nodes.reference, addnodes.pending_xref)
NOT_PROSE = (*WITH_ITS_OWN, nodes.literal, nodes.math, nodes.caption, nodes.raw)
FIRST_OF_A_CHAPTER = re.compile(r"chapters/(\w+)/01-")
FOUND = "What we found"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.M | re.S)
TERM = re.compile(r"^(\w[^\n]*)\n  \S", re.M)
PLURAL = {"stratum": "strata"}


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
        'about 16 minutes to read; the code ran in 23 s on one core, with 0.8 GB of memory.'
    """
    read = f"about {max(1, round(words / A_MINUTE))} minutes to read"
    if not cost:
        return f"{read}."
    seconds, memory = float(f"{cost['seconds']:.2g}"), cost["memory"] / 1000
    run = f"ran in {seconds:g} s on one core, with {memory:.1f} GB of memory"
    return f"{read}; the code {run}."


def open_the_chapter(app: Sphinx, name: str, source: list[str]) -> None:
    """The first page of a chapter shows what the page of all findings says of it."""
    m = FIRST_OF_A_CHAPTER.match(name)
    findings = Path(app.srcdir) / "book" / "found.md"
    if not m or not findings.exists():
        return
    app.env.note_dependency(str(findings))
    title = m[1].replace("_", " ").capitalize()
    text = dict(SECTION.findall(findings.read_text())).get(title)
    book = json.loads(source[0])
    first = next((c for c in book["cells"] if c["cell_type"] == "markdown"), None)
    if text and first:
        # The page lies one folder deeper than the one that the text comes from.
        text = text.replace('href="../', 'href="../../')
        text = text.replace("} _figures/", "} ../../book/_figures/")
        head, mark, rest = "".join(first["source"]).partition("\n## ")
        first["source"] = f"{head}\n\n## {FOUND}\n{text}\n{mark}{rest}"
        source[0] = json.dumps(book)


def end_the_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A page of a chapter says at its end where the thread goes."""
    text = threads().get(name.removeprefix(CHAPTERS))
    if not text:
        return
    app.env.note_dependency(str(THREAD))
    book = json.loads(source[0])
    last = book["cells"][-1] if book["cells"] else {}
    cell = {"cell_type": "markdown", "id": "thread", "metadata": {}}
    cell["source"] = f"## Where the thread goes\n\n{text}"
    book["cells"].insert(len(book["cells"]) - (last.get("id") == "all-checks"), cell)
    source[0] = json.dumps(book)


def threads() -> dict[str, str]:
    """By page where its thread goes, in MyST."""
    return yaml.safe_load(THREAD.read_text())


def terms_of(glossary: str) -> dict[str, str]:
    """Each term of a glossary in MyST, by the words with which a text may use it.

    Examples:
        >>> terms_of("stratum\\n  A piece.\\n\\njet\\n  A value.")
        {'stratum': 'stratum', 'strata': 'stratum', 'jet': 'jet', 'jets': 'jet'}
    """
    found = {}
    for term in TERM.findall(glossary):
        found |= {term: term, PLURAL.get(term, f"{term}s"): term}
    return found


def link_the_words(doctree: nodes.document, terms: dict[str, str]) -> None:
    """Let the first use of each term in the prose of a page lead to the glossary.

    Args:
        doctree: the page, which is changed.
        terms: by word the term that it is a form of.
    """
    if not terms:
        return
    words = "|".join(sorted(map(re.escape, terms), key=len, reverse=True))
    word, left = re.compile(rf"(?<![\w-])({words})(?![\w-])"), {*terms.values()}
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for text in list(paragraph.findall(nodes.Text)):
            if not _in_prose(text, paragraph):
                continue
            pieces: list[nodes.Node] = []
            end = 0
            for m in word.finditer(text):
                if (term := terms[m[1]]) in left:
                    left.discard(term)
                    pieces += [
                        nodes.Text(text[end : m.start()]),
                        _to_the_glossary(m[1], term),
                    ]
                    end = m.end()
            if pieces:
                text.parent.replace(text, [*pieces, nodes.Text(text[end:])])


def _in_prose(text: nodes.Node, paragraph: nodes.Element) -> bool:
    place = text.parent
    while place is not paragraph:
        if isinstance(place, NOT_PROSE):
            return False
        place = place.parent
    return not isinstance(paragraph.parent, NOT_PROSE)


def _to_the_glossary(word: str, term: str) -> nodes.Element:
    link = addnodes.pending_xref(
        "",
        refdomain="std",
        reftype="term",
        reftarget=term,
        refexplicit=True,
        refwarn=True,
    )
    link += nodes.inline("", word, classes=["term"])
    return link


def link_the_names(doctree: nodes.document, places: dict[str, str]) -> None:
    """Let each public name that stands as code in prose lead to its entry.

    Args:
        doctree: the page, which is changed.
        places: by name where it comes in, `geolib.room.name`.
    """
    for code in list(doctree.findall(nodes.literal)):
        m = CALLED.fullmatch(code.astext())
        words = m[1].split(".")[::-1] if m else []  # `Setup.rho` leads to `Setup`
        place = next((places[w] for w in words if w in places), None)
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
    rooms = {package.rpartition(".")[2] for package in doors}  # `geodesics` is one too
    clear = (item for item in found.items() if len(item[1]) == 1)
    return {name: places.pop() for name, places in clear if name not in rooms}
