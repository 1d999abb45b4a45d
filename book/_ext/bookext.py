"""What the book adds to Sphinx: package pages, and repairs of the theme's pages."""

from __future__ import annotations

import html
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

sys.path.insert(0, str(Path(__file__).parent))
from formulas import break_the_formulas
from page_finish import finished, lay_out_the_twins, stamp
from page_head import (
    CHAPTERS,
    end_the_page,
    link_the_names,
    link_the_words,
    names_of,
    open_the_chapter,
    open_the_page,
    terms_of,
)
from page_weight import lighten, lighten_figures, lighter

MOVES = '<div class="moving"'
# Directives whose content is no prose; it may begin on the directive's own line.
VERBATIM = re.compile(r"\.\. (math|code|code-block|sourcecode|parsed-literal)::")


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def door(package: str) -> dict[str, list[str]]:
    """What a package exports, by the module that defines it, in the order of the door.

    Constants carry no module of their own and stand under the empty name.
    """
    top = importlib.import_module(package)
    names = getattr(top, "__all__", None) or [
        n for n, o in vars(top).items() if getattr(o, "__module__", None) == package
    ]
    found: dict[str, list[str]] = {}
    for name in names:
        thing = getattr(top, name)
        documented = inspect.isclass(thing) or callable(thing)
        where = str(getattr(thing, "__module__", "")) if documented else ""
        if not name.startswith("_"):
            found.setdefault(where if where.startswith(package) else "", []).append(
                name
            )
    return found


@cache
def public_names(source: str) -> dict[str, str]:
    """Where the names come in that have an entry on a page of the reference."""
    pages = (Path(source) / "book" / "api").glob("*.md")
    text = "\n".join(p.read_text() for p in pages)
    return names_of(
        {p: door(p) for p in re.findall(r"package-reference:: (\S+)", text)}
    )


def link_the_prose(app: Sphinx, doctree: nodes.document) -> None:
    """Names of functions lead to their entries, but on the reference's own pages.

    In the chapters the first use of a word of the glossary leads there.
    """
    if not app.env.docname.startswith("book/api/"):
        link_the_names(doctree, public_names(str(app.srcdir)))
    glossary = Path(app.srcdir) / "book" / "glossary.md"
    if app.env.docname.startswith(CHAPTERS) and glossary.exists():
        link_the_words(doctree, terms_of(glossary.read_text()))


def _directive(thing: Any) -> str:
    if not inspect.isclass(thing):
        return "autofunction" if inspect.isroutine(thing) else "autodata"
    return "autoexception" if issubclass(thing, BaseException) else "autoclass"


class PackageReference(SphinxDirective):
    """The door of a package: its public names under the modules that define them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        top = importlib.import_module(package)
        lines = [_first_line(top), ""]
        groups = door(package)
        if constants := groups.pop("", []):
            lines += [
                "Constants: " + ", ".join(f"``{n}``" for n in constants) + ".",
                "",
            ]
        for module, names in groups.items():
            if module != package:
                short = module.split(".", 1)[1].replace("._", ".")
                first = _first_line(importlib.import_module(module))
                lines += [short, "-" * len(short), "", first, ""]
            for name in names:
                directive = _directive(getattr(top, name))
                lines += [f".. {directive}:: {package}.{name}", ""]
        container = nodes.section()
        container.document = self.state.document
        nested_parse_with_titles(
            self.state, StringList(lines, "package-reference"), container
        )
        return container.children


class PackageSummary(SphinxDirective):
    """A table of the subpackages and their first sentences."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        top = importlib.import_module(self.arguments[0])
        rows = nodes.definition_list()
        for m in pkgutil.iter_modules(top.__path__):
            if m.name.startswith("_"):  # importing `__main__` would run the command
                continue
            name = f"{top.__name__}.{m.name}"
            shown: nodes.Element = nodes.literal(text=name)
            if (page := f"book/api/{m.name}") in self.env.found_docs:
                shown = addnodes.pending_xref(
                    "", shown, refdomain="std", reftype="doc", refexplicit=True,
                    reftarget=f"/{page}", refdoc=self.env.docname, refwarn=True)  # fmt: skip
            term = nodes.term("", "", shown)
            text = _first_line(importlib.import_module(name))
            body = nodes.definition("", nodes.paragraph(text=text))
            rows += nodes.definition_list_item("", term, body)
        return [nodes.paragraph(text=_first_line(top)), rows]


