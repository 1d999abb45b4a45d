"""Execute one notebook in a process of its own, so that no failure can spread.

The worker (`worker.py`) calls `execute`; the parent (`run.py`) reads its lines.
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADVICE = " (the device is full: give the notebook smaller sizes in profiles.yml)"


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: `ok`, `failed` or `skipped`."""

    name: str
    status: str
    seconds: float = 0.0
    cell: int | None = None
    source: str = ""
    error: str = ""

    @property
    def message(self) -> str:
        """One line that names notebook, cell and error."""
        if self.status != "failed":
            return f"{self.name}: {self.status}"
        where = "" if self.cell is None else f", cell {self.cell} `{self.source}`"
        return f"{self.name}{where}: {self.error}"


def execute(job: dict[str, Any]) -> Outcome:
    """Run papermill on `job['notebook']`; the executed copy goes to `job['output']`.

    Args:
        job: name, notebook (JSON path), output, parameters, cwd, timeout (s per cell).

    Returns:
        The outcome; after a failure the partial notebook is at `job['output']`.
    """
    import nbformat
    import papermill

    nb = nbformat.read(job["notebook"], as_version=4)
    start = time.monotonic()
    error = ""
    try:
        papermill.execute_notebook(
            nb,
            job["output"],
            parameters=job["parameters"],
            kernel_name="python3",
            cwd=job["cwd"],
            progress_bar=False,
            log_output=True,
            execution_timeout=job["timeout"],
        )
    except Exception as problem:  # every kind of failure becomes a line of the report
        error = _describe(problem)
    seconds = round(time.monotonic() - start, 2)
    if not error:
        return Outcome(job["name"], "ok", seconds)
    cell, source = _failing_cell(Path(job["output"]), CellLines.started)
    return Outcome(job["name"], "failed", seconds, cell, source, error)


def _describe(problem: Exception) -> str:
    kind = type(problem).__name__
    if kind == "PapermillExecutionError":
        name, value = problem.ename, problem.evalue  # type: ignore[attr-defined]
        advice = ADVICE if name in ("OutOfMemoryError", "DeviceMemoryError") else ""
        return f"{name}: {value}{advice}"
    if kind == "CellTimeoutError":
        return "the cell ran past its time limit"
    if kind == "DeadKernelError":
        return "the kernel died"
    return f"{kind}: {problem}"


def _failing_cell(path: Path, started: int) -> tuple[int | None, str]:
    """Number among the code cells, and first line, of the cell that started last."""
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError):
        return None, ""
    cells = [c for c in cells if not _banner(c)][:started]
    if not cells:
        return None, ""
    number = sum(c["cell_type"] == "code" for c in cells)
    text = "".join(cells[-1]["source"]).strip().splitlines()
    return number, text[0] if text else ""


def _banner(cell: dict[str, Any]) -> bool:
    return "papermill-error-cell-tag" in cell["metadata"].get("tags", [])


class CellLines(logging.Handler):
    """Turn papermill's log into one JSON line for each cell that starts."""

    started = 0

    def emit(self, record: logging.LogRecord) -> None:
        if m := re.match(r"Executing Cell (\d+)", record.getMessage()):
            CellLines.started = int(m[1])
            print(json.dumps({"cell": int(m[1])}), flush=True)
