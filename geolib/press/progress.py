"""Progress on stderr: which notebook, which cell, how long; plain lines under CI."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .job import Outcome


class Progress:
    """A live table on a terminal; without one, a line for each finished notebook."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.report = total, report
        self.finished_count = 0
        self.rows: dict[str, tuple[int, int, float]] = {}
        self.guard = threading.Lock()
        self.live: Any = None
        if total and sys.stderr.isatty() and not os.environ.get("CI"):
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                get_renderable=self._table, console=Console(stderr=True), transient=True
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
        with self.guard:
            start = self.rows.get(name, (0, 0, time.monotonic()))[2]
            self.rows[name] = (number, cells, start)

    def finished(self, outcome: Outcome) -> None:
        """Report one notebook's end."""
        with self.guard:
            self.rows.pop(outcome.name, None)
            self.finished_count += 1
            mark = "done" if outcome.status == "ok" else outcome.status.upper()
            line = (
                f"[{self.finished_count}/{self.total}] {mark} {outcome.seconds:.1f} s "
            )
            detail = outcome.name if outcome.status == "ok" else outcome.message
            if self.live:
                self.live.console.print(line + detail, highlight=False, markup=False)
            else:
                self.report(line + detail)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        with self.guard:
            for name, (number, cells, start) in self.rows.items():
                seconds = f"{time.monotonic() - start:.0f} s"
                table.add_row(name, f"cell {number} of {cells}", seconds)
        return table
