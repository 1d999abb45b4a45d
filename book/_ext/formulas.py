"""Displayed formulas that hold several statements get a line for each where they are wide."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

LINE = 50  # letters of a formula that fit into a line of a page beside its number
GAPS = (r"\qquad", r"\quad")
# What stands in brackets is not cut: in a group, an environment, a pair of tall ones.
OPENS = re.compile(r"\{$|\\begin|\\left(?![a-z])|\\[bB]igg?l$")
CLOSES = re.compile(r"\}$|\\end|\\right(?![a-z])|\\[bB]igg?r$")
TOKEN = re.compile(r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\[a-zA-Z]+|\\.|.", re.S)
SILENT = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|math\w+|operatorname|tilde|hat|bar|tfrac|frac)(?![a-zA-Z])"
)
SMALL = re.compile(r"[_^](?:\{([^{}]*)\}|(\\[a-zA-Z]+|.))", re.S)


def break_the_formulas(app: Sphinx, doctree: nodes.document) -> None:
    """Set every displayed formula of a page that is too wide in lines."""
    for node in doctree.findall(nodes.math_block):
        text = node.astext()
        if (lines := in_lines(text)) != text:
            node.clear()
            node += nodes.Text(lines)


def in_lines(tex: str) -> str:
    r"""A formula whose statements are set apart by wide spaces, in lines if it is long.

    Examples:
        >>> in_lines(r"a = b, \qquad c = d")
        'a = b, \\qquad c = d'
        >>> in_lines("a" * 30 + r" \qquad " + "b" * 30).count(r"\\")
        1
    """
    parts = statements(tex)
    lines = [parts[0].strip()]
    for gap, part in zip(parts[1::2], parts[2::2], strict=True):
        if width(lines[-1]) + 4 + width(part) <= LINE:
            lines[-1] += f" {gap} {part.strip()}"
        else:
            lines.append(part.strip())
    if len(lines) == 1:
        return tex
    return r"\begin{gathered} " + " \\\\\n".join(lines) + r" \end{gathered}"


def statements(tex: str) -> list[str]:
    r"""The parts between wide spaces outside all brackets, and these; the whole if it has rows.

    Examples:
        >>> statements(r"a \quad b")
        ['a ', '\\quad', ' b']
    """
    depth, parts = 0, [""]
    for token in TOKEN.findall(tex):
        depth += bool(OPENS.match(token)) - bool(CLOSES.match(token))
        if not depth and token in (r"\\", "&"):
            return [tex]
        if not depth and token in GAPS:
            parts += [token, ""]
        else:
            parts[-1] += token
    return parts


def width(tex: str) -> float:
    """About how many letters wide a formula is: small ones count for a part.

    Examples:
        >>> width("x_{12} + y"), width(r"\\lambda")
        (4.2, 1.0)
    """
    tex = re.sub(r"\\text\{([^{}]*)\}", lambda m: "x" * len(m[1]), SILENT.sub("", tex))
    tex = re.sub(r"\\(?:[,;:! ]|q?quad)", "", tex)
    marks = [a or "x" for a, _ in SMALL.findall(tex)]
    small = sum(len(re.sub(r"\\[a-zA-Z]+", "x", m)) for m in marks)
    tex = re.sub(r"\\[a-zA-Z]+|\\.", "x", SMALL.sub("", tex))
    return len(re.sub(r"[{}\s]", "", tex)) + 0.6 * small
