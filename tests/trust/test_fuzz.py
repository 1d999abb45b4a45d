"""Wrong arguments: what came of them on the last full run is what comes of them now."""

import time

import fuzz
import pytest
import torch
from trust_pages import FUZZ

from geolib.core.checks import checked

SAMPLE = ["core.integrate", "stratifolds.em_fit", "regimes.Setup", "networks.mlp"]


def unexpected(results):
    """Cells that are raw, NaN or slow and were not on the last full run."""
    return {
        (label, name, kind): said
        for cells, _ in results.values()
        for label, name, kind, found, said in cells
        if found in fuzz.BAD and kind not in FUZZ["open"].get(f"{label}({name})", {})
    }


@pytest.mark.parametrize("subject", SAMPLE)
def test_a_sample_is_refused_by_name_or_answered(subject):
    cells, broken = fuzz.fuzz(subject)
    assert not broken
    assert sum(found == "named" for *_, found, _ in cells) >= 10
    assert unexpected({subject: (cells, broken)}) == {}


@pytest.mark.data
@pytest.mark.timeout(3600)
def test_every_public_function_does_no_worse_than_the_page_says():
    results = fuzz.fuzz_all(fuzz.subjects())
    assert [b for _, broken in results.values() for b in broken] == []
    assert unexpected(results) == {}
    for room, counts in fuzz.summary(results)["counts"].items():
        for found in fuzz.BAD:
            assert counts[found] <= FUZZ["counts"][room][found], (room, found)


def outcome(fn, value):
    """The verdict of one value in the place of x."""
    call = fuzz.Call("f", fn, {"x": torch.ones(2)})
    return fuzz.verdict(call, "x", value, False)[0]


def test_each_verdict_is_given_where_it_is_due(monkeypatch):
    def unsafe(x: torch.Tensor) -> torch.Tensor:
        return x / x.sum()

    assert outcome(unsafe, None) == "raw"
    assert outcome(unsafe, torch.zeros(2)) == "NaN"
    assert outcome(unsafe, torch.ones(3)) == "answered"
    assert outcome(checked(unsafe), None) == "named"
    assert outcome(checked(unsafe), torch.full((2,), torch.nan)) == "named"
    monkeypatch.setattr(fuzz, "good_calls", lambda subject: [endless])
    monkeypatch.setattr(fuzz, "MINUTE", 1)
    endless = fuzz.Call("f", lambda x: time.sleep(9 * (x is None)), {"x": 1.5})
    cells, _ = fuzz.fuzz("any")
    assert [found for _, _, kind, found, _ in cells if kind == "None"] == ["slow"]
    assert len(cells) > 5
