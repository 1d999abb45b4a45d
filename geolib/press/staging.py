"""What happens to an executed notebook before it may be published or committed."""

from __future__ import annotations

import ast
from typing import Any

from geolib.claims import MIMETYPE as CLAIM

from .notebook import CHECKED, tags
from .verdict import claim_box, settle

QUOTE = "geolib.quote"
GLUE = "application/papermill.record/"


def staged(executed: Any, page_source: str) -> Any:
    """The published form: no times or paths, claims as boxes, numbers for glue."""
    from nbformat import from_dict

    nb = _without_traces(executed)
    nb.metadata["geolib"] = {"source": page_source}
    injected = any("injected-parameters" in tags(c) for c in nb.cells)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        names = tags(cell)
        if _only_claims(cell.source):  # the boxes below say it better than the calls
            cell.metadata["tags"] = names = [*names, "hide-input"]
        if "parameters" in names:  # shown only where nothing overrides it
            cell.metadata["tags"] = [
                *names,
                "remove-cell" if injected else "hide-input",
            ]
        if "injected-parameters" in names:
            cell.metadata["tags"] = [*names, "hide-input"]
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            extra = _decorate(output)
            outputs += [output, *(from_dict(e) for e in extra)]
        cell.outputs = outputs
    return nb


def _only_claims(source: str) -> bool:
    """Whether a cell does nothing but state claims and numbers for the prose."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    calls = [
        statement.value
        for statement in body
        if isinstance(statement, ast.Expr | ast.Assign)
        and isinstance(statement.value, ast.Call)
    ]
    names = {getattr(call.func, "id", "") for call in calls}
    whole = len(calls) == len(body) > 0
    return whole and names <= {"claim", "quote"}


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


def _decorate(output: Any) -> list[dict[str, Any]]:
    """Give a claim its box; return the glue outputs that the prose can quote."""
    metadata = output.get("metadata", {})
    if CLAIM in metadata:
        entry = settle(metadata[CLAIM])
        output.data["text/html"] = claim_box(entry)
        return [_glue(entry["key"], entry["shown"])] if entry["shown"] else []
    if QUOTE in metadata:
        entry = metadata[QUOTE]
        output.data["text/html"] = ""
        return [_glue(entry["key"], entry["shown"])]
    return []


def _glue(key: str, shown: str) -> dict[str, Any]:
    return {
        "output_type": "display_data",
        "data": {f"{GLUE}text/plain": shown},
        "metadata": {"scrapbook": {"name": key, "mime_prefix": GLUE}},
    }