class MovingFigure(SphinxDirective):
    """A figure that moves, out of the executed notebook that made it.

    `.. moving-figure:: chapters/start/01-five-questions` takes the first one there;
    `:number: 2` the second.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"number": directives.positive_int}

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / f"{self.arguments[0]}.ipynb"
        self.env.note_dependency(str(path))
        cells = json.loads(path.read_text())["cells"] if path.exists() else []
        found = [
            text
            for cell in cells
            for output in cell.get("outputs", [])
            if MOVES in (text := "".join(output.get("data", {}).get("text/html", "")))
        ]
        number = self.options.get("number", 1)
        if len(found) < number:  # its page is marked: say nothing twice
            return [nodes.paragraph(text="This figure's page could not be made.")]
        return [nodes.raw("", found[number - 1], format="html")]


def where_it_moves(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """Only a page with a figure that moves carries the script and its style."""
    if MOVES in context.get("body", ""):
        app.add_js_file("figures.js", loading_method="defer")
        app.add_css_file("figures.css")


def once(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """Drop scripts that the theme adds twice: a second `const` is a page error."""
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        body = str(getattr(script, "attributes", {}).get("body") or script)
        if body not in seen:
            seen.add(body)
            kept.append(script)
    context["script_files"] = kept


def edit_the_text(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """'Edit this page' opens the text notebook, not the executed copy."""
    if page.startswith(CHAPTERS):
        context["page_source_suffix"] = ".md"


def describe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """What link previews and libraries read of a page: title, first sentence, book."""
    if tree is None:
        return
    title = re.sub("<[^>]+>", "", context.get("title", ""))
    first = next((p.astext() for p in tree.findall(nodes.paragraph)), title)
    sentence = re.split(r"(?<=[.?!:])\s", " ".join(first.split()))[0][:200]
    tags = {
        "property": {
            "og:title": title,
            "og:description": sentence,
            "og:site_name": app.config.html_title,
            "og:type": "article",
        },
        "name": {
            "description": sentence,
            "citation_title": title,
            "citation_inbook_title": app.config.html_title,
            "citation_author": app.config.author,
            "citation_publication_date": app.config.copyright,
        },
    }
    for kind, values in tags.items():
        for name, value in values.items():
            content = html.escape(str(value), quote=True)
            context["metatags"] += f'\n<meta {kind}="{name}" content="{content}" />'


def footer(app: Sphinx, config: Any) -> None:
    """Version, licence and citation on every page; `stamp` adds the commit and its date."""
    parts = [
        f"Version {metadata.version('geometry-of-learning')}",
        '<span class="stamp"></span>code under the MIT licence, text under CC BY 4.0',
    ]
    config.html_theme_options["extra_footer"] = f"<p>{' · '.join(parts)}</p>"


def repository(app: Sphinx, config: Any) -> None:
    """On a forge's runner the repository's address is the runner's own."""
    name = os.environ.get("GITHUB_REPOSITORY")
    if name:
        config.html_theme_options["repository_url"] = f"https://github.com/{name}"


def spare_the_sidebar(app: Sphinx, config: Any) -> None:
    """Let the sidebar ask for titles of pages only.

    The table of contents has two levels. By default the theme copies the headings of all
    pages for every page, and throws them away: half of the time of writing.
    """
    config.html_theme_options["max_navbar_depth"] = 2


def source_links(app: Sphinx, config: Any) -> None:
    """Let `[source]` open the forge: pages of highlighted code cost more than the book."""
    address = config.html_theme_options.get("repository_url", "").rstrip("/")
    branch = config.html_theme_options.get("repository_branch", "main")

    def resolve(domain: str, info: dict[str, str]) -> str | None:
        place = source_place(info["module"], info["fullname"])
        return f"{address}/blob/{branch}/{place}" if address and place else None

    config.linkcode_resolve = resolve


def source_place(module: str, name: str) -> str | None:
    """The file of ours, and the lines there, that define an object; None without them.

    Examples:
        >>> source_place("geolib", "no_such_name")
    """
    try:
        thing: Any = importlib.import_module(module)
        top = Path(importlib.import_module(module.split(".")[0]).__file__ or "").parent
        for part in name.split("."):
            thing = getattr(thing, part)
        thing = inspect.unwrap(getattr(thing, "fget", None) or thing)
        file = Path(inspect.getsourcefile(thing) or "").relative_to(top.parent)
        lines, first = inspect.getsourcelines(thing)
    except (ImportError, AttributeError, TypeError, OSError, ValueError):
        return None  # a constant, a field, or another library's object
    return f"{file.as_posix()}#L{first}-L{first + len(lines) - 1}"


