"""Execute the notebooks whose content key changed, and stage them."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geolib.files import digest, digest_tree, locked, write_whole

from .execute import Outcome
from .notebook import Notebook, PressError, parameters
from .progress import Progress
from .staging import reference, staged

FORMAT = b"3"  # raise when staging changes, so that every notebook is staged anew


@dataclass(frozen=True)
class Settings:
    """How to run: `timeout` is in seconds for each cell, `jobs` in processes.

    With the address of a Dask `scheduler`, notebooks are executed by its workers.
    """

    profile: str = "small"
    device: str = "auto"
    jobs: int = 1
    force: bool = False
    timeout: int = 900
    scheduler: str | None = None


def build_folder(root: Path, profile: str) -> Path:
    return root / "_build" / profile


def staged_path(notebook: Notebook, profile: str) -> Path:
    stage = build_folder(notebook.root, profile) / "stage"
    return stage / "chapters" / f"{notebook.name}.ipynb"


def resolve_device(device: str, elsewhere: bool = False) -> str:
    """`auto` is CUDA where there is one; asking for an absent device is an error.

    Of workers `elsewhere` nothing is known: there `auto` is the CPU.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise PressError(f"device: expected auto, cpu or cuda, got {device!r}")
    if elsewhere:
        return "cuda" if device == "cuda" else "cpu"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise PressError(
            "device: cuda was asked for, but torch "
            f"{torch.__version__} sees no CUDA device on this machine"
        )
    return device


def hardware(device: str) -> str:
    """The name of the GPU of this machine, where there is one and it is meant."""
    import torch

    here = device == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if here else device


def content_key(notebook: Notebook, values: dict[str, Any], device: str) -> str:
    """Hash of all an execution depends on: text, parameters, code, data, sweeps, torch."""
    import torch

    from geolib.sweep.store import default_folder

    data = digest_tree(notebook.source.parent, (".json", ".csv", ".py", ".npz"))
    code = digest_tree(Path(__file__).parents[1], (".py",))
    return digest(
        FORMAT,
        notebook.source.read_bytes(),
        json.dumps(values, sort_keys=True).encode(),
        code.encode(),
        data.encode(),
        torch.__version__.encode(),
        hardware(device).encode(),
        *(
            digest_tree(default_folder() / sweep, (".json",)).encode()
            for sweep in sorted(notebook.sweeps())
        ),
    )


