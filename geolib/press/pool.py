"""Execute the notebooks whose content key changed, stage them, and rewrite the pairs."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geolib.files import write_changed, write_whole
from geolib.sweep.runner import bar

from .build import Build, Inputs
from .job import Job, Outcome, execute_there
from .notebook import Notebook, PressError
from .pair import reference

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to run: the options of `geolib run`."""

    profile: str = "small"
    device: str = "auto"
    jobs: int = 1
    force: bool = False
    timeout: int = 900
    scheduler: str | None = None


def resolve_device(device: str, elsewhere: bool = False) -> str:
    """`auto` is CUDA where there is one; asking for an absent device is an error.

    Of workers `elsewhere` nothing is known: there `auto` is the CPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise PressError(f"device: expected auto, cpu or cuda, got {device!r}")
    # What is built for the CPU is known without the seconds that importing torch takes.
    without = device == "auto" and "+cpu" in version("torch")
    if elsewhere or without or device == "cpu":
        return "cuda" if device == "cuda" else "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        where = f"torch {torch.__version__} sees no CUDA device on this machine"
        raise PressError(f"device: cuda was asked for, but {where}")
    return "cpu"


def hardware(device: str) -> str:
    """The name of the GPU of this machine, where there is one and it is meant."""
    if device != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else device


def press(
    notebooks: list[Notebook],
    settings: Settings,
    report: Report = lambda line: print(line, file=sys.stderr),
) -> list[Outcome]:
    """Run what is not up to date; one failing notebook never stops the others.

    Returns:
        One outcome a notebook, in the order given.

    Raises:
        PressError: bad profile, device, address or parameters, a data set that is not
            here, a folder that cannot be written: found before anything runs.
    """
    device = resolve_device(settings.device, settings.scheduler is not None)
    if not re.fullmatch(r"\w+://.+", settings.scheduler or "tcp://any"):
        wanted = "an address such as tcp://host:8786"
        raise PressError(f"scheduler: expected {wanted}, got {settings.scheduler!r}")
    if not notebooks:
        return []
    build = Build(notebooks[0].root, settings.profile)
    build.of_the_book("page_cells")  # refused before minutes of running
    names = {d: hardware(d) for d in ("cpu", device)}
    where = {n: names[n.device(device)] for n in notebooks}
    inputs = {n: build.inputs(n, where[n]) for n in notebooks}
    if still := [n.name for n in notebooks if n.device(device) != device]:
        report(f"these compute on the CPU, not on {device}: {', '.join(still)}")
    with build.locked(report):
        stale = []
        for n in notebooks:
            if settings.force or not build.is_fresh(n, where[n]):
                stale.append(n)
            else:
                build.forget_failure(n)
        if settings.scheduler is None:
            _check_data(stale, inputs)
        done = _Pool(build, settings, inputs, report).run(stale)
    return [done.get(n.name, Outcome(n.name, "skipped")) for n in notebooks]


def _check_data(notebooks: list[Notebook], inputs: dict[Notebook, Inputs]) -> None:
    """Refuse a profile that names a data set which is not on this disk."""
    texts = [
        (n, parameter, value)
        for n in notebooks
        for parameter, value in inputs[n].values.items()
        if isinstance(value, str) and parameter != "device"
    ]
    if not texts:
        return
    from geolib import data

    lacking = [
        f"{n.name} needs {value} ({parameter} = {value}): geolib data fetch {value}"
        for n, parameter, value in texts
        if value in data.names() and not data.available(value)
    ]
    if lacking:
        what = "these data sets are not on this disk, and nothing was run"
        raise PressError("; ".join([what, *lacking]))


def refresh(
    notebooks: list[Notebook], jobs: int = 1, force: bool = False
) -> list[Path]:
    """Run the `small` profile where needed and rewrite the pairs that changed.

    Returns:
        The pairs that were rewritten.

    Raises:
        PressError: a notebook failed; the pairs of the others are still written.
    """
    outcomes = press(notebooks, Settings("small", "cpu", jobs, force))
    changed = []
    for notebook, outcome in zip(notebooks, outcomes, strict=True):
        if outcome.status == "failed":
            continue
        staged = Build(notebook.root, "small").stage(notebook)
        if write_changed(notebook.pair, staged.with_suffix(".reference").read_bytes()):
            changed.append(notebook.pair)
    if failed := [o.message for o in outcomes if o.status == "failed"]:
        raise PressError("no pair written for\n" + "\n".join(failed))
    return changed


@dataclass
class _Pool:
    """Threads that execute notebooks, each with a worker process a time."""

    build: Build
    settings: Settings
    inputs: dict[Notebook, Inputs]
    report: Report
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(self, notebooks: list[Notebook]) -> dict[str, Outcome]:
        """The outcome of each notebook, by its name."""
        done: dict[str, Outcome] = {}
        threads = ThreadPoolExecutor(max(1, self.settings.jobs))
        with threads, bar("notebooks", len(notebooks)) as step:
            sent = {threads.submit(self._one, n, step): n.name for n in notebooks}
            try:
                for end in as_completed(sent):
                    done[sent[end]] = outcome = _outcome(sent[end], end)
                    self.report(f"[{len(done)}/{len(sent)}] {outcome.line}")
                    step()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                while not all(end.done() for end in sent):
                    for worker in list(self.running):
                        worker.kill()
                    time.sleep(0.02)
                raise
        return done

    def _one(self, n: Notebook, step: Callable) -> Outcome:
        """Execute in a worker process; stage on success, keep the partial on failure."""
        import nbformat

        doing = "read"
        try:
            if n.facts.fault:
                return self._refuse(n)
            job, doing, work = self._job(n), "written", self.build.work(n)
            cells = job.notebook.count('"cell_type"')
            if self.settings.scheduler:
                gpu = self.inputs[n].hardware != "cpu"
                outcome = execute_there(job, work, self.settings.scheduler, gpu)
            else:
                tell = f"{n.name}: cell {{}} of {cells}".format
                outcome = job.run(work, self.running, lambda k: step(tell(k)))
            executed = work / "executed.ipynb"
            found = nbformat.read(executed, as_version=4) if executed.exists() else None
            self._keep(n, found, outcome)
            shutil.rmtree(work, ignore_errors=True)
            return outcome
        except OSError as problem:
            text = f"{problem.strerror or problem}: {problem.filename or ''}"
            error = f"could not be {doing}: {text}".rstrip(": ")
            return Outcome(n.name, "failed", error=error)

    def _job(self, n: Notebook) -> Job:
        import nbformat

        inputs = self.inputs[n]
        return Job(
            n.name,
            nbformat.writes(n.read(inputs.text)),
            inputs.values,
            str(n.source.parent),
            self.settings.timeout,
            self.settings.profile != "full",  # repeatable, and no fight for cores
        )

    def _refuse(self, n: Notebook) -> Outcome:
        """The outcome of a text that cannot be run; its page shows the text alone."""
        facts, nb = n.facts, None
        outcome = Outcome(n.name, "failed", 0.0, facts.cell, facts.line, facts.fault)
        if facts.cell is not None:
            nb = n.read(self.inputs[n].text)
            codes = [i for i, c in enumerate(nb.cells) if c.cell_type == "code"]
            nb.metadata["geolib"] = {"last": codes[facts.cell - 1]}
        self._keep(n, nb, outcome)
        return outcome

    def _keep(self, n: Notebook, nb: Any, outcome: Outcome) -> None:
        """Store the executed notebook, or what there is of it after a failure."""
        import nbformat

        build, inputs = self.build, self.inputs[n]
        modules = nb.metadata.get("geolib", {}).get("modules") if nb else None
        if outcome.status == "failed":
            text = text_of(nb or nbformat.v4.new_notebook())
            error = f"{outcome.where.removeprefix(', ')}: {outcome.error}".lstrip(": ")
            build.keep(build.failed(n), text, inputs, modules, error=error)
            return
        if nb is None:
            raise FileNotFoundError(2, "no executed notebook", n.name)
        pair = reference(nb)
        page = build.of_the_book("page_cells").staged(nb, f"chapters/{n.name}.md")
        device = "cpu" if inputs.hardware == "cpu" else "cuda"
        page.metadata["geolib"] |= {"profile": build.profile, "device": device}
        if device == "cuda":
            page.metadata["geolib"]["hardware"] = inputs.hardware
        if build.profile == "small" and device == "cpu":
            write_whole(build.stage(n).with_suffix(".reference"), text_of(pair))
        build.keep(build.stage(n), text_of(page), inputs, modules)
        build.forget_failure(n)


def _outcome(name: str, end: Future[Outcome]) -> Outcome:
    """What a thread came to; one that stumbled is a failed notebook."""
    if (problem := end.exception()) is None:
        return end.result()
    error = f"the press stumbled: {type(problem).__name__}: {problem}"
    return Outcome(name, "failed", error=error)


def text_of(nb: Any) -> str:
    """A notebook as the text of its file."""
    import nbformat

    return nbformat.writes(nb) + "\n"