def _escaped(text: str) -> str:
    """Bars, lone stars and closing underscores made literal; *emphasis* stays."""
    parts = re.split(r"(\*\*[^*\s][^*]*\*\*|(?<!\w)\*[^*\s]+\*(?!\w))", text)
    parts[::2] = [p.replace("*", r"\*") for p in parts[::2]]
    text = re.sub(r"(?<!\\)\|", r"\\|", "".join(parts))
    return re.sub(r"(?<=\w)_(?!\w)", r"\_", text)


def _prose(lines: list[str]) -> Iterator[list[int]]:
    """The numbers of the lines of each paragraph that is neither code nor a formula."""
    paragraph: list[int] = []
    inside: int | None = None  # indentation of the literal block that we are in
    example = False
    for i, line in enumerate([*lines, ""]):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text and inside is not None and indent <= inside:
            inside = None
        example = bool(text) and (example or text.startswith(">>>"))
        literal = bool(VERBATIM.match(text))
        if inside is None and text and not example and not literal:
            paragraph.append(i)
            literal = text.endswith("::") and not text.startswith(".. ")
        else:
            yield paragraph
            paragraph = []
        if literal and inside is None:
            inside = indent
    yield paragraph


def spare_the_bars(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Let docstrings write |x| and a * b: escape them outside code and maths."""
    lines[:] = "\n".join(lines).split("\n")  # napoleon puts an error's text into one
    for numbers in list(filter(None, _prose(lines))):
        # A role may go on in the next line: a paragraph is read as one text.
        text = "\n".join(lines[i] for i in numbers)
        parts = re.split(r"(``.*?``|`[^`]*`)", text, flags=re.S)
        parts[::2] = [_escaped(part) for part in parts[::2]]
        for i, line in zip(numbers, "".join(parts).split("\n"), strict=True):
            lines[i] = line


def finish_pages(app: Sphinx, error: Exception | None) -> None:
    """Repairs of the theme's own markup in all written pages, and lighter styles."""
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    twins = lay_out_the_twins(Path(app.srcdir), site)
    mark = stamp(Path(os.environ.get("GEOLIB_ROOT", app.srcdir)))
    pages = []
    for page in site.rglob("*.html"):
        text = page.read_text()
        up = "../" * (len(page.relative_to(site).parts) - 1)
        better = finished(lighter(name_the_nameless(text)), up, mark, twins)
        pages.append(better)
        if better != text:
            page.write_text(better)
    lighten(site, pages)
    lighten_figures(site)


def name_the_nameless(text: str) -> str:
    """Accessibility of the theme's markup: toggles get names, lists no false role."""
    text = text.replace(
        '<summary><span class="toctree-toggle"',
        '<summary aria-label="Show the pages of this section">'
        '<span class="toctree-toggle"',
    ).replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    text = text.replace(' role="doc-biblioentry"', "")  # a role that is deprecated
    # A table that scrolls on a phone must be reachable from the keyboard.
    return text.replace(
        '<table class="table">', '<table class="table" tabindex="0">'
    ).replace("<table><caption>", '<table tabindex="0"><caption>')


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("package-reference", PackageReference)
    app.add_directive("package-summary", PackageSummary)
    app.add_directive("moving-figure", MovingFigure)
    app.connect("config-inited", repository)
    app.connect("config-inited", footer, priority=900)
    app.connect("config-inited", spare_the_sidebar)
    app.connect("config-inited", source_links, priority=900)
    app.connect("autodoc-process-docstring", spare_the_bars, priority=900)
    app.connect("source-read", open_the_chapter)
    app.connect("source-read", end_the_page)
    app.connect("doctree-read", open_the_page)
    app.connect("doctree-read", link_the_prose)
    app.connect("doctree-read", break_the_formulas)
    app.connect("build-finished", finish_pages)
    app.connect("html-page-context", edit_the_text, priority=100)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", where_it_moves, priority=200)
    app.connect("html-page-context", once, priority=999)
    return {"parallel_read_safe": True, "version": "1"}
