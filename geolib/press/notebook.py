"""The text notebooks of a checkout: where they lie, what they say, what sizes they get."""

import ast
import copy
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from geolib.files import did_you_mean, digest, find_checkout, need, write_whole

CHECKED = "nbval-check-output"
ESCAPE = re.compile(r"\s*([\w, ]+=\s*)?[%!]|.*\?\s*$")  # what only IPython reads
FACTS = b"2"  # raise when `Facts` changes
PROFILES = ("small", "book", "full")
PLAIN = (bool, int, float, str, type(None))


class PressError(Exception):
    """Something that the author or the user can mend; the message says what."""

    code = 1  # with which a command ends


class SettingsError(PressError):
    """A file of settings (`_config.yml`, `_toc.yml`, `profiles.yml`) cannot be used."""

    code = 2


@dataclass(frozen=True)
class Facts:
    """What a notebook's text says of itself, kept so that it is parsed only once."""

    parameters: list[str] = field(default_factory=list)  # assigned in cells of that tag
    parameter_cells: int = 1  # how many have it; one is right
    claims: list[str] = field(default_factory=list)  # keys that the text spells out
    uses_device: bool = False  # whether a cell reads the parameter `device`
    fault: str = ""  # why it cannot be run at all; empty where it can
    cell: int | None = None  # number of the code cell at fault, where it is one cell's
    line: str = ""  # that cell's


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
        facts, count = self.facts, self.facts.parameter_cells
        if count != 1 and not facts.fault:
            wanted = "expected one cell tagged 'parameters'"
            raise PressError(f"{self.source}: {wanted}, got {count}")
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
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        stored = json.loads(kept.read_text())
        if stored.pop("key") == key:
            return Facts(**stored)
    facts = _find_facts(text)
    with suppress(OSError):  # whoever must write will say so
        write_whole(kept, json.dumps({"key": key} | asdict(facts)))
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
        sorted(set().union(*map(_assigned, parameters))),
        len(parameters),
        sorted(_first_arguments(nodes, "claim")),
        any("device" in names_read(tree) for _, tree in trees),
    )


def names_read(tree: ast.AST) -> set[str]:
    """Every name whose value a piece of code reads."""
    loads = (n for n in ast.walk(tree) if isinstance(n, ast.Name))
    return {n.id for n in loads if isinstance(n.ctx, ast.Load)}


def _fault(number: int, source: str, problem: Exception) -> Facts:
    line = getattr(problem, "lineno", None) or 1
    text = ([*source.splitlines(), ""])[min(line, len(source.splitlines()) or 1) - 1]
    if ESCAPE.match(text):
        why = "magics and shell escapes are not Python, and not part of a page"
    else:
        why = f"{type(problem).__name__}: {getattr(problem, 'msg', problem)}"
    return Facts(fault=f"line {line}: {why}", cell=number, line=text.strip())


def _assigned(tree: ast.Module) -> set[str]:
    """Names that the statements at the top of a cell assign, unpacked ones too."""
    sets = (s for s in tree.body if isinstance(s, ast.Assign | ast.AnnAssign))
    targets = [t for s in sets if s.value for t in getattr(s, "targets", [s])]
    names = (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
    return {n.id for n in names if isinstance(n.ctx, ast.Store)}


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


def find_root() -> Path:
    """The folder that holds `_toc.yml`, from the current one upwards.

    Raises:
        PressError: there is none.
        MissingExtra: there is one, and what reads its texts is not installed.
    """
    here = Path.cwd()
    if root := find_checkout(here):
        need("jupytext", "book")
        return root
    why = f"neither {here} nor a parent holds _toc.yml and chapters/"
    what = "this command needs a checkout of the book"
    raise PressError(f"no book here: {what}, and {why}")


def discover(root: Path, wanted: list[str] | None = None) -> list[Notebook]:
    """All notebooks, or those of the wanted chapters or single names.

    Raises:
        PressError: one of `wanted` is neither.
    """
    files = sorted((root / "chapters").glob("*/[0-9][0-9]-*.md"))
    found = [Notebook(root, f"{p.parent.name}/{p.stem}") for p in files]
    if not wanted:
        return found
    pieces = [w.strip("/").removeprefix("chapters/") for w in wanted]
    wanted = [w.removesuffix(".md") for w in pieces]
    chapters = {n.chapter for n in found}
    known = chapters | {n.name for n in found}
    for w in (w for w in wanted if w not in known):
        there = ", ".join(sorted(chapters)) or "none"
        why = f"no chapter or notebook {w!r}; there are {there}{did_you_mean(w, known)}"
        raise PressError(f"chapter: {why}")
    return [n for n in found if n.name in wanted or n.chapter in wanted]


def parameters(notebook: Notebook, profile: str, device: str) -> dict[str, Any]:
    """What must be injected for this profile and device (of the notebook's).

    Raises:
        PressError: a parameter that the notebook never declares.
    """
    values = _profiles(notebook.root).get(notebook.name, {}).get(profile, {})
    if notebook.facts.fault:  # nothing of it can be known, and it will not be run
        return values
    declared = notebook.declared()
    if unknown := sorted(set(values) - declared):
        where = f"chapters/profiles.yml: {notebook.name}, profile {profile}"
        names = ", ".join(sorted(declared)) or "(nothing)"
        what = f"undeclared parameter {', '.join(unknown)}"
        raise PressError(f"{where}: {what}; the notebook declares {names}")
    if device != "cpu":
        values["device"] = device
    return values


def read_table(root: Path, name: str) -> dict[str, Any]:
    """A YAML file of the checkout that must hold a table.

    Raises:
        SettingsError: it is absent, no text, no YAML, or holds something else.
    """
    try:
        return copy.deepcopy(_table(name, (root / name).read_text("utf-8")))
    except OSError as problem:
        raise SettingsError(f"{name}: {problem.strerror} ({root / name})") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: expected UTF-8 text") from None


@lru_cache(maxsize=8)
def _table(name: str, text: str) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        table = yaml.load(text, loader) if text.strip() else {}
    except (yaml.YAMLError, ValueError) as problem:  # 2026-13-45 is a ValueError
        why = " ".join(str(problem).split())
        raise SettingsError(f"{name}: this is not YAML ({why})") from None
    return _as_table(name, table or {})


def _as_table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        got = type(value).__name__
        raise SettingsError(f"{where}: expected a table with names, got {got}")
    return value


def _profiles(root: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The sizes in `chapters/profiles.yml`, by notebook and profile."""
    file = "chapters/profiles.yml"
    table = read_table(root, file)
    names = {n.name for n in discover(root)}
    for name, profiles in table.items():
        if name not in names:
            raise SettingsError(f"{file}: no notebook {name!r}")
        table[name] = _as_table(f"{file}: {name}", profiles or {})
        if extra := sorted(set(table[name]) - {"book", "full"}):
            wanted = "'book' and 'full' ('small' is the notebook's own cell)"
            raise SettingsError(f"{file}: {name}: expected {wanted}, got {extra}")
        for profile, values in table[name].items():
            where = f"{file}: {name}, profile {profile}"
            table[name][profile] = _as_table(where, values or {})
            for parameter, value in table[name][profile].items():
                if not _plain(value):
                    wanted = "expected numbers, texts, lists or tables of them"
                    got = f"{wanted}, got {type(value).__name__}"
                    raise SettingsError(f"{where}: {parameter}: {got}")
    return table


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, PLAIN)
