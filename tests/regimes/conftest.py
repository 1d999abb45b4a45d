import importlib.util
import sys
from pathlib import Path

import pytest

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "regimes"


@pytest.fixture(scope="session")
def experiments():
    """The chapter's own module, under a name that no other chapter's has."""
    spec = importlib.util.spec_from_file_location(
        "regimes_experiments", CHAPTER / "experiments.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
