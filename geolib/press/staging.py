"""What happens to an executed notebook before it may be published or committed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

from geolib.claims import MIMETYPE as CLAIM
from geolib.tables import human

from .notebook import CHECKED, tags
from .quiet import names_of_the_library, names_used, parts
from .verdict import checks_box, checks_table, said_aloud, settle

REMOVED = "remove-input"
ALL_CHECKS = "all-checks"
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
GLUED = re.compile(r"\{glue:[^}]*\}`([^`]*)`")
QUOTE = "geolib.quote"
GLUE = "application/papermill.record/"


def staged(executed: Any, page_source: str) -> Any:
    """The published form: no times but the whole's, no paths, claims as boxes, glue."""
    from nbformat import from_dict

    nb = _without_traces(executed)
    cost = executed.metadata.get("geolib", {}).get("cost")
    nb.metadata["geolib"] = {"source": page_source, **({"cost": cost} if cost else {})}
    injected = any("injected-parameters" in tags(c) for c in nb.cells)
    for cell in nb.cells:
        names = tags(cell)
        if "parameters" in names:  # shown only where nothing overrides it
            names.append("remove-cell" if injected else "hide-input")
        if "injected-parameters" in names:
            names.append("hide-input")
        if names:
            cell.metadata["tags"] = names
    cells = _quiet(nb)
    stated = {
        c["id"]: [o for o in c.outputs if CLAIM in o.get("metadata", {})] for c in cells
    }
    checks = {k: [settle(o.metadata[CLAIM]) for o in v] for k, v in stated.items()}
    every = [e for entries in checks.values() for e in entries]
    aloud = said_aloud(every, {quoted(m) for m in _glued(nb)})
    for cell in cells:
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            outputs += [output, *(from_dict(g) for g in _for_the_prose(output))]
        cell.outputs = outputs
        if claims := stated[cell["id"]]:
            code = cell.source if REMOVED in tags(cell) else ""
            box = checks_box(checks[cell["id"]], aloud, code)
            claims[0].data["text/html"] = box
    if every:
        nb.cells.append(_all_checks(every, aloud))
    return nb


def _glued(nb: Any) -> Iterator[re.Match[str]]:
    """Where the prose of a notebook shows a number."""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            yield from GLUED.finditer(cell.source)


def quoted(m: re.Match[str]) -> str:
    """The key of the number that a piece of prose shows."""
    return m[1].split("<")[-1].rstrip("> ")


def _quiet(nb: Any) -> list[Any]:
    """Cut the code cells in what is shown and what is folded; return those with outputs.

    A folded run that states claims goes into their line, any other one under a bar.
    """
    sources = {c["id"]: c.source for c in nb.cells if c.cell_type == "code"}
    library = names_of_the_library(sources.values())
    cells, last = [], []
    for cell in nb.cells:
        if cell.cell_type != "code" or {*tags(cell)} & FOLDED:
            cells.append(cell)
            last += [cell] if cell.cell_type == "code" else []
            continue
        used = names_used(s for name, s in sources.items() if name != cell["id"])
        runs = parts(cell.source, used, library)
        for k, (text, shown) in enumerate(runs):
            part = copy.deepcopy(cell)
            part.source = text
            if k < len(runs) - 1:
                part["id"], part.outputs = f"{cell['id']}-{k}", []
                part.metadata.pop("mystnb", None)
            states = any(CLAIM in o.get("metadata", {}) for o in part.outputs)
            if not shown:
                tag = REMOVED if states else "hide-input"
                part.metadata["tags"] = [*tags(part), tag]
            cells.append(part)
        last.append(cells[-1])
    nb.cells = cells
    return last


def _all_checks(entries: list[dict[str, Any]], aloud: set[str]) -> Any:
    """A folded table at the end of the page, linked to what is shown above."""
    from nbformat.v4 import new_markdown_cell

    count = len({e["key"] for e in entries})
    cell = new_markdown_cell(
        "## All checks of this page\n\n```{raw} html\n"
        f'<details class="checks all-checks"><summary>{count} checks</summary>'
        f"{checks_table(entries, aloud)}</details>\n```"
    )
    cell["id"] = ALL_CHECKS
    return cell


def reference(executed: Any) -> Any:
    """The committed pair: sources, and plain-text outputs of the checked cells only."""
    nb = _without_traces(executed)
    nb.cells = [c for c in nb.cells if "injected-parameters" not in tags(c)]
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i:03d}"
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count  # nbval refuses outputs of an "unrun" cell
        checked = CHECKED in tags(cell)
        cell.outputs = _joined([p for o in cell.outputs if checked for p in _plain(o)])
    return nb


def _joined(outputs: list[Any]) -> list[Any]:
    """Adjacent pieces of one stream as one: how a kernel cuts them is chance."""
    whole: list[Any] = []
    for output in outputs:
        if whole and output.output_type == whole[-1].output_type == "stream":
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def _plain(output: Any) -> list[Any]:
    if output.output_type == "stream":
        return [output] if output.name == "stdout" else []
    text = output.get("data", {}).get("text/plain")
    if text is None:
        return []
    output.data, output.metadata = {"text/plain": text}, {}
    if output.output_type == "execute_result":
        output.execution_count = None
    return [output]


def _without_traces(executed: Any) -> Any:
    """A copy without papermill's paths and times."""
    nb = copy.deepcopy(executed)
    for key in ("papermill", "language_info", "geolib"):
        nb.metadata.pop(key, None)
    for cell in nb.cells:
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            cell.metadata.pop("tags")  # papermill leaves an empty list on every cell
    return nb


def _for_the_prose(output: Any) -> list[dict[str, Any]]:
    """Hide a claim or a quoted number; return the glue by which the prose shows it."""
    metadata = output.get("metadata", {})
    if CLAIM not in metadata and QUOTE not in metadata:
        return []
    entry = settle(metadata[CLAIM]) if CLAIM in metadata else metadata[QUOTE]
    output.data["text/html"] = ""
    shown = unescape(human(entry["shown"]))  # 10⁻⁶ for 1e-06
    text = entry["shown"] if "<" in shown else shown
    glue = {
        "output_type": "display_data",
        "data": {f"{GLUE}text/plain": text},
        "metadata": {"scrapbook": {"name": entry["key"], "mime_prefix": GLUE}},
    }
    return [glue] if entry["shown"] else []
