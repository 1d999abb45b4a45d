"""One profile's folder below `_build`: its pages, their keys, and what is true of them."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geolib.files import digest, digest_tree, locked, write_whole

from .kernel import FIGURES
from .notebook import PROFILES, Notebook, PressError, parameters

FORMAT = b"7"  # raise when staging changes, so that every notebook is staged anew
PACKAGE = Path(__file__).parents[1]
DATA = (".json", ".csv", ".py", ".npz")  # files of its chapter that a notebook may read


@dataclass(frozen=True)
class Inputs:
    """All that an execution depends on, as it was at one moment."""

    text: str
    values: dict[str, Any]  # the parameters to inject
    hardware: str  # `cpu`, or the name of the GPU
    data: str  # digest of the chapter's files, what was measured among them
    code: dict[str, str]  # digest of every file of geolib, by its path in the package

    def key(self, modules: list[str] | None) -> str:
        """The content key of a run that imported these modules; None means all."""
        used = sorted(self.code if modules is None else modules)
        code = [f"{m} {self.code.get(m, 'gone')}" for m in used]
        values = json.dumps(self.values, sort_keys=True)
        parts = self.text, values, self.hardware, self.data, version("torch"), *code
        return digest(FORMAT, *(part.encode() for part in parts))


@dataclass(frozen=True)
class Page:
    """What there is to show of a notebook."""

    notebook: Notebook
    state: str  # `whole`, `failed`, `stale`, `altered` or `absent`; see `about`
    path: Path | None = None  # of the executed notebook; None where it is absent
    content: dict[str, Any] = field(default_factory=dict)  # its JSON values
    error: str = ""  # of a failed one, in one line

    @property
    def about(self) -> str:
        """One sentence about what is wrong with it; empty if nothing is."""
        since = " Its text, code or data changed since."
        return {
            "whole": "",
            "failed": f"The run stopped here: {self.error}."
            + since * bool(self.content.get("stale")),
            "stale": "Its text, code or data changed after it was executed.",
            "altered": "The executed page was altered by hand.",
            "absent": "This notebook was not executed.",
        }[self.state]


class Build:
    """The folders and pages of one profile of one checkout.

    Args:
        root: the checkout, see `find_root`.
        profile: `small`, `book` or `full`.

    Raises:
        PressError: another profile.

    Examples:
        >>> build = Build(Path("book"), "small")
        >>> build.stage(Notebook(build.root, "demo/01-a")).as_posix()
        'book/_build/small/stage/chapters/demo/01-a.ipynb'
    """

    def __init__(self, root: Path, profile: str) -> None:
        if profile not in PROFILES:
            raise PressError(f"profile: expected one of {PROFILES}, got {profile!r}")
        self.root, self.profile = root, profile
        self.folder = root / "_build" / profile
        self.site = self.folder / "html"

    def stage(self, notebook: Notebook) -> Path:
        """Where its executed page lies after a success."""
        return self.folder / "stage" / "chapters" / f"{notebook.name}.ipynb"

    def failed(self, notebook: Notebook) -> Path:
        """Where the partial notebook of its last failure lies."""
        return self.folder / "failed" / f"{notebook.name}.ipynb"

    def work(self, notebook: Notebook) -> Path:
        """Scratch of its execution."""
        return self.folder / "work" / notebook.name

    def of_the_book(self, module: str) -> Any:
        """A module of `book/_ext`, where it stands what this book's pages look like.

        Raises:
            PressError: the book has none of that name.
        """
        folder = self.root / "book" / "_ext"
        if not (folder / f"{module}.py").is_file():
            what = "makes the pages of a book from its executed notebooks"
            raise PressError(f"no {folder / module}.py, which {what}")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # they import each other by name
        return import_module(module)

    @contextmanager
    def locked(self, report: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of this build; wait for another press that holds it.

        Raises:
            PressError: the folder cannot be written.
        """
        busy = "another press is at work here; waiting for it"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / "lock", lambda: report(busy)))
            except OSError as problem:
                where = f"cannot write below {self.root / '_build'}"
                raise PressError(f"{where}: {problem.strerror}") from None
            yield

    @cached_property
    def code(self) -> dict[str, str]:
        """Digest of every file of geolib, by its path in the package."""
        files = sorted(PACKAGE.rglob("*.py"))
        return {
            p.relative_to(PACKAGE).as_posix(): digest(p.read_bytes()) for p in files
        }

    def inputs(self, notebook: Notebook, hardware: str = "cpu") -> Inputs:
        """What an execution would depend on now.

        Raises:
            PressError: see `parameters`.
        """
        device = "cpu" if hardware == "cpu" else "cuda"
        figures = b"".join(p.read_bytes() for p in self.root.glob(FIGURES))
        return Inputs(
            notebook.text(),
            parameters(notebook, self.profile, device),
            hardware,
            digest(digest_tree(notebook.source.parent, DATA).encode(), figures),
            self.code,
        )

    def is_fresh(self, notebook: Notebook, hardware: str = "cpu") -> bool:
        """Whether its staged page is whole and up to date for that hardware."""
        state, _, record = self._read(notebook, self.stage(notebook))
        return state == "whole" and record.get("hardware") == hardware

    def page(self, notebook: Notebook) -> Page:
        """What there is to show of a notebook, and in what state it is.

        A failure counts while its text, code and data are those that failed, and also
        when no run has answered it since; a page that is up to date wins over it.
        """
        staged, partial = self.stage(notebook), self.failed(notebook)
        state, content, _ = self._read(notebook, staged)
        if state != "whole":
            since, broken, record = self._read(notebook, partial)
            if since != "absent":
                broken |= {"stale": since != "whole"}
                error = str(record.get("error", "unknown"))
                return Page(notebook, "failed", partial, broken, error)
        return Page(notebook, state, None if state == "absent" else staged, content)

    def _read(
        self, notebook: Notebook, path: Path
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The state, the content and the record of an executed page."""
        content, record = _content(path), _record(path)
        if content is None:
            return "absent", {}, record
        if record.get("content") != digest(path.read_bytes()):
            return "altered", content, record
        hardware = str(record.get("hardware", "cpu"))
        now = self.inputs(notebook, hardware).key(record.get("modules"))
        return "whole" if record.get("key") == now else "stale", content, record

    def keep(
        self,
        path: Path,
        text: str,
        inputs: Inputs,
        modules: list[str] | None,
        **more: str,
    ) -> None:
        """Write an executed notebook, and the record that says what it came from."""
        write_whole(path, text)
        record = {
            "key": inputs.key(modules),
            "content": digest(text.encode()),
            "hardware": inputs.hardware,
            "modules": modules,
        }
        write_whole(path.with_suffix(".key.json"), json.dumps(record | more))

    def forget_failure(self, notebook: Notebook) -> None:
        """Remove the partial notebook of a failure that was mended."""
        partial = self.failed(notebook)
        partial.unlink(missing_ok=True)
        partial.with_suffix(".key.json").unlink(missing_ok=True)


def _record(path: Path) -> dict[str, Any]:
    """What is known of a page; nothing when that file is absent or damaged."""
    try:
        record = json.loads(path.with_suffix(".key.json").read_text())
    except (OSError, ValueError):
        return {}
    modules = record.get("modules") if isinstance(record, dict) else 0
    strings = isinstance(modules, list) and all(isinstance(m, str) for m in modules)
    return record if modules is None or strings else {}


def _content(path: Path) -> dict[str, Any] | None:
    """A notebook as JSON values; None when it is absent or damaged."""
    try:
        nb = json.loads(path.read_bytes())
        shaped = isinstance(nb["metadata"], dict) and all(
            isinstance(c, dict) and "cell_type" in c and "source" in c
            for c in nb["cells"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return nb if shaped else None
