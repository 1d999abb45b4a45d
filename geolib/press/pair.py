"""What is committed of an executed notebook: its sources and the outputs that are checked."""

import copy
from typing import Any

from .notebook import CHECKED, tags


def reference(executed: Any) -> Any:
    """The committed pair: sources, and plain-text outputs of the checked cells only."""
    nb = without_traces(executed)
    nb.cells = [c for c in nb.cells if "injected-parameters" not in tags(c)]
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i:03d}"
    codes = [c for c in nb.cells if c.cell_type == "code"]
    for count, cell in enumerate(codes, 1):
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


def without_traces(executed: Any) -> Any:
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
