"""Claims: bounds, verdicts, and what lands in a notebook."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geolib.claims import Bound, ClaimFailed, claim

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<= 2", [2, -5.0], [2.0000001]),
        (">= -1e-3", [-1e-3, 7], [-2e-3]),
        ("< 2", [1.999], [2]),
        ("> 0", [1e-300], [0]),
        ("== 3", [3, 3.0], [2, 3.0000001]),
        ("== 1 +- 0.5", [0.5, 1.5], [0.49, 1.51]),
        ("in [0, 1]", [0, 1, 0.5], [-1e-9, 1.1]),
        ("is True", [True], [False]),
        ("is False", [False], [True]),
    ],
)
def test_each_form_of_bound(text, inside, outside):
    bound = Bound.parse(text)
    assert all(bound.holds(float(v)) for v in inside)
    assert not any(bound.holds(float(v)) for v in outside)


@pytest.mark.parametrize(
    "text", ["<= 2", ">= 2", "== 0", "== 0 +- 9", "in [-1, 1]", "> -inf", "<= inf"]
)
def test_nan_never_passes(text):
    assert not Bound.parse(text).holds(math.nan)


@pytest.mark.parametrize("text", ["about 2", "<= two", "in [1 2]", "", "== 1 ± 2"])
def test_unreadable_bounds_are_refused(text):
    with pytest.raises(ValueError, match="bound: expected"):
        Bound.parse(text)


@given(finite, finite)
def test_at_most_and_at_least_agree_with_comparison(a, x):
    assert Bound.parse(f"<= {a!r}").holds(x) == (x <= a)
    assert Bound.parse(f">= {a!r}").holds(x) == (x >= a)


def test_a_broken_bound_raises_after_it_was_printed(capsys):
    with pytest.raises(ClaimFailed, match="demo.big"):
        claim("demo.big", "it is small", measured=5, bound="<= 3")
    assert capsys.readouterr().out.startswith("FAILS: it is small")


def test_nan_raises():
    with pytest.raises(ClaimFailed):
        claim("demo.nan", "it is a number", measured=math.nan, bound="<= 3")


def test_the_line_shows_only_the_digits_asked_for(capsys):
    claim("demo.pi", "pi", measured=torch.tensor(math.pi), bound="<= 4", digits=2)
    assert "measured 3.1;" in capsys.readouterr().out
    claim("demo.eps", "eps", measured=1e-15, bound="<= 1e-9", digits=None)
    assert "measured" not in capsys.readouterr().out


def test_not_reproduced_needs_a_reason():
    with pytest.raises(ValueError, match="say why"):
        claim("demo.no", "no", measured=1, bound="<= 3", reproduces=False)
    c = claim("demo.no", "x", measured=1, bound="<= 3", reproduces=False, reason="y")
    assert c.verdict == "not reproduced"


@pytest.mark.parametrize("key", ["", "nochapter", "Demo.x", "demo.", "demo x.y"])
def test_malformed_keys_are_refused(key):
    with pytest.raises(ValueError, match="key: expected"):
        claim(key, "text", measured=1, bound="<= 3")


def test_what_is_measured_must_be_one_number():
    with pytest.raises(ValueError, match="measured: demo.x expects one number"):
        claim("demo.x", "text", measured="3", bound="<= 3")
