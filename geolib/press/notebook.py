"""A chapter's text notebook: where it lies, its parameters, its identity, its pair."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

PROFILES = ("small", "book", "full")
CHECKED = "nbval-check-output"


class PressError(Exception):
    """Something the author or the user can mend; the message says what."""


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

    def read(self) -> Any:
        """Parse the text into a notebook whose cell ids depend on nothing but order."""
        nb = copy.deepcopy(_parsed(self.source.read_text("utf-8")))
        nb.metadata = _lean_metadata(nb.metadata)
        for i, cell in enumerate(nb.cells):
            cell["id"] = f"cell-{i:03d}"
        nb.nbformat, nb.nbformat_minor = 4, 5
        return nb

    def declared(self) -> set[str]:
        """Names assigned in the cell tagged `parameters`; exactly one must exist."""
        cells = [c for c in self.read().cells if "parameters" in tags(c)]
        if len(cells) != 1:
            raise PressError(
                f"{self.source}: expected one cell tagged 'parameters', "
                f"got {len(cells)}"
            )
        targets = [
            t
            for node in ast.parse(cells[0].source).body
            if isinstance(node, ast.Assign)
            for t in node.targets
        ]
        return {t.id for t in targets if isinstance(t, ast.Name)}

    def expected_claims(self) -> set[str]:
        """Keys of every `claim("key", ...)` that the text spells out literally."""
        return self._named_in_calls("claim")

    def sweeps(self) -> set[str]:
        """Names of the sweeps whose stored results it reads: `sweep_rows("name")`."""
        return self._named_in_calls("sweep_rows")

    def device(self, asked: str) -> str:
        """Where it computes: `asked` if a cell uses the parameter `device`, else `cpu`."""
        uses = any(
            isinstance(node, ast.Name)
            and node.id == "device"
            and isinstance(node.ctx, ast.Load)
            for cell in self.read().cells
            if cell.cell_type == "code"
            for node in ast.walk(ast.parse(cell.source))
        )
        return asked if uses else "cpu"

    def _named_in_calls(self, function: str) -> set[str]:
        """The first arguments, where spelled out, of all calls of a function."""
        names = set()
        for cell in self.read().cells:
            if cell.cell_type != "code":
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", getattr(node.func, "attr", ""))
                    == function
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                ):
                    names.add(str(node.args[0].value))
        return names


def tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _lean_metadata(metadata: Any) -> Any:
    from nbformat import from_dict

    spec = metadata.get("kernelspec", {"display_name": "Python 3", "name": "python3"})
    return from_dict({"kernelspec": {**spec, "language": "python"}})


def find_root(start: Path | None = None) -> Path:
    """The folder that holds `_toc.yml`, from `start` upwards."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "chapters").is_dir():
            return folder
    raise PressError(f"no book here: neither {here} nor a parent holds _toc.yml")


def discover(root: Path, wanted: list[str] | None = None) -> list[Notebook]:
    """All notebooks, or those of the wanted chapters or single names."""
    files = sorted((root / "chapters").glob("*/[0-9][0-9]-*.md"))
    found = [Notebook(root, f"{p.parent.name}/{p.stem}") for p in files]
    if not wanted:
        return found
    wanted = [
        w.strip("/").removeprefix("chapters/").removesuffix(".md") for w in wanted
    ]
    known = {n.chapter for n in found} | {n.name for n in found}
    for w in wanted:
        if w not in known:
            raise PressError(
                f"chapter: no chapter or notebook {w!r}; there are "
                f"{', '.join(sorted({n.chapter for n in found})) or 'none'}"
            )
    return [n for n in found if n.name in wanted or n.chapter in wanted]


def parameters(notebook: Notebook, profile: str, device: str) -> dict[str, Any]:
    """What papermill must inject for this profile and device (of the notebook's).

    Raises:
        PressError: an unknown profile, or a parameter that the notebook never declares.
    """
    if profile not in PROFILES:
        raise PressError(f"profile: expected one of {PROFILES}, got {profile!r}")
    table = _profiles(notebook.root)
    values = dict((table.get(notebook.name) or {}).get(profile) or {})
    declared = notebook.declared()
    if unknown := sorted(set(values) - declared):
        raise PressError(
            f"chapters/profiles.yml: {notebook.name}, profile {profile}: "
            f"undeclared parameter {', '.join(unknown)}; "
            f"the notebook declares {', '.join(sorted(declared))}"
        )
    if device != "cpu":
        values["device"] = device
    return values


# A press asks every notebook several questions, and parsing is what takes the time. The
# text is the key, so what was changed is parsed anew.
@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    import jupytext

    return jupytext.reads(text, fmt="md:myst")


@lru_cache(maxsize=8)
def _sizes(text: str) -> dict[str, Any]:
    return yaml.safe_load(text) or {}


def _profiles(root: Path) -> dict[str, Any]:
    path = root / "chapters" / "profiles.yml"
    table = copy.deepcopy(_sizes(path.read_text()))
    names = {n.name for n in discover(root)}
    for name, profiles in table.items():
        if name not in names:
            raise PressError(f"chapters/profiles.yml: no notebook {name!r}")
        if extra := set(profiles or {}) - {"book", "full"}:
            raise PressError(
                f"chapters/profiles.yml: {name}: expected 'book' and 'full' "
                f"('small' is the notebook's own cell), got {sorted(extra)}"
            )
    return table
