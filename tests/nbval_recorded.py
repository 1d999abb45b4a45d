"""A plugin for nbval: compare with what the press has just executed.

`make test` executes every notebook once, with papermill (`geolib run --profile small`),
and hands the outputs of that run to nbval, cell by cell, in place of a second run: the
collecting, sanitizing, comparing and reporting are nbval's own. A notebook whose executed
copy is absent or holds other code than the committed pair gets a kernel, as nbval is
used without this plugin (`make nbval`). See docs/adr/0009.
"""

import os
from pathlib import Path
from queue import Empty

import nbformat
import nbval.plugin

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "_build" / "small" / "stage"
LIVE = os.environ.get("NBVAL_LIVE", "").split()  # notebooks that get a kernel anyway


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


class Recorded:
    """Stands for nbval's kernel, and answers from an executed notebook."""

    def __init__(self, cells):
        self.cells = list(cells)
        self.messages = []

    def is_alive(self):
        return True

    def execute_cell_input(self, source, allow_stdin=None):
        cell = self.cells.pop(0)
        assert cell.source == source
        number = f"recorded-{len(self.cells)}"
        contents = [(o.output_type, dict(o)) for o in cell.outputs]
        contents.append(("status", {"execution_state": "idle"}))
        self.messages = [
            {"msg_type": kind, "content": c, "parent_header": {"msg_id": number}}
            for kind, c in contents
        ]
        return number

    def get_message(self, stream, timeout=None):
        if not self.messages:
            raise Empty
        return self.messages.pop(0)

    def await_reply(self, number, timeout=None):
        """The run is over: every reply has come."""

    def await_idle(self, number, timeout):
        self.messages.clear()

    def interrupt(self):
        """Nothing runs."""

    def stop(self):
        """Nothing runs."""


def recorded(path, pair):
    """The cells that the press executed for this pair; None if it ran other code."""
    name = path.relative_to(ROOT)
    staged = (STAGE / name).with_suffix(".reference")
    if not staged.is_file() or name.with_suffix("").as_posix()[9:] in LIVE:
        return None
    cells = code(nbformat.read(staged, as_version=4))
    ran = all(cell.execution_count is not None or not cell.source for cell in cells)
    same = [c.source for c in cells] == [c.source for c in code(pair)]
    return cells if ran and same else None


def pytest_configure(config):
    live = nbval.plugin.IPyNbFile.setup

    def setup(self):
        cells = recorded(self.path, self.nb)
        if cells is None:
            live(self)
        else:
            self.kernel = Recorded(cells)
            self.setup_sanitize_files()

    nbval.plugin.IPyNbFile.setup = setup
