"""One execution: what a worker process is told, and how it ended."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended."""

    name: str
    status: str  # `ok`, `failed` or `skipped`
    seconds: float = 0.0
    cell: int | None = None  # number of the failing one among the text's code cells
    source: str = ""  # its first line
    error: str = ""

    @property
    def message(self) -> str:
        """One line that names notebook, cell and error."""
        failed = f"{self.name}{self.where}: {self.error}"
        return failed if self.status == "failed" else f"{self.name}: {self.status}"

    @property
    def line(self) -> str:
        """One line for a terminal when it has ended."""
        mark = "done" if self.status == "ok" else self.status.upper()
        detail = self.name if self.status == "ok" else self.message
        return f"{mark} {self.seconds:.1f} s {detail}"

    @property
    def where(self) -> str:
        """The failing cell, where it is known."""
        return "" if self.cell is None else f", cell {self.cell} `{self.source}`"


@dataclass(frozen=True)
class Job:
    """A notebook to be executed, and how; plain data that travels to a cluster."""

    name: str
    notebook: str  # itself, as JSON text
    parameters: dict[str, Any]  # injected after its `parameters` cell
    folder: str  # in which its kernel starts; this job's own where that is absent
    timeout: int  # seconds for each cell
    one_thread: bool  # for libraries, so that results can be repeated

    def run(
        self,
        work: Path,
        running: set[subprocess.Popen[bytes]],
        cell: Callable[[int], None] = lambda number: None,
    ) -> Outcome:
        """Execute in a worker process; what came of it is `work/executed.ipynb`.

        The worker reports through a pipe of its own: whatever cells and their child
        processes print cannot be taken for a report. No report is a failure.

        Args:
            work: a folder of this job alone.
            running: where the process is entered while it lives.
            cell: told the number of each cell that starts.
        """
        work.mkdir(parents=True, exist_ok=True)
        (work / "executed.ipynb").unlink(missing_ok=True)
        reader, writer = os.pipe()
        folder = self.folder if Path(self.folder).is_dir() else str(work)
        told = asdict(self) | {
            "folder": folder,
            "output": str(work / "executed.ipynb"),
            "parent": os.getpid(),
            "pipe": writer,
        }
        (work / "job.json").write_text(json.dumps(told))
        env = dict(os.environ, IPYTHONDIR=str(work / "ipython"), PYTHONHASHSEED="0")
        if self.one_thread:
            env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (work / "output.txt").open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "geolib.press.worker", str(work / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
                pass_fds=(writer,),
            )
        os.close(writer)
        running.add(worker)
        outcome = None
        with os.fdopen(reader) as reports, worker:
            for line in reports:
                report = json.loads(line)
                if "started" in report:
                    cell(report["started"])
                else:
                    outcome = Outcome(**report)
        running.discard(worker)
        if outcome is None:
            text = (work / "output.txt").read_text(errors="replace")[-2000:]
            last = "".join(text.strip().splitlines()[-1:])
            error = f"the worker process ended with code {worker.returncode}: {last}"
            outcome = Outcome(self.name, "failed", error=error)
        return outcome


def run_there(job: Job) -> dict[str, Any]:
    """On the worker: execute the notebook in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        outcome, executed = job.run(Path(work), set()), Path(work, "executed.ipynb")
        text = executed.read_text(encoding="utf-8") if executed.exists() else ""
    return {"outcome": asdict(outcome), "executed": text}


def execute_there(job: Job, work: Path, scheduler: str, gpu: bool) -> Outcome:
    """Send a job to the cluster; what comes back lies in `work`.

    A notebook whose worker died is sent once more.
    """
    from geolib.sweep import Options
    from geolib.sweep.engines import SweepError
    from geolib.sweep.runner import drive

    options = Options(scheduler, retries=1, gpu=gpu)
    try:
        (end,) = drive(run_there, {job.name.replace("/", "-"): job}, options)
        if end.outcome.record is None:
            error = (end.outcome.error or "").splitlines()[0]
            raise SweepError(f"on the cluster: {error}")
    except SweepError as problem:
        return Outcome(job.name, "failed", error=str(problem))
    found = json.loads(end.outcome.record)
    if found["executed"]:
        work.mkdir(parents=True, exist_ok=True)
        (work / "executed.ipynb").write_text(found["executed"], encoding="utf-8")
    return Outcome(**found["outcome"])
