"""What happens to an executed notebook before it may be published or committed."""

from __future__ import annotations

import ast
from typing import Any

from geolib.claims import MIMETYPE as CLAIM

from .notebook import CHECKED, tags
from .verdict import checks_box, checks_table, settle

QUOTE = "geolib.quote"
GLUE = "application/papermill.record/"


def staged(executed: Any, page_source: str) -> Any:
    """The published form: no times or paths, claims as boxes, numbers for glue."""
    from nbformat import from_dict

    nb = _without_traces(executed)
    nb.metadata["geolib"] = {"source": page_source}
    checks: list[dict[str, Any]] = []
    injected = any("injected-parameters" in tags(c) for c in nb.cells)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        names = tags(cell)
        if _bookkeeping(cell.source):  # the line below says it better than the calls
            cell.metadata["tags"] = names = [*names, "hide-input"]
        if "parameters" in names:  # shown only where nothing overrides it
            cell.metadata["tags"] = [
                *names,
                "remove-cell" if injected else "hide-input",
            ]
        if "injected-parameters" in names:
            cell.metadata["tags"] = [*names, "hide-input"]
        outputs, claims = [], []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if CLAIM in output.get("metadata", {}):
                claims.append(output)
            outputs += [output, *(from_dict(g) for g in _for_the_prose(output))]
        cell.outputs = outputs
        entries = [settle(o.metadata[CLAIM]) for o in claims]
        if claims:
            claims[0].data["text/html"] = checks_box(entries)
        checks += entries
    if checks:
        nb.cells.append(_all_checks(checks))
    return nb


def _all_checks(entries: list[dict[str, Any]]) -> Any:
    """A folded table at the end of the page, each row linked to where it is checked."""
    from nbformat.v4 import new_markdown_cell

    count = len({e["key"] for e in entries})
    cell = new_markdown_cell(
        "## All checks of this page\n\n```{raw} html\n"
        f'<details class="checks all-checks"><summary>{count} checks</summary>'
        f"{checks_table(entries, link=True)}</details>\n```"
    )
    cell["id"] = "all-checks"
    return cell


def _bookkeeping(source: str) -> bool:
    """Whether at least half of a cell's lines state claims and numbers for the prose."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    size = dict.fromkeys((True, False), 0)
    for statement in body:
        call = getattr(statement, "value", None)
        name = getattr(getattr(call, "func", None), "id", "")
        lines = (statement.end_lineno or statement.lineno) - statement.lineno + 1
        size[name in ("claim", "quote")] += lines
    return size[True] > 0 and size[True] >= size[False]


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
    output.data = {"text/plain": text}
    output.metadata = {}
    if output.output_type == "execute_result":
        output.execution_count = None
    return [output]


def _without_traces(executed: Any) -> Any:
    """A copy without papermill's paths and times."""
    import copy

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
    return [_glue(entry["key"], entry["shown"])] if entry["shown"] else []


def _glue(key: str, shown: str) -> dict[str, Any]:
    return {
        "output_type": "display_data",
        "data": {f"{GLUE}text/plain": shown},
        "metadata": {"scrapbook": {"name": key, "mime_prefix": GLUE}},
    }
