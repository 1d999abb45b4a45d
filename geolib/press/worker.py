"""The worker process: executes one notebook, and tells its parent how far it is.

`python -m geolib.press.worker JOB.json` writes one JSON line for each cell it starts,
and a last one with the outcome, into the pipe that the job names. It dies with its
parent, so no orphan ever writes.
"""

import ast
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.parameterize import parameterize_notebook

from .job import Outcome
from .kernel import LIMIT

ADVICE = " (the device is full: give the notebook smaller sizes in profiles.yml)"
SHOWN = 8 * LIMIT  # characters of all outputs: figures too
INSIDE = "__import__('geolib.press.kernel', fromlist=['kernel'])"


class _TooMuch(Exception):
    """More output than a page can hold."""


class _Client(NotebookClient):
    """nbclient, with a word to the kernel before the first cell and after the last."""

    def __init__(self, nb: Any, started: Callable[[int], None], **options: Any) -> None:
        super().__init__(nb, **options)
        self.started = started
        self.at: int | None = None
        self.shown = 0
        self.found: dict[str, Any] = {}

    async def async_execute_cell(
        self, cell: Any, cell_index: int, *rest: Any, **named: Any
    ) -> Any:
        if cell_index == 0:
            await self._ask("start()")
        self.at = cell_index
        self.started(cell_index + 1)
        done = await super().async_execute_cell(cell, cell_index, *rest, **named)
        if cell_index == len(self.nb.cells) - 1:
            self.found = json.loads(ast.literal_eval(await self._ask("report()")))
            if self.found.pop("overflow") or self.shown > SHOWN:
                raise _TooMuch("the notebook printed or drew more than a page can hold")
        return done

    async def _ask(self, call: str) -> str:
        """The value of a function of `kernel.py` in the kernel, as Python writes it."""
        assert self.kc is not None  # there is a kernel while cells are executed
        asked = self.kc.execute(
            "", silent=True, user_expressions={"it": f"{INSIDE}.{call}"}
        )
        reply = (await self.async_wait_for_reply(asked) or {}).get("content", {})
        it = reply.get("user_expressions", {}).get("it", {})
        if it.get("status") != "ok":
            raise RuntimeError(f"the kernel gave no report: {it or reply}")
        return it["data"]["text/plain"]

    def process_message(self, msg: Any, *rest: Any, **named: Any) -> Any:
        data = msg["content"].get("data", msg["content"])
        self.shown += sum(len(v) for v in data.values() if isinstance(v, str))
        if self.shown > SHOWN and msg["msg_type"] in ("stream", "display_data"):
            return None
        return super().process_message(msg, *rest, **named)


def execute(job: dict[str, Any], started: Callable[[int], None]) -> Outcome:
    """Execute `job["notebook"]`; the executed copy goes to `job["output"]`.

    Args:
        job: see `geolib.press.job.Job`, and `output`.
        started: told the number of each cell that starts.

    Returns:
        The outcome; after a failure the partial notebook is at `job["output"]`, and
        says in its metadata which cell was the last.
    """
    nb = nbformat.reads(job["notebook"], as_version=4)
    nb.metadata["papermill"] = nbformat.from_dict({})
    for cell in nb.cells:
        cell.metadata.setdefault("tags", [])  # papermill looks for its own among them
    if job["parameters"]:
        nb = parameterize_notebook(nb, job["parameters"])
    client = _Client(
        nb, started, timeout=job["timeout"], kernel_name="python3", record_timing=False
    )
    begin = time.monotonic()
    error = ""
    try:
        client.execute()
    except Exception as problem:  # every kind of failure becomes a line of the report
        error = _describe(problem)
    seconds = round(time.monotonic() - begin, 2)
    nb.metadata["geolib"] = {"modules": None} | client.found
    if error:
        nb.metadata["geolib"]["last"] = client.at
    Path(job["output"]).write_text(nbformat.writes(nb), encoding="utf-8")
    if not error:
        return Outcome(job["name"], "ok", seconds)
    return Outcome(job["name"], "failed", seconds, *_place(nb, client.at), error)


def _describe(problem: Exception) -> str:
    if isinstance(problem, CellExecutionError):
        name, value = problem.ename, problem.evalue
        if name == "SystemExit":
            value = f"{value} (a cell must not end the kernel)".lstrip()
        advice = ADVICE if name in ("OutOfMemoryError", "DeviceMemoryError") else ""
        return f"{name}: {value}{advice}"
    kind = type(problem).__name__
    plain = {
        "CellTimeoutError": "the cell ran past its time limit",
        "DeadKernelError": "the kernel died",
        "_TooMuch": str(problem),
    }
    return plain.get(kind, f"{kind}: {problem}")


def _place(nb: Any, at: int | None) -> tuple[int | None, str]:
    """Number among the text's code cells, and first line, of the cell at `at`."""
    if at is None:
        return None, ""
    injected = "injected-parameters"
    number = sum(
        c.cell_type == "code" and injected not in c.metadata.get("tags", [])
        for c in nb.cells[: at + 1]
    )
    return number, "".join(nb.cells[at].source.strip().splitlines()[:1])


def _die_with(parent: int) -> None:
    """End this process group as soon as the parent is gone: no orphan may write."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.killpg(os.getpgrp(), 9)

    threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> None:
    """Entry point of the worker process."""
    job = json.loads(Path(path).read_text())
    os.set_inheritable(job["pipe"], False)  # the kernel must not hold it open
    _die_with(job["parent"])
    os.chdir(job["folder"])
    with os.fdopen(job["pipe"], "w") as pipe:

        def report(values: dict[str, Any]) -> None:
            pipe.write(json.dumps(values) + "\n")
            pipe.flush()

        report(asdict(execute(job, lambda number: report({"started": number}))))


if __name__ == "__main__":
    main(sys.argv[1])
