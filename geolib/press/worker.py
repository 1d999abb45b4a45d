"""The worker process: executes one notebook, tells its parent how far it is.

`python -m geolib.press.worker JOB.json` prints one JSON line for each cell it starts
and a last one with the outcome. It dies with its parent, so no orphan ever writes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from .execute import CellLines, execute


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
    _die_with(job["parent"])
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(CellLines())
    print(json.dumps({"outcome": asdict(execute(job))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
