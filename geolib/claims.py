"""A claim: a sentence, the number measured for it, and the bound it must meet.

    claim("stability.constant", "no ratio exceeds the constant",
          measured=ratio, bound="<= 2.8285", paper="Thm 3.1: 4")

prints one line, stores itself in the executed notebook and raises `ClaimFailed`
when the bound is broken. The book's ledger is read back from those notebooks.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from geolib.files import DATA_READ

MIMETYPE = "geolib.claim"  # key in an output's metadata; nbval does not compare it
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf"
KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)+")


class ClaimFailed(AssertionError):
    """A measured value broke the bound of its claim."""


@dataclass(frozen=True)
class Bound:
    """A set of numbers, written `<= a`, `>= a`, `== a`, `== a +- tol` or `in [a, b]`.

    Examples:
        >>> Bound.parse("== 1 +- 1e-3").holds(1.0005)
        True
        >>> Bound.parse("in [0, 2]").holds(float("nan"))
        False
        >>> Bound.parse(">= 2").holds(float("inf"))
        False
    """

    text: str
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read a bound; a `ValueError` names the text that could not be read."""
        text = text.strip()
        if text in ("is True", "is False"):
            value = float(text == "is True")
            return cls(text, value, value)
        if m := re.fullmatch(rf"(<=|>=|<|>|==)\s*({NUMBER})", text):
            op, a = m[1], float(m[2])
            below, above = op.startswith("<"), op.startswith(">")
            low, high = -math.inf if below else a, math.inf if above else a
            # the side that the bound does not name is open: infinity never passes it
            return cls(text, low, high, op == ">" or below, op == "<" or above)
        if m := re.fullmatch(rf"==\s*({NUMBER})\s*\+-\s*({NUMBER})", text):
            a, tol = float(m[1]), float(m[2])
            return cls(text, a - tol, a + tol)
        if m := re.fullmatch(rf"in\s*\[\s*({NUMBER})\s*,\s*({NUMBER})\s*\]", text):
            return cls(text, float(m[1]), float(m[2]))
        wanted = "'<= a', '>= a', '< a', '> a', '== a', '== a +- tol', 'in [a, b]'"
        raise ValueError(f"bound: expected {wanted} or 'is True'; got {text!r}")

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the set; NaN never does, nor does an unnamed infinity."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return bool(above and below)


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    key: str
    text: str
    measured: float | int | bool
    shown: str
    bound: str
    holds: bool
    paper: str | None = None
    reproduces: bool = True
    reason: str | None = None
    rival: str | None = None

    @property
    def verdict(self) -> str:
        """`holds`, `FAILS`, `not reproduced` (a paper's claim) or `a baseline wins`."""
        return verdict(self.holds, self.reproduces, self.rival)

    @property
    def line(self) -> str:
        """The deterministic line that the notebook prints."""
        value = f"measured {self.shown}; " if self.shown else ""
        tail = f" ({self.reason})" if self.reason else ""
        return f"{self.verdict}: {self.text} [{value}bound {self.bound}]{tail}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}

    def _ipython_display_(self) -> None:
        """Nothing: a claim at the end of a cell has already printed its line."""


def verdict(holds: bool, reproduces: bool, rival: str | None) -> str:
    """What a claim is worth, in words."""
    if not holds:
        return "FAILS"
    won = "a baseline wins" if rival else "holds"
    return won if reproduces else "not reproduced"


def claim(
    key: str,
    text: str,
    *,
    measured: Any,
    bound: str,
    paper: str | None = None,
    reproduces: bool = True,
    reason: str | None = None,
    rival: str | None = None,
    digits: int | None = 3,
) -> Claim:
    """State a claim, check it, print it and store it in the notebook.

    Args:
        key: dotted name, unique in the book: `chapter.name`.
        text: the claim as a sentence a reader understands.
        measured: a number, integer or boolean (a 0-d array or tensor is fine).
        bound: see `Bound`; an integer or boolean is compared exactly.
        paper: what the paper says, if it says something comparable.
        reproduces: False marks a paper's claim that does **not** hold here; `bound`
            then states what was found instead, and `reason` says why.
        rival: the baseline that does better here than the book's own method: such a
            claim is shown openly, as one that the book's method loses.
        digits: significant digits to print: only those that repeat on every CPU
            type. None prints no value (the full value is stored all the same).

    Raises:
        ClaimFailed: the measured value breaks the bound (NaN always does).
        ValueError: a malformed key or bound, or `reproduces=False` with no reason.

    Examples:
        >>> _ = claim("demo.two", "two is small", measured=2, bound="<= 3")
        holds: two is small [measured 2; bound <= 3]
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"key: expected 'chapter.name' in lower case, got {key!r}")
    if not reproduces and not reason:
        raise ValueError(f"reason: {key} is marked as not reproduced; say why")
    value, about = _scalar(key, measured), (paper, reproduces, reason, rival)
    shown, holds = _show(value, digits), Bound.parse(bound).holds(float(value))
    result = Claim(key, text, value, shown, bound.strip(), holds, *about)
    publish(result.line, {MIMETYPE: result.to_dict() | {"data": list(DATA_READ)}})
    if not result.holds:
        raise ClaimFailed(f"{key}: {result.line} (full value {value!r})")
    return result


def quote(key: str, value: Any, digits: int | None = 3) -> None:
    """Store a number for the prose to quote by glue, with no bound attached.

    Examples:
        >>> quote("demo.samples", 1200)
        demo.samples = 1200
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"key: expected 'chapter.name' in lower case, got {key!r}")
    shown = value if isinstance(value, str) else _show(_scalar(key, value), digits)
    publish(f"{key} = {shown}", {"geolib.quote": {"key": key, "shown": shown}})


def _scalar(key: str, measured: Any) -> float | int | bool:
    value = measured.item() if hasattr(measured, "item") else measured
    if not isinstance(value, bool | int | float):
        got = type(value).__name__
        raise ValueError(f"measured: {key} expects one number or boolean, got {got}")
    return value


def _show(value: float | int | bool, digits: int | None) -> str:
    if digits is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def publish(text: str, metadata: dict[str, Any] | None = None, html: str = "") -> None:
    """Print `text`; a notebook keeps the HTML and the data with that very output."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import publish_display_data
    except ImportError:
        get_ipython = None  # type: ignore[assignment]
    if get_ipython is None or get_ipython() is None:
        print(text)
    else:
        data = {"text/plain": text} | ({"text/html": html} if html else {})
        publish_display_data(data, metadata=metadata or {})
