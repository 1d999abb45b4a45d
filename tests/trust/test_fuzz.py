"""Wrong arguments: what came of them is what `reliability.yml` has, none of it bad."""

import re
from collections import Counter
from pathlib import Path

import fuzz
import house_rules
import pytest

STORED = fuzz.STORED
# Those that cost least, from each room; the others are tried in `make test-data`.
QUICK = tuple(STORED["quick"])


def tried(subject):
    """The verdicts on a subject's cells, and the cells that are bad."""
    cells, broken = fuzz.fuzz(subject)
    assert not broken
    bad = [cell for cell in cells if cell[3] in fuzz.BAD]
    return Counter(cell[3] for cell in cells), bad


@pytest.mark.parametrize("subject", QUICK)
def test_wrong_arguments_of_a_sample(subject):
    counts, bad = tried(subject)
    assert not bad
    assert dict(counts) == STORED["quick"][subject]


@pytest.mark.data
@pytest.mark.timeout(2400)  # thousands of calls, each of which may take a minute
@pytest.mark.parametrize("room", STORED["fuzz"])
def test_wrong_arguments_of_a_room(room):
    counts = Counter()
    for subject in fuzz.subjects():
        if subject.startswith(f"{room}."):
            found, bad = tried(subject)
            assert not bad, bad
            counts.update(found)
    stored = sum(STORED["fuzz"][room].values())
    assert abs(counts.total() - stored) <= stored / 20, "run `tests/trust/fuzz.py`"


def test_the_page_counts_what_there_is():
    tests = Path(__file__).parents[1]
    honest = (tests / "trust" / "test_honest_no.py").read_text()
    assert STORED["honest no"] == len(
        re.findall(r"^def test_(?!no_claim)", honest, re.M)
    )
    drawn = {
        path.parent.name: sum(
            len(re.findall(r"^@given\(", other.read_text(), re.M))
            for other in path.parent.glob("test_*.py")
        )
        for path in tests.glob("*/test_*.py")
    }
    assert STORED["properties"] == {r: n for r, n in sorted(drawn.items()) if n}
    modules = (tests / "core" / "test_core_random_modules.py").read_text()
    sizes = map(int, re.findall(r"max_examples=(\d+)", modules))
    assert STORED["modules"] == dict(zip(("test", "data"), sizes, strict=True))
    assert set(STORED["fuzz"]) <= set(fuzz.ROOMS) & set(house_rules.ROOMS)


def test_a_call_that_lets_nan_through_is_seen():
    """The fuzz itself can fail: a function without a guard is raw, NaN and slow."""

    def careless(x, steps):
        while steps > 10**9:
            pass
        return x[0] / steps

    call = fuzz.Call("careless", careless, {"x": [1.0], "steps": 2})
    assert fuzz.verdict(call, "x", [float("nan")], False)[0] == "NaN"
    assert fuzz.verdict(call, "x", [], False)[0] == "raw"
    assert fuzz.verdict(call, "steps", 4, False)[0] == "answered"