def is_fresh(path: Path, key: str) -> bool:
    """Whether the staged notebook is whole and belongs to `key`."""
    record = path.with_suffix(".key.json")
    try:
        stored = json.loads(record.read_text())
        return bool(
            stored["key"] == key and stored["content"] == digest(path.read_bytes())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def press(
    notebooks: list[Notebook],
    settings: Settings,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> list[Outcome]:
    """Run what is not fresh; one failing notebook never stops the others.

    Returns:
        One outcome a notebook, in the order given.

    Raises:
        PressError: bad profile, device or parameters, found before anything runs.
    """
    device = resolve_device(settings.device, settings.scheduler is not None)
    devices = {n.name: n.device(device) for n in notebooks}
    values = {
        n.name: parameters(n, settings.profile, devices[n.name]) for n in notebooks
    }
    if not notebooks:
        return []
    if still := [name for name, where in devices.items() if where != device]:
        report(f"these compute on the CPU, not on {device}: {', '.join(still)}")
    if settings.scheduler is None:
        values = {k: _with_data_at_hand(k, v, report) for k, v in values.items()}
    folder = build_folder(notebooks[0].root, settings.profile)
    with locked(
        folder / "lock", lambda: report("another press is at work here; waiting for it")
    ):
        keys = {
            n.name: content_key(n, values[n.name], devices[n.name]) for n in notebooks
        }
        fresh = {
            n.name
            for n in notebooks
            if not settings.force
            and is_fresh(staged_path(n, settings.profile), keys[n.name])
        }
        stale = [n for n in notebooks if n.name not in fresh]
        done = _run_all(stale, values, keys, replace(settings, device=device), report)
    return [done.get(n.name, Outcome(n.name, "skipped")) for n in notebooks]


def _with_data_at_hand(
    name: str, values: dict[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """Leave out parameters that name a data set which is not on this disk.

    The notebook's own default (an embedded set) then stands, and the reader is told.
    """
    from geolib import data

    kept = {}
    for parameter, value in values.items():
        if (
            isinstance(value, str)
            and value in data.names()
            and not data.available(value)
        ):
            report(
                f"{name}: {parameter} = {value} is not on this disk, the notebook's own "
                f"default is used (to get it: python -m geolib.data fetch {value})"
            )
        else:
            kept[parameter] = value
    return kept


def _run_all(
    notebooks: list[Notebook],
    values: dict[str, dict[str, Any]],
    keys: dict[str, str],
    settings: Settings,
    report: Callable[[str], None],
) -> dict[str, Outcome]:
    todo: queue.SimpleQueue[Notebook] = queue.SimpleQueue()
    for n in notebooks:
        todo.put(n)
    done: dict[str, Outcome] = {}
    running: set[subprocess.Popen[str]] = set()
    with Progress(len(notebooks), report) as progress:

        def work() -> None:
            while True:
                try:
                    n = todo.get_nowait()
                except queue.Empty:
                    return
                done[n.name] = _run_one(
                    n, values[n.name], keys[n.name], settings, progress, running
                )
                progress.finished(done[n.name])

        jobs = max(1, min(settings.jobs, len(notebooks)))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
        for t in threads:
            t.start()
        try:
            while any(t.is_alive() for t in threads):
                time.sleep(0.05)
        except BaseException:
            for worker in list(running):
                worker.kill()
            raise
    return done


def _run_one(
    notebook: Notebook,
    values: dict[str, Any],
    key: str,
    settings: Settings,
    progress: Progress,
    running: set[subprocess.Popen[str]],
) -> Outcome:
    """Execute in a worker process; stage on success, keep the partial on failure."""
    settings = replace(settings, device=notebook.device(settings.device))
    try:
        folder = build_folder(notebook.root, settings.profile)
        work = folder / "work" / notebook.name
        work.mkdir(parents=True, exist_ok=True)
        job = _job(notebook, values, work, settings)
        if settings.scheduler:
            from .remote import execute_there

            outcome = execute_there(job, work, settings)
        else:
            cells = len(notebook.read().cells)
            outcome = run_job(
                job, work, running, lambda n: progress.cell(notebook.name, n, cells)
            )
        if outcome.status == "ok":
            _stage(notebook, work / "executed.ipynb", key, settings)
        else:
            _keep_partial(notebook, work / "executed.ipynb", folder)
        shutil.rmtree(work, ignore_errors=True)
        return outcome
    except OSError as problem:
        text = f"{problem.strerror or problem}: {problem.filename or ''}".rstrip(": ")
        return Outcome(notebook.name, "failed", error=f"could not be written: {text}")


def _job(
    notebook: Notebook, values: dict[str, Any], work: Path, settings: Settings
) -> dict[str, Any]:
    """What a worker process is told; the notebook itself lies in `work`."""
    import nbformat

    nbformat.write(notebook.read(), work / "source.ipynb")
    return {
        "name": notebook.name,
        "parameters": values,
        "cwd": str(notebook.source.parent),
        "timeout": settings.timeout,
        "one_thread": settings.profile != "full",  # repeatable, and no fight for cores
    }


def run_job(
    job: dict[str, Any],
    work: Path,
    running: set[subprocess.Popen[str]],
    cell: Callable[[int], None],
) -> Outcome:
    """Execute `work/source.ipynb` into `work/executed.ipynb` in a worker process.

    Args:
        job: see `_job`.
        work: a folder of the job's own.
        running: where the process is entered while it lives.
        cell: told the number of each cell that starts.
    """
    job = job | {
        "notebook": str(work / "source.ipynb"),
        "output": str(work / "executed.ipynb"),
        "parent": os.getpid(),
    }
    (work / "job.json").write_text(json.dumps(job))
    env = dict(os.environ, IPYTHONDIR=str(work / "ipython"), PYTHONHASHSEED="0")
    if job["one_thread"]:
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (work / "stderr.txt").open("w") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", "geolib.press.worker", str(work / "job.json")],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,
        )
    running.add(worker)
    outcome = None
    with worker:
        for line in worker.stdout or ():
            message = json.loads(line) if line.startswith("{") else {}
            if "cell" in message:
                cell(message["cell"])
            if "outcome" in message:
                outcome = Outcome(**message["outcome"])
    code = worker.returncode
    running.discard(worker)
    if outcome is None:
        last = (work / "stderr.txt").read_text().strip().splitlines()[-1:]
        outcome = Outcome(
            job["name"],
            "failed",
            error=f"the worker process ended with code {code}: {''.join(last)}",
        )
    return outcome


def _stage(notebook: Notebook, executed: Path, key: str, settings: Settings) -> None:
    import nbformat

    nb = nbformat.read(executed, as_version=4)
    path = staged_path(notebook, settings.profile)
    page = staged(nb, f"chapters/{notebook.name}.md")
    page.metadata["geolib"] |= {"profile": settings.profile, "device": settings.device}
    if settings.device == "cuda":
        page.metadata["geolib"]["hardware"] = hardware(settings.device)
    text = nbformat.writes(page) + "\n"
    write_whole(path, text)
    if settings.profile == "small" and settings.device == "cpu":
        write_whole(path.with_suffix(".reference"), pair_text(nb))
    record = {"key": key, "content": digest(text.encode())}
    write_whole(path.with_suffix(".key.json"), json.dumps(record))
    _failed_path(notebook, settings.profile).unlink(missing_ok=True)


def pair_text(executed: Any) -> str:
    """The committed `.ipynb` for an executed notebook, as text."""
    import nbformat

    return nbformat.writes(reference(executed)) + "\n"


def _failed_path(notebook: Notebook, profile: str) -> Path:
    failed = build_folder(notebook.root, profile) / "failed"
    return failed / f"{notebook.name}.ipynb"


def _keep_partial(notebook: Notebook, executed: Path, folder: Path) -> None:
    path = folder / "failed" / f"{notebook.name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    if executed.exists():
        os.replace(executed, path)
