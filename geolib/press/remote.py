"""Execute a notebook on a Dask cluster, by the engine of the sweeps."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .execute import Outcome

if TYPE_CHECKING:
    from .run import Settings


@dataclass(frozen=True)
class Job:
    """A notebook as JSON text, and what the worker process is told."""

    notebook: str
    job: dict[str, Any]


def run(spec: Job) -> dict[str, Any]:
    """On the worker: execute the notebook in a process of its own."""
    from dataclasses import asdict

    from .run import run_job

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "source.ipynb").write_text(spec.notebook, encoding="utf-8")
        there = Path(spec.job["cwd"]).is_dir()  # a shared disk shows the chapter
        job = spec.job if there else spec.job | {"cwd": folder}
        outcome = run_job(job, work, set(), lambda cell: None)
        executed = work / "executed.ipynb"
        text = executed.read_text(encoding="utf-8") if executed.exists() else ""
    return {"outcome": asdict(outcome), "executed": text}


def execute_there(job: dict[str, Any], work: Path, settings: Settings) -> Outcome:
    """Send `work/source.ipynb` to the cluster; what comes back lies beside it.

    A notebook whose worker died is sent once more.
    """
    from geolib.sweep import Options, SweepError
    from geolib.sweep.engines import drive

    spec = Job((work / "source.ipynb").read_text(encoding="utf-8"), job)
    gpu = settings.device == "cuda"
    options = Options(settings.scheduler or "local", retries=1, gpu=gpu)
    try:
        (end,) = drive(run, {_key(spec): spec}, options)
    except SweepError as problem:
        return Outcome(job["name"], "failed", error=str(problem))
    if end.outcome.record is None:
        error = f"on the cluster: {(end.outcome.error or '').splitlines()[0]}"
        return Outcome(job["name"], "failed", error=error)
    found = json.loads(end.outcome.record)
    if found["executed"]:
        (work / "executed.ipynb").write_text(found["executed"], encoding="utf-8")
    return Outcome(**found["outcome"])


def _key(spec: Job) -> str:
    """A key of this sending alone: a forced run must not find an earlier one's."""
    import uuid

    return f"{spec.job['name'].replace('/', '-')}-{uuid.uuid4().hex}"
