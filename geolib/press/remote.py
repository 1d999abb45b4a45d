"""Execute a notebook on a Dask cluster, by the engine of the sweeps."""

from __future__ import annotations

import json
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .job import Job, Outcome


def run(job: Job) -> dict[str, Any]:
    """On the worker: execute the notebook in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        outcome = job.run(work, set())
        executed = work / "executed.ipynb"
        text = executed.read_text(encoding="utf-8") if executed.exists() else ""
    return {"outcome": asdict(outcome), "executed": text}


def execute_there(job: Job, work: Path, scheduler: str, gpu: bool) -> Outcome:
    """Send a job to the cluster; what comes back lies in `work`.

    A notebook whose worker died is sent once more.
    """
    from geolib.sweep import Options
    from geolib.sweep.engines import SweepError
    from geolib.sweep.runner import drive

    # A key of this sending alone: a forced run must not find an earlier one's.
    key = f"{job.name.replace('/', '-')}-{uuid.uuid4().hex}"
    try:
        (end,) = drive(run, {key: job}, Options(scheduler, retries=1, gpu=gpu))
    except SweepError as problem:
        return Outcome(job.name, "failed", error=str(problem))
    if end.outcome.record is None:
        error = f"on the cluster: {(end.outcome.error or '').splitlines()[0]}"
        return Outcome(job.name, "failed", error=error)
    found = json.loads(end.outcome.record)
    if found["executed"]:
        work.mkdir(parents=True, exist_ok=True)
        (work / "executed.ipynb").write_text(found["executed"], encoding="utf-8")
    return Outcome(**found["outcome"])
