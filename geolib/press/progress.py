"""Progress on stderr: which notebook, which cell, how long; plain lines under CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .job import Outcome


class Progress:
    """Live lines on a terminal; without one, a line for each finished notebook."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.report = total, report
        self.finished_count = 0
        self.rows: dict[str, Any] = {}
        self.live: Any = None
        if total and sys.stderr.isatty() and not os.environ.get("CI"):
            from rich import progress
            from rich.console import Console

            self.live = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.TextColumn("cell {task.completed} of {task.total}"),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()

    def cell(self, name: str, number: int, cells: int) -> None:
        """Cell `number` of `cells` of that notebook has started."""
        if self.live and name not in self.rows:
            self.rows[name] = self.live.add_task(name, total=cells)
        if self.live:
            self.live.update(self.rows[name], completed=number)

    def finished(self, outcome: Outcome) -> None:
        """Report one notebook's end."""
        self.finished_count += 1
        mark = "done" if outcome.status == "ok" else outcome.status.upper()
        detail = outcome.name if outcome.status == "ok" else outcome.message
        line = f"[{self.finished_count}/{self.total}] {mark} {outcome.seconds:.1f} s "
        if self.live:
            if outcome.name in self.rows:
                self.live.remove_task(self.rows.pop(outcome.name))
            self.live.console.print(line + detail, highlight=False, markup=False)
        else:
            self.report(line + detail)
