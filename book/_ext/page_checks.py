"""Claims as a reader sees them: the lines of a cell, the table of a page, in HTML."""

from __future__ import annotations

from typing import Any

from geolib.press.verdict import FAILS, NOT_REACHED
from geolib.tables import html_table, human, power

ALOUD = 8  # claims in the text of a page
YES_NO = {"is True": "yes", "is False": "no"}


def shown(row: dict[str, Any]) -> str:
    """The measured value as a reader sees it."""
    if row["measured"] is None:
        return ""
    return str(row["shown"]) or power(float(f"{float(row['measured']):.2g}"))


def anchor(key: str) -> str:
    """The id of a claim's box on its page."""
    return "claim-" + key.replace(".", "-").replace("_", "-")


def typeset(bound: str) -> str:
    """A bound as a reader writes it, escaped for HTML."""
    return YES_NO.get(bound) or human(bound)


def kind(verdict: str) -> str:
    """The style of a verdict: `holds`, `fails`, `loses` or `differs`."""
    kinds = {"holds": "holds", FAILS: "fails", NOT_REACHED: "fails"}
    return (kinds | {"a baseline wins": "loses"}).get(verdict, "differs")


def said_aloud(entries: list[dict[str, Any]], quoted: set[str]) -> set[str]:
    """The keys of the claims on which the text of a page stands: eight at most.

    Those come first which the prose quotes, then those of a paper, then as they come.
    What does not hold, and a baseline that wins, is shown besides.
    """
    quiet = [e for e in entries if e["verdict"] == "holds"]
    quiet.sort(key=lambda e: (e["key"] not in quoted, not e["paper"]))
    return {e["key"] for e in quiet[:ALOUD]}


def checks_box(entries: list[dict[str, Any]], aloud: set[str], code: str = "") -> str:
    """The claims of one cell: a line for those said aloud, the open ones in full.

    Args:
        entries: the settled claims.
        aloud: keys of the claims that hold and have a line here.
        code: source that is shown nowhere else; it unfolds.
    """
    text = "".join(_loud(e) for e in entries if e["verdict"] != "holds")
    for e in entries:
        if e["verdict"] == "holds" and e["key"] in aloud:
            text += (
                f'<p class="check" id="{anchor(e["key"])}">{sentence(e["text"])}'
                f'<span class="claim-numbers">{_numbers(e, " ")}.</span>{_paper(e)}</p>'
            )
    fold = '<details class="checks"><summary>code</summary>'
    return text + (f"{fold}{code_block(code)}</details>" if code else "")


def checks_table(entries: list[dict[str, Any]], aloud: set[str]) -> str:
    """Sentence, found value and bound of each claim; those shown above are linked."""
    rows = []
    for e in entries:
        name, first, holds = anchor(e["key"]), human(e["text"]), e["verdict"] == "holds"
        if above := not holds or e["key"] in aloud:
            first = f'<a href="#{name}">{first}</a>'
        first += _paper(e) if holds else f" <b>({e['verdict']})</b>"
        cells = (first, found(e), typeset(e["bound"]))
        rows.append(("" if above else f'id="{name}"', cells))
    return html_table(("Check", "Found", "Bound"), rows, about="checks")


def _paper(e: dict[str, Any]) -> str:
    return f" <small>Paper: {human(e['paper'])}.</small>" if e["paper"] else ""


def sentence(text: str) -> str:
    """A claim's words as a sentence, escaped for HTML."""
    return human(text[:1].upper() + text[1:])


def _numbers(e: dict[str, Any], before: str = "") -> str:
    """What was found and its bound, where that says more than yes."""
    value = f"{found(e)}; " if found(e) else ""
    told = f"{before}({value}bound {typeset(e['bound'])})"
    return "" if e["bound"] in YES_NO else told


def found(entry: dict[str, Any]) -> str:
    """What was found, in human digits, escaped for HTML."""
    if isinstance(entry["measured"], bool):
        return "yes" if entry["measured"] else "no"
    return human(shown(entry))


def _loud(entry: dict[str, Any]) -> str:
    """A claim that is no quiet success: the paper's sentence, what we find, the verdict."""
    e = {k: human(str(v)) for k, v in entry.items() if v is not None}
    paper = f"Paper: {e['paper']}. " if entry["paper"] else ""
    lead = "Found: " if entry["paper"] else ""
    reason = f" {sentence(entry['reason'])}." if entry["reason"] else ""
    rival = f" Better here: {e['rival']}." if entry["rival"] else ""
    text = e["text"] if lead else sentence(entry["text"])
    return (
        f'<div class="claim claim-{kind(entry["verdict"])}" id="{anchor(entry["key"])}">'
        f'{paper}{lead}{text}<span class="claim-numbers">{_numbers(entry, " ")}.'
        f"{reason}{rival}</span> "
        f'<span class="claim-verdict">{e["verdict"]}</span></div>'
    )


def code_block(source: str) -> str:
    """Source text in the colours of the page, as HTML."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    text = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    region = 'class="highlight" role="region" aria-label="code of these checks"'
    return f'<div {region}><pre tabindex="0">{text}</pre></div>'
