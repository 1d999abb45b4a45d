"""Progress on stderr: which notebook, which cell, how long; plain lines under CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from .job import Outcome

CLEAR = "\r\x1b[K"  # what a terminal shows of its last line goes


class Progress:
    """A line for each finished notebook; on a terminal the cell that runs, too."""

    def __init__(self, total: int, report: Callable[[str], None]) -> None:
        self.total, self.report = total, report
        self.finished_count = 0
        self.live = sys.stderr.isatty() and not os.environ.get("CI")

    def cell(self, name: str, number: int, cells: int) -> None:
        """Cell `number` of `cells` of that notebook has started."""
        if self.live:
            line = f"{CLEAR}{name}: cell {number} of {cells}"
            print(line, end="", file=sys.stderr, flush=True)

    def finished(self, outcome: Outcome) -> None:
        """Report one notebook's end."""
        self.finished_count += 1
        mark = "done" if outcome.status == "ok" else outcome.status.upper()
        detail = outcome.name if outcome.status == "ok" else outcome.message
        count = f"{CLEAR if self.live else ''}[{self.finished_count}/{self.total}]"
        self.report(f"{count} {mark} {outcome.seconds:.1f} s {detail}")
