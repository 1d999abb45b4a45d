"""A chapter's text notebook: where it lies, what it says of itself, its pair."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from geolib.files import digest, write_whole

CHECKED = "nbval-check-output"
ESCAPE = re.compile(r"\s*([\w, ]+=\s*)?[%!]|.*\?\s*$")  # what only IPython reads
FACTS = b"2"  # raise when `Facts` changes


class PressError(Exception):
    """Something that the author or the user can mend; the message says what."""

    code = 1  # with which a command ends


class SettingsError(PressError):
    """A file of settings (`_config.yml`, `_toc.yml`, `profiles.yml`) cannot be used."""

    code = 2


@dataclass(frozen=True)
class Facts:
    """What a notebook's text says of itself, kept so that it is parsed only once.

    Attributes:
        parameters: names assigned in the cells tagged `parameters`.
        parameter_cells: how many cells have that tag (one is right).
        claims: keys of every `claim("key", ...)` that the text spells out.
        uses_device: whether a cell reads the parameter `device`.
        fault: why it cannot be run at all; empty where it can.
        cell: the number of the code cell at fault, where it is one cell's.
        line: that cell's line.
    """

    parameters: list[str] = field(default_factory=list)
    parameter_cells: int = 1
    claims: list[str] = field(default_factory=list)
    uses_device: bool = False
    fault: str = ""
    cell: int | None = None
    line: str = ""


@dataclass(frozen=True)
class Notebook:
    """One text notebook of the book, named `chapter/NN-topic`."""

    root: Path
    name: str

    @property
    def source(self) -> Path:
        return self.root / "chapters" / f"{self.name}.md"

    @property
    def pair(self) -> Path:
        return self.source.with_suffix(".ipynb")

    @property
    def chapter(self) -> str:
        return self.name.split("/")[0]

    @property
    def page(self) -> str:
        """The document name under which Sphinx knows it."""
        return f"chapters/{self.name}"

    def text(self) -> str:
        """Its text; bytes that are no UTF-8 are shown as such."""
        return self.source.read_bytes().decode("utf-8", "backslashreplace")

    def read(self, text: str | None = None) -> Any:
        """Parse the text into a notebook whose cell ids depend on nothing but order."""
        nb = copy.deepcopy(_parsed(self.text() if text is None else text))
        nb.metadata = _lean_metadata(nb.metadata)
        for i, cell in enumerate(nb.cells):
            cell["id"] = f"cell-{i:03d}"
        nb.nbformat, nb.nbformat_minor = 4, 5
        return nb

    @property
    def facts(self) -> Facts:
        """What the text says of itself, from the parse that is kept below `_build`."""
        text = self.text()
        kept = self.root / "_build" / "facts" / f"{self.name}.json"
        return _facts(text, kept)

    def declared(self) -> set[str]:
        """Names assigned in the cell tagged `parameters`.

        Raises:
            PressError: there is not exactly one such cell.
        """
        facts = self.facts
        if facts.parameter_cells != 1 and not facts.fault:
            raise PressError(
                f"{self.source}: expected one cell tagged 'parameters', "
                f"got {facts.parameter_cells}"
            )
        return set(facts.parameters)

    def device(self, asked: str) -> str:
        """Where it computes: `asked` if a cell uses the parameter `device`, else `cpu`."""
        return asked if self.facts.uses_device else "cpu"

    @property
    def title(self) -> str:
        """The first heading of the text, else the name."""
        found = re.search(r"^# +(.+?) *$", self.text(), re.MULTILINE)
        return found[1] if found else self.name


def tags(cell: Any) -> list[str]:
    """The tags of a cell, in a list of one's own."""
    return list(cell.metadata.get("tags", []))


def _lean_metadata(metadata: Any) -> Any:
    from nbformat import from_dict

    given = metadata.get("kernelspec")
    spec = {"display_name": "Python 3", "name": "python3"}
    spec |= given if isinstance(given, dict) else {}
    return from_dict({"kernelspec": {**spec, "language": "python"}})


# The text is the key of both caches, so what was changed is parsed anew.
@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    import jupytext

    return jupytext.reads(text, fmt="md:myst")


@lru_cache(maxsize=256)
def _facts(text: str, kept: Path) -> Facts:
    key = digest(FACTS, text.encode())
    try:
        stored = json.loads(kept.read_text())
        if stored.pop("key") == key:
            return Facts(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    facts = _find_facts(text)
    try:
        write_whole(kept, json.dumps({"key": key} | asdict(facts)))
    except OSError:
        pass  # whoever must write will say so
    return facts


def _find_facts(text: str) -> Facts:
    try:
        cells = [c for c in _parsed(text).cells if c.cell_type == "code"]
    except Exception as problem:  # jupytext and YAML raise errors of many kinds
        first = str(problem).splitlines()[0] if str(problem) else ""
        return Facts(fault=f"no MyST notebook ({type(problem).__name__}: {first})")
    trees = []
    for number, cell in enumerate(cells, 1):
        try:
            trees.append((cell, ast.parse(cell.source)))
        except (SyntaxError, ValueError) as problem:
            return _fault(number, cell.source, problem)
    nodes = [node for _, tree in trees for node in ast.walk(tree)]
    parameters = [tree for cell, tree in trees if "parameters" in tags(cell)]
    return Facts(
        sorted({n for tree in parameters for n in _assigned(tree)}),
        len(parameters),
        sorted(_first_arguments(nodes, "claim")),
        any(
            isinstance(n, ast.Name) and n.id == "device" and isinstance(n.ctx, ast.Load)
            for n in nodes
        ),
    )


def _fault(number: int, source: str, problem: Exception) -> Facts:
    line = getattr(problem, "lineno", None) or 1
    text = ([*source.splitlines(), ""])[min(line, len(source.splitlines()) or 1) - 1]
    if ESCAPE.match(text):
        why = "magics and shell escapes are not Python, and not part of a page"
    else:
        why = f"{type(problem).__name__}: {getattr(problem, 'msg', problem)}"
    return Facts(fault=f"line {line}: {why}", cell=number, line=text.strip())


def _assigned(tree: ast.Module) -> Iterator[str]:
    """Names that the statements at the top of a cell assign, unpacked ones too."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        else:
            continue
        for node in (n for target in targets for n in ast.walk(target)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _first_arguments(nodes: list[ast.AST], function: str) -> set[str]:
    """The first arguments, where spelled out, of all calls of a function."""
    return {
        str(node.args[0].value)
        for node in nodes
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == function
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
