"""The examples in the docstrings of the chapters' modules, as pytest runs those of geolib."""

import doctest

import pytest
from chapter_experiments import CHAPTERS, chapter_module

from geolib.sweep.registry import _forget_namesakes

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
SHOWN = [p for p in sorted(CHAPTERS.glob("*/*.py")) if ">>>" in p.read_text()]
SLOW = ("naturality/algebra", "naturality/projections", "geodesics/*")


@pytest.mark.slow_for(*SLOW)
@pytest.mark.parametrize(
    "name", [f"{path.parent.name}/{path.stem}" for path in SHOWN], ids=str
)
def test_examples(name, monkeypatch):
    chapter, _, module = name.partition("/")
    found = chapter_module(chapter, module)
    # An example may import its own module, or another one of the chapter, by name.
    monkeypatch.syspath_prepend(CHAPTERS / chapter)
    _forget_namesakes(CHAPTERS / chapter)
    done = doctest.testmod(found, optionflags=FLAGS)
    assert done.attempted
    assert not done.failed
