"""A chapter's experiments, which are no package, for the tests."""

import importlib.util
import sys
from pathlib import Path

from geolib.sweep.registry import _forget_namesakes

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"


def experiments(chapter):
    """The module chapters/<chapter>/experiments.py."""
    return chapter_module(chapter, "experiments")


def chapter_module(chapter, module):
    """The module chapters/<chapter>/<module>.py."""
    name = f"{module}_of_{chapter}"
    if name not in sys.modules:
        path = CHAPTERS / chapter / f"{module}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        _forget_namesakes(path.parent)  # two chapters have modules of one name
        sys.path.insert(0, str(path.parent))  # they import each other by name
        try:
            spec.loader.exec_module(found)
        finally:
            sys.path.remove(str(path.parent))
    return sys.modules[name]
