"""The list of lines that were broken fits the package, and each was noticed."""

import re
from pathlib import Path

import mutate
import pytest

TESTS = Path(__file__).parents[1]


SEEN = [entry for entry in mutate.mutations() if "seen" in entry]


@pytest.mark.parametrize("entry", SEEN, ids=lambda entry: entry["what"])
def test_a_line_that_can_be_broken_was_noticed(entry):
    assert mutate.broken(entry)  # its old text is there once
    name, _, test = entry["seen"].partition("::")
    (path,) = TESTS.rglob(name)
    assert re.search(rf"^def {test}\b", path.read_text(), re.M)


def test_a_line_that_is_gone_is_an_error():
    entry = {**mutate.mutations()[0], "old": "no such line"}
    with pytest.raises(ValueError, match="0 places"):
        mutate.broken(entry)
