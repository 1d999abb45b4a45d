"""What the book adds to Sphinx: package pages, and repairs of the theme's pages."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

CHAPTERS = "chapters/"
COMMANDS = ("cli", "worker")  # documented by --help


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _modules(package: str) -> list[Any]:
    """The package's public modules; those of a package with none: itself."""
    top = importlib.import_module(package)
    found = [
        importlib.import_module(f"{package}.{m.name}")
        for m in pkgutil.iter_modules(getattr(top, "__path__", []))
        if not m.name.startswith("_") and m.name not in COMMANDS
    ]
    return found or [top]


class PackageReference(SphinxDirective):
    """One section a module: its docstring and its public members."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = [_first_line(importlib.import_module(self.arguments[0])), ""]
        for module in _modules(self.arguments[0]):
            name = module.__name__
            short = name.split(".", 1)[1]
            lines += [short, "-" * len(short), "", f".. automodule:: {name}", ""]
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
            name = f"{top.__name__}.{m.name}"
            term = nodes.term("", "", nodes.literal(text=name))
            text = _first_line(importlib.import_module(name))
            body = nodes.definition("", nodes.paragraph(text=text))
            rows += nodes.definition_list_item("", term, body)
        return [nodes.paragraph(text=_first_line(top)), rows]


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


def repository(app: Sphinx, config: Any) -> None:
    """On a forge's runner the repository's address is the runner's own."""
    name = os.environ.get("GITHUB_REPOSITORY")
    if name:
        config.html_theme_options["repository_url"] = f"https://github.com/{name}"


def _escaped(text: str) -> str:
    """Bars, lone stars and closing underscores made literal; *emphasis* stays."""
    parts = re.split(r"(\*\*[^*\s][^*]*\*\*|(?<!\w)\*[^*\s]+\*(?!\w))", text)
    parts[::2] = [p.replace("*", r"\*") for p in parts[::2]]
    text = "".join(parts).replace("|", r"\|")
    return re.sub(r"(?<=\w)_(?!\w)", r"\_", text)


def spare_the_bars(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Let docstrings write |x| and a * b: escape them outside code and maths."""
    block: int | None = None  # indentation of the directive whose block we are in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None and not line.lstrip().startswith((">>>", "...")):
            spans = re.split(r"(``.*?``|`[^`]*`)", line)
            spans[::2] = [_escaped(t) for t in spans[::2]]
            lines[i] = "".join(spans)
        if block is None and line.rstrip().endswith("::"):
            block = indent


def name_the_nameless(app: Sphinx, error: Exception | None) -> None:
    """Accessibility of the theme's own markup: toggles get names, lists no false role."""
    if error or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text()
        better = text.replace(
            '<summary><span class="toctree-toggle"',
            '<summary aria-label="Show the pages of this section">'
            '<span class="toctree-toggle"',
        ).replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
        # A table that scrolls on a phone must be reachable from the keyboard.
        better = better.replace(
            '<table class="table">', '<table class="table" tabindex="0">'
        ).replace("<table><caption>", '<table tabindex="0"><caption>')
        if better != text:
            page.write_text(better)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("package-reference", PackageReference)
    app.add_directive("package-summary", PackageSummary)
    app.connect("config-inited", repository)
    app.connect("autodoc-process-docstring", spare_the_bars, priority=900)
    app.connect("build-finished", name_the_nameless)
    app.connect("html-page-context", edit_the_text, priority=100)
    app.connect("html-page-context", once, priority=999)
    return {"parallel_read_safe": True, "version": "1"}
