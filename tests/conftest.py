"""Shared by all tests: one thread, and a small book to press."""

import json
import os
import re
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts its background jobs with SIGINT ignored, and processes that the tests
# start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))  # what makes the pages of the book


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`slow_for("a-*")`: the parameters of that name only repeat, in the slow layer."""
    for item in items:
        for mark in item.iter_markers("slow_for"):
            if any(fnmatch(item.callspec.id, pattern) for pattern in mark.args):
                item.add_marker(pytest.mark.slow)


SWEEP = """
from __future__ import annotations
from dataclasses import dataclass
from geolib.sweep import Sweep, grid

@dataclass(frozen=True)
class Spec:
    seed: int

def run(spec):
    return {'twice': 2 * spec.seed}

MINE = Sweep("mine", run, {'small': lambda: grid(Spec, seed=range(3))})
"""

HEADER = """\
---
jupytext:
  formats: ipynb,md:myst
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# A page

```{code-cell} ipython3
:tags: [parameters]
seed = 0
device = "cpu"
size = 2
```
"""


def cell(source, *tags):
    """A code cell in MyST text."""
    head = f":tags: [{', '.join(tags)}]\n" if tags else ""
    return f"\n```{{code-cell}} ipython3\n{head}{source}\n```\n"


def without_cost(page):
    """A staged page but for the seconds and the memory that it took."""
    return re.sub(r'"(seconds|memory)": [\d.]+', "", page.read_text())


def new_book(folder):
    """An empty book; `book.add('demo/01-a', cells...)` adds a notebook to it."""

    class Book:
        root = folder

        def add(self, name, *cells, header=HEADER):
            path = folder / "chapters" / f"{name}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header + "".join(cells))
            from geolib.press.notebook import Notebook

            return Notebook(folder, name)

        def profiles(self, text):
            (folder / "chapters" / "profiles.yml").write_text(text)

    (folder / "chapters").mkdir()
    pages = folder / "book" / "_ext"
    pages.mkdir(parents=True)
    for module in (ROOT / "book" / "_ext").glob("page_*.py"):
        (pages / module.name).symlink_to(module)
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    Book().profiles("{}\n")
    return Book()


@pytest.fixture
def book(tmp_path):
    """An empty book for one test."""
    return new_book(tmp_path)


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def mini_book(tmp_path_factory):
    """`(site, story)` of the mini book, made once for all processes of a test run."""
    import mini

    from geolib.files import locked, write_whole

    if not (ROOT / "node_modules" / "mathjax").is_dir():
        pytest.skip("MathJax is not installed: `npm ci` was not run")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "a 'b' {c}"  # a path that has fooled templates and shells
    with locked(base / "mini.lock", lambda: None):
        if not (base / "mini.json").exists():
            write_whole(base / "mini.json", json.dumps(mini.pressed(folder)))
    site = folder / "_build" / "small" / "html"
    return site, json.loads((base / "mini.json").read_text())
