"""A table: plain text for those who compare or print, HTML on a page of the book."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from geolib.claims import publish

NUMBER = r"\d+\.?\d*(?:e[-+]?\d+)?"
LEADING = re.compile(rf"[-+]?(?:{NUMBER}|\.\d+)(?![\w.])")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIGNS = {"<=": "≤", ">=": "≥", "+-": "±", "==": "=", "->": "→", " * ": " · "}
NAMES = "alpha beta gamma delta eps eta theta kappa lambda mu xi pi rho sigma tau inf"
GREEK = dict(zip(NAMES.split(), "αβγδεηθκλμξπρστ∞", strict=True))
WORD = re.compile(rf"(?<![\w-])({'|'.join(GREEK)})(?=\d?(?![a-z-]))")
RAISED = re.compile(r"\^(?:\{([^{}]*)\}|\(([^()]*)\)|(-?\w+))")
LOWERED = re.compile(r"((?<!\w)[A-Za-z]|\|)_(\w{1,2})\b")
WORDS: dict[Any, Any] = {None: "", True: "yes", False: "no"}
BOX = (
    '<div class="table-box {kind}" role="region" aria-label="{about}" tabindex="0">'
    "<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
)


def show(
    rows: Sequence[Mapping[str, Any]],
    caption: str,
    *,
    highest: Sequence[str] = (),
    lowest: Sequence[str] = (),
) -> None:
    """Print a table; on a page of the book it has a number and can be sorted.

    Args:
        rows: by heading what stands in each column: texts as they are, numbers with
            three digits, yes or no, and nothing where a heading is missing.
        caption: what the table shows, in words.
        highest: columns whose greatest number is the best one, and set in bold.
        lowest: columns whose least number is the best one.

    Examples:
        >>> show([{"path": "line", "test": 0.5}, {"path": "arc", "test": "0.75"}],
        ...      "Accuracy", highest=["test"])
        Accuracy
        path  test
        line   0.5
        arc   0.75
    """
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in head] for row in rows]
    best = {
        name: choose([v for row in cells if (v := _value(row[k])) is not None])
        for names, choose in ((highest, max), (lowest, min))
        for k, name in enumerate(head)
        if name in names
    }

    def styled(name: str, text: str) -> str:
        value = _value(text)
        bold = value is not None and value == best.get(name)
        return f"<b>{human(text)}</b>" if bold else human(text)

    body = [("", [styled(*c) for c in zip(head, row, strict=True)]) for row in cells]
    page = html_table(head, body, caption, "numbered sortable")
    publish(f"{caption}\n{text_table([head, *cells])}", html=page)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, those of numbers on the right; the first row is the head.

    Examples:
        >>> print(text_table([["a", "b"], ["long", "10"], ["c", "9"]]))
        a      b
        long  10
        c      9
    """

    def aligned(column: Sequence[str]) -> list[str]:
        wide = max(map(len, column))
        right = all(_value(c) is not None for c in column[1:] if c)
        return [c.rjust(wide) if right else c.ljust(wide) for c in column]

    columns = map(aligned, zip(*rows, strict=True))
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def html_table(
    head: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    caption: str = "",
    kind: str = "",
    about: str = "",
) -> str:
    """A table in a box that scrolls.

    Args:
        head: the headings, as plain text.
        rows: attributes of each row and its cells, both HTML.
        caption: above the table, as plain text.
        kind: classes of the box: "numbered" counts the page's tables.
        about: the name of the box for those who hear it; the caption where it is empty.
    """
    lines = (f"<tr {more}>" + "".join(map("<td>{}</td>".format, c)) for more, c in rows)
    return BOX.format(
        kind=kind,
        about=html.escape(about or caption or ", ".join(head)),
        caption=caption and f"<caption>{human(caption)}</caption>",
        head="".join(f'<th scope="col">{human(name)}</th>' for name in head),
        body="".join(f"{line}</tr>" for line in lines).replace("<tr >", "<tr>"),
    )


def human(text: str) -> str:
    """Text as a person writes it, in HTML: ≤ for <=, 10⁻⁹ for 1e-9, powers raised.

    Examples:
        >>> human("<= 1e-9")
        '≤ 10⁻⁹'
        >>> human("sqrt(delta) k^2 in W^{1,inf}")
        '√(δ) k<sup>2</sup> in W<sup>1,∞</sup>'
    """
    for plain, sign in SIGNS.items():
        text = text.replace(plain, sign)
    text = WORD.sub(lambda m: GREEK[m[1]], text.replace("sqrt(", "√("))
    text = html.escape(re.sub(rf"(?<![\w.]){NUMBER}(?![\w])", _digits, text))
    text = RAISED.sub(lambda m: f"<sup>{m[1] or m[2] or m[3]}</sup>", text)
    return LOWERED.sub(r"\1<sub>\2</sub>", text)


def _digits(m: re.Match[str]) -> str:
    """A number with the digits that a person reads: 10⁻⁹, 1 + 10⁻⁹, 2.8284."""
    text, value = m[0], float(m[0])
    if "e" in text:
        return power(value)
    rest = value - round(value)
    if len(text) < 8 or rest == 0:
        return text
    if abs(rest) < 1e-3 and value > 0.5:
        return f"{round(value)} {'−' if rest < 0 else '+'} {power(abs(rest))}"
    return f"{value:.5g}"


def power(value: float) -> str:
    """A number as digits, or as a multiple of a power of ten.

    Examples:
        >>> power(2e-6)
        '2·10⁻⁶'
    """
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:g}"
    digits, exponent = f"{value:.0e}".split("e")
    ten = "10" + str(int(exponent)).translate(SUPERSCRIPT)
    return ten if digits == "1" else f"{digits}·{ten}".replace("-1·", "-")


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str | bool):
        return str(WORDS.get(value, value))
    return str(value) if hasattr(value, "__index__") else f"{value:.3g}"


def _value(text: str) -> float | None:
    """The number with which a cell begins."""
    found = LEADING.match(text.strip())
    return float(found[0]) if found else None
