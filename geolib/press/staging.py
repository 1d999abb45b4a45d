"""What happens to an executed notebook before it may be published or committed."""

from __future__ import annotations

import ast
import html
from typing import Any

from geolib.claims import MIMETYPE as CLAIM

from .notebook import CHECKED, tags

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
    calls = [
        statement.value
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Expr | ast.Assign)
        and isinstance(statement.value, ast.Call)
    ]
    names = {getattr(call.func, "id", "") for call in calls}
    whole = len(calls) == len(ast.parse(source).body) > 0
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
    nb.metadata.pop("papermill", None)
    nb.metadata.pop("language_info", None)
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
        entry = metadata[CLAIM]
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


def anchor(key: str) -> str:
    """The id of a claim's box on its page."""
    return "claim-" + key.replace(".", "-").replace("_", "-")


def typeset(bound: str) -> str:
    """A bound as a reader writes it, escaped for HTML."""
    for plain, sign in (("<=", "≤"), (">=", "≥"), ("+-", "±"), ("==", "=")):
        bound = bound.replace(plain, sign)
    return html.escape(bound)


def claim_box(entry: dict[str, Any]) -> str:
    """The claim as the reader sees it: verdict, sentence, numbers, the paper's word."""
    e = {k: html.escape(str(v)) for k, v in entry.items() if v is not None}
    e["bound"] = typeset(entry["bound"])
    kind = {"holds": "holds", "FAILS": "fails"}.get(entry["verdict"], "differs")
    value = f"measured <b>{e['shown']}</b>, " if entry["shown"] else ""
    paper = f" Paper: {e['paper']}." if entry.get("paper") else ""
    reason = f" Here: {e['reason']}." if entry.get("reason") else ""
    return (
        f'<div class="claim claim-{kind}" id="{anchor(entry["key"])}">'
        f'<span class="claim-verdict">{e["verdict"]}</span> '
        f'<span class="claim-text">{e["text"]}</span> '
        f'<span class="claim-numbers">{value}bound {e["bound"]}.{paper}{reason}</span>'
        f"</div>"
    )
