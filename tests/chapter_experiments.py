"""A chapter's experiments, which are no package, for the tests."""

import importlib.util
import sys
from pathlib import Path

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"


def experiments(chapter):
    """The module chapters/<chapter>/experiments.py."""
    name = f"experiments_of_{chapter}"
    if name not in sys.modules:
        path = CHAPTERS / chapter / "experiments.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
